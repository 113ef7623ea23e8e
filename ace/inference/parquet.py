"""Embeddings of a whole source as one Parquet file, which appears whole or not at all."""

import csv
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ace.inference.cluster import EmbeddingCluster
from ace.inference.embedder import EmbeddingModel, Embeddings
from ace.inference.parts import embedded_batches
from ace.inference.sources import ImageSource
from shards.core.errors import ConfigError, SourceError
from shards.runtime.atomic import atomic_path, check_room, write_text

ROWS_PER_GROUP = 1024
TOKEN_ROWS_PER_GROUP = 64
"""Token maps are some hundred times as long as an embedding."""


_EMBEDDING_BYTES, _TOKEN_BYTES = 4, 2  # of a value; compression saves nothing worth counting


@dataclass(frozen=True)
class Outcome:
    """An outcome counts what became of a source's images.

    Attributes:
        num_embedded: Rows of the file.
        num_unreadable: Lines of its list of errors.
        errors: That list; the file is there only if there are any.
    """

    num_embedded: int
    num_unreadable: int
    errors: Path


def write_embeddings(
    model: EmbeddingModel,
    source: ImageSource,
    out: Path,
    *,
    batch_size: int,
    num_threads: int,
    with_tokens: bool,
    cluster: EmbeddingCluster | None = None,
) -> Outcome:
    """Embed every image of a source: columns `key`, `embedding` (float32 [D]) and, if wanted, `tokens` (float16).

    `tokens` are flattened in the order (row, col, channel); rows, cols and dim stand in the file's metadata, with the
    model's fingerprint, its preprocessing and what the keys are. Unreadable images are passed over and listed, with
    their reasons, beside the file as `NAME.errors.csv`.

    Args:
        model: The encoder.
        source: The images.
        out: The Parquet file; replaced when the last image is embedded, and left alone by a run that is killed.
        batch_size: Images in one forward pass.
        num_threads: That read, decode and resize.
        with_tokens: Write the column `tokens`.
        cluster: Embeds the images in parts, which outlive a kill; None does it here.

    Raises:
        ConfigError: `out` is a folder, or lies below a file; the cluster cannot do it.
        NoSpaceError: the disk has too little room, or is full.
        SourceError: not one image can be read.
        WorkerError: processes of the cluster end.
    """
    _check_out(out)
    rows, cols = model.token_grid
    bytes_per_image = model.dim * (_EMBEDDING_BYTES + (_TOKEN_BYTES * rows * cols if with_tokens else 0))
    num_bytes = len(source.keys) * bytes_per_image
    check_room(out.parent, num_bytes, f"{len(source.keys):,} embeddings")
    errors = out.with_suffix(".errors.csv")
    unreadable: list[tuple[str, str]] = []
    rows_per_group = TOKEN_ROWS_PER_GROUP if with_tokens else ROWS_PER_GROUP
    embedded = embedded_batches(
        model,
        source,
        cluster,
        batch_size=batch_size,
        num_threads=num_threads,
        unreadable=unreadable,
        with_tokens=with_tokens,
        num_bytes=num_bytes,
    )
    with embedded as batches, atomic_path(out, num_bytes) as temporary:
        groups = _row_groups(batches, model, rows_per_group, with_tokens)
        num_embedded = 0
        with pq.ParquetWriter(temporary, _schema(model, source, with_tokens), compression="zstd") as writer:
            for group in groups:
                writer.write_table(pa.table(group, writer.schema), row_group_size=rows_per_group)
                num_embedded += len(group["key"])
        _write_errors(errors, unreadable)
        if not num_embedded:
            raise SourceError(f"none of the {len(source.keys)} images can be read; {errors} says why")
    return Outcome(num_embedded, len(unreadable), errors)


def _check_out(out: Path) -> None:
    """Refuse an output path that cannot be written, before any image is embedded."""
    if out.is_dir():
        raise ConfigError(f"--out {out}: is a folder; name the Parquet file, as {out / 'embeddings.parquet'}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out {out}: its folder cannot be made: {error.strerror}") from None


def _row_groups(
    batches: Iterable[tuple[list[str], Embeddings]], model: EmbeddingModel, rows_per_group: int, with_tokens: bool
) -> Iterator[dict[str, pa.Array]]:
    """Batches joined to the columns of row groups of at least `rows_per_group` rows, but for the last."""
    keys: list[str] = []
    waiting: list[Embeddings] = []
    for batch_keys, embeddings in batches:
        keys += batch_keys
        waiting.append(embeddings)
        if len(keys) >= rows_per_group:
            yield _columns(keys, waiting, with_tokens)
            keys, waiting = [], []
    if keys:
        yield _columns(keys, waiting, with_tokens)


def _columns(keys: list[str], embeddings: list[Embeddings], with_tokens: bool) -> dict[str, pa.Array]:
    columns = {"key": pa.array(keys, pa.string())}
    columns["embedding"] = _fixed_size_lists(np.concatenate([item.embedding.numpy() for item in embeddings]))
    if with_tokens:
        tokens = np.concatenate([item.tokens.numpy() for item in embeddings if item.tokens is not None])
        columns["tokens"] = _fixed_size_lists(tokens.reshape(len(keys), -1))
    return columns


def _fixed_size_lists(values: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])


def _schema(model: EmbeddingModel, source: ImageSource, with_tokens: bool) -> pa.Schema:
    fields = [
        pa.field("key", pa.string(), nullable=False),
        pa.field("embedding", pa.list_(pa.float32(), model.dim), nullable=False),
    ]
    if with_tokens:
        rows, cols = model.token_grid
        fields.append(pa.field("tokens", pa.list_(pa.float16(), rows * cols * model.dim), nullable=False))
    about = {**model.describe(), "keys": source.key_kind}
    return pa.schema(fields, {f"ace.{name}": str(value) for name, value in about.items()})


def _write_errors(path: Path, unreadable: list[tuple[str, str]]) -> None:
    if not unreadable:
        path.unlink(missing_ok=True)
        return
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([("key", "reason"), *unreadable])
    write_text(path, text.getvalue())
