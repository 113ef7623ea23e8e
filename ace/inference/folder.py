"""Folders that an export makes: new ones only, whole or not at all."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shards.core.errors import ConfigError
from shards.runtime.atomic import atomic_directory


@contextmanager
def new_folder(out: Path, num_bytes: int) -> Iterator[Path]:
    """Give a temporary folder beside `out`, which is renamed to it when the block ends without an error.

    Args:
        out: The folder.
        num_bytes: Size of the weights that go there.

    Raises:
        ConfigError: `out` is a file or a folder with something in it, which an export never replaces.
        NoSpaceError: the disk has too little room, or is full.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ConfigError(f"{out} exists and is not empty; name a new folder, or remove it first")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{out}: its folder cannot be made: {error.strerror}") from None
    with atomic_directory(out, num_bytes) as temporary:
        yield temporary
