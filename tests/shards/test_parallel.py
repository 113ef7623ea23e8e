import os
from collections.abc import Iterator

import pytest

from shards.parallel import map_in_processes


def square(number: int) -> tuple[int, int]:
    return number * number, os.getpid()


def fail_at_three(number: int) -> int:
    if number == 3:
        raise ValueError("three")
    return number


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


def test_an_error_in_a_worker_arrives() -> None:
    with pytest.raises(ValueError, match="three"):
        list(map_in_processes(fail_at_three, range(50), num_workers=2))
