"""Notices that the processes of a training leave for each other outside of their group, which a failure may block.

A process that fails in its step leaves the others waiting in a sum, on accelerators until the group's timeout. So it
leaves a notice first, and every process watches for one.
"""

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from ace.engine.stop import StoppedAloneError, StoppedError
from shards.core.errors import ConfigError, UserError

START_TIMEOUT = timedelta(minutes=10)
"""Longest time that processes wait for each other at the start."""
GRACE_S = 30.0
"""Seconds that a process may take to end by itself after another has failed."""
POLL_S = 1.0
FAILURE, GONE = "failure", "gone"


class NoticeBoard:
    """Notices in a store of torch's that all processes reach, torchrun's own or the first process's."""

    def __init__(self, store: Store, rank: int, world_size: int) -> None:
        """Use `store`, which nothing else may write to."""
        self._store, self.rank, self.world_size = store, rank, world_size

    def exchange(self, notice: str) -> list[str]:
        """Return the notices of all processes in their order, as soon as each has left one.

        Raises:
            ConfigError: a process did not come.
        """
        self._store.set(f"{self.rank}", notice)
        found = []
        for rank in range(self.world_size):
            try:
                found.append(self._store.get(f"{rank}").decode())
            except RuntimeError as error:
                raise ConfigError(
                    f"process {rank} of {self.world_size} did not start within {START_TIMEOUT}: {error}; read what it "
                    "wrote, and start all processes again"
                ) from None
        return found

    @contextmanager
    def shared_end(self) -> Iterator[None]:
        """End all processes when one fails inside, each a while later at most, whatever it waits in.

        Raises:
            SystemExit: this process failed because another did; the message names that one and its reason.
        """
        is_over = threading.Event()
        threading.Thread(target=self._watch, args=(is_over,), daemon=True).start()
        try:
            yield
        except StoppedAloneError as stop:
            is_over.set()
            self._leave(stop)
            raise
        except StoppedError:
            raise  # of all processes at the same step
        except BaseException as error:
            is_over.set()
            first = self._leave(error)
            if first is not None and not isinstance(error, UserError):
                raise SystemExit(f"error: {first}; so this process ends too") from None
            raise
        finally:
            is_over.set()

    def _leave(self, error: BaseException) -> str | None:
        """Leave a notice of the failure; returns that of another process if it came first."""
        own = describe(self.rank, self.world_size, error)
        try:
            first = self._store.compare_set(FAILURE, "", own).decode()
            self._store.add(GONE, 1)
            # The first process may hold the store: it stays until the others have read of its end.
            deadline = time.monotonic() + GRACE_S
            while self.rank == 0 and self._store.add(GONE, 0) < self.world_size and time.monotonic() < deadline:
                time.sleep(0.05)
        except RuntimeError:  # whoever held the store is gone
            return None
        return None if first == own else first

    def _watch(self, is_over: threading.Event) -> None:
        while not is_over.wait(POLL_S):
            try:
                found = self._store.get(FAILURE).decode() if self._store.check([FAILURE]) else None
            except RuntimeError:
                found = "the process that started this training, or the first of it, is gone"
            if found is not None and not is_over.wait(GRACE_S):
                print(f"error: {found}; so this process, which waited for it, ends too", file=sys.stderr, flush=True)
                os._exit(1)


def describe(rank: int, world_size: int, error: BaseException) -> str:
    """Return one line on a process's failure for the others."""
    reason = f"{error}" if isinstance(error, UserError | StoppedError) else f"{type(error).__name__}: {error}"
    return f"process {rank} of {world_size}: {reason}"


def open_board(rank: int, world_size: int) -> tuple[NoticeBoard, Store]:
    """Meet the other processes at MASTER_ADDR and MASTER_PORT.

    Returns:
        The board, and the store for the process group.

    Raises:
        ConfigError: the first process cannot be reached.
    """
    address, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
    try:
        store, _, _ = next(rendezvous("env://", timeout=START_TIMEOUT))
        # A connection of its own: waiting in the group's must not keep this one from being read.
        own = TCPStore(address, int(port), is_master=False, wait_for_workers=False, timeout=START_TIMEOUT)
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"process {rank} of {world_size}: nobody answers at MASTER_ADDR {address}, MASTER_PORT {port}: {error}; "
            "start the first process there, on a port that is free and open to the others"
        ) from None
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return NoticeBoard(PrefixStore(f"ace/{attempt}", own), rank, world_size), store
