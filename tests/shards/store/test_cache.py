"""The cache of remote files: its bound, its locks, and what is left when its processes are killed."""

import errno
import fcntl
import hashlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import BinaryIO

import numpy as np
import pytest

from shards.core.errors import ConfigError, StoreError
from shards.store import cache as cache_module
from shards.store.cache import CACHE_VARIABLE, DEFAULT_GB, SIZE_VARIABLE, ShardCache, StoredFile
from shards.store.location import RemoteStore
from shards.store.remote import Remote, Retry
from tests.support.servers import FlakyServer

SIZE = 100_000
QUICK = Retry(attempts=3, first_delay_s=0.01, max_delay_s=0.05, timeout_s=5.0)


def stored_file(number: int, size: int = SIZE) -> tuple[StoredFile, bytes]:
    content = np.random.default_rng(number).bytes(size)
    return StoredFile(f"train-{number:06d}.tar", size, hashlib.sha256(content).hexdigest()), content


def fetch(cache: ShardCache, number: int, size: int = SIZE) -> int:
    stored, content = stored_file(number, size)
    return cache.open(stored, f"test://{stored.name}", lambda file: file.write(content[file.tell() :]) and None)


def held(cache: ShardCache, count: int = 12) -> list[int]:
    """Numbers of the files that are in the cache."""
    return [number for number in range(count) if cache.path(stored_file(number)[0]).is_file()]


def use(cache: ShardCache, number: int, at: float) -> None:
    """As if it had been used so many seconds after the epoch."""
    os.utime(cache.path(stored_file(number)[0]), (at, at))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FlakyServer]:
    (tmp_path / "served").mkdir()
    for number in range(4):
        stored, content = stored_file(number, 20 * 2**16)
        (tmp_path / "served" / stored.name).write_bytes(content)
    server = FlakyServer(tmp_path / "served")
    yield server
    server.close()


def read_remote(url: str, root: Path, numbers: list[int]) -> list[str]:
    """Runs in other processes too: sha256 of the files as they are read."""
    store = RemoteStore(Remote(url, {}, QUICK), ShardCache(root, 10**9))
    found = []
    for number in numbers:
        with os.fdopen(store.open(stored_file(number, 20 * 2**16)[0]), "rb") as file:
            found.append(hashlib.sha256(file.read()).hexdigest())
    return found


def test_what_was_not_used_for_longest_is_evicted_to_keep_the_bound(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, 3 * SIZE)
    for number in range(3):
        os.close(fetch(cache, number))
    for number, at in ((0, 300), (1, 100), (2, 200)):
        use(cache, number, at)
    os.close(fetch(cache, 3))
    assert held(cache) == [0, 2, 3]
    os.close(fetch(cache, 2))  # used again, so 0 is older now
    use(cache, 3, 400)
    os.close(fetch(cache, 4))
    assert held(cache) == [2, 3, 4]
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 3 * SIZE


@pytest.mark.parametrize("is_downloaded_by_its_reader", [True, False])
def test_a_file_that_is_being_read_is_not_evicted(is_downloaded_by_its_reader: bool, tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, 2 * SIZE)
    if not is_downloaded_by_its_reader:
        os.close(fetch(cache, 0))
    descriptor = fetch(cache, 0)
    os.close(fetch(cache, 1))
    use(cache, 0, 1)
    use(cache, 1, 2)
    os.close(fetch(cache, 2))
    assert held(cache) == [0, 2]
    os.close(descriptor)
    use(cache, 0, 1)
    os.close(fetch(cache, 3))
    assert held(cache) == [2, 3]


def test_what_lies_beside_the_caches_files_is_left_alone(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, SIZE)
    for name in ("thesis.tar", "notes.txt", "a.5.part"):
        (tmp_path / name).write_bytes(bytes(10 * SIZE))
    os.close(fetch(cache, 0))
    os.close(fetch(cache, 1))
    assert held(cache) == [1]
    assert all((tmp_path / name).stat().st_size == 10 * SIZE for name in ("thesis.tar", "notes.txt", "a.5.part"))


def test_rows_of_an_index_go_last(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, 2 * SIZE)
    content = bytes(SIZE // 2)
    rows = StoredFile("samples.npy", len(content), hashlib.sha256(content).hexdigest())
    os.close(cache.open(rows, "test://samples.npy", lambda file: file.write(content) and None))
    os.utime(cache.path(rows), (1, 1))
    os.close(fetch(cache, 0))
    os.close(fetch(cache, 1))
    assert cache.path(rows).is_file()
    assert held(cache) == [1]


def test_a_file_larger_than_the_cache_is_refused_with_both_sizes(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"{SIZE} bytes, .* may hold {SIZE - 1}; raise {SIZE_VARIABLE}"):
        fetch(ShardCache(tmp_path / "cache", SIZE - 1), 0)


def test_a_full_disk_is_found_before_a_byte_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = ShardCache(tmp_path, 10 * SIZE)
    monkeypatch.setattr(cache_module.shutil, "disk_usage", lambda path: SimpleNamespace(free=SIZE // 2))
    stored, _ = stored_file(0)

    def download(file: BinaryIO) -> None:
        pytest.fail("asked the server although there is no room")

    with pytest.raises(StoreError, match=f"{SIZE} bytes, and .* lacks .*; free space"):
        cache.open(stored, "test://a", download)
    assert not list(tmp_path.glob("*.part"))


def test_a_nearly_full_disk_makes_the_cache_smaller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = ShardCache(tmp_path, 10 * SIZE)
    for number in range(3):
        os.close(fetch(cache, number))
        use(cache, number, number)
    disk = SIZE // 2 + cache_module._RESERVE_BYTES + 3 * SIZE

    def usage(path: Path) -> SimpleNamespace:
        return SimpleNamespace(free=disk - sum(file.stat().st_size for file in tmp_path.glob("*.tar")))

    monkeypatch.setattr(cache_module.shutil, "disk_usage", usage)
    os.close(fetch(cache, 3))
    assert held(cache) == [1, 2, 3]


def test_a_disk_that_fills_up_while_writing_is_told_and_leaves_no_whole_file(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, 10 * SIZE)

    def download(file: BinaryIO) -> None:
        file.write(bytes(SIZE // 2))
        raise OSError(28, "No space left on device")

    with pytest.raises(StoreError, match="the cache cannot be used: No space left on device; free space"):
        cache.open(stored_file(0)[0], "test://a", download)
    assert held(cache) == []
    os.close(fetch(cache, 1))


def test_what_others_are_about_to_write_counts_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = ShardCache(tmp_path, 10 * SIZE)
    other = tmp_path / f"{stored_file(1)[0].sha256}.{SIZE}.part"
    other.write_bytes(b"")
    disk = cache_module._RESERVE_BYTES + SIZE + SIZE // 2
    monkeypatch.setattr(cache_module.shutil, "disk_usage", lambda path: SimpleNamespace(free=disk))
    monkeypatch.setattr(cache_module, "_ROOM_TIMEOUT_S", 0.0)
    with (tmp_path / f"{stored_file(1)[0].sha256}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # as who downloads the other
        with pytest.raises(StoreError, match=f"{SIZE} bytes, and .* lacks {SIZE // 2} for it"):
            fetch(cache, 0)
        assert other.exists()
    os.close(fetch(cache, 0))
    assert not other.exists()


def test_a_disk_full_of_files_in_use_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = ShardCache(tmp_path, 10 * SIZE)
    descriptor = fetch(cache, 1)
    disk = cache_module._RESERVE_BYTES + SIZE + SIZE // 2

    def usage(path: Path) -> SimpleNamespace:
        return SimpleNamespace(free=disk - sum(file.stat().st_size for file in tmp_path.glob("*.tar")))

    monkeypatch.setattr(cache_module.shutil, "disk_usage", usage)
    threading.Timer(0.5, os.close, [descriptor]).start()
    os.close(fetch(cache, 0))
    assert held(cache) == [0]


def test_files_of_a_folder_that_cannot_be_written_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = ShardCache(tmp_path, SIZE)
    os.close(fetch(cache, 0))

    def refuse(*args: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(cache_module.os, "utime", refuse)
    with os.fdopen(fetch(cache, 0), "rb") as file:
        assert file.read() == stored_file(0)[1]


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_place_that_is_no_folder_is_told(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match=f"{place}: the cache cannot be used: .*set {CACHE_VARIABLE} to a folder"):
        fetch(ShardCache(tmp_path / place, SIZE), 0)


def test_who_waits_for_room_gives_up_what_it_has_so_that_no_two_wait_for_each_other(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, SIZE + SIZE // 2)
    own, other = (tmp_path / f"{stored_file(number)[0].sha256}.{SIZE}.part" for number in (0, 1))
    own.write_bytes(stored_file(0)[1][: SIZE // 2])
    other.write_bytes(b"")
    thread = threading.Thread(target=lambda: os.close(fetch(cache, 0)))
    with (tmp_path / f"{stored_file(1)[0].sha256}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # as who downloads the other
        thread.start()
        deadline = time.monotonic() + 20
        while own.exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert thread.is_alive()
        other.unlink()
    thread.join(timeout=20)
    assert held(cache) == [0]


def test_the_folder_is_its_owners_alone(tmp_path: Path) -> None:
    os.close(fetch(ShardCache(tmp_path / "cache", SIZE), 0))
    assert (tmp_path / "cache").stat().st_mode & 0o077 == 0


def test_several_processes_and_threads_share_one_download_of_each_file(server: FlakyServer, tmp_path: Path) -> None:
    server.pause_s = 0.01
    expected = [stored_file(number, 20 * 2**16)[0].sha256 for number in range(4)]
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        others = [pool.submit(read_remote, server.url, tmp_path / "cache", [0, 1, 2, 3]) for _ in range(2)]
        own: list[list[str]] = []
        threads = [
            threading.Thread(target=lambda: own.append(read_remote(server.url, tmp_path / "cache", [3, 2, 1, 0])))
            for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)
        assert [other.result(timeout=60) for other in others] == [expected, expected]
    assert own == [expected[::-1], expected[::-1]]
    assert sorted(name for name, _ in server.requests) == [stored_file(number)[0].name for number in range(4)]


READ = "import sys; from pathlib import Path; from tests.shards.store.test_cache import read_remote; "
READ += "print(read_remote(sys.argv[1], Path(sys.argv[2]), [0]))"


@pytest.mark.parametrize("knows_ranges", [True, False])
def test_a_download_killed_with_9_is_finished_by_the_next_process(
    knows_ranges: bool, server: FlakyServer, tmp_path: Path
) -> None:
    server.pause_s, server.knows_ranges = 0.05, knows_ranges
    command = [sys.executable, "-c", READ, server.url, str(tmp_path / "cache")]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    parts: list[Path] = []
    while not parts or parts[0].stat().st_size < 2**17:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
        parts = list((tmp_path / "cache").glob("*.part"))
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = parts[0].stat().st_size
    assert not list((tmp_path / "cache").glob("*.tar"))

    server.pause_s = 0.0
    assert read_remote(server.url, tmp_path / "cache", [0]) == [stored_file(0, 20 * 2**16)[0].sha256]
    assert server.requests[-1][1] == f"bytes={kept}-"
    assert [path.suffix for path in (tmp_path / "cache").iterdir() if path.suffix != ".lock"] == [".tar"]


def test_a_part_that_is_damaged_or_too_long_is_thrown_away(server: FlakyServer, tmp_path: Path) -> None:
    stored, content = stored_file(0, 20 * 2**16)
    part = tmp_path / f"{stored.sha256}.{stored.num_bytes}.part"
    for left in (bytes(1000), content + b"more", bytes(len(content))):
        part.write_bytes(left)
        assert read_remote(server.url, tmp_path, [0]) == [stored.sha256]
        (tmp_path / f"{stored.sha256}.tar").unlink()


def test_parts_that_nobody_finishes_make_room(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, 2 * SIZE)
    stored, content = stored_file(9)
    (tmp_path / f"{stored.sha256}.{SIZE}.part").write_bytes(content[:10])
    os.close(fetch(cache, 0))
    os.close(fetch(cache, 1))
    assert held(cache) == [0, 1]
    assert not list(tmp_path.glob("*.part"))


def test_a_part_that_somebody_writes_keeps_its_place(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, 2 * SIZE)
    stored, content = stored_file(9)
    part = tmp_path / f"{stored.sha256}.{SIZE}.part"
    part.write_bytes(content[:10])
    with (tmp_path / f"{stored.sha256}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.close(fetch(cache, 0))
        os.close(fetch(cache, 1))
        assert part.exists()
        assert held(cache) == [1]


def test_place_and_size_come_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CACHE_VARIABLE, raising=False)
    monkeypatch.delenv(SIZE_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert ShardCache.from_environment() == ShardCache(tmp_path / "ace" / "shards", int(DEFAULT_GB * 1e9))
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "other"))
    monkeypatch.setenv(SIZE_VARIABLE, "0.5")
    assert ShardCache.from_environment() == ShardCache(tmp_path / "other", 500_000_000)


@pytest.mark.parametrize("size", ["0", "-1", "much", "inf", "nan"])
def test_a_size_that_is_none_is_refused(size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SIZE_VARIABLE, size)
    with pytest.raises(ConfigError, match=f"{SIZE_VARIABLE}={size}: expected a number of gigabytes above 0"):
        ShardCache.from_environment()


def test_a_relative_place_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, "cache")
    with pytest.raises(ConfigError, match="expected an absolute path on a local disk"):
        ShardCache.from_environment()
