"""Freed memory stays with the process that will want it again."""

import ctypes
from functools import cache

# malloc.h of the GNU C library, and the largest buffer that it takes from the heap at all.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_BYTES = 32 * 2**20
_KEPT_BYTES = 512 * 2**20


@cache
def keep_freed_memory() -> None:
    """Make the allocator use large buffers again instead of handing each back to the system, up to half a gigabyte.

    Images come and go by the megabyte. What the system gives it gives page by page, filled with zeros, which costs a
    process that does nothing but decode a tenth of its time. Without the GNU C library nothing changes.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
