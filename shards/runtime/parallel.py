"""Work spread over processes: results in order, a bounded number under way, and no process that outlives its parent."""

import math
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from pathlib import Path
from typing import TypeVar

from shards.core.errors import WorkerError

Item = TypeVar("Item")
Result = TypeVar("Result")

_PENDING_PER_WORKER = 4
_MEMBERSHIP = Path("/proc/self/cgroup")
_MOUNTED = Path("/sys/fs/cgroup")


def default_num_workers() -> int:
    """Count a process for each core that this process may use, and for each core's time that its container is given."""
    num_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return math.ceil(min(num_cores, cpu_quota(_MEMBERSHIP, _MOUNTED)))


def cpu_quota(membership: Path, mounted: Path) -> float:
    """Return the cores whose time this process is given at most, by its control groups of either version and all above.

    Args:
        membership: The file that names the groups, as `/proc/self/cgroup`.
        mounted: Folder where the groups are files. In a container its own group may be the root there, under no name.

    Returns:
        A number above 0; infinity without a bound, or where there are no control groups.
    """
    try:
        lines = membership.read_text(encoding="utf-8").splitlines()
    except OSError:
        return math.inf
    quotas = [math.inf]
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if "cpu" in controllers.split(","):
            roots = [mounted / controllers, mounted / "cpu"]
        else:  # version 2 names no controllers
            roots = [] if controllers else [mounted, mounted / "unified"]
        for root in roots:
            folder = root / group.lstrip("/")
            quotas += [_quota(group) for group in (folder, *folder.parents) if group.is_relative_to(root)]
    return min(quotas)


def _quota(group: Path) -> float:
    """Read the cores whose time a group is given: time and period, in one file of version 2, in two of version 1."""
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        try:
            quota, period = " ".join((group / name).read_text(encoding="utf-8") for name in names).split()
        except (OSError, ValueError):
            continue
        if quota not in ("max", "-1"):
            return int(quota) / int(period)
    return math.inf


def map_in_processes(
    function: Callable[[Item], Result], items: Iterable[Item], num_workers: int | None = None
) -> Generator[Result, None, None]:
    """`map` over processes, in order; one worker means this process.

    Args:
        function: A module-level function or a partial of one.
        items: Read only as far ahead as the workers need.
        num_workers: Processes; one per core if None. Close the generator to end them early.

    Raises:
        WorkerError: a process was ended from outside, or cannot be started.
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
        except BrokenProcessPool:
            raise WorkerError(
                "a process that shares in the work was ended from outside, or could not be started; expected free "
                "memory for each of them: free some or take fewer (--num-workers), then give the same command again"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def start_worker() -> None:
    """Prepare a worker process: leave Ctrl-C to the parent, and end with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    """End this worker with its parent: it holds both ends of its queue, and would wait for ever after a kill -9."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
