"""Which image files lie below a dataset's folder, by name: many lists name images without their folder."""

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from shards.errors import SourceError
from shards.records import File, locate

DICOM_SUFFIXES = (".dcm", ".dicom")
IMAGE_SUFFIXES = (*DICOM_SUFFIXES, ".png", ".jpg", ".jpeg")


def find_files(root: Path, suffixes: tuple[str, ...]) -> list[str]:
    """Paths below `root` with `/` that end in one of the suffixes (lower case; any case is found), sorted.

    Hidden files and what macOS leaves in archives are passed over. Folders that are symbolic links are not entered:
    what lies below `root` is found in its own place.

    Raises:
        SourceError: there is no such folder, it cannot be listed, or a symbolic link leads out of it.
    """
    if not root.is_dir():
        raise SourceError(f"{root}: no such folder; expected the dataset's")
    try:
        return sorted(_walk(root, root, suffixes))
    except OSError as error:
        raise SourceError(
            f"{root}: a folder below it cannot be listed ({error.strerror}); check its permissions"
        ) from None


def _walk(root: Path, folder: Path, suffixes: tuple[str, ...]) -> Iterator[str]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") or entry.name == "__MACOSX":
                continue
            path = Path(entry.path)
            if entry.is_symlink():
                locate(root, File(path.relative_to(root).as_posix()), f"{path}")
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(root, path, suffixes)
            elif entry.name.lower().endswith(suffixes) and entry.is_file():
                yield path.relative_to(root).as_posix()


def index_images(root: Path, suffixes: tuple[str, ...] = IMAGE_SUFFIXES) -> dict[str, str]:
    """File name without its last suffix → path below `root`; a name may hold dots, as DICOM's identifiers do.

    Raises:
        SourceError: as `find_files`, or two files have one name.
    """
    index: dict[str, str] = {}
    for path in find_files(root, suffixes):
        name = PurePosixPath(path).name.rpartition(".")[0]
        if name in index:
            raise SourceError(f"{root}: {index[name]} and {path} are the same image by name; keep one of them")
        index[name] = path
    return index
