"""The service's clone of this repository with drawn images of its own, in the smallest configuration that trains."""

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from subprocess import Popen

from ruamel.yaml import YAML

from ace.encoder_lines import with_encoders
from ace.evaluation.params import parse_encoders
from ace.operations.clone import BRANCH
from shards.core.identity import KEY_FILE_VARIABLE
from shards.delivery.yaml_lines import drop_stage
from shards.format.layout import sha256_of
from shards.runtime.scratch import SCRATCH_VARIABLE
from tests.ace.operations.delivered import deliver
from tests.ace.operations.test_retraining_real import call, commit
from tests.pipelines.test_process import free_port
from tests.pipelines.toy import edit, make_dagsters_tables
from tests.support.checkout import clone_checkout, git

FIRST, FROZEN = "clinic-b000", "frozen-b000"
MIN_NEW = 30
"""New images from which on a retraining is due: the first batch has not as many, a further delivery makes it so."""
DROPPED = ("variant", "import", "finetune", "explore")
OPERATIONS = {
    "deliveries": {
        "name": "clinic",
        "labels": "labels.csv",
        "site": "clinic",
        "modality": "chest",
        "legal_basis": "research consent, form 3",
    },
    "schedule": {"cron": "* * * * *"},
    "retraining": {"min_new_images": MIN_NEW},
}


def environment(folder: Path) -> dict[str, str]:
    """Variables that the service's processes have, beside those of the tests."""
    return {
        KEY_FILE_VARIABLE: str(folder / "id.key"),
        SCRATCH_VARIABLE: str(folder / "scratch"),
        "ACE_MODELS": str(folder / "served"),
        "DAGSTER_HOME": str(folder / "home"),
        "DVC_SITE_CACHE_DIR": str(folder / "site-cache"),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(folder / "clone"),
    }


def make_clinic(folder: Path) -> Path:
    """Make the clone, with two built batches: one to train on, and one that stays frozen; returns its top.

    The variables of `environment` are set. Beside it lie an instance of Dagster, and two places to publish to.
    """
    (folder / "id.key").write_text("18" * 32)  # not drawn anew: it decides who is trained on
    root = clone_checkout(folder / "clone")
    git(root, "checkout", "--quiet", "-b", BRANCH)
    for name, seeds, options in ((FIRST, range(40), ["--only"]), (FROZEN, range(50, 90), ["--weight", "0"])):
        images = deliver(folder / name, seeds)
        labels = ["--labels", str(images / "labels.csv"), "--modality", "chest", "--site", "clinic"]
        call(root, "shards", "register", name, str(images), *labels, *options)
    (root / "dvc.lock").unlink()  # what it records of the demo is not here, and could not be published
    call(root, "dvc", "repro", "--quiet", "shard")
    _shrink(root)
    for name in ("origin.git", "store", "home"):
        (folder / name).mkdir()
    (root / "incoming").mkdir()
    git(folder, "init", "--quiet", "--bare", "origin.git")
    git(root, "remote", "set-url", "origin", str(folder / "origin.git"))
    call(root, "dvc", "remote", "add", "--default", "store", str(folder / "store"))
    settings = YAML(typ="safe").load(root / "pipelines/dagster.yaml")
    settings["run_monitoring"]["poll_interval_seconds"] = 5
    YAML().dump(settings, folder / "home/dagster.yaml")
    commit(root, "the service begins")
    return root


def _shrink(root: Path) -> None:
    """Fill `operations`, and leave out encoders, properties and stages that take long and decide nothing."""
    yaml = YAML()
    values = yaml.load(root / "params.yaml")
    frozen = {"batch": FROZEN, "fingerprint": sha256_of(root / "data/shards" / FROZEN / "index.json")}
    figures = {"unmatched_cosine": {"margin": 0.5, "floor": -1.0}}
    values["operations"] = {**OPERATIONS, "gate": {"frozen": frozen, "figures": figures, "min_patients": 5}}
    values["decide"], values["imports"], values["evaluate"]["batch"] = ["trained"], {}, FROZEN
    del values["encoders"]["imagenet"]
    properties = values["evaluate"]["properties"]
    for name in set(properties) - {"composition", "decomposition"}:
        del properties[name]
    yaml.dump(values, root / "params.yaml")
    text = (root / "dvc.yaml").read_text()
    for stage in DROPPED:
        text = drop_stage(text, stage)
    text, _ = with_encoders(text, parse_encoders(values["encoders"], "params.yaml"))
    (root / "dvc.yaml").write_text(text)


@contextmanager
def dagster_dev(root: Path, variables: Mapping[str, str]) -> Iterator[tuple["Popen[bytes]", int]]:
    """`dagster dev` of a clinic: web server, daemon and code server; gives its process and its port."""
    make_dagsters_tables()
    port = free_port()
    command = [sys.executable, "-m", "dagster", "dev", "-m", "pipelines.definitions", "--port", str(port)]
    with (root.parent / "dev.log").open("ab") as log:
        process = Popen(command, cwd=root, env={**os.environ, **variables}, stdout=log, stderr=log)
        try:
            yield process, port
        finally:
            process.terminate()
            process.wait(120)


STAND_IN = """
import json
from pathlib import Path

events = [json.loads(line) for line in Path("registry/events.jsonl").read_text().splitlines()]
began = [event for event in events if event["kind"] == "retraining_began"][-1]
decision = {"accepted": True, "gate_sha256": began["facts"]["gate_sha256"], "reason": {"rule": "all_kept"}}
Path("metrics").mkdir(exist_ok=True)
Path("metrics/gate.json").write_text(json.dumps({**decision, "sentence": "nothing was measured"}))
"""
MEASURING = ("cohort", "measure", "evaluate", "decide", "report")


def hasten(root: Path) -> None:
    """Let a stand-in accept every model, few images make a training due, and nothing wait for long."""
    text = (root / "dvc.yaml").read_text()
    for stage in MEASURING:
        text = drop_stage(text, stage)
    text = text.replace("[python -m ace config check, python -m ace pretrain]", "python -m ace pretrain")
    stage = {"cmd": "python gate.py", "deps": ["gate.py", "models/ace"], "params": ["operations.gate"]}
    stage["metrics"] = [{"metrics/gate.json": {"cache": False}}]
    (root / "dvc.yaml").write_text(f"{text}\n  gate: {json.dumps(stage)}\n")
    (root / "gate.py").write_text(STAND_IN)
    edit(root / "params.yaml", f"min_new_images: {MIN_NEW}", "min_new_images: 2")
    edit(root / "pipelines/service.py", "TICK_S = 30", "TICK_S = 5")
    edit(root / "pipelines/service.py", "AGAIN_S = 600", "AGAIN_S = 20")
    edit(root / "pipelines/service.py", "max_retries=6, delay=600", "max_retries=6, delay=5")
    edit(root / "pipelines/service.py", "max_retries=3, delay=60", "max_retries=3, delay=5")
    commit(root, "a service in haste")
