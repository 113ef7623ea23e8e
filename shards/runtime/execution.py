"""Run independent pieces of work: in processes of this machine, or on a Ray cluster."""

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from shards.core.errors import ConfigError
from shards.runtime.parallel import default_num_workers, start_worker

Item = TypeVar("Item")
_POLL_S = 0.5
_PENDING_PER_WORKER = 2


class Execution(Protocol):
    """Runs a function over items, in no particular order."""

    def run(
        self, function: Callable[[Item], None], items: Sequence[Item], on_poll: Callable[[], None]
    ) -> Iterator[tuple[Item, bool]]:
        """Run all of them.

        Args:
            function: Picklable; called in any process; an error it raises ends the run and arrives here.
            items: Picklable.
            on_poll: Called about twice a second, to show progress.

        Yields:
            Each item once it is done, and whether its process was lost (killed, crashed) before it was.
        """
        ...


@dataclass(frozen=True)
class Processes:
    """Run work in other processes of this machine, never in this one, which outlives an image that ends its process.

    Attributes:
        num_workers: Number of processes; one a core if None.
    """

    num_workers: int | None = None

    def run(
        self, function: Callable[[Item], None], items: Sequence[Item], on_poll: Callable[[], None]
    ) -> Iterator[tuple[Item, bool]]:
        """Run all items in other processes of this machine (`Execution.run`)."""
        num_workers = self.num_workers or default_num_workers()
        # spawn: forking a process that has threads (torch, tqdm) can deadlock.
        pool = ProcessPoolExecutor(num_workers, multiprocessing.get_context("spawn"), initializer=start_worker)
        with pool:
            pending: dict[Future[None], Item] = {}
            try:
                pending = {pool.submit(function, item): item for item in items}
                while pending:
                    done, _ = wait(pending, timeout=_POLL_S, return_when=FIRST_COMPLETED)
                    on_poll()
                    for future in done:
                        yield pending.pop(future), _is_lost(future)
            finally:
                pool.shutdown(cancel_futures=True)


def _is_lost(future: "Future[None]") -> bool:
    try:
        future.result()
    except BrokenProcessPool:
        return True
    return False


@dataclass(frozen=True)
class RayCluster:
    """The processes of a Ray cluster, one core a piece of work.

    Every node must see the same files under the same paths, and have this package installed. Needs the extra `ray`.

    Attributes:
        address: Address of the cluster, as `ray://head:10001` or `auto`; `local` starts one on this machine, on
            loopback.
    """

    address: str

    def run(
        self, function: Callable[[Item], None], items: Sequence[Item], on_poll: Callable[[], None]
    ) -> Iterator[tuple[Item, bool]]:
        """Run all items on the cluster (`Execution.run`).

        Raises:
            ConfigError: Ray is not installed, or there is no cluster at the address.
        """
        ray = _connect(self.address)
        try:
            shared = ray.put(function)
            remote = ray.remote(num_cpus=1, max_retries=0)(_call)
            waiting = list(reversed(items))
            pending: dict[Any, Item] = {}
            limit = _PENDING_PER_WORKER * max(1, int(ray.cluster_resources().get("CPU", 1)))
            while waiting or pending:
                while waiting and len(pending) < limit:
                    item = waiting.pop()
                    pending[remote.remote(shared, item)] = item
                done, _ = ray.wait(list(pending), num_returns=1, timeout=_POLL_S)
                on_poll()
                for reference in done:
                    yield pending.pop(reference), _is_lost_in_ray(ray, reference)
        finally:
            ray.shutdown()


def _call(function: Callable[[Item], None], item: Item) -> None:
    function(item)


def _connect(address: str) -> Any:
    try:
        import ray
    except ImportError:
        raise ConfigError("--ray needs Ray: pip install 'ace-pretraining[ray]'") from None
    own: dict[str, Any] = {"include_dashboard": False, "_node_ip_address": "127.0.0.1"} if address == "local" else {}
    try:
        ray.init(address=address, log_to_driver=False, **own)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ConfigError(f"--ray {address}: no Ray cluster there ({error}); start one with `ray start`") from None
    return ray


def _is_lost_in_ray(ray: Any, reference: Any) -> bool:
    try:
        ray.get(reference)
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.NodeDiedError, ray.exceptions.OutOfMemoryError):
        return True
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    return False
