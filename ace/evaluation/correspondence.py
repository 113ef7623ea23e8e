"""Correspondence: a landmark of one patient is found in another by its token alone (method.md §5)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int

from ace.data.crops import resample
from ace.evaluation.cohort import Subject
from ace.evaluation.embedding import Embedder, Image, unit
from ace.evaluation.intervals import Measure, per_pair
from shards.errors import ConfigError
from shards.grid import GridSpec
from shards.runtime.progress import progress

REFERENCE_CANVAS_PX = 1024
"""Errors are given on a canvas scaled to this side, whatever the grid."""
Points = Float[np.ndarray, "points 2"]
"""(row, col) in continuous canvas pixels."""
Features = Float[np.ndarray, "locations locations dim"]
"""The direction of the token at each location of a canvas."""


@dataclass(frozen=True)
class LocationAxis:
    """Where locations lie along one axis of the canvas, and from which window each one is read.

    Attributes:
        positions_px: Centres of the locations.
        origins_px: Where the windows begin.
        window: The window in which each location lies most central.
        token: Which of that window's tokens it is.
    """

    positions_px: Float[np.ndarray, " locations"]
    origins_px: Float[np.ndarray, " windows"]
    window: Int[np.ndarray, " locations"]
    token: Int[np.ndarray, " locations"]


@dataclass(frozen=True)
class Pair:
    """A query and a key patient, by their places in the cohort, and the landmarks looked for: those both have."""

    query: int
    key: int
    names: tuple[str, ...]


def location_axis(spec: GridSpec, locations_per_cell: int, window_step_cells: int) -> LocationAxis:
    """Shifted windows of `t` cells such that their tokens' centres lie 1/`locations_per_cell` of a cell apart.

    Raises:
        ConfigError: a crop fills the whole canvas, so that windows cannot be shifted; or windows leave gaps.
    """
    if window_step_cells > spec.t:
        raise ConfigError(f"window_step_cells {window_step_cells} exceeds t {spec.t}: windows would leave gaps")
    per_cell, free = locations_per_cell, (spec.n - spec.t) * locations_per_cell
    if free == 0:
        raise ConfigError(f"t {spec.t} equals n {spec.n}: windows cannot be shifted; correspondence needs t < n")
    origins: set[int] = set()
    for phase in range(per_cell):
        last = phase + (free - phase) // per_cell * per_cell
        origins |= {*range(phase, last + 1, window_step_cells * per_cell), last}
    starts = np.array(sorted(origins))
    positions = np.arange((spec.n - 1) * per_cell + 1)
    token, remainder = np.divmod(positions[:, None] - starts, per_cell)
    is_readable = (remainder == 0) & (token >= 0) & (token < spec.t)
    eccentricity = np.where(is_readable, np.abs(token - (spec.t - 1) / 2), np.inf)
    window = eccentricity.argmin(axis=1)
    pitch_px = spec.cell_px / per_cell
    return LocationAxis(
        positions_px=spec.cell_px / 2 + positions * pitch_px,
        origins_px=starts * pitch_px,
        window=window,
        token=token[np.arange(len(positions)), window],
    )


def dense_features(embedder: Embedder, canvas: Image, axis: LocationAxis) -> Features:
    """The direction of the token at every location of a canvas, rows by columns."""
    size_px = embedder.encoder.spec.crop_px
    crops = (
        resample(canvas, (row, col, row + size_px, col + size_px), size_px)
        for row in axis.origins_px
        for col in axis.origins_px
    )
    tokens = torch.cat(list(embedder.tokens(crops)))
    by_window = tokens.view(len(axis.origins_px), len(axis.origins_px), *tokens.shape[1:])
    window, token = (torch.from_numpy(which).to(tokens.device) for which in (axis.window, axis.token))
    # Windows overlap: of the tokens that several have, one leaves the device.
    return unit(by_window[window[:, None], window, token[:, None], token].cpu().numpy())


def interpolate(features: Features, axis: LocationAxis, points: Points) -> Float[np.ndarray, "points dim"]:
    """Features between locations, bilinear; points beyond the outermost locations take those."""
    pitch_px = axis.positions_px[1] - axis.positions_px[0]
    place = np.clip((points - axis.positions_px[0]) / pitch_px, 0, len(axis.positions_px) - 1)
    low = np.minimum(place.astype(np.int64), len(axis.positions_px) - 2)
    (row, col), (down, right) = low.T, (place - low).T[:, :, None]
    upper = (1 - right) * features[row, col] + right * features[row, col + 1]
    lower = (1 - right) * features[row + 1, col] + right * features[row + 1, col + 1]
    return unit((1 - down) * upper + down * lower)


def draw_pairs(
    subjects: Sequence[Subject], keys_per_query: int, max_landmarks: int, rng: np.random.Generator
) -> list[Pair]:
    """Every subject as a query, each with other subjects as keys, and at most `max_landmarks` landmarks both have."""
    pairs = []
    for query in range(len(subjects)):
        for key in rng.permutation(np.delete(np.arange(len(subjects)), query))[:keys_per_query]:
            names = sorted(subjects[query].landmarks.keys() & subjects[key].landmarks.keys())
            chosen = np.sort(rng.permutation(len(names))[:max_landmarks])
            pairs.append(Pair(query, int(key), tuple(names[index] for index in chosen)))
    return pairs


def points_of(subject: Subject, names: Sequence[str]) -> Points:
    """Where a subject's landmarks lie."""
    return np.array([subject.landmarks[name] for name in names], dtype=np.float64).reshape(-1, 2)


def canvas_features(embedder: Embedder, subjects: Sequence[Subject], axis: LocationAxis) -> list[Features]:
    """Dense features of every subject's canvas."""
    steps = progress(subjects, total=len(subjects), description=f"correspondence, {embedder.name}", unit="canvas")
    return [dense_features(embedder, subject.canvas, axis) for subject in steps]


def find_landmarks(
    subjects: Sequence[Subject], features: Sequence[Features], axis: LocationAxis, pairs: Sequence[Pair]
) -> list[Points]:
    """For each pair, the location of the key with the largest cosine to each landmark of the query."""
    found = []
    for pair in pairs:
        wanted = interpolate(features[pair.query], axis, points_of(subjects[pair.query], pair.names))
        best = (wanted @ features[pair.key].reshape(-1, wanted.shape[1]).T).argmax(axis=1)
        row, col = np.divmod(best, len(axis.positions_px))
        found.append(np.stack([axis.positions_px[row], axis.positions_px[col]], axis=1))
    return found


def errors_at_reference(predicted: Points, true: Points, canvas_px: int) -> Float[np.ndarray, " points"]:
    """Radial errors in pixels of a canvas scaled to `REFERENCE_CANVAS_PX`."""
    errors: Float[np.ndarray, " points"] = np.linalg.norm(predicted - true, axis=1) * REFERENCE_CANVAS_PX / canvas_px
    return errors


def pair_mean(pairs: Sequence[Pair], values: Sequence[Float[np.ndarray, " _"]], num_patients: int) -> Measure:
    """The mean over all landmarks of all pairs (some have more than others); intervals resample the patients."""
    sums, counts = np.zeros((2, num_patients, num_patients))
    for pair, points in zip(pairs, values, strict=True):
        sums[pair.query, pair.key] += points.sum()
        counts[pair.query, pair.key] += len(points)
    return per_pair(sums, counts)


def random_guess_errors(
    subject: Subject, true: Points, axis: LocationAxis, cell_px: int
) -> Float[np.ndarray, "locations points"]:
    """Errors of every location in the subject's foreground; their mean is what a random guess there expects."""
    rows, cols = np.meshgrid(axis.positions_px, axis.positions_px, indexing="ij")
    is_inside = subject.foreground[(rows // cell_px).astype(int), (cols // cell_px).astype(int)]
    guesses = np.stack([rows[is_inside], cols[is_inside]], axis=1)
    errors: Float[np.ndarray, "locations points"] = np.linalg.norm(guesses[:, None] - true, axis=2)
    return errors * REFERENCE_CANVAS_PX / len(subject.canvas)


def affine_oracle(source: Points, target: Points) -> Points:
    """Where the best affine map, fitted to the answer itself, takes the source points."""
    homogeneous = np.column_stack([source, np.ones(len(source))])
    solution, *_ = np.linalg.lstsq(homogeneous, target, rcond=None)
    mapped: Points = homogeneous @ solution
    return mapped
