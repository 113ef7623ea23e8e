"""Decoding in a process of its own, for libraries that end theirs on damaged data.

GDCM, which reads compressed DICOM, calls `abort` on some broken streams. One file must not end the batch, so each
process that meets such pixels keeps one child for them, and starts another when that one has died.

The child also hears what the libraries say of damage: they print it and give junk for what is missing.
"""

import atexit
import json
import logging
import os
import re
import subprocess
import sys
import threading
from dataclasses import dataclass
from typing import IO, Any

import cv2
import numpy as np
from jaxtyping import Shaped

from shards.core.errors import DecoderError
from shards.decode.reasons import DAMAGED, UnreadableImageError

_COMMAND = "from shards.decode.isolated import serve; serve()"
_READY = b"ready\n"
_TIMEOUT_S = 120.0
# As libjpeg begins what it says of coded data; it says no more than one thing of an image.
_DAMAGE = re.compile(rb"Corrupt JPEG data|Premature end of JPEG file|Inconsistent progression")
SURPLUS = re.compile(r"\b[1-4] extraneous bytes before marker 0xd9")
"""Words of libjpeg for a few bytes too many before the mark that ends the file: the whole picture was there."""

Pixels = Shaped[np.ndarray, "height width"] | Shaped[np.ndarray, "height width 3"]


def decode_isolated(syntax: str, data: bytes, options: dict[str, Any], *, is_checked: bool = False) -> Pixels:
    """Decode encapsulated pixel data with pydicom's decoder for a transfer syntax, in a process of its own.

    Args:
        syntax: UID of the transfer syntax.
        data: The value of Pixel Data.
        options: Options of `Decoder.as_array`.
        is_checked: The stream was found sound before, so what its decoder says of it is of no account.

    Raises:
        UnreadableImageError: the decoder failed, told of damage, ended its process, or took more than two minutes.
        DecoderError: the process cannot be started.
    """
    return _ask({"syntax": syntax, "options": options, "is_checked": is_checked}, data)


def check_jpeg_isolated(data: bytes) -> None:
    """Decode a JPEG with OpenCV, which reads any sampling of the components and prints its doubts.

    Raises:
        UnreadableImageError: it is damaged.
        DecoderError: the process cannot be started.
    """
    _ask({"syntax": None}, data)


def serve() -> None:
    """Decode what standard input asks for, until it ends."""
    # Whatever the libraries print must not stand among the answers.
    answers = os.fdopen(os.dup(1), "wb")
    logging.disable()
    complaints = _Complaints()
    answers.write(_READY)
    answers.flush()
    questions = sys.stdin.buffer
    while line := questions.readline():
        question = json.loads(line)
        data = questions.read(question["num_bytes"])
        complaints.read()
        try:
            pixels = _decode(question, data)
            if _is_damaged(complaints.read(), question):
                raise UnreadableImageError(DAMAGED)
            _send(answers, {"dtype": pixels.dtype.str, "shape": pixels.shape}, pixels.tobytes())
        except Exception:
            _send(answers, {"dtype": None}, b"")


def _ask(question: dict[str, Any], data: bytes) -> Pixels:
    with _LOCK:
        child = _child()
        killer = threading.Timer(_TIMEOUT_S, child.process.kill)
        killer.start()
        try:
            return child.ask(question, data)
        except (OSError, ValueError):  # a pipe that broke, or an answer that is none
            child.end()
            raise UnreadableImageError(DAMAGED) from None
        finally:
            killer.cancel()


def _decode(question: dict[str, Any], data: bytes) -> Pixels:
    """Decode the pixels asked for; a JPEG that is only checked gives grey levels."""
    if question["syntax"] is not None:
        # Not at the top: pydicom takes long to import, and files that are not DICOM need this module too.
        from pydicom.pixels.decoders.base import get_decoder
        from pydicom.uid import UID

        pixels: Pixels = get_decoder(UID(question["syntax"])).as_array(data, **question["options"])[0]
        return pixels
    grey = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
    if grey is None:
        raise UnreadableImageError(DAMAGED)
    return np.asarray(grey)


def _is_damaged(complaints: bytes, question: dict[str, Any]) -> bool:
    if question.get("is_checked", False) or not _DAMAGE.search(complaints):
        return False
    # Of a lossy picture a few bytes may be left; where none is lossy, they are those of pixels.
    return question["syntax"] is not None or not SURPLUS.search(complaints.decode("ascii", "replace"))


class _Complaints:
    """Catches what the libraries of this process print, on standard output too, from now on."""

    def __init__(self) -> None:
        self._read_end, write_end = os.pipe()
        # The first words tell; a library that prints without end must not wait for a reader.
        for end in (self._read_end, write_end):
            os.set_blocking(end, False)
        os.dup2(write_end, 1)
        os.dup2(write_end, 2)

    def read(self) -> bytes:
        """Return what was printed since the last call."""
        parts = []
        try:
            while part := os.read(self._read_end, 65536):
                parts.append(part)
        except BlockingIOError:
            return b"".join(parts)
        return b"".join(parts)


@dataclass(frozen=True, kw_only=True)
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
        child = cls(process=process, questions=process.stdin, answers=process.stdout, parent=os.getpid())
        if child.answers.readline() != _READY:
            child.end()
            raise DecoderError(
                "the process that decodes compressed DICOM pixels, and JPEGs of rare sampling, ended before its first "
                f'image; run `{sys.executable} -c "{_COMMAND}"` to see why'
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
    """Return this process's child, which is started when it is first needed."""
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
