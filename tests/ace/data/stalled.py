"""A loader's process that hands over a few batches and then no more, as one that waits for a disk.

Whoever puts `collate` in the place of `ace.data.loader._collate` has it run in the processes of that loader.
"""

import itertools
import time
from typing import Any

from ace.data import loader

NUM_BATCHES = 3
_made = itertools.count(1)


def collate(items: Any) -> Any:
    """Make a batch, or wait; to be called in a loader's process alone."""
    if next(_made) > NUM_BATCHES:
        time.sleep(3600)
    return loader._collate(items)


def never(items: Any) -> Any:
    """Wait from the first batch on."""
    del items
    time.sleep(3600)
