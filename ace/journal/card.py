"""The model card: what the encoder is, what it saw, what it may be used for."""

from html import escape

from ace.journal.erased import erased_parts
from ace.models.folder import WEIGHTS
from ace.models.model_config import TrainedConfig, WhiteningSection
from ace.models.notice import NOTICE
from ace.models.params import FileWeightsParams, PackageWeightsParams, TimmWeightsParams

ORIGINS = {
    "ace": """\
Pretrained without labels by anatomically consistent embeddings in composition and decomposition (ACE, WACV 2025,
arXiv 2501.10131), an independent implementation written from the paper.""",
    "ace_v2": """\
Pretrained without labels by the cyclic objective of ACE-v2 (uniqueness, consistency, composition and decomposition,
from epoch to epoch), an independent implementation written from the paper.""",
    "dino": """\
Pretrained without labels by self-distillation between two random views (DINO), the baseline that ACE is compared with:
neither composition nor decomposition was trained.""",
}
"""Words for the pretraining, by `pretrain.objective`."""

CARD = """\
---
library_name: timm
license: other
tags: [medical-imaging, self-supervised, ACE]
---
# ACE encoder ({backbone})

{origin}

| | |
|---|---|
| backbone | `{backbone}` {model_args}, {in_channels} channel(s); tokens after the last norm: {token_activation} |
| token whitening | {whitening} |
| input | {crop_px} × {crop_px} px crops of a {canvas_px} px canvas, {t} × {t} tokens |
| objective | `{objective}` |
| started from | {start} |
| training | {epochs} epochs, {steps} steps of {batch_size} images |
| computed | in {precision}, by {num_processes} process(es) on {device} |
| hardware | {hardware} |
| erased | {erased} |
| loss weights | global {w_global:g}, decomposition {w_decomposition:g}, composition {w_composition:g}, \
removal {w_removal:g} |
| made with | {versions} |

## Data

{data}
{unknown}
Every shard with its sha256 stands in `config.json` under `shards`.

## Files

`teacher_backbone.safetensors` is the encoder to use; `student_backbone.safetensors` and `heads.safetensors` are what
training ended with.{best} No file holds pickled code.

## Limits

{notice}
What the encoder learned is bounded by the images above{phantom}
"""

PERHAPS_ONE_PERSON = """; if they are the built-in phantom, that is one person's anatomy
in many warps, and says nothing about real radiographs."""

ONE_PERSON = """.
Those of {batches}, the built-in phantom, are one person's anatomy in many warps, and say nothing about real
radiographs."""

UNKNOWN = """
The patients of {batches} are unknown: these images were split one by one, so a patient may have images in training, in
validation and in the test, and what is measured on the latter two may be too good.
"""

BEST = """
`best_teacher_backbone.safetensors` is the teacher after step {step}, when the probe scored it highest on the validation
split ({metric} {score:.3f})."""


def model_card(config: TrainedConfig) -> str:
    """Write the model card, as Markdown."""
    pretrain, grid = config.params.pretrain, config.params.grid
    backbone, weights = pretrain.backbone, pretrain.loss_weights
    rows = [
        f"| {item.batch} | {item.num_images} | {item.patients} | {item.weight:g} | `{item.fingerprint[:16]}` |"
        for item in config.shards
    ]
    table = ["| batch | training images | patients | weight | index sha256 |", "|---|---|---|---|---|", *rows]
    unknown = [item.batch for item in config.shards if item.patient_grouping == "image"]
    return CARD.format(
        phantom=_phantom(config),
        notice=NOTICE,
        origin=ORIGINS[pretrain.objective],
        backbone=backbone.name,
        model_args=backbone.model_args or "",
        in_channels=backbone.in_channels,
        token_activation=backbone.token_activation,
        whitening=_whitening(pretrain.whitening),
        erased=erased_parts(pretrain) or "nothing",
        crop_px=grid.crop_px,
        canvas_px=grid.canvas_px,
        t=grid.t,
        objective=pretrain.objective,
        start=start_text(config),
        precision=pretrain.precision,
        num_processes=config.num_processes,
        device=config.device,
        hardware=_cell(config.hardware.text) if config.hardware else "not recorded",
        epochs=pretrain.epochs,
        steps=config.steps,
        batch_size=pretrain.batch_size,
        best=BEST.format(**dict(config.best)) if config.best else "",
        w_global=weights.global_,
        w_decomposition=weights.decomposition,
        w_composition=weights.composition,
        w_removal=weights.removal,
        versions=", ".join(f"{name} {version}" for name, version in config.versions.items()),
        data="\n".join(table),
        unknown=UNKNOWN.format(batches=", ".join(unknown)) if unknown else "",
    )


def _cell(text: str) -> str:
    """Return a text that others chose as a cell of a table: on one line, and without markup."""
    return escape(" ".join(text.split()), quote=False).replace("|", r"\|")


def _whitening(whitening: WhiteningSection | None) -> str:
    """Say how the map of the finished encoders' tokens was fitted."""
    if whitening is None:
        return "none"
    return f"fitted on {whitening.num_pairs} crop pairs, shrinkage {whitening.shrinkage:g}"


def _phantom(config: TrainedConfig) -> str:
    """Say which batches are the built-in phantom's; a folder that does not tell kinds may be all of them."""
    if any(item.kind is None for item in config.shards):
        return PERHAPS_ONE_PERSON
    names = [item.batch for item in config.shards if item.kind == "phantom"]
    return ONE_PERSON.format(batches=", ".join(names)) if names else "."


def start_text(config: TrainedConfig) -> str:
    """Say what the networks' first weights were, with the hash that tells them from others of the same name."""
    start_from, weights = config.params.pretrain.start_from, config.backbone.weights
    if start_from is not None:
        sha256 = config.start_from[WEIGHTS["teacher"]]
        return f"backbones and heads of the model `{start_from}`, whose teacher has the sha256 `{sha256}`"
    match weights:
        case None:
            return "random weights"
        case TimmWeightsParams(tag=tag):
            name = f"timm's `{tag}`"
        case FileWeightsParams(path=path):
            name = f"`{path}`"
        case PackageWeightsParams(package=package):
            name = f"the Python package `{package}`"
    asked = f"sha256 `{weights.sha256}`" if weights.sha256 else "no sha256 asked for"
    return f"other people's backbone, {name}, {asked}; `start.txt` accounts for every tensor"
