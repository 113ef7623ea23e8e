"""Folders that an export makes: new ones only, whole or not at all, and with a record of the model."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, ValidationError

from ace.models.model_config import TrainedConfig
from shards.core.errors import ConfigError
from shards.runtime.atomic import atomic_directory, write_text

if TYPE_CHECKING:
    from ace.inference.embedder import EmbeddingModel

RECORD = "ace_model.json"


class ExportRecord(BaseModel):
    """A record of the model that a folder was exported from: it leads back from there, and names no machine.

    Attributes:
        model_sha256: sha256 of the exported network's file of weights.
        network: The network: teacher, student or best.
        commit: The git commit of the code that trained the model; None if that is not known.
        version: Release of this package that exported it.
    """

    model_config = ConfigDict(frozen=True)

    model_sha256: str
    network: str
    commit: str | None
    version: str


@contextmanager
def new_folder(out: Path, model: "EmbeddingModel") -> Iterator[Path]:
    """Give a temporary folder beside `out`, which is renamed to it when the block ends without an error.

    Args:
        out: The folder.
        model: The model whose weights go there, and whose record lies there already.

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
    with atomic_directory(out, model.num_bytes) as temporary:
        write_text(temporary / RECORD, json.dumps(_record(model).model_dump(), indent=2) + "\n")
        yield temporary


def read_record(folder: Path) -> ExportRecord | None:
    """Read which model a folder was exported from; None for a folder that is no export, or of an earlier release.

    Raises:
        ConfigError: the record is damaged.
    """
    path = folder / RECORD
    if not path.is_file():
        return None
    try:
        return ExportRecord.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise ConfigError(
            f"{path}: damaged ({_reason(error)}); expected a JSON object with "
            f"{', '.join(ExportRecord.model_fields)}: export the model again"
        ) from None


def _reason(error: ValidationError) -> str:
    """Say which field is wrong, what was found in it and why it is not as it should be."""
    first = error.errors()[0]
    field = ".".join(map(str, first["loc"]))
    if not field or first["type"] == "missing":
        return f"{field}: {first['msg']}" if field else first["msg"]
    return f"{field} is {first['input']!r:.100}: {first['msg']}"


def _record(model: "EmbeddingModel") -> ExportRecord:
    return ExportRecord(
        model_sha256=model.fingerprint,
        network=model.which,
        commit=model.config.commit if isinstance(model.config, TrainedConfig) else None,
        version=version("ace-pretraining"),
    )
