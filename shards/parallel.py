"""Work spread over processes: results in order, a bounded number under way, and no process that outlives its parent."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing.connection import wait
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_PENDING_PER_WORKER = 4


def default_num_workers() -> int:
    """One process per core that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def map_in_processes(
    function: Callable[[Item], Result], items: Iterable[Item], num_workers: int | None = None
) -> Generator[Result, None, None]:
    """`map` over processes, in order; one worker means this process.

    Args:
        function: A module-level function or a partial of one.
        items: Read only as far ahead as the workers need.
        num_workers: Processes; one per core if None. Close the generator to end them early.
    """
    num_workers = num_workers or default_num_workers()
    if num_workers == 1:
        yield from map(function, items)
        return
    # spawn: forking a process that has threads (torch, tqdm) can deadlock.
    pool = ProcessPoolExecutor(num_workers, multiprocessing.get_context("spawn"), initializer=start_worker)
    pending: deque[Future[Result]] = deque()
    with pool:
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) > _PENDING_PER_WORKER * num_workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def start_worker() -> None:
    """First thing in a worker process: leave Ctrl-C to the parent, and end with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    """A worker holds both ends of its queue, so it would wait for ever on a parent that was killed with -9."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
