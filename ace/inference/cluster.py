"""Embed the parts of a source on a Ray cluster, each process of which gets the encoder once and writes whole files."""

import pickle
import platform
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, Protocol

import torch

from ace.inference.embedder import EmbeddingModel
from ace.inference.sources import ImageSource
from ace.models.device import choose_device
from ace.models.precision import finished_precision, placed
from shards.core.errors import ConfigError, SourceError, UserError, WorkerError
from shards.runtime.progress import progress_bar

ClusterDevice = Literal["auto", "cpu", "cuda"]
_MAX_LOSSES = 3
_PACKAGES = ("ace-pretraining", "torch")
_GOES_ON = "what was finished is kept: the same command goes on"


@dataclass(frozen=True)
class Part:
    """A part is the images whose embeddings stand in one file.

    Attributes:
        name: Name of the part, as messages show it.
        images: The images.
        path: The file, as an absolute path.
    """

    name: str
    images: ImageSource
    path: Path


class WritePart(Protocol):
    """Writes one part; a module-level function or a partial of one."""

    def __call__(self, model: EmbeddingModel, images: ImageSource, path: Path, *, num_threads: int) -> None:
        """Embed the images into a file that appears whole or not at all."""
        ...


@dataclass(frozen=True)
class EmbeddingCluster:
    """The processes of a Ray cluster, each with a GPU, or with some cores.

    Every machine must see the images and the folder of the result under the same paths, and have this package in the
    same version. Needs the extra `ray`.

    Attributes:
        address: Address of the cluster, as `head:6379` or `auto`; `local` starts one on this machine.
        device: What a process computes on; `auto` is a GPU if the cluster has any.
        num_threads: Cores of each process, for its readers and, on CPUs, its network. None is 1, or on GPUs what the
            machine has for each GPU.
    """

    address: str
    device: ClusterDevice
    num_threads: int | None

    def embed(self, model: EmbeddingModel, parts: Sequence[Part], write: WritePart, marker: Path) -> None:
        """Write the parts whose files are not there yet. A part whose process is lost is begun again by another one.

        Args:
            model: The encoder, on the CPU.
            parts: The parts.
            write: Writes one of them.
            marker: A file in the folder of the result; a machine that does not see it sees another folder.

        Raises:
            ConfigError: Ray is not installed, there is no cluster at the address, or it has no such processes; a
                machine has another version of a package.
            SourceError: a machine does not see the files; an image of a shard set cannot be read.
            WorkerError: a part has cost three processes.
        """
        waiting = deque(part for part in parts if not part.path.is_file())
        if not waiting:
            return
        total = sum(len(part.images.keys) for part in parts)
        num_finished = total - sum(len(part.images.keys) for part in waiting)
        ray = self._connect()
        try:
            processes = _processes(ray.nodes(), self)
            actor_class = ray.remote(_Embedder).options(num_cpus=processes.num_threads, num_gpus=processes.num_gpus)
            versions = {package: version(package) for package in _PACKAGES}
            shared = ray.put(
                pickle.dumps(_Work(model=model, write=write, marker=marker, processes=processes, versions=versions))
            )
            pending: dict[Any, tuple[Any, Part]] = {}
            losses: Counter[str] = Counter()

            def begin(actor: Any) -> None:
                part = waiting.popleft()
                pending[actor.embed.remote(part.name, pickle.dumps(part))] = actor, part

            def end(reference: Any) -> None:
                actor, part = pending.pop(reference)
                reason = _loss(ray, reference)
                if reason is None:
                    bar.update(len(part.images.keys))
                else:
                    losses[part.name] += 1
                    if losses[part.name] == _MAX_LOSSES:
                        raise WorkerError(
                            f"{part.name}: {_MAX_LOSSES} processes of the cluster ended at it ({reason}); expected "
                            "this package on every machine, enough memory for each process, and images that end no "
                            f"decoder: install it there, give a smaller --batch-size, or look at the images; {_GOES_ON}"
                        )
                    waiting.appendleft(part)
                    actor = actor_class.remote(shared)
                if waiting:
                    begin(actor)
                # A process that has nothing left to do goes with its handle; another part may wait for its cores.

            with progress_bar(total=total, initial=num_finished, description="embed", unit="image") as bar:
                for _ in range(min(processes.number, len(waiting))):
                    begin(actor_class.remote(shared))
                while pending:
                    done, _ = ray.wait(list(pending))
                    for reference in done:
                        end(reference)
        finally:
            ray.shutdown()

    def _connect(self) -> Any:
        try:
            import ray
        except ImportError:
            raise ConfigError("--ray needs Ray: pip install 'ace-pretraining[ray]'") from None
        # On loopback, without a page of its own.
        own: dict[str, Any] = {"include_dashboard": False, "_node_ip_address": "127.0.0.1"}
        try:
            ray.init(address=self.address, log_to_driver=False, **(own if self.address == "local" else {}))
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ConfigError(
                f"--ray {self.address}: no Ray cluster there ({error}); start one with `ray start`"
            ) from None
        return ray


@dataclass(frozen=True)
class _Processes:
    """Say how many processes a cluster has room for, and what each of them gets."""

    number: int
    num_threads: int
    num_gpus: int

    @property
    def device(self) -> str:
        return "cuda" if self.num_gpus else "cpu"


def _processes(nodes: Sequence[dict[str, Any]], cluster: EmbeddingCluster) -> _Processes:
    """Divide the machines of a cluster, as `ray.nodes` lists them, into processes.

    Raises:
        ConfigError: no machine has what a process needs.
    """
    found = [node["Resources"] for node in nodes if node["Alive"]]
    machines = [(int(has.get("CPU", 0)), int(has.get("GPU", 0))) for has in found]
    with_gpus = [(cores, gpus) for cores, gpus in machines if gpus]
    has_gpus = bool(with_gpus) if cluster.device == "auto" else cluster.device == "cuda"
    if has_gpus:
        num_threads = cluster.num_threads or min((max(1, cores // gpus) for cores, gpus in with_gpus), default=1)
        number = sum(min(gpus, cores // num_threads) for cores, gpus in with_gpus)
    else:
        num_threads = cluster.num_threads or 1
        number = sum(cores // num_threads for cores, _ in machines)
    if not number:
        listed = ", ".join(f"{cores} cores and {gpus} GPUs" for cores, gpus in machines)
        raise ConfigError(
            f"--ray {cluster.address}: a process needs {num_threads} cores (--num-threads) and {int(has_gpus)} GPUs "
            f"(--device) of one machine; the cluster's machines have {listed or 'nothing'}"
        )
    return _Processes(number, num_threads, int(has_gpus))


@dataclass(frozen=True, kw_only=True)
class _Work:
    """All parts have this in common."""

    model: EmbeddingModel
    write: WritePart
    marker: Path
    processes: _Processes
    versions: dict[str, str]

    def opened(self) -> "_Work":
        """Return it with the encoder on this process's device, once this machine was found to be as expected.

        Raises:
            ConfigError: a package has another version here, or torch sees no GPU.
            SourceError: the folder of the result is not here.
        """
        for package, expected in self.versions.items():
            if (found := version(package)) != expected:
                raise ConfigError(
                    f"{package} {found} is installed there, and {expected} where the command was given; install the "
                    "same version on every machine"
                )
        if not self.marker.is_file():
            raise SourceError(
                f"{self.marker} is not there; expected the folder of the result under the same path on every machine"
            )
        torch.set_num_threads(self.processes.num_threads)
        device, encoder = choose_device(self.processes.device), self.model.encoder
        precision = finished_precision(self.model.config.params.pretrain.precision, device)
        encoder = replace(encoder, backbone=placed(encoder.backbone, precision, device), precision=precision)
        return replace(self, model=replace(self.model, encoder=encoder))


class _Embedder:
    """Embeds parts in one process of the cluster. What is sent is unpickled where errors can still name the part."""

    def __init__(self, work: bytes) -> None:
        self._pickled = work

    @cached_property
    def _work(self) -> _Work:
        work: _Work = pickle.loads(self._pickled)
        return work.opened()

    def embed(self, name: str, pickled: bytes) -> None:
        """Write a part; errors name it and the machine."""
        try:
            work = self._work
            part: Part = pickle.loads(pickled)
            part.images.check_in_sight()
            work.write(work.model, part.images, part.path, num_threads=work.processes.num_threads)
        except UserError as error:
            raise type(error)(f"{name}, on {platform.node()}: {error}; {_GOES_ON}") from None
        except Exception as error:
            error.add_note(f"while it embedded {name}, on {platform.node()}")
            raise


def _loss(ray: Any, reference: Any) -> str | None:
    """Say why the process of a part is gone; None if the part is written. An error that it raised is raised again."""
    try:
        ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except ray.exceptions.RayError as error:
        return str(error).rstrip().rpartition("\n")[2].strip()  # behind the traceback of a process that did not start
    return None
