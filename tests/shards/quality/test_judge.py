from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from shards.build.tar_files import TarFiles
from shards.core.quality_params import QualityParams, ViewMeanParams
from shards.quality.judge import MOST_PROTECTED_FIRST, Images, Judgement, Verdict, judge, mean_views
from shards.quality.measure import MEASURE_DTYPE, measure
from shards.quality.reasons import (
    BLANK,
    BRIGHT_CORNERS,
    BURNED_IN,
    CONTRADICTION,
    INVERTED,
    KEPT,
    LATERAL,
    ON_ITS_SIDE,
    SAME_PICTURE,
    SAME_PICTURE_ELSEWHERE,
    SAME_PIXELS,
    SATURATED,
    UNLIKE_ITS_VIEW,
    UPSIDE_DOWN,
)
from shards.quality.store import MeasureStore, write_measured
from tests.shards.quality.mammograms import mammogram
from tests.support.datasets import QUALITY, smooth_image

QUARANTINE = "quarantine"
TURNS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], str]] = {
    "by half": (lambda image: image[::-1, ::-1], UPSIDE_DOWN),
    "flipped": (lambda image: image[::-1], UPSIDE_DOWN),
    "to the left": (np.rot90, ON_ITS_SIDE),
    "to the right": (lambda image: np.rot90(image, 3), ON_ITS_SIDE),
}


def quality(**changes: dict[str, object]) -> QualityParams:
    values = {name: section | changes.get(name, {}) for name, section in QUALITY.items()}
    return QualityParams.from_params(values, "test: quality")


APART = quality(near_copies={"action": "ignore"})
"""For drawings, which are all alike."""


def store_of(pictures: Sequence[np.ndarray], folder: Path, *, burned_in: Sequence[int] = ()) -> MeasureStore:
    """As if each seven images were a tar."""
    measured = [
        measure(image, image.tobytes(), {}, {}, is_burned_in=number in burned_in)
        for number, image in enumerate(pictures)
    ]
    tars = []
    for start in range(0, len(measured), 7):
        tars.append(TarFiles(folder, f"{start}.tar").measures)
        write_measured(tars[-1], measured[start : start + 7])
    return MeasureStore(tuple(tars), folder / "compared")


def judged(
    pictures: Sequence[np.ndarray],
    folder: Path,
    *,
    splits: Sequence[str] | None = None,
    views: Sequence[str] | None = None,
    keys: Sequence[str] | None = None,
    contradicts: Sequence[int] = (),
    burned_in: Sequence[int] = (),
    kept: Sequence[int] = (),
    params: QualityParams | None = None,
) -> Judgement:
    store = store_of(pictures, folder, burned_in=burned_in)
    num = len(pictures)
    images = Images(
        keys=np.array(keys or [f"k{number:03d}" for number in range(num)]),
        patients=np.arange(num),
        ranks=np.array([MOST_PROTECTED_FIRST.index(split) for split in splits or ["train"] * num]),  # type: ignore[arg-type]
        views=np.array(views or ["PA"] * num),
        numbers=store.numbers(),
        contradicts=np.isin(np.arange(num), contradicts),
        is_kept=np.isin(np.arange(num), kept),
    )
    return judge(images, store, params or quality())


def noise(seed: int, size: int = 64) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (size, size), dtype=np.uint8)


def test_radiographs_of_different_patients_raise_no_alarm(chests: list[np.ndarray], tmp_path: Path) -> None:
    found = judged(chests, tmp_path)
    assert (found.verdicts, found.groups) == ({}, {})
    (mean,) = found.view_means
    assert (mean.view, mean.has_bright_corners) == ("PA", False)
    assert mean.num_images > 25
    assert mean.coherence > 0.7


def test_smooth_noise_has_no_common_appearance_and_nothing_of_it_is_quarantined(tmp_path: Path) -> None:
    found = judged([smooth_image(48, 48, seed) for seed in range(60)], tmp_path)
    assert {verdict.reason for verdict in found.verdicts.values()} <= {BRIGHT_CORNERS}
    assert len(found.verdicts) < 15
    assert (found.groups, found.view_means) == ({}, ())


def test_a_view_of_few_images_has_no_mean_and_judges_nobody(chests: list[np.ndarray], tmp_path: Path) -> None:
    symmetric = (chests[20].astype(int) + chests[20][:, ::-1]) // 2
    found = judged([*chests[:20], (255 - symmetric).astype(np.uint8)], tmp_path)
    assert found.view_means == ()
    assert found.verdicts == {20: Verdict(False, BRIGHT_CORNERS)}


@pytest.mark.parametrize("num_negatives", [1, 9])
def test_negatives_are_told_by_the_mean_of_their_view_even_where_they_are_many(
    num_negatives: int, chests: list[np.ndarray], tmp_path: Path
) -> None:
    pictures = [255 - image if number < num_negatives else image for number, image in enumerate(chests)]
    found = judged(pictures, tmp_path)
    assert found.verdicts == {number: Verdict(True, INVERTED) for number in range(num_negatives)}


def test_a_view_that_is_negative_as_a_whole_is_noticed(chests: list[np.ndarray], tmp_path: Path) -> None:
    found = judged([255 - image for image in chests], tmp_path)
    assert [mean.has_bright_corners for mean in found.view_means] == [True]


def test_laterals_are_remarked_on_among_frontals_and_among_others(
    chests: list[np.ndarray], laterals: list[np.ndarray], tmp_path: Path
) -> None:
    pictures = [*chests, *laterals]
    rows = range(len(chests), len(pictures))
    assert judged(pictures, tmp_path / "a").verdicts == {row: Verdict(False, LATERAL) for row in rows}
    unknown = judged(pictures, tmp_path / "b", views=[""] * len(pictures))
    assert unknown.verdicts == {row: Verdict(False, UNLIKE_ITS_VIEW) for row in rows}
    ignored = judged(pictures, tmp_path / "c", params=quality(lateral={"action": "ignore"}))
    assert ignored.verdicts == {}


@pytest.mark.parametrize("num_turned", [1, 5])
@pytest.mark.parametrize("turn", TURNS)
def test_turned_images_are_told_even_where_they_are_many(
    turn: str, num_turned: int, chests: list[np.ndarray], tmp_path: Path
) -> None:
    function, reason = TURNS[turn]
    pictures = [function(image) if number < num_turned else image for number, image in enumerate(chests)]
    found = judged(pictures, tmp_path)
    assert found.verdicts == {number: Verdict(True, reason) for number in range(num_turned)}


def test_an_image_left_for_right_is_no_negative_and_not_turned(chests: list[np.ndarray], tmp_path: Path) -> None:
    """Which images show which side may be unknown."""
    pictures = [mammogram(seed, "R" if seed % 5 == 0 else "L", "MLO") for seed in range(60)]
    found = judged(pictures, tmp_path / "a", views=["MLO"] * 60, params=APART)
    assert {verdict.reason for verdict in found.verdicts.values()} <= {UNLIKE_ITS_VIEW}
    mirrored = [image[:, ::-1] if number % 5 == 0 else image for number, image in enumerate(chests)]
    assert judged(mirrored, tmp_path / "b").verdicts == {}


@pytest.mark.parametrize("size", [1.0, 0.6, 0.45])
def test_mammograms_of_small_breasts_are_not_blank_and_those_of_one_side_not_negatives(
    size: float, tmp_path: Path
) -> None:
    views = [(side, view) for _ in range(30) for side in ("L", "R") for view in ("CC", "MLO")]
    pictures = [mammogram(number // 4, side, view, size) for number, (side, view) in enumerate(views)]  # type: ignore[arg-type]
    found = judged(pictures, tmp_path, views=[f"{side}-{view}" for side, view in views], params=APART)
    assert [mean.view for mean in found.view_means] == ["L-CC", "L-MLO", "R-CC", "R-MLO"]
    assert {verdict.reason for verdict in found.verdicts.values() if verdict.is_quarantined} == set()
    pictures[9] = 255 - pictures[9]
    found = judged(pictures, tmp_path / "b", views=[f"{side}-{view}" for side, view in views], params=APART)
    assert [row for row, verdict in found.verdicts.items() if verdict.is_quarantined] == [9]


def test_white_edges_and_black_labels_make_no_negatives_and_no_laterals(
    chests: list[np.ndarray], tmp_path: Path
) -> None:
    pictures = list(chests)
    pictures[3] = narrowed(chests[3], 0.22)
    pictures[4] = narrowed(chests[4], 0.3)
    pictures[5] = chests[5].copy()
    pictures[5][:50, :70] = pictures[5][130:, 60:] = 0
    assert judged(pictures, tmp_path).verdicts == {}


def narrowed(image: np.ndarray, share: float) -> np.ndarray:
    """Collimated at top and bottom, as some films are: what lies beyond shows through, nearly white."""
    edge = round(share * len(image))
    collimated = 235 + image // 13
    collimated[edge:-edge] = image[edge:-edge]
    return collimated


@pytest.mark.parametrize(
    ("pictures", "reason"),
    [("blank", BLANK), ("negative", INVERTED), ("upside down", UPSIDE_DOWN), ("exact", SAME_PIXELS)],
)
def test_what_a_person_keeps_is_remarked_on_and_judged_with_the_others(
    pictures: str, reason: str, chests: list[np.ndarray], tmp_path: Path
) -> None:
    bad = {
        "blank": np.full((160, 160), 90, np.uint8),
        "negative": 255 - chests[7],
        "upside down": chests[7][::-1],
        "exact": chests[8],
    }[pictures]
    images = [*chests[:7], bad, *chests[8:]]
    (row,) = [8] if pictures == "exact" else [7]
    assert judged(images, tmp_path / "judged").verdicts == {row: Verdict(True, reason)}
    kept = judged(images, tmp_path / "kept", kept=[row])
    assert [verdict.is_quarantined for verdict in kept.verdicts.values()] == [False]
    assert kept.verdicts[row].reason.split("; ")[0] == f"{KEPT}: {reason}"
    assert kept.verdicts[row].reason.count(KEPT) == 1


def test_blank_saturated_and_marked_images_are_quarantined_for_the_first_reason(tmp_path: Path) -> None:
    half_white = noise(0)
    half_white[:33] = 255
    four_levels = np.repeat(np.arange(4, dtype=np.uint8) * 60, 16 * 64).reshape(64, 64)
    pictures = [
        np.zeros((64, 64), np.uint8),
        128 + noise(1) // 32,
        four_levels,
        half_white,
        noise(2) // 9,
        noise(3),
        noise(4),
        noise(5),
    ]
    params = quality(inverted={"action": "ignore"})
    found = judged(pictures, tmp_path, burned_in=[5, 0], contradicts=[6, 0], params=params)
    reasons = {0: BURNED_IN, 1: BLANK, 2: BLANK, 3: SATURATED, 4: SATURATED, 5: BURNED_IN}
    assert found.verdicts == {
        **{row: Verdict(True, reason) for row, reason in reasons.items()},
        6: Verdict(False, CONTRADICTION),
    }


@pytest.mark.parametrize("section", ["blank", "saturated", "burned_in", "exact_copies", "near_copies", "masks"])
def test_every_check_can_be_switched_off_or_down(section: str, tmp_path: Path) -> None:
    white = noise(0)
    white[:40] = 255
    picture = smooth_image(96, 96, 1)
    pictures = [
        128 + noise(6) // 32,
        white,
        noise(1),
        noise(2),
        noise(2),
        picture,
        picture[1:-1, 1:-1],
        noise(3),
    ]
    arguments = {"burned_in": [2], "contradicts": [7], "splits": ["train"] * 6 + ["test"] * 2}
    checks = ("blank", "saturated", "burned_in", "exact_copies", "near_copies", "masks")
    everything = {"inverted": {"action": "ignore"}} | {key: {"action": QUARANTINE} for key in checks}
    whole = judged(pictures, tmp_path / "whole", params=quality(**everything), **arguments).verdicts  # type: ignore[arg-type]
    assert {row: verdict.is_quarantined for row, verdict in whole.items()} == dict.fromkeys((0, 1, 2, 4, 5, 7), True)
    for action, expected in (("remark", 6), ("ignore", 5)):
        params = quality(**everything | {section: {"action": action}})  # type: ignore[arg-type]
        found = judged(pictures, tmp_path / action, params=params, **arguments).verdicts  # type: ignore[arg-type]
        assert len(found) == expected
        assert sum(verdict.is_quarantined for verdict in found.values()) == 5


def test_of_exact_copies_the_one_in_the_most_protected_split_stays_then_the_first_key(tmp_path: Path) -> None:
    pictures = [noise(0), noise(1), noise(0), noise(1), noise(0)]
    found = judged(
        pictures, tmp_path, splits=["train", "train", "test", "train", "val"], keys=["a", "d", "c", "b", "e"]
    )
    assert found.verdicts == {row: Verdict(True, SAME_PIXELS) for row in (0, 4, 1)}
    assert found.groups == {0: 0, 2: 0, 4: 0, 1: 1, 3: 1}


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_of_near_copies_in_two_splits_the_training_image_goes(
    order: tuple[int, int], chests: list[np.ndarray], tmp_path: Path
) -> None:
    pair = [chests[0], chests[0][2:-2, 2:-2]]
    splits = [("train", "test")[number] for number in order]
    found = judged([*pair, *chests[1:4]], tmp_path, splits=[*splits, "train", "val", "test"])
    assert found.verdicts == {order.index(0): Verdict(True, SAME_PICTURE_ELSEWHERE)}
    assert found.groups == {0: 0, 1: 0}


def test_a_copy_of_a_copy_of_a_test_image_goes_too(chests: list[np.ndarray], tmp_path: Path) -> None:
    chain = [chests[0], chests[0][3:-3, 3:-3], chests[0][6:-6, 6:-6], chests[0][9:-9, 9:-9]]
    found = judged([*chain, *chests[1:4]], tmp_path, splits=["test", *["train"] * 6])
    assert found.verdicts == {row: Verdict(True, SAME_PICTURE_ELSEWHERE) for row in (1, 2, 3)}
    alone = judged([chain[0], chain[3]], tmp_path / "alone", splits=["test", "train"])
    assert alone.verdicts == {}, "the last of the chain is like its neighbour only"


def test_near_copies_within_a_split_are_both_remarked_on(chests: list[np.ndarray], tmp_path: Path) -> None:
    found = judged([*chests[:5], chests[3][2:-2, 2:-2]], tmp_path)
    assert found.verdicts == {row: Verdict(False, SAME_PICTURE) for row in (3, 5)}


def test_remarks_add_up(chests: list[np.ndarray], tmp_path: Path) -> None:
    found = judged([chests[0], chests[0][2:-2, 2:-2]], tmp_path, contradicts=[1])
    assert found.verdicts[1] == Verdict(False, f"{CONTRADICTION}; {SAME_PICTURE}")


def test_the_mean_of_a_view_is_that_of_its_usable_images(tmp_path: Path) -> None:
    base = smooth_image(64, 64, 0).astype(float)
    pictures = [np.clip(base + noise(seed) / 8 - 16, 0, 255).astype(np.uint8) for seed in range(20)]
    store = store_of([*pictures, noise(30), smooth_image(64, 64, 9)], tmp_path)
    is_usable = np.arange(22) != 20
    params = ViewMeanParams(min_images=10, min_coherence=0.5)
    (mean,), likeness = mean_views(np.array(["PA"] * 22), is_usable, store, params)
    assert mean.num_images == 20
    assert np.abs(mean.picture.astype(float) - np.mean(pictures, axis=0)).max() <= 1
    standard = [(picture - picture.mean()) / picture.std() for picture in pictures]
    expected = [np.corrcoef(np.mean(standard, axis=0).ravel(), picture.ravel())[0, 1] for picture in pictures]
    assert likeness.whole[:20] == pytest.approx(expected, abs=1e-3)
    assert mean.coherence == pytest.approx(np.median([*expected, likeness.whole[21]]), abs=1e-3)
    middles = [picture[12:52, 12:52] for picture in pictures]
    expected = [np.corrcoef(np.mean(standard, axis=0)[12:52, 12:52].ravel(), part.ravel())[0, 1] for part in middles]
    assert likeness.middle[:20] == pytest.approx(expected, abs=1e-3)


def test_measures_read_back_over_all_tars(tmp_path: Path) -> None:
    pictures = [noise(seed) for seed in range(17)]
    store = store_of(pictures, tmp_path)
    assert store.numbers()["mean"] == pytest.approx([picture.mean() for picture in pictures])
    assert "thumbnail" not in (store.numbers().dtype.names or ())
    rows = np.array([16, 0, 7, 6, 0])
    assert np.array_equal(store.thumbnails(rows), np.stack([pictures[row] for row in rows]))
    assert np.array_equal(np.concatenate(list(store.thumbnails_by_tar())), np.stack(pictures))


def test_a_batch_without_one_measured_image_is_judged_too(tmp_path: Path) -> None:
    files = TarFiles(tmp_path, "0.tar").measures
    write_measured(files, [])
    store = MeasureStore((files,), tmp_path / "compared")
    none = np.zeros(0, np.int64)
    images = Images(
        keys=none.astype(str),
        patients=none,
        ranks=none,
        views=none.astype(str),
        numbers=store.numbers(),
        contradicts=none > 0,
        is_kept=none > 0,
    )
    assert len(np.zeros(0, MEASURE_DTYPE)) == len(store.numbers())
    assert judge(images, store, quality()).verdicts == {}
