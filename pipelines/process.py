"""Processes inside a Dagster step: each under a supervisor, those of dvc watched through Pipes, never left behind."""

import os
import signal
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import PIPE, STDOUT, Popen, TimeoutExpired
from threading import Thread

import psutil
from dagster import (
    AssetExecutionContext,
    AssetKey,
    AssetObservation,
    Failure,
    MetadataValue,
    PipesMessageHandler,
    PipesTempFileContextInjector,
    PipesTempFileMessageReader,
    open_pipes_session,
)
from dagster_pipes import PipesMessage, PipesParams

from ace.operations.repro import RWLOCK, drop_torn_rwlock
from pipelines import supervisor
from pipelines.graph import changed_stages
from pipelines.metadata import number_metadata
from shards.core.errors import ConfigError

NUM_LOG_LINES = 50
POLL_S = 0.25
OBSERVE_EVERY_S = 10.0
TERMINATION_GRACE_S = 30.0
KILL_S = 10.0
DAGSTER_PROGRAMS = {"dagster", "dagster-daemon"}
BUSY = "is being blocked by"
"""Words of dvc about an out that another dvc is at work on, or was when it was killed."""
KILLED = 128 + signal.SIGKILL
"""Exit code of a command that was killed, as where memory is short."""


class _MessageReader(PipesTempFileMessageReader):
    """A reader to which a command that says nothing is no fault: most stages, and all that DVC skips.

    It keeps the newest reported metrics alone: Dagster's handler keeps every message until the step ends.
    """

    # Dagster's own property warns on every step that it is a preview.
    expected_writer_count = 1

    def __init__(self) -> None:
        super().__init__()
        self._newest: deque[Mapping[str, float]] = deque(maxlen=1)

    @contextmanager
    def read_messages(self, handler: PipesMessageHandler) -> Iterator[PipesParams]:
        forward = handler.handle_message

        def handle_message(message: PipesMessage) -> None:
            params = message["params"] or {}
            if message["method"] == "report_custom_message":
                self._newest.append(params["payload"]["metrics"])
            else:
                forward(message)

        handler.handle_message = handle_message  # type: ignore[method-assign]
        with super().read_messages(handler) as params:
            forward({"__dagster_pipes_version": "0.1", "method": "opened", "params": {}})
            yield params
        if not handler.received_closed_message:
            forward({"__dagster_pipes_version": "0.1", "method": "closed", "params": {}})

    def take_metrics(self) -> Mapping[str, float] | None:
        """Return the newest metrics, if any were reported since the last call."""
        return self._newest.pop() if self._newest else None


@dataclass
class _Process:
    """One running command below its supervisor, and what it has said so far."""

    process: "Popen[str]"
    lines: deque[str] = field(default_factory=lambda: deque(maxlen=NUM_LOG_LINES))

    def __post_init__(self) -> None:
        self.reader = Thread(target=self._forward_lines, daemon=True)
        self.reader.start()

    def _forward_lines(self) -> None:
        """Copy output to the step's compute log until the last process has closed it."""
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                self.lines.append(line.rstrip("\n"))
                sys.stdout.write(line)
                sys.stdout.flush()

    def end(self) -> None:
        """Have the supervisor end the command and all it started, if any of it is left; returns at once."""
        assert self.process.stdin is not None
        self.process.stdin.close()


@dataclass(frozen=True)
class _DvcProcess:
    """One running `dvc repro`, and what its command reports over Pipes."""

    stages: Sequence[str]
    messages: _MessageReader
    running: _Process

    def observations(self, key: AssetKey) -> Iterator[AssetObservation]:
        """Return the newest metrics reported since the last call, if any."""
        if metrics := self.messages.take_metrics():
            yield AssetObservation(key, metadata=number_metadata(metrics))


def reproduce(
    context: AssetExecutionContext, root: Path, stages: Sequence[str], *, jobs: int, observed: AssetKey
) -> Iterator[AssetObservation]:
    """Run `dvc repro` for those of the stages that changed, in at most `jobs` processes.

    A process takes its share one by one; a stage that fails does not keep the others of its share from running.

    Args:
        context: of the step.
        root: of the DVC repository.
        stages: names as DVC addresses them.
        jobs: processes at once.
        observed: the asset whose observations carry what the commands report over Pipes.

    Yields:
        The reported metrics, at most one observation per process every `OBSERVE_EVERY_S` seconds, and the last ones.

    Raises:
        Failure: with the last lines of output of each process that failed; or Dagster itself is gone.
    """
    ancestors = _dagster_ancestors()
    changed = _changed(root, stages)
    shares = [changed[first::jobs] for first in range(min(jobs, len(changed)))]
    with ExitStack() as stack:
        running = [stack.enter_context(_start(context, root, share)) for share in shares]
        stack.callback(_end, running)
        due = time.monotonic() + OBSERVE_EVERY_S
        while any(item.running.process.poll() is None for item in running):
            time.sleep(POLL_S)
            _check_alive(ancestors)
            if time.monotonic() >= due:
                due = time.monotonic() + OBSERVE_EVERY_S
                for process in running:
                    yield from process.observations(observed)
    for process in running:
        yield from process.observations(observed)
    failed = [item for item in running if item.running.process.returncode != 0]
    if failed:
        raise _failure(root, failed)


def _changed(root: Path, stages: Sequence[str]) -> Sequence[str]:
    """Leave out the stages of which DVC says here what its process would say after seconds of start."""
    try:
        changed = changed_stages(root, stages)
    except ConfigError:
        return stages  # dvc waits, or says what is wrong
    for name in stages:
        if name not in changed:
            print(f"Stage '{name}' didn't change, skipping", flush=True)
    return changed


def run_ace(root: Path, arguments: Sequence[str], passing: int | None = None) -> None:
    """Run a command of `python -m ace` to its end.

    Args:
        root: Working directory of the command.
        arguments: Words of the command, as `deliveries run`.
        passing: Exit code of what passes by itself: the step's retries are for it and for a kill, and for no other
            failure.

    Raises:
        Failure: with the last lines of its output; or Dagster itself is gone.
    """
    ancestors = _dagster_ancestors()
    with _supervised(root, ["-m", "ace", *arguments], {}) as running:
        while running.process.poll() is None:
            time.sleep(POLL_S)
            _check_alive(ancestors)
    if code := running.process.returncode:
        text = f"python -m ace {' '.join(arguments)} failed (exit code {code}); its last lines say why"
        raise Failure(text, metadata={"last_lines": _fenced(running.lines)}, allow_retries=code in (passing, KILLED))


def _check_alive(ancestors: Sequence[psutil.Process]) -> None:
    if gone := [process for process in ancestors if not supervisor.is_alive(process)]:
        raise Failure(f"Dagster's process {gone[0].pid} above this step is gone, so its command was ended too")


def _fenced(lines: Iterable[str]) -> MetadataValue[str]:
    log = "\n".join(lines)
    return MetadataValue.md(f"```\n{log}\n```")


def _failure(root: Path, failed: Sequence[_DvcProcess]) -> Failure:
    names = ", ".join(name for item in failed for name in item.stages)
    lines = [line for item in failed for line in item.running.lines]
    text = f"dvc repro failed (exit code {failed[0].running.process.returncode}) while running: {names}"
    if any(BUSY in line for line in lines):
        text += (
            f"; DVC takes an out for busy: wait for the process that the last lines name, or, if it is no dvc (its id "
            f"was given to another after a kill or a restart), remove {root / RWLOCK} and start the run again"
        )
    return Failure(text, metadata={"last_lines": _fenced(lines)})


def _end(running: Sequence[_DvcProcess]) -> None:
    """Ask all supervisors before one of them is waited for."""
    for item in running:
        item.running.end()


def _dagster_ancestors() -> list[psutil.Process]:
    """Return the processes above this one up to the topmost of Dagster.

    `dagster dev` leaves its run workers to themselves when it ends, and a killed run worker its steps.
    """
    parents: list[psutil.Process] = psutil.Process().parents()
    number = len(parents)
    while number and not _is_dagster(parents[number - 1]):
        number -= 1
    return parents[:number]


def _is_dagster(process: psutil.Process) -> bool:
    try:
        return any(Path(argument).name in DAGSTER_PROGRAMS for argument in process.cmdline()[:4])
    except psutil.Error:
        return False


@contextmanager
def _start(context: AssetExecutionContext, root: Path, stages: Sequence[str]) -> Iterator[_DvcProcess]:
    """Start dvc; when the block ends, wait for the supervisor, which ends all that dvc started."""
    messages = _MessageReader()
    # --wait-for-lock is dvc's global option and must stand before the command.
    command = ["-m", "dvc", "--wait-for-lock", "repro", "--single-item", "--keep-going", *stages]
    with (
        open_pipes_session(context.op_execution_context, PipesTempFileContextInjector(), messages) as session,
        _supervised(root, command, session.get_bootstrap_env_vars()) as running,
    ):
        yield _DvcProcess(stages, messages, running)


@contextmanager
def _supervised(root: Path, command: Sequence[str], environment: Mapping[str, str]) -> Iterator[_Process]:
    """Start Python below a supervisor; when the block ends, wait for the supervisor, which ends all that was started.

    Args:
        root: Working directory, a DVC repository.
        command: Python's arguments.
        environment: What is added to this process's.
    """
    python = Path(sys.executable)
    process = Popen(
        [str(python), "-P", supervisor.__file__, str(TERMINATION_GRACE_S), str(python), *command],
        cwd=root,
        env={
            **os.environ,
            **environment,
            "PATH": os.pathsep.join([str(python.parent), os.environ.get("PATH", os.defpath)]),
            # DVC runs commands with it, and that of a service account refuses to: /usr/sbin/nologin.
            "SHELL": "/bin/sh",
            "DVC_NO_ANALYTICS": "1",
            "PYTHONUNBUFFERED": "1",
        },
        stdin=PIPE,
        stdout=PIPE,
        stderr=STDOUT,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
    )
    running = _Process(process)
    try:
        yield running
    finally:
        running.end()
        with suppress(TimeoutExpired):
            process.wait(TERMINATION_GRACE_S + KILL_S)
            running.reader.join(KILL_S)
        if process.poll() != 0:
            drop_torn_rwlock(root)
