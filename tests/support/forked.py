"""Processes of their own that begin with torch and this project imported: Python's fork server imports them once."""

import atexit
import multiprocessing
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from multiprocessing.reduction import DupFd
from pathlib import Path
from types import ModuleType
from typing import Any

PRELOADED = (
    "ace.downstream.finetune",
    "ace.inference.onnx",
    "ace.inference.parquet",
    "ace.pretrain.pretrain",
    "ace.journal.loggers",
    "dvclive",
    "dvc.repo",
    "tests.ace.downstream.labelled",
    "tests.ace.pretrain.conftest",
    "tests.ace.engine.supervised",
    "tests.ace.pretrain.steps",
    "tests.ace.pretrain.checked",
    "timm",
    "torch._dynamo",
)
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(list(PRELOADED))


class Forked:
    """Behaves as a `subprocess.Popen` that leads a session of its own, with its standard error in a pipe."""

    def __init__(self, code: str, arguments: Sequence[str], *, env: Mapping[str, str], cwd: Path) -> None:
        """Start it.

        Args:
            code: What `python -c` would be given.
            arguments: Its `sys.argv` after the first.
            env: Its environment; what Python reads before the first import, as PYTHONPATH, changes nothing.
            cwd: Its working directory.
        """
        readable, writable = os.pipe()
        target = (_Inherited(writable), code, list(arguments), dict(env), str(cwd))
        self._process = CONTEXT.Process(target=_run, args=target)
        self._process.start()
        os.close(writable)
        self.stderr = os.fdopen(readable, "rb", buffering=0)
        self._said: str | None = None

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(str(self.pid), timeout or 0.0)
        return self.returncode

    def communicate(self, timeout: float = 300.0) -> tuple[None, str]:
        """Wait until nobody holds its standard error any more and it has ended."""
        if self._said is None:
            deadline, said = time.monotonic() + timeout, b""
            while True:
                left = deadline - time.monotonic()
                if left <= 0 or not select.select([self.stderr], [], [], left)[0]:
                    raise subprocess.TimeoutExpired(str(self.pid), timeout, stderr=said)
                part = self.stderr.read(1 << 16)
                if not part:
                    break
                said += part
            self.stderr.close()
            self._said = said.decode()
        self.wait(timeout)
        return None, self._said

    def send_signal(self, number: signal.Signals) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class _Inherited:
    """Hands a copy of a file descriptor to the started process."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __getstate__(self) -> Any:
        return DupFd(self.number)

    def __setstate__(self, state: Any) -> None:
        self.number = state.detach()


def _run(stderr: _Inherited, code: str, arguments: list[str], env: dict[str, str], cwd: str) -> None:
    os.setsid()
    os.dup2(stderr.number, 2)
    os.close(stderr.number)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    sys.argv = ["-c", *arguments]
    # Processes that this one starts look here for what to import first, as they would after `python -c`.
    main = sys.modules["__main__"] = ModuleType("__main__")
    try:
        exec(code, vars(main))
    finally:
        atexit._run_exitfuncs()
