"""`python -m ace models`, on fake models in this process, and once in others on a real model that a real dvc made."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import ace
from ace.operations.retraining_state import ABANDONED, ACCEPTED, BEGAN, REJECTED
from ace.zoo.shipped import find_model
from tests.ace.commands.given import main
from tests.ace.operations.service import ANNA, Service, config_text, init_clone, write_lock
from tests.support.checkout import ROOT, git


def test_a_list_says_which_version_is_accepted_and_which_one_serves(
    accepted: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["models", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[2:]] == ["v1", "v2"]
    assert [line.count("yes") for line in lines[2:]] == [0, 2]
    (accepted.models / "accepted").unlink()
    assert main(["models", "list", "--json"]) == 0
    state = json.loads(capsys.readouterr().out)
    assert (state["accepted"], state["served"], state["held"]) == ("v2", None, None)
    main(["models", "list"])
    assert "v2 is accepted and does not serve yet: python -m ace models promote v2" in capsys.readouterr().err


def test_a_rollback_and_a_hold_tell_who_and_why(accepted: Service, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "rollback", "v1", "--why", "worse on lateral views"]) == 0
    assert main(["models", "list"]) == 0
    assert "by Anna <anna@example.org>: worse on lateral views" in capsys.readouterr().out
    assert main(["models", "promote", "v2", "--automatic"]) == 2
    assert "error: Anna <anna@example.org> holds new models" in capsys.readouterr().err
    assert main(["models", "release", "--why", "found the cause"]) == 0
    assert main(["models", "promote", "v2", "--automatic"]) == 0
    capsys.readouterr()
    assert main(["models", "show", "v2"]) == 0
    shown = capsys.readouterr().out
    assert "promoted" in shown
    assert "by schedule" in shown
    assert "README.md  sha256" in shown


@pytest.mark.parametrize("decision", ["deliveries accept a-b000", "deliveries refuse a-b000", "models hold"])
def test_a_decision_without_a_reason_is_none(decision: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([*decision.split(), "--why", " "])
    assert "argument --why: expected a reason; found none" in capsys.readouterr().err


def test_a_moment_before_the_first_version_has_none(accepted: Service, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "at", "1999-12-31"]) == 1
    assert main(["models", "at", "2999-12-31"]) == 0
    assert capsys.readouterr().out.splitlines()[1].startswith("v2: promoted ")


@pytest.mark.parametrize("text", ["3", "v3"])
def test_a_version_that_is_not_registered_is_named(
    accepted: Service, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    assert main(["models", "promote", text]) == 2
    assert capsys.readouterr().err == "error: v3 is not registered; there is v1, v2\n"


@pytest.mark.parametrize("folder", [None, "served", "{clone}/models"])
def test_the_folder_that_models_serve_from_must_be_named_absolutely_and_outside_the_clone(
    accepted: Service, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: str | None
) -> None:
    monkeypatch.delenv("ACE_MODELS")
    if folder is not None:
        folder = folder.format(clone=accepted.root)
        monkeypatch.setenv("ACE_MODELS", folder)
    assert main(["models", "list"]) == 2
    assert f"ACE_MODELS is {folder or 'not set'}; set it to the absolute path" in capsys.readouterr().err


def test_an_audit_ends_with_1_and_the_first_thing_that_is_wrong(
    accepted: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["models", "audit"]) == 0
    assert capsys.readouterr().out == "OK: 4 events, their tags and the bytes that they name\n"
    log = accepted.registry.log.path
    log.write_text(log.read_text().replace("Anna", "Hugo", 1))
    assert main(["models", "audit"]) == 1
    assert "registry/events.jsonl: line 1 was changed" in capsys.readouterr().err


def test_a_checkout_has_the_commit_and_the_model_and_leaves_the_clone(accepted: Service, tmp_path: Path) -> None:
    head = git(accepted.root, "rev-parse", "HEAD")
    out = tmp_path / "as-v1"
    assert main(["models", "checkout", "v1", str(out)]) == 0
    assert (out / "models/ace/README.md").read_text() == "# one\n"
    assert git(out, "log", "-1", "--format=%s") == "one\n"
    assert git(out, "status", "--porcelain") == ""
    assert git(accepted.root, "rev-parse", "HEAD") == head
    assert main(["models", "checkout", "v1", str(out)]) == 2


def test_a_lineage_leads_back_through_all_stages_to_the_manifest_of_a_delivery(
    accepted: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    tar = {"name": "train-000000.tar", "sha256": "7a7"}
    seen = {"batch": "own", "weight": 1.0, "fingerprint": "f1", "num_images": 7, "num_patients": 5, "shards": [tar]}
    own = {"versions": {"torch": "2.14.1"}, "device": "cuda", "commit": "c0de", "note": "of nobody", "shards": [seen]}
    entries = [{"md5": accepted.cache(config_text(**own)), "relpath": "config.json"}]
    (accepted.root / "batches").mkdir()
    (accepted.root / "batches/own.yaml").write_text(
        "source: {kind: folder, dep: data/manifests/own.jsonl, dep_sha256: abc}\n"
    )
    manifest = {"path": "data/manifests/own.jsonl", "md5": "m"}
    shards = {"path": "data/shards/own", "md5": "s.dir"}
    model = {"path": "models/ace", "md5": accepted.cache(json.dumps(entries), suffix=".dir")}
    params = {"params.yaml": {"pretrain": {"epochs": 3}}}
    write_lock(
        accepted.root,
        {
            "shard@own": {"deps": [{"path": "batches/own.yaml", "md5": "b"}, manifest], "outs": [shards]},
            "pretrain": {"deps": [{"path": "ace/losses", "md5": "c.dir"}, shards], "params": params, "outs": [model]},
            "evaluate": {"deps": [model], "outs": [{"path": "data/evidence", "md5": "e.dir"}]},
        },
    )
    git(accepted.root, "add", "--all")
    git(accepted.root, "commit", "--quiet", "-m", "three")
    for kind, facts in (
        ("delivery_accepted", {"batch": "own", "decided": "now", "legal_basis": "research consent, form 3"}),
        (BEGAN, {"hardware": {"processor": "a fast one", "cores": 8}}),
    ):
        accepted.registry.log.append(kind, facts, actor=ANNA, now=accepted.clock())
    assert main(["models", "promote"]) == 0
    capsys.readouterr()
    assert main(["models", "lineage", "v3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["hardware"] == "not recorded", (
        "the retraining may come to another model yet"
    )
    accepted.registry.log.append(ACCEPTED, {"version": 3}, actor=ANNA, now=accepted.clock())
    later = {"batch": "own", "decided": "later", "legal_basis": "none"}
    accepted.registry.log.append("delivery_refused", later, actor=ANNA, now=accepted.clock())
    capsys.readouterr()
    assert main(["models", "lineage", "v3", "--json"]) == 0
    traced = json.loads(capsys.readouterr().out)
    assert traced["commit"] == git(accepted.root, "rev-parse", "HEAD").strip()
    assert [stage["stage"] for stage in traced["stages"]] == ["shard@own", "pretrain"]
    assert traced["stages"][1]["data"] == {"data/shards/own": "s.dir"}
    assert traced["stages"][1]["files"] == {"ace/losses": "c.dir"}
    assert traced["stages"][1]["params"] == params
    assert traced["batches"]["own"]["manifest_sha256"] == "abc"
    assert traced["batches"]["own"]["legal_basis"] == "research consent, form 3", "as it was when v3 was registered"
    assert traced["environment"] == {
        **{"versions": {"torch": "2.14.1"}, "device": "cuda", "commit": "c0de"},
        **{"num_processes": 1, "start_from": {}, "steps": 2592},
    }
    assert traced["shards"] == [seen]
    assert traced["continues"] is None
    assert traced["hardware"] == {"processor": "a fast one", "cores": 8}
    assert main(["models", "lineage", "v3"]) == 0
    text = capsys.readouterr().out
    assert "  manifest data/manifests/own.jsonl  sha256 abc\n" in text
    assert '  params.yaml: pretrain = {"epochs": 3}\n' in text
    assert "    legal basis: research consent, form 3\n" in text
    assert "  own  7 images  index sha256 f1\n    train-000000.tar  sha256 7a7\n" in text
    assert '  processor = "a fast one"\n' in text


@pytest.mark.parametrize(("end", "facts"), [(ABANDONED, {}), (REJECTED, {}), (ACCEPTED, {"version": 4})])
def test_a_model_that_a_person_brings_during_a_retraining_has_not_its_hardware(
    end: str, facts: dict[str, int], accepted: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    log, clock = accepted.registry.log, accepted.clock
    log.append(BEGAN, {"hardware": {"cores": 8}}, actor=ANNA, now=clock())
    accepted.train("three")
    assert main(["models", "promote"]) == 0
    log.append(end, facts, actor=ANNA, now=clock())
    capsys.readouterr()
    assert main(["models", "lineage", "v3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["hardware"] == "not recorded"
    assert main(["models", "lineage", "v3"]) == 0
    assert "\nhardware\n  not recorded\n" in capsys.readouterr().out


def test_the_machine_that_a_model_names_is_told_and_not_the_one_on_which_its_retraining_began(
    accepted: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = {"processor": "another", "cores": 4, "memory_gb": 33.6, "accelerators": ["H200"]}
    entries = [{"md5": accepted.cache(config_text(hardware=machine)), "relpath": "config.json"}]
    model = {"path": "models/ace", "md5": accepted.cache(json.dumps(entries), suffix=".dir")}
    write_lock(accepted.root, {"pretrain": {"outs": [model]}})
    git(accepted.root, "commit", "--quiet", "--all", "-m", "three")
    log, clock = accepted.registry.log, accepted.clock
    log.append(BEGAN, {"hardware": {"processor": "a fast one", "cores": 8}}, actor=ANNA, now=clock())
    assert main(["models", "promote"]) == 0
    log.append(ACCEPTED, {"version": 3}, actor=ANNA, now=clock())
    capsys.readouterr()
    assert main(["models", "lineage", "v3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["hardware"] == machine


def test_a_config_that_this_release_does_not_read_is_told_and_the_rest_of_the_lineage_is_there(
    accepted: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["models", "lineage", "v2", "--json"]) == 0
    traced = json.loads(capsys.readouterr().out)
    config = accepted.models / "v2/config.json"
    assert traced["environment"]["not_read"].startswith(f"{config}: format_version None, this release reads ")
    assert [stage["stage"] for stage in traced["stages"]] == ["pretrain"]


def test_models_alone_lists_the_shipped_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    assert "cxr-small" in capsys.readouterr().out


DVC_YAML = """
stages:
  pretrain:
    cmd: cp -r made models/ace
    deps: [made]
    outs: [models/ace]
"""


@pytest.mark.slow
def test_a_real_model_that_dvc_made_is_accepted_and_loads_from_where_it_serves(tmp_path: Path) -> None:
    root, models = tmp_path / "clone", tmp_path / "served"
    shutil.copytree(find_model(Path("cxr-small")), root / "made")
    (root / "dvc.yaml").write_text(DVC_YAML)
    (root / "models").mkdir()
    (root / "models/.gitignore").write_text("/ace\n")
    environment = {**os.environ, "ACE_MODELS": str(models), "PYTHONPATH": str(ROOT)}

    def command(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", *arguments], cwd=root, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    init_clone(root)
    command("dvc", "init", "--quiet")
    command("dvc", "repro", "--quiet")
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "-m", "a model")
    assert command("ace", "models", "promote") == "v1 is the accepted model, and serves\n"
    assert command("ace", "models", "audit").startswith("OK: 2 events")
    assert command("ace", "models", "card") == (root / "made/README.md").read_text()
    assert "stage pretrain\n  made  md5 " in command("ace", "models", "lineage", "v1").replace("files", "")
    assert ace.load(models / "accepted", device="cpu") is not None
