"""Signals that ask a training to end reach the trainer and none of its loader's processes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from ace.engine.stop import SIGNALS, stop_requests
from tests.ace.pretrain.conftest import ROOT

SCRIPT = """
import multiprocessing, signal
from ace.engine.stop import deaf_children

def tell(end):
    end.send(sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])))

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    with deaf_children():
        child = context.Process(target=tell, args=(theirs,))
        context.SimpleQueue()  # as the loader: Python starts its tracker with the first one
        child.start()
    print(*ours.recv(), "and", *signal.pthread_sigmask(signal.SIG_BLOCK, []))
    child.join()
"""


def test_the_time_limit_is_a_reason_once_it_is_over_and_a_signal_goes_before_it() -> None:
    with stop_requests(0.2) as request:
        assert request.reason is None
        time.sleep(0.25)
        assert request.reason == "time limit"
        os.kill(os.getpid(), signal.SIGUSR1)
        assert request.reason == "SIGUSR1"


def test_the_first_child_of_a_process_is_deaf_to_every_signal_and_the_process_is_not(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(tmp_path / "script.py")]
    printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60).stdout
    child, _, parent = printed.strip().partition("and")
    assert {int(number) for number in child.split()} >= set(SIGNALS)
    assert not {int(number) for number in parent.split()} & set(SIGNALS)
