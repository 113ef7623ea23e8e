"""The model card: what the encoder is, what it saw, what it may be used for."""

from collections.abc import Mapping
from typing import Any

from ace.journal.erased import erased_parts, removal_weight
from ace.models.folder import WEIGHTS
from ace.models.notice import NOTICE

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
"""How the encoder was pretrained, by `pretrain.objective`."""

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


def model_card(config: Mapping[str, Any]) -> str:
    """Markdown from the values of config.json."""
    pretrain, grid = config["params"]["pretrain"], config["params"]["grid"]
    rows = [
        f"| {item['batch']} | {item['num_images']} | {_num_patients(item)} | {item['weight']:g} "
        f"| `{item['fingerprint'][:16]}` |"
        for item in config["shards"]
    ]
    table = ["| batch | training images | patients | weight | index sha256 |", "|---|---|---|---|---|", *rows]
    weights, best = pretrain["loss_weights"], config.get("best")
    unknown = [item["batch"] for item in config["shards"] if item.get("patient_grouping") == "image"]
    return CARD.format(
        phantom=_phantom(config),
        notice=NOTICE,
        origin=ORIGINS[pretrain["objective"]],
        backbone=pretrain["backbone"]["name"],
        model_args=pretrain["backbone"]["model_args"] or "",
        in_channels=pretrain["backbone"]["in_channels"],
        token_activation=pretrain["backbone"]["token_activation"],
        whitening=_whitening(pretrain),
        erased=erased_parts(pretrain) or "nothing",
        crop_px=grid["t"] * grid["cell_px"],
        canvas_px=grid["n"] * grid["cell_px"],
        t=grid["t"],
        objective=pretrain["objective"],
        start=_start(config),
        precision=pretrain["precision"],
        num_processes=config["num_processes"],
        device=config["device"],
        epochs=pretrain["epochs"],
        steps=config["steps"],
        batch_size=pretrain["batch_size"],
        best=BEST.format(**best) if best else "",
        w_global=weights["global"],
        w_decomposition=weights["decomposition"],
        w_composition=weights["composition"],
        w_removal=removal_weight(pretrain),
        versions=", ".join(f"{name} {version}" for name, version in config["versions"].items()),
        data="\n".join(table),
        unknown=UNKNOWN.format(batches=", ".join(unknown)) if unknown else "",
    )


def _whitening(pretrain: Mapping[str, Any]) -> str:
    """Say how the map of the finished encoders' tokens was fitted."""
    whitening = pretrain.get("whitening")
    return "fitted on {num_pairs} crop pairs, shrinkage {shrinkage:g}".format(**whitening) if whitening else "none"


def _phantom(config: Mapping[str, Any]) -> str:
    """Say which batches are the built-in phantom's; a folder that does not tell kinds may be all of them."""
    if not all("kind" in item for item in config["shards"]):
        return PERHAPS_ONE_PERSON
    names = [item["batch"] for item in config["shards"] if item["kind"] == "phantom"]
    return ONE_PERSON.format(batches=", ".join(names)) if names else "."


def _num_patients(item: Mapping[str, Any]) -> str:
    """How many there are, or that nobody knows; a folder of an earlier version says nothing, and counted all."""
    return "unknown" if item.get("patient_grouping") == "image" else str(item["num_patients"])


def _start(config: Mapping[str, Any]) -> str:
    """What the networks' first weights were, with the hash that tells them from others of the same name."""
    pretrain = config["params"]["pretrain"]
    weights = pretrain["backbone"]["weights"]
    if pretrain["start_from"] is not None:
        sha256 = config["start_from"][WEIGHTS["teacher"]]
        return f"backbones and heads of the model `{pretrain['start_from']}`, whose teacher has the sha256 `{sha256}`"
    if weights is None:
        return "random weights"
    names = {"timm": "timm's `{tag}`", "file": "`{path}`", "package": "the Python package `{package}`"}
    name = names[weights["kind"]].format(**weights)
    sha256 = f"sha256 `{weights['sha256']}`" if weights["sha256"] else "no sha256 asked for"
    return f"other people's backbone, {name}, {sha256}; `start.txt` accounts for every tensor"
