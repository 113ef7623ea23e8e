"""A MONAI bundle's own preprocessing gives the pixels that `embed` gives to the network."""

import io
import runpy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from ace.embed.preprocessing import Preprocessing
from ace.inference import bundle_preprocessing
from ace.inference.bundle_preprocessing import find_images, place
from ace.inference.images import to_pixels

SIZES = [(90, 60), (61, 90), (100, 33), (64, 64), (1, 40), (200, 127)]
SETTINGS = [  # side, channels, trim level
    *((64, 1, None), (64, 3, None), (64, 1, 25), (64, 3, 25), (33, 3, 10)),
]


def picture(size: tuple[int, int], channels: int, top: int = 255) -> np.ndarray:
    """A picture with dark edges, of which one has some dust."""
    width, height = size
    rng = np.random.default_rng(width)
    levels = rng.integers(0, top + 1, (height, width, channels))
    levels[: height // 5] = 0
    levels[:, -(width // 4) - 1 :] = 0
    levels[0, 0] = top
    return levels if channels > 1 else levels[..., 0]


def saved(image: Image.Image, folder: Path, ending: str = "png", **options: object) -> Path:
    path = folder / f"image.{ending}"
    image.save(path, **options)
    return path


def assert_same_pixels(path: Path) -> None:
    for side, channels, trim_level in SETTINGS:
        preprocessing = Preprocessing(
            crop_px=side, channels=channels, trim_level=trim_level, mean=(0.5,), std=(0.25,), normalisation="custom"
        )
        with Image.open(path) as image:
            found = place(image, side=side, channels=channels, trim_level=trim_level)
        np.testing.assert_array_equal(np.asarray(found), preprocessing.place(to_pixels(path)))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P", "1"])
def test_a_png_becomes_the_same_pixels(mode: str, size: tuple[int, int], tmp_path: Path) -> None:
    whole = Image.fromarray(picture(size, 4).astype(np.uint8), "RGBA")
    opaque = whole.convert("RGB") if mode in ("1", "P") else whole
    assert_same_pixels(saved(opaque.convert(mode), tmp_path))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("top", [4095, 65535, 300, 1])
def test_deep_grey_becomes_the_same_pixels(top: int, size: tuple[int, int], tmp_path: Path) -> None:
    assert_same_pixels(saved(Image.fromarray(picture(size, 1, top).astype(np.uint16)), tmp_path))


def test_deep_grey_of_one_value_and_a_black_picture_become_the_same_pixels(tmp_path: Path) -> None:
    assert_same_pixels(saved(Image.fromarray(np.full((40, 30), 700, np.uint16)), tmp_path))
    assert_same_pixels(saved(Image.new("L", (40, 30)), tmp_path))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["png", "jpg"])
def test_a_turned_picture_becomes_the_same_pixels(ending: str, orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.new("RGB", (90, 60))
    ImageDraw.Draw(image).polygon([(10, 10), (80, 20), (30, 50)], fill=(200, 90, 40))
    assert_same_pixels(saved(image, tmp_path, ending, exif=exif))


def test_an_orientation_of_xmp_turns_nothing(tmp_path: Path) -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    image = Image.fromarray(picture((90, 60), 3).astype(np.uint8))
    assert_same_pixels(saved(image, tmp_path, "jpg", xmp=xmp))


def test_colour_of_16_bits_is_refused_for_pillow_keeps_8(tmp_path: Path) -> None:
    import cv2

    path = tmp_path / "deep.png"
    cv2.imwrite(str(path), picture((90, 60), 3, 65535).astype(np.uint16))
    with Image.open(path) as image, pytest.raises(ValueError, match=r"deep\.png: colour of 16 bits"):
        place(image, side=64, channels=3, trim_level=None)


def test_images_are_found_in_a_folder_of_any_name_but_hidden_ones_and_others(tmp_path: Path) -> None:
    folder = tmp_path / "chest [1]"
    folder.mkdir()
    for name in ("b.PNG", "a.jpeg", "c.jpg", "._a.jpeg", "notes.txt", "d.dcm"):
        (folder / name).touch()
    assert [Path(path).name for path in find_images(str(folder))] == ["a.jpeg", "b.PNG", "c.jpg"]
    with pytest.raises(ValueError, match=r"found no image; expected files that end in \.png, \.jpg, \.jpeg"):
        find_images(str(tmp_path))


def test_it_needs_nothing_of_this_package() -> None:
    lines = Path(bundle_preprocessing.__file__).read_text().splitlines()
    imported = {line.split()[1].partition(".")[0] for line in lines if line.startswith(("import ", "from "))}
    assert imported == {"os", "pathlib", "numpy", "PIL"}
    own = runpy.run_path(bundle_preprocessing.__file__)
    data = io.BytesIO()
    Image.new("L", (9, 5), 7).save(data, "PNG")
    assert own["place"](Image.open(data), side=9, channels=1, trim_level=None).getextrema() == (0, 7)
