"""Writers of parts that end their process; a module of their own, for the cluster's processes import it by name."""

import os
import signal
from functools import partial
from pathlib import Path

from ace.inference.embedder import EmbeddingModel
from ace.inference.parts import _write_part
from ace.inference.sources import ImageSource

write_part = partial(_write_part, batch_size=2, with_tokens=False)


def die_at(
    model: EmbeddingModel, images: ImageSource, path: Path, *, num_threads: int, at: str, once: Path | None = None
) -> None:
    """End the process at one part: each time, or only while a file is not there, in the middle of the writing."""
    if path.name == at and not (once and once.exists()):
        path.with_name(f".{at}.{os.getpid()}.tmp").write_bytes(b"half")
        if once:
            once.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    write_part(model, images, path, num_threads=num_threads)
