"""`python -m ace`: pretrain or import an encoder, measure, embed, export and publish it, report, configure."""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from inspect import cleandoc
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeVar

from ruamel.yaml import YAML

from shards.cli import add_params_options, run_command, values_of
from shards.identity import KEY_FILE_VARIABLE, SPLITS
from shards.store.location import parse_location

if TYPE_CHECKING:
    from ace.evaluation.params import EncoderParams, EvaluateParams
    from ace.evaluation.setting import Places
    from shards.params import MeasuredParams

Number = TypeVar("Number", int, float)

SHARDS, MODELS, EVIDENCE = Path("data/shards"), Path("models"), Path("data/evidence")
MODEL = MODELS / "ace"
COHORT, INDEPENDENCE, ANSWERS = Path("data/cohort.json"), Path("data/independence.json"), Path("data/answers")
PROPERTIES, REPORT = Path("metrics/properties.json"), Path("reports/report.html")
COMPARISON = Path("reports/comparison.html")
TRAINING, VARIANTS = Path("metrics/pretrain"), Path("metrics/variants")


def pretrain(arguments: argparse.Namespace) -> None:
    """Train student and EMA teacher on the shards of every batch; a killed run goes on at its last checkpoint.

    Several processes train together when torchrun starts them: torchrun --nproc-per-node 8 -m -- ace pretrain. SIGTERM,
    SIGUSR1, Ctrl-C and the time limit let the running step finish, save, and end with exit code 75: the same command
    goes on from there.
    """
    values = values_of(arguments)
    sections = {"pretrain": values.get("pretrain"), "grid": values.get("grid"), "mix": values.get("mix")}
    _train(arguments, sections, arguments.out, arguments.metrics)


def variant(arguments: argparse.Namespace) -> None:
    """Train as `pretrain` does, with what an item of the section `variants` changes in the section `pretrain`."""
    from ace.config import merged
    from shards.errors import ConfigError

    values = values_of(arguments)
    variants, name = values.get("variants") or {}, arguments.name
    if name not in variants:
        raise ConfigError(f"{arguments.params}: variants has no '{name}'; it has {', '.join(variants) or 'none'}")
    own = merged(values.get("pretrain") or {}, variants[name] or {})
    sections = {"pretrain": own, "grid": values.get("grid"), "mix": values.get("mix")}
    _train(arguments, sections, arguments.out or MODELS / name, arguments.metrics or VARIANTS / name)


def _train(arguments: argparse.Namespace, sections: Mapping[str, Any], out: Path, metrics: Path) -> None:
    """Train by these sections of the params file."""
    from ace.engine.stop import EXIT_CODE, StoppedError, stop_requests

    try:
        # From here on, not from the first step: to import and to build takes long enough to be preempted in.
        with stop_requests(None if arguments.time_limit is None else 60 * arguments.time_limit) as request:
            from ace.engine.run import RunOptions
            from ace.pretrain.params import PretrainParams
            from ace.pretrain.pretrain import pretrain
            from shards.params import GridParams, parse_mix
            from shards.runtime.atomic import clear_when_full
            from shards.runtime.scratch import scratch_root

            options = RunOptions(
                run_dir=arguments.run_dir,
                accepts_changed_code=arguments.accept_changed_code,
                loggers=arguments.logger,
                device=arguments.device,
            )
            with clear_when_full(arguments.run_dir or scratch_root(), out.parent, metrics):
                pretrain(
                    PretrainParams.from_params(sections["pretrain"], f"{arguments.params}: pretrain"),
                    GridParams.from_params(sections["grid"], f"{arguments.params}: grid"),
                    parse_mix(sections["mix"], f"{arguments.params}: mix"),
                    shards_root=arguments.shards,
                    out=out,
                    metrics_dir=metrics,
                    request=request,
                    options=options,
                    project=arguments.params.parent,
                )
    except StoppedError as stop:
        print(stop, file=sys.stderr)
        sys.exit(EXIT_CODE)


def cohort(arguments: argparse.Namespace) -> None:
    """Choose the patients who are measured: none that a model was trained on. evaluate.split says of which split."""
    from ace.evaluation.cohort import choose_cohort
    from ace.evaluation.params import EvaluateParams, parse_encoders

    values = values_of(arguments)
    params = EvaluateParams.from_params(values.get("evaluate"), f"{arguments.params}: evaluate")
    encoders = parse_encoders(values.get("encoders"), str(arguments.params))
    choose_cohort(params, _with_folders(encoders), _places(arguments))


def measure(arguments: argparse.Namespace) -> None:
    """Ask one encoder what every property asks, and write its answers and dense tokens to data/answers/NAME."""
    from ace.evaluation.measure import measure
    from ace.evaluation.params import EvaluateParams, parse_encoders
    from shards.errors import ConfigError

    values = values_of(arguments)
    params = EvaluateParams.from_params(values.get("evaluate"), f"{arguments.params}: evaluate")
    encoders = _with_folders(parse_encoders(values.get("encoders"), str(arguments.params)))
    if arguments.name not in encoders:
        raise ConfigError(f"{arguments.params}: encoders has no '{arguments.name}'; it has {', '.join(encoders)}")
    measured = _measured_of(arguments, values, params.batch)
    measure(arguments.name, encoders[arguments.name], params, _places(arguments), measured)


def evaluate(arguments: argparse.Namespace) -> None:
    """Compare the encoders of params.yaml by their answers: write every figure, and what the report draws.

    With --model, --batch or --split everything is measured here and now, in a folder that is removed afterwards: the
    model takes the place of the first encoder's, and the others stay beside it.
    """
    from ace.evaluation.evaluate import evaluate
    from ace.evaluation.params import EvaluateParams, parse_encoders

    values = values_of(arguments)
    flags = {"batch": arguments.batch, "split": arguments.split}
    section = {**(values.get("evaluate") or {}), **{key: value for key, value in flags.items() if value is not None}}
    params = EvaluateParams.from_params(section, f"{arguments.params}: evaluate")
    encoders = parse_encoders(values.get("encoders"), str(arguments.params))
    if arguments.model is None and not any(flags.values()):
        evaluate(params, _with_folders(encoders), _places(arguments))
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
        places = replace(
            _places(arguments),
            cohort=work / COHORT.name,
            independence=work / INDEPENDENCE.name,
            answers=work / "answers",
        )
        evaluate_at_once(params, _with_folders(encoders), places, _measured_of(arguments, values, params.batch))


def _places(arguments: argparse.Namespace) -> "Places":
    from ace.evaluation.setting import Places

    return Places(
        shards=arguments.shards,
        project=arguments.params.parent,
        cohort=COHORT,
        independence=INDEPENDENCE,
        answers=ANSWERS,
        metrics=getattr(arguments, "metrics", PROPERTIES),
        evidence=getattr(arguments, "out", EVIDENCE),
    )


def _with_folders(encoders: Mapping[str, "EncoderParams"]) -> dict[str, "EncoderParams"]:
    """The encoders with a folder for the name of each shipped model."""
    from ace.zoo.shipped import find_model

    return {
        name: encoder.model_copy(update={"model": str(find_model(Path(encoder.model)))})
        for name, encoder in encoders.items()
    }


def _measured_of(arguments: argparse.Namespace, values: Mapping[str, Any], batch: str) -> "MeasuredParams | None":
    """A registered batch's own mean and std."""
    from shards.delivery.batches import read_batches

    is_registered = batch in (values.get("batches") or {})
    return read_batches(arguments.params, values, [batch])[batch].measured if is_registered else None


def report(arguments: argparse.Namespace) -> None:
    """Write the self-contained page, or one of two encoders alone.

    --compare takes two encoders of params.yaml, which `dvc repro` has measured, and compares them patient by patient;
    or two files of metrics, or folders of studies (studies/phantom, or studies/phantom:paper for another encoder than
    its first), of which nothing is known but figures and intervals.
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
    """Metrics of two encoders, and of each the section that says whom they are of."""
    from ace.evaluation.evaluate import evaluate
    from ace.evaluation.measured import MEASURED
    from ace.evaluation.params import EvaluateParams, parse_encoders
    from ace.report.two_encoders import read_apart
    from shards.runtime.scratch import scratch_root

    values = values_of(arguments) if arguments.params.is_file() else {}
    encoders = values.get("encoders") or {}
    if first == second or not {first, second} <= encoders.keys():
        return read_apart(first, second)
    both = parse_encoders({name: encoders[name] for name in (first, second)}, f"--compare {first} {second}")
    params = EvaluateParams.from_params(values.get("evaluate"), f"{arguments.params}: evaluate")
    scratch_root().mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=scratch_root(), prefix="compared-") as folder:
        work = Path(folder)
        places = replace(_places(arguments), metrics=work / PROPERTIES.name, evidence=work / EVIDENCE.name)
        evaluate(params, both, places)
        figures = json.loads(places.metrics.read_text(encoding="utf-8"))
    return figures, dict.fromkeys((first, second), figures[MEASURED])


def summary(arguments: argparse.Namespace) -> None:
    """Print the key figures, each beside its chance level and the untrained encoder's."""
    from ace.report.summary import summary_table

    print(summary_table(PROPERTIES))
    print(f"report: {REPORT.resolve()}" if REPORT.is_file() else "report: not written yet; `dvc repro` writes it")


def import_(arguments: argparse.Namespace) -> None:
    """Make a model folder of weights that others trained: of any architecture of timm's, or of the method's authors.

    The folder is read like that of any other model: evaluation, embed and export take it, each image normalised and
    sized as this encoder needs it. config.json records all of that, and the file with its sha256. Files are read
    without running code.

    A file of weights is taken over by naming its architecture as timm does (timm.list_models() names them all):

      python -m ace import swin_t.pth --architecture swin_tiny_patch4_window7_224 --out models/swin
      python -m ace import vit.safetensors --architecture vit_base_patch16_224 --tokens 28 --out models/vit

    The input is --tokens a side, times the stride of the architecture. Position embeddings and tables of another size
    are resampled by timm's function for the architecture, and the printed account says so; a tensor that is missing,
    or one too many, is an error.

    The architectures swin_b, vit_b (both at 448 px) and vit_b16 (224 px) are those of the method's authors, in their
    files' naming; there nothing is resampled, and every key has to be accounted for.

    Encoders that the project compares with stand in the section `imports` of params.yaml, each a stage of its own:

      python -m ace import --name imagenet
    """
    from ace.models.params import ImportParams
    from ace.published.importing import ARCHITECTURES, import_checkpoint, import_timm, one_import
    from shards.errors import ConfigError
    from shards.params import GridParams

    if (arguments.name is None) == (arguments.file is None):
        raise ConfigError("give a FILE of weights with --architecture and --out, or the --name of one in params.yaml")
    if arguments.name is not None:
        values = values_of(arguments)
        imports, where = values.get("imports") or {}, f"{arguments.params}: imports.{arguments.name}"
        if arguments.name not in imports:
            raise ConfigError(f"{where}: not there; the section has {', '.join(imports) or 'none'}")
        params = ImportParams.from_params(imports[arguments.name], where)
        t = GridParams.from_params(values.get("grid"), f"{arguments.params}: grid").t
        out = arguments.out or MODELS / arguments.name
        print(import_timm(params, t, out, where=where))
        return
    if arguments.architecture is None or arguments.out is None:
        raise ConfigError(f"{arguments.file}: give --architecture, what the file holds, and --out, the new folder")
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
        print(import_timm(params, arguments.tokens, arguments.out, where=str(arguments.file)))
        return
    keys = import_checkpoint(
        arguments.file,
        arguments.out,
        ARCHITECTURES[arguments.architecture],
        network=arguments.network,
        mean=arguments.mean or 0.5056,
        std=arguments.std or 0.252,
    )
    print(f"{arguments.out}: {len(keys.weights)} tensors of the backbone, each in its place")
    print(f"left out, as they follow from the architecture: {len(keys.derived)} tables")
    print("\n  ".join([f"left out, of heads and others: {len(keys.heads)}", *keys.heads]))


def encoder_add(arguments: argparse.Namespace) -> None:
    """Add an encoder to those that are compared; `dvc repro` then makes and measures it, and trains nothing else again.

    One of three things is told of it: --model, a model folder that is there, whose other network --network may name;
    --weights FILE --architecture NAME, weights that others trained; or --train, what differs in its training from the
    section `pretrain`:

      python -m ace encoder add student --model models/ace --network student
      python -m ace encoder add swin --weights swin_t.pth --architecture swin_tiny_patch4_window7_224
      python -m ace encoder add no_removal --train loss_weights.removal=0 --train augment.erase.probability=0
      python -m ace encoder add no_removal --train loss_weights.removal=0 --params studies/phantom/params.yaml
    """
    from ace.encoders import add_encoder
    from ace.evaluation.params import EncoderParams
    from ace.published.importing import one_import
    from shards.delivery.project import Project
    from shards.errors import ConfigError

    name, folder = arguments.name, MODELS / arguments.name
    told = [arguments.model is not None, arguments.weights is not None, bool(arguments.train)]
    if sum(told) != 1:
        raise ConfigError("give one of --model FOLDER, --weights FILE with --architecture, and --train KEY=VALUE")
    made_by: dict[str, Any] = {}
    if arguments.train:
        made_by["variants"] = _nested(arguments.train)
    elif arguments.weights is not None:
        if arguments.architecture is None:
            raise ConfigError(f"{arguments.weights}: give --architecture, timm's name of what the file holds")
        own = one_import(
            arguments.weights,
            arguments.architecture,
            dict(arguments.model_arg),
            in_channels=arguments.channels,
            mean=arguments.mean,
            std=arguments.std,
        )
        made_by["imports"] = own.model_dump(mode="json")
    encoder = {"model": str(arguments.model or folder), "network": arguments.network}
    project = Project(arguments.params, arguments.params.with_name("dvc.yaml"))
    for line in add_encoder(name, EncoderParams.from_params(encoder, name), project, made_by=made_by):
        print(line)


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
    """Values by dotted key as nested mappings."""
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
    """Embed the images of a folder or a shard set into one Parquet file."""
    from ace.inference.embedder import load_model
    from ace.inference.parquet import write_embeddings
    from ace.inference.sources import ImageSource, is_shard_set, measured_of, open_folder, open_shards
    from shards.errors import ConfigError
    from shards.reading.reader import ShardIndex
    from shards.runtime.parallel import default_num_workers

    images: ImageSource
    batch = trimmed = measured = None
    if is_shard_set(arguments.source):
        if arguments.hash_keys:
            raise ConfigError("--hash-keys is for folders; the keys of a shard set name nobody")
        index = ShardIndex.open(arguments.source).without_excluded(Path())
        images, batch, trimmed = open_shards(index, arguments.split), index.name, index.spec.trim_level
        measured = measured_of(index, Path())
    else:
        if arguments.split != "all":
            raise ConfigError(f"--split {arguments.split}: {arguments.source} is no shard set, so it has no splits")
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
    # Of an imported model nothing says how its images were framed.
    if trimmed not in (None, model.preprocessing.trim_level) and not model.encoder.is_imported:
        print(
            f"warning: {batch} was built with grid.trim_level {trimmed}, and the model was trained on images with "
            f"{model.preprocessing.trim_level}: it sees them framed otherwise than in its training",
            file=sys.stderr,
        )
    outcome = write_embeddings(
        model,
        images,
        arguments.out,
        batch_size=arguments.batch_size,
        num_threads=arguments.num_threads or default_num_workers(),
        has_tokens=arguments.tokens,
    )
    print(f"wrote {arguments.out}: {outcome.num_embedded} embeddings")
    if outcome.num_unreadable:
        print(f"{outcome.num_unreadable} images could not be read; {outcome.errors} says why")


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
    """List the models that come with the package: what each is, what it saw, its figures and its size."""
    from ace.zoo.shipped import models_text

    print(models_text())


def publish(arguments: argparse.Namespace) -> None:
    """Make the folder of a shipped model from a finished training: the teacher's backbone, its figures, the names of
    its images and the terms of its data; no student, no heads, no path of this machine."""
    from ace.zoo.publishing import publish as publish_model
    from ace.zoo.shipped import ZOO
    from shards.errors import ConfigError

    terms = Path(arguments.terms)
    if not _is_file(terms) and not any(character.isspace() for character in arguments.terms.strip()):
        raise ConfigError(f"--terms {arguments.terms}: no such file; expected a text file, or the terms in words")
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
        f"wrote {done.folder}: {done.num_bytes / 1e6:.2f} MB of weights, whose embeddings keep a cosine of "
        f"{done.min_cosine:.6f} or more with the training's, on random inputs"
    )


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a text too long to be a file's name
        return False


def config_check(arguments: argparse.Namespace) -> None:
    """Validate the whole params file before any work: keys, grid, backbone, patients."""
    from ace.config import Config, check_config, check_graph
    from shards.delivery.batches import read_batches
    from shards.delivery.exclusion import read_exclusion

    config = Config.from_params(values_of(arguments), str(arguments.params))
    check_config(config, read_batches(arguments.params, config.model_dump(), config.used_batches))
    check_graph(config, arguments.params.parent / "dvc.yaml")
    for name in config.used_batches:
        read_exclusion(name, arguments.params.parent)


def config_use(arguments: argparse.Namespace) -> None:
    """Write a named configuration to params.yaml, comments kept; `batches` and `mix` stay as they are, and batches that
    had the settings of params.yaml get the new ones."""
    from ace.config import use

    for change in use(arguments.name, arguments.params) or [f"{arguments.params} is '{arguments.name}' already"]:
        print(change)


def config_migrate(arguments: argparse.Namespace) -> None:
    """Bring a project of an earlier version to this one: the batches that params.yaml held become files in batches/,
    and encoders and properties get sections of their own. Shards stay as they are: `dvc commit --force shard` records
    them under the new files."""
    from ace.config import migrate

    for line in migrate(arguments.params) or [f"{arguments.params} is of this version already"]:
        print(line)


def _add_shards_option(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--shards",
        type=parse_location,
        default=SHARDS,
        metavar="DIR",
        help=f"folder of the shard sets, or their URL, as s3://bucket/prefix; default: {SHARDS}",
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
        help="`best`: the teacher when the probe scored it highest; default: teacher",
    )
    command.add_argument(
        "--normalisation",
        type=_normalisation,
        metavar="NAME",
        help="the training batch whose mean and std are used, or MEAN,STD of your pixels in [0, 1], or six numbers, "
        "three means and three stds; needed where the batches of the training mix differ (a shard set that the model "
        "was trained with is normalised as then)",
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
        "--channels", type=int, choices=[1, 3], default=3, help="of the input; default: 3 (the authors' files say it)"
    )
    command.add_argument(
        "--mean",
        type=_levels,
        help="of pixels in [0, 1], or R,G,B; default: timm's for the architecture, or the authors' for chest X-rays, "
        "0.5056",
    )
    command.add_argument("--std", type=_levels, help="likewise; default: timm's, or the authors', 0.252")


def _add_training_options(command: argparse.ArgumentParser) -> None:
    add_params_options(command)
    _add_shards_option(command)
    command.add_argument(
        "--run",
        type=Path,
        dest="run_dir",
        metavar="DIR",
        help="keep checkpoints and log here, and go on with what is there; refused if it was begun with other inputs "
        "(default: a folder in scratch, named by all inputs, removed once the model is finished)",
    )
    command.add_argument(
        "--accept-changed-code", action="store_true", help="go on in --run although code or library versions changed"
    )
    command.add_argument(
        "--logger",
        action="append",
        default=[],
        metavar="NAME",
        help="besides metrics.jsonl and DVCLive: `tensorboard`, or your own `package.module:factory`; may be repeated",
    )
    command.add_argument(
        "--device",
        metavar="DEVICE",
        help="auto, cpu, cuda, or as cuda:1 for one process; default: pretrain.device, which is auto unless it is set",
    )
    command.add_argument(
        "--time-limit", type=_positive(float), metavar="MINUTES", help="save and end with exit code 75 after it"
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
            f"{text}: expected MEAN,STD in numbers, as 0.48,0.27, or three means and three stds"
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
            raise argparse.ArgumentTypeError(f"{text}: expected more than 0")
        return value

    return parse


def build_parser() -> argparse.ArgumentParser:
    """The command line of `python -m ace`."""
    parser = argparse.ArgumentParser(prog="python -m ace", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("pretrain", help="train the encoder", description=pretrain.__doc__)
    _add_training_options(command)
    command.add_argument("--out", type=Path, default=MODEL, metavar="DIR", help=f"default: {MODEL}")
    command.add_argument("--metrics", type=Path, default=TRAINING, metavar="DIR", help=f"default: {TRAINING}")
    command.set_defaults(run=pretrain)

    command = commands.add_parser("variant", help="train an encoder to compare with", description=variant.__doc__)
    command.add_argument("name", metavar="NAME", help="of the training, in the section `variants`")
    _add_training_options(command)
    command.add_argument("--out", type=Path, metavar="DIR", help=f"default: {MODELS}/NAME")
    command.add_argument("--metrics", type=Path, metavar="DIR", help=f"default: {VARIANTS}/NAME")
    command.set_defaults(run=variant)

    command = commands.add_parser("cohort", help="choose the patients who are measured", description=cohort.__doc__)
    add_params_options(command)
    _add_shards_option(command)
    command.set_defaults(run=cohort)

    command = commands.add_parser("measure", help="ask one encoder", description=measure.__doc__)
    add_params_options(command)
    command.add_argument("name", metavar="NAME", help="of the encoder, in the section `encoders`")
    _add_shards_option(command)
    command.set_defaults(run=measure)

    command = commands.add_parser("evaluate", help="compare what encoders learned", description=evaluate.__doc__)
    add_params_options(command)
    _add_shards_option(command)
    command.add_argument(
        "--batch", metavar="NAME", help="the shard set to measure on, also one that the model was not trained with"
    )
    command.add_argument("--split", choices=["val", "test"], help="its split; these two: default as in the params file")
    command.add_argument(
        "--model",
        type=Path,
        metavar="MODEL",
        help="folder of a model, or the name of a shipped one (python -m ace models), in the first encoder's place",
    )
    command.add_argument("--metrics", type=Path, default=PROPERTIES, metavar="FILE", help=f"default: {PROPERTIES}")
    command.add_argument("--out", type=Path, default=EVIDENCE, metavar="DIR", help=f"default: {EVIDENCE}")
    command.set_defaults(run=evaluate)

    command = commands.add_parser("report", help="write the report", description=report.__doc__)
    add_params_options(command)
    _add_shards_option(command)
    command.add_argument(
        "--compare", nargs=2, metavar=("A", "B"), help="two encoders, or two files of metrics or studies, alone"
    )
    command.add_argument("--out", type=Path, metavar="FILE", help=f"default: {REPORT}, or {COMPARISON}")
    command.set_defaults(run=report)

    command = commands.add_parser("summary", help="print the key figures", description=summary.__doc__)
    command.set_defaults(run=summary)

    command = commands.add_parser(
        "import",
        help="make a model of weights that others trained",
        description=cleandoc(import_.__doc__ or ""),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_params_options(command)
    command.add_argument("file", type=Path, nargs="?", metavar="FILE", help="a file of weights: .pth or .safetensors")
    command.add_argument("--name", metavar="NAME", help="instead of FILE: an encoder of the section `imports`")
    command.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help=f"folder of the model; with FILE required and new, with --name by default {MODELS}/NAME",
    )
    command.add_argument(
        "--architecture", metavar="NAME", help="what FILE holds: timm's name, or swin_b, vit_b, vit_b16 (the authors')"
    )
    _add_architecture_options(command)
    command.add_argument(
        "--tokens", type=_positive(int), default=14, metavar="T", help="tokens a side, even; default: 14, the paper's"
    )
    command.add_argument(
        "--network", choices=["teacher", "student"], default="teacher", help="of the authors' files; default: teacher"
    )
    command.set_defaults(run=import_)

    command = commands.add_parser("embed", help="embed a folder of images or a shard set", description=embed.__doc__)
    command.add_argument(
        "source",
        type=parse_location,
        help="a shard set, as data/shards/phantom-b000 or s3://bucket/phantom-b000, or a folder with images (PNG, "
        "JPEG, TIFF, BMP, GIF, DICOM) at any depth; the keys of files are their relative paths, which may carry "
        "patients' names: see --hash-keys",
    )
    _add_model_options(command)
    command.add_argument("--out", type=Path, required=True, metavar="FILE", help="the Parquet file")
    command.add_argument("--tokens", action="store_true", help="write the token maps too (float16)")
    command.add_argument("--split", choices=[*SPLITS, "all"], default="all", help="of a shard set; default: all")
    command.add_argument(
        "--hash-keys",
        action="store_true",
        help=f"of a folder: keys are keyed hashes of the paths, under the identity key that {KEY_FILE_VARIABLE} names",
    )
    command.add_argument("--max-megapixels", type=_positive(float), default=100.0, metavar="M", help="default: 100")
    command.add_argument("--batch-size", type=_positive(int), default=32, metavar="N", help="default: 32")
    command.add_argument(
        "--num-threads", type=_positive(int), metavar="N", help="that read images; default: one a core"
    )
    command.add_argument("--device", default="auto", help="default: auto; or cpu, cuda:0, ...")
    command.set_defaults(run=embed)

    command = commands.add_parser("export", help="export the encoder to ONNX or timm", description=export.__doc__)
    _add_model_options(command)
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder")
    command.add_argument("--format", choices=["onnx", "timm"], required=True)
    command.add_argument(
        "--tolerance",
        type=float,
        default=1e-4,
        metavar="X",
        help="largest allowed difference of ONNX Runtime to torch; above it nothing is written; default: 1e-4",
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
    command.add_argument("--name", required=True, help="to load it by, as cxr-small")
    command.add_argument("--metrics", type=Path, default=PROPERTIES, metavar="FILE", help=f"default: {PROPERTIES}")
    command.add_argument(
        "--images",
        type=Path,
        required=True,
        metavar="FILE",
        help="names of the images it was trained on, one a line; or the manifest of the batch, "
        "data/manifests/NAME.jsonl, whose file names are then published: take a public dataset's only",
    )
    command.add_argument(
        "--terms", required=True, metavar="FILE|TEXT", help="under which terms the images may be used, whom to cite"
    )
    command.add_argument(
        "--summary", metavar="TEXT", help="one sentence on the model; default: its size, channels and tokens"
    )
    command.add_argument("--half", action="store_true", help="store the weights in 16 bits; they compute in 32")
    command.add_argument("--out", type=Path, metavar="DIR", help="default: the package's folder, ace/zoo/NAME")
    command.set_defaults(run=publish)

    encoder = commands.add_parser("encoder", help="add an encoder, or list those that are compared").add_subparsers(
        required=True
    )
    command = encoder.add_parser(
        "add",
        help="one more encoder to compare",
        description=cleandoc(encoder_add.__doc__ or ""),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("name", metavar="NAME", help="of its row in the metrics and the report")
    command.add_argument("--model", type=Path, metavar="FOLDER", help="a model folder, or the name of a shipped model")
    command.add_argument(
        "--network",
        choices=["teacher", "student", "best", "untrained"],
        default="teacher",
        help="which network of the model; default: teacher",
    )
    command.add_argument("--weights", type=Path, metavar="FILE", help="weights that others trained")
    command.add_argument("--architecture", metavar="NAME", help="what FILE holds, by timm's name")
    _add_architecture_options(command)
    command.add_argument(
        "--train",
        type=_assignment,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="train it: what differs from the section `pretrain`, as loss_weights.removal=0; may be repeated",
    )
    command.add_argument("--params", type=Path, default=Path("params.yaml"), metavar="FILE", help="or a study's")
    command.set_defaults(run=encoder_add)
    command = encoder.add_parser("list", help="list them, in dvc.yaml too", description=encoder_list.__doc__)
    add_params_options(command)
    command.set_defaults(run=encoder_list)

    study = commands.add_parser("study", help="the steps of `make study`").add_subparsers(required=True)
    for word, function in (("open", study_open), ("record", study_record)):
        command = study.add_parser(word, help=str(function.__doc__), description=function.__doc__)
        command.add_argument("name", metavar="NAME", help="a folder in studies/")
        command.add_argument(
            "--run", dest="run_of", default="params", metavar="RUN", help="of studies/NAME/RUN.yaml; default: params"
        )
        command.set_defaults(run=function)

    config = commands.add_parser("config", help="check the params file, or choose a named one").add_subparsers(
        required=True
    )
    command = config.add_parser("check", help="validate params.yaml", description=config_check.__doc__)
    add_params_options(command)
    command.set_defaults(run=config_check)
    command = config.add_parser("use", help="write configs/NAME.yaml to params.yaml", description=config_use.__doc__)
    command.add_argument("name")
    command.add_argument("--params", type=Path, default=Path("params.yaml"), metavar="FILE")
    command.set_defaults(run=config_use)
    command = config.add_parser(
        "migrate", help="bring a project of an earlier version to this one", description=config_migrate.__doc__
    )
    command.add_argument(
        "--params", type=Path, default=Path("params.yaml"), metavar="FILE", help="default: params.yaml"
    )
    command.set_defaults(run=config_migrate)
    return parser


if __name__ == "__main__":
    sys.exit(run_command(build_parser()))
