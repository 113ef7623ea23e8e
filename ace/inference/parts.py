"""The embeddings of a source in parts, which a cluster writes and a killed run leaves to the next one.

A file has three arrays for each forward pass (keys, embeddings, token maps if wanted), an empty one for their end, and
the images that cannot be read with their reasons: `np.save` after `np.save`.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch

from ace.inference.batches import embed_source
from ace.inference.cluster import EmbeddingCluster, Part
from ace.inference.embedder import EmbeddingModel, Embeddings
from ace.inference.sources import ImageSource
from shards.runtime.atomic import atomic_path, check_room, write_text
from shards.runtime.progress import progress
from shards.runtime.scratch import unfinished_work

BATCHES_PER_PART = 16
_MARKER = "parts.json"


@contextmanager
def embedded_batches(
    model: EmbeddingModel,
    source: ImageSource,
    cluster: EmbeddingCluster | None,
    *,
    batch_size: int,
    num_threads: int,
    unreadable: list[tuple[str, str]],
    with_tokens: bool,
    num_bytes: int,
) -> Iterator[Iterator[tuple[list[str], Embeddings]]]:
    """Give what `embed_source` yields, computed here or by a cluster.

    On a cluster, a run that was killed goes on after its finished parts, which lie in the scratch folder until the
    block ends without an error.

    Args:
        model: The encoder; for a cluster on the CPU.
        source: The images.
        cluster: Embeds them; None does it here.
        batch_size: Images in one forward pass.
        num_threads: That read, decode and resize, here.
        unreadable: Takes key and reason of what cannot be read, as the batches are taken.
        with_tokens: Keep token maps.
        num_bytes: Estimated size of all parts.

    Raises:
        ConfigError: there is no scratch folder, another process is at the same work, or the cluster cannot do it.
        NoSpaceError: the disk of the scratch folder has too little room.
        SourceError: a machine of the cluster does not see the files.
        WorkerError: processes of the cluster end.
    """
    if cluster is None:
        yield embed_source(
            model,
            source,
            batch_size=batch_size,
            num_threads=num_threads,
            unreadable=unreadable,
            with_tokens=with_tokens,
        )
        return
    made_of = {
        "model": model.describe(),
        "torch": torch.__version__,
        "source": source.fingerprint(),
        "batch_size": batch_size,
        "with_tokens": with_tokens,
        "device": cluster.device,
        "num_threads": cluster.num_threads,
    }
    text = json.dumps(made_of, indent=1, sort_keys=True)
    with unfinished_work("embed", hashlib.sha256(text.encode()).hexdigest()) as folder:
        check_room(folder, num_bytes, f"{len(source.keys):,} embeddings")
        write_text(folder / _MARKER, text)
        parts = list(_parts_of(source, BATCHES_PER_PART * batch_size, folder))
        write = partial(_write_part, batch_size=batch_size, with_tokens=with_tokens)
        cluster.embed(model, parts, write, folder / _MARKER)
        shown = progress(parts, total=len(parts), description="write", unit="part")
        yield (batch for part in shown for batch in _read_part(part.path, with_tokens, unreadable))


def _parts_of(source: ImageSource, size: int, folder: Path) -> Iterator[Part]:
    number = len(source.keys)
    for start in range(0, number, size):
        stop = min(start + size, number)
        name = f"images {start + 1:,} to {stop:,} of {number:,}"
        yield Part(name, source.part(start, stop), folder / f"{start:09}.npy")


def _write_part(
    model: EmbeddingModel, images: ImageSource, path: Path, *, num_threads: int, batch_size: int, with_tokens: bool
) -> None:
    unreadable: list[tuple[str, str]] = []
    batches = embed_source(
        model,
        images,
        batch_size=batch_size,
        num_threads=num_threads,
        unreadable=unreadable,
        with_tokens=with_tokens,
        task=path.name,
    )
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        for keys, found in batches:
            np.save(file, np.array(keys))
            np.save(file, found.embedding.numpy())
            if found.tokens is not None:
                np.save(file, found.tokens.numpy())
        np.save(file, np.array([], str))
        np.save(file, np.array(unreadable, str).reshape(-1, 2))


def _read_part(
    path: Path, with_tokens: bool, unreadable: list[tuple[str, str]]
) -> Iterator[tuple[list[str], Embeddings]]:
    with path.open("rb") as file:

        def tensor() -> torch.Tensor:
            return torch.from_numpy(np.load(file, allow_pickle=False))

        while keys := np.load(file, allow_pickle=False).tolist():
            yield keys, Embeddings(tensor(), tensor() if with_tokens else None)
        unreadable += [(key, reason) for key, reason in np.load(file, allow_pickle=False).tolist()]
