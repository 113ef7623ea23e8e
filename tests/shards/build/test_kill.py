import builtins
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from shards.__main__ import build_parser
from shards.build import plan as plan_module
from shards.build.encode import SampleEncoder
from shards.build.stage import build_shards
from shards.cli import run_command
from shards.core.params import PhantomSourceParams
from tests.support.datasets import Here, folder_bytes, grid_params, shard_params, write_phantom, write_project


def descendants(pid: int) -> list[int]:
    """Process ids of the worker processes, from /proc."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in children.read_text().split()] if children.exists() else []


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def num_finished(scratch: Path) -> int:
    return len(list(scratch.rglob("*.tar.json")))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> PhantomSourceParams:
    """Raw images that no test changes."""
    return write_phantom(tmp_path_factory.mktemp("raw") / "phantom", num_patients=30)


@pytest.fixture(scope="module")
def whole(source: PhantomSourceParams, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Their shard set, built without a kill."""
    root = tmp_path_factory.mktemp("built")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACE_SCRATCH", str(root / "scratch"))
        build_shards("a-b000", source, grid_params(), shard_params(), root / "whole", execution=Here())
    return folder_bytes(root / "whole")


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="watches processes through /proc")
@pytest.mark.parametrize(
    "is_reached",
    [
        pytest.param(
            lambda scratch, out: bool(list(scratch.rglob("*.lock"))), id="at the start", marks=pytest.mark.slow
        ),
        pytest.param(lambda scratch, out: num_finished(scratch) >= 1, id="after one tar", marks=pytest.mark.slow),
        pytest.param(lambda scratch, out: num_finished(scratch) >= 4, id="after four tars", marks=pytest.mark.slow),
        pytest.param(lambda scratch, out: out.with_name(f".{out.name}.tmp").exists(), id="while publishing"),
    ],
)
def test_a_killed_build_goes_on_and_leaves_the_same_bytes(
    is_reached: Callable[[Path, Path], bool],
    source: PhantomSourceParams,
    whole: dict[str, bytes],
    tmp_path: Path,
    scratch: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    write_project(tmp_path, "a-b000", source, grid_params(), shard_params())
    out = tmp_path / "sets" / "killed"
    command = ["shard", "--batch", "a-b000", "--params", str(tmp_path / "params.yaml"), "--out", str(out)]

    process = subprocess.Popen(
        [sys.executable, "-m", "shards", *command, "--num-workers", "2"], stderr=subprocess.DEVNULL
    )
    while not is_reached(scratch, out):
        assert process.poll() is None, "the build ended before the kill"
    workers = descendants(process.pid)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "index.json").exists()
    while any(is_running(pid) for pid in workers):
        os.sched_yield()  # a worker that outlives its parent runs into the test's time limit
    num_kept = num_finished(scratch)

    assert run_command(build_parser(), [*command, "--num-workers", "1"]) == 0
    assert folder_bytes(out) == whole
    assert [path.name for path in out.parent.iterdir()] == ["killed"]
    assert {path.suffix for path in scratch.rglob("*") if path.is_file()} <= {".lock"}
    if num_kept >= 4:
        said = capfd.readouterr().err
        assert "/45" in said
        assert not re.search(r"\b0/45", said), "finished tars are kept"


def test_unfinished_work_is_held_by_a_number_and_by_no_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """A changed line of the code would else throw away the finished tars of a large build."""
    encoder = SampleEncoder(
        batch="own-b000", kind="folder", root=Path(), channels=1, spec=grid_params().spec, params=shard_params()
    )
    monkeypatch.setattr(plan_module, "version", lambda name: "1.0")
    for owner, name in ((Path, "open"), (Path, "read_bytes"), (Path, "read_text"), (builtins, "open")):
        monkeypatch.setattr(owner, name, lambda *_: pytest.fail("a file was read"))
    before = plan_module.fingerprint(64 * "0", encoder)
    monkeypatch.setattr(plan_module, "VERSION", plan_module.VERSION + 1)
    assert plan_module.fingerprint(64 * "0", encoder) != before
