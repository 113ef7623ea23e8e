"""A small DVC repository with every shape the real graph has: foreach over a mapping, several outs, metrics, plots.

Each command appends its stage to `$TOY_LOG`, so that a test sees what really ran.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from dagster import AssetKey, DagsterInstance

DVC_YAML = """
stages:
  raw:
    desc: Numbers to start from
    cmd: python -m toy raw data/raw
    params: [raw]
    deps: [toy]
    outs: [data/raw]
    meta: {dagster: {group: data}}
  shard:
    foreach: ${batches}
    do:
      desc: One delivery
      cmd: python -m toy shard data/shards/${key} ${item.dep}
      params: [shard, "batches.${key}"]
      deps: [toy, "${item.dep}"]
      outs: ["data/shards/${key}"]
      meta: {dagster: {group: data, pool: cpu, jobs: 2}}
  train:
    desc: A model of both
    cmd:
      - python -m toy train models/toy data/shards/own data/shards/raw-b000
      - python -m toy measure models/toy
    params: [train.rate, train.fail]
    deps: [toy/__main__.py, data/shards/own, data/shards/raw-b000]
    outs: [models/toy]
    metrics:
      - metrics/train.json: {cache: false}
    plots:
      - metrics/plots: {cache: false}
    meta: {dagster: {group: model, pool: gpu}}
"""

PARAMS_YAML = """
raw: {count: 3}
shard: {scale: 2}
batches:
  raw-b000: {dep: data/raw}
  own: {dep: manifest.csv}
train:
  rate: 1.0e-3
  fail: false
  checks:
    trained.accuracy: {min: 0.5}
    trained.loss: {min: 0.5, max: 2}
    untrained.accuracy: {min: 0.9}
"""

PROGRAM = """
import json, os, pathlib, sys

stage, out, *deps = sys.argv[1:]
with open(os.environ["TOY_LOG"], "a") as log:
    log.write(f"{stage} {out}\\n")
if "TOY_HOOK" in os.environ:
    exec(os.environ["TOY_HOOK"])
out = pathlib.Path(out)
out.mkdir(parents=True, exist_ok=True)
if stage == "measure":
    print("\\n".join(f"step {step}" for step in range(100)), flush=True)
    if "fail: true" in pathlib.Path("params.yaml").read_text():
        sys.exit("the data are not to my taste")
    metrics = pathlib.Path("metrics")
    (metrics / "plots").mkdir(parents=True, exist_ok=True)
    (metrics / "plots" / "loss.tsv").write_text("step\\tloss\\n0\\t3.5\\n1\\t1.25\\n")
    figures = {"trained": {"accuracy": 0.75, "loss": 1.25}, "untrained": {"accuracy": 0.1}, "name": "toy"}
    (metrics / "train.json").write_text(json.dumps(figures))
else:
    (out / "content.txt").write_text("".join(sorted(str(pathlib.Path(dep).stat().st_mode) for dep in deps)))
    params = pathlib.Path("params.yaml").read_text().splitlines()
    start = next(number for number, line in enumerate(params) if line.startswith(stage))
    (out / "params.txt").write_text("".join(params[start : start + 3]))
"""

FILES = {
    "dvc.yaml": DVC_YAML,
    "params.yaml": PARAMS_YAML,
    "manifest.csv": "path,bytes\na.png,1\n",
    "toy/__init__.py": "",
    "toy/__main__.py": PROGRAM,
    ".gitignore": "/data/\n/models/\n__pycache__/\n",
    ".dvcignore": "__pycache__/\n",
}


OUTS = {"data/raw", "data/shards/raw-b000", "data/shards/own", "models/toy", "metrics/train.json", "metrics/plots"}


def build_toy(root: Path) -> None:
    """Write the repository, commit it, and run it once."""
    for name, text in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    git(root, "init", "--quiet")
    dvc(root, "init", "--quiet")
    dvc(root, "repro")
    git(root, "add", "--all")
    git(root, "-c", "user.name=toy", "-c", "user.email=toy@localhost", "commit", "--quiet", "-m", "toy")


def git(root: Path, *arguments: str) -> None:
    subprocess.run(["git", *arguments], cwd=root, check=True)


def dvc(root: Path, *arguments: str) -> str:
    """Run dvc of this environment as a user with the environment activated would."""
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *arguments], cwd=root, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def settle(root: Path) -> None:
    """Make every file some minutes old: what has just been written may be written again unseen."""
    then_s = time.time() - 300
    for path in (root, *root.rglob("*")):
        os.utime(path, (then_s, then_s), follow_symlinks=False)


def appears(look: Callable[[], object], is_going_on: Callable[[], bool] = lambda: True) -> bool:
    """Whether `look` finds something within two minutes, as long as what should bring it about goes on."""
    end = time.monotonic() + 120
    while not look():
        if not is_going_on() or time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def make_dagsters_tables() -> None:
    """Let one process make the tables below DAGSTER_HOME; several that start at once get into each other's way."""
    with DagsterInstance.get() as instance:
        instance.get_runs(limit=1)
        instance.all_instigator_state()
        instance.fetch_observations(AssetKey("any"), limit=1)
