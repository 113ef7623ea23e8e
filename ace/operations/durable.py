"""Names in a folder that last through a power cut, which a rename alone does not promise."""

import os
from pathlib import Path


def sync_folder(folder: Path) -> None:
    """Wait until the disk has the names that were made, renamed and removed in this folder."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_symlink(link: Path, target: str) -> None:
    """Let a symlink point elsewhere in one step: whoever opens it meanwhile gets the old target or the new one.

    One process at a time may call it for one link.

    Args:
        link: The symlink; it may be missing yet.
        target: What it points at, relative to the link's folder.
    """
    temporary = link.with_name(f".{link.name}.tmp")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    temporary.replace(link)
    sync_folder(link.parent)
