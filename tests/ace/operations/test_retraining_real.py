"""A retraining as its users see it: the commands, a real dvc and the whole graph of the configuration `smoke`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ace.pretrain.start import FILES
from shards.core.config import parse_yaml
from shards.delivery.yaml_lines import add_deps, add_item
from shards.format.layout import sha256_of
from tests.support.checkout import clone_checkout, git

TRAINED, FROZEN, LATER = "phantom-b000", "frozen-b000", "phantom-b001"


def call(root: Path, *arguments: str) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(root), "ACE_MODELS": str(root.parent / "served")}
    done = subprocess.run(
        [sys.executable, "-m", *arguments], cwd=root, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{arguments}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def commit(root: Path, text: str) -> None:
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "-m", text)


def copy_batch(root: Path, name: str) -> None:
    """The same images once more, under another name."""
    (root / f"batches/{name}.yaml").write_text((root / f"batches/{TRAINED}.yaml").read_text().replace(TRAINED, name))
    params = root / "params.yaml"
    params.write_text(add_item(params.read_text(), "batches", name, "data/phantom"))


def fill_operations(root: Path, floor: float) -> None:
    fingerprint = sha256_of(root / "data/shards" / FROZEN / "index.json")
    gate = {
        "frozen": {"batch": FROZEN, "fingerprint": fingerprint},
        "figures": {"unmatched_cosine": {"margin": 0.5, "floor": floor}},
        "min_patients": 5,
    }
    operations = {"gate": gate, "retraining": {"min_new_images": 5, "start": "incumbent"}}
    params = root / "params.yaml"
    text = params.read_text().replace("decide: []", "decide: [trained]")
    params.write_text(text[: text.index("operations:")] + f"operations: {json.dumps(operations)}\n")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_new_images_become_an_accepted_model_and_after_it_nothing_is_stale_or_due(tmp_path: Path) -> None:
    root = clone_checkout(tmp_path / "clone")
    git(root, "checkout", "--quiet", "-b", "service")
    copy_batch(root, FROZEN)
    params = root / "params.yaml"
    params.write_text(params.read_text().replace(f"  batch: {TRAINED}", f"  batch: {FROZEN}"))
    call(root, "dvc", "repro", "--quiet", f"shard@{TRAINED}", f"shard@{FROZEN}")
    fill_operations(root, floor=1.0)
    commit(root, "the service begins")

    assert json.loads(call(root, "ace", "retrain", "due", "--json"))["due"] is True
    lines = call(root, "ace", "retrain", "run", "--automatic").splitlines()
    gate = json.loads((root / "metrics/gate.json").read_text())
    assert lines[-1].startswith("rejected: unmatched_cosine is")
    assert (gate["reason"]["rule"], gate["reason"]["bound"]) == ("floor", 1.0)
    assert "Data and pipelines are up to date" in call(root, "dvc", "status")
    assert json.loads(call(root, "ace", "retrain", "due", "--json"))["due"] is False

    fill_operations(root, floor=-1.0)  # nothing is trained again: the gate alone is another one
    commit(root, "another floor")
    before = git(root, "show", "HEAD:dvc.lock")
    lines = call(root, "ace", "retrain", "run", "--automatic").splitlines()
    assert lines[-1].startswith("accepted: v1, all ")
    models = [
        next(o for o in parse_yaml(t)["stages"]["pretrain"]["outs"] if o["path"] == "models/ace")
        for t in (before, git(root, "show", "HEAD:dvc.lock"))
    ]
    assert models[0] == models[1]
    assert "Data and pipelines are up to date" in call(root, "dvc", "status")

    copy_batch(root, LATER)
    item = parse_yaml(params.read_text())["mix"][TRAINED]
    params.write_text(add_item(params.read_text(), "mix", LATER, item))
    (root / "dvc.yaml").write_text(add_deps((root / "dvc.yaml").read_text(), LATER))
    call(root, "dvc", "repro", "--quiet", "-s", f"shard@{LATER}")
    commit(root, "a batch is accepted")
    lines = call(root, "ace", "retrain", "run", "--automatic").splitlines()
    assert lines[1:3] == ["v1 is the incumbent", "trained, measured and committed"]
    assert lines[3].startswith("accepted: v2, all ")
    rules = json.loads((root / "metrics/gate.json").read_text())["rules"]
    assert {rule["rule"] for rule in rules} >= {"not_leaked", "not_collapsed", "not_worse"}
    config = json.loads((root.parent / "served/v2/config.json").read_text())
    assert set(config["start_from"]) == set(FILES)
    assert "Data and pipelines are up to date" in call(root, "dvc", "status")
    assert call(root, "ace", "retrain", "run", "--automatic").startswith("nothing is due: 0 of 5 new images since v2")
    assert call(root, "ace", "models", "audit").startswith("OK")
