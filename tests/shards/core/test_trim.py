"""Dark edges are cut off wherever an image is placed: in shards, in the survey, and before an encoder."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import ace
from shards.build.stage import build_shards
from shards.core.canvas import Placement
from shards.core.records import Record
from shards.delivery.survey import survey_images
from shards.reading.reader import ShardIndex, ShardReader
from shards.sources.datasets.folder import FolderSource
from tests.ace.inference.models import write_model
from tests.support.datasets import Here, folder_params, grid_params, shard_params, smooth_image

FRAME = (11, 4), (23, 7)


def write(root: Path, *, is_framed: bool) -> Path:
    root.mkdir()
    for number in range(12):
        image = np.maximum(smooth_image(40, 30, number), 30)
        Image.fromarray(np.pad(image, FRAME) if is_framed else image).save(root / f"{number}.png")
    return root


def canvases(root: Path, trim_level: int | None) -> list[np.ndarray]:
    source = folder_params(root, root.parent / "manifests" / f"{root.name}.jsonl")
    out, grid = root.parent / f"{root.name}-{trim_level}", grid_params(trim_level=trim_level)
    build_shards(
        out.name,
        source,
        grid,
        shard_params(splits={"train": 1.0, "val": 0.0, "test": 0.0}),
        out,
        execution=Here(),
    )
    index = ShardIndex.open(out)
    assert index.spec.trim_level == trim_level
    reader = ShardReader(index)
    return sorted((reader.read(row).image for row in range(len(index.rows))), key=lambda image: image.tobytes())


def test_framed_images_have_the_canvases_of_the_images_alone(tmp_path: Path, id_key: str) -> None:
    framed, alone = write(tmp_path / "framed-b000", is_framed=True), write(tmp_path / "alone-b000", is_framed=False)
    expected = canvases(alone, None)
    assert all(map(np.array_equal, canvases(framed, 25), expected))
    assert not any(map(np.array_equal, canvases(framed, None), expected))


def test_framed_images_are_measured_as_the_images_alone(tmp_path: Path) -> None:
    framed, alone = write(tmp_path / "framed", is_framed=True), write(tmp_path / "alone", is_framed=False)

    def survey(root: Path, trim_level: int | None) -> object:
        records: list[Record] = list(FolderSource().read(root).records)
        return survey_images(root, records, grid_params(trim_level=trim_level), shard_params()).normalisation

    assert survey(framed, 25) == survey(alone, None)
    assert survey(framed, None) != survey(alone, None)


def test_an_encoder_that_was_trained_so_sees_a_new_image_without_its_frame(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["params"]["grid"]["trim_level"] = 25
    (folder / "config.json").write_text(json.dumps(config))
    model = ace.load(folder, device="cpu")
    alone = np.maximum(smooth_image(90, 70, 0), 30)
    framed = np.pad(alone, FRAME)
    assert model.embed(framed).embedding.equal(model.embed(alone).embedding)
    assert (
        Placement.of(framed, 64, None).place_image(framed).tobytes()
        != Placement.of(framed, 64, 25).place_image(framed).tobytes()
    )
    assert model.describe()["trim_level"] == 25


@pytest.mark.parametrize("level", [None, 0, 25])
def test_the_parameter_reaches_the_grid(level: int | None) -> None:
    assert grid_params(trim_level=level).spec.trim_level == level
