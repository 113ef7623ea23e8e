"""kill -9 of whatever a running service is made of, at random: what comes next finishes the work, once and right."""

import json
import os
import random
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from itertools import cycle, islice
from pathlib import Path

import psutil
import pytest
from dagster import DagsterInstance

from ace.operations.attempts import Attempts
from ace.operations.audit import first_problem
from ace.operations.clone import Clone
from ace.operations.history import accepted
from ace.operations.publishing import published_commit
from ace.operations.registry import Registry
from ace.operations.retraining_state import BEGAN, open_retraining
from ace.operations.tags import read_events
from pipelines.supervisor import is_alive
from shards.reading.lineage import TRAINING_IMAGES
from tests.ace.operations.delivered import deliver, deliveries_of, load, mixed
from tests.pipelines.clinic import FIRST, environment, hasten, make_clinic
from tests.pipelines.test_process import free_port
from tests.pipelines.toy import edit
from tests.support.checkout import git

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        "ACE_KILLS" not in os.environ, reason="MINUTES FOR EACH KILL, NOT RUN: set ACE_KILLS to a number of kills, as 4"
    ),
]
NUM_KILLS, A_WORK = int(os.environ.get("ACE_KILLS", "4")), 2
"""Kills in all, and of one piece of work: what was killed is killed again before it can finish."""
NUM_OF_EVERY_KIND = 30
"""Kills from which on something of every kind is among them."""
SEED = int(os.environ.get("ACE_KILLS_SEED", "18"))
LOOK_S = 0.2
LIMIT_S = 900
"""Seconds within which a piece of work is finished after a kill, on a busy machine."""
MEASURED = ("images_per_s", "data_wait_share", "peak_memory_gb")
"""What a training measures of itself."""
MARK = "ACE_KILLED_SERVICE"
COMMANDS = {
    "taking": (["-m", "ace", "deliveries", "run"], 20.0),
    "retraining": (["-m", "ace", "retrain", "run", "--automatic"], 20.0),
    "dvc": (["-m", "dvc", "--wait-for-lock", "repro"], 8.0),
    "stage": (["-m", "shards", "shard"], 5.0),
    "training": (["-m", "ace", "pretrain"], 15.0),
    "publishing": (["-m", "ace", "ops", "publish"], 5.0),
}
"""What is killed: how its command begins, and the seconds that it lives at least on a busy machine."""
WORKERS = {"run worker": 15.0, "step worker": 15.0}
SPAWNED = {
    "run worker": ("multiprocessing.spawn", "grpc"),
    "step worker": ("multiprocessing.forkserver", "multiprocessing.forkserver"),
}
"""What a worker's command holds, and its parent's: the code server starts runs, and a step is forked from a server."""
LIFE_S = {kind: life_s for kind, (_, life_s) in COMMANDS.items()} | WORKERS | {"daemon": 30.0}
"""Seconds after its start within which a process of a kind is killed; shorter for the next one if it ends before."""
OF_A_DELIVERY = ("daemon", *WORKERS, "taking", "dvc", "stage", "publishing")
OF_A_TRAINING = ("daemon", *WORKERS, "retraining", "dvc", "training", "publishing")


class Processes:
    """The processes of a service, of which the code server and the daemon are started again whenever they end."""

    def __init__(self, root: Path) -> None:
        self.root, self.mark, port = root, uuid.uuid4().hex, free_port()
        edit(root / "deploy/workspace.yaml", "4266", str(port))
        place = ["--host", "127.0.0.1", "--port", str(port), "--location-name", "ace"]
        self.units = {
            "code": ["dagster", "code-server", "start", *place, "--module-name", "pipelines.definitions"],
            "daemon": ["dagster-daemon", "run", "--workspace", "deploy/workspace.yaml"],
        }
        self.started: dict[str, subprocess.Popen[bytes]] = {}
        self.life_s = dict(LIFE_S)

    def keep(self) -> None:
        """Start what is not running, as systemd does."""
        for name, (program, *words) in self.units.items():
            if name not in self.started or self.started[name].poll() is not None:
                with (self.root.parent / f"{name}.log").open("ab") as log:
                    command = [str(Path(sys.executable).with_name(program)), *words]
                    environment = {**os.environ, MARK: self.mark}
                    self.started[name] = subprocess.Popen(
                        command, cwd=self.root, env=environment, stdout=log, stderr=log
                    )

    def end(self) -> None:
        """Ask both to end, and wait until nothing that they have started is left."""
        for process in self.started.values():
            process.terminate()
        end = time.monotonic() + 120
        while self.all() and time.monotonic() < end:
            [process.poll() for process in self.started.values()]
            time.sleep(0.5)
        left = [process.cmdline() for process in self.all()]
        for process in self.all():
            process.kill()
        for unit in self.started.values():
            unit.wait()
        assert left == []

    def all(self) -> list[psutil.Process]:
        """All living processes of the service, by a variable that each of them has inherited."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get(MARK) == self.mark and is_alive(process):
                    found.append(process)
        return found

    def of(self, kind: str) -> list[psutil.Process]:
        """All living processes of a kind."""
        if kind == "daemon":
            return [psutil.Process(self.started["daemon"].pid)]
        found = []
        for process in self.all():
            with suppress(psutil.Error):
                if _is(process, kind):
                    found.append(process)
        return found

    def kill(self, kind: str, generator: random.Random, is_done: Callable[[], bool]) -> bool:
        """Kill a process of a kind at a random moment of its life; tell whether there was one before the work ended."""
        end = time.monotonic() + LIMIT_S
        while not is_done():
            assert time.monotonic() < end, f"waited for a process of the kind {kind}, and in vain for its work"
            self.keep()
            for _ in range(10):
                for process in self.of(kind)[:1]:
                    time.sleep(generator.uniform(0, self.life_s[kind]))
                    with suppress(psutil.NoSuchProcess):
                        process.kill()
                        return True
                    self.life_s[kind] *= 0.6
                time.sleep(LOOK_S)
        return False


def _is(process: psutil.Process, kind: str) -> bool:
    words = process.cmdline()
    if kind in COMMANDS:
        start = COMMANDS[kind][0]
        return words[1 : 1 + len(start)] == start
    parent = process.parent()
    chain = [words, parent.cmdline() if parent else []]
    return all(any(part in word for word in of) for part, of in zip(SPAWNED[kind], chain, strict=True))


@pytest.fixture
def processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Processes]:
    for name, value in environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    root = make_clinic(tmp_path)
    hasten(root)
    processes = Processes(root)
    git(root, "commit", "--quiet", "--all", "--message", "a port")
    processes.keep()
    try:
        yield processes
    finally:
        processes.end()


def is_taken(root: Path, name: str) -> bool:
    """A delivery is accepted."""
    return _batch_of(root, name) is not None


def is_trained(root: Path, name: str) -> bool:
    """A model that was trained with a delivery is the accepted one, all of it is published, and nothing is at work."""
    events = read_events(root)
    if accepted(events) is None or open_retraining(events) is not None or _is_at_work():
        return False
    used = (root.parent / "served/accepted" / TRAINING_IMAGES).read_text()
    return f"\n{_batch_of(root, name)}," in used and published_commit(root) == git(root, "rev-parse", "HEAD").strip()


def _batch_of(root: Path, name: str) -> str | None:
    found = {item.sent_as: item.name for item in deliveries_of(root).taken() if item.state == "accepted"}
    return found.get(name)


def _is_at_work() -> bool:
    with DagsterInstance.get() as instance:
        return any(not run.is_finished for run in instance.get_runs(limit=50))


@pytest.mark.timeout(LIMIT_S * (NUM_KILLS + 2))
def test_what_is_killed_at_random_is_finished_by_what_comes_next_once_and_right(processes: Processes) -> None:
    root, generator = processes.root, random.Random(SEED)
    kinds = [cycle(generator.sample(of, len(of))) for of in (OF_A_DELIVERY, OF_A_TRAINING)]
    kills: list[str] = []
    for number in range(NUM_KILLS):
        name = f"ward {number:02}"
        deliver(root.parent / name, range(1000 + 100 * number, 1016 + 100 * number)).rename(root / "incoming" / name)
        for own, is_done in zip(kinds, (is_taken, is_trained), strict=True):
            for kind in islice(own, min(A_WORK, NUM_KILLS - len(kills))):
                if processes.kill(kind, generator, partial(is_done, root, name)):
                    kills.append(kind)
            begun = time.monotonic()
            while not is_done(root, name):
                processes.keep()
                assert time.monotonic() < begun + LIMIT_S, f"{name}: not {is_done.__name__} after {kills}"
                time.sleep(10 * LOOK_S)
            print(f"{name}: {is_done.__name__} {time.monotonic() - begun:.0f} s after {kills}", flush=True)
        if len(kills) == NUM_KILLS:
            break
    processes.end()
    assert len(kills) == NUM_KILLS, "deliveries were at an end before all was killed"
    assert NUM_KILLS < NUM_OF_EVERY_KIND or {*kills} == {*LIFE_S}
    check_slots()
    check_once(root)
    check_bytes(root)


def check_slots() -> None:
    """Nothing holds a slot of a pool, or waits for one."""
    with DagsterInstance.get() as instance:
        pools = instance.event_log_storage.get_concurrency_keys()
        assert pools >= {"deliver", "gpu", "publish"}
        for pool in pools:
            found = instance.event_log_storage.get_concurrency_info(pool)
            assert (pool, found.claimed_slots, found.pending_steps) == (pool, [], [])


def check_once(root: Path) -> None:
    """All is as it was written; each delivery was accepted once, and each retraining has come to one version."""
    assert first_problem(Registry(clone=Clone(root), models=root.parent / "served")) is None
    assert git(root, "status", "--porcelain") == ""
    batches = mixed(root)[1:]
    subjects = git(root, "log", "--format=%s").splitlines()
    events = read_events(root)
    for batch in batches:
        assert subjects.count(f"Batch {batch} is accepted") == 1
        assert len([event for event in events if event.facts.get("batch") == batch]) == 1
        check_one_writer(Attempts(root / "deliveries" / batch / "attempts.jsonl"))
    kinds = [event.kind for event in events if not event.kind.startswith("delivery_")]
    assert kinds == [BEGAN, "registered", "promoted", "retraining_accepted"] * (len(kinds) // 4)
    assert not list((root / "incoming").iterdir())


def check_one_writer(attempts: Attempts) -> None:
    """A step begins when the one before has ended, or its process has."""
    open_step = None
    for line in attempts.read():
        if "started" in line:
            assert open_step is None or open_step["pid"] != line["pid"], "a process goes on after a step that failed"
            open_step = line
        elif "finished" in line:
            assert open_step is not None
            assert line["step"] == open_step["step"], "another process has written between"
            open_step = None


def check_bytes(root: Path) -> None:
    """An undisturbed `dvc repro` of the same commit elsewhere, without any cache, makes the same bytes.

    What a training measures of its own speed and memory is another at each time, as is the commit that it ran at.
    """
    clone = root.parent / "undisturbed"
    git(root.parent, "clone", "--quiet", "--branch", "service", "origin.git", str(clone))
    for kept in ("data/manifests", "deliveries"):
        shutil.copytree(root / kept, clone / kept)
    places = {"ACE_SCRATCH": "scratch2", "DVC_SITE_CACHE_DIR": "site-cache2", "PYTHONPATH": "undisturbed"}
    environment = {**os.environ, **{name: str(root.parent / place) for name, place in places.items()}}
    (clone / "dvc.lock").unlink()
    command = [sys.executable, "-m", "dvc", "repro", "--quiet", "shard", "pretrain"]
    subprocess.run(command, cwd=clone, env=environment, check=True)
    stages, again = load(root / "dvc.lock")["stages"], load(clone / "dvc.lock")["stages"]
    assert {*again} == {name for name in stages if name != "gate"}
    assert {f"shard@{name}" for name in (FIRST, *mixed(root))} < {*again}
    for stage in (stages["pretrain"], again["pretrain"]):
        assert {item["path"] for item in stage.pop("outs")} >= {"models/ace"}
    assert again == {name: stages[name] for name in again}
    assert trained_bytes(clone / "models/ace") == trained_bytes(root / "models/ace")


def trained_bytes(model: Path) -> dict[str, object]:
    """All that a training has made, but for what it measured of itself and the commit that it ran at."""
    made: dict[str, object] = {path.name: path.read_bytes() for path in model.iterdir()}
    assert {"config.json", "metrics.jsonl"} < {*made}
    rows = [json.loads(line) for line in (model / "metrics.jsonl").read_text().splitlines()]
    made["metrics.jsonl"] = [{name: value for name, value in row.items() if name not in MEASURED} for row in rows]
    made["config.json"] = {**json.loads((model / "config.json").read_text()), "commit": ""}
    return made
