import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from shards.core.errors import NoSpaceError, SourceError
from shards.runtime.atomic import (
    atomic_directory,
    atomic_path,
    check_room,
    clear_when_full,
    make_private_folder,
    replace_directory,
    size,
    write_private_text,
    write_text,
)
from tests.support.datasets import folder_bytes

REPOSITORY = Path(__file__).parents[3]
KILLED_WHILE_WRITING = """
import os, signal, sys
from pathlib import Path
from shards.runtime.atomic import atomic_path

with atomic_path(Path(sys.argv[1])) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def write_folder(folder: Path, content: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "file").write_text(content)
    return folder


def test_a_file_appears_whole_and_replaces_the_old_one(tmp_path: Path) -> None:
    write_text(tmp_path / "deep" / "file.txt", "old")
    write_text(tmp_path / "deep" / "file.txt", "new ü")
    assert folder_bytes(tmp_path) == {"deep/file.txt": "new ü".encode()}


@pytest.mark.skipif(os.name != "posix", reason="modes of files")
def test_a_private_file_and_its_folder_are_closed_to_others_whatever_the_mask_and_what_was_there(
    tmp_path: Path,
) -> None:
    before = os.umask(0)
    try:
        for name in ("deep/new", "old"):
            make_private_folder(tmp_path / name)
            write_private_text(tmp_path / name / "file", "ü")
            assert (tmp_path / name).stat().st_mode & 0o777 == 0o700
            assert (tmp_path / name / "file").stat().st_mode & 0o777 == 0o600
            assert (tmp_path / name / "file").read_text(encoding="utf-8") == "ü"
            (tmp_path / name).chmod(0o755)
            (tmp_path / name / "file").chmod(0o644)
            make_private_folder(tmp_path / name)
            write_private_text(tmp_path / name / "file", "again")
            assert (tmp_path / name).stat().st_mode & 0o777 == 0o700
            assert (tmp_path / name / "file").stat().st_mode & 0o777 == 0o600
    finally:
        os.umask(before)


def test_an_error_while_writing_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    write_text(tmp_path / "file.txt", "old")

    def write_half() -> None:
        with atomic_path(tmp_path / "file.txt") as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert folder_bytes(tmp_path) == {"file.txt": b"old"}


def test_the_next_writer_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    target = tmp_path / "file[1].txt"
    write_text(target, "old")
    killed = subprocess.run([sys.executable, "-c", KILLED_WHILE_WRITING, str(target)])
    assert killed.returncode == -signal.SIGKILL
    assert sorted(folder_bytes(tmp_path).values()) == [b"half", b"old"]
    write_text(target, "new")
    assert folder_bytes(tmp_path) == {target.name: b"new"}


def test_two_writers_at_once_do_not_disturb_each_other(tmp_path: Path) -> None:
    target = tmp_path / "file.txt"
    with atomic_path(target) as temporary:
        temporary.write_text("mine")
        other = "import sys; from pathlib import Path; from shards.runtime.atomic import write_text; "
        subprocess.run(
            [sys.executable, "-c", f"{other} write_text(Path(sys.argv[1]), 'other')", str(target)], check=True
        )
        assert target.read_text() == "other"
    assert folder_bytes(tmp_path) == {"file.txt": b"mine"}


def test_files_of_other_targets_stay(tmp_path: Path) -> None:
    names = [".other.txt.999999999.tmp", ".file.txt.tmp", ".file.txt.backup.tmp", "file.txt.999999999.tmp"]
    for name in names:
        (tmp_path / name).write_text("")
    write_text(tmp_path / "file.txt", "")
    assert sorted(folder_bytes(tmp_path)) == sorted([*names, "file.txt"])


def test_a_folder_replaces_an_older_one_whole(tmp_path: Path) -> None:
    write_folder(tmp_path / "out", "old")
    (tmp_path / "out" / "stale").touch()
    replace_directory(write_folder(tmp_path / ".out.tmp", "new"), tmp_path / "out")
    assert folder_bytes(tmp_path) == {"out/file": b"new"}


def test_a_kill_between_the_two_renames_loses_no_folder_and_the_next_run_completes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, finished = write_folder(tmp_path / "out", "old"), write_folder(tmp_path / ".out.tmp", "new")
    rename = Path.rename

    def rename_unless_finished(path: Path, to: Path) -> Path:
        if path == finished:
            raise KeyboardInterrupt
        return rename(path, to)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", rename_unless_finished)
        with pytest.raises(KeyboardInterrupt):
            replace_directory(finished, target)
    assert folder_bytes(tmp_path) == {".out.old/file": b"old", ".out.tmp/file": b"new"}
    replace_directory(finished, target)
    assert folder_bytes(tmp_path) == {"out/file": b"new"}


@pytest.mark.parametrize("name", [".gitignore", ".dvcignore"])
def test_what_a_kill_leaves_is_ignored(name: str) -> None:
    assert {".*.tmp", ".*.old", ".*.new"} <= set((REPOSITORY / name).read_text().splitlines())


def test_a_process_of_another_user_counts_as_running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int, number: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "kill", refuse)
    (tmp_path / ".file.txt.1.tmp").write_text("theirs")
    write_text(tmp_path / "file.txt", "mine")
    assert (tmp_path / ".file.txt.1.tmp").read_text() == "theirs"


@contextmanager
def small_files() -> Iterator[None]:
    """No file of this process may grow over 1,000 bytes inside: writes fail as on a full disk.

    Not during the whole test: pytest's own output may go to a file.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


TOO_LARGE = r" \([\d,.]+ [kMG]B free\): File too large, {} needed; what was finished is kept, nothing is half written"


def test_a_file_that_does_not_fit_names_its_folder_and_what_it_needs(tmp_path: Path) -> None:
    write_text(tmp_path / "file.txt", "old")
    full = str(tmp_path) + TOO_LARGE.format(r"about 3\.0 kB are")
    with pytest.raises(NoSpaceError, match=full), small_files():
        write_text(tmp_path / "file.txt", 1500 * "ü")
    assert folder_bytes(tmp_path) == {"file.txt": b"old"}


def write_by_python(folder: Path) -> None:
    (folder / "large").write_bytes(bytes(2000))


def write_by_safetensors(folder: Path) -> None:
    save_file({"large": np.zeros(2000)}, folder / "large")


def write_by_copytree(folder: Path) -> None:
    shutil.copytree(Path(__file__).parents[1] / "quality", folder, dirs_exist_ok=True)


def write_within(folder: Path) -> None:
    write_text(folder / "large", 2000 * "x")


@pytest.mark.parametrize("write", [write_by_python, write_by_safetensors, write_by_copytree, write_within])
def test_a_folder_that_does_not_fit_names_the_one_around_it_and_leaves_the_old_one(
    write: Callable[[Path], None], tmp_path: Path
) -> None:
    write_text(tmp_path / "target" / "file.txt", "old")
    with (
        pytest.raises(NoSpaceError, match=f"^{tmp_path}" + TOO_LARGE.format(".*")),
        small_files(),
        atomic_directory(tmp_path / "target") as folder,
    ):
        write(folder)
    assert folder_bytes(tmp_path) == {"target/file.txt": b"old"}
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_a_folder_appears_whole_and_replaces_the_old_one(tmp_path: Path) -> None:
    for content in ("old", "new"):
        with atomic_directory(tmp_path / "deep" / "target") as folder:
            (folder / content).write_text(content)
    assert folder_bytes(tmp_path) == {"deep/target/new": b"new"}


def test_other_errors_than_of_a_full_disk_stay_as_they_are(tmp_path: Path) -> None:
    write_text(tmp_path / "target" / "file.txt", "old")
    with pytest.raises(FileNotFoundError), atomic_directory(tmp_path / "target") as folder:
        (folder / "missing" / "file").write_text("")
    with pytest.raises(SourceError, match=r"^No space left on device$"), clear_when_full(tmp_path):
        raise SourceError("No space left on device")
    assert folder_bytes(tmp_path) == {"target/file.txt": b"old"}


def test_room_is_looked_for_where_a_folder_will_be_and_told_in_units_of_its_size(tmp_path: Path) -> None:
    check_room(tmp_path / "not" / "yet", 1.0, "files")
    with pytest.raises(NoSpaceError, match=r"not/yet: .* free, files need about 10,000,000\.0 GB; make room there"):
        check_room(tmp_path / "not" / "yet", 1e16, "files")
    assert [size(num_bytes) for num_bytes in (0, 999, 1.5e6, 2e9)] == ["0.0 kB", "1.0 kB", "1.5 MB", "2.0 GB"]
