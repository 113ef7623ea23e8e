"""`python -m ace`: pretrain, import, measure, fine-tune, embed with, export and publish encoders; report, configure."""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from inspect import cleandoc
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeVar

from ruamel.yaml import YAML

from shards.cli import add_params_options, run_command, values_of
from shards.core.identity import KEY_FILE_VARIABLE, SPLITS
from shards.runtime.text import count_of
from shards.store.location import parse_location

if TYPE_CHECKING:
    from ace.embed.opening import EncoderParams
    from ace.engine.run import RunOptions
    from ace.engine.stop import StopRequest
    from ace.evaluation.params import EvaluateParams
    from ace.evaluation.setting import StagePaths
    from ace.models.weights import WeightsReport
    from shards.core.params import MeasuredParams

Number = TypeVar("Number", int, float)

SHARDS, MODELS, EVIDENCE = Path("data/shards"), Path("models"), Path("data/evidence")
MODEL = MODELS / "ace"
COHORT, INDEPENDENCE, ANSWERS = Path("data/cohort.json"), Path("data/independence.json"), Path("data/answers")
FINETUNED, TASKS = Path("data/finetuned"), Path("metrics/finetune")
PROPERTIES = Path("metrics/properties.json")
TRAINING, VARIANTS = Path("metrics/pretrain"), Path("metrics/variants")
REPORT, EXPLORER = Path("reports/report.html"), Path("reports/explorer.html")
COMPARISON = Path("reports/comparison.html")


def pretrain(arguments: argparse.Namespace) -> None:
    """Train student and EMA teacher on the shards of every batch.

    Several processes train together when torchrun starts them: torchrun --nproc-per-node 8 -m -- ace pretrain. A killed
    run goes on at its last checkpoint when the same command is given again. On SIGTERM, SIGUSR1, Ctrl-C or at the time
    limit, the running step is finished, a checkpoint is saved, and the command ends with exit code 75.
    """
    with _stop_requests(arguments) as request:
        values = values_of(arguments)
        sections = {"pretrain": values.get("pretrain"), "grid": values.get("grid"), "mix": values.get("mix")}
        _train(arguments, sections, arguments.out, arguments.metrics, request)


def variant(arguments: argparse.Namespace) -> None:
    """Train one item of the section `variants`: as `pretrain` does, with the params that the item changes.

    It is killed, stopped and resumed like `pretrain`.
    """
    with _stop_requests(arguments) as request:
        from ace.config import merged
        from shards.core.errors import ConfigError

        values = values_of(arguments)
        variants, name = values.get("variants") or {}, arguments.name
        if name not in variants:
            raise ConfigError(f"{arguments.params}: variants has no '{name}'; it has {', '.join(variants) or 'none'}")
        own = merged(values.get("pretrain") or {}, variants[name] or {})
        sections = {"pretrain": own, "grid": values.get("grid"), "mix": values.get("mix")}
        _train(arguments, sections, arguments.out or MODELS / name, arguments.metrics or VARIANTS / name, request)


def _train(
    arguments: argparse.Namespace, sections: Mapping[str, Any], out: Path, metrics: Path, request: "StopRequest"
) -> None:
    """Train by these sections of the params file."""
    from ace.pretrain.params import PretrainParams
    from ace.pretrain.pretrain import pretrain
    from shards.core.params import GridParams, parse_mix
    from shards.runtime.atomic import clear_when_full
    from shards.runtime.scratch import scratch_root

    with clear_when_full(arguments.run_dir or scratch_root(), out.parent, metrics):
        pretrain(
            PretrainParams.from_params(sections["pretrain"], f"{arguments.params}: pretrain"),
            GridParams.from_params(sections["grid"], f"{arguments.params}: grid"),
            parse_mix(sections["mix"], f"{arguments.params}: mix"),
            shards_root=arguments.shards,
            out=out,
            metrics_dir=metrics,
            request=request,
            options=_run_options(arguments),
            project=arguments.params.parent,
        )


@contextmanager
def _stop_requests(arguments: argparse.Namespace) -> "Iterator[StopRequest]":
    """Listen for signals and the time limit, and end with exit code 75 if one of them ended what is inside.

    Inside are imports too: to import and to build a network takes long enough to be preempted in.
    """
    from ace.engine.stop import EXIT_CODE, StoppedError, stop_requests

    try:
        with stop_requests(None if arguments.time_limit is None else 60 * arguments.time_limit) as request:
            yield request
    except StoppedError as stop:
        print(stop, file=sys.stderr)
        sys.exit(EXIT_CODE)


def _run_options(arguments: argparse.Namespace) -> "RunOptions":
    from ace.engine.run import RunOptions

    return RunOptions(
        run_dir=arguments.run_dir,
        accepts_changed_code=arguments.accept_changed_code,
        loggers=arguments.logger,
        device=arguments.device,
    )


def finetune(arguments: argparse.Namespace) -> None:
    """Train and measure every encoder of params.yaml on a task of configs/tasks, with one budget for all.

    Each training goes on at its last checkpoint after a kill; SIGTERM, SIGUSR1, Ctrl-C and the time limit let the
    running step finish, save, and end with exit code 75: the same command goes on from there. A finished result is
    kept while all that decides it stays.
    """
    with _stop_requests(arguments) as request:
        from ace.downstream.finetune import finetune
        from ace.downstream.registry import read_task
        from ace.evaluation.params import parse_encoders

        values = values_of(arguments)
        task = read_task(arguments.name, arguments.params.parent, arguments.batch)
        finetune(
            arguments.name,
            task,
            _with_folders(parse_encoders(values.get("encoders"), str(arguments.params))),
            shards_root=arguments.shards,
            out=arguments.out or FINETUNED / arguments.name,
            metrics=arguments.metrics or TASKS / f"{arguments.name}.json",
            request=request,
            measured=_measured_of(arguments, values, task.params.batch),
            options=_run_options(arguments),
            project=arguments.params.parent,
        )


def cohort(arguments: argparse.Namespace) -> None:
    """Choose the patients whose images are measured, the same for all encoders.

    They are of the split that evaluate.split names, and no encoder was trained on them.
    """
    from ace.evaluation.cohort import choose_cohort
    from ace.evaluation.params import EvaluateParams, parse_encoders

    values = values_of(arguments)
    params = EvaluateParams.from_params(values.get("evaluate"), f"{arguments.params}: evaluate")
    encoders = parse_encoders(values.get("encoders"), str(arguments.params))
    choose_cohort(params, _with_folders(encoders), _paths(arguments))


def measure(arguments: argparse.Namespace) -> None:
    """Run one encoder on the images of the chosen patients.

    Its answers for every property, and its dense tokens, are written to data/answers/NAME.
    """
    from ace.evaluation.measure import measure
    from ace.evaluation.params import EvaluateParams, parse_encoders
    from shards.core.errors import ConfigError

    values = values_of(arguments)
    params = EvaluateParams.from_params(values.get("evaluate"), f"{arguments.params}: evaluate")
    encoders = _with_folders(parse_encoders(values.get("encoders"), str(arguments.params)))
    if arguments.name not in encoders:
        raise ConfigError(f"{arguments.params}: encoders has no '{arguments.name}'; it has {', '.join(encoders)}")
    measured = _measured_of(arguments, values, params.batch)
    measure(arguments.name, encoders[arguments.name], params, _paths(arguments), measured)


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
        evaluate(params, _with_folders(encoders), _paths(arguments))
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
            _paths(arguments),
            cohort=work / COHORT.name,
            independence=work / INDEPENDENCE.name,
            answers=work / "answers",
        )
        evaluate_at_once(params, _with_folders(encoders), paths, _measured_of(arguments, values, params.batch))


def _paths(arguments: argparse.Namespace) -> "StagePaths":
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


def _with_folders(encoders: Mapping[str, "EncoderParams"]) -> dict[str, "EncoderParams"]:
    """Replace names of shipped models by their folders."""
    from ace.zoo.shipped import find_model

    return {
        name: encoder.model_copy(update={"model": str(find_model(Path(encoder.model)))})
        for name, encoder in encoders.items()
    }


def _measured_of(arguments: argparse.Namespace, values: Mapping[str, Any], batch: str) -> "MeasuredParams | None":
    """Read a batch's own mean and std; None if it is not registered in this project."""
    from shards.delivery.batches import read_batches

    is_registered = batch in (values.get("batches") or {})
    return read_batches(arguments.params, values, [batch])[batch].measured if is_registered else None


def report(arguments: argparse.Namespace) -> None:
    """Write the report of the data, the training and the figures: one HTML page that opens offline.

    With --compare, write a page that compares two encoders instead. They are two encoders of params.yaml that `dvc
    repro` has measured, compared patient by patient; or one each of two files of metrics or folders of studies, as
    studies/phantom, or studies/phantom:paper for another encoder than the first. Files of metrics hold figures and
    intervals, and nothing of single patients.
    """
    from ace.report.page import write_report
    from ace.report.params import ReportParams
    from ace.report.two_encoders import write_comparison

    if arguments.compare is None:
        params = ReportParams.from_params(values_of(arguments).get("report"), f"{arguments.params}: report")
        write_report(params, arguments.out or REPORT)
    else:
        out = arguments.out or COMPARISON
        print(write_comparison(*_compared(arguments, *arguments.compare), out))
        print(f"report: {out.resolve()}")


def _compared(arguments: argparse.Namespace, first: str, second: str) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Read the metrics of two encoders, and for each the section that says whom it was measured on."""
    from ace.evaluation.evaluate import evaluate
    from ace.evaluation.measured import MEASURED
    from ace.evaluation.params import EvaluateParams, parse_encoders
    from ace.report.two_encoders import read_apart
    from shards.core.errors import ConfigError
    from shards.runtime.scratch import scratch_root

    values = values_of(arguments) if arguments.params.is_file() else {}
    encoders = values.get("encoders") or {}
    if first == second:
        return read_apart(first, second)
    for name in (first, second):
        if name not in encoders and not Path(name.partition(":")[0]).exists():
            raise ConfigError(
                f"--compare {name}: no encoder of {arguments.params}, which has {', '.join(encoders) or 'none'}, and "
                "no file of metrics or folder of a study"
            )
    own = [name for name in (first, second) if name in encoders]
    if not own:
        return read_apart(first, second)
    if len(own) == 1:
        raise ConfigError(
            f"--compare {first} {second}: one is an encoder of {arguments.params} and the other a file or folder; "
            f"name the encoder's figures by their file too, as {PROPERTIES}:{own[0]}"
        )
    both = parse_encoders({name: encoders[name] for name in (first, second)}, f"--compare {first} {second}")
    params = EvaluateParams.from_params(values.get("evaluate"), f"{arguments.params}: evaluate")
    scratch_root().mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=scratch_root(), prefix="compared-") as folder:
        work = Path(folder)
        paths = replace(_paths(arguments), metrics=work / PROPERTIES.name, evidence=work / EVIDENCE.name)
        evaluate(params, _with_folders(both), paths)
        figures = json.loads(paths.metrics.read_text(encoding="utf-8"))
    return figures, dict.fromkeys((first, second), figures[MEASURED])


def explore(arguments: argparse.Namespace) -> None:
    """Write explorer.html: point at one patient's anatomy, and see where each encoder finds it in others.

    The page opens without a network, shows no key of an image, and is made of the tokens that `measure` kept.
    """
    from ace.evaluation.params import EvaluateParams, parse_encoders
    from ace.explorer.explore import explore

    values = values_of(arguments)
    params = EvaluateParams.from_params(values.get("evaluate"), f"{arguments.params}: evaluate")
    encoders = parse_encoders(values.get("encoders"), str(arguments.params))
    explore(params, _with_folders(encoders), _paths(arguments), arguments.page)


def summary(arguments: argparse.Namespace) -> None:
    """Print the key figures, each beside its chance level and the untrained encoder's."""
    from ace.report.summary import summary_table

    print(summary_table(PROPERTIES))
    print(f"report: {REPORT.resolve()}" if REPORT.is_file() else "report: not written yet; `dvc repro` writes it")


def import_(arguments: argparse.Namespace) -> None:
    """Turn weights that others trained into a model folder: of any architecture in timm, or of the method's authors.

    `evaluate`, `embed` and `export` take the folder like that of any other model, and normalise and size each image
    as this encoder needs it. Its config.json records how, and the name and sha256 of the file. Reading a file of
    weights never runs code from it.

    For a file of weights, name its architecture as timm does (timm.list_models() lists all names):

      python -m ace import swin_t.pth --architecture swin_tiny_patch4_window7_224 --out models/swin
      python -m ace import vit.safetensors --architecture vit_base_patch16_224 --tokens 28 --out models/vit

    The side of the input in pixels is --tokens times the stride of the architecture. Position embeddings and tables of
    another size are resampled by timm's function for the architecture; the command then says how many. A missing or an
    additional tensor is an error.

    The architectures swin_b, vit_b (both at 448 px) and vit_b16 (224 px) are those of the files that the method's
    authors published. Nothing in these files is resampled, and an unknown key is an error.

    Encoders to compare with are listed in the section `imports` of params.yaml. Each is a stage of its own, which runs:

      python -m ace import --name imagenet
    """
    from ace.models.params import ImportParams
    from ace.published.importing import ARCHITECTURES, import_checkpoint, import_timm, one_import
    from shards.core.errors import ConfigError
    from shards.core.params import GridParams

    if (arguments.name is None) == (arguments.file is None):
        raise ConfigError(
            f"found {'neither' if arguments.file is None else 'both'} of FILE and --name; give a FILE of weights with "
            "--architecture and --out, or the --name of an encoder in the section `imports` of params.yaml"
        )
    if arguments.name is not None:
        values = values_of(arguments)
        imports, where = values.get("imports") or {}, f"{arguments.params}: imports.{arguments.name}"
        if arguments.name not in imports:
            raise ConfigError(
                f"{where}: not found; the section `imports` has {', '.join(imports) or 'no encoder'}: give one of "
                "these as --name, or add it there"
            )
        params = ImportParams.from_params(imports[arguments.name], where)
        t = GridParams.from_params(values.get("grid"), f"{arguments.params}: grid").t
        out = arguments.out or MODELS / arguments.name
        _tell_import(out, import_timm(params, t, out, where=where))
        return
    if arguments.architecture is None or arguments.out is None:
        raise ConfigError(
            f"{arguments.file}: also give --architecture, the architecture of these weights, and --out, the new folder"
        )
    if arguments.out.exists():
        raise ConfigError(f"{arguments.out} exists; choose another --out or remove it")
    if arguments.architecture not in ARCHITECTURES:
        params = one_import(
            arguments.file,
            arguments.architecture,
            dict(arguments.model_arg),
            in_channels=arguments.channels,
            mean=arguments.mean,
            std=arguments.std,
        )
        _tell_import(arguments.out, import_timm(params, arguments.tokens, arguments.out, where=str(arguments.file)))
        return
    keys = import_checkpoint(
        arguments.file,
        arguments.out,
        ARCHITECTURES[arguments.architecture],
        network=arguments.network,
        mean=arguments.mean or 0.5056,
        std=arguments.std or 0.252,
    )
    print(
        f"wrote {arguments.out}: all {len(keys.weights)} tensors of the backbone were loaded. Left out: "
        f"{len(keys.derived)} tables that follow from the architecture, and {len(keys.heads)} tensors of heads and "
        "other parts, whose names are in its config.json"
    )


def _tell_import(out: Path, report: "WeightsReport") -> None:
    print(
        f"wrote {out}: all {report.num_parameters:,} parameters of the backbone were loaded, in {len(report.used)} "
        f"tensors, {len(report.adapted)} of them resampled or fitted to other channels; {len(report.unused)} tensors "
        "of the file were left out. Its config.json names both"
    )


def encoder_add(arguments: argparse.Namespace) -> None:
    """Add an encoder to those that are compared; `dvc repro` then makes and measures it, and trains nothing else again.

    Say where its model comes from: --model is a model that is there already, --weights a file of weights that others
    trained, and --train trains it with params that differ from the section `pretrain`:

      python -m ace encoder add student --model models/ace --network student
      python -m ace encoder add swin --weights swin_t.pth --architecture swin_tiny_patch4_window7_224
      python -m ace encoder add no_removal --train loss_weights.removal=0 --train augment.erase.probability=0
      python -m ace encoder add no_global --train loss_weights.global=0 --params studies/phantom/params.yaml
    """
    from ace.embed.opening import EncoderParams
    from ace.encoders import add_encoder
    from ace.published.importing import one_import
    from shards.core.errors import ConfigError
    from shards.delivery.project import Project

    name, folder = arguments.name, MODELS / arguments.name
    sources = {"--model": arguments.model, "--weights": arguments.weights, "--train": arguments.train or None}
    given = [option for option, value in sources.items() if value is not None]
    if len(given) != 1:
        raise ConfigError(
            f"found {' and '.join(given) or 'none'} of --model, --weights and --train; give one of --model MODEL, "
            "--weights FILE with --architecture, and --train KEY=VALUE"
        )
    made_by: dict[str, Any] = {}
    if arguments.train:
        made_by["variants"] = _nested(arguments.train)
    elif arguments.weights is not None:
        if arguments.architecture is None:
            raise ConfigError(f"{arguments.weights}: also give --architecture, timm's name for these weights")
        own = one_import(
            arguments.weights,
            arguments.architecture,
            dict(arguments.model_arg),
            in_channels=arguments.channels,
            mean=arguments.mean,
            std=arguments.std,
        )
        made_by["imports"] = own.model_dump(mode="json")
    model = str(folder) if arguments.model is None else _path_of_model(arguments.model)
    encoder = {"model": model, "network": arguments.network}
    project = Project(arguments.params, arguments.params.with_name("dvc.yaml"))
    for line in add_encoder(name, EncoderParams.from_params(encoder, name), project, made_by=made_by):
        print(line)


def _path_of_model(model: Path) -> str:
    """Return a model's folder as dvc.yaml depends on it; of a shipped one it knows no name."""
    from ace.zoo.shipped import ZOO, shipped_names
    from shards.delivery.project import portable

    is_name = not model.is_dir() and str(model) in shipped_names()
    return portable(ZOO / model, Path()) if is_name else str(model)


def encoder_list(arguments: argparse.Namespace) -> None:
    """Print the encoders of the params file, and make the stages of dvc.yaml that read every encoder depend on them."""
    from ace.config import list_encoders
    from ace.evaluation.params import parse_encoders

    encoders = parse_encoders(values_of(arguments).get("encoders"), str(arguments.params))
    for line in list_encoders(encoders, arguments.params.with_name("dvc.yaml")):
        print(line)
    for name, encoder in encoders.items():
        print(f"{name}: {encoder.network} of {encoder.model}")


def _nested(assignments: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Nest values by dotted key in mappings."""
    nested: dict[str, Any] = {}
    for path, value in assignments:
        *parents, key = path.split(".")
        section = nested
        for parent in parents:
            section = section.setdefault(parent, {})
        section[key] = value
    return nested


def study_open(arguments: argparse.Namespace) -> None:
    """Make a study's work tree, or bring it to the commit that is checked out; `make study` calls this."""
    from ace.study import Study, open_study

    print(open_study(Study(arguments.name, arguments.run_of)))


def study_record(arguments: argparse.Namespace) -> None:
    """Write what is committed of a finished study: dvc.lock, figures and their table; `make study` calls this."""
    from ace.study import Study, record_study

    print("wrote", *record_study(Study(arguments.name, arguments.run_of)), sep="\n  ")


def embed(arguments: argparse.Namespace) -> None:
    """Embed the images of a folder or a shard set into one Parquet file.

    Of a shard set the embeddings can be written to companion shards instead: tars of the same names, keys and order.
    """
    from ace.inference.companions import write_companions
    from ace.inference.embedder import load_model
    from ace.inference.parquet import write_embeddings
    from ace.inference.sources import ImageSource, is_shard_set, measured_of, open_folder, open_shards
    from shards.core.errors import ConfigError
    from shards.reading.reader import ShardIndex
    from shards.runtime.parallel import default_num_workers

    images: ImageSource
    batch = trimmed = measured = None
    if is_shard_set(arguments.source):
        if arguments.hash_keys:
            raise ConfigError(
                f"--hash-keys: {arguments.source} is a shard set, whose keys are hashes already; leave the option out"
            )
        index = ShardIndex.open(arguments.source).without_excluded(Path())
        images, batch, trimmed = open_shards(index, arguments.split), index.name, index.spec.trim_level
        measured = measured_of(index, Path())
    else:
        if arguments.companions is not None:
            raise ConfigError(
                f"--companions is for shard sets, and {arguments.source} is none: it has no index.json. Build the set "
                "first (`dvc repro shard@NAME`); for a folder of images write --out FILE"
            )
        if arguments.split != "all":
            raise ConfigError(
                f"--split {arguments.split}: {arguments.source} is a folder of images and has no splits; leave the "
                "option out, or give a shard set"
            )
        max_pixels = arguments.max_megapixels * 1e6
        folder = open_folder(arguments.source, is_hashed=arguments.hash_keys, max_pixels=max_pixels)
        for line in folder.left_out:
            print(f"{arguments.source}: {line}", file=sys.stderr)
        images = folder
    model = load_model(
        arguments.model,
        which=arguments.which,
        device=arguments.device,
        normalisation=arguments.normalisation,
        batch=batch,
        measured=measured,
    )
    # No record says how the images of an imported model were framed.
    if trimmed not in (None, model.preprocessing.trim_level) and not model.encoder.is_imported:
        print(
            f"warning: {batch} was built with grid.trim_level {trimmed}, and the model was trained with "
            f"{model.preprocessing.trim_level}: the dark border of its images is cut off differently here",
            file=sys.stderr,
        )
    num_threads = arguments.num_threads or default_num_workers()
    if arguments.companions is not None:
        number = write_companions(
            model,
            index,
            arguments.split,
            arguments.companions,
            batch_size=arguments.batch_size,
            num_threads=num_threads,
            with_tokens=arguments.tokens,
        )
        print(f"wrote {arguments.companions}: companions of {number} samples")
        return
    outcome = write_embeddings(
        model,
        images,
        arguments.out,
        batch_size=arguments.batch_size,
        num_threads=num_threads,
        with_tokens=arguments.tokens,
    )
    print(f"wrote {arguments.out}: {outcome.num_embedded} embeddings")
    if outcome.num_unreadable:
        print(f"{count_of(outcome.num_unreadable, 'image')} could not be read; {outcome.errors} says why")


def export(arguments: argparse.Namespace) -> None:
    """Export the encoder: `onnx` for ONNX Runtime, `timm` for timm and Hugging Face Transformers."""
    import ace

    model = ace.load(arguments.model, which=arguments.which, device="cpu", normalisation=arguments.normalisation)
    if arguments.format == "timm":
        from ace.inference.timm_folder import export_timm

        export_timm(model, arguments.out)
        print(f"wrote {arguments.out}")
    else:
        from ace.inference.onnx import export_onnx

        found = export_onnx(model, arguments.out, tolerance=arguments.tolerance)
        print(f"wrote {arguments.out}: ONNX Runtime is within {found.max_difference:.2g} of torch on random inputs")


def models(arguments: argparse.Namespace) -> None:
    """List the models that come with the package, each with its training images, its figures and its size."""
    from ace.zoo.shipped import models_text

    print(models_text())


def publish(arguments: argparse.Namespace) -> None:
    """Make the folder of a shipped model from a finished training.

    It holds the teacher's backbone, its figures, the names of its training images and the terms of their use. The
    student, the heads and the paths of this machine are left out.
    """
    from ace.zoo.publishing import publish as publish_model
    from ace.zoo.shipped import ZOO
    from shards.core.errors import ConfigError

    terms = Path(arguments.terms)
    if not _is_file(terms) and not any(character.isspace() for character in arguments.terms.strip()):
        raise ConfigError(
            f"--terms {arguments.terms}: found one word and no file of this name; expected a text file, or the terms "
            "in words"
        )
    done = publish_model(
        arguments.folder,
        name=arguments.name,
        metrics=arguments.metrics,
        images=arguments.images,
        terms=terms.read_text(encoding="utf-8") if _is_file(terms) else arguments.terms,
        out=arguments.out or ZOO / arguments.name,
        half=arguments.half,
        summary=arguments.summary,
    )
    print(
        f"wrote {done.folder}: {done.num_bytes / 1e6:.2f} MB of weights; on random inputs its embeddings have a cosine "
        f"of at least {done.min_cosine:.6f} with those of the trained model"
    )


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a text too long to be a file's name
        return False


def config_check(arguments: argparse.Namespace) -> None:
    """Check params.yaml, the files of its batches and dvc.yaml before any work; prints nothing if all is well."""
    from ace.config import Config, check_config, check_graph
    from shards.delivery.batches import read_batches
    from shards.format.exclusion import read_exclusion

    config = Config.from_params(values_of(arguments), str(arguments.params))
    check_config(config, read_batches(arguments.params, config.model_dump(), config.used_batches))
    check_graph(config, arguments.params.parent / "dvc.yaml")
    for name in config.used_batches:
        read_exclusion(name, arguments.params.parent)


def config_use(arguments: argparse.Namespace) -> None:
    """Write configs/NAME.yaml to params.yaml, and say what changed.

    Comments stay, and so do `batches` and `mix`. Batches that had the settings of params.yaml get the new ones.
    """
    from ace.config import use

    for change in use(arguments.name, arguments.params) or [f"{arguments.params} is '{arguments.name}' already"]:
        print(change)


def config_migrate(arguments: argparse.Namespace) -> None:
    """Rewrite the files of a project of an earlier version for this one.

    Batches that params.yaml held become files in batches/, and encoders and properties get sections of their own.
    Shards stay as they are: `dvc commit --force shard` records them under the new files.
    """
    from ace.config import migrate

    for line in migrate(arguments.params) or [f"{arguments.params} is of this version already"]:
        print(line)


def _add_shards_option(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--shards",
        type=parse_location,
        default=SHARDS,
        metavar="DIR",
        help=f"folder or URL that holds the shard sets, as s3://bucket/prefix; default: {SHARDS}",
    )


def _add_model_option(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--model",
        type=Path,
        default=MODEL,
        metavar="MODEL",
        help=f"folder of a model, or the name of a shipped one (python -m ace models); default: {MODEL}",
    )


def _add_model_options(command: argparse.ArgumentParser) -> None:
    _add_model_option(command)
    command.add_argument(
        "--which",
        choices=["teacher", "student", "best"],
        default="teacher",
        help="the network to take; `best` is the teacher at the step where the probe scored it highest; default: "
        "teacher",
    )
    command.add_argument(
        "--normalisation",
        type=_normalisation,
        metavar="NAME",
        help="how pixels are normalised: the name of a training batch whose mean and std are used; or MEAN,STD of your "
        "pixels in [0, 1]; or six numbers, three means and three stds. Needed if the batches of the training mix "
        "differ in them. A shard set that the model was trained with is normalised as in the training",
    )


def _add_run_options(command: argparse.ArgumentParser, device: str) -> None:
    """Add the options of every training; `device` names the parameter that its own device stands in."""
    command.add_argument(
        "--run",
        type=Path,
        dest="run_dir",
        metavar="DIR",
        help="folder for checkpoints and log; a run that was begun there goes on, and is refused if its inputs were "
        "others. Default: a folder in scratch that is named after all inputs and removed once the model is finished",
    )
    command.add_argument(
        "--accept-changed-code",
        action="store_true",
        help="go on with the run in --run although code or library versions have changed since it was begun",
    )
    command.add_argument(
        "--logger",
        action="append",
        default=[],
        metavar="NAME",
        help="a logger besides metrics.jsonl and DVCLive: `tensorboard`, or your own `package.module:factory`; may be "
        "repeated",
    )
    command.add_argument(
        "--device",
        metavar="DEVICE",
        help=f"auto, cpu, cuda, or for a single process one device, as cuda:1; default: {device}",
    )
    command.add_argument(
        "--time-limit",
        type=_positive(float),
        metavar="MINUTES",
        help="save a checkpoint and end with exit code 75 after so many minutes; default: no limit",
    )


def _add_architecture_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--model-arg",
        type=_assignment,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a further argument of timm's architecture, as output_stride=16; may be repeated",
    )
    command.add_argument(
        "--channels",
        type=int,
        choices=[1, 3],
        default=3,
        help="channels of the input; default: 3. The authors' files say it themselves",
    )
    command.add_argument(
        "--mean",
        type=_levels,
        metavar="MEAN",
        help="mean of pixels in [0, 1]: one number, or R,G,B; default: timm's for the architecture; for the authors' "
        "files 0.5056, theirs for chest X-rays",
    )
    command.add_argument(
        "--std",
        type=_levels,
        metavar="STD",
        help="standard deviation of pixels in [0, 1]: one number, or R,G,B; default: timm's for the architecture; for "
        "the authors' files 0.252",
    )


def _normalisation(text: str) -> str | tuple[Sequence[float], Sequence[float]]:
    if "," not in text:
        return text
    try:
        numbers = [float(number) for number in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in (2, 6):
        raise argparse.ArgumentTypeError(
            f"{text}: expected two numbers MEAN,STD, as 0.48,0.27, or six, three means and three stds"
        )
    return numbers[: len(numbers) // 2], numbers[len(numbers) // 2 :]


def _levels(text: str) -> Sequence[float]:
    try:
        levels = [float(number) for number in text.split(",")]
    except ValueError:
        levels = []
    if len(levels) not in (1, 3):
        raise argparse.ArgumentTypeError(f"{text}: expected a number, or three as 0.485,0.456,0.406")
    return levels


def _assignment(text: str) -> tuple[str, Any]:
    key, separator, value = text.partition("=")
    if not (key and separator):
        raise argparse.ArgumentTypeError(f"{text}: expected KEY=VALUE, as output_stride=16")
    return key, YAML(typ="safe", pure=True).load(value)


def _positive(kind: Callable[[str], Number]) -> Callable[[str], Number]:
    def parse(text: str) -> Number:
        value = kind(text)
        if value <= 0:
            raise argparse.ArgumentTypeError(f"{text}: expected a number above 0")
        return value

    return parse


def build_parser() -> argparse.ArgumentParser:
    """Build the command line of `python -m ace`."""
    parser = argparse.ArgumentParser(prog="python -m ace", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("pretrain", help="train the encoder", description=pretrain.__doc__)
    add_params_options(command)
    _add_shards_option(command)
    command.add_argument(
        "--out", type=Path, default=MODEL, metavar="DIR", help=f"folder that the model is written to; default: {MODEL}"
    )
    command.add_argument(
        "--metrics",
        type=Path,
        default=TRAINING,
        metavar="DIR",
        help=f"folder that DVCLive writes the training's metrics to; default: {TRAINING}",
    )
    _add_run_options(command, "pretrain.device of the params file")
    command.set_defaults(run=pretrain)

    command = commands.add_parser("variant", help="train an encoder to compare with", description=variant.__doc__)
    add_params_options(command)
    command.add_argument("name", metavar="NAME", help="name of the training in the section `variants`")
    _add_shards_option(command)
    command.add_argument(
        "--out", type=Path, metavar="DIR", help=f"folder that the model is written to; default: {MODELS}/NAME"
    )
    command.add_argument(
        "--metrics",
        type=Path,
        metavar="DIR",
        help=f"folder that DVCLive writes the training's metrics to; default: {VARIANTS}/NAME",
    )
    _add_run_options(command, "pretrain.device of the params file, unless the variant has its own")
    command.set_defaults(run=variant)

    command = commands.add_parser("finetune", help="train encoders on a task's labels", description=finetune.__doc__)
    add_params_options(command)
    command.add_argument("name", metavar="TASK", help="the file configs/tasks/TASK.yaml")
    _add_shards_option(command)
    command.add_argument("--batch", metavar="NAME", help="another shard set than the task's file names")
    command.add_argument("--out", type=Path, metavar="DIR", help=f"default: {FINETUNED}/TASK")
    command.add_argument("--metrics", type=Path, metavar="FILE", help=f"default: {TASKS}/TASK.json")
    _add_run_options(command, "training.device of the task")
    command.set_defaults(run=finetune)

    command = commands.add_parser("cohort", help="choose the patients who are measured", description=cohort.__doc__)
    add_params_options(command)
    _add_shards_option(command)
    command.set_defaults(run=cohort)

    command = commands.add_parser("measure", help="run one encoder on the chosen patients", description=measure.__doc__)
    add_params_options(command)
    command.add_argument("name", metavar="NAME", help="name of an encoder in the section `encoders` of the params file")
    _add_shards_option(command)
    command.set_defaults(run=measure)

    command = commands.add_parser("evaluate", help="compare the measured encoders", description=evaluate.__doc__)
    add_params_options(command)
    _add_shards_option(command)
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

    command = commands.add_parser("report", help="write the report", description=report.__doc__)
    add_params_options(command)
    _add_shards_option(command)
    command.add_argument(
        "--compare",
        nargs=2,
        metavar=("A", "B"),
        help="compare two encoders instead: two names of the section `encoders`, or two files of metrics or folders "
        "of studies, each with :NAME behind it for another encoder than its first",
    )
    command.add_argument(
        "--out", type=Path, metavar="FILE", help=f"the page; default: {REPORT}, with --compare {COMPARISON}"
    )
    command.set_defaults(run=report)

    command = commands.add_parser("explore", help="write the explorer", description=explore.__doc__)
    add_params_options(command)
    _add_shards_option(command)
    command.add_argument("--out", type=Path, dest="page", default=EXPLORER, metavar="FILE", help=f"default: {EXPLORER}")
    command.set_defaults(run=explore)

    command = commands.add_parser("summary", help="print the key figures", description=summary.__doc__)
    command.set_defaults(run=summary)

    command = commands.add_parser(
        "import",
        help="turn weights that others trained into a model",
        description=cleandoc(import_.__doc__ or ""),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_params_options(command)
    command.add_argument("file", type=Path, nargs="?", metavar="FILE", help="a file of weights: .pth or .safetensors")
    command.add_argument(
        "--name", metavar="NAME", help="instead of FILE: name of an encoder in the section `imports` of the params file"
    )
    command.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help=f"folder of the model; required with FILE, and must not exist; with --name, the default is {MODELS}/NAME",
    )
    command.add_argument(
        "--architecture",
        metavar="NAME",
        help="architecture of the weights in FILE: timm's name, or swin_b, vit_b or vit_b16 for the authors' files",
    )
    _add_architecture_options(command)
    command.add_argument(
        "--tokens",
        type=_positive(int),
        default=14,
        metavar="T",
        help="tokens per side of the input, an even number; default: 14, as in the paper",
    )
    command.add_argument(
        "--network",
        choices=["teacher", "student"],
        default="teacher",
        help="the network to take from a file of the authors; default: teacher",
    )
    command.set_defaults(run=import_)

    command = commands.add_parser("embed", help="embed a folder of images or a shard set", description=embed.__doc__)
    command.add_argument(
        "source",
        type=parse_location,
        help="a shard set, as data/shards/phantom-b000 or s3://bucket/phantom-b000, or a folder with images (PNG, "
        "JPEG, TIFF, BMP, GIF, DICOM) at any depth. The key of an image of a folder is its relative path, which may "
        "contain a patient's name: see --hash-keys",
    )
    _add_model_options(command)
    written = command.add_mutually_exclusive_group(required=True)
    written.add_argument("--out", type=Path, metavar="FILE", help="the Parquet file")
    written.add_argument(
        "--companions",
        type=Path,
        metavar="DIR",
        help="of a shard set, instead of --out: a folder for tars with the embeddings, of the same names, keys and "
        "order as the set's, to be read in step with them",
    )
    command.add_argument("--tokens", action="store_true", help="write the token maps too (float16)")
    command.add_argument(
        "--split", choices=[*SPLITS, "all"], default="all", help="the split of a shard set to embed; default: all"
    )
    command.add_argument(
        "--hash-keys",
        action="store_true",
        help="with a folder: write keyed hashes of the paths instead of the paths, under the identity key that "
        f"{KEY_FILE_VARIABLE} names",
    )
    command.add_argument(
        "--max-megapixels",
        type=_positive(float),
        default=100.0,
        metavar="M",
        help="with a folder: larger images are not read; default: 100",
    )
    command.add_argument(
        "--batch-size", type=_positive(int), default=32, metavar="N", help="images of one forward pass; default: 32"
    )
    command.add_argument(
        "--num-threads", type=_positive(int), metavar="N", help="threads that read images; default: one per core"
    )
    command.add_argument("--device", default="auto", help="auto, cpu, or one device, as cuda:0; default: auto")
    command.set_defaults(run=embed)

    command = commands.add_parser("export", help="export the encoder to ONNX or timm", description=export.__doc__)
    _add_model_options(command)
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder")
    command.add_argument(
        "--format",
        choices=["onnx", "timm"],
        required=True,
        help="onnx for ONNX Runtime; timm for timm and Hugging Face Transformers",
    )
    command.add_argument(
        "--tolerance",
        type=float,
        default=1e-4,
        metavar="X",
        help="largest difference between ONNX Runtime and torch at which the export is written; default: 1e-4",
    )
    command.set_defaults(run=export)

    command = commands.add_parser(
        "models", help="list the models that come with the package", description=models.__doc__
    )
    command.set_defaults(run=models)

    command = commands.add_parser(
        "publish", help="make a shipped model from a finished training", description=publish.__doc__
    )
    command.add_argument("folder", type=Path, metavar="MODEL_DIR", help="the folder that the training wrote")
    command.add_argument("--name", required=True, help="name that the model is loaded by, as cxr-small")
    command.add_argument(
        "--metrics",
        type=Path,
        default=PROPERTIES,
        metavar="FILE",
        help=f"the figures that `evaluate` wrote for the model; default: {PROPERTIES}",
    )
    command.add_argument(
        "--images",
        type=Path,
        required=True,
        metavar="FILE",
        help="file with the names of the training images, one per line; or the manifest of the batch, "
        "data/manifests/NAME.jsonl. The file names are published, so give those of public datasets only",
    )
    command.add_argument(
        "--terms",
        required=True,
        metavar="FILE|TEXT",
        help="the terms under which the images may be used, and whom to cite: a text file, or the text itself",
    )
    command.add_argument(
        "--summary",
        metavar="TEXT",
        help="one sentence that describes the model; default: a sentence on its size, channels and tokens",
    )
    command.add_argument(
        "--half", action="store_true", help="store the weights in 16 bits; computations stay in 32 bits"
    )
    command.add_argument(
        "--out", type=Path, metavar="DIR", help="folder of the model; default: ace/zoo/NAME in the package"
    )
    command.set_defaults(run=publish)

    encoder = commands.add_parser(
        "encoder", help="add an encoder to those that are compared, or list them"
    ).add_subparsers(required=True, metavar="COMMAND")
    command = encoder.add_parser(
        "add",
        help="add an encoder to those that are compared",
        description=cleandoc(encoder_add.__doc__ or ""),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("name", metavar="NAME", help="name of the encoder in params, metrics and report")
    command.add_argument(
        "--model",
        type=Path,
        metavar="MODEL",
        help="folder of a model, or the name of a shipped one (python -m ace models)",
    )
    command.add_argument(
        "--network",
        choices=["teacher", "student", "best", "untrained"],
        default="teacher",
        help="the network of the model to measure; default: teacher",
    )
    command.add_argument("--weights", type=Path, metavar="FILE", help="a file of weights that others trained")
    command.add_argument("--architecture", metavar="NAME", help="architecture of the weights in FILE: timm's name")
    _add_architecture_options(command)
    command.add_argument(
        "--train",
        type=_assignment,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="train the encoder: a param that differs from the section `pretrain`, as loss_weights.removal=0; may be "
        "repeated",
    )
    command.add_argument(
        "--params",
        type=Path,
        default=Path("params.yaml"),
        metavar="FILE",
        help="the params file, or one of a study, to add the encoder to; default: params.yaml",
    )
    command.set_defaults(run=encoder_add)
    command = encoder.add_parser("list", help="list the encoders that are compared", description=encoder_list.__doc__)
    add_params_options(command)
    command.set_defaults(run=encoder_list)

    study = commands.add_parser("study", help="open or record a study, the steps of `make study`").add_subparsers(
        required=True, metavar="COMMAND"
    )
    for word, function in (("open", study_open), ("record", study_record)):
        command = study.add_parser(word, help=f"{word} a study", description=function.__doc__)
        command.add_argument("name", metavar="NAME", help="name of the study, a folder in studies/")
        command.add_argument(
            "--run",
            dest="run_of",
            default="params",
            metavar="RUN",
            help="run of the study, whose params file is studies/NAME/RUN.yaml; default: params",
        )
        command.set_defaults(run=function)

    config = commands.add_parser(
        "config", help="check the params file, choose a named configuration, or migrate an earlier project"
    ).add_subparsers(required=True, metavar="COMMAND")
    command = config.add_parser(
        "check", help="check params.yaml, batches and dvc.yaml", description=config_check.__doc__
    )
    add_params_options(command)
    command.set_defaults(run=config_check)
    command = config.add_parser("use", help="write configs/NAME.yaml to params.yaml", description=config_use.__doc__)
    command.add_argument("name", metavar="NAME", help="name of a configuration, as smoke for configs/smoke.yaml")
    command.add_argument(
        "--params", type=Path, default=Path("params.yaml"), metavar="FILE", help="default: params.yaml"
    )
    command.set_defaults(run=config_use)
    command = config.add_parser(
        "migrate", help="rewrite a project of an earlier version for this one", description=config_migrate.__doc__
    )
    command.add_argument(
        "--params", type=Path, default=Path("params.yaml"), metavar="FILE", help="default: params.yaml"
    )
    command.set_defaults(run=config_migrate)
    return parser


if __name__ == "__main__":
    sys.exit(run_command(build_parser()))
