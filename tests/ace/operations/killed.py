"""Kill a run of deliveries at every change that it makes on the disk, and let the next one finish it: a script.

The process is ended as by kill -9: nothing is cleaned up, and no `finally` runs.

    python -m tests.ace.operations.killed FOLDER FIRST STEP
"""

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ace.operations.deliveries as module
from tests.ace.operations.delivered import build_here, deliveries_of, lines_of_log, mixed, status
from tests.support.checkout import git

EFFECTS = ("os.rename", "os.remove", "os.mkdir", "shutil.rmtree", "shutil.move", "subprocess.Popen")
KILLED = 9


def main(folder: Path, first: int, step: int) -> int:
    """Kill after `first` changes, then after `step` more, until a run ends by itself; returns how many were killed."""
    module.repro = build_here
    num_killed = 0
    while True:
        copy = folder.with_name("copy")
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(folder, copy, symlinks=True)
        num_effects = first + num_killed * step
        if in_child(lambda: go(copy, num_effects)) != KILLED:  # noqa: B023, called at once
            return num_killed
        num_killed += 1
        print(f"killed after {num_effects} changes", flush=True)
        assert in_child(lambda: go(copy, None)) == 0, f"killed after {num_effects} changes, the next call fails"  # noqa: B023
        assert in_child(lambda: check(copy)) == 0, f"killed after {num_effects} changes, the end is another"  # noqa: B023


def go(project: Path, num_effects: int | None) -> None:
    if num_effects is not None:
        kill_after(num_effects)
    for line in deliveries_of(project).run():
        print(line, flush=True)


def kill_after(num_effects: int) -> None:
    """End this process in place of the change after so many."""
    left, is_ours = num_effects, True

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        is_write = event == "open" and isinstance(arguments[2], int) and bool(arguments[2] & (os.O_WRONLY | os.O_RDWR))
        if is_ours and (event in EFFECTS or is_write):
            left -= 1
            if left < 0:
                os._exit(KILLED)

    def build(*arguments: Any) -> str | None:
        nonlocal is_ours
        is_ours = False  # what a killed build leaves is the stage's own affair
        try:
            return build_here(*arguments)
        finally:
            is_ours = True

    module.repro = build
    sys.addaudithook(hook)


def check(project: Path) -> None:
    """Both deliveries are where they belong, whole and once."""
    deliveries = {item.sent_as: item for item in deliveries_of(project).taken()}
    assert {name: item.state for name, item in deliveries.items()} == {"March": "accepted", "negatives": "refused"}
    for item in deliveries.values():
        assert len(list((item.folder / "images").glob("*.png"))) == 30
        assert item.report is not None
    accepted = deliveries["March"].name
    assert mixed(project) == ["clinic-b000", accepted]
    assert status(project) == ""
    assert git(project, "log", "--format=%s").splitlines() == [f"Batch {accepted} is accepted", "the project"]
    refused = deliveries["negatives"].name
    assert lines_of_log(project) == [(accepted, "accepted", "the checks"), (refused, "refused", "the checks")]
    assert not list((project / "data").glob(f"*/{refused}*"))
    assert (project / "data" / "shards" / accepted / "index.json").is_file()
    assert sorted(path.name for path in (project / "incoming").iterdir()) == []
    assert sorted(path.name for path in (project / "deliveries").iterdir()) == [".lock", accepted]
    assert sorted(path.name for path in (project / "quarantine").iterdir()) == [refused]


def in_child(call: Callable[[], None]) -> int:
    """Call in a process of its own; returns its exit code."""
    child = os.fork()
    if not child:
        code = 1
        try:
            call()
            code = 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            sys.stdout.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    print(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])), "were killed")
