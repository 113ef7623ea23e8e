"""Be the only one that changes a service: what has to look at all of it at once takes every lock there is."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from ace.operations.clone import Clone
from ace.operations.deliveries import Deliveries
from ace.operations.params import read_operations
from ace.operations.registry import LOCK
from ace.operations.retraining_state import running
from ace.operations.work_tree import PARAMS


@contextmanager
def alone(clone: Clone) -> Iterator[None]:
    """Let nothing train, take in deliveries or decide about models meanwhile; the locks end with the process.

    Args:
        clone: The service's clone.

    Raises:
        BusyError: a retraining or a call about deliveries is at work.
        OperationsError: this is not the service's clone.
    """
    with ExitStack() as stack:
        stack.enter_context(running(clone.root))
        if read_operations(clone.root / PARAMS).deliveries is not None:
            stack.enter_context(Deliveries.open(clone.root / PARAMS, clone.branch).locked())
        stack.enter_context(clone.locked(LOCK))
        yield
