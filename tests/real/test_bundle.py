"""A MONAI bundle's own preprocessing gives the pixels that `embed` gives to the network, of real images."""

from pathlib import Path

import pytest

from tests.ace.inference.test_bundle_preprocessing import assert_same_pixels
from tests.real.data import DATA, needs

pytestmark = [*needs("nih-original"), *needs("idrid-768")]


@pytest.mark.parametrize("path", sorted((DATA / "nih-original/images").glob("*.png"))[::4], ids=lambda path: path.stem)
def test_of_radiographs(path: Path) -> None:
    assert_same_pixels(path)


@pytest.mark.parametrize("path", sorted((DATA / "idrid-768/images").glob("*.jpg"))[:6], ids=lambda path: path.stem)
def test_of_fundus_photographs(path: Path) -> None:
    assert_same_pixels(path)
