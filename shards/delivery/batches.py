"""The files of batches: `batches/NAME.yaml`, which decides a batch's shards, and where its manifest and images lie."""

from collections.abc import Collection, Mapping
from io import StringIO
from pathlib import Path

from ruamel.yaml import YAML

from shards.core.config import read_params
from shards.core.errors import ConfigError
from shards.core.params import BatchParams, GridParams, RegisteredSourceParams, ShardParams, parse_names
from shards.format.layout import BATCHES, MANIFESTS
from shards.runtime.atomic import write_text


def batch_path(name: str, project: Path) -> Path:
    """Return the path of the file that decides a batch's shards.

    Args:
        name: Name of the batch, as `clinic-b000`.
        project: The folder of params.yaml.
    """
    return project / BATCHES / f"{name}.yaml"


def read_batch(name: str, project: Path) -> BatchParams:
    """Read the file of one batch, and where its images are.

    Args:
        name: Name of the batch, as `clinic-b000`.
        project: The folder of params.yaml.

    Raises:
        ConfigError: it is missing or wrong.
    """
    path = batch_path(name, project)
    if not path.is_file():
        raise ConfigError(
            f"{path}: not found, and params.yaml names the batch {name}; restore it from git, or take the batch out: "
            f"`python -m shards remove {name}`"
        )
    batch = BatchParams.from_params(read_params(path), str(path))
    root = root_path(name, project)
    if not isinstance(batch.source, RegisteredSourceParams) or not root.is_file():
        return batch
    source = batch.source.model_copy(update={"root": root.read_text(encoding="utf-8").removesuffix("\n")})
    return batch.model_copy(update={"source": source})


def read_batches(
    params: Path, values: Mapping[str, object], names: Collection[str] | None = None
) -> dict[str, BatchParams]:
    """Read the files of the batches that params.yaml names, in its order.

    Args:
        params: The file params.yaml, which opens messages; the batches lie beside it.
        values: Content of params.yaml.
        names: Names of the batches to read; None reads all.

    Raises:
        ConfigError: the section `batches` is wrong, one of the names is not in it, a file is missing or wrong, or two
            batches name different identity keys.
    """
    known = parse_names(values.get("batches"), f"{params}: batches")
    unknown = sorted(set(names or ()) - known.keys())
    if unknown:
        raise ConfigError(f"{params}: has no batch '{unknown[0]}'; expected one of its batches: {', '.join(known)}")
    batches = {name: read_batch(name, params.parent) for name in known if names is None or name in names}
    for name, batch in batches.items():
        if batch.source.dep != known[name]:
            raise ConfigError(
                f"{params}: batches.{name}: found {known[name]}, and {batch_path(name, params.parent)} has "
                f"{batch.source.dep} as source.dep; expected the same path in both"
            )
    keys = {n: b.source.id_key_fingerprint for n, b in batches.items() if isinstance(b.source, RegisteredSourceParams)}
    if len(set(keys.values())) > 1:
        found = ", ".join(f"{name} {key}" for name, key in keys.items())
        raise ConfigError(
            f"{params}: batches: found different id_key_fingerprint ({found}); expected the same one in every batch: "
            "with another key a patient would have another pseudonym and perhaps another split"
        )
    return batches


def format_batch(name: str, batch: BatchParams) -> str:
    """Write a batch as the text of its file."""
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    stream = StringIO()
    yaml.dump(batch.model_dump(mode="json", exclude_none=True), stream)
    return (
        f"# Everything that decides the shards of {name}, written by `python -m shards`; a batch never changes.\n"
        + (stream.getvalue())
    )


def root_path(name: str, project: Path) -> Path:
    """Return the path of the private file with the folder of a registered batch's images.

    It is one line, relative to the project or absolute, and decides nothing: images that moved are the same images.
    """
    return project / MANIFESTS / f"{name}.root.txt"


def settings_of(values: Mapping[str, object], params: Path) -> tuple[GridParams, ShardParams]:
    """Read the sections `grid` and `shard` of params.yaml, of which each batch gets its own copy.

    Args:
        values: Content of params.yaml.
        params: The file, which opens messages.

    Raises:
        ConfigError: a section is wrong.
    """
    grid = GridParams.from_params(values.get("grid"), f"{params}: grid")
    return grid, ShardParams.from_params(values.get("shard"), f"{params}: shard")


def set_settings(params: Path, values: Mapping[str, object], names: Collection[str]) -> list[str]:
    """Give batches the sections `grid` and `shard` of params.yaml, with which their shards will be built anew.

    Args:
        params: The file params.yaml; the batches lie beside it.
        values: Content of params.yaml.
        names: Names of the batches that get them.

    Returns:
        What changed, a sentence a batch.

    Raises:
        ConfigError: there is no such batch, or a section is wrong.
    """
    grid, shard = settings_of(values, params)
    changes = []
    for name, batch in (read_batches(params, values, names) if names else {}).items():
        if (batch.grid, batch.shard) != (grid, shard):
            text = format_batch(name, batch.model_copy(update={"grid": grid, "shard": shard}))
            write_text(batch_path(name, params.parent), text)
            changes.append(f"batches/{name}.yaml has grid and shard of {params} now; its shards will be built again")
    return changes
