"""Say what was made from a patient: which batches have the images, which models were trained with them, and more."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ace.models.folder import CONFIG
from ace.models.model_config import TrainedConfig
from ace.operations import history
from ace.operations.clone import git
from ace.operations.dvc_objects import made_from
from ace.operations.errors import OperationsError
from ace.operations.history import Version
from ace.operations.model_files import batches_of_model, read_config_of, read_lock
from ace.operations.patients import batches_of, count_images, training_patients
from ace.operations.registry import Registry
from ace.operations.work_tree import LOCK
from shards.core.errors import ConfigError
from shards.reading.lineage import TRAINING_IMAGES
from shards.runtime.text import count_of


@dataclass(frozen=True, kw_only=True)
class PatientTrace:
    """Everything that the project knows to be made from a patient's images.

    Attributes:
        batches: Name of a batch → number of the patient's images in it.
        versions: Number of a registered version that was trained with them → how that is known.
        outs: What the last commit's dvc.lock makes from these batches: path → stage.
        exported: Numbers of those of the versions that lie in the folder that models serve from.
    """

    batches: Mapping[str, int]
    versions: Mapping[int, str]
    outs: Mapping[str, str]
    exported: Sequence[int]

    def __bool__(self) -> bool:
        return bool(self.batches or self.versions)

    def to_json(self) -> dict[str, object]:
        """Return it as JSON has it."""
        return {
            "batches": dict(self.batches),
            "versions": {f"v{number}": how for number, how in self.versions.items()},
            "exported": [f"v{number}" for number in self.exported],
            "outs": dict(self.outs),
        }

    def to_text(self) -> str:
        """Write it for people."""
        lines = ["batches", *(f"  {name}  {count_of(number, 'image')}" for name, number in self.batches.items())]
        lines += ["", "versions trained with them"]
        for number, how in self.versions.items():
            lines.append(f"  v{number}  {how}{'; exported' if number in self.exported else ''}")
        lines += ["", f"made from these batches, by the last commit's {LOCK}"]
        return "\n".join([*lines, *(f"  {path}  by {stage}" for path, stage in self.outs.items())])


def trace_patient(registry: Registry, pseudonym: str) -> PatientTrace:
    """Find a patient's images and what was made from them.

    A version says itself whom it was trained with, also by the model that it continued. Of one without such a list the
    batches that it was made from are asked, and the model that it started from.

    Args:
        registry: The registry.
        pseudonym: The patient's.

    Raises:
        SourceError: a manifest is missing or damaged.
        OperationsError: the log or a commit is not as it must be.
    """
    root = registry.root
    counts = {name: count_images(name, batch, root)[pseudonym] for name, batch in batches_of(root).items()}
    batches = {name: number for name, number in counts.items() if number}
    known = history.versions(registry.events())
    versions: dict[int, str] = {}
    for number, version in known.items():
        how = _how_trained(registry, version, pseudonym, batches, [known[earlier] for earlier in versions])
        if how is not None:
            versions[number] = how
    return PatientTrace(
        batches=batches,
        versions=versions,
        outs=_outs_of(root, batches),
        exported=[number for number in versions if (registry.models / known[number].name).is_dir()],
    )


def _how_trained(
    registry: Registry, version: Version, pseudonym: str, batches: Collection[str], known: Sequence[Version]
) -> str | None:
    """Say how a version is known to be trained with a patient; None if it was not.

    Args:
        registry: The registry.
        version: The version.
        pseudonym: The patient's.
        batches: Batches that have images of the patient.
        known: Earlier versions that were trained with the patient.
    """
    try:
        path = registry.file(version, TRAINING_IMAGES)
        if path is not None:
            return f"its {TRAINING_IMAGES} has them" if pseudonym in training_patients(path) else None
        config = read_config_of(registry.files(version))
        hashes = set(config.start_from.values()) if isinstance(config, TrainedConfig) else set()
    except OperationsError:  # its bytes are gone
        hashes = set()
    except ConfigError:
        if known:
            return f"has no {TRAINING_IMAGES}, and its {CONFIG}, which says what it started from, cannot be read"
        hashes = set()
    for earlier in known:
        if hashes & set(earlier.files.values()):
            return f"started from {earlier.name}"
    found = sorted(batches_of_model(registry.root, version.commit, version.model.path).intersection(batches))
    return f"has no {TRAINING_IMAGES}, and was made from {', '.join(found)}" if found else None


def _outs_of(root: Path, batches: Collection[str]) -> dict[str, str]:
    """Follow the last commit's dvc.lock from the shards of batches to all that is made from them: path → stage."""
    if not git(root, "ls-tree", "--name-only", "HEAD", "--", LOCK):
        return {}
    return made_from(read_lock(root, "HEAD"), batches, through_models=True)
