import hashlib
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from scipy.fft import dctn

from shards.quality.measure import ImageMeasures, measure, perceptual_hash, standardized
from tests.support.datasets import smooth_image
from tests.support.strategies import grey_images


def measured(grey: np.ndarray, **changes: object) -> ImageMeasures:
    settings = {"encoded": b"", "areas": {}, "labels": {}, "is_burned_in": None, **changes}
    return measure(grey, **settings)  # type: ignore[arg-type]


def entropy_bits(grey: np.ndarray) -> float:
    """By counting, level by level."""
    shares = [np.count_nonzero(grey == level) / grey.size for level in range(256)]
    return -sum(share * math.log2(share) for share in shares if share)


def shown(grey: np.ndarray) -> np.ndarray:
    """The pixels that stand out from a dark background, where that is more than half of the image; else all."""
    dark = grey <= np.quantile(grey, 0.05, method="inverted_cdf") + np.int64(8)
    return grey[~dark] if 0.5 < dark.mean() <= 0.98 else grey.ravel()


@given(grey_images())
def test_grey_levels_are_measured_as_numpy_measures_them(grey: np.ndarray) -> None:
    values = measured(grey).values
    grey = shown(grey)
    assert values["mean"] == pytest.approx(grey.mean(), abs=1e-3)
    assert values["std"] == pytest.approx(grey.std(), abs=1e-3)
    assert values["entropy_bits"] == pytest.approx(entropy_bits(grey), abs=1e-4)
    assert (values["darkest"], values["brightest"]) == (grey.min(), grey.max())
    assert values["num_levels"] == len(np.unique(grey))
    assert values["black"] == pytest.approx((grey == 0).mean())
    assert values["white"] == pytest.approx((grey == 255).mean())
    assert values["one_level"] == pytest.approx(max((grey == level).mean() for level in np.unique(grey)))


def test_the_levels_of_a_large_image_are_those_of_every_nth_row() -> None:
    grey = np.random.default_rng(0).integers(0, 200, (1600, 40), dtype=np.uint8)
    values = measured(grey).values
    assert values["std"] == pytest.approx(grey[::6].std(), abs=1e-3)
    assert values["entropy_bits"] == pytest.approx(entropy_bits(grey[::6]), abs=1e-4)
    assert values["std"] == pytest.approx(grey.std(), rel=0.01)


def test_the_pixel_hash_is_that_of_the_samples_image() -> None:
    grey = np.zeros((8, 8), np.uint8)
    digest = hashlib.sha256(b"a canvas").digest()
    assert measured(grey, encoded=b"a canvas").values["pixels"].tobytes() == digest[:16]


@pytest.mark.parametrize("seed", range(5))
def test_the_perceptual_hash_is_the_low_frequencies_above_their_median(seed: int) -> None:
    picture = np.random.default_rng(seed).integers(0, 256, (128, 128), dtype=np.uint8)
    shrunk = np.round(picture.reshape(32, 4, 32, 4).mean(axis=(1, 3)))
    low = dctn(shrunk, norm="ortho")[:8, :8].ravel()
    distance = low - np.median(low[1:])
    found = np.array([perceptual_hash(picture) >> bit & 1 for bit in reversed(range(64))], bool)
    is_clear = np.abs(distance) > 0.5
    assert is_clear.sum() > 50
    assert np.array_equal(found[is_clear], (distance > 0)[is_clear])


@given(grey_images(), grey_images())
def test_the_product_of_standardised_pictures_is_their_correlation(first: np.ndarray, second: np.ndarray) -> None:
    second = np.resize(second, first.shape)
    product = float((standardized(first) * standardized(second)).sum())
    if first.std() < 1 or second.std() < 1:
        assert abs(product) <= 1 + 1e-4
    else:
        assert product == pytest.approx(np.corrcoef(first.ravel(), second.ravel())[0, 1], abs=1e-3)


@pytest.mark.parametrize("width", [0, 9])
def test_a_flat_frame_is_no_part_of_what_is_compared_but_counts_among_the_levels(width: int) -> None:
    picture = smooth_image(70, 60, 3)
    plain, framed = (
        measure(image, b"", {}, {}, is_burned_in=None).values
        for image in (picture, np.pad(picture, width, constant_values=5))
    )
    assert np.array_equal(plain["thumbnail"], framed["thumbnail"])
    assert np.array_equal(plain["hashes"], framed["hashes"])
    assert framed["one_level"] >= 1 - picture.size / (70 + 2 * width) / (60 + 2 * width)


@pytest.mark.parametrize(("share", "counts"), [(0.4, True), (0.6, False), (0.97, False), (0.99, True), (1.0, True)])
def test_a_dark_background_counts_unless_it_is_most_of_an_image_that_shows_something(
    share: float, counts: bool
) -> None:
    rng = np.random.default_rng(0)
    grey = rng.integers(60, 200, (100, 100), dtype=np.uint8)
    grey[: round(100 * share)] = rng.integers(3, 8, (round(100 * share), 100), dtype=np.uint8)
    values = measured(grey).values
    assert values["darkest"] == (3 if counts else 60)
    assert values["std"] == pytest.approx((grey if counts else grey[round(100 * share) :]).std(), abs=1e-3)


def test_a_small_spot_on_a_flat_picture_is_not_taken_for_a_framed_one() -> None:
    picture = np.zeros((64, 64), np.uint8)
    picture[30:34, 20:40] = 200
    assert np.array_equal(measure(picture, b"", {}, {}, is_burned_in=None).values["thumbnail"], picture)


def test_corners_centre_and_symmetry_of_a_drawn_image() -> None:
    grey = np.full((256, 128), 40, np.uint8)
    grey[:32, :16], grey[:32, -16:], grey[-32:, :16], grey[-32:, -16:] = 10, 20, 30, 40
    grey[64:192, 48:80] = 200
    values = measured(grey).values
    assert values["corners"] == 25
    assert values["centre"] == 200
    mirrored = (grey + grey[:, ::-1].astype(int)) // 2
    assert measured(mirrored.astype(np.uint8)).values["symmetry"] == pytest.approx(1, abs=1e-3)
    assert measured(np.tile(np.arange(128, dtype=np.uint8), (256, 1))).values["symmetry"] == pytest.approx(-1, abs=1e-3)


@pytest.mark.parametrize(
    ("label", "area", "contradicts"),
    [
        (1, 0.0, True),
        (1, 0.1, False),
        (0, 0.1, True),
        (0, 0.0, False),
        (-1, 0.1, False),
        (-1, 0.0, False),
        (None, 0.1, False),
    ],
)
def test_a_mask_contradicts_a_clear_label_only(label: int | None, area: float, contradicts: bool) -> None:
    found = measured(np.zeros((8, 8), np.uint8), areas={"nodule": area, "heart": 0.2}, labels={"nodule": label})
    assert [(item.name, item.area, item.contradicts) for item in found.structures] == [
        ("heart", 0.2, False),
        ("nodule", area, contradicts),
    ]


def test_what_the_header_says_of_burned_in_text_is_kept_in_three_states() -> None:
    grey = np.zeros((8, 8), np.uint8)
    assert [int(measured(grey, is_burned_in=flag).values["burned_in"]) for flag in (True, False, None)] == [1, 0, -1]


def test_measures_for_which_a_disk_has_no_room_are_an_error_that_says_so(tmp_path: Path) -> None:
    program = (
        "import resource, sys, numpy as np; from pathlib import Path; from shards.core.errors import NoSpaceError\n"
        "from shards.quality.measure import MEASURE_DTYPE, ImageMeasures\n"
        "from shards.quality.store import MeasureFiles, write_measured\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))\n"
        "files = MeasureFiles(Path(sys.argv[1]) / 'a.npy', Path(sys.argv[1]) / 'b.npy')\n"
        "try: write_measured(files, [ImageMeasures(np.zeros((), MEASURE_DTYPE)[()], ())] * 9)\n"
        "except NoSpaceError as error: print(error)\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True, timeout=60
    )
    assert answer.stdout.startswith(f"{tmp_path} (")
    assert "raise the limit on the size of a file" in answer.stdout
    assert not list(tmp_path.iterdir())
