"""Phantom parameters for tests: the demo's ranges on small rasters."""

from functools import cache
from pathlib import Path
from typing import Any

from shards.core.config import read_params
from shards.phantom.findings import Kind
from shards.phantom.params import PhantomParams

DEMO = Path(__file__).parents[3] / "configs" / "demo.yaml"
SMALL = {"size_px": 96, "num_ray_rows": 96, "num_ray_cols": 96, "num_depth_planes": 48}
TINY = {"size_px": 48, "num_ray_rows": 32, "num_ray_cols": 24, "num_depth_planes": 16}


@cache
def demo_phantom() -> dict[str, Any]:
    """Read once: tests ask for hundreds of studies."""
    return dict(read_params(DEMO)["phantom"])


def phantom_params(*, findings: dict[str, Any] | None = None, **changes: Any) -> PhantomParams:
    values = demo_phantom() | changes
    values["findings"] = values["findings"] | (findings or {})
    return PhantomParams.from_params(values, "test: phantom")


def only(kind: Kind) -> tuple[Kind, ...]:
    """To replace `study.KINDS`, so that every finding is of one kind."""
    return (kind,)
