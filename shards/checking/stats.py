"""Describe the content of a shard set: as a table for people, as one JSON object for programs."""

from typing import Any

from shards.build.publishing import annotation_warnings
from shards.core.identity import SPLITS
from shards.core.records import Split
from shards.format.index import SelectionDescription
from shards.reading.reader import ShardIndex
from shards.runtime.text import table

_STATES = ("1", "0", "-1", "unknown")

_SPLIT_RULES = {
    "official": "where the dataset has splits of its own, patients are in those, and else in one by their hash",
    "hash": "patients are in splits by their hash",
}


def statistics_of(index: ShardIndex) -> dict[str, Any]:
    """Return sizes, images, patients, labels, views, foreground and quarantine of a set, for programs."""
    about = index.description
    return {
        "batch": index.name,
        "dataset": about.dataset.to_json(),
        "image_format": about.image_format,
        "channels": index.channels,
        "canvas_px": index.spec.canvas_px,
        "num_tars": _num_tars(index),
        "bytes": _num_bytes(index),
        **about.counts.to_json(),
        **about.statistics.to_json(),
        "quarantined": about.quarantined.to_json(),
        **({"excluded": index.count_excluded()} if index.excluded else {}),
    }


def format_statistics(index: ShardIndex) -> str:
    """Write the same numbers as `statistics_of` as a table, for a terminal."""
    about = index.description
    counts, mean, std = about.counts, about.statistics.mean, about.statistics.std
    is_grouped = about.dataset.patient_grouping == "patient"
    lines = [
        f"{index.name}: {about.dataset.kind}, {index.spec.canvas_px} px canvases, {index.channels} "
        f"channel(s), {about.image_format}, mean {_number(mean)}, std {_number(std)} of the training foreground",
        f"patients are {'known' if is_grouped else 'unknown: images are split one by one'}; "
        f"{_SPLIT_RULES[about.dataset.split_rule]}",
    ]
    if about.dataset.shares_images_with:
        lines.append(f"some images are also in {', '.join(about.dataset.shares_images_with)}")
    if about.dataset.selection is not None:
        lines.append(_selection(about.dataset.selection))
    num_tars, num_bytes = _num_tars(index), _num_bytes(index)
    rows = [
        ("images", [f"{counts.images[split]:,}" for split in SPLITS]),
        ("patients", [f"{counts.patients[split]:,}" if is_grouped else "unknown" for split in SPLITS]),
        ("tars", [f"{num_tars[split]:,}" for split in SPLITS]),
        ("megabytes", [f"{num_bytes[split] / 1e6:,.1f}" for split in SPLITS]),
        ("foreground", [_number(counts.foreground[split]) for split in SPLITS]),
        *((f"view {view}", cells) for view, cells in _by_split(counts.views)),
    ]
    lines += ["", table([["", *SPLITS], *([name, *cells] for name, cells in rows)])]
    labels = sorted({name for split in SPLITS for name in counts.labels[split]})
    if labels:
        cells = [[name, *(_states(counts.labels[split].get(name, {})) for split in SPLITS)] for name in labels]
        lines += ["", table([["label: present / absent / uncertain / unknown", *SPLITS], *cells])]
    lines += ["", f"quarantined: {about.quarantined.count}"]
    lines += [f"  {count:,} × {reason}" for reason, count in about.quarantined.reasons.items()]
    if index.excluded:
        excluded = index.count_excluded()
        named = ", ".join(f"{split} {number:,}" for split, number in excluded.items())
        lines.append(f"excluded, in the shards and read by nothing: {sum(excluded.values()):,} images ({named})")
    lines += [f"warning: {warning}" for warning in annotation_warnings(counts)]
    return "\n".join(lines)


def _num_tars(index: ShardIndex) -> dict[Split, int]:
    return {split: sum(tar.split == split for tar in index.shards) for split in SPLITS}


def _num_bytes(index: ShardIndex) -> dict[Split, int]:
    return {split: sum(tar.bytes for tar in index.shards if tar.split == split) for split in SPLITS}


def _selection(selection: SelectionDescription) -> str:
    """Say how many of the images that were listed when the batch was registered its rules took."""
    words = {rule: v if isinstance(v, str) else ",".join(v) for rule, v in selection.rules.items()}
    num_taken = selection.num_listed - sum(selection.left_out.values())
    lost = "".join(f"; {number:,} not {rule}={words[rule]}" for rule, number in selection.left_out.items())
    kept = "".join(f"; {number:,} kept, {rule} unknown" for rule, number in selection.unknown.items())
    said = ", ".join(f"{rule}={value}" for rule, value in words.items())
    return f"selected by {said}: {num_taken:,} of {selection.num_listed:,} images of the delivery{lost}{kept}"


def _by_split(views: dict[Split, dict[str, int]]) -> list[tuple[str, list[str]]]:
    names = sorted({name for split in SPLITS for name in views[split]})
    return [(name, [f"{views[split].get(name, 0):,}" for split in SPLITS]) for name in names]


def _states(counts: dict[str, int]) -> str:
    return " / ".join(f"{counts.get(state, 0):,}" for state in _STATES)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
