"""Decoding in a process of its own, for libraries that end theirs on damaged data.

GDCM, which reads compressed DICOM, calls `abort` on some broken streams. One file must not end the batch, so each
process that meets such pixels keeps one child for them, and starts another when that one has died.
"""

import atexit
import json
import os
import subprocess
import sys
import threading
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
from jaxtyping import Shaped
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import UID

from shards.decode.reasons import DAMAGED, UnreadableImageError
from shards.errors import DecoderError

_COMMAND = "from shards.decode.apart import serve; serve()"
_READY = b"ready\n"
_TIMEOUT_S = 120.0

Pixels = Shaped[np.ndarray, "height width"] | Shaped[np.ndarray, "height width 3"]


def decode_apart(syntax: str, data: bytes, options: dict[str, Any]) -> Pixels:
    """What pydicom's decoder for a transfer syntax makes of encapsulated pixel data.

    Args:
        syntax: Its UID.
        data: The value of Pixel Data.
        options: Of `Decoder.as_array`.

    Raises:
        UnreadableImageError: the decoder failed, ended its process, or took more than two minutes.
        DecoderError: the process cannot be started.
    """
    with _LOCK:
        child = _child()
        killer = threading.Timer(_TIMEOUT_S, child.process.kill)
        killer.start()
        try:
            return child.ask({"syntax": syntax, "options": options}, data)
        except (OSError, ValueError):  # a pipe that broke, or an answer that is none
            child.end()
            raise UnreadableImageError(DAMAGED) from None
        finally:
            killer.cancel()


def serve() -> None:
    """Decode what standard input asks for, until it ends."""
    # Whatever the libraries print must not stand among the answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    answers.write(_READY)
    answers.flush()
    questions = sys.stdin.buffer
    while line := questions.readline():
        question = json.loads(line)
        data = questions.read(question["num_bytes"])
        try:
            pixels = get_decoder(UID(question["syntax"])).as_array(data, **question["options"])[0]
            _send(answers, {"dtype": pixels.dtype.str, "shape": pixels.shape}, pixels.tobytes())
        except Exception:
            _send(answers, {"dtype": None}, b"")


@dataclass(frozen=True)
class _Child:
    """The process that decodes, and the one that started it, for a fork must not share it."""

    process: subprocess.Popen[bytes]
    questions: IO[bytes]
    answers: IO[bytes]
    parent: int

    @classmethod
    def start(cls) -> "_Child":
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", _COMMAND],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # the libraries' complaints, which may quote the file
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path or "." for path in sys.path)},
        )
        assert process.stdin is not None
        assert process.stdout is not None
        child = cls(process, process.stdin, process.stdout, os.getpid())
        if child.answers.readline() != _READY:
            child.end()
            raise DecoderError(
                "the process that decodes compressed DICOM pixels ended before its first image; run "
                f'`{sys.executable} -c "{_COMMAND}"` to see why'
            )
        return child

    def ask(self, question: dict[str, Any], data: bytes) -> Pixels:
        _send(self.questions, question, data)
        answer = json.loads(self.answers.readline())
        if answer["dtype"] is None:
            raise UnreadableImageError(DAMAGED)
        found = self.answers.read(answer["num_bytes"])
        return np.frombuffer(found, answer["dtype"]).reshape(answer["shape"])

    def end(self) -> None:
        self.process.kill()
        # Closing would write what is left of a question that nobody reads.
        for pipe in (self.questions, self.answers):
            try:
                pipe.close()
            except OSError:
                continue
        self.process.wait()


def _send(pipe: IO[bytes], header: dict[str, Any], data: bytes) -> None:
    pipe.write(json.dumps({**header, "num_bytes": len(data)}).encode() + b"\n")
    pipe.write(data)
    pipe.flush()


_LOCK = threading.Lock()
_children: list[_Child] = []


def _child() -> _Child:
    """This process's child, started at the first need of it."""
    if _children and (_children[0].parent != os.getpid() or _children[0].process.poll() is not None):
        old = _children.pop()
        if old.parent == os.getpid():
            old.end()
    if not _children:
        _children.append(_Child.start())
    return _children[0]


@atexit.register
def _end_child() -> None:
    while _children:
        child = _children.pop()
        if child.parent == os.getpid():
            child.end()
