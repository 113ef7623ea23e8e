"""dvc processes inside a Dagster step: started in their own group, watched through Pipes, never left behind."""

import os
import signal
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import DEVNULL, PIPE, STDOUT, Popen
from threading import Thread

from dagster import (
    AssetExecutionContext,
    AssetKey,
    AssetObservation,
    Failure,
    MetadataValue,
    PipesMessageHandler,
    PipesSession,
    PipesTempFileContextInjector,
    PipesTempFileMessageReader,
    open_pipes_session,
)
from dagster_pipes import PipesParams

from pipelines.metadata import number_metadata

NUM_LOG_LINES = 50
POLL_S = 0.25
OBSERVE_EVERY_S = 10.0
TERMINATION_GRACE_S = 30.0


class _MessageReader(PipesTempFileMessageReader):
    """A reader to which a command that says nothing is no fault: most stages, and all that DVC skips."""

    # Dagster's own property warns on every step that it is a preview.
    expected_writer_count = 1

    @contextmanager
    def read_messages(self, handler: PipesMessageHandler) -> Iterator[PipesParams]:
        with super().read_messages(handler) as params:
            handler.handle_message({"__dagster_pipes_version": "0.1", "method": "opened", "params": {}})
            yield params
        if not handler.received_closed_message:
            handler.handle_message({"__dagster_pipes_version": "0.1", "method": "closed", "params": {}})


@dataclass
class _DvcProcess:
    """One running `dvc repro` and what it and its command have said so far."""

    stages: Sequence[str]
    session: PipesSession
    process: "Popen[str]"
    lines: deque[str] = field(default_factory=lambda: deque(maxlen=NUM_LOG_LINES))
    num_observed: int = 0

    def __post_init__(self) -> None:
        self.reader = Thread(target=self._forward_lines, daemon=True)
        self.reader.start()

    def _forward_lines(self) -> None:
        """Copy output to the step's compute log until the last process of the group has closed it."""
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                self.lines.append(line.rstrip("\n"))
                sys.stdout.write(line)
                sys.stdout.flush()

    def observations(self, key: AssetKey) -> Iterator[AssetObservation]:
        """The newest metrics reported since the last call, if any."""
        messages = self.session.get_custom_messages()
        if len(messages) > self.num_observed:
            self.num_observed = len(messages)
            yield AssetObservation(key, metadata=number_metadata(messages[-1]["metrics"]))

    def signal(self, number: int) -> None:
        """Signal dvc and all it started, if any of it is left: dvc alone would leave its command running."""
        # The pipe closes when the last process of the group is gone; its id may then belong to another.
        if self.reader.is_alive():
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)


def reproduce(
    context: AssetExecutionContext, root: Path, stages: Sequence[str], *, jobs: int, observed: AssetKey
) -> Iterator[AssetObservation]:
    """Run `dvc repro` for exactly these stages, in at most `jobs` processes; a process takes its share one by one.

    Args:
        context: of the step.
        root: of the DVC repository.
        stages: names as DVC addresses them.
        jobs: processes at once.
        observed: the asset whose observations carry what the commands report over Pipes.

    Yields:
        The reported metrics, at most one observation per process every `OBSERVE_EVERY_S` seconds, and the last ones.

    Raises:
        Failure: with the last lines of output of each process that failed.
    """
    shares = [stages[first::jobs] for first in range(min(jobs, len(stages)))]
    with ExitStack() as stack:
        running = [stack.enter_context(_start(context, root, share)) for share in shares]
        stack.callback(_terminate, running)
        due = time.monotonic() + OBSERVE_EVERY_S
        while any(process.process.poll() is None for process in running):
            time.sleep(POLL_S)
            if time.monotonic() >= due:
                due = time.monotonic() + OBSERVE_EVERY_S
                for process in running:
                    yield from process.observations(observed)
    for process in running:
        yield from process.observations(observed)
    failed = [process for process in running if process.process.returncode != 0]
    if failed:
        names = ", ".join(name for process in failed for name in process.stages)
        log = "\n".join(line for process in failed for line in process.lines)
        raise Failure(
            f"dvc repro failed (exit code {failed[0].process.returncode}) while running: {names}",
            metadata={"last_lines": MetadataValue.md(f"```\n{log}\n```")},
        )


def _terminate(running: Sequence[_DvcProcess]) -> None:
    for process in running:
        process.signal(signal.SIGTERM)


@contextmanager
def _start(context: AssetExecutionContext, root: Path, stages: Sequence[str]) -> Iterator[_DvcProcess]:
    """Start dvc; when the block ends, wait for its whole process group and kill what remains."""
    python = Path(sys.executable)
    with open_pipes_session(context.op_execution_context, PipesTempFileContextInjector(), _MessageReader()) as session:
        process = Popen(
            # --wait-for-lock is dvc's global option and must stand before the command.
            [str(python), "-m", "dvc", "--wait-for-lock", "repro", "--single-item", *stages],
            cwd=root,
            env={
                **os.environ,
                **session.get_bootstrap_env_vars(),
                "PATH": os.pathsep.join([str(python.parent), os.environ.get("PATH", os.defpath)]),
                "DVC_NO_ANALYTICS": "1",
                "PYTHONUNBUFFERED": "1",
            },
            stdin=DEVNULL,
            stdout=PIPE,
            stderr=STDOUT,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
        running = _DvcProcess(stages, session, process)
        try:
            yield running
        finally:
            running.reader.join(TERMINATION_GRACE_S)
            running.signal(signal.SIGKILL)
            process.wait()
