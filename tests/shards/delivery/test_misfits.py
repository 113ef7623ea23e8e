"""How many images may have coordinates that were made for another size, before registering refuses them all."""

from pathlib import Path

import pytest

from shards.core.errors import SourceError
from shards.core.records import Box, File, Record
from shards.delivery.survey import survey_images
from tests.support.datasets import grid_params, shard_params, write_folder

NUM_IMAGES = 6
INSIDE, OUTSIDE = (
    Box(label="nodule", row0=5.0, col0=5.0, row1=20.0, col1=20.0),
    Box(label="nodule", row0=5.0, col0=5.0, row1=900.0, col1=900.0),
)


def records(root: Path, num_misfits: int) -> list[Record]:
    """Images of 40 × 30 pixels with a box each; of so many the box lies far outside."""
    names = [f"{number}.png" for number in range(NUM_IMAGES)]
    write_folder(root, names)
    boxes = [OUTSIDE] * num_misfits + [INSIDE] * (NUM_IMAGES - num_misfits)
    return [
        Record(source_id=name, image=File(name), patient=name, boxes=(box,))
        for name, box in zip(names, boxes, strict=True)
    ]


@pytest.mark.parametrize("num_misfits", [1, NUM_IMAGES // 2])
def test_coordinates_that_fit_half_of_the_images_are_taken_with_a_warning(
    num_misfits: int, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    found = survey_images(tmp_path, records(tmp_path, num_misfits), grid_params(), shard_params())
    assert found.num_images == NUM_IMAGES
    assert f"do not fit {num_misfits} of the {NUM_IMAGES} images that have some" in capsys.readouterr().err


def test_coordinates_that_fit_fewer_than_half_of_the_images_are_refused(tmp_path: Path) -> None:
    num_misfits = NUM_IMAGES // 2 + 1
    with pytest.raises(SourceError, match=f"do not fit {num_misfits} of the {NUM_IMAGES} images"):
        survey_images(tmp_path, records(tmp_path, num_misfits), grid_params(), shard_params())


def test_coordinates_that_fit_all_images_are_taken_without_a_word(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    survey_images(tmp_path, records(tmp_path, 0), grid_params(), shard_params())
    assert "do not fit" not in capsys.readouterr().err
