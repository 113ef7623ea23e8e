"""Shards hold what they held when their version was given; other bytes need another version, which builds all anew."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shards.build.plan import VERSION
from shards.core.canvas import Placement
from tests.support.datasets import folder_bytes
from tests.support.golden import Arrays, built, recorded

MAX_LEVELS = 1
"""What libraries may round otherwise on other processors."""


def differences(fields: object, arrays: Arrays, version: int) -> list[str]:
    """What differs from what shards of a version hold."""
    known_fields, known = recorded(version)
    found = [] if fields == known_fields else ["fields"]
    if arrays.keys() != known.keys():
        return [*found, "names of images and masks"]
    return found + [
        name
        for name, pixels in arrays.items()
        if pixels.shape != known[name].shape
        or np.abs(pixels.astype(np.int16) - known[name].astype(np.int16)).max(initial=0) > MAX_LEVELS
    ]


def test_shards_hold_what_their_version_says(tmp_path: Path) -> None:
    found = differences(*built(tmp_path), VERSION)
    assert not found, (
        f"{found} differ from shards of version {VERSION}. If that is meant, every batch has to be built anew: raise "
        "`shard` in versions.yaml and VERSION in shards/build/plan.py, and run `python -m tests.support.golden`"
    )


def test_another_interpolation_is_another_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Placement._place
    monkeypatch.setattr(Placement, "_place", lambda self, image, _: place(self, image, Image.Resampling.BILINEAR))
    assert differences(*built(tmp_path), VERSION)


def test_two_builds_on_one_machine_have_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        built(tmp_path / name)
    one, two = (folder_bytes(tmp_path / name / "sets") for name in ("one", "two"))
    assert len(one) > 5
    assert one == two
