"""Dagster's staleness is `dvc status`, in every case: that is what the provenance tags are for."""

from collections.abc import Callable
from pathlib import Path

import pytest
from dagster import AssetKey, DagsterInstance
from dagster._core.definitions.data_version import CachingStaleStatusResolver, StaleStatus
from dagster._core.loader import LoadingContextForTest
from dvc.repo import Repo

from pipelines.definitions import build_definitions
from pipelines.graph import load_graph
from pipelines.sensors import lock_events
from tests.pipelines.toy import dvc, edit

EDITS: dict[str, tuple[Callable[[Path], None], set[str]]] = {
    "nothing": (lambda root: None, set()),
    "a parameter": (lambda root: edit(root / "params.yaml", "1.0e-3", "2.0e-3"), {"train"}),
    "the same parameter written otherwise": (lambda root: edit(root / "params.yaml", "1.0e-3", "0.001"), set()),
    "a parameter of every foreach item": (
        lambda root: edit(root / "params.yaml", "scale: 2", "scale: 3"),
        {"shard@raw-b000", "shard@own"},
    ),
    "a threshold": (lambda root: edit(root / "params.yaml", "min: 0.9", "min: 0.8"), set()),
    "data that no stage makes": (lambda root: edit(root / "manifest.csv", "a.png", "b.png"), {"shard@own"}),
    "code of one stage": (
        lambda root: edit(root / "toy/__main__.py", "step ", "Step "),
        {"raw", "shard@raw-b000", "shard@own", "train"},
    ),
    "a file beside the code": (
        lambda root: (root / "toy/extra.py").write_text("") and None,
        {"raw", "shard@raw-b000", "shard@own"},
    ),
    "a command": (lambda root: edit(root / "dvc.yaml", "toy measure", "toy  measure"), {"train"}),
    "a description": (lambda root: edit(root / "dvc.yaml", "One delivery", "One more"), set()),
    "what is read in an out": (
        lambda root: edit(root / "dvc.yaml", "train.json: {cache: false}", "train.json: {cache: false, type: verdict}"),
        set(),
    ),
    "a dependency fewer": (
        lambda root: edit(root / "dvc.yaml", "deps: [toy/__main__.py, ", "deps: ["),
        set(),
    ),
    "an input fewer": (
        lambda root: edit(root / "dvc.yaml", "data/shards/own, data/shards/raw-b000]", "data/shards/own]"),
        set(),
    ),
    "an input more": (
        lambda root: edit(root / "dvc.yaml", "deps: [toy/__main__.py,", "deps: [data/raw, toy/__main__.py,"),
        {"train"},
    ),
    "a parameter fewer": (lambda root: edit(root / "dvc.yaml", 'params: [shard, "', 'params: ["'), set()),
    "a parameter more": (
        lambda root: edit(root / "dvc.yaml", "params: [train.rate,", "params: [raw, train.rate,"),
        {"train"},
    ),
    "a new batch": (
        lambda root: edit(root / "params.yaml", "batches:", "batches:\n  more: {dep: manifest.csv}"),
        {"shard@more"},
    ),
}


@pytest.mark.parametrize("name", EDITS)
def test_the_same_stages_are_stale_in_dagster_and_in_dvc_after_an_edit_of(
    name: str, toy: Path, instance: DagsterInstance
) -> None:
    report(toy, instance)
    apply, expected = EDITS[name]
    apply(toy)
    report(toy, instance)
    assert stale_in_dvc(toy) == expected
    assert stale_in_dagster(toy, instance) == expected


@pytest.mark.slow
def test_running_a_stage_on_the_command_line_makes_its_consumers_stale(toy: Path, instance: DagsterInstance) -> None:
    report(toy, instance)
    edit(toy / "params.yaml", "count: 3", "count: 4")
    assert stale_in_dvc(toy) == stale_in_dagster(toy, instance) == {"raw"}
    dvc(toy, "repro", "--single-item", "raw")
    assert report(toy, instance) == {"data/raw"}
    assert stale_in_dvc(toy) == stale_in_dagster(toy, instance) == {"shard@raw-b000"}
    dvc(toy, "repro")
    assert report(toy, instance) >= {"data/shards/raw-b000"}
    assert stale_in_dvc(toy) == stale_in_dagster(toy, instance) == set()
    assert report(toy, instance) == set()


def report(root: Path, instance: DagsterInstance) -> set[str]:
    """What the sensor does; the paths it reported as materialized."""
    graph = load_graph(root)
    events = lock_events(instance, root, graph, [])
    for event in events:
        instance.report_runless_asset_event(event)
    return {event.asset_key.to_user_string() for event in events}


def stale_in_dagster(root: Path, instance: DagsterInstance) -> set[str]:
    assets = build_definitions(root).resolve_asset_graph()
    resolver = CachingStaleStatusResolver(instance, assets, LoadingContextForTest(instance))
    return {
        stage.name
        for stage in load_graph(root).stages
        for out in stage.outs
        if resolver.get_status(AssetKey(out.path.split("/"))) != StaleStatus.FRESH
    }


def stale_in_dvc(root: Path) -> set[str]:
    with Repo(str(root)) as repo:
        return {address.rpartition(":")[2] for address in repo.status()}
