"""The stage `report`: one self-contained page that opens without a network."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from PIL import Image

from ace.report.drawings import (
    colour_examples,
    composition_example,
    correspondence_examples,
    data_uri,
    decomposition_examples,
    draw_pair,
    removal_pictures,
)
from ace.report.figures import curve_panels, density_plot, error_curves
from ace.report.inputs import Project, encoder_name
from ace.report.params import ReportParams
from ace.report.tables import (
    CHANGE_OUTSIDE,
    CORRESPONDENCE,
    ERASED_LENGTH,
    FIGURES,
    HEADLINES,
    figure_rows,
    fill_rows,
    headline_card,
    with_interval,
)
from ace.training.erased import erased_parts, removal_weight
from shards.atomic import write_text
from shards.read import ShardIndex, ShardReader

FOLDER = Path(__file__).parent
PUBLISHED = {"tf_efficientnet_lite0": "EfficientNet-Lite0"}
"""What timm's architectures are called elsewhere."""
CONTACT_SHEET_PX = 1800
SPLITS = ("train", "val", "test")
CURVES = {
    "loss": "total loss",
    "loss_global": "global consistency",
    "loss_views": "consistency of views",
    "loss_decomposition_excess": "decomposition, above its floor",
    "loss_composition_excess": "composition, above its floor",
    "loss_removal": "removal",
    ERASED_LENGTH: "length of erased tokens over visible ones",
    CHANGE_OUTSIDE: "share of the change that falls outside what was erased",
    "accuracy_decomposition": "decomposition arg-max accuracy",
    "accuracy_composition": "composition arg-max accuracy",
    "probe_knn_auroc": "kNN probe, mean AUROC",
    "probe_linear_auroc": "linear probe, mean AUROC",
    "effective_rank": "effective rank of the features",
    "rank_fraction": "effective rank over the most there can be",
    "feature_std": "standard deviation of the features",
    "teacher_entropy": "teacher entropy",
    "center_norm": "length of the centre",
    "grad_norm": "gradient norm",
    "loss_scale": "loss scale of fp16",
    "lr": "learning rate",
    "weight_decay": "weight decay",
    "momentum": "teacher momentum",
    "images_per_s": "images per second",
    "data_wait_share": "share of time waiting for data",
    "peak_memory_gb": "peak memory, GB",
}


def write_report(params: ReportParams, out: Path, project_root: Path = Path()) -> None:
    """Draw the page from what the other stages left.

    Args:
        params: Section `report`.
        out: The HTML file.
        project_root: Folder with data/, models/, metrics/ and dvc.lock.

    Raises:
        ConfigError: a stage has not run yet.
        IndexFormatError: a shard set is damaged.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    environment.filters["thousands"] = lambda number: f"{number:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")
    environment.filters["encoder"] = encoder_name
    environment.filters["megabytes"] = lambda number: f"{number / 1e6:,.1f} MB"
    page = environment.get_template("template.html").render(build_context(params, Project(project_root)))
    write_text(out, page)


def build_context(params: ReportParams, project: Project) -> dict[str, Any]:
    """Everything that the template shows."""
    properties, encoders, protocol = project.properties, project.encoders, project.protocol
    correspondence = project.evidence("correspondence")
    composition = project.evidence("composition")
    has_landmarks = properties["trained"][CORRESPONDENCE]["value"] is not None
    errors = {name: correspondence[f"{name}_errors"] for name in encoders} if has_landmarks else {}
    for name, label in (("same_pixel", "same pixel"), ("affine_oracle", "best affine map (oracle)")):
        if has_landmarks:
            errors[label] = correspondence[f"{name}_errors"]
    cosines = {name: (composition[f"{name}_true"], composition[f"{name}_mismatched"]) for name in encoders}
    return {
        "title": params.title,
        "style": (FOLDER / "style.css").read_text(encoding="utf-8"),
        "headlines": [headline_card(headline, properties, encoders) for headline in HEADLINES],
        "figures": figure_rows(properties, encoders),
        "has_landmarks": has_landmarks,
        "protocol": protocol,
        "reference": _reference(project),
        "pair": draw_pair(_sample(project.batches[0], params.seed), project.batches[0].spec, params.seed),
        "splits": SPLITS,
        "batches": [_batch(index) for index in project.batches],
        "without_patients": properties.get("measured", {}).get("batches_without_patients", []),
        "phantom": project.phantom,
        "sheets": list(_sheets(project)),
        "curves": curve_panels(project.log, CURVES, params.smoothing_steps),
        "model": project.model_config,
        "erased": _erased(project),
        "whitening": project.model_config["params"]["pretrain"].get("whitening"),
        "density": density_plot(cosines),
        "composition": composition_example(composition, encoders),
        "decomposition": decomposition_examples(project.evidence("decomposition"), encoders),
        "decomposition_chance": properties["trained"]["decompositionality"]["chance"],
        "fills": fill_rows(properties, protocol["decomposition"].get("fills", ()), encoders),
        "removal": _removal(project),
        "correspondence": correspondence_examples(correspondence, encoders),
        "colours": colour_examples(correspondence, encoders),
        "error_curves": error_curves(errors, protocol["correspondence"]["success_px"]) if has_landmarks else "",
        "encoders": encoders,
        "commit": project.commit,
        "versions": project.versions,
        "locked_outs": project.locked_outs,
        "params_text": project.params_text,
    }


def _reference(project: Project) -> dict[str, Any] | None:
    """The published encoder of the row `imagenet`: the section `evaluate.reference`, and what others call it."""
    if "imagenet" not in project.encoders:
        return None
    reference: dict[str, Any] = project.protocol["reference"]
    return reference | {"published_name": PUBLISHED.get(reference["name"], reference["name"])}


def _erased(project: Project) -> dict[str, Any]:
    """What was erased in training, in words (empty for nothing), and the weight of the removal term."""
    pretrain = project.model_config["params"]["pretrain"]
    fills = pretrain["augment"]["erase"].get("fills", {})
    return {
        "parts": erased_parts(pretrain),
        "has_random_levels": fills.get("grey", 0) > 0,
        "has_tissue": fills.get("tissue", 0) > 0,
        "weight": removal_weight(pretrain),
    }


def _removal(project: Project) -> dict[str, Any] | None:
    """The pictures of what tokens change, and each encoder's figures; None where it was not measured."""
    if CHANGE_OUTSIDE not in project.properties["trained"]:
        return None
    encoders = sorted(project.encoders, key=("untrained", "trained", "imagenet").index)
    figures = {
        name: [with_interval(project.properties[name][key], FIGURES[key][1]) for key in (ERASED_LENGTH, CHANGE_OUTSIDE)]
        for name in encoders
    }
    return removal_pictures(project.evidence("removal"), encoders) | {"encoders": encoders, "figures": figures}


def _sample(index: ShardIndex, seed: int) -> Any:
    rows = index.select("train")
    rows = rows if len(rows) else np.arange(len(index.rows))
    return ShardReader(index).read(int(rows[seed % len(rows)]))


def _batch(index: ShardIndex) -> dict[str, Any]:
    counts = index.values["counts"]
    labels = counts["labels"]
    names = sorted({name for split in SPLITS for name in labels[split]})
    return {
        "name": index.name,
        "images": counts["images"],
        "patients": counts["patients"],
        "has_patients": index.values["dataset"]["patient_grouping"] == "patient",
        "labels": {name: [_label_cell(labels[split].get(name, {})) for split in SPLITS] for name in names},
        "quarantined": index.values["quarantined"]["count"],
        "num_shards": len(index.shards),
        "bytes": sum(shard["bytes"] for shard in index.shards),
        "statistics": index.statistics,
        "fingerprint": index.fingerprint,
    }


def _label_cell(counts: dict[str, int]) -> str:
    known = counts.get("1", 0) + counts.get("0", 0)
    notes = [f"{counts[key]} {word}" for key, word in (("-1", "uncertain"), ("unknown", "unknown")) if counts.get(key)]
    return ", ".join([f"{counts.get('1', 0)} of {known}", *notes])


def _sheets(project: Project) -> Iterator[dict[str, str]]:
    """The contact sheets there are: the phantom's, and each shard set's."""
    phantom = ("phantom", "virtual patients rendered from one chest CT, with their exact masks and landmarks")
    shards = "samples as the shards hold them, with grid, crops, masks and landmarks"
    folders = [(project.root / "data/phantom", *phantom)] if project.phantom else []
    folders += [(index.root, index.name, shards) for index in project.batches]
    for folder, name, text in folders:
        path = folder / "contact_sheet.png"
        if path.is_file():
            with Image.open(path) as image:
                picture = data_uri(np.asarray(image.convert("RGB")), kind="jpeg", max_px=CONTACT_SHEET_PX)
            yield {"name": name, "text": text, "image": picture}
