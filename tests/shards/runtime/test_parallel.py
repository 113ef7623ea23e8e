import math
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from shards.core.errors import WorkerError
from shards.runtime import parallel
from shards.runtime.parallel import cpu_quota, default_num_workers, map_in_processes


def square(number: int) -> tuple[int, int]:
    return number * number, os.getpid()


def fail_at_three(number: int) -> int:
    if number == 3:
        raise ValueError("three")
    return number


def end_the_process(number: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return number


def action_on_interrupts(number: int) -> object:
    return signal.getsignal(signal.SIGINT)


def test_results_come_in_order_from_other_processes_and_items_are_not_read_far_ahead() -> None:
    num_read = 0

    def items() -> Iterator[int]:
        nonlocal num_read
        for number in range(60):
            num_read += 1
            yield number

    results = map_in_processes(square, items(), num_workers=2)
    first = next(results)
    assert num_read < 20
    everything = [first, *results]
    assert [value for value, _ in everything] == [number**2 for number in range(60)]
    assert os.getpid() not in {pid for _, pid in everything}


def test_one_worker_is_this_process() -> None:
    assert list(map_in_processes(square, [3], num_workers=1)) == [(9, os.getpid())]


def test_interrupts_are_left_to_the_parent() -> None:
    assert set(map_in_processes(action_on_interrupts, range(2), num_workers=2)) == {signal.SIG_IGN}


def test_an_error_in_a_worker_arrives() -> None:
    with pytest.raises(ValueError, match="three"):
        list(map_in_processes(fail_at_three, range(50), num_workers=2))


def test_a_worker_that_is_killed_ends_the_work_with_a_word() -> None:
    with pytest.raises(WorkerError, match="ended from outside, or could not be started; expected free memory"):
        list(map_in_processes(end_the_process, range(50), num_workers=2))


@pytest.mark.parametrize(
    ("membership", "files", "quota"),
    [
        ("0::/", {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/", {"cpu.max": "max 100000\n"}, math.inf),
        ("0::/", {}, math.inf),
        # The group above gives less than the process' own.
        ("0::/slice/job", {"slice/job/cpu.max": "400000 100000", "slice/cpu.max": "200000 100000"}, 2.0),
        ("0::/slice/job", {"slice/cpu.max": "max 100000", "other/cpu.max": "10000 100000"}, math.inf),
        # A container sees its group as the root, and the name that it has outside.
        ("0::/docker/5f", {"cpu.max": "50000 100000"}, 0.5),
        (
            "9:memory:/m\n4:cpu,cpuacct:/docker/5f",
            {"cpu,cpuacct/cpu.cfs_quota_us": "300000\n", "cpu,cpuacct/cpu.cfs_period_us": "100000\n"},
            3.0,
        ),
        ("1:cpu:/a:b", {"cpu/a:b/cpu.cfs_quota_us": "-1\n", "cpu/a:b/cpu.cfs_period_us": "100000\n"}, math.inf),
        # Both versions at once.
        ("1:cpu:/\n0::/", {"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "50000"}, 4.0),
    ],
)
def test_the_quota_is_the_least_of_all_groups_above_a_process(
    membership: str, files: dict[str, str], quota: float, tmp_path: Path
) -> None:
    (tmp_path / "membership").write_text(membership + "\n")
    for name, text in files.items():
        path = tmp_path / "mounted" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert cpu_quota(tmp_path / "membership", tmp_path / "mounted") == quota


def test_there_is_a_process_for_every_core_that_time_is_given_for_and_at_least_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_cores = len(os.sched_getaffinity(0))
    (tmp_path / "membership").write_text("0::/\n")
    monkeypatch.setattr(parallel, "_MEMBERSHIP", tmp_path / "membership")
    monkeypatch.setattr(parallel, "_MOUNTED", tmp_path)
    for quota, expected in (("max", num_cores), ("10000", 1), (f"{100_000 * num_cores * 2}", num_cores)):
        (tmp_path / "cpu.max").write_text(f"{quota} 100000\n")
        assert default_num_workers() == expected
    monkeypatch.setattr(parallel, "_MEMBERSHIP", tmp_path / "none")
    assert default_num_workers() == num_cores


def test_the_real_control_groups_can_be_read() -> None:
    assert 1 <= default_num_workers() <= len(os.sched_getaffinity(0))
