"""Say what was made from a patient: which tars have the images, which models were trained with them, and more."""

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ace.inference.folder import RECORD
from ace.models.folder import CONFIG
from ace.models.model_config import TrainedConfig
from ace.operations import history
from ace.operations.clone import git
from ace.operations.dvc_objects import MODELS, made_from
from ace.operations.erasure_plan import service_folders
from ace.operations.errors import OperationsError
from ace.operations.history import Version
from ace.operations.lineage import weights_named_by, weights_of
from ace.operations.model_files import batches_of_model, read_config_of, read_lock
from ace.operations.patients import batches_of, count_images, training_patients
from ace.operations.registry import Registry
from ace.operations.work_tree import LOCK
from shards.core.errors import ConfigError, IndexFormatError
from shards.delivery.yaml_lines import SHARDS
from shards.reading.lineage import TRAINING_IMAGES
from shards.reading.reader import ShardIndex
from shards.runtime.text import count_of


@dataclass(frozen=True, kw_only=True)
class PatientTrace:
    """Everything that the project knows to be made from a patient's images.

    Attributes:
        batches: Name of a batch → number of the patient's images in it.
        samples: Name of a batch → name of a tar → keys of the patient's samples in it; without batches whose shards are
            not here.
        versions: Number of a registered version that was trained with them → how that is known.
        outs: What the last commit's dvc.lock makes from these batches: path → stage.
        exported: Numbers of those of the versions that lie in the folder that models serve from.
        copies: Folder that `ace export` or `ace publish` wrote from one of the models, below the clone or the folder
            that models serve from → how it was made.
    """

    batches: Mapping[str, int]
    samples: Mapping[str, Mapping[str, Sequence[str]]]
    versions: Mapping[int, str]
    outs: Mapping[str, str]
    exported: Sequence[int]
    copies: Mapping[str, str]

    def __bool__(self) -> bool:
        return bool(self.batches or self.versions)

    def to_json(self) -> dict[str, object]:
        """Return it as JSON has it."""
        return {
            "batches": dict(self.batches),
            "samples": {name: dict(tars) for name, tars in self.samples.items()},
            "versions": {f"v{number}": how for number, how in self.versions.items()},
            "exported": [f"v{number}" for number in self.exported],
            "outs": dict(self.outs),
            "copies": dict(self.copies),
        }

    def to_text(self) -> str:
        """Write it for people."""
        lines = ["batches"]
        for name, number in self.batches.items():
            lines.append(f"  {name}  {count_of(number, 'image')}")
            tars = self.samples.get(name)
            lines += ["    its shards are not here"] if tars is None else []
            lines += [f"    {tar}  {' '.join(keys)}" for tar, keys in (tars or {}).items()]
        lines += ["", "versions trained with them"]
        for number, how in self.versions.items():
            lines.append(f"  v{number}  {how}{'; exported' if number in self.exported else ''}")
        lines += ["", f"made from these batches, by the last commit's {LOCK}"]
        lines += [f"  {path}  by {stage}" for path, stage in self.outs.items()]
        lines += ["", "exported or published from these models"] if self.copies else []
        return "\n".join([*lines, *(f"  {folder}  {how}" for folder, how in self.copies.items())])


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
    outs = _outs_of(root, batches)
    weights = {sha256: known[number].name for number in versions for sha256 in known[number].files.values()}
    for folder in _models_of(root, pseudonym, outs):
        weights |= dict.fromkeys(weights_of(folder) - weights.keys(), folder.relative_to(root).as_posix())
    samples = {name: _samples_of(root / SHARDS / name, pseudonym) for name in batches}
    return PatientTrace(
        batches=batches,
        samples={name: tars for name, tars in samples.items() if tars is not None},
        versions=versions,
        outs=outs,
        exported=[number for number in versions if (registry.models / known[number].name).is_dir()],
        copies=_copies_of(weights, _other_folders(root, registry.models)),
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


def _samples_of(shard_set: Path, pseudonym: str) -> dict[str, list[str]] | None:
    """Return the tars with samples of a patient, and their keys there; None where the shards are not here."""
    try:
        index = ShardIndex.open(shard_set, check_tars=False)
    except IndexFormatError:
        return None
    found: dict[str, list[str]] = {}
    for row in index.rows[index.rows["patient"] == pseudonym.encode()]:
        found.setdefault(index.shards[row["shard"]].name, []).append(row["key"].decode())
    return found


def _models_of(root: Path, pseudonym: str, outs: Collection[str]) -> Iterator[Path]:
    """Yield the folders of models in the work tree that were trained with a patient, or may have been.

    Args:
        root: The clone.
        pseudonym: The patient's.
        outs: What dvc.lock makes from the batches with images of the patient.
    """
    for folder in (path.parent for path in sorted((root / MODELS).glob(f"*/{CONFIG}"))):
        listed = folder / TRAINING_IMAGES
        if pseudonym in training_patients(listed) if listed.is_file() else f"{MODELS}{folder.name}" in outs:
            yield folder


def _other_folders(root: Path, models: Path) -> Iterator[Path]:
    """Yield the folders below the clone and the folder that models serve from that may be exports or published."""
    passed_over = {root / "data", *service_folders(root)}
    for top in (root, models):
        for name, folders, files in os.walk(top):
            folders[:] = sorted(
                inner for inner in folders if not inner.startswith(".") and Path(name, inner) not in passed_over
            )
            if not {RECORD, CONFIG}.isdisjoint(files):
                yield Path(name)


def _copies_of(weights: Mapping[str, str], folders: Iterator[Path]) -> dict[str, str]:
    """Return the folders that were exported or published from models, also from one that was published itself.

    Args:
        weights: sha256 of a file of weights → name of its model.
        folders: Where to look.
    """
    named: dict[Path, tuple[str, str]] = {}
    for folder in folders:
        with suppress(ConfigError):  # a damaged record leads nowhere
            source = weights_named_by(folder)
            if source is not None:
                named[folder] = source
    known, found, num_found = dict(weights), dict[str, str](), -1
    while num_found < len(found):
        num_found = len(found)
        for folder, (how, sha256) in named.items():
            if sha256 in known and str(folder) not in found:
                found[str(folder)] = f"{how} {known[sha256]}"
                known |= dict.fromkeys(weights_of(folder) - known.keys(), folder.name)
    return dict(sorted(found.items()))
