"""The built-in dataset as a source (layout: shards/phantom)."""

import json
import math
from pathlib import Path

from shards.core.errors import SourceError
from shards.core.records import File, MaskFiles, Record
from shards.sources.base import Listing, SourceInfo, parse_label
from shards.sources.csv_tables import read_columns, read_rows, with_lines

_ID_COLUMNS = ("image_id", "patient_id", "study_id", "view")
_SPACING_COLUMN = "detector_spacing_mm"
_DESCRIPTIVE_COLUMNS = ("finding_side", _SPACING_COLUMN)
_LANDMARK_COLUMNS = ("image_id", "landmark", "row", "col")
_LAYOUT = "dataset.json, labels.csv, landmarks.csv, images/<image_id>.png, masks/<structure>/<image_id>.png"


INFO = SourceInfo(
    name="phantom",
    title="The built-in dataset: radiographs of one real chest CT, warped into virtual patients",
    modality="chest X-ray (rendered)",
    num_images=None,
    num_patients=None,
    tasks=("segmentation", "classification", "landmarks", "correspondence"),
    licence="as its CT's (shards/phantom/asset/NOTICE)",
    is_redistributable=True,
    citation="docs/phantom.md",
    pages=("docs/phantom.md",),
    layout=f"nothing: `python -m shards phantom` writes {_LAYOUT}",
)


class PhantomSource:
    """Images, exact masks and landmarks of virtual patients; grey, with ids that hide nobody."""

    info = INFO

    def read(self, root: Path) -> Listing:
        """List one record per row of labels.csv, by image id.

        Raises:
            SourceError: a file of the layout is missing, images and rows are not the same set, or a value is none that
                its column may have.
        """
        return Listing(records=_PhantomFolder(root).records(), patient_grouping="patient")


SOURCE = PhantomSource()


class _PhantomFolder:
    def __init__(self, root: Path) -> None:
        self._root = root

    def records(self) -> tuple[Record, ...]:
        self._check_description()
        rows = read_rows(self._root / "labels.csv", _ID_COLUMNS, "the phantom's labels")
        self._check_images([row["image_id"] for row in rows])
        landmarks, masks = self._landmarks(), self._masks()
        records = (
            Record(
                source_id=row["image_id"],
                image=File(f"images/{row['image_id']}.png"),
                patient=row["patient_id"],
                study=row["study_id"] or None,
                view=row["view"] or None,
                labels={
                    name: parse_label(value, f"labels.csv: {row['image_id']}: {name}")
                    for name, value in row.items()
                    if name not in (*_ID_COLUMNS, *_DESCRIPTIVE_COLUMNS)
                },
                spacing_mm=_pair(row.get(_SPACING_COLUMN, ""), f"labels.csv: {row['image_id']}"),
                masks=masks.get(row["image_id"], {}),
                landmarks=landmarks.get(row["image_id"], {}),
            )
            for row in rows
        )
        return tuple(sorted(records, key=lambda record: record.source_id))

    def _check_description(self) -> None:
        path = self._root / "dataset.json"
        try:
            json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise SourceError(
                f"{self._root}: no phantom dataset: {path} is missing or no JSON. Looked for {_LAYOUT}; "
                "`python -m shards phantom` writes them"
            ) from None

    def _check_images(self, listed: list[str]) -> None:
        found = {path.stem for path in (self._root / "images").glob("*.png")}
        only_listed, only_found = sorted(set(listed) - found), sorted(found - set(listed))
        if only_listed or only_found or len(set(listed)) != len(listed) or not listed:
            raise SourceError(
                f"{self._root}: images/*.png and labels.csv must name the same images, each once: {len(found)} files, "
                f"{len(listed)} rows, without a file: {only_listed[:3]}, without a row: {only_found[:3]}; "
                "run `python -m shards phantom` again"
            )

    def _landmarks(self) -> dict[str, dict[str, tuple[float, float]]]:
        path = self._root / "landmarks.csv"
        points: dict[str, dict[str, tuple[float, float]]] = {}
        rows = read_columns(path, _LANDMARK_COLUMNS, "the phantom's landmarks")
        for number, (image, landmark, row, col) in with_lines(rows):
            try:
                point = float(row), float(col)
            except ValueError:
                raise SourceError(f"{path} line {number}: row and col must be numbers") from None
            points.setdefault(image, {})[landmark] = point
        return points

    def _masks(self) -> dict[str, dict[str, MaskFiles]]:
        masks: dict[str, dict[str, MaskFiles]] = {}
        for path in sorted((self._root / "masks").glob("*/*.png")):
            file = File(path.relative_to(self._root).as_posix())
            masks.setdefault(path.stem, {})[path.parent.name] = MaskFiles(files=(file,))
        return masks


def _pair(spacing: str, where: str) -> tuple[float, float] | None:
    """Return the spacing of both axes: pixels are square, so one number holds for both; a dataset may leave it out."""
    if not spacing:
        return None
    try:
        side_mm = float(spacing)
    except ValueError:
        side_mm = 0.0
    if not 0 < side_mm < math.inf:
        raise SourceError(f"{where}: {_SPACING_COLUMN} is {spacing!r}; expected millimetres above 0, or nothing")
    return side_mm, side_mm
