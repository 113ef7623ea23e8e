"""Companion shards: embeddings beside the samples of a shard set, in tars of the same names, keys and order.

    companions.json       which set, model and members; written first
    train-000000.tar      KEY.embedding.npy, and KEY.tokens.npy if wanted, for each sample of the set's tar of that name

Two readers of webdataset, one of each folder, stay in step.
"""

import io
import json
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ace.inference.batches import embed_source
from ace.inference.cluster import EmbeddingCluster, Part
from ace.inference.embedder import EmbeddingModel
from ace.inference.sources import ImageSource, ShardImages
from shards.core.errors import ConfigError, SourceError
from shards.core.records import Split
from shards.format.tar import TarWriter
from shards.reading.reader import ShardIndex, ShardReader
from shards.runtime.atomic import atomic_path, check_room, write_text

DESCRIPTION = "companions.json"
FORMAT = 1
EMBEDDING, TOKENS = "embedding.npy", "tokens.npy"


def write_companions(
    model: EmbeddingModel,
    index: ShardIndex,
    split: Split | Literal["all"],
    out: Path,
    *,
    batch_size: int,
    num_threads: int,
    with_tokens: bool,
    cluster: EmbeddingCluster | None = None,
) -> int:
    """Embed a shard set tar by tar; a run that was killed goes on after the last tar that it finished.

    A forward pass holds images of one tar alone, so that the bytes of a tar depend on nothing but its images, the
    model, the batch size and the machine.

    Args:
        model: The encoder.
        index: The set.
        split: Which of its tars get a companion.
        out: The folder; one that is there has to be of the same set and model.
        batch_size: Images in one forward pass.
        num_threads: That read, decode and resize.
        with_tokens: Write token maps too.
        cluster: Embeds several tars at once; None does it here, one after another.

    Returns:
        Number of samples that have a companion.

    Raises:
        ConfigError: images of the set are excluded, so that a companion would not keep in step with its tars; `out` is
            of another set or model; there is no tar of the split.
        SourceError: an image cannot be read.
        WorkerError: processes of the cluster end.
        NoSpaceError: the disk has too little room, or is full.
    """
    excluded = index.count_excluded()
    if num_excluded := sum(number for name, number in excluded.items() if split in (name, "all")):
        raise ConfigError(
            f"{index.store.location}: {num_excluded} of its images are excluded, and companion shards have a sample "
            "for every one in the tars; write a Parquet file with --out, or build the set again without them"
        )
    rows = index.select(split)
    chosen = [number for number, tar in enumerate(index.shards) if split in (tar.split, "all")]
    if not chosen:
        raise ConfigError(f"{index.store.location}: no samples of the split '{split}'")
    num_bytes = _num_bytes(model, len(rows), with_tokens)
    check_room(out, num_bytes, f"{len(rows):,} companions")
    _describe(
        out,
        {
            "format": FORMAT,
            "set": index.name,
            "fingerprint": index.fingerprint,
            "split": split,
            "members": [EMBEDDING, *([TOKENS] if with_tokens else [])],
            "batch_size": batch_size,
            "model": model.describe(),
        },
    )
    write = partial(_write_tar, batch_size=batch_size, with_tokens=with_tokens)
    reader, numbers = ShardReader(index), index.tar_numbers(rows)
    parts = []
    for number in chosen:
        own, name = rows[numbers == number], index.shards[number].name
        parts.append(
            Part(
                name,
                ShardImages(reader=reader, rows=own.tolist(), keys=index.keys(own), key_kind="sample key"),
                out.absolute() / name,
            )
        )
    if cluster is not None:
        cluster.embed(model, parts, write, out.absolute() / DESCRIPTION)
        return len(rows)
    for part in parts:
        if not part.path.is_file():
            write(model, part.images, part.path, num_threads=num_threads)
    return len(rows)


def _write_tar(
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
    with atomic_path(path, _num_bytes(model, len(images.keys), with_tokens)) as temporary, TarWriter(temporary) as tar:
        for keys, found in batches:
            tokens = None if found.tokens is None else found.tokens.numpy()
            for position, key in enumerate(keys):
                tar.add(f"{key}.{EMBEDDING}", _npy(found.embedding[position].numpy()))
                if tokens is not None:
                    tar.add(f"{key}.{TOKENS}", _npy(tokens[position]))
        if unreadable:
            key, reason = unreadable[0]
            raise SourceError(f"{path.name}: sample {key} cannot be read ({reason}); `python -m shards verify` the set")


def _npy(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, values, allow_pickle=False)
    return file.getvalue()


def _num_bytes(model: EmbeddingModel, num_samples: int, with_tokens: bool) -> int:
    """Return about how large companions are, with the headers of their members."""
    rows, cols = model.token_grid
    return num_samples * (1024 + 4 * model.dim + (1024 + 2 * rows * cols * model.dim if with_tokens else 0))


def _describe(out: Path, description: dict[str, Any]) -> None:
    """Write the description, or compare it with the one that is there."""
    path = out / DESCRIPTION
    text = json.dumps(description, indent=1, sort_keys=True) + "\n"
    if path.is_file():
        if path.read_text(encoding="utf-8") != text:
            raise ConfigError(
                f"{path}: of another set, split, model or batch size, or with other members; name a new folder"
            )
        return
    # What a run has left that was killed while it wrote the description is no other content.
    begun = f".{DESCRIPTION}."
    if out.is_file() or (out.is_dir() and any(not found.name.startswith(begun) for found in out.iterdir())):
        raise ConfigError(f"{out}: exists and has no {DESCRIPTION}; name a new folder for companion shards")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--companions {out}: the folder cannot be made: {error.strerror}") from None
    write_text(path, text)
