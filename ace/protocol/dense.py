"""Dense tokens of a canvas: a location every fraction of a cell, each read from the window in which it is central."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from ace.data.crops import resample
from ace.embed.embedder import Embedder, Image, unit
from ace.protocol.cohort import Subject
from shards.core.errors import ConfigError
from shards.core.grid import GridSpec

Points = Float[np.ndarray, "points 2"]
"""(row, col) in continuous canvas pixels."""
DirectionMap = Float[np.ndarray, "locations locations dim"]
"""The direction of the token at each location of a canvas."""


@dataclass(frozen=True, kw_only=True)
class LocationAxis:
    """An axis lists locations along one side of the canvas, and the window that each one is read from.

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

    def points(self) -> Points:
        """Return every location of a canvas, row by row."""
        rows, cols = np.meshgrid(self.positions_px, self.positions_px, indexing="ij")
        return np.stack([rows, cols], axis=-1).reshape(-1, 2)

    def inside(self, subject: Subject, cell_px: int) -> Bool[np.ndarray, " locations_squared"]:
        """Tell which of `points` lie in the subject's foreground."""
        row, col = (self.points() // cell_px).astype(int).T
        found: Bool[np.ndarray, " locations_squared"] = subject.foreground[row, col]
        return found


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


def dense_features(embedder: Embedder, canvas: Image, axis: LocationAxis) -> DirectionMap:
    """Return the direction of the token at every location of a canvas, rows by columns."""
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


def interpolate(features: DirectionMap, axis: LocationAxis, points: Points) -> Float[np.ndarray, "points dim"]:
    """Features between locations, bilinear; points beyond the outermost locations take those."""
    pitch_px = axis.positions_px[1] - axis.positions_px[0]
    place = np.clip((points - axis.positions_px[0]) / pitch_px, 0, len(axis.positions_px) - 1)
    low = np.minimum(place.astype(np.int64), len(axis.positions_px) - 2)
    (row, col), (down, right) = low.T, (place - low).T[:, :, None]
    upper = (1 - right) * features[row, col] + right * features[row, col + 1]
    lower = (1 - right) * features[row + 1, col] + right * features[row + 1, col + 1]
    return unit((1 - down) * upper + down * lower)


def nearest(wanted: Float[np.ndarray, "points dim"], features: DirectionMap, axis: LocationAxis) -> Points:
    """Find the location with the largest cosine to each direction."""
    best = (wanted @ features.reshape(-1, wanted.shape[1]).T).argmax(axis=1)
    row, col = np.divmod(best, len(axis.positions_px))
    return np.stack([axis.positions_px[row], axis.positions_px[col]], axis=1)


def points_of(subject: Subject, names: Sequence[str]) -> Points:
    """Return where a subject's landmarks lie."""
    return np.array([subject.landmarks[name] for name in names], dtype=np.float64).reshape(-1, 2)


def common_landmarks(subjects: Sequence[Subject], num_landmarks: int, rng: np.random.Generator) -> tuple[str, ...]:
    """Draw some of the landmarks that all subjects have, in the order of their names."""
    common = sorted(set.intersection(*(set(subject.landmarks) for subject in subjects))) if subjects else []
    drawn = rng.permutation(len(common))[:num_landmarks]
    return tuple(common[number] for number in np.sort(drawn))


def with_landmarks(subjects: Sequence[Subject], num_patients: int) -> tuple[Subject, ...]:
    """Choose the first subjects that have landmarks; none where fewer than two have some."""
    found = tuple(subject for subject in subjects if subject.landmarks)[:num_patients]
    return found if len(found) > 1 else ()
