"""Folders of models and of exports are traced back in a clone whose dvc.lock a real dvc wrote, and real bytes lead."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import timm
from safetensors.torch import save_file

from ace.__main__ import build_parser
from ace.inference.folder import RECORD
from ace.models.folder import CONFIG, WEIGHTS
from ace.operations.clone import Clone
from ace.operations.lineage import NOT_RECORDED, NOT_TRAINED_HERE
from ace.operations.registry import Registry
from ace.operations.retraining_state import ACCEPTED as RETRAINED
from ace.operations.retraining_state import BEGAN
from ace.operations.withdrawal_state import RECEIVED, SETTLED
from ace.published.importing import import_timm, one_import
from ace.zoo.shipped import find_model
from shards.cli import run_command
from shards.format.layout import sha256_of
from tests.ace.inference.models import write_model
from tests.ace.operations.service import ANNA, Clock, init_clone
from tests.support.checkout import ROOT, git

DVC = """\
stages:
  shard:
    cmd: mkdir -p data/shards/own && cp batches/own.yaml data/shards/own/index.json
    deps: [batches/own.yaml]
    outs: [data/shards/own]
  pretrain:
    cmd: mkdir -p models && cp -r ../made/ace models/ace
    deps: [data/shards/own]
    outs: [models/ace]
  variant:
    foreach: ${variants}
    do:
      cmd: mkdir -p models && cp -r ../made/${key} models/${key}
      params: ["variants.${key}"]
      deps: [data/shards/own]
      outs: ["models/${key}"]
  import:
    foreach: ${imports}
    do:
      cmd: mkdir -p models && cp -r ../made/${key} models/${key}
      params: ["imports.${key}"]
      outs: ["models/${key}"]
"""
PARAMS = """\
variants: {gentle: {epochs: 3}, continued: {epochs: 4}}
imports: {imagenet: {architecture: vit_tiny_patch16_224}}
"""
MACHINE = {"processor": "a fast one", "cores": 8, "memory_gb": 33.6, "accelerators": ["H200"]}
BATCH = "source: {kind: folder, dep: data/manifests/own.jsonl, dep_sha256: abc}\n"


@dataclass
class Project:
    root: Path

    @property
    def registry(self) -> Registry:
        return Registry(clone=Clone(self.root), models=self.root.parent / "served", clock=Clock())

    def lineage(self, model: Path | str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
        capsys.readouterr()
        assert main("models", "lineage", str(model), "--repo", str(self.root), "--json") == 0
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found


def main(*arguments: str) -> int:
    return run_command(build_parser(), arguments)


def export(model: Path | str, out: Path) -> Path:
    assert main("export", "--format", "timm", "--model", str(model), "--out", str(out)) == 0
    return out


def change(folder: Path, **values: Any) -> None:
    path = folder / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def make_imported(folder: Path, file: Path) -> None:
    """Make a model of random weights that stand for those of others."""
    size = {"embed_dim": 48, "depth": 1}
    save_file(timm.create_model("vit_tiny_patch16_224", num_classes=10, **size).state_dict(), file)
    params = one_import(file, "vit_tiny_patch16_224", size, in_channels=3, mean=None, std=None)
    import_timm(params, 4, folder, where="imports.imagenet")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models in a clone: v1 of models/ace, two variants, of which one continued v1, and an imported encoder."""
    folder = tmp_path_factory.mktemp("template") / "project"
    made, root = folder / "made", folder / "clone"
    (root / "batches").mkdir(parents=True)
    for kind, name in (("vit", "ace"), ("swin", "gentle"), ("convnext", "continued")):
        write_model(made / name, kind)
    change(made / "gentle", commit="c0de" * 10, hardware=MACHINE)
    change(made / "continued", start_from={WEIGHTS["teacher"]: sha256_of(made / "ace" / WEIGHTS["teacher"])})
    make_imported(made / "imagenet", folder / "others.safetensors")
    for name, text in (("dvc.yaml", DVC), ("params.yaml", PARAMS), ("batches/own.yaml", BATCH)):
        (root / name).write_text(text)
    (root / ".gitignore").write_text("/models\n/data\n")
    init_clone(root)
    for words in (("init", "--quiet"), ("repro", "--quiet")):
        subprocess.run([sys.executable, "-m", "dvc", *words], cwd=root, check=True, capture_output=True)
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "-m", "models")
    Project(root).registry.promote(ANNA)
    return folder


@pytest.fixture
def project(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.delenv("ACE_MODELS", raising=False)
    shutil.copytree(template, tmp_path / "project", symlinks=True)
    return Project(tmp_path / "project/clone")


def test_a_variant_is_traced_to_its_stage_wherever_its_folder_lies(
    project: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    head = git(project.root, "rev-parse", "HEAD").strip()
    (project.root / "dvc.lock").write_text("schema: '2.0'\nstages: {}\n")
    git(project.root, "commit", "--quiet", "--all", "-m", "later, without the variant")
    elsewhere = shutil.copytree(project.root / "models/gentle", tmp_path / "elsewhere")
    for folder in (project.root / "models/gentle", elsewhere):
        traced = project.lineage(folder, capsys)
        assert traced["origin"] == [f"models/gentle, which is no version; commit {head} recorded it first"]
        assert [stage["stage"] for stage in traced["stages"]] == ["shard", "variant@gentle"]
        assert traced["stages"][1]["params"] == {"params.yaml": {"variants.gentle": {"epochs": 3}}}
        assert traced["batches"]["own"]["manifest_sha256"] == "abc"
        assert traced["shards"][0]["batch"] == "a-b000"
        assert (traced["version"], traced["registered"], traced["commit"]) == (None, None, head)
        assert traced["environment"]["commit"] == "c0de" * 10
        assert traced["model"]["sha256"][CONFIG] == sha256_of(folder / CONFIG)
        assert (traced["hardware"], traced["continues"]) == (MACHINE, None)
        assert "hardware" not in traced["environment"]
    (elsewhere / "README.md").write_text("changed")
    traced = project.lineage(elsewhere, capsys)
    assert (traced["origin"], traced["commit"]) == (["no version and no commit's dvc.lock has these files"], None)
    assert traced["environment"]["commit"] == "c0de" * 10
    assert main("models", "lineage", str(elsewhere), "--repo", str(project.root)) == 0
    said = capsys.readouterr().out
    assert said.startswith(
        "no version and no commit's dvc.lock has these files\n\nshards that it saw\n  a-b000  7 images"
    )
    assert '\nhardware\n  processor = "a fast one"\n  cores = 8\n' in said


def test_an_imported_encoder_is_traced_to_its_stage_and_the_file_of_its_weights(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    traced = project.lineage(project.root / "models/imagenet", capsys)
    assert [stage["stage"] for stage in traced["stages"]] == ["import@imagenet"]
    assert traced["stages"][0]["params"]["params.yaml"]["imports.imagenet"] == {"architecture": "vit_tiny_patch16_224"}
    source = traced["environment"]["source"]
    assert source["sha256"] == sha256_of(project.root.parent / "others.safetensors")
    assert (traced["shards"], traced["batches"]) == ([], {})
    assert traced["hardware"] == NOT_TRAINED_HERE
    assert main("models", "lineage", str(project.root / "models/imagenet"), "--repo", str(project.root)) == 0
    assert "\nhardware\n  not trained here\n" in capsys.readouterr().out


def test_a_folder_of_a_version_is_told_by_its_weights_and_what_differs_is_said(
    project: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in (project.root / "models/ace", project.root.parent / "served/v1"):
        traced = project.lineage(folder, capsys)
        assert (traced["origin"], traced["version"]) == (["the weights of v1"], "v1")
        assert [stage["stage"] for stage in traced["stages"]] == ["shard", "pretrain"]
        assert traced["hardware"] == NOT_RECORDED, "as a model of an earlier release"
    mine = shutil.copytree(project.root / "models/ace", tmp_path / "mine")
    (mine / "note.txt").touch()
    assert project.lineage(mine, capsys)["origin"] == ["the weights of v1, but note.txt was added"]
    assert project.lineage(project.root / "models/continued", capsys)["continues"] == "v1"


def test_of_versions_with_the_same_weights_the_one_with_the_same_files_is_meant_and_else_the_newest(
    project: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, first = project.root / "models/ace", project.root.parent / "served/v1"
    out = export(model, tmp_path / "timm")
    change(model, commit="beef" * 10)  # as of a training that came to the same weights with other code
    subprocess.run([sys.executable, "-m", "dvc", "commit", "--force", "pretrain"], cwd=project.root, check=True)
    git(project.root, "commit", "--quiet", "--all", "-m", "trained again")
    assert project.registry.promote(ANNA).name == "v2"
    assert project.lineage(model, capsys)["origin"] == ["the weights of v2"]
    assert project.lineage(out, capsys)["origin"] == ["exported from the teacher of v2"]
    assert project.lineage(project.root / "models/continued", capsys)["continues"] == "v2"
    assert project.lineage(first, capsys)["origin"] == ["the weights of v1"]


@pytest.mark.parametrize(("own", "expected"), [({}, "the event's"), ({"hardware": MACHINE}, MACHINE)])
def test_the_machine_that_a_retrained_model_names_itself_is_told_and_else_that_of_the_event(
    own: dict[str, Any], expected: object, project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    model, log = project.root / "models/ace", project.registry.log
    log.append(BEGAN, {"hardware": "the event's"}, actor=ANNA, now=Clock()())
    change(model, commit="beef" * 10, **own)
    subprocess.run([sys.executable, "-m", "dvc", "commit", "--force", "pretrain"], cwd=project.root, check=True)
    git(project.root, "commit", "--quiet", "--all", "-m", "trained again")
    version = project.registry.promote(ANNA)
    machine = own.get("hardware", NOT_RECORDED)
    assert project.lineage(model, capsys)["hardware"] == machine, "until the retraining has ended"
    log.append(RETRAINED, {"version": version.number}, actor=ANNA, now=Clock()())
    assert project.lineage(model, capsys)["hardware"] == expected


def test_an_export_leads_back_to_its_version_also_when_that_is_retired(
    project: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = export(project.root / "models/ace", tmp_path / "timm")
    shutil.rmtree(project.root / "models/ace")
    traced = project.lineage(out, capsys)
    assert (traced["origin"], traced["version"]) == (["exported from the teacher of v1"], "v1")
    assert [stage["stage"] for stage in traced["stages"]] == ["shard", "pretrain"]
    assert traced["environment"]["steps"] == 3, "its config.json is in DVC's cache"
    shutil.rmtree(project.root / ".dvc/cache")
    environment = project.lineage(out, capsys)["environment"]
    assert "is neither in DVC's cache" in environment["not_read"]
    log, clock = project.registry.log, Clock()
    number = log.append(RECEIVED, {"patient": "mark", "batches": [], "versions": [1]}, actor=ANNA, now=clock()).sequence
    facts = {"withdrawal": number, "versions": [1], "action": "retire", "why": "as the board has decided"}
    log.append(SETTLED, facts, actor=ANNA, now=clock())
    assert main("models", "lineage", str(out), "--repo", str(project.root)) == 0
    said = capsys.readouterr()
    assert said.out.startswith("exported from the teacher of v1\nv1: models/ace, md5 ")
    assert said.err == "v1 is retired: a patient whom it was trained with has withdrawn\n"


def test_an_export_leads_back_to_a_variant_and_to_a_published_model_that_was_made_of_it(
    project: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gentle = project.root / "models/gentle"
    traced = project.lineage(export(gentle, tmp_path / "timm"), capsys)
    assert traced["origin"][0] == "exported from the teacher of gentle"
    assert traced["origin"][1].startswith("models/gentle, which is no version; commit ")
    assert [stage["stage"] for stage in traced["stages"]] == ["shard", "variant@gentle"]
    published = shutil.copytree(find_model("cxr-small"), project.root / "models/small")
    section = json.loads((published / CONFIG).read_text())["published"]
    section["measured"]["model_sha256"] = sha256_of(gentle / WEIGHTS["teacher"])
    change(published, published=section)
    traced = project.lineage(published, capsys)
    assert traced["origin"][0] == "published from the teacher of gentle"
    assert [stage["stage"] for stage in traced["stages"]] == ["shard", "variant@gentle"]
    traced = project.lineage(export(published, tmp_path / "small"), capsys)
    assert traced["origin"][:2] == [
        "exported from the teacher of small",
        "published from the teacher of gentle",
    ]


def test_models_that_were_published_whole_do_not_lead_to_one_another(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("first", "second"):
        published = shutil.copytree(find_model("cxr-small"), project.root / "models" / name)
        section = json.loads((published / CONFIG).read_text())["published"]
        section["measured"]["model_sha256"] = sha256_of(published / WEIGHTS["teacher"])
        change(published, published=section)
    for name in ("first", "second"):
        first, second = project.lineage(project.root / "models" / name, capsys)["origin"][:2]
        assert first == "published from the teacher of cxr-small"
        assert second.startswith("published from the teacher of a model that is not here: ")


def test_a_model_that_is_not_here_is_told_by_what_its_record_says(
    project: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = export(project.root / "models/gentle", tmp_path / "timm")
    sha256 = sha256_of(project.root / "models/gentle" / WEIGHTS["teacher"])
    shutil.rmtree(project.root / "models/gentle")
    traced = project.lineage(out, capsys)
    assert traced["origin"] == [
        "exported from the teacher of a model that is not here: no registered version, no folder in models/ of the "
        f"clone and no shipped model has weights with the sha256 {sha256}; to trace it further, bring its folder to "
        "models/"
    ]
    assert traced["environment"] == {"commit": "c0de" * 10}
    (first, *_) = project.lineage("cxr-small", capsys)["origin"]
    assert first.startswith("published from the teacher of a model that is not here: ")


def test_what_is_neither_a_model_nor_an_export_is_refused(
    project: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = export(project.root / "models/ace", tmp_path / "timm")
    record = json.loads((out / RECORD).read_text())
    for text, fault in (
        ("{}", "model_sha256: Field required"),
        (json.dumps({**record, "commit": 7}), "commit is 7: Input should be a valid string"),
        ("{", "Invalid JSON: EOF while parsing an object at line 1 column 1"),
    ):
        (out / RECORD).write_text(text)
        assert main("models", "lineage", str(out), "--repo", str(project.root)) == 2
        assert (
            f"{out / RECORD}: damaged ({fault}); expected a JSON object with model_sha256, " in capsys.readouterr().err
        )
    (out / RECORD).unlink()
    assert main("models", "lineage", str(out), "--repo", str(project.root)) == 2
    assert "of a model nor ace_model.json of an export" in capsys.readouterr().err
    assert main("models", "lineage", "v1", "--repo", str(project.root)) == 2
    assert "ACE_MODELS is not set" in capsys.readouterr().err


# Each takes its exporter some seconds.
@pytest.mark.slow
@pytest.mark.parametrize("format_", ["onnx", "monai"])
def test_every_format_carries_the_record_and_it_names_no_machine(
    format_: str, project: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if format_ == "onnx":
        pytest.importorskip("onnxruntime")
    out, model = tmp_path / format_, project.root / "models/ace"
    command = ["-m", "ace", "export", "--model", str(model), "--format", format_, "--out", str(out)]
    # In a process that does not check shapes, which no exporter can follow.
    done = subprocess.run(
        [sys.executable, *command], env=os.environ, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert project.lineage(out, capsys)["origin"] == ["exported from the teacher of v1"]
    text = (out / RECORD).read_text()
    assert json.loads(text).keys() == {"model_sha256", "network", "commit", "version"}
    assert str(tmp_path) not in text
