"""The figures that the gate may bound; what reads params.yaml checks them here, without what computes them."""

from ace.evaluation.params import EvaluateParams
from ace.gate.params import GateParams
from ace.properties.correspondence import ERROR, MEDIAN, MUTUAL_ERROR
from ace.properties.decomposition import CHANGE_OUTSIDE, ERASED_LENGTH
from shards.core.errors import ConfigError

ERRORS = {ERROR, MEDIAN, MUTUAL_ERROR, ERASED_LENGTH, CHANGE_OUTSIDE}
"""Figures of which less is better."""


def check_figures(gate: GateParams, params: EvaluateParams) -> None:
    """Refuse bounds that would decide nothing, before anything is trained.

    Figures whose names hold a number of params.yaml, as `decompositionality_among_8`, cannot be bounded.

    Args:
        gate: Section `operations.gate`.
        params: Section `evaluate`.

    Raises:
        ConfigError: a figure is not one of a property that is measured, an error has no ceiling, or another figure has
            no floor.
    """
    known = sorted(name for item, _ in params.properties.chosen() for name in item.figures)
    for name, bounds in gate.figures.items():
        if name not in known:
            raise ConfigError(f"operations.gate.figures names {name}; expected some of {', '.join(known)}")
        if name in ERRORS and bounds.ceiling is None:
            raise ConfigError(
                f"operations.gate.figures.{name}: less is better, and there is no ceiling; margins alone let every "
                "version be a little worse than the one before"
            )
        if name not in ERRORS and bounds.floor is None:
            raise ConfigError(
                f"operations.gate.figures.{name}: more is better, and there is no floor; margins alone let every "
                "version be a little worse than the one before"
            )
