"""Folders that an export makes: new ones only, whole or not at all."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shards.atomic import replace_directory
from shards.errors import ConfigError


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A temporary folder beside `out` to write to; renamed to it when the block ends without an error.

    Raises:
        ConfigError: `out` is a file or a folder with something in it, which an export never replaces.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ConfigError(f"{out} exists and is not empty; name a new folder, or remove it first")
    temporary = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
    except OSError as error:
        raise ConfigError(f"{out}: its folder cannot be made: {error.strerror}") from None
    try:
        yield temporary
        replace_directory(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
