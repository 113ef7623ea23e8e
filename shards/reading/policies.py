"""Turn uncertain and blank labels into targets by CheXpert's policies, when labels leave the shards, never before.

The names are those of Irvin et al., "CheXpert", AAAI 2019, and, of the two that smooth, of Pham et al., "Interpreting
chest X-rays via CNNs that exploit hierarchical disease dependencies and uncertainty labels", Neurocomputing 437, 2021.
A manifest of targets records the names of both policies, `uncertain` and `blank`.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import ArrayLike

from shards.core.errors import ConfigError, SourceError

UncertainPolicy = Literal["U-Zeros", "U-Ones", "U-Ignore", "U-MultiClass", "LSR-Ones", "LSR-Zeros"]
BlankPolicy = Literal["zeros", "ignore"]
UNCERTAIN_CLASS = 2
"""Class of uncertain labels under U-MultiClass, beside 0 absent and 1 present."""
LSR_ONES_RANGE = (0.55, 0.85)
LSR_ZEROS_RANGE = (0.0, 0.3)

_Labels = Float[np.ndarray, "*shape"]


@dataclass(frozen=True)
class Targets:
    """Targets for a loss.

    Attributes:
        values: The class 0, 1 or 2 of U-MultiClass, else a probability; 0 where the mask is false.
        mask: True for an entry that counts.
    """

    values: Float[np.ndarray, "*shape"]
    mask: Bool[np.ndarray, "*shape"]


def targets_of(
    labels: ArrayLike, uncertain: UncertainPolicy, blank: BlankPolicy, generator: np.random.Generator | None = None
) -> Targets:
    """Make targets of labels 1, 0, -1 (uncertain) and None or NaN (blank).

    Args:
        labels: Labels, of any shape.
        uncertain: Policy for -1.
        blank: `zeros`: not mentioned is absent, as most papers take it; `ignore`: it does not count.
        generator: Source of the numbers that LSR-Ones and LSR-Zeros draw: one for each entry, whatever the labels, so
            that an entry's target depends on its position and label alone.

    Raises:
        ConfigError: a policy is unknown, or draws and has no generator.
        SourceError: a label is another number.
    """
    if blank not in get_args(BlankPolicy):
        raise ConfigError(f"no policy '{blank}' for blank labels; there are {', '.join(get_args(BlankPolicy))}")
    known = _as_floats(labels)
    resolved = _resolve(known, uncertain, generator)
    is_blank, is_ignored = np.isnan(known), (known == -1) & (uncertain == "U-Ignore")
    mask = ~is_ignored & ~(is_blank & (blank == "ignore"))
    return Targets(np.where(is_blank | is_ignored, 0.0, resolved), mask)


def u_zeros(labels: _Labels) -> _Labels:
    """Take uncertain as absent."""
    return np.where(labels == -1, 0.0, labels)


def u_ones(labels: _Labels) -> _Labels:
    """Take uncertain as present."""
    return np.where(labels == -1, 1.0, labels)


def u_multi_class(labels: _Labels) -> _Labels:
    """Take uncertain as a class of its own."""
    return np.where(labels == -1, float(UNCERTAIN_CLASS), labels)


def lsr_ones(labels: _Labels, generator: np.random.Generator) -> _Labels:
    """Take uncertain as probably present: uniform in [.55, .85), a draw for each entry."""
    return np.where(labels == -1, generator.uniform(*LSR_ONES_RANGE, labels.shape), labels)


def lsr_zeros(labels: _Labels, generator: np.random.Generator) -> _Labels:
    """Take uncertain as probably absent: uniform in [0, .3), a draw for each entry."""
    return np.where(labels == -1, generator.uniform(*LSR_ZEROS_RANGE, labels.shape), labels)


def _resolve(labels: _Labels, uncertain: str, generator: np.random.Generator | None) -> _Labels:
    match uncertain:
        case "U-Zeros" | "U-Ignore":
            return u_zeros(labels)
        case "U-Ones":
            return u_ones(labels)
        case "U-MultiClass":
            return u_multi_class(labels)
        case "LSR-Ones" | "LSR-Zeros":
            if generator is None:
                raise ConfigError(f"the policy {uncertain} draws its targets; pass a generator")
            return (lsr_ones if uncertain == "LSR-Ones" else lsr_zeros)(labels, generator)
        case _:
            raise ConfigError(
                f"no policy '{uncertain}' for uncertain labels; there are {', '.join(get_args(UncertainPolicy))}"
            )


def _as_floats(labels: ArrayLike) -> _Labels:
    """Convert labels to floats; None becomes NaN."""
    values = np.asarray(labels, dtype=np.float64)
    wrong = ~np.isnan(values) & ~np.isin(values, (1.0, 0.0, -1.0))
    if wrong.any():
        raise SourceError(
            f"{int(wrong.sum())} of {values.size} labels are none of 1 (present), 0 (absent), -1 (uncertain) and None "
            "or NaN (blank); policies apply once, to labels as the shards hold them"
        )
    return values
