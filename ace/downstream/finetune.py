"""The stage `finetune`: what every encoder comes to on a task, for every method, amount of labels and seed.

Each use of an encoder is a run of its own, resumable at its last checkpoint. Its finished result lies in a folder of
its own and is kept while all that decides it stays, so that another encoder or seed repeats nothing. The measured
images are looked at once a result, after everything is chosen.
"""

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from ace.data.crops import whole_images
from ace.downstream.base import FULL, Arrays, Task
from ace.downstream.examples import Example, choose_examples
from ace.downstream.images import TrainingImages
from ace.downstream.page import write_page
from ace.downstream.params import TaskParams
from ace.downstream.parts import Amount, Part, Parts, amounts_of, divide, draw
from ace.downstream.shown import IMAGES_PER_FORWARD, ShownPart
from ace.downstream.table import tabulate, tell
from ace.downstream.training import NOT_DECISIVE, ask, train, with_drop_path
from ace.embed.embedder import Embedder, unit
from ace.embed.encoder import Encoder
from ace.embed.opening import EncoderParams, open_encoder, weights_sha256
from ace.engine.loop import ROWS
from ace.engine.run import AS_USUAL, RunFolder, RunIdentity, RunOptions, code_sha256, open_run, recorded_versions
from ace.engine.stop import StoppedError, StopRequest
from ace.models.folder import CONFIG
from ace.models.precision import accelerator_settings
from ace.protocol.independence import check_model
from shards.core.errors import ConfigError, ContaminationError
from shards.core.params import MeasuredParams
from shards.format.layout import sha256_of
from shards.reading.copies import find_trained_copies
from shards.reading.lineage import warn_of_unknown_patients
from shards.reading.reader import ShardIndex, ShardReader
from shards.runtime.atomic import atomic_directory, write_text
from shards.store.location import Location, location_of

CODE = (
    "ace/data/augment.py",
    "ace/data/augmentation.py",
    "ace/data/crops.py",
    "ace/data/erase.py",
    "ace/data/params.py",
    "ace/downstream/base.py",
    "ace/downstream/finetune.py",
    "ace/downstream/images.py",
    "ace/downstream/params.py",
    "ace/downstream/parts.py",
    "ace/downstream/shown.py",
    "ace/downstream/training.py",
    "ace/downstream/views.py",
    "ace/embed",
    "ace/engine",
    "ace/models",
    "ace/protocol/independence.py",
    "ace/protocol/intervals.py",
    "shards/core",
    "shards/delivery/manifest.py",
    "shards/format",
    "shards/quality/measure.py",
    "shards/quality/near_duplicates.py",
    "shards/quality/report.py",
    "shards/quality/store.py",
    "shards/reading",
    "shards/runtime",
    "shards/sources/base.py",
    "shards/store",
)
"""Modules and folders of modules that decide a result, beside those of its kind of task: those on which the stage
`finetune` depends, but for what tells of results and for other kinds."""
RESULT, ANSWERS, PAGE = "metrics.json", "answers.npz", "page.html"
NOT_OF_A_RUN = {"seeds", "fractions", "shots", "methods", "bootstrap", "num_examples", "split", "accept_shared_images"}
"""Fields of a task that decide no single result: they say which runs there are, how answers are told, or whose images
a part has, which a run's identity names."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """Names one use of an encoder.

    Attributes:
        encoder: Name of the encoder.
        method: How it is used.
        amount: How much is trained on.
        seed: Of all that is drawn.
    """

    encoder: str
    method: str
    amount: Amount
    seed: int

    @property
    def name(self) -> str:
        """Return the name of its folder below the task's."""
        return f"{self.encoder}/{self.method}/{self.amount.name}-seed{self.seed}"


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Holds everything that the runs of one encoder share.

    Attributes:
        task: What is learned.
        parts: Its images, by use.
        truths: Name of a part → what is known of its images.
        encoder: Section of the encoder.
        measured: The batch's own mean and std, for a model that was not trained with it.
        options: How its trainings are carried out.
        frozen: E(x) of each part by the seed of the encoder's weights, once they were asked for.
    """

    task: Task[TaskParams]
    parts: Parts
    truths: Mapping[str, Arrays]
    encoder: EncoderParams
    measured: MeasuredParams | None
    options: RunOptions
    frozen: dict[int, dict[str, Float[np.ndarray, "images dim"]]] = field(default_factory=dict)

    def open(self, seed: int) -> Encoder:
        """Open the encoder; the seed is of untrained weights."""
        index, device = self.parts.test.index, self.options.device or self.task.params.training.device
        return open_encoder(self.encoder, seed, index.name, index.spec, self.measured, device)

    def shown(self, part: Part, encoder: Encoder) -> ShownPart:
        """Show a part to an encoder."""
        return ShownPart(part, encoder, self.task.params.training.num_workers)

    def features(self, seed: int) -> dict[str, Float[np.ndarray, "images dim"]]:
        """Compute E(x) of the whole images of every part, once."""
        weights_seed = seed if self.encoder.network == "untrained" else 0
        if weights_seed not in self.frozen:
            encoder = self.open(weights_seed)
            self.frozen[weights_seed] = {name: _features(encoder, part) for name, part in self.parts}
        return self.frozen[weights_seed]


def finetune(
    name: str,
    task: Task[TaskParams],
    encoders: Mapping[str, EncoderParams],
    *,
    shards_root: Location,
    out: Path,
    metrics: Path,
    request: StopRequest,
    measured: MeasuredParams | None = None,
    options: RunOptions = AS_USUAL,
    project: Path = Path(),
) -> None:
    """Train and measure every encoder on a task; write a result for each run, a table, and a page with pictures.

    Args:
        name: Name of the task, the file configs/tasks/NAME.yaml.
        task: What is learned, with its parameters.
        encoders: The section `encoders`; gains are those of the first one over each of the others.
        shards_root: Folder or URL with the task's shard set.
        out: Folder of results and page. A result that is there and still holds is kept.
        metrics: JSON of the table.
        request: Ends the stage early, with the running training's state saved.
        measured: The batch's own mean and std, for a model that was not trained with it.
        options: How trainings are carried out.
        project: The folder of params.yaml.

    Raises:
        ContaminationError: a model was trained on some of the measured patients, or may have been, and nobody has said
            yes.
        ConfigError: a part of the task is empty or cannot be scored, an encoder does not fit the shard set, or a
            package that this kind of task needs is not installed.
        NonfiniteError: loss or gradient was not finite.
        StoppedError: asked to end; the same command goes on from there.
    """
    params = task.params
    index = ShardIndex.open(location_of(shards_root, params.batch)).without_excluded(project)
    models = sorted({encoder.model for encoder in encoders.values()})
    index = _without_those_seen(name, params, index, models, shards_root, project)
    parts, truths = _read(task, index)
    task.check(truths)
    answers: dict[Run, Arrays] = {}
    num_trained: dict[str, set[int]] = {}
    num_reads = 1
    for encoder, section in encoders.items():
        bench = Bench(task=task, parts=parts, truths=truths, encoder=section, measured=measured, options=options)
        for run in _runs(encoder, task):
            if request.reason is not None:
                raise StoppedError(f"{request.reason}: before {run.name}; the same command goes on from there")
            told = _finished(run, bench, out / run.name, request)
            num_reads = max(num_reads, told["num_reads"][params.split])
            num_trained.setdefault(run.amount.name, set()).add(told["num_training_images"])
            answers[run] = _read_answers(out / run.name)
    if num_reads > 1 and params.split == "test":
        print(
            f"warning: {name}: the test images were measured {num_reads} times by now, with other settings before; "
            "choose settings with `split: val`, and measure on test once",
            file=sys.stderr,
        )
    by_use: dict[tuple[str, str, str], list[Arrays]] = {}
    for run, own in answers.items():
        by_use.setdefault((run.encoder, run.method, run.amount.name), []).append(own)
    table = tabulate(task, parts.test, truths["test"], by_use)
    facts = {"batch": index.name, "split": params.split, "num_images": len(parts.test)}
    facts |= {"num_patients": parts.test.num_patients, "num_seeds": len(params.seeds), "num_reads": num_reads}
    # Seeds draw as many patients, whose images are not as many.
    facts["num_training_images"] = {amount: [min(nums), max(nums)] for amount, nums in num_trained.items()}
    facts["accept_shared_images"] = params.accept_shared_images
    examples = {
        run.encoder: _examples(task, parts.test, truths["test"], own)
        for run, own in answers.items()
        if run == next(iter(_runs(run.encoder, task)))
    }
    write_page(out / PAGE, name, task, table, facts, examples)
    write_text(metrics, json.dumps({**table, "measured": facts}, indent=2) + "\n")


def _runs(encoder: str, task: Task[TaskParams]) -> list[Run]:
    return [
        Run(encoder=encoder, method=method, amount=amount, seed=seed)
        for method in task.methods
        for amount in amounts_of(task.params)
        for seed in task.params.seeds
    ]


def _finished(run: Run, bench: Bench, folder: Path, request: StopRequest) -> dict[str, Any]:
    """Return the result of a run, which is carried out unless its result is there."""
    task, test, options = bench.task, bench.parts.test, bench.options
    classes = task.classes(bench.truths["train"])
    drawn = draw(bench.parts.train, classes, run.amount, run.seed)
    identity = _identity(run, bench, drawn)
    earlier: dict[str, Any] | None = None
    if (folder / RESULT).is_file():
        earlier = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    if earlier is not None and earlier["fingerprint"] == identity.fingerprint:
        if earlier["bootstrap"] == task.params.bootstrap.model_dump():
            return earlier
        told = earlier | _told(bench, _read_answers(folder))
        write_text(folder / RESULT, json.dumps(told, indent=2) + "\n")
        return told
    run_dir = None if options.run_dir is None else options.run_dir / run.name
    num_reads = {"test": 0, "val": 0} if earlier is None else dict(earlier["num_reads"])
    num_reads[task.params.split] += 1
    with open_run(identity, run_dir, accepts_changed_code=options.accepts_changed_code) as opened:
        answers, facts = _carried_out(run, bench, drawn, identity, opened, request)
        told = {
            "fingerprint": identity.fingerprint,
            "encoder": bench.encoder.model_dump(),
            "method": run.method,
            "amount": run.amount.name,
            "seed": run.seed,
            "num_training_images": len(drawn),
            "num_training_patients": drawn.num_patients,
            "num_reads": num_reads,
            **facts,
            **_told(bench, answers),
        }
        with atomic_directory(folder) as fresh:
            with (fresh / ANSWERS).open("wb") as file:
                np.savez_compressed(file, allow_pickle=False, keys=np.array(test.keys), **answers)
            if (opened.path / ROWS).is_file():
                (fresh / ROWS).write_bytes((opened.path / ROWS).read_bytes())
            write_text(fresh / RESULT, json.dumps(told, indent=2) + "\n")
    return told


def _read_answers(folder: Path) -> Arrays:
    with np.load(folder / ANSWERS, allow_pickle=False) as arrays:
        return {key: arrays[key] for key in arrays if key != "keys"}


def _told(bench: Bench, answers: Arrays) -> dict[str, Any]:
    """Tell the figures of a run, and by which resamples their intervals are."""
    task, test = bench.task, bench.parts.test
    params, scores = task.params.bootstrap, task.scores(bench.truths["test"], answers, test)
    told = {name: tell(score, test.num_patients, params) for name, score in scores.items()}
    return {"bootstrap": params.model_dump(), "scores": told}


def _carried_out(
    run: Run, bench: Bench, drawn: Part, identity: RunIdentity, opened: RunFolder, request: StopRequest
) -> tuple[Arrays, dict[str, Any]]:
    """Carry a run out: return its answers about the measured images, and what there is to tell of the training."""
    task, parts, truths = bench.task, bench.parts, bench.truths
    if run.method != FULL:
        features, is_drawn = bench.features(run.seed), np.isin(parts.train.rows, drawn.rows)
        own = {**truths, "train": {key: values[is_drawn] for key, values in truths["train"].items()}}
        return task.answer_frozen(run.method, {**features, "train": features["train"][is_drawn]}, own), {}
    encoder = with_drop_path(bench.open(run.seed), task.params.training.drop_path)
    images, val = TrainingImages(task=task, part=drawn, encoder=encoder, seed=run.seed), bench.shown(parts.val, encoder)
    trained = train(task, images, val, truths["val"], identity, opened, request, bench.options.loggers)
    with accelerator_settings(task.params.training.precision, encoder.device):
        answers = ask(task, trained.network, bench.shown(parts.test, encoder), is_final=True)
    return answers, {"step": trained.step, "val_score": trained.score, "num_steps": trained.num_steps}


def _identity(run: Run, bench: Bench, drawn: Part) -> RunIdentity:
    keys = [drawn.keys, bench.parts.val.keys, bench.parts.test.keys]
    values = {
        "task": bench.task.params.model_dump(
            mode="json", exclude={**dict.fromkeys(NOT_OF_A_RUN, True), "training": NOT_DECISIVE}
        ),
        "run": {"method": run.method, "seed": run.seed},
        "encoder": {
            "network": bench.encoder.network,
            "weights": weights_sha256(bench.encoder),
            "config": sha256_of(Path(bench.encoder.model) / CONFIG),
            "measured": None if bench.measured is None else bench.measured.model_dump(mode="json"),
        },
        "set": bench.parts.test.index.fingerprint,
        "images": hashlib.sha256(json.dumps(keys).encode()).hexdigest(),
        "code": code_sha256((*CODE, *bench.task.code)),
        "versions": recorded_versions() | _versions(bench.task.libraries),
    }
    return RunIdentity(stage="finetune", values=values, section="training")


def _versions(libraries: Sequence[str]) -> dict[str, str]:
    try:
        return {name: version(name) for name in libraries}
    except PackageNotFoundError as error:
        raise ConfigError(
            f"this kind of task needs {error.name}, which is not installed: pip install 'ace-pretraining[downstream]'"
        ) from None


def _read(task: Task[TaskParams], index: ShardIndex) -> tuple[Parts, dict[str, Arrays]]:
    """Read the parts, without images that the task has no use for, and what is known of the others."""
    used: dict[str, Part] = {}
    truths: dict[str, Arrays] = {}
    for name, part in divide(index, task.params):
        truth = task.truth(part, is_training=name == "train")
        is_used = np.asarray(task.classes(truth).any(1))
        used[name], truths[name] = part.where(is_used), {key: values[is_used] for key, values in truth.items()}
    return Parts(**used), truths


def _without_those_seen(
    name: str, params: TaskParams, index: ShardIndex, models: Sequence[str], shards_root: Location, project: Path
) -> ShardIndex:
    """Leave out measured patients of whom a model saw a picture in another set.

    A model that was trained on the measured patients themselves is refused.
    """
    is_accepted, split = params.accept_shared_images, params.split
    unknown: set[str] = set()
    patients: set[str] = set()
    keys = set(index.keys(index.select(split)))
    for model in models:
        try:
            found = check_model(Path(model), index, project, split=split, is_accepted=is_accepted)
        except ContaminationError as error:
            raise ContaminationError(f"task {name}: {error} (here: accept_shared_images of the task's file)") from None
        unknown |= set(found.get("batches_without_patients", ()))
        copies = find_trained_copies(Path(model), index, keys, lambda batch: location_of(shards_root, batch)) or ()
        patients |= {pair.first.patient for pair in copies}
    warn_of_unknown_patients(sorted(unknown), "the figures may be too good, by an unknown amount")
    if not patients:
        return index
    print(
        f"warning: {len(patients)} {split} patients of {index.name} have pictures that an encoder was trained on under "
        f"other names, as {min(patients)}; they are {'all the same measured' if is_accepted else 'left out'}",
        file=sys.stderr,
    )
    return index if is_accepted else index.without_patients(patients)


def _features(encoder: Encoder, part: Part) -> Float[np.ndarray, "images dim"]:
    """Compute E(x) of whole images, as the evaluation does."""
    crops = whole_images(part.index, part.rows)
    embedder = Embedder(
        encoder=encoder, batch=part.index.name, images_per_forward=IMAGES_PER_FORWARD, name="frozen encoder"
    )
    with accelerator_settings(encoder.precision, encoder.device):
        return unit(embedder.pooled(crops, total=len(part), task="E(x)"))


def _examples(task: Task[TaskParams], part: Part, truth: Arrays, answers: Arrays) -> list[Example]:
    """Draw the images that are answered best, middling and worst."""
    reader, chosen = ShardReader(part.index), choose_examples(task.losses(truth, answers), task.params.num_examples)
    canvases = [reader.read(int(part.rows[image])).image for _, image in chosen]
    examples = [
        Example(
            title=title, key=part.keys[image], image=canvas, answer=task.shown_answer(truth, answers, image, canvas)
        )
        for (title, image), canvas in zip(chosen, canvases, strict=True)
    ]
    return examples + task.further_examples(answers, part)
