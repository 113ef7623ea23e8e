"""Boxes of real radiographs in the official layout of NIH ChestX-ray14."""

from pathlib import Path

import pytest
from PIL import Image

from shards.core.errors import SourceError
from shards.core.records import Record
from shards.decode.annotations import misfit_of
from shards.delivery.survey import survey_images
from shards.sources.datasets.nih_chestxray14 import SOURCE
from tests.real.data import DATA, needs
from tests.support.datasets import grid_params, shard_params

pytestmark = needs("nih-original")
ROOT = DATA / "nih-original"


def with_boxes() -> list[Record]:
    return [record for record in SOURCE.read(ROOT).records if record.boxes]


def survey(root: Path, records: list[Record]) -> None:
    survey_images(root, records, grid_params(), shard_params(max_source_megapixels=2.0))


def test_boxes_fit_the_published_images(capsys: pytest.CaptureFixture[str]) -> None:
    records = with_boxes()
    assert len(records) == 4
    assert {misfit_of(record, (1024, 1024)) for record in records} == {None}
    survey(ROOT, records)
    assert "warning" not in capsys.readouterr().err


def test_boxes_do_not_fit_copies_of_half_the_size(tmp_path: Path) -> None:
    records = with_boxes()
    for record in records:
        path = tmp_path / record.image.path
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.open(ROOT / record.image.path).convert("L").resize((512, 512)).save(path)
    with pytest.raises(SourceError, match=r"do not fit 4 of the 4 images .* 512 x 512 pixels, .* of 1024 x 1024"):
        survey(tmp_path, records)
