"""A gallery: the images of a shard set with all that the set says of them, as one page that needs no network."""

import base64
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jinja2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from shards.build.contact_sheet import colour_of, with_structures
from shards.core.errors import IndexFormatError
from shards.quality.report import QUALITY
from shards.reading.reader import Sample, ShardIndex, ShardReader
from shards.runtime.progress import progress

THUMBNAIL_PX = 192
PAGE_SIZE = 100
"""Images of a page."""
_COLUMNS = ("key", "split", "view", "verdict", "reason", "group")
_JPEG_QUALITY = 80


@dataclass(frozen=True, kw_only=True)
class Card:
    """One image of the gallery: nothing in it names a patient or a file.

    Attributes:
        key: Key of its sample.
        split: Split of its patient.
        view: A code.
        picture: A thumbnail, as an address that holds it; empty for an image that is not in the shards.
        outlines: Masks, boxes and landmarks on nothing, likewise; empty where there are none.
        labels: Findings that are there, and uncertain ones with a question mark.
        structures: Masks, boxes and landmarks: colour and text.
        flags: Remarks of the quality pass, and annotations that were lost.
    """

    key: str
    split: str
    view: str | None
    picture: str = ""
    outlines: str = ""
    labels: tuple[str, ...] = ()
    structures: tuple[dict[str, str], ...] = ()
    flags: tuple[str, ...] = ()


def render_gallery(index: ShardIndex, folder: Path, max_images: int) -> str:
    """Render the page as HTML: copies side by side first, then what is suspect or quarantined, then all others.

    Args:
        index: The shard set.
        folder: Folder of the shard set; its quality report is read there.
        max_images: Number of images to show; of a set with more the others are thinned out evenly.

    Raises:
        IndexFormatError: the set or its quality report is damaged.
    """
    row_of = {key.decode(): row for row, key in enumerate(index.rows["key"])}
    excluded = (row_of.keys() - index.keys(index.select("all"))) | index.excluded.keys
    rows = [row for row in _read_report(folder / QUALITY) if row["key"] not in excluded]
    chosen = _choose(rows, max_images)
    reader = ShardReader(index)
    cards: list[tuple[str | None, Card]] = []
    for row in progress(chosen, total=len(chosen), description="gallery", unit="image"):
        number = row_of.get(row["key"])
        cards.append((row["group"], _card(row, None if number is None else reader.read(number))))
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    return environment.get_template("gallery.html").render(
        name=index.name,
        thumbnail_px=THUMBNAIL_PX,
        summary=_summary(rows, chosen),
        pages=[{"number": number, "blocks": blocks} for number, blocks in enumerate(_pages(_blocks(cards)), start=1)],
    )


def _read_report(path: Path) -> list[dict[str, Any]]:
    try:
        rows: list[dict[str, Any]] = pq.read_table(path, columns=list(_COLUMNS)).to_pylist()
    except (OSError, pa.ArrowException):
        raise IndexFormatError(
            f"{path}: found no quality report; restore the shard set with `dvc checkout`, or build it again"
        ) from None
    return rows


def _choose(rows: Sequence[dict[str, Any]], max_images: int) -> list[dict[str, Any]]:
    """Choose rows to show: groups of copies, then suspect ones, quarantined ones, and as many others as may be."""
    groups: dict[str, list[dict[str, Any]]] = {}
    parts: dict[str, list[dict[str, Any]]] = {"suspect": [], "quarantined": [], "kept": []}
    for row in rows:
        own = parts[row["verdict"]] if row["group"] is None else groups.setdefault(row["group"], [])
        own.append(row)
    flagged = [row for group in groups.values() for row in group] + parts["suspect"] + parts["quarantined"]
    flagged, others = flagged[:max_images], parts["kept"]
    num_others = min(len(others), max_images - len(flagged))
    spread = np.linspace(0, len(others) - 1, num_others).round().astype(int)
    return [*flagged, *(others[position] for position in spread)]


def _summary(rows: Sequence[dict[str, Any]], chosen: Sequence[dict[str, Any]]) -> str:
    counts = {verdict: sum(row["verdict"] == verdict for row in rows) for verdict in ("kept", "suspect", "quarantined")}
    num_groups = len({row["group"] for row in rows} - {None})
    words = ", ".join(f"{number:,} {verdict}" for verdict, number in counts.items())
    shown = "all of them" if len(chosen) == len(rows) else f"{len(chosen):,} of them"
    return f"{len(rows):,} images ({words}; {num_groups:,} groups of copies); {shown} on this page."


def _card(row: dict[str, Any], sample: Sample | None) -> Card:
    flags = () if row["verdict"] == "kept" and not row["reason"] else (f"{row['verdict']}: {row['reason']}",)
    if sample is None:
        return Card(key=row["key"], split=row["split"], view=row["view"], flags=flags)
    plain = Image.fromarray(sample.image).resize((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.LANCZOS)
    lost = tuple(f"lost: {loss['name']}: {loss['reason']}" for loss in sample.meta.get("lost", []))
    structures = tuple(_structures(sample))
    marks = {1: "{}", -1: "{}?"}
    return Card(
        key=row["key"],
        split=row["split"],
        view=row["view"],
        picture=_address_of(plain, "JPEG"),
        outlines=_outlines(sample) if structures else "",
        labels=tuple(marks[value].format(name) for name, value in sample.meta["labels"].items() if value in marks),
        structures=structures,
        flags=(*flags, *lost),
    )


def _structures(sample: Sample) -> Iterator[dict[str, str]]:
    """Yield the entries of one image's legend."""
    masks = {name: name if mask.any() else f"({name})" for name, mask in sorted(sample.masks().items())}
    boxes = {box["label"]: f"box {box['label']}" for box in sample.meta["boxes"]}
    for name, text in (*masks.items(), *boxes.items()):
        yield {"text": text, "colour": "#{:02x}{:02x}{:02x}".format(*colour_of(name))}
    if sample.landmarks:
        yield {"text": f"landmarks: {len(sample.landmarks)}", "colour": "#ffffff"}


def _outlines(sample: Sample) -> str:
    drawn = np.array(with_structures(sample, Image.new("RGB", (THUMBNAIL_PX, THUMBNAIL_PX))))
    is_drawn = drawn.any(axis=2, keepdims=True)
    return _address_of(Image.fromarray(np.concatenate([drawn, 255 * is_drawn.astype(np.uint8)], axis=2)), "PNG")


def _address_of(picture: Image.Image, kind: Literal["JPEG", "PNG"]) -> str:
    data = io.BytesIO()
    picture.save(data, kind, quality=_JPEG_QUALITY, optimize=True)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(data.getvalue()).decode()}"


def _blocks(cards: Iterable[tuple[str | None, Card]]) -> Iterator[list[Card]]:
    """Yield cards of one group together, others alone."""
    block: list[Card] = []
    last: str | None = None
    for group, card in cards:
        if block and (group is None or group != last):
            yield block
            block = []
        block.append(card)
        last = group
    if block:
        yield block


def _pages(blocks: Iterable[list[Card]]) -> list[list[list[Card]]]:
    """Divide blocks into pages of about a hundred images; a group is on one page."""
    pages: list[list[list[Card]]] = [[]]
    for block in blocks:
        if pages[-1] and sum(map(len, pages[-1])) + len(block) > PAGE_SIZE:
            pages.append([])
        pages[-1].append(block)
    return pages
