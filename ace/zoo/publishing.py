"""Make the folder of a shipped model from a finished training: one encoder, its figures, its images and their terms."""

import csv
import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from ace.embed.encoder import Encoder, load_encoder
from ace.embed.preprocessing import placement_text
from ace.evaluation.measured import MEASURED, Measured
from ace.journal.card import ORIGINS, model_card
from ace.models.backbone import mean_token
from ace.models.folder import CARD, CONFIG, WEIGHTS
from ace.models.model_config import PublishedSection, TrainedConfig
from ace.models.notice import NOTICE
from ace.models.tensors import write_tensors
from ace.report.summary import ROWS, measured_one
from ace.zoo.shipped import figure_text, published_of
from shards.core.errors import ConfigError
from shards.delivery.manifest import iterate_manifest
from shards.format.layout import sha256_of
from shards.reading.image_names import IMAGE_NAMES
from shards.reading.lineage import TRAINING_IMAGES
from shards.runtime.atomic import atomic_directory, write_text

MAX_BYTES = 8_000_000
"""Largest file of weights that is published: the folder travels with every installation of the package."""
ENCODERS = ("trained", "untrained", "imagenet", "gain")
"""Rows of metrics/properties.json that are kept, where it has them."""
_SPLITS = {"test": "test patients", "val": "validation patients, on whom settings may have been chosen,"}
_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_NUM_COMPARED = 16
_KEPT = (
    "best",
    "device",
    "format_version",
    "hardware",
    "num_processes",
    "params",
    "shards",
    "start_from",
    "steps",
    "versions",
)
"""Keys of a training's config.json that are kept; all others may name the machine, its users or its paths."""

_CARD = """\
---
library_name: ace
license: other
tags: [medical-imaging, self-supervised, ACE]
---
# {name}

{summary}

{origin}

    import ace
    model = ace.load("{name}")
    out = model.embed("image.png")

`out.embedding` is the direction of the mean token.
`out.tokens` has one token of {dim} numbers for each of {t} × {t} places of the image.

## Network

| | |
|---|---|
| backbone | `{backbone}`, {channels} channel(s), {num_parameters:,} parameters |
| tokens | after the last norm, activation `{token_activation}`, {whitening} |
| input | {crop_px} × {crop_px} px: {placement} |
| training | objective `{objective}`, {epochs} epochs, {steps} steps of {batch_size} images |
| weights | the teacher's backbone, {dtype}; sha256 `{sha256}` |
| made with | ace-pretraining {version}, {versions} |
{half}
## What it saw

{saw}
`{images}` lists the file names of these images, as their dataset has them.

{terms}

## What it is worth

Every figure is of {patients} of the batch {batch}; {seen}
In brackets stands its bootstrap interval over patients.
`config.json` holds all of them under `published`.

{figures}

## Files

| file | what it holds |
|---|---|
| `{weights}` | the encoder, as safetensors |
| `{config}` | the parameters of the training, the sha256 of the weights, the figures |
| `{images}` | the names of the images it was trained on |
| `{card}` | this text |

There is no student, no head and no pickled code.

## Limits

{notice}
What the encoder learned is bounded by the images above.
It may be worse on images of other hospitals, devices or populations.
"""
_HALF = """
The weights are stored in 16 bits and computed with in 32. On random inputs the embeddings keep a cosine of at least
{min_cosine:.6f} with those of the full weights, which the figures below are of.
"""


@dataclass(frozen=True)
class Published:
    """A result names what `publish` wrote.

    Attributes:
        folder: The new folder.
        num_bytes: The size of its weights.
        min_cosine: The smallest cosine between its embeddings and those of the training's weights, on random inputs.
    """

    folder: Path
    num_bytes: int
    min_cosine: float


def publish(
    model_dir: Path,
    *,
    name: str,
    metrics: Path,
    images: Path,
    terms: str,
    out: Path,
    half: bool,
    summary: str | None = None,
) -> Published:
    """Write an ordinary model folder that holds the teacher's backbone, its figures and no private data.

    Kept are the parameters, the counts and the fingerprint of each shard set. Left out are student, heads, log, the
    list of keys and patients, paths of this machine and sums of single shards.

    Args:
        model_dir: The folder that `python -m ace pretrain` wrote.
        name: The name to load it by, in small letters, digits and hyphens; the name of `out` too.
        metrics: metrics/properties.json, as `python -m ace evaluate` wrote it of this model and of patients that it was
            not trained on.
        images: The file names of the training images, one a line; or the manifest (.jsonl) of the batch, from which the
            names of those that were trained on are taken.
        terms: What the data's owners ask for: licence, citation, thanks. Markdown.
        out: The new folder. A folder that `publish` made under the same name is replaced, any other one refused.
        half: Store the weights in 16 bits.
        summary: One sentence on the model; by default made of its size and channels.

    Raises:
        ConfigError: the model is no finished training, an input is missing or does not fit it, the metrics are another
            model's or of patients that it may have been trained on, the weights are too large, or `out` is another
            folder.
    """
    _check_out(out, name)
    encoder = load_encoder(model_dir, "teacher", "cpu")
    trained = _trained_config(model_dir, encoder)
    figures, section = _read_metrics(metrics)
    measured = _check_measured(section, metrics, model_dir)
    names = _image_names(images, model_dir, trained)
    if not terms.strip():
        raise ConfigError("--terms: empty; say under which terms the images may be used and whom to cite")
    source = model_dir / WEIGHTS["teacher"]
    with atomic_directory(out, source.stat().st_size // (2 if half else 1)) as temporary:
        weights = temporary / WEIGHTS["teacher"]
        _write_weights(source, weights, half=half)
        data = weights.read_bytes()
        if len(data) > MAX_BYTES:
            advice = "" if half else "; --half makes them half as large"
            raise ConfigError(
                f"{model_dir}: its weights are {len(data) / 1e6:.1f} MB, at most {MAX_BYTES / 1e6:.0f}{advice}"
            )
        about = PublishedSection(
            name=name,
            summary=summary or _summary(encoder),
            saw=_saw(trained),
            dtype="float16" if half else "float32",
            sha256={WEIGHTS["teacher"]: hashlib.sha256(data).hexdigest()},
            figures=figures,
            measured=measured.model_dump(mode="json", exclude_defaults=True),
            terms=terms.strip(),
            version=version("ace-pretraining"),
        )
        config = _public_config(trained, about)
        write_text(temporary / CONFIG, config.to_text())
        write_text(temporary / IMAGE_NAMES, "".join(f"{line}\n" for line in names))
        min_cosine = _min_cosine(encoder, load_encoder(temporary, "teacher", "cpu"))
        about = about.model_copy(update={"min_cosine": min_cosine})
        config = _public_config(trained, about)
        write_text(temporary / CONFIG, config.to_text())
        write_text(temporary / CARD, _card(config, about, measured, encoder))
    return Published(out, len(data), min_cosine)


def _check_out(out: Path, name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ConfigError(f"--name {name}: expected small letters, digits and single hyphens, as cxr-small")
    if out.name != name:
        raise ConfigError(
            f"--out {out}: the folder of a shipped model is named after it; expected {out.with_name(name)}"
        )
    about = published_of(out)
    is_replaced = about is not None and about.name == name
    if out.exists() and not is_replaced and not (out.is_dir() and not any(out.iterdir())):
        raise ConfigError(
            f"{out} exists and is not the published model '{name}'; name a new folder, or remove it first"
        )


def _trained_config(model_dir: Path, encoder: Encoder) -> TrainedConfig:
    config = encoder.config
    if not isinstance(config, TrainedConfig):
        raise ConfigError(
            f"{model_dir}: found an imported model, whose weights belong to others; expected a model that "
            "`python -m ace pretrain` wrote"
        )
    if config.published is not None:
        raise ConfigError(f"{model_dir}: found a published model; expected the folder that the training wrote")
    return config


def _read_metrics(metrics: Path) -> tuple[dict[str, Any], Any]:
    """Read the figures of every encoder, without what only the report needs, and whose they are."""
    try:
        values = json.loads(metrics.read_text(encoding="utf-8"))
        figures = {encoder: values[encoder] for encoder in ENCODERS if encoder in values}
        if not {"trained", "untrained"} <= figures.keys():
            raise KeyError("trained, untrained")
        kept = {
            encoder: {
                key: {name: value for name, value in figure.items() if name in _FIGURE_KEYS}
                for key, figure in row.items()
            }
            for encoder, row in figures.items()
        }
        return kept, values.get(MEASURED)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"--metrics {metrics}: expected the figures that `python -m ace evaluate` wrote of this model "
            f"({type(error).__name__}: {error})"
        ) from None


_FIGURE_KEYS = ("value", "low", "high", "chance", "n", "num_candidates", "reason")


def _check_measured(section: Any, metrics: Path, model_dir: Path) -> Measured:
    """Check that the figures are this model's, of patients that it has not seen.

    Raises:
        ConfigError: nobody knows, or they are another model's or of patients that it may have been trained on.
    """
    again = f"measure this model: `python -m ace evaluate --model {model_dir}`"
    if section is None:
        raise ConfigError(
            f"--metrics {metrics}: an older release wrote it, without saying which model it is of; {again}"
        )
    measured = Measured.from_params(section, f"--metrics {metrics}: {MEASURED}")
    expected = sha256_of(model_dir / WEIGHTS["teacher"])
    if measured.model_sha256 != expected:
        raise ConfigError(
            f"--metrics {metrics}: figures of another model, whose weights have the sha256 "
            f"{measured.model_sha256[:16]}…; those of {model_dir} have {expected[:16]}…; {again}"
        )
    num_shared, batches = measured.num_shared_patients, measured.batches_that_may_share_images
    if num_shared != 0 or batches:
        found = "an unknown number" if num_shared is None else num_shared
        sharing = f", and {', '.join(batches)} may hold images of {measured.batch}" if batches else ""
        raise ConfigError(
            f"--metrics {metrics}: the model was trained on {found} of the {measured.split} patients of "
            f"{measured.batch}{sharing}; expected none. Measure patients that it has not seen, with "
            "evaluate.accept_shared_images: false"
        )
    return measured


def _image_names(images: Path, model_dir: Path, config: TrainedConfig) -> list[str]:
    """Return the file names of the training images, sorted.

    Raises:
        ConfigError: the file is not there, a name repeats or leads out of the dataset, or there are more or fewer names
            than training images.
    """
    if not images.is_file():
        raise ConfigError(
            f"--images {images}: no such file; expected a list of file names, or the batch's manifest (.jsonl)"
        )
    if images.suffix == ".jsonl":
        with (model_dir / TRAINING_IMAGES).open(encoding="utf-8", newline="") as file:
            keys = {row["key"] for row in csv.DictReader(file)}
        entries = iterate_manifest(images)[1]
        names = [entry.record.image.path for _, entry in entries if entry.record.source_id in keys]
    else:
        names = [line.strip() for line in images.read_text(encoding="utf-8").splitlines() if line.strip()]
    if len(set(names)) < len(names):
        raise ConfigError(f"--images {images}: {len(names) - len(set(names))} names are there twice")
    num_outside = sum(_is_absolute(name) or "://" in name or ".." in re.split(r"[/\\\\]", name) for name in names)
    if num_outside:
        raise ConfigError(
            f"--images {images}: {num_outside} lead out of the dataset (absolute paths, addresses or `..`); expected "
            "names as the dataset has them"
        )
    expected = sum(item.num_images for item in config.shards)
    if len(names) != expected:
        raise ConfigError(
            f"--images {images}: {len(names)} names of training images, and the model was trained on {expected}; give "
            "the list of those, or the manifest of its batch in data/manifests"
        )
    return sorted(names)


def _write_weights(source: Path, target: Path, *, half: bool) -> None:
    tensors = load_file(source)
    if half:
        tensors = {name: value.half() if value.is_floating_point() else value for name, value in tensors.items()}
        lost = [name for name, value in tensors.items() if value.is_floating_point() and not value.isfinite().all()]
        if lost:
            raise ConfigError(f"{source}: {lost[0]} has values that 16 bits cannot hold; publish without --half")
    write_tensors(tensors, target)


def _public_config(config: TrainedConfig, about: PublishedSection) -> TrainedConfig:
    """Return the configuration of the published model: nothing of it names this machine or single shards."""
    shards = tuple(item.model_copy(update={"shards": ()}) for item in config.shards)
    kept = config.model_copy(update={"best": None, "shards": shards})
    values = {key: value for key, value in kept.to_json().items() if key in _KEPT}
    return TrainedConfig.model_validate(_without_paths(values)).model_copy(update={"published": about})


_PLACES = ("path", "start_from")


def _without_paths(value: Any) -> Any:
    """Keep the file's name alone of every absolute path, and of whatever says where weights came from."""
    if isinstance(value, Mapping):
        return {
            key: PureWindowsPath(item).name if key in _PLACES and isinstance(item, str) else _without_paths(item)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_without_paths(item) for item in value]
    if isinstance(value, str) and _is_absolute(value):
        return PureWindowsPath(value).name  # takes both kinds of slashes
    return value


def _is_absolute(text: str) -> bool:
    return PurePosixPath(text).is_absolute() or PureWindowsPath(text).is_absolute() or text.startswith("~")


def _summary(encoder: Encoder) -> str:
    kind = "grey" if encoder.in_channels == 1 else "colour"
    millions = _num_parameters(encoder) / 1e6
    return (
        f"An encoder of {millions:.2f} million parameters for {kind} images at {encoder.spec.crop_px} px, with "
        f"{encoder.spec.t} × {encoder.spec.t} tokens of {encoder.backbone.width}."
    )


def _saw(config: TrainedConfig) -> str:
    sets = " and ".join(
        f"{item.num_images} images of {item.patients} patients (batch {item.batch})" for item in config.shards
    )
    return f"{sets}, without labels."


def _num_parameters(encoder: Encoder) -> int:
    return sum(parameter.numel() for parameter in encoder.backbone.parameters())


def _min_cosine(trained: Encoder, stored: Encoder) -> float:
    """Return the smallest cosine between the embeddings of both, on random inputs."""
    size = (trained.in_channels, trained.spec.crop_px, trained.spec.crop_px)
    inputs = torch.randn(_NUM_COMPARED, *size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        one, other = (mean_token(encoder.backbone(inputs).float()) for encoder in (trained, stored))
        smallest = float(F.cosine_similarity(one, other, dim=-1).min())
    if not smallest > 0.99:
        raise ConfigError(f"the stored weights give other embeddings (cosine {smallest:.4f}); publish without --half")
    return math.floor(min(smallest, 1.0) * 1e6) / 1e6


def _card(config: TrainedConfig, about: PublishedSection, measured: Measured, encoder: Encoder) -> str:
    model_card(config)  # what an export to timm shows of this model; fails here rather than there
    pretrain = config.params.pretrain
    return _CARD.format(
        name=about.name,
        summary=about.summary,
        origin=ORIGINS[pretrain.objective],
        dim=encoder.backbone.width,
        t=encoder.spec.t,
        backbone=pretrain.backbone.name,
        channels=encoder.in_channels,
        num_parameters=_num_parameters(encoder),
        token_activation=pretrain.backbone.token_activation,
        whitening="whitening" if encoder.backbone.is_whitened else "no whitening",
        crop_px=encoder.spec.crop_px,
        placement=placement_text(encoder.spec.trim_level),
        objective=pretrain.objective,
        epochs=pretrain.epochs,
        steps=config.steps,
        batch_size=pretrain.batch_size,
        dtype=about.dtype,
        sha256=about.sha256[WEIGHTS["teacher"]],
        version=about.version,
        versions=", ".join(f"{name} {found}" for name, found in config.versions.items()),
        half=_HALF.format(min_cosine=about.min_cosine) if about.dtype == "float16" else "",
        saw=about.saw,
        terms=about.terms,
        figures=_figure_table(about.figures, measured_one(about.measured)),
        patients=_SPLITS[measured.split],
        batch=measured.batch,
        seen=_seen(measured),
        weights=WEIGHTS["teacher"],
        config=CONFIG,
        images=IMAGE_NAMES,
        card=CARD,
        notice=NOTICE,
    )


def _seen(measured: Measured) -> str:
    """Tell whether the training saw the patients that were measured."""
    unknown = measured.batches_without_patients
    if not unknown:
        return "the training saw none of them."
    return (
        f"the patients of {', '.join(unknown)} are unknown, an image stands for a patient there,\nand the training may "
        "have seen other images of the same patients."
    )


def _figure_table(figures: Mapping[str, Any], one: str) -> str:
    """Return a row for each key figure, a column for each encoder, and chance; `one` is a patient or an image."""
    encoders = [name for name in ENCODERS if name in figures and name != "gain"]
    lines = [["figure", *encoders, "chance", f"{one}s"]]
    label = ""
    for key, row in ROWS.items():
        label, number = row.group or label, row.number
        trained = figures["trained"].get(key)
        if trained is None:
            continue
        text = f"{label}: {row.summary.strip().format(num_candidates=trained.get('num_candidates'), one=one)}"
        if trained["value"] is None:
            lines.append([text, f"not measured: {trained.get('reason', '')}", *[""] * (len(encoders) + 1)])
            continue
        cells = [_cell(figures[encoder].get(key), number) for encoder in encoders]
        chance = number.format(trained["chance"]) if trained.get("chance") is not None else ""
        lines.append([text, *cells, chance, str(trained.get("n", ""))])
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(figure: Mapping[str, Any] | None, number: str) -> str:
    return "" if figure is None or figure["value"] is None else figure_text(figure, number)
