import io
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from shards.core.quality_params import NearCopyParams
from shards.quality.measure import measure
from shards.quality.near_duplicates import close_pairs, detail_correlation, find_copies_of, find_near_copies
from tests.support.datasets import QUALITY

PARAMS = NearCopyParams.from_params(QUALITY["near_copies"], "near_copies")


def reencoded(image: np.ndarray) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=60)
    return np.asarray(Image.open(file))


COPIES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "re-encoded": reencoded,
    "half the size": lambda image: cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA),
    "enlarged": lambda image: cv2.resize(image, None, fx=1.7, fy=1.7, interpolation=cv2.INTER_CUBIC),
    "brighter": lambda image: np.clip(image * 1.1 + 8, 0, 255).astype(np.uint8),
    "another gamma": lambda image: np.round(255 * (image / 255) ** 0.8).astype(np.uint8),
    "cropped": lambda image: image[3:-3, 3:-3],
    "padded to a square": lambda image: np.pad(image, ((0, 0), (40, 40))),
    "framed in grey": lambda image: np.pad(image, ((7, 50), (20, 0)), constant_values=128),
}


@st.composite
def clustered_hashes(draw: st.DrawFn) -> np.ndarray:
    """Some hashes, and some with a few bits of another one changed, so that pairs at every distance exist."""
    hashes = draw(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=6))
    for _ in range(draw(st.integers(0, 14))):
        flipped = draw(st.sets(st.integers(0, 63), max_size=10))
        hashes.append(draw(st.sampled_from(hashes)) ^ sum(1 << bit for bit in flipped))
    return np.array(hashes, np.uint64)


@given(clustered_hashes(), st.integers(0, 8))
def test_banding_finds_exactly_the_pairs_that_comparing_all_finds_each_once(hashes: np.ndarray, max_bits: int) -> None:
    values = [int(value) for value in hashes]
    expected = [
        (a, b) for a, b in combinations(range(len(values)), 2) if (values[a] ^ values[b]).bit_count() <= max_bits
    ]
    found = [
        pair
        for first, second in close_pairs(hashes, max_bits)
        for pair in zip(first.tolist(), second.tolist(), strict=True)
    ]
    assert sorted(found) == expected


def test_few_close_pairs_are_found_among_very_many_hashes() -> None:
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**64, 300_000, dtype=np.uint64)
    hashes[-40:] = hashes[:40] ^ np.uint64(0b1011 << 31)
    found = {
        pair for first, second in close_pairs(hashes, 4) for pair in zip(first.tolist(), second.tolist(), strict=True)
    }
    assert found == {(number, 300_000 - 40 + number) for number in range(40)}


def thumbnail(image: np.ndarray) -> np.ndarray:
    return np.asarray(measure(image, b"", {}, {}, is_burned_in=None).values["thumbnail"])


@pytest.mark.parametrize("name", COPIES)
def test_the_details_of_a_copy_agree(name: str, chests: list[np.ndarray]) -> None:
    found = [detail_correlation(thumbnail(image), thumbnail(COPIES[name](image))) for image in chests[:12]]
    assert min(found) > PARAMS.min_correlation


def test_the_details_of_different_patients_do_not_agree(chests: list[np.ndarray]) -> None:
    pictures = [thumbnail(image) for image in chests]
    found = [detail_correlation(first, second) for first, second in combinations(pictures[:16], 2)]
    assert max(found) < PARAMS.min_correlation - 0.1


@pytest.mark.parametrize("name", COPIES)
def test_copies_are_found_among_all_images_and_nothing_else(name: str, chests: list[np.ndarray]) -> None:
    images = [*chests, *(COPIES[name](image) for image in chests[:10])]
    values = np.array([measure(image, b"", {}, {}, is_burned_in=None).values for image in images])
    found = find_near_copies(
        values["hashes"],
        np.arange(len(images)),
        lambda rows: values["thumbnail"][rows],
        PARAMS,
        lambda first, second: np.ones(len(first), bool),
    )
    pairs = set(zip(found.first.tolist(), found.second.tolist(), strict=True))
    expected = {(number, len(chests) + number) for number in range(10)}
    assert pairs <= expected
    assert len(pairs) >= 9
    assert found.correlation.min() > PARAMS.min_correlation


@pytest.mark.parametrize("name", COPIES)
def test_copies_of_chosen_images_are_those_that_a_search_among_all_finds(name: str, chests: list[np.ndarray]) -> None:
    images = [*chests, *(COPIES[name](image) for image in chests[:10])]
    values = np.array([measure(image, b"", {}, {}, is_burned_in=None).values for image in images])
    hashes, patients = values["hashes"], np.arange(len(images))
    others, chosen = np.arange(len(chests)), np.arange(len(chests), len(images))[::-1]

    def read(rows: np.ndarray) -> np.ndarray:
        return np.asarray(values["thumbnail"][rows])

    def is_between(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        return np.asarray((first < len(chests)) != (second < len(chests)))

    expected = find_near_copies(hashes, patients, read, PARAMS, is_between)
    found = find_copies_of(chosen, others, hashes, patients, read, PARAMS)
    assert len(found.first) >= 9
    pairs = sorted(zip(found.first.tolist(), found.second.tolist(), strict=True))
    assert pairs == list(zip(expected.first.tolist(), expected.second.tolist(), strict=True))


def test_two_images_of_one_patient_need_more_agreement(chests: list[np.ndarray]) -> None:
    images = [chests[0], COPIES["brighter"](chests[0])]
    values = np.array([measure(image, b"", {}, {}, is_burned_in=None).values for image in images])
    bounds = PARAMS.model_copy(update={"min_correlation_of_patient": 1.0})
    for patients, expected in (([0, 1], 1), ([0, 0], 0)):
        found = find_near_copies(
            values["hashes"],
            np.array(patients),
            lambda rows: values["thumbnail"][rows],
            bounds,
            lambda first, second: np.ones(len(first), bool),
        )
        assert len(found.first) == expected


def test_a_flat_picture_agrees_with_none() -> None:
    flat = np.full((64, 64), 90, np.uint8)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    assert detail_correlation(flat, noise) < 0.5
    assert detail_correlation(flat, flat) < 0.5


def many_candidates(chests: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Hashes and pictures of forty images, all of one hash: 780 candidates, two of them copies."""
    images = [*chests[:19], *chests[:19], COPIES["brighter"](chests[20]), chests[20]]
    images[19:38] = [image[::-1] for image in chests[:19]]
    images[37] = COPIES["cropped"](chests[0])
    return np.zeros((40, 3), np.uint64), np.stack([thumbnail(image) for image in images])


def found_in(hashes: np.ndarray, pictures: np.ndarray, **settings: Any) -> list[tuple[int, int, float]]:
    found = find_near_copies(
        hashes,
        np.arange(len(hashes)),
        lambda rows: pictures[rows],
        PARAMS,
        lambda first, second: np.ones(len(first), bool),
        **settings,
    )
    return list(zip(found.first.tolist(), found.second.tolist(), found.correlation.tolist(), strict=True))


def test_many_candidates_are_compared_in_processes_with_the_same_result_and_a_bar(
    chests: list[np.ndarray], capsys: pytest.CaptureFixture[str]
) -> None:
    hashes, pictures = many_candidates(chests)
    alone = found_in(hashes, pictures, num_workers=1)
    assert [pair[:2] for pair in alone] == [(0, 37), (38, 39)]
    assert "780/780" in capsys.readouterr().err
    assert found_in(hashes, pictures, num_workers=2) == alone
    few = found_in(hashes[37:], pictures[37:])
    assert [pair[:2] for pair in few] == [(1, 2)]
    assert capsys.readouterr().err.count("780/780") == 1


def test_what_was_compared_before_a_kill_is_not_compared_again(chests: list[np.ndarray], tmp_path: Path) -> None:
    hashes, pictures = many_candidates(chests)
    settings = {"num_workers": 1, "finished": tmp_path / "compared"}
    first = found_in(hashes, pictures, **settings)
    kept = sorted((tmp_path / "compared").iterdir())
    assert len(kept) == 2
    for path in kept:
        np.save(path, np.where(np.load(path) > 0, 0.97, -1))
    assert [pair[2] for pair in found_in(hashes, pictures, **settings)] == [0.97] * len(first)
    kept[0].unlink()
    again = found_in(hashes, pictures, **settings)
    assert [pair[:2] for pair in again] == [pair[:2] for pair in first]
    assert {pair[2] for pair in again} <= {0.97, *(pair[2] for pair in first)}
    pictures[0] = pictures[1]
    changed = found_in(hashes, pictures, **settings)
    assert (0, 1) in [pair[:2] for pair in changed], "another picture is compared"
    assert (0, 37) not in [pair[:2] for pair in changed]
