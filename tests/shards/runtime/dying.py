"""Encoders that end their process; a module of their own, for the processes that read images import nothing else."""

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from shards.build.encode import EncodedSample, PlannedSample, Rejected, SampleEncoder


@dataclass(frozen=True)
class DyingEncoder(SampleEncoder):
    """Ends its process at one image: each time, or only while a file is not there; never the test's own."""

    key: str = ""
    once: Path | None = None
    tests_pid: int = 0

    def __call__(self, planned: PlannedSample) -> EncodedSample | Rejected:
        assert os.getpid() != self.tests_pid, "images are read in the process that asked for the set"
        if planned.key == self.key and not (self.once and self.once.exists()):
            if self.once:
                self.once.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(planned)


@dataclass(frozen=True)
class StillbornEncoder(SampleEncoder):
    """Ends every process that it is sent to, as one that has no memory for its libraries does."""

    def __reduce__(self) -> tuple[Callable[[int], object], tuple[int]]:
        return os._exit, (1,)
