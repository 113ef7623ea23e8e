"""The definitions of this repository itself: derived from its dvc.yaml in full, and run by Dagster in a clone."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from dagster import AssetKey, DagsterInstance, Definitions, ExecutorDefinition
from ruamel.yaml import YAML

from pipelines.definitions import build_definitions
from pipelines.sets import VERIFY
from tests.pipelines.toy import edit, settle
from tests.support.checkout import ROOT, clone_checkout, run

IMPORT_EVERYTHING = """
from importlib import import_module
from pkgutil import walk_packages

import ace, pipelines, shards

for package in (ace, pipelines, shards):
    for module in walk_packages(package.__path__, f"{package.__name__}."):
        # Run by hand, with packages that only the extra `phantom-asset` brings.
        if module.name != "shards.phantom.prepare":
            import_module(module.name)
"""


@pytest.fixture(scope="module")
def definitions() -> Definitions:
    return build_definitions(ROOT)


@pytest.fixture(scope="module")
def materialized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone in which Dagster, and nothing else, ran the graph."""
    folder = tmp_path_factory.mktemp("dagster")
    clone, home = clone_checkout(folder / "clone"), folder / "home"
    home.mkdir()
    shutil.copy(clone / "pipelines/dagster.yaml", home)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DAGSTER_HOME", str(home))
        patch.setenv("DVC_SITE_CACHE_DIR", str(folder / "site-cache"))
        selection = ["-m", "pipelines.definitions", "--select", "*"]
        run(clone, sys.executable, "-m", "dagster", "asset", "materialize", *selection)
    return clone


def stages_by_out() -> dict[str, tuple[str, dict]]:
    """dvc.yaml as written: out path → word and body of its stage, foreach unrolled over its section of params.yaml."""
    yaml = YAML(typ="safe", pure=True)
    stages = yaml.load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    params = yaml.load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    found = {}
    for word, stage in stages.items():
        body = stage.get("do", stage)
        for out in (out for kind in ("outs", "metrics", "plots") for out in body.get(kind, [])):
            path = out if isinstance(out, str) else next(iter(out))
            for key in params[stage["foreach"].strip("${}")] if "foreach" in stage else [""]:
                found[path.replace("${key}", key)] = word, body
    return found


def test_every_out_of_dvc_yaml_is_an_asset_of_its_stage_and_there_is_no_other(definitions: Definitions) -> None:
    ops = {
        key.to_user_string(): asset.op.name
        for asset in definitions.resolve_asset_graph().assets_defs
        for key in asset.keys
    }
    # Dagster has no op of a word of Python's.
    assert ops == {path: "import_" if word == "import" else word for path, (word, _) in stages_by_out().items()}


def test_every_asset_has_the_group_and_the_description_of_its_stage(definitions: Definitions) -> None:
    graph = definitions.resolve_asset_graph()
    for path, (_, body) in stages_by_out().items():
        asset = graph.get(AssetKey(path.split("/")))
        assert asset.group_name == body["meta"]["dagster"]["group"]
        assert asset.description == body["desc"]


def test_every_step_takes_a_slot_of_the_pool_of_its_stage(definitions: Definitions) -> None:
    assets = definitions.resolve_asset_graph().assets_defs
    pools = {key.to_user_string(): asset.op.pool for asset in assets for key in asset.keys}
    assert pools == {path: body["meta"]["dagster"].get("pool") for path, (_, body) in stages_by_out().items()}
    assert "gpu" in pools.values()


def test_assets_depend_on_each_other_as_their_stages_do(definitions: Definitions) -> None:
    graph = definitions.resolve_asset_graph()
    upstream = {key.to_user_string() for key in graph.get(AssetKey(["reports", "report.html"])).parent_keys}
    assert upstream == stages_by_out().keys() & set(stages_by_out()["reports/report.html"][1]["deps"])


def test_the_sensor_and_the_job_of_all_assets_are_there(definitions: Definitions) -> None:
    repository = definitions.get_repository_def()
    assert [sensor.name for sensor in repository.sensor_defs] == ["dvc_lock"]
    (job,) = repository.get_all_jobs()
    assert {key.to_user_string() for key in job.asset_layer.executable_asset_keys} == set(stages_by_out())


def test_every_bound_of_params_yaml_is_a_check_of_the_metrics(definitions: Definitions) -> None:
    params = YAML(typ="safe", pure=True).load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    checks = {check for check in definitions.resolve_asset_graph().asset_check_keys if check.name != VERIFY}
    assert {check.asset_key.to_user_string() for check in checks} == {"metrics/properties.json"}
    assert len(checks) == len(params["evaluate"]["checks"])


def test_every_shard_set_has_a_check_that_it_is_whole(definitions: Definitions) -> None:
    checks = definitions.resolve_asset_graph().asset_check_keys
    found = {check.asset_key.to_user_string() for check in checks if check.name == VERIFY}
    assert found == {path for path, (word, _) in stages_by_out().items() if word == "shard"}


def test_the_browser_is_told_to_invite_nobody_to_anything(tmp_path: Path) -> None:
    shutil.copy(ROOT / "pipelines/dagster.yaml", tmp_path)
    with DagsterInstance.from_config(str(tmp_path)) as instance:
        assert not instance.nux_enabled
        assert not instance.telemetry_enabled


def start_method(root: Path) -> str:
    executor = build_definitions(root).executor
    assert isinstance(executor, ExecutorDefinition)
    config = executor.config_schema.resolve_config({}).value["config"]
    return next(iter(config["start_method"]))


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere steps are not forked")
def test_steps_are_forked_only_where_the_server_finds_the_code_of_the_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, toy: Path
) -> None:
    monkeypatch.chdir(ROOT)
    assert start_method(ROOT) == "forkserver"
    assert start_method(toy) == "spawn"
    monkeypatch.chdir(tmp_path)
    assert start_method(ROOT) == "spawn"


def test_what_steps_are_forked_from_has_read_the_graph_and_runs_no_thread_and_survives_a_damaged_graph(
    toy: Path,
) -> None:
    program = (
        "import threading, pipelines.preloaded, pipelines.graph, pipelines.lock; "
        "print(len(pipelines.graph._known), pipelines.lock._entries.cache_info().currsize, threading.active_count())"
    )
    command, environment = [sys.executable, "-c", program], {**os.environ, "PYTHONPATH": str(ROOT)}
    settle(toy)
    assert subprocess.check_output(command, cwd=toy, env=environment).split() == [b"1", b"1", b"1"]
    edit(toy / "dvc.yaml", "stages:", "stages: [")
    assert subprocess.check_output(command, cwd=toy, env=environment).split() == [b"0", b"0", b"1"]


@pytest.mark.slow
def test_dagster_alone_runs_the_whole_graph_and_dvc_finds_it_up_to_date(materialized: Path) -> None:
    for out in stages_by_out():
        assert (materialized / out).exists(), out
    assert "up to date" in run(materialized, "dvc", "status")


@pytest.mark.slow
def test_importing_every_module_makes_no_stage_stale(materialized: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Code folders are dependencies: without .dvcignore the bytecode that an import leaves in them would count."""
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    run(materialized, sys.executable, "-c", IMPORT_EVERYTHING)
    assert list((materialized / "ace/losses").glob("__pycache__/*.pyc"))
    assert "up to date" in run(materialized, "dvc", "status")
