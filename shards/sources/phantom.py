"""The built-in dataset as a source (layout: shards/phantom)."""

import json
from pathlib import Path
from typing import Any

from shards.errors import SourceError
from shards.params import PhantomSourceParams
from shards.sources.base import Record, parse_label, read_csv

_ID_COLUMNS = ("image_id", "patient_id", "study_id", "view")
_DESCRIPTIVE_COLUMNS = ("finding_side",)
_LANDMARK_COLUMNS = ("image_id", "landmark", "row", "col")
_LAYOUT = "dataset.json, labels.csv, landmarks.csv, images/<image_id>.png, masks/<structure>/<image_id>.png"


class PhantomSource:
    """Images, exact masks and landmarks of virtual patients; grey, with ids that hide nobody."""

    channels = 1
    has_public_ids = True

    def __init__(self, params: PhantomSourceParams) -> None:
        self._root = Path(params.dep)

    def records(self) -> list[Record]:
        """One record per row of labels.csv, by image id.

        Raises:
            SourceError: a file of the layout is missing, or images and rows are not the same set.
        """
        dataset = self._dataset()
        rows = read_csv(self._root / "labels.csv", _ID_COLUMNS, "the phantom's labels")
        self._check_images([row["image_id"] for row in rows])
        landmarks, masks = self._landmarks(), self._masks()
        spacing = dataset.get("spacing_mm")
        return sorted(
            (
                Record(
                    source_id=row["image_id"],
                    place=f"images/{row['image_id']}.png",
                    image=self._root / "images" / f"{row['image_id']}.png",
                    patient=row["patient_id"],
                    study=row["study_id"] or None,
                    view=row["view"] or None,
                    labels={
                        name: parse_label(value, f"labels.csv: {row['image_id']}: {name}")
                        for name, value in row.items()
                        if name not in (*_ID_COLUMNS, *_DESCRIPTIVE_COLUMNS)
                    },
                    spacing_mm=_pair(spacing),
                    masks=masks.get(row["image_id"], {}),
                    landmarks=landmarks.get(row["image_id"], {}),
                )
                for row in rows
            ),
            key=lambda record: record.source_id,
        )

    def _dataset(self) -> dict[str, Any]:
        path = self._root / "dataset.json"
        try:
            dataset = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise SourceError(
                f"{self._root}: no phantom dataset: {path} is missing or no JSON. Looked for {_LAYOUT}; "
                "`python -m shards phantom` writes them"
            ) from None
        return dict(dataset)

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
        places: dict[str, dict[str, tuple[float, float]]] = {}
        for number, row in enumerate(read_csv(path, _LANDMARK_COLUMNS, "the phantom's landmarks"), start=1):
            try:
                place = float(row["row"]), float(row["col"])
            except ValueError:
                raise SourceError(f"{path} row {number}: row and col must be numbers") from None
            places.setdefault(row["image_id"], {})[row["landmark"]] = place
        return places

    def _masks(self) -> dict[str, dict[str, Path]]:
        masks: dict[str, dict[str, Path]] = {}
        for path in sorted((self._root / "masks").glob("*/*.png")):
            masks.setdefault(path.stem, {})[path.parent.name] = path
        return masks


def _pair(spacing: float | list[float] | None) -> tuple[float, float] | None:
    """One number holds for both axes."""
    if spacing is None:
        return None
    row, col = spacing if isinstance(spacing, list) else (spacing, spacing)
    return float(row), float(col)
