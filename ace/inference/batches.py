"""Embed the images of a source batch by batch, the next one being read while the network runs."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

from ace.inference.embedder import EmbeddingModel, Embeddings
from ace.inference.sources import ImageSource
from ace.models.precision import accelerator_settings
from shards.core.canvas import Canvas
from shards.decode import UnreadableImageError
from shards.runtime.progress import progress_bar

Item = TypeVar("Item")
Result = TypeVar("Result")


def embed_source(
    model: EmbeddingModel,
    source: ImageSource,
    *,
    batch_size: int,
    num_threads: int,
    unreadable: list[tuple[str, str]],
    with_tokens: bool,
    task: str = "embed",
) -> Iterator[tuple[list[str], Embeddings]]:
    """Yield keys and embeddings of each batch of a source's images, in order.

    Args:
        model: The encoder.
        source: The images.
        batch_size: Images in one forward pass.
        num_threads: That read, decode and resize.
        unreadable: Takes key and reason of what cannot be read, which is passed over.
        with_tokens: Keep token maps, in 16 bits: half as much leaves the device of what is stored in them anyway.
        task: What the progress bar is called.
    """
    token_dtype = torch.float16 if with_tokens else None

    def place(position: int) -> Canvas | UnreadableImageError:
        try:
            return model.preprocessing.place(source.read(position))
        except UnreadableImageError as error:
            return error

    positions = range(len(source.keys))
    batches = [positions[start : start + batch_size] for start in range(0, len(positions), batch_size)]
    # The decoders switch warnings off and on, a setting of the whole process: here for all threads at once.
    with warnings.catch_warnings(), ThreadPoolExecutor(num_threads) as pool:
        warnings.simplefilter("ignore")
        with progress_bar(total=len(positions), description=task, unit="image") as bar:
            for batch, results in zip(batches, _one_batch_ahead(pool, place, batches), strict=True):
                for position, result in zip(batch, results, strict=True):
                    if isinstance(result, UnreadableImageError):
                        unreadable.append((source.keys[position], str(result)))
                placed = [
                    (source.keys[position], result)
                    for position, result in zip(batch, results, strict=True)
                    if not isinstance(result, UnreadableImageError)
                ]
                if placed:
                    with accelerator_settings(model.encoder.precision, model.encoder.device):
                        embeddings = model.embed_canvases([canvas for _, canvas in placed], token_dtype)
                    yield [key for key, _ in placed], embeddings
                bar.set_postfix_str(f"unreadable {len(unreadable)}", refresh=False)
                bar.update(len(batch))


def _one_batch_ahead(
    pool: ThreadPoolExecutor, function: Callable[[Item], Result], batches: Iterable[Sequence[Item]]
) -> Iterator[list[Result]]:
    """Results of each batch, in order; the next batch is worked on while this one is used."""
    ready: Iterator[Result] | None = None
    for batch in batches:
        upcoming = pool.map(function, batch)
        if ready is not None:
            yield list(ready)
        ready = upcoming
    if ready is not None:
        yield list(ready)
