"""Verdicts on the images of a batch: what is kept out of its shards, what is only remarked on, and which are copies."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64, UInt8, UInt64

from shards.core.quality_params import Action, QualityParams, ViewMeanParams
from shards.core.records import Split
from shards.quality.measure import THUMBNAIL_PX, corners_and_center, standardized
from shards.quality.near_duplicates import NearCopies, find_near_copies
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
from shards.quality.store import MeasureStore

MOST_PROTECTED_FIRST: tuple[Split, ...] = ("test", "val", "train")
"""Splits: of two copies the one in the earlier split stays, since leaving a test image out would change the measure."""
_FRONTAL = ("PA", "AP", "FRONTAL")
"""A view that begins so is frontal, as AP-HORIZONTAL."""

Rows = Int64[np.ndarray, "_"]
Flags = Bool[np.ndarray, "num_images"]
_MAD_TO_STD = 1.4826
_MIN_DEVIATION = 0.01
_MAX_DEVIATIONS_OF_MEAN = 3.0
_MIDDLE = slice(THUMBNAIL_PX * 3 // 16, -THUMBNAIL_PX * 3 // 16)
"""Rows and columns of the middle, five eighths of each side: collimation, labels and a fundus' corners lie beyond."""
_MAX_BLACK = 15
"""Grey level of a mean up to which it is black."""
_MIN_SYMMETRY = 0.4
"""Frontal chests and fundi are as good as mirror images of themselves; what is not says nothing by its corners."""


@dataclass(frozen=True, kw_only=True)
class Images:
    """Facts of a batch's measured images that the checks need, beside their thumbnails.

    Attributes:
        keys: Keys of the samples.
        patients: A number for each image, the same for images of one patient.
        ranks: Position of the split in `MOST_PROTECTED_FIRST`.
        views: Codes; empty where there is none.
        numbers: Fields of `MEASURE_DTYPE` but the thumbnail.
        contradicts: Some mask contradicts its label.
        is_kept: A person keeps it, whatever the checks say.
    """

    keys: np.ndarray
    patients: Int64[np.ndarray, "num_images"]
    ranks: Int64[np.ndarray, "num_images"]
    views: np.ndarray
    numbers: np.ndarray
    contradicts: Flags
    is_kept: Flags


@dataclass(frozen=True)
class Verdict:
    """On one image that is not beyond reproach.

    Attributes:
        is_quarantined: The image is kept out of the shards.
        reason: One of `shards.quality.reasons`, or several remarks joined by `; `.
    """

    is_quarantined: bool
    reason: str


@dataclass(frozen=True, kw_only=True)
class ViewMean:
    """The mean image of a view.

    Attributes:
        view: A code, as PA.
        num_images: Number of images that it was computed from.
        coherence: Median correlation of the view's images with it.
        picture: Mean of the thumbnails.
        has_bright_corners: Brighter at the corners than in the centre: is the whole view inverted?
    """

    view: str
    num_images: int
    coherence: float
    picture: UInt8[np.ndarray, "64 64"]
    has_bright_corners: bool


@dataclass(frozen=True, kw_only=True)
class Likeness:
    """Correlations of images with the mean of their view, NaN where there is no mean.

    Attributes:
        whole: Correlation of whole thumbnails, in [-1, 1].
        middle: Correlation of their middles with its middle.
        mirrored: Correlation with its mirror image, as a view of both sides has.
        white_outside: Correlation with it, and white where it is black, as the corners of a fundus may be.
        upside_down: Correlation with it turned by half or flipped, the greater one.
        on_its_side: Correlation with it turned by a quarter either way, mirrored or not, the greatest one.
    """

    whole: Float32[np.ndarray, "num_images"]
    middle: Float32[np.ndarray, "num_images"]
    mirrored: Float32[np.ndarray, "num_images"]
    white_outside: Float32[np.ndarray, "num_images"]
    upside_down: Float32[np.ndarray, "num_images"]
    on_its_side: Float32[np.ndarray, "num_images"]


@dataclass(frozen=True)
class Judgement:
    """Verdicts, copy groups and mean views of one batch.

    Attributes:
        verdicts: Row → verdict, for images that have one.
        groups: Row → first row of its group of copies, for images that are in one.
        view_means: Mean images of the views that have a common appearance.
    """

    verdicts: dict[int, Verdict]
    groups: dict[int, int]
    view_means: tuple[ViewMean, ...]


@dataclass(frozen=True)
class _Objection:
    rows: Rows
    reason: str
    action: Action


def judge(images: Images, store: MeasureStore, params: QualityParams, num_workers: int | None = None) -> Judgement:
    """Judge every image; what is quarantined for one reason does not count in the checks after it.

    Args:
        images: The batch.
        store: Reads thumbnails.
        params: Bounds and actions.
        num_workers: Processes that compare pictures; one a core if None.
    """
    objections = _overruled(_objections_to_pixels(images, params), images.is_kept)
    view_means, likeness = mean_views(images.views, _is_usable(objections, len(images.keys)), store, params.view_means)
    objections += _overruled(_objections_to_views(images, likeness, params), images.is_kept)
    exact = _exact_copies(images, _is_usable(objections, len(images.keys)))
    objections += _overruled([_Objection(exact[1], SAME_PIXELS, params.exact_copies.action)], images.is_kept)
    is_compared = _is_usable(objections, len(images.keys))
    is_compared[exact[1]] = False
    near = _near_copies(images, is_compared, store, params, num_workers)
    objections += _overruled(_objections_to_copies(images, near, params), images.is_kept)
    verdicts = _verdicts(objections)
    links = list(zip(near.first.tolist(), near.second.tolist(), strict=True))
    if params.exact_copies.action != "ignore":
        links += zip(exact[0].tolist(), exact[1].tolist(), strict=True)
    groups = _groups(links)
    return Judgement(verdicts, groups, view_means)


def _objections_to_pixels(images: Images, params: QualityParams) -> Iterator[_Objection]:
    """Check each image alone."""
    numbers, blank, saturated = images.numbers, params.blank, params.saturated
    yield _objection(numbers["burned_in"] == 1, BURNED_IN, params.burned_in.action)
    # The first reason counts: a flat white image is blank, one with a dark rest was cut off.
    yield _objection(numbers["std"] < blank.min_std, BLANK, blank.action)
    yield _objection(
        (numbers["white"] > saturated.max_white)
        | (numbers["black"] > saturated.max_black)
        | (numbers["brightest"] < saturated.min_brightest),
        SATURATED,
        saturated.action,
    )
    yield _objection(
        (numbers["one_level"] > blank.max_one_level)
        | (numbers["num_levels"] < blank.min_levels)
        | (numbers["entropy_bits"] < blank.min_entropy_bits),
        BLANK,
        blank.action,
    )
    yield _objection(images.contradicts, CONTRADICTION, params.masks.action)


def _overruled(objections: Iterable[_Objection], is_kept: Flags) -> list[_Objection]:
    """Turn quarantine into a remark for images that a person keeps."""
    found = []
    for objection in objections:
        if objection.action != "quarantine":
            found.append(objection)
            continue
        kept = is_kept[objection.rows]
        found.append(_Objection(objection.rows[~kept], objection.reason, objection.action))
        found.append(_Objection(objection.rows[kept], f"{KEPT}: {objection.reason}", "remark"))
    return found


def mean_views(
    views: np.ndarray, is_usable: Flags, store: MeasureStore, params: ViewMeanParams
) -> tuple[tuple[ViewMean, ...], Likeness]:
    """Compute the mean image of each view, and how much its images are like it.

    Robust: images far from the mean of all (negatives, other views) are left out of the mean that counts. Views with
    few images, or without a common appearance, have none.
    """
    means: list[ViewMean] = []
    large = [view for view in np.unique(views[is_usable]) if (is_usable & (views == view)).sum() >= params.min_images]
    members = {view: is_usable & (views == view) for view in large}
    first = _means(members, store)
    rough = _correlations({view: first[view][0][None] for view in large}, views, store, 1)[:, 0]
    kept = {}
    for view, member in members.items():
        middle, deviation = _middle_and_deviation(rough[member])
        kept[view] = member & (rough >= middle - _MAX_DEVIATIONS_OF_MEAN * deviation)
    second = _means(kept, store)
    references = {view: np.stack([*_turned(second[view][0]), _white_outside(second[view][1])]) for view in large}
    fine = _correlations(references, views, store, 9)
    coherent = {}
    for view in large:
        coherence = float(np.median(fine[members[view], 0]))
        if coherence < params.min_coherence:
            fine[views == view] = np.nan
            continue
        coherent[view], picture = second[view]
        means.append(
            ViewMean(
                view=str(view),
                num_images=int(kept[view].sum()),
                coherence=coherence,
                picture=picture,
                has_bright_corners=_has_bright_corners(picture),
            )
        )
    middles = {view: standardized(mean[_MIDDLE, _MIDDLE])[None] for view, mean in coherent.items()}
    of_middles = _correlations(middles, views, store, 1, _MIDDLE)[:, 0]
    upside_down, on_its_side = (fine[:, turns].max(axis=1) for turns in (slice(2, 4), slice(4, 8)))
    return tuple(means), Likeness(
        whole=fine[:, 0],
        middle=of_middles,
        mirrored=fine[:, 1],
        white_outside=fine[:, 8],
        upside_down=upside_down,
        on_its_side=on_its_side,
    )


def _turned(mean: Float64[np.ndarray, "64 64"]) -> Float64[np.ndarray, "8 64 64"]:
    """Turn a mean: as it is and mirrored; the same two upside down; the same four by a quarter."""
    upright = np.stack([mean, mean[:, ::-1]])
    both_ways = np.concatenate([upright, upright[:, ::-1]])
    return np.concatenate([both_ways, both_ways.swapaxes(1, 2)])


def _means(
    members: dict[str, Flags], store: MeasureStore
) -> dict[str, tuple[Float64[np.ndarray, "64 64"], UInt8[np.ndarray, "64 64"]]]:
    """Compute, for each view, the mean of its standardized thumbnails, and of the thumbnails as they are."""
    shape = (THUMBNAIL_PX, THUMBNAIL_PX)
    sums = {view: (np.zeros(shape), np.zeros(shape)) for view in members}
    start = 0
    for thumbnails in store.thumbnails_by_tar():
        stop = start + len(thumbnails)
        for view, member in members.items():
            chosen = thumbnails[member[start:stop]]
            sums[view][0][:] += standardized(chosen).sum(axis=0, dtype=np.float64)
            sums[view][1][:] += chosen.sum(axis=0, dtype=np.float64)
        start = stop
    return {
        view: (standardized(standard), np.round(plain / members[view].sum()).astype(np.uint8))
        for view, (standard, plain) in sums.items()
    }


def _white_outside(picture: UInt8[np.ndarray, "64 64"]) -> Float64[np.ndarray, "64 64"]:
    white: Float64[np.ndarray, "64 64"] = standardized(np.where(picture <= _MAX_BLACK, 255.0, picture))
    return white


def _correlations(
    references: Mapping[str, Float64[np.ndarray, "num_references height width"]],
    views: np.ndarray,
    store: MeasureStore,
    num_references: int,
    part: slice = slice(None),
) -> Float32[np.ndarray, "num_images num_references"]:
    """Correlate each image, or the same part of its rows and columns, with each reference of its view."""
    correlations = np.full((len(views), num_references), np.nan, np.float32)
    start = 0
    for thumbnails in store.thumbnails_by_tar():
        stop = start + len(thumbnails)
        for view, pictures in references.items():
            rows = start + np.flatnonzero(views[start:stop] == view)
            shown = standardized(thumbnails[rows - start][:, part, part])
            for number, picture in enumerate(pictures):
                correlations[rows, number] = (shown * picture).sum(axis=(1, 2))
        start = stop
    return correlations


def _middle_and_deviation(values: Float32[np.ndarray, "num"]) -> tuple[float, float]:
    """Return the median, and the standard deviation that a normal distribution of this median distance from it has."""
    middle = float(np.median(values))
    return middle, max(_MAD_TO_STD * float(np.median(np.abs(values - middle))), _MIN_DEVIATION)


def _has_bright_corners(picture: UInt8[np.ndarray, "64 64"]) -> bool:
    corners, center = corners_and_center(picture)
    return corners > center


def _objections_to_views(images: Images, likeness: Likeness, params: QualityParams) -> list[_Objection]:
    """Check each image against those of its view.

    What explains an image best counts: that it is turned, a negative, of the other side, or white around the picture.
    """
    whole, middle = likeness.whole, likeness.middle
    is_known = ~np.isnan(whole)
    turned = np.maximum(likeness.upside_down, likeness.on_its_side)
    gain = turned - np.maximum(whole, likeness.mirrored)
    is_turned = (turned > params.turned.min_correlation) & (gain > params.turned.min_gain) & (turned > -whole)
    is_upside_down = is_turned & (likeness.upside_down >= likeness.on_its_side)
    is_positive = np.maximum(likeness.mirrored, likeness.white_outside) > -whole
    is_inverted = (np.maximum(whole, middle) < params.inverted.max_correlation) & ~is_positive & ~is_turned
    is_far = is_known & ~is_turned & ~is_inverted
    for part in (whole, middle):
        is_far &= _deviations(part, images.views) > params.lateral.min_deviations
    is_like_none = np.maximum(whole, middle) < params.lateral.max_correlation
    is_lateral = is_far & is_like_none & _is_frontal(images.views)
    is_symmetric = images.numbers["symmetry"] > _MIN_SYMMETRY
    has_bright_corners = ~is_known & is_symmetric & (images.numbers["corners"] > images.numbers["centre"])
    return [
        _objection(is_upside_down, UPSIDE_DOWN, params.turned.action),
        _objection(is_turned & ~is_upside_down, ON_ITS_SIDE, params.turned.action),
        _objection(is_inverted, INVERTED, params.inverted.action),
        _objection(is_lateral, LATERAL, params.lateral.action),
        _objection(is_far & ~is_lateral, UNLIKE_ITS_VIEW, _remark(params.lateral.action)),
        _objection(has_bright_corners, BRIGHT_CORNERS, _remark(params.inverted.action)),
    ]


def _deviations(
    correlations: Float32[np.ndarray, "num_images"], views: np.ndarray
) -> Float32[np.ndarray, "num_images"]:
    """Return how many robust standard deviations each image lies below the median of its view."""
    deviations = np.full(len(correlations), np.nan, np.float32)
    for view in np.unique(views[~np.isnan(correlations)]):
        member = views == view
        middle, deviation = _middle_and_deviation(correlations[member])
        deviations[member] = (middle - correlations[member]) / deviation
    return deviations


def _is_frontal(views: np.ndarray) -> Flags:
    upper = np.char.upper(views)
    frontal: Flags = np.logical_or.reduce([np.char.startswith(upper, name) for name in _FRONTAL])
    return frontal


def _remark(action: Action) -> Action:
    """Return a check's action on images that are suspect, but below its bound for quarantine."""
    return "ignore" if action == "ignore" else "remark"


def _exact_copies(images: Images, is_usable: Flags) -> tuple[Rows, Rows]:
    """Find images with the same pixels: (the one that stays, its copy); the first by split, then by key, stays."""
    rows = np.flatnonzero(is_usable)
    rows = rows[np.lexsort((images.keys[rows], images.ranks[rows]))]
    pixels: UInt64[np.ndarray, "num 2"] = images.numbers["pixels"][rows]
    _, first, group = np.unique(pixels, axis=0, return_index=True, return_inverse=True)
    original = rows[first[group.ravel()]]
    is_copy = original != rows
    return original[is_copy], rows[is_copy]


def _near_copies(
    images: Images, is_compared: Flags, store: MeasureStore, params: QualityParams, num_workers: int | None
) -> NearCopies:
    """Find near copies among images of different pixels."""
    rows = np.flatnonzero(is_compared if params.near_copies.action != "ignore" else np.zeros_like(is_compared))
    found = find_near_copies(
        images.numbers["hashes"][rows],
        images.patients[rows],
        lambda chosen: store.thumbnails(rows[chosen]),
        params.near_copies,
        lambda first, second: np.ones(len(first), bool),
        finished=store.compared,
        num_workers=num_workers,
    )
    return NearCopies(rows[found.first], rows[found.second], found.correlation)


def _objections_to_copies(images: Images, near: NearCopies, params: QualityParams) -> list[_Objection]:
    """Object to copies outside their group's most protected split; where that one has several, they are remarked on.

    A whole group counts, not its pairs: a copy of a copy may be too far from the first to be recognised.
    """
    groups = _groups(list(zip(near.first.tolist(), near.second.tolist(), strict=True)))
    rows, firsts = (np.array(list(values), np.int64) for values in (groups.keys(), groups.values()))
    ranks = images.ranks[rows]
    most_protected = {first: int(ranks[firsts == first].min()) for first in set(firsts.tolist())}
    is_elsewhere = ranks > np.array([most_protected[first] for first in firsts.tolist()], np.int64)
    num_alike = Counter(firsts[~is_elsewhere].tolist())
    has_twin = np.array([num_alike[first] > 1 for first in firsts.tolist()], bool)
    return [
        _Objection(rows[is_elsewhere], SAME_PICTURE_ELSEWHERE, params.near_copies.action),
        _Objection(rows[~is_elsewhere & has_twin], SAME_PICTURE, "remark"),
    ]


def _objection(mask: Flags, reason: str, action: Action) -> _Objection:
    return _Objection(np.flatnonzero(mask), reason, action)


def _is_usable(objections: list[_Objection], num_images: int) -> Flags:
    """Tell which images no check has quarantined yet."""
    usable = np.ones(num_images, bool)
    for objection in objections:
        if objection.action == "quarantine":
            usable[objection.rows] = False
    return usable


def _verdicts(objections: list[_Objection]) -> dict[int, Verdict]:
    """Sum up objections: the first reason for quarantine, or all remarks."""
    verdicts: dict[int, Verdict] = {}
    for objection in objections:
        for row in objection.rows.tolist() if objection.action == "quarantine" else []:
            verdicts.setdefault(row, Verdict(True, objection.reason))
    for objection in objections:
        for row in objection.rows.tolist() if objection.action == "remark" else []:
            known = verdicts.get(row)
            if known is None:
                verdicts[row] = Verdict(False, objection.reason)
            elif not known.is_quarantined and objection.reason not in known.reason.split("; "):
                verdicts[row] = Verdict(False, f"{known.reason}; {objection.reason}")
    return dict(sorted(verdicts.items()))


def _groups(links: list[tuple[int, int]]) -> dict[int, int]:
    """Map each linked row to the smallest row that links lead to."""
    root: dict[int, int] = {}

    def find(row: int) -> int:
        while root.setdefault(row, row) != row:
            root[row] = root[root[row]]
            row = root[row]
        return row

    for a, b in links:
        first, second = sorted((find(a), find(b)))
        root[second] = first
    return {row: find(row) for row in sorted(root)}
