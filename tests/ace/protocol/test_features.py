"""The feature store gives back what was encoded, in chunks, under a name that says what it depends on."""

import json
from pathlib import Path

import numpy as np
import pytest

from ace.protocol import features
from ace.protocol.dense import dense_features, location_axis
from ace.protocol.features import CANVASES_PER_CHUNK, CanvasView, Features, views_of, write_features
from shards.core.errors import ConfigError
from tests.ace.properties.constructed import SPEC, embedder, map_cohort, place

AXIS = location_axis(SPEC, 2, 1)
SUBJECTS = map_cohort(CANVASES_PER_CHUNK + 2).subjects
CANVASES = {view: item.canvas for view, item in zip(views_of(item.key for item in SUBJECTS), SUBJECTS, strict=True)}


def test_every_canvas_is_read_back_as_it_was_encoded(tmp_path: Path) -> None:
    written = write_features(tmp_path, embedder(place), AXIS, CANVASES, {"weights": "a"})
    opened = Features.open(written.folder)
    for view, canvas in CANVASES.items():
        np.testing.assert_array_equal(opened.of(view), dense_features(embedder(place), canvas, AXIS))
    assert len(list(written.folder.glob("*.npy"))) == 2
    assert all(isinstance(chunk, np.memmap) for chunk in opened.chunks.values())


def test_a_mirrored_canvas_is_encoded_mirrored(tmp_path: Path) -> None:
    view = CanvasView(SUBJECTS[0].key, is_mirrored=True)
    found = write_features(tmp_path, embedder(place), AXIS, {view: SUBJECTS[0].canvas}, {}).of(view)
    mirrored = np.ascontiguousarray(SUBJECTS[0].canvas[:, ::-1])
    np.testing.assert_array_equal(found, dense_features(embedder(place), mirrored, AXIS))
    assert not np.allclose(found, dense_features(embedder(place), SUBJECTS[0].canvas, AXIS))


def test_the_folder_is_named_by_what_the_tokens_depend_on(tmp_path: Path) -> None:
    few = dict(list(CANVASES.items())[:1])
    names = [
        write_features(tmp_path / str(number), embedder(place), AXIS, few, depends_on).folder.name
        for number, depends_on in enumerate(({"a": 1, "b": 2}, {"b": 2, "a": 1}, {"a": 1, "b": 3}))
    ]
    assert names[0] == names[1] != names[2]
    index = json.loads((tmp_path / "2" / names[2] / "index.json").read_text())
    assert index["depends_on"] == {"a": 1, "b": 3}


def test_a_killed_writer_leaves_no_folder_that_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encode, done = features.dense_features, []

    def killed(*arguments: object) -> np.ndarray:
        if len(done) == CANVASES_PER_CHUNK:
            raise KeyboardInterrupt
        done.append(1)
        return encode(*arguments)

    monkeypatch.setattr(features, "dense_features", killed)
    with pytest.raises(KeyboardInterrupt):
        write_features(tmp_path, embedder(place), AXIS, CANVASES, {})
    (folder,) = tmp_path.iterdir()
    with pytest.raises(ConfigError, match=r"index\.json: not found"):
        Features.open(folder)


def test_a_canvas_that_nobody_asked_for_is_an_error(tmp_path: Path) -> None:
    few = dict(list(CANVASES.items())[:1])
    written = write_features(tmp_path, embedder(place), AXIS, few, {})
    with pytest.raises(ConfigError, match="no dense tokens of 'elsewhere'"):
        written.of(CanvasView("elsewhere"))
