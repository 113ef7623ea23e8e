"""Pictures that are one picture: candidates by perceptual hash, without comparing all pairs; then by their details."""

import hashlib
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations, pairwise
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int64, UInt8, UInt64

from shards.core.quality_params import NearCopyParams
from shards.quality.measure import standardized
from shards.quality.store import ReadThumbnails, Thumbnails
from shards.runtime.atomic import atomic_path
from shards.runtime.parallel import map_in_processes
from shards.runtime.progress import progress_bar

Rows = Int64[np.ndarray, "_"]

_HASH_BITS = 64
_PAIRS_AT_ONCE = 512
_PAIRS_IN_MEMORY = 2**22
"""Candidates that are gathered before their repeats go."""
_BAND_PX = (1.0, 4.0)
_MIN_UNALIGNED = 0.85
"""Correlation of this band below which aligning is not tried. On the phantom copies cropped by 2 % of each side have
.88 and more; of the pairs of patients with like hashes one in sixteen has as much."""
_DETAIL_PX = 2.0
_ALIGNMENT = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 50, 1e-6)
_EDGE_PX = 2


@dataclass(frozen=True)
class NearCopies:
    """Pairs of rows, the smaller first, in order.

    Attributes:
        first: Rows.
        second: Rows.
        correlation: Correlation of their details, in [-1, 1].
    """

    first: Rows
    second: Rows
    correlation: Float[np.ndarray, "num"]


def find_near_copies(
    hashes: UInt64[np.ndarray, "num_images num_hashes"],
    patients: Int64[np.ndarray, "num_images"],
    thumbnails: ReadThumbnails,
    params: NearCopyParams,
    is_wanted: Callable[[Rows, Rows], Bool[np.ndarray, "num"]],
    *,
    finished: Path | None = None,
    num_workers: int | None = None,
) -> NearCopies:
    """Find all pairs of images that show the same picture.

    Args:
        hashes: Perceptual ones; two images are candidates if the first of one is close to any of the other.
        patients: A number for each image, the same for images of one patient.
        thumbnails: Reads pictures.
        params: Bounds.
        is_wanted: Tells which pairs of rows are worth comparing.
        finished: Folder for what has been compared, so that a run that is killed goes on.
        num_workers: Processes that compare where there are many candidates; one a core if None.
    """
    pairs = _candidates(hashes, params.max_bits, is_wanted)
    return _judge(pairs, patients, thumbnails, params, finished, num_workers)


def find_copies_of(
    chosen: Rows,
    others: Rows,
    hashes: UInt64[np.ndarray, "num_images num_hashes"],
    patients: Int64[np.ndarray, "num_images"],
    thumbnails: ReadThumbnails,
    params: NearCopyParams,
) -> NearCopies:
    """Find all pairs of a few chosen images and many others that show the same picture.

    The time grows with the product of both numbers, not with the square of their sum.

    Args:
        chosen: Rows.
        others: Rows.
        hashes: Perceptual hashes, as `find_near_copies` takes them.
        patients: A number for each image, the same for images of one patient.
        thumbnails: Reads pictures.
        params: Bounds of the comparison.
    """
    num_bits = params.max_bits
    pairs = [np.zeros((0, 2), np.int64)]
    for row in chosen:
        own, theirs = hashes[row], hashes[others]
        is_close = (np.bitwise_count(theirs ^ own[0]) <= num_bits).any(axis=1)
        for part in own[1:]:
            is_close |= np.bitwise_count(theirs[:, 0] ^ part) <= num_bits
        found = others[is_close]
        pairs.append(np.sort(np.stack([np.full(len(found), row), found], axis=1), axis=1))
    return _judge(np.concatenate(pairs), patients, thumbnails, params, None, None)


def _judge(
    pairs: Int64[np.ndarray, "num_pairs 2"],
    patients: Int64[np.ndarray, "num_images"],
    thumbnails: ReadThumbnails,
    params: NearCopyParams,
    finished: Path | None,
    num_workers: int | None,
) -> NearCopies:
    """Keep the candidates whose details are the same."""
    first, second = pairs.T
    parts = [pairs[start : start + _PAIRS_AT_ONCE] for start in range(0, len(pairs), _PAIRS_AT_ONCE)]
    comparisons = (_Comparison.of(part, thumbnails, finished) for part in parts)
    found = map_in_processes(_compare, comparisons, 1 if len(parts) < 2 else num_workers)
    correlation = np.full(len(pairs), -1.0)
    with progress_bar(total=len(pairs), description="compare", unit="pair", show=len(parts) > 1) as bar:
        for part, values in zip(parts, found, strict=True):
            correlation[bar.n : bar.n + len(part)] = values
            bar.update(len(part))
    is_one_patient = patients[first] == patients[second]
    bounds = np.where(is_one_patient, params.min_correlation_of_patient, params.min_correlation)
    is_copy = correlation >= bounds
    return NearCopies(first[is_copy], second[is_copy], correlation[is_copy])


def close_pairs(hashes: UInt64[np.ndarray, "num"], max_bits: int) -> Iterator[tuple[Rows, Rows]]:
    """Yield every pair of positions whose hashes differ in at most `max_bits` bits, each once, in chunks.

    The bits are cut into max_bits + 2 bands. Two hashes that differ in max_bits bits agree in at least two bands, so
    they stand together when sorted by these; of all the bands in which a pair agrees the first two count. What agrees
    in two bands by chance is a fraction 4^-(64 / (max_bits + 2)) of all pairs.
    """
    num_bands = max_bits + 2
    ends = np.linspace(0, _HASH_BITS, num_bands + 1).round().astype(int).tolist()
    masks = [np.uint64(((1 << (stop - start)) - 1) << start) for start, stop in pairwise(ends)]
    for chosen in combinations(range(num_bands), 2):
        keys = hashes & (masks[chosen[0]] | masks[chosen[1]])
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        starts = np.arange(len(keys))
        for distance in range(1, len(keys)):
            starts = starts[starts + distance < len(keys)]
            starts = starts[keys[starts] == keys[starts + distance]]
            if not len(starts):
                break
            left, right = order[starts], order[starts + distance]
            different = hashes[left] ^ hashes[right]
            is_close = np.bitwise_count(different) <= max_bits
            for band in range(chosen[1]):
                if band not in chosen:
                    is_close &= (different & masks[band]) != 0
            if is_close.any():
                yield np.minimum(left, right)[is_close], np.maximum(left, right)[is_close]


def detail_correlation(first: UInt8[np.ndarray, "side side"], second: UInt8[np.ndarray, "side side"]) -> float:
    """Correlate two pictures' fine structure where they overlap, after an affine map of one onto the other.

    Chests of different people are alike as a whole and differ in detail; a crop moves the details. 0 where the
    alignment does not converge.
    """
    fixed, moving = first.astype(np.float32), second.astype(np.float32)
    size = fixed.shape[::-1]
    try:
        _, affine = cv2.findTransformECC(
            fixed, moving, np.eye(2, 3, dtype=np.float32), cv2.MOTION_AFFINE, _ALIGNMENT, None, 3
        )
    except cv2.error:
        return 0.0
    inverse = cv2.WARP_INVERSE_MAP
    moved = cv2.warpAffine(moving, affine, size, flags=cv2.INTER_CUBIC | inverse, borderMode=cv2.BORDER_REPLICATE)
    inside = cv2.warpAffine(np.ones_like(moving), affine, size, flags=cv2.INTER_NEAREST | inverse)
    edge = np.ones((2 * _EDGE_PX + 1, 2 * _EDGE_PX + 1), np.uint8)
    is_shared = cv2.erode(inside, edge, borderType=cv2.BORDER_CONSTANT, borderValue=0) > 0
    if not is_shared.any():
        return 0.0
    a, b = (_details(picture)[is_shared] for picture in (fixed, moved))
    a, b = a - a.mean(), b - b.mean()
    return float((a * b).sum() / max(np.sqrt(np.square(a).sum() * np.square(b).sum()), 1e-6))


def _candidates(
    hashes: UInt64[np.ndarray, "num_images num_hashes"],
    max_bits: int,
    is_wanted: Callable[[Rows, Rows], Bool[np.ndarray, "num"]],
) -> Int64[np.ndarray, "num_pairs 2"]:
    """Collect pairs of images with like hashes, the smaller row first, each once, in order."""
    num_images, num_hashes = hashes.shape
    known, waiting, num_waiting = np.zeros(0, np.int64), [], 0
    for left, right in close_pairs(hashes.ravel(), max_bits):
        has_whole = (left % num_hashes == 0) | (right % num_hashes == 0)
        first, second = left[has_whole] // num_hashes, right[has_whole] // num_hashes
        keep = (first != second) & is_wanted(first, second)
        waiting.append(np.minimum(first, second)[keep] * num_images + np.maximum(first, second)[keep])
        num_waiting += len(waiting[-1])
        if num_waiting > max(len(known), _PAIRS_IN_MEMORY):
            known, waiting, num_waiting = np.unique(np.concatenate([known, *waiting])), [], 0
    known = np.unique(np.concatenate([known, *waiting]))
    return np.stack(np.divmod(known, max(num_images, 1)), axis=1)


@dataclass(frozen=True)
class _Comparison:
    """Some pairs with what it takes to compare them in any process.

    Attributes:
        pictures: Thumbnails of the images in the pairs.
        pairs: Positions in `pictures`.
        path: File in which the result is kept; None keeps none.
    """

    pictures: Thumbnails
    pairs: Int64[np.ndarray, "num_pairs 2"]
    path: Path | None

    @classmethod
    def of(
        cls, pairs: Int64[np.ndarray, "num_pairs 2"], thumbnails: ReadThumbnails, finished: Path | None
    ) -> "_Comparison":
        """Load the pictures of some pairs of rows."""
        rows, positions = np.unique(pairs, return_inverse=True)
        pictures, positions = thumbnails(rows), positions.reshape(pairs.shape)
        name = hashlib.sha256(pictures.tobytes() + positions.tobytes()).hexdigest()
        return cls(pictures, positions, finished / f"{name}.npy" if finished else None)


def _compare(comparison: _Comparison) -> Float[np.ndarray, "num"]:
    """Correlate the details of each pair; -1 where the pictures are so unlike that aligning is not tried."""
    path = comparison.path
    if path is not None and path.is_file():
        return _loaded(path)
    pictures, (left, right) = comparison.pictures, comparison.pairs.T
    bands = standardized(np.stack([_band(picture) for picture in pictures]))
    correlation = np.full(len(left), -1.0)
    for pair in np.flatnonzero((bands[left] * bands[right]).sum(axis=(1, 2)) >= _MIN_UNALIGNED):
        correlation[pair] = detail_correlation(pictures[left[pair]], pictures[right[pair]])
    if path is not None:
        content = io.BytesIO()
        np.save(content, correlation)
        with atomic_path(path) as temporary:
            temporary.write_bytes(content.getbuffer())
    return correlation


def _loaded(path: Path) -> Float[np.ndarray, "num"]:
    values: Float[np.ndarray, " num"] = np.load(path)
    return values


def _details(picture: Float[np.ndarray, "side side"]) -> Float[np.ndarray, "side side"]:
    details: Float[np.ndarray, "side side"] = picture - cv2.GaussianBlur(picture, (0, 0), _DETAIL_PX)
    return details


def _band(picture: UInt8[np.ndarray, "side side"]) -> Float[np.ndarray, "side side"]:
    """Return the structures of medium size, which bear a small shift and still differ between people."""
    levels = picture.astype(np.float32)
    fine, coarse = (cv2.GaussianBlur(levels, (0, 0), scale) for scale in _BAND_PX)
    band: Float[np.ndarray, "side side"] = fine - coarse
    return band
