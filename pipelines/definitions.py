"""What `dagster dev` loads: assets, checks and sensors, all derived from dvc.yaml and params.yaml."""

from pathlib import Path

import dagster

from pipelines.assets import build_assets
from pipelines.graph import load_graph
from pipelines.metadata import read_checks
from pipelines.sensors import build_dvc_lock_sensor

ROOT = Path(__file__).resolve().parents[1]


def build_definitions(root: Path) -> dagster.Definitions:
    """The definitions of the DVC repository at `root`.

    Raises:
        ConfigError: dvc.yaml or params.yaml is wrong; `dagster dev` shows the message and waits for a reload.
    """
    graph = load_graph(root)
    checks = read_checks(root, graph)
    return dagster.Definitions(
        assets=build_assets(root, graph, checks), sensors=[build_dvc_lock_sensor(root, graph, checks)]
    )


@dagster.definitions
def defs() -> dagster.Definitions:
    """The definitions of this repository."""
    return build_definitions(ROOT)
