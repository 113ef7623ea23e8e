"""Dense tokens small enough for a page: a few principal components of each, in 8 bits."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int8

from ace.protocol.dense import DirectionMap

LARGEST = 127
"""Codes are in [−127, 127]."""
FITTED_EVERY = 7
"""Every so many of a canvas's locations the axes are fitted to; neighbours are much alike."""
COMPARED_EVERY = 77
"""Every so many of a canvas's locations the search with reduced tokens is compared with the search with whole ones."""
Codes = Int8[np.ndarray, "canvases locations locations components"]


@dataclass(frozen=True)
class ReducedTokens:
    """Tokens as whole numbers: component k of a token is `codes[..., k] · scales[k]`, in the order of variance.

    The axes are those of the tokens themselves and not of their deviations from a mean, so that a token without
    length stays 0, and dot products are kept as well as this many numbers can.

    Attributes:
        codes: Of every canvas.
        scales: What one unit of each component is.
        kept: Share of the tokens' squared length that the components have, 0 to 1.
    """

    codes: Codes
    scales: Float[np.ndarray, " components"]
    kept: float

    @property
    def directions(self) -> Float[np.ndarray, "canvases locations locations components"]:
        """Return the reduced tokens' directions; one without length stays 0."""
        tokens = self.codes * self.scales
        lengths = np.linalg.norm(tokens, axis=-1, keepdims=True)
        directions: Float[np.ndarray, "canvases locations locations components"]
        directions = np.divide(tokens, lengths, out=np.zeros_like(tokens), where=lengths > 0)
        return directions


def reduce_tokens(canvases: Sequence[DirectionMap], num_components: int) -> ReducedTokens:
    """Project tokens on their strongest common axes and round the components to 8 bits.

    Args:
        canvases: Tokens of one encoder.
        num_components: Numbers that are kept of each token, or all where it has fewer.
    """
    dim = canvases[0].shape[-1]
    fitted = np.concatenate([canvas.reshape(-1, dim)[::FITTED_EVERY] for canvas in canvases])
    variances, axes = np.linalg.eigh(fitted.T @ fitted)
    axes = axes[:, ::-1][:, :num_components]
    # An axis has no sign of its own: its largest entry is positive, whatever the library returned.
    axes *= np.sign(np.take_along_axis(axes, np.abs(axes).argmax(axis=0)[None], axis=0))
    components = np.stack([canvas @ axes for canvas in canvases]).astype(np.float64)
    scales = np.maximum(np.abs(components).max(axis=(0, 1, 2)), np.finfo(np.float32).tiny) / LARGEST
    codes = np.rint(components / scales).astype(np.int8)
    return ReducedTokens(codes, scales, float(variances[::-1][:num_components].sum() / variances.sum()))


@dataclass(frozen=True)
class Agreement:
    """Tells how often the search with reduced tokens ends where that with whole tokens does.

    Attributes:
        same: Share of searches that end at the same location.
        near: Share that end within one location, diagonally too.
        num_searches: Searches compared: a token of one patient in another.
    """

    same: float
    near: float
    num_searches: int


def compare(canvases: Sequence[DirectionMap], reduced: ReducedTokens) -> Agreement:
    """Search tokens of every patient in all others, with whole tokens and with reduced ones.

    Args:
        canvases: Whole tokens of all patients.
        reduced: The reduced ones; its first canvases are the same.
    """
    whole, less = np.stack(canvases), reduced.directions[: len(canvases)].astype(np.float32)
    num, size = whole.shape[:2]
    chosen = slice(COMPARED_EVERY // 2, None, COMPARED_EVERY)
    distances = []
    for patient in range(num):
        found = []
        for tokens in (whole, less):
            flat = tokens.reshape(num, size * size, -1)
            best = (flat @ flat[patient, chosen].T).argmax(axis=1)
            found.append(np.stack(np.divmod(np.delete(best, patient, axis=0), size)))
        distances.append(np.abs(found[0] - found[1]).max(axis=0).ravel())
    steps = np.concatenate(distances)
    return Agreement(float((steps == 0).mean()), float((steps <= 1).mean()), len(steps))
