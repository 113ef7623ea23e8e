"""The stage `report`: one self-contained page that opens without a network."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from PIL import Image

from ace.report.drawings import (
    ENCODERS,
    colour_examples,
    composition_example,
    correspondence_examples,
    data_uri,
    decomposition_examples,
    draw_pair,
)
from ace.report.figures import curve_panels, density_plot, error_curves
from ace.report.inputs import Project
from ace.report.params import ReportParams
from shards.atomic import write_text
from shards.read import ShardIndex, ShardReader

FOLDER = Path(__file__).parent
CORRESPONDENCE = "correspondence_px_at_1024"
CONTACT_SHEET_PX = 1800
SPLITS = ("train", "val", "test")
CURVES = {
    "loss": "total loss",
    "loss_global": "global consistency",
    "loss_views": "consistency of views",
    "loss_decomposition_excess": "decomposition, above its floor",
    "loss_composition_excess": "composition, above its floor",
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


@dataclass(frozen=True)
class Headline:
    """One of the three properties at the top of the page."""

    key: str
    title: str
    question: str
    unit: str
    number: str
    anchor: str


HEADLINES = (
    Headline(
        "compositionality",
        "Compositionality",
        "Is the whole the mean of its parts?",
        "cosine to its own parts minus cosine to another region's",
        "{:.3f}",
        "composition",
    ),
    Headline(
        "decompositionality",
        "Decompositionality",
        "Does removing a part remove its embedding?",
        "top-1 accuracy among {batch} patients' regions",
        "{:.1%}",
        "decomposition",
    ),
    Headline(
        CORRESPONDENCE,
        "Correspondence",
        "Is the same anatomy found in another patient?",
        "mean error in px of a 1024-px canvas; less is better",
        "{:.1f}",
        "correspondence",
    ),
)
FIGURES = {
    "compositionality": ("Compositionality: cosine, true minus mismatched", "{:.3f}"),
    "compositionality_auc": ("Compositionality: AUC, true against mismatched", "{:.3f}"),
    "decompositionality": ("Decompositionality: top-1", "{:.1%}"),
    "decompositionality_same_position": ("Decompositionality: top-1, all regions at the same position", "{:.1%}"),
    CORRESPONDENCE: ("Correspondence: mean error, px at 1024", "{:.1f}"),
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
    environment.filters["megabytes"] = lambda number: f"{number / 1e6:,.1f} MB"
    page = environment.get_template("template.html").render(build_context(params, Project(project_root)))
    write_text(out, page)


def build_context(params: ReportParams, project: Project) -> dict[str, Any]:
    """Everything that the template shows."""
    correspondence = project.evidence("correspondence")
    composition = project.evidence("composition")
    has_landmarks = project.properties["trained"][CORRESPONDENCE]["value"] is not None
    errors = {name: correspondence[f"{name}_errors"] for name in ENCODERS} if has_landmarks else {}
    for name, label in (("same_pixel", "same pixel"), ("affine_oracle", "best affine map (oracle)")):
        if has_landmarks:
            errors[label] = correspondence[f"{name}_errors"]
    return {
        "title": params.title,
        "style": (FOLDER / "style.css").read_text(encoding="utf-8"),
        "headlines": [_headline(headline, project.properties) for headline in HEADLINES],
        "figures": _figure_rows(project.properties),
        "has_landmarks": has_landmarks,
        "protocol": project.protocol,
        "pair": draw_pair(_sample(project.batches[0], params.seed), project.batches[0].spec, params.seed),
        "splits": SPLITS,
        "batches": [_batch(index) for index in project.batches],
        "phantom": project.phantom,
        "sheets": list(_sheets(project)),
        "curves": curve_panels(project.log, CURVES, params.smoothing_steps),
        "model": project.model_config,
        "erase": project.model_config["params"]["pretrain"]["augment"]["erase"],
        "density": density_plot(
            {name: (composition[f"{name}_true"], composition[f"{name}_mismatched"]) for name in ENCODERS}
        ),
        "composition": composition_example(composition),
        "decomposition": decomposition_examples(project.evidence("decomposition")),
        "correspondence": correspondence_examples(correspondence),
        "colours": colour_examples(correspondence),
        "error_curves": error_curves(errors, project.protocol["correspondence"]["success_px"]) if has_landmarks else "",
        "encoders": ENCODERS,
        "commit": project.commit,
        "versions": project.versions,
        "locked_outs": project.locked_outs,
        "params_text": project.params_text,
    }


def _headline(headline: Headline, properties: dict[str, Any]) -> dict[str, Any]:
    trained, untrained = (properties[name][headline.key] for name in ENCODERS)
    card: dict[str, Any] = {"title": headline.title, "question": headline.question, "anchor": headline.anchor}
    if trained["value"] is None:
        return card | {"reason": trained["reason"]}
    marks = {"chance": {"value": trained["chance"]}, "untrained": untrained, "trained": trained}
    for name, figure in properties.get("baselines", {}).get(headline.key, {}).items():
        marks[name.replace("_", " ")] = figure
    gain = properties["gain"][headline.key]
    top = max(float(figure.get("high", figure["value"])) for figure in marks.values())
    low = min(0.0, *(float(figure.get("low", figure["value"])) for figure in marks.values()))
    span = (max(1.0, top) if headline.key == "decompositionality" else top * 1.05) - low or 1.0

    def place(value: float) -> float:
        return round(100 * (value - low) / span, 2)

    return card | {
        "unit": headline.unit.format(batch=trained.get("batch")),
        "value": _with_interval(trained, headline.number)[0],
        "n": trained["n"],
        "is_better": gain["low"] > 0,
        "is_worse": gain["high"] < 0,
        "gain": _with_interval(gain, headline.number),
        "marks": [
            {
                "name": name,
                "text": _with_interval(figure, headline.number),
                "at": place(figure["value"]),
                "from": place(figure.get("low", figure["value"])),
                "to": place(figure.get("high", figure["value"])),
            }
            for name, figure in marks.items()
        ],
    }


def _figure_rows(properties: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for key, trained in properties["trained"].items():
        if trained["value"] is None:
            continue
        name, number = FIGURES.get(key, (key.replace("_", " ").capitalize(), "{:.1%}"))
        rows.append(
            {
                "name": name,
                "trained": _with_interval(trained, number),
                "untrained": _with_interval(properties["untrained"][key], number),
                "gain": _with_interval(properties["gain"][key], number),
                "chance": number.format(trained["chance"]),
                "n": trained["n"],
                "facts": ", ".join(f"{v} {k.removeprefix('num_')}" for k, v in trained.items() if k.startswith("num_")),
            }
        )
    for name, figure in properties.get("baselines", {}).get(CORRESPONDENCE, {}).items():
        label = f"… {name.replace('_', ' ')}, without any encoder"
        blank = {"untrained": ("", ""), "gain": ("", ""), "chance": "", "facts": ""}
        rows.append({"name": label, "trained": _with_interval(figure, "{:.1f}"), "n": figure["n"], **blank})
    return rows


def _with_interval(figure: dict[str, Any], number: str) -> tuple[str, str]:
    """The figure and its interval, which is empty if it has none."""
    names = [name for name in ("value", "low", "high") if name in figure]
    value, *ends = (number.format(figure[name]).replace("-", "\N{MINUS SIGN}") for name in names)
    return value, f"[{', '.join(ends)}]" if ends else ""


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
    folders = [(project.root / "data/phantom", *phantom)]
    folders += [(index.root, index.name, shards) for index in project.batches]
    for folder, name, text in folders:
        path = folder / "contact_sheet.png"
        if path.is_file():
            with Image.open(path) as image:
                picture = data_uri(np.asarray(image.convert("RGB")), kind="jpeg", max_px=CONTACT_SHEET_PX)
            yield {"name": name, "text": text, "image": picture}
