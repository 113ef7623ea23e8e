"""Give `dagster dev` what it loads: assets, checks, jobs, sensors, schedules; all from dvc.yaml and params.yaml."""

import sys
from pathlib import Path

import dagster

from ace.operations.params import read_operations
from pipelines.assets import build_assets, with_owners
from pipelines.deliveries import build_deliveries
from pipelines.graph import PARAMS_NAME, load_graph
from pipelines.metadata import read_checks
from pipelines.sensors import build_dvc_lock_sensor
from pipelines.service import build_service, with_age
from pipelines.sets import build_set_checks
from shards.core.errors import ConfigError

ROOT = Path(__file__).resolve().parents[1]


def build_definitions(root: Path) -> dagster.Definitions:
    """Build the definitions of the DVC repository at `root`.

    If dvc.yaml or params.yaml is wrong there are no assets, and the sensor alone waits until they can be read: without
    it nothing would ask for the reload that brings the assets back.
    """
    try:
        graph = load_graph(root)
        checks = read_checks(root, graph)
        operations = read_operations(root / PARAMS_NAME)
        made = with_age(build_assets(root, graph, checks), operations.schedule)
        assets = with_owners([*made, *build_deliveries(graph, operations.deliveries)], operations.owners)
        service = build_service(root, operations)
    except ConfigError as error:
        dagster.get_dagster_logger().error(
            f"the graph cannot be read, so there are no assets until this is mended: {error}"
        )
        return dagster.Definitions(sensors=[build_dvc_lock_sensor(root, None, [], None)])
    return dagster.Definitions(
        assets=assets,
        asset_checks=build_set_checks(root, graph),
        jobs=service.jobs,
        sensors=[build_dvc_lock_sensor(root, graph, checks, operations), *service.sensors],
        schedules=service.schedules,
        executor=_executor(root),
    )


def _executor(root: Path) -> dagster.ExecutorDefinition:
    """Fork the steps of a run from one process that has imported and read what each would import and read again.

    That process looks for modules in the working directory first. Where this is another folder, it might find other
    code than the run has, so every step starts afresh.
    """
    is_at_home = sys.platform == "linux" and not sys.flags.safe_path and Path.cwd() == root == ROOT
    method = {"forkserver": {"preload_modules": ["pipelines.preloaded"]}} if is_at_home else {"spawn": {}}
    return dagster.multiprocess_executor.configured({"start_method": method})


@dagster.definitions
def defs() -> dagster.Definitions:
    """Return the definitions of this repository."""
    return build_definitions(ROOT)
