"""`cohort`, `measure`, `evaluate`: choose patients, run encoders on them, and compare the encoders."""

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from ace.commands.options import PROPERTIES, add_shards_option
from shards.cli import add_params_options, values_of

if TYPE_CHECKING:
    from ace.embed.opening import EncoderParams
    from ace.evaluation.params import EvaluateParams
    from ace.evaluation.setting import StagePaths
    from shards.core.params import MeasuredParams

COHORT, INDEPENDENCE, ANSWERS = Path("data/cohort.json"), Path("data/independence.json"), Path("data/answers")
EVIDENCE = Path("data/evidence")


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `cohort`, `measure` and `evaluate` to the command line."""
    command = commands.add_parser("cohort", help="choose the patients who are measured", description=cohort.__doc__)
    add_params_options(command)
    add_shards_option(command)
    command.set_defaults(run=cohort)

    command = commands.add_parser("measure", help="run one encoder on the chosen patients", description=measure.__doc__)
    add_params_options(command)
    command.add_argument("name", metavar="NAME", help="name of an encoder in the section `encoders` of the params file")
    add_shards_option(command)
    command.set_defaults(run=measure)

    command = commands.add_parser("evaluate", help="compare the measured encoders", description=evaluate.__doc__)
    add_params_options(command)
    add_shards_option(command)
    command.add_argument(
        "--batch",
        metavar="NAME",
        help="the shard set to measure on, which need not be one of the model's training; default: evaluate.batch of "
        "the params file",
    )
    command.add_argument(
        "--split", choices=["val", "test"], help="the split to measure; default: evaluate.split of the params file"
    )
    command.add_argument(
        "--model",
        type=Path,
        metavar="MODEL",
        help="folder of a model, or the name of a shipped one (python -m ace models), to measure instead of the first "
        "encoder",
    )
    command.add_argument(
        "--metrics",
        type=Path,
        default=PROPERTIES,
        metavar="FILE",
        help=f"file that the figures are written to; default: {PROPERTIES}",
    )
    command.add_argument(
        "--out",
        type=Path,
        default=EVIDENCE,
        metavar="DIR",
        help=f"folder for the data of the report's pictures; default: {EVIDENCE}",
    )
    command.set_defaults(run=evaluate)


def cohort(arguments: argparse.Namespace) -> None:
    """Choose the patients whose images are measured, the same for all encoders.

    They are of the split that evaluate.split names, and no encoder was trained on them.
    """
    from ace.evaluation.cohort import choose_cohort
    from ace.evaluation.params import EvaluateParams, parse_encoders

    values = values_of(arguments)
    params = EvaluateParams.from_params(values.get("evaluate"), f"{arguments.params}: evaluate")
    encoders = parse_encoders(values.get("encoders"), str(arguments.params))
    choose_cohort(params, with_folders(encoders), paths_of(arguments))


def measure(arguments: argparse.Namespace) -> None:
    """Run one encoder on the images of the chosen patients.

    Its answers for every property, and its dense tokens, are written to data/answers/NAME.
    """
    from ace.evaluation.measure import measure
    from ace.evaluation.params import EvaluateParams, parse_encoders
    from shards.core.errors import ConfigError

    values = values_of(arguments)
    params = EvaluateParams.from_params(values.get("evaluate"), f"{arguments.params}: evaluate")
    encoders = with_folders(parse_encoders(values.get("encoders"), str(arguments.params)))
    if arguments.name not in encoders:
        raise ConfigError(f"{arguments.params}: encoders has no '{arguments.name}'; it has {', '.join(encoders)}")
    measured = measured_of(arguments, values, params.batch)
    measure(arguments.name, encoders[arguments.name], params, paths_of(arguments), measured)


def evaluate(arguments: argparse.Namespace) -> None:
    """Compare the encoders of params.yaml by the answers that `measure` wrote.

    This writes every figure, and the data of the report's pictures.

    With --model, --batch or --split, patients are chosen and all encoders are measured again at once, in a temporary
    folder. --model replaces the first encoder; the others are measured beside it.
    """
    from ace.evaluation.evaluate import evaluate
    from ace.evaluation.params import EvaluateParams, parse_encoders

    values = values_of(arguments)
    flags = {"batch": arguments.batch, "split": arguments.split}
    section = {**(values.get("evaluate") or {}), **{key: value for key, value in flags.items() if value is not None}}
    params = EvaluateParams.from_params(section, f"{arguments.params}: evaluate")
    encoders = parse_encoders(values.get("encoders"), str(arguments.params))
    if arguments.model is None and not any(flags.values()):
        evaluate(params, with_folders(encoders), paths_of(arguments))
    else:
        _evaluate_at_once(arguments, values, params, encoders)


def _evaluate_at_once(
    arguments: argparse.Namespace,
    values: Mapping[str, Any],
    params: "EvaluateParams",
    encoders: Mapping[str, "EncoderParams"],
) -> None:
    from ace.evaluation.at_once import evaluate_at_once
    from shards.runtime.scratch import scratch_root

    if arguments.model is not None:
        first = next(iter(encoders.values())).model
        own = {"model": str(arguments.model)}
        encoders = {
            name: encoder.model_copy(update=own) if encoder.model == first else encoder
            for name, encoder in encoders.items()
        }
    scratch_root().mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=scratch_root(), prefix="answers-") as folder:
        work = Path(folder)
        paths = replace(
            paths_of(arguments),
            cohort=work / COHORT.name,
            independence=work / INDEPENDENCE.name,
            answers=work / "answers",
        )
        evaluate_at_once(params, with_folders(encoders), paths, measured_of(arguments, values, params.batch))


def paths_of(arguments: argparse.Namespace) -> "StagePaths":
    """Return the files that the stages of the evaluation read and write; options of the command win."""
    from ace.evaluation.setting import StagePaths

    return StagePaths(
        shards=arguments.shards,
        project=arguments.params.parent,
        cohort=COHORT,
        independence=INDEPENDENCE,
        answers=ANSWERS,
        metrics=getattr(arguments, "metrics", PROPERTIES),
        evidence=getattr(arguments, "out", EVIDENCE),
    )


def with_folders(encoders: Mapping[str, "EncoderParams"]) -> dict[str, "EncoderParams"]:
    """Replace names of shipped models by their folders."""
    from ace.zoo.shipped import find_model

    return {
        name: encoder.model_copy(update={"model": str(find_model(Path(encoder.model)))})
        for name, encoder in encoders.items()
    }


def measured_of(arguments: argparse.Namespace, values: Mapping[str, Any], batch: str) -> "MeasuredParams | None":
    """Read a batch's own mean and std; None if it is not registered in this project."""
    from shards.delivery.batches import read_batches

    is_registered = batch in (values.get("batches") or {})
    return read_batches(arguments.params, values, [batch])[batch].measured if is_registered else None
