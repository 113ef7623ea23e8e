"""Reading the file of an image: bounded, and patient with a network drive."""

import errno
import time
from pathlib import Path

from shards.decode.reasons import TOO_MANY_BYTES, UnreadableImageError

_PAUSES_S = (0.5, 1.0, 2.0)
_PASSING = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EINTR, errno.ECONNRESET, errno.EHOSTDOWN)
_MAX_BYTES_PER_PIXEL = 8
_MAX_OTHER_BYTES = 64 * 2**20


def read_patiently(path: Path, max_pixels: float) -> bytes:
    """Read a file; what a network drive may do for a moment (time-outs, stale handles) is tried again.

    Args:
        path: Path of the file.
        max_pixels: A file that is larger than any image of so many is not read.

    Raises:
        OSError: it stays.
        UnreadableImageError: the file is larger.
    """
    for pause_s in _PAUSES_S:
        try:
            return _read_within(path, _MAX_BYTES_PER_PIXEL * max_pixels + _MAX_OTHER_BYTES)
        except OSError as error:
            if error.errno not in _PASSING:
                raise
            time.sleep(pause_s)
    return _read_within(path, _MAX_BYTES_PER_PIXEL * max_pixels + _MAX_OTHER_BYTES)


def _read_within(path: Path, max_bytes: float) -> bytes:
    if path.stat().st_size > max_bytes:
        raise UnreadableImageError(TOO_MANY_BYTES)
    return path.read_bytes()
