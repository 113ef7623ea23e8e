"""Shard sets and deliveries in Dagster: real shards in the place of the toy's."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from dagster import AssetKey, AssetSelection, DagsterInstance, ExecuteInProcessResult
from dagster._core.definitions.data_version import CachingStaleStatusResolver, StaleStatus
from dagster._core.loader import LoadingContextForTest

from pipelines.definitions import build_definitions
from pipelines.graph import load_graph
from pipelines.sensors import lock_events
from pipelines.sets import set_metadata
from shards.build.stage import build_shards
from tests.pipelines.toy import dvc, edit
from tests.support.datasets import NO_CHECKS, Here, forget_patients, grid_params, shard_params, write_phantom

SET = "data/shards/own"
KEY = AssetKey(SET.split("/"))
MANIFEST = "data/manifests/own.jsonl"


@pytest.fixture(scope="session")
def shard_set(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A shard set of 20 patients with 30 images, one of which is empty."""
    root = tmp_path_factory.mktemp("shards")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACE_SCRATCH", str(root / "scratch"))
        source = write_phantom(root / "phantom", size_px=96)
        (root / "phantom/images/p0001-i1.png").write_bytes(b"")
        params = shard_params(quality=NO_CHECKS, max_quarantined_fraction=0.5)
        build_shards("own", source, grid_params(), params, root / "own", execution=Here())
    return root / "own"


@pytest.fixture
def with_shards(toy: Path, shard_set: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The toy repository, whose next run of its stage `shard` gives that set."""
    monkeypatch.setenv(
        "TOY_HOOK",
        f"if stage == 'shard': import shutil; shutil.copytree('{shard_set}', out, dirs_exist_ok=True)",
    )
    edit(toy / "params.yaml", "scale: 2", "scale: 3")
    return toy


def execute(root: Path, instance: DagsterInstance, selection: AssetSelection) -> ExecuteInProcessResult:
    definitions = build_definitions(root)
    job, graph = definitions.resolve_implicit_global_asset_job_def(), definitions.resolve_asset_graph()
    keys, checks = selection.resolve(graph), selection.resolve_checks(graph)
    return job.get_subset(asset_selection=keys, asset_check_selection=checks).execute_in_process(instance=instance)


def test_a_run_shows_what_a_shard_set_holds_and_checks_that_it_is_whole(
    with_shards: Path, instance: DagsterInstance
) -> None:
    result = execute(with_shards, instance, AssetSelection.assets(KEY))
    (event,) = [event for event in result.get_asset_materialization_events() if event.asset_key == KEY]
    shown = {name: value.value for name, value in event.materialization.metadata.items()}
    assert (shown["images"], shown["patients"], shown["quarantined"]) == (29, 20, 1)
    assert "quarantined: 1" in str(shown["contents"])
    (check,) = result.get_asset_check_evaluations()
    assert (check.asset_key, check.check_name, check.passed) == (KEY, "verify", True)


def test_a_damaged_tar_fails_the_check_alone(with_shards: Path, instance: DagsterInstance) -> None:
    execute(with_shards, instance, AssetSelection.assets(KEY).without_checks())
    tar = next(iter(sorted((with_shards / SET).glob("*.tar"))))
    content = bytearray(tar.read_bytes())
    content[len(content) // 2] ^= 1
    tar.unlink()
    tar.write_bytes(content)
    result = execute(with_shards, instance, AssetSelection.checks_for_assets(KEY))
    assert not result.get_asset_materialization_events()
    (check,) = result.get_asset_check_evaluations()
    assert not check.passed
    assert f"`python -m shards verify {SET}`" in str(check.description)
    assert f"{tar.name}: checksum mismatch" in str(check.metadata["problems"].value)


def test_one_step_checks_all_sets_and_one_that_cannot_be_read_keeps_no_other_from_its_check(
    toy: Path, instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    def verify_set(path: Path) -> list[object]:
        if path.name == "own":
            raise OSError("the disk does not answer")
        return []

    monkeypatch.setattr("shards.checking.verify.verify_set", verify_set)
    definitions = build_definitions(toy)
    checks = AssetSelection.checks_for_assets(KEY, AssetKey(["data", "shards", "raw-b000"]))
    keys = checks.resolve_checks(definitions.resolve_asset_graph())
    job = definitions.resolve_implicit_global_asset_job_def().get_subset(asset_check_selection=keys)
    result = job.execute_in_process(instance=instance, raise_on_error=False)
    (failure,) = [event for event in result.all_events if event.is_step_failure]
    assert f"{SET} (the disk does not answer)" in str(failure.step_failure_data.user_failure_data.description)
    (check,) = result.get_asset_check_evaluations()
    assert (check.asset_key.path[-1], check.passed) == ("raw-b000", True)


def test_patients_that_nobody_knows_are_not_counted_and_other_folders_hold_no_set(
    shard_set: Path, tmp_path: Path
) -> None:
    shutil.copytree(shard_set, tmp_path / "own")
    forget_patients(tmp_path / "own")
    assert "patients" not in set_metadata(tmp_path / "own")
    (tmp_path / "own/index.json").write_text("{}")
    assert "build it again" in str(set_metadata(tmp_path / "own")["contents"].value)
    assert set_metadata(tmp_path) == {}


def stale(root: Path, instance: DagsterInstance) -> set[str]:
    assets = build_definitions(root).resolve_asset_graph()
    resolver = CachingStaleStatusResolver(instance, assets, LoadingContextForTest(instance))
    statuses = {path: resolver.get_status(AssetKey(path.split("/"))) for path in load_graph(root).produced}
    return {path for path, status in statuses.items() if status != StaleStatus.FRESH}


def report(root: Path, instance: DagsterInstance) -> None:
    for event in lock_events(instance, root, load_graph(root), []):
        instance.report_runless_asset_event(event)


@pytest.mark.slow
def test_a_delivery_is_a_source_and_another_manifest_makes_its_shards_stale(
    toy: Path, instance: DagsterInstance
) -> None:
    (toy / MANIFEST).parent.mkdir()
    (toy / "manifest.csv").rename(toy / MANIFEST)
    edit(toy / "params.yaml", "manifest.csv", MANIFEST)
    dvc(toy, "repro")
    report(toy, instance)
    graph = build_definitions(toy).resolve_asset_graph()
    source = graph.get(AssetKey(MANIFEST.split("/")))
    assert source.is_external
    assert not source.is_executable
    assert source.child_keys == {KEY}
    assert source.group_name == "data"
    assert list(graph.external_asset_keys) == [source.key]
    assert stale(toy, instance) == set()
    assert execute(toy, instance, AssetSelection.assets(KEY).without_checks()).success
    assert stale(toy, instance) == set()
    edit(toy / MANIFEST, "a.png", "b.png")
    assert stale(toy, instance) == {SET}
