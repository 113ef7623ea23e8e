"""The event log keeps every event, through kills and beside other writers, and says where it is not as written."""

import fcntl
import hashlib
import json
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from ace.operations.errors import OperationsError
from ace.operations.events import Actor, EventLog, check_lines

ANNA = Actor("Anna <anna@example.org>")
NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)
CONTEXT = multiprocessing.get_context("fork")


def written(folder: Path, number: int = 5) -> bytes:
    log = EventLog(folder / "events.jsonl")
    for count in range(1, number + 1):
        log.append("noted", {"count": count}, actor=ANNA, now=NOW, files={"a": "0" * 64})
    return log.path.read_bytes()


def test_each_line_has_its_number_who_when_what_and_the_sha256_of_the_line_before(tmp_path: Path) -> None:
    lines = written(tmp_path, 3).splitlines()
    for number, line in enumerate(lines, 1):
        assert json.loads(line) == {
            "sequence": number,
            "time": "2026-11-30T12:00:00Z",
            "who": "Anna <anna@example.org>",
            "automatic": False,
            "kind": "noted",
            "facts": {"count": number},
            "files": {"a": "0" * 64},
            "previous": hashlib.sha256(lines[number - 2]).hexdigest() if number > 1 else "0" * 64,
        }


def edited(old: bytes, new: bytes, line: int) -> Callable[[list[bytes]], list[bytes]]:
    def edit(lines: list[bytes]) -> list[bytes]:
        assert old in lines[line - 1]
        return [*lines[: line - 1], lines[line - 1].replace(old, new), *lines[line:]]

    return edit


TAMPERED = {
    "a fact changed": (edited(b'"count":2', b'"count":9', 2), 2, "changed"),
    "the first line changed": (edited(b"Anna", b"Hugo", 1), 1, "changed"),
    "a space more": (edited(b'"count":3', b'"count": 3', 3), 3, "changed"),
    "no JSON": (edited(b"{", b"", 4), 4, "changed"),
    "another type": (edited(b'"sequence":4', b'"sequence":"4"', 4), 4, "changed"),
    "the last line, known from a tag": (edited(b'"count":5', b'"count":9', 5), 5, "changed"),
    "one removed": (lambda lines: [*lines[:2], *lines[3:]], 3, "missing"),
    "the first removed": (lambda lines: lines[1:], 1, "missing"),
    "two exchanged": (lambda lines: [lines[0], lines[2], lines[1], *lines[3:]], 2, "reordered"),
    "one doubled": (lambda lines: [*lines[:3], *lines[2:]], 4, "reordered"),
    "the end cut off": (lambda lines: lines[:3], 4, "truncated"),
    "all gone": (lambda lines: [], 1, "truncated"),
}


@pytest.mark.parametrize("name", TAMPERED)
def test_the_first_line_that_is_wrong_is_found_and_how(tmp_path: Path, name: str) -> None:
    tamper, line, how = TAMPERED[name]
    lines = written(tmp_path).splitlines(keepends=True)
    heads = {5: hashlib.sha256(lines[-1].rstrip(b"\n")).hexdigest()}
    assert check_lines(b"".join(lines), heads) is None
    problem = check_lines(b"".join(tamper(lines)), heads)
    assert problem is not None
    assert (problem.line, problem.how) == (line, how)


def test_no_byte_of_a_log_whose_head_is_known_can_be_changed_unnoticed(tmp_path: Path) -> None:
    log = written(tmp_path, 3)
    head = {3: hashlib.sha256(log.splitlines()[-1]).hexdigest()}
    draw = random.Random(0)
    for position in range(len(log)):
        changed = bytearray(log)
        changed[position] ^= draw.randint(1, 255)
        assert check_lines(bytes(changed), head) is not None


def test_a_changed_log_takes_no_event(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    changed = written(tmp_path).replace(b'"count":2', b'"count":9')
    log.path.write_bytes(changed)
    with pytest.raises(OperationsError, match="line 2 was changed"):
        log.append("noted", {}, actor=ANNA, now=NOW)
    assert log.path.read_bytes() == changed


def test_a_log_cut_at_any_byte_keeps_its_whole_lines_and_says_what_it_set_aside(tmp_path: Path) -> None:
    data = written(tmp_path, 2)
    second = data.index(b"\n") + 1
    for stop in (second, second + 1, (second + len(data)) // 2, len(data) - 1, len(data)):
        log = EventLog(tmp_path / f"cut-{stop}" / "events.jsonl")
        log.path.parent.mkdir()
        log.path.write_bytes(data[:stop])
        problem = check_lines(data[:stop], {})
        half = data[second:stop].rpartition(b"\n")[2]
        assert (problem is not None and problem.how == "half") == bool(half)
        log.append("noted", {"count": 3}, actor=ANNA, now=NOW)
        events = log.events()
        assert check_lines(log.read(), {}) is None
        assert events[-1].facts == {"count": 3}
        aside = [event for event in events if event.kind == "set_aside"]
        assert len(aside) == bool(half)
        for event in aside:
            ((name, sha256),) = event.files.items()
            assert (log.path.parent / name).read_bytes() == half
            assert hashlib.sha256(half).hexdigest() == sha256
        log.append("noted", {}, actor=ANNA, now=NOW)
        assert [event.kind for event in log.events()].count("set_aside") == len(aside)


def test_the_same_half_line_twice_is_told_twice(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    for _ in range(2):
        log.append("noted", {}, actor=ANNA, now=NOW)
        with log.path.open("ab") as file:
            file.write(b"{")
    log.append("noted", {}, actor=ANNA, now=NOW)
    assert [event.kind for event in log.events()] == ["noted", "set_aside", "noted", "set_aside", "noted"]


def append_many(path: Path, name: str, number: int, done: int) -> None:
    log = EventLog(path)
    for count in range(number):
        log.append("noted", {"count": count}, actor=Actor(name), now=NOW)
        os.write(done, b".")


def test_two_writers_at_once_lose_nothing(tmp_path: Path) -> None:
    null = os.open(os.devnull, os.O_WRONLY)
    log = EventLog(tmp_path / "events.jsonl")
    writers = [CONTEXT.Process(target=append_many, args=(log.path, name, 20, null)) for name in ("a", "b", "c")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(120)
        assert writer.exitcode == 0
    os.close(null)
    events = log.events()
    assert [event.sequence for event in events] == list(range(1, 61))
    for name in ("a", "b", "c"):
        assert [event.facts["count"] for event in events if event.who == name] == list(range(20))


def test_what_was_appended_survives_kills_at_random_moments(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    draw, acknowledged = random.Random(0), 0
    for round_ in range(10):
        readable, writable = os.pipe()
        writer = CONTEXT.Process(target=append_many, args=(log.path, f"round {round_}", 10**6, writable))
        writer.start()
        os.close(writable)
        time.sleep(draw.uniform(0, 0.05))
        assert writer.pid is not None
        os.kill(writer.pid, signal.SIGKILL)
        writer.join(60)
        while said := os.read(readable, 1 << 16):
            acknowledged += len(said)
        os.close(readable)
        log.append("checked", {}, actor=ANNA, now=NOW)
        assert check_lines(log.read(), {}) is None
    assert sum(event.kind == "noted" for event in log.events()) >= acknowledged > 0


def test_reading_waits_for_a_line_that_is_being_written(tmp_path: Path) -> None:
    written(tmp_path, 1)
    log = EventLog(tmp_path / "events.jsonl")
    with log.path.open("rb+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        reader = CONTEXT.Process(target=log.read)
        reader.start()
        reader.join(0.3)
        assert reader.is_alive()
        fcntl.flock(file, fcntl.LOCK_UN)  # not by closing it: the reader has a copy of the open file
    reader.join(60)
    assert reader.exitcode == 0
