"""The contract with DVC: what `load_graph` must go on finding when dvc is upgraded."""

import hashlib
import json
import os
import shutil
import time
from collections import Counter
from pathlib import Path

import pytest
from dvc.dependency import ParamsDependency
from dvc.utils.serialize import parse_yaml

from benchmarks.graph import add_batches
from pipelines.graph import Out, changed_stages, load_graph
from pipelines.lock import read_lock
from shards.core.errors import ConfigError
from tests.pipelines.toy import dvc, edit, settle
from tests.support.checkout import ROOT, copy_project


def test_stages_come_resolved_from_templates_and_foreach(toy: Path) -> None:
    graph = load_graph(toy)
    stages = {stage.name: stage for stage in graph.stages}
    assert list(stages) == ["raw", "shard@raw-b000", "shard@own", "train"]
    assert [(word, len(items)) for word, items in graph.families] == [("raw", 1), ("shard", 2), ("train", 1)]
    own, train = stages["shard@own"], stages["train"]
    assert own.cmd == "python -m toy shard data/shards/own manifest.csv"
    assert own.description == "One delivery"
    assert (own.meta.group, own.meta.pool, own.meta.jobs) == ("data", "cpu", 2)
    assert own.params == {"params.yaml": {"shard": {"scale": 2}, "batches.own": {"dep": "manifest.csv"}}}
    assert own.inputs == ()
    assert set(own.files) == {"toy", "manifest.csv"}
    assert own.files["manifest.csv"] == hashlib.md5((toy / "manifest.csv").read_bytes()).hexdigest()
    assert stages["shard@raw-b000"].inputs == ("data/raw",)
    assert train.inputs == ("data/shards/own", "data/shards/raw-b000")
    assert train.params["params.yaml"] == {"train.rate": 1e-3, "train.fail": False}
    assert set(train.outs) == {
        Out("models/toy", "data"),
        Out("metrics/train.json", "metric"),
        Out("metrics/plots", "plot"),
    }


def test_the_work_tree_hashes_to_what_dvc_recorded(toy: Path) -> None:
    graph = load_graph(toy)
    records = read_lock(toy, graph)
    for stage in graph.stages:
        record = records[stage.name]
        assert (stage.cmd, stage.params, stage.files) == (record.cmd, record.params, record.files)
        assert set(stage.inputs) == set(record.inputs)
        assert {out.path for out in stage.outs} == set(record.outs)


def test_a_missing_file_changes_the_code_version(toy: Path) -> None:
    before = {stage.name: stage.code_version for stage in load_graph(toy).stages}
    (toy / "manifest.csv").unlink()
    after = {stage.name: stage.code_version for stage in load_graph(toy).stages}
    assert {name for name in before if before[name] != after[name]} == {"shard@own"}


@pytest.mark.parametrize("num_items", [2, 20])
def test_all_stages_share_one_reading_of_their_parameters(
    toy: Path, num_items: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a graph of hundreds of batches reads params.yaml hundreds of times, at every tick of the sensor."""
    edit(toy / "dvc.yaml", 'params: [shard, "batches.${key}"]', "params: [shard]")
    items = "".join(f"  more-{number}: {{dep: manifest.csv}}\n" for number in range(num_items - 2))
    edit(toy / "params.yaml", "  own: {dep: manifest.csv}\n", f"  own: {{dep: manifest.csv}}\n{items}")
    read, readings = ParamsDependency.read_params, []

    def counted(self: ParamsDependency, *arguments: bool, **options: bool) -> dict[str, object]:
        readings.append(self.def_path)
        return read(self, *arguments, **options)

    monkeypatch.setattr(ParamsDependency, "read_params", counted)
    graph = load_graph(toy)
    assert sum(stage.name.startswith("shard@") for stage in graph.stages) == num_items
    assert readings == ["params.yaml"]


@pytest.mark.slow
def test_every_file_of_this_graph_is_parsed_as_often_for_twenty_batches_as_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site-cache"))
    parse, parsed = parse_yaml, Counter[str]()

    def counted(text: str, path: str, *arguments: str, **options: str) -> object:
        parsed[Path(path).name] += 1
        return parse(text, path, *arguments, **options)

    monkeypatch.setattr("dvc.utils.serialize._yaml.parse_yaml", counted)  # params files
    monkeypatch.setattr("dvc.utils.strictyaml.parse_yaml", counted)  # dvc.yaml and dvc.lock
    found = {}
    for number in (1, 20):
        project = tmp_path / str(number)
        project.mkdir()
        copy_project(project)
        shutil.copy(ROOT / "versions.yaml", project)
        dvc(project, "init", "--no-scm", "--quiet")
        add_batches(project, number)
        parsed.clear()
        graph = load_graph(project)
        found[number] = dict(parsed)
        assert sum(stage.name.startswith("shard@clinic-") for stage in graph.stages) == number
    assert found[20] == found[1]
    assert found[1]["dvc.yaml"] == 1
    assert "clinic-b000.yaml" not in found[1], "a batch's file is hashed, as any dependency"


@pytest.mark.parametrize("path", ["data/raw/content.txt", "data"])
def test_a_dependency_that_is_not_exactly_an_out_is_refused(toy: Path, path: str) -> None:
    edit(toy / "dvc.yaml", "deps: [toy/__main__.py,", f"deps: [toy/__main__.py, {path},")
    with pytest.raises(ConfigError, match=r"'train' depends on 'data.*depend on exactly the out"):
        load_graph(toy)


def test_a_misspelt_dagster_setting_is_named(toy: Path) -> None:
    edit(toy / "dvc.yaml", "pool: gpu", "pol: gpu")
    with pytest.raises(ConfigError, match=r"train.meta.dagster.pol: unknown key; did you mean 'pool'"):
        load_graph(toy)


def test_a_graph_that_does_not_resolve_is_one_error(toy: Path) -> None:
    edit(toy / "dvc.yaml", "${item.dep}", "${item.missing}")
    with pytest.raises(ConfigError, match="cannot read the graph"):
        load_graph(toy)


def test_a_graph_is_read_again_only_after_a_change(toy: Path) -> None:
    os.utime(toy / "manifest.csv", (time.time() + 60,) * 2)
    assert load_graph(toy) is not load_graph(toy), "a file that was just written may be written again unseen"
    settle(toy)
    first = load_graph(toy)
    assert load_graph(toy) is first
    status = (toy / "manifest.csv").stat()
    edit(toy / "manifest.csv", "a.png", "b.png")
    (toy / "manifest.csv").rename(toy / "other.csv")
    shutil.copy(toy / "other.csv", toy / "manifest.csv")
    os.utime(toy / "manifest.csv", ns=(status.st_atime_ns, status.st_mtime_ns))
    second = load_graph(toy)
    assert {stage.name for stage in second.stages if stage not in first.stages} == {"shard@own"}
    (toy / "toy/extra.py").write_text("")
    assert load_graph(toy) != second


def test_a_graph_is_read_again_after_a_change_of_any_file_with_params(toy: Path) -> None:
    edit(toy / "dvc.yaml", "params: [raw]", "params: [raw, {other.yaml: [depth]}]")
    (toy / "other.yaml").write_text("depth: 1\n")
    settle(toy)
    first = load_graph(toy)
    assert load_graph(toy) is first
    (toy / "other.yaml").write_text("depth: 2\n")
    assert {stage.name for stage in load_graph(toy).stages if stage not in first.stages} == {"raw"}


def test_dvc_tells_in_this_process_which_stages_it_would_run(toy: Path) -> None:
    names = [stage.name for stage in load_graph(toy).stages]
    assert changed_stages(toy, names) == []
    assert changed_stages(toy, ["raw", "shard@none"]) == ["shard@none"]
    (toy / "data/shards/own/content.txt").unlink()
    assert changed_stages(toy, ["raw", "shard@own"]) == ["shard@own"]
    dvc(toy, "checkout")
    edit(toy / "params.yaml", "count: 3", "count: 4")
    assert changed_stages(toy, ["shard@raw-b000"]) == []
    assert changed_stages(toy, names) == ["raw", "shard@raw-b000", "train"], "what reads an out that is made again"
    assert changed_stages(toy, names[::-1]) == ["raw"], "in the order in which they run"


@pytest.mark.parametrize("path", ["data/raw/content.txt", "data"])
def test_what_lies_in_an_out_that_is_made_again_or_around_it_is_made_again_too(toy: Path, path: str) -> None:
    reader = f"  reader: {{cmd: touch other, deps: [{path}], outs: [other]}}\n"
    edit(toy / "dvc.yaml", "stages:\n", f"stages:\n{reader}")
    dvc(toy, "repro", "--single-item", "reader")
    assert changed_stages(toy, ["raw", "reader"]) == []
    edit(toy / "params.yaml", "count: 3", "count: 4")
    assert changed_stages(toy, ["raw", "reader"]) == ["raw", "reader"]


def test_what_changed_cannot_be_told_while_another_dvc_is_at_work_on_an_out(toy: Path) -> None:
    busy = {str(toy / "data/raw"): {"pid": os.getppid(), "cmd": "dvc repro"}}
    (toy / ".dvc/tmp/rwlock").write_text(json.dumps({"write": busy}))
    with pytest.raises(ConfigError, match="cannot tell what has changed"):
        changed_stages(toy, ["raw"])
