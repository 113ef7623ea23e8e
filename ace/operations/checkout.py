"""A clone as it was when a version was registered, with the version's model in it."""

from pathlib import Path

from ace.operations.clone import git
from ace.operations.errors import OperationsError
from ace.operations.history import Version
from ace.operations.model_files import export
from ace.operations.registry import Registry
from shards.runtime.atomic import atomic_directory


def check_out(registry: Registry, version: Version, out: Path) -> None:
    """Clone the service's clone at the commit of a version, and put the model where the pipeline has it.

    Args:
        registry: The registry.
        version: The version.
        out: The new folder.

    Raises:
        OperationsError: the folder exists, or the model's bytes are not as they were registered.
    """
    if out.exists():
        raise OperationsError(f"{out} exists; choose another folder or remove it")
    files = registry.files(version)
    with atomic_directory(out) as temporary:
        git(registry.root, "clone", "--quiet", "--no-checkout", str(registry.root), str(temporary.absolute()))
        git(temporary, "checkout", "--quiet", "--detach", version.commit)
        export(files, version.files, temporary / version.model.path)
