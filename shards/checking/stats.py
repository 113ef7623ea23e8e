"""What is in a shard set, as a table for people and as one JSON object for programs."""

from typing import Any

from shards.build.publishing import annotation_warnings
from shards.identity import SPLITS
from shards.reading.reader import ShardIndex
from shards.runtime.text import table

_STATES = ("1", "0", "-1", "unknown")

_SPLIT_RULES = {
    "official": "where the dataset has splits of its own, patients are in those, and else in one by their hash",
    "hash": "patients are in splits by their hash",
}


def statistics_of(index: ShardIndex) -> dict[str, Any]:
    """Sizes, images, patients, labels, views, foreground and quarantine of a set."""
    values = index.values
    num_bytes = {split: sum(s["bytes"] for s in index.shards if s["split"] == split) for split in SPLITS}
    return {
        "batch": index.name,
        "dataset": values["dataset"],
        "image_format": values["image_format"],
        "channels": index.channels,
        "canvas_px": index.spec.canvas_px,
        "num_tars": {split: sum(s["split"] == split for s in index.shards) for split in SPLITS},
        "bytes": num_bytes,
        **values["counts"],
        **values["statistics"],
        "quarantined": values["quarantined"],
        **({"excluded": index.count_excluded()} if index.excluded else {}),
    }


def format_statistics(statistics: dict[str, Any]) -> str:
    """The same for a terminal."""
    dataset = statistics["dataset"]
    is_grouped = dataset["patient_grouping"] == "patient"
    lines = [
        f"{statistics['batch']}: {dataset['kind']}, {statistics['canvas_px']} px canvases, {statistics['channels']} "
        f"channel(s), {statistics['image_format']}, mean {_number(statistics['mean'])}, "
        f"std {_number(statistics['std'])} of the training foreground",
        f"patients are {'known' if is_grouped else 'unknown: every image stands alone'}; "
        f"{_SPLIT_RULES[dataset['split_rule']]}",
    ]
    if dataset["shares_images_with"]:
        lines.append(f"some images are also in {', '.join(dataset['shares_images_with'])}")
    if "selection" in dataset:
        lines.append(_selection(dataset["selection"]))
    rows = [
        ("images", [f"{statistics['images'][split]:,}" for split in SPLITS]),
        ("patients", [f"{statistics['patients'][split]:,}" if is_grouped else "unknown" for split in SPLITS]),
        ("tars", [f"{statistics['num_tars'][split]:,}" for split in SPLITS]),
        ("megabytes", [f"{statistics['bytes'][split] / 1e6:,.1f}" for split in SPLITS]),
        ("foreground", [_number(statistics["foreground"][split]) for split in SPLITS]),
        *((f"view {view}", cells) for view, cells in _by_split(statistics["views"])),
    ]
    lines += ["", table([["", *SPLITS], *([name, *cells] for name, cells in rows)])]
    labels = sorted({name for split in SPLITS for name in statistics["labels"][split]})
    if labels:
        cells = [[name, *(_states(statistics["labels"][split].get(name, {})) for split in SPLITS)] for name in labels]
        lines += ["", table([["label: present / absent / uncertain / unknown", *SPLITS], *cells])]
    reasons = statistics["quarantined"]["reasons"]
    lines += ["", f"quarantined: {statistics['quarantined']['count']}"]
    lines += [f"  {count:,} × {reason}" for reason, count in reasons.items()]
    if "excluded" in statistics:
        counts = ", ".join(f"{split} {number:,}" for split, number in statistics["excluded"].items())
        total = sum(statistics["excluded"].values())
        lines.append(f"excluded, in the shards and read by nothing: {total:,} images ({counts})")
    lines += [f"warning: {warning}" for warning in annotation_warnings(statistics)]
    return "\n".join(lines)


def _selection(selection: dict[str, Any]) -> str:
    """Of the images that were listed when the batch was registered, those that its rules took."""
    rules = {rule: v if isinstance(v, str) else ",".join(v) for rule, v in selection["rules"].items()}
    num_taken = selection["num_listed"] - sum(selection["left_out"].values())
    lost = "".join(f"; {number:,} not {rule}={rules[rule]}" for rule, number in selection["left_out"].items())
    kept = "".join(f"; {number:,} kept, {rule} unknown" for rule, number in selection["unknown"].items())
    words = ", ".join(f"{rule}={value}" for rule, value in rules.items())
    return f"selected by {words}: {num_taken:,} of {selection['num_listed']:,} images of the delivery{lost}{kept}"


def _by_split(views: dict[str, dict[str, int]]) -> list[tuple[str, list[str]]]:
    names = sorted({name for split in SPLITS for name in views[split]})
    return [(name, [f"{views[split].get(name, 0):,}" for split in SPLITS]) for name in names]


def _states(counts: dict[str, int]) -> str:
    return " / ".join(f"{counts.get(state, 0):,}" for state in _STATES)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
