"""Patients by their pseudonyms: whom an identifier means, which batches have images of whom, and who has withdrawn.

The event log goes where git goes, and a pseudonym stands in shards and in models' lists of training images: whoever has
one of these must not read off the log who has withdrawn. So the log names a patient by a mark, a second hash under the
same key.
"""

import csv
import hmac
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from unicodedata import normalize

from ace.operations.errors import OperationsError
from ace.operations.work_tree import PARAMS
from shards.core.config import read_params
from shards.core.identity import PUBLIC_KEY, IdKey, load_id_key, patient_of_site
from shards.core.params import BatchParams, RegisteredSourceParams
from shards.delivery.batches import read_batches
from shards.delivery.manifest import iterate_manifest
from shards.delivery.yaml_lines import SHARDS
from shards.format.exclusion import read_exclusion
from shards.format.layout import INDEX
from shards.reading.reader import ShardIndex


def batches_of(root: Path) -> dict[str, BatchParams]:
    """Read the batches of a project."""
    return read_batches(root / PARAMS, read_params(root / PARAMS))


def identity_key(batches: Mapping[str, BatchParams]) -> IdKey:
    """Load the key behind the pseudonyms; without registered batches it is the phantom's, which hides nobody.

    Raises:
        IdKeyError: there is none, or another one than the project's.
    """
    sources = [batch.source for batch in batches.values() if isinstance(batch.source, RegisteredSourceParams)]
    return load_id_key(sources[0].id_key_fingerprint) if sources else PUBLIC_KEY


def pseudonym_of(identifier: str, site: str | None, batches: Mapping[str, BatchParams]) -> str:
    """Hash a patient's identifier as `register` does.

    Args:
        identifier: The patient's id as the site has it; of a public dataset, DATASET/ID.
        site: Site that gave the id, empty for a public dataset; None if all batches are of one.
        batches: The project's batches.

    Raises:
        OperationsError: there is no such site, or batches are of several: the same id is another person there.
        IdKeyError: as `identity_key`.
    """
    sources = [batch.source for batch in batches.values() if isinstance(batch.source, RegisteredSourceParams)]
    sites = sorted({source.site for source in sources} or {""})
    if (site is None and len(sites) > 1) or (site is not None and site not in sites):
        named = ", ".join(f"'{name}'" for name in sites)
        raise OperationsError(
            f"the batches are of the sites {named}, and the same id is another person at another site; say which one "
            "gave the patient the id: --site NAME"
        )
    text = patient_of_site(sites[0] if site is None else site, normalize("NFC", identifier))
    return identity_key(batches).pseudonym("patient", text)


def mark_of(pseudonym: str, key: IdKey) -> str:
    """Return what stands for a patient in the event log: 64 hex digits, which only the key leads to."""
    return hmac.digest(key.secret, f"ace/withdrawal/{pseudonym}".encode(), "sha256").hex()


def count_images(name: str, batch: BatchParams, root: Path) -> Counter[str]:
    """Count the images of each patient of a batch, by pseudonym.

    They are those of its manifest; of a phantom, which has none, those of its shards, and none before these are built.

    Raises:
        SourceError: the manifest is missing or damaged.
    """
    if isinstance(batch.source, RegisteredSourceParams):
        return Counter(entry.record.patient for _, entry in iterate_manifest(root / batch.source.dep)[1])
    if not (root / SHARDS / name / INDEX).is_file():
        return Counter()
    return Counter(ShardIndex.open(root / SHARDS / name, check_tars=False).rows["patient"].astype(str).tolist())


def training_patients(path: Path) -> set[str]:
    """Read the pseudonyms of the patients whom a model was trained with.

    Args:
        path: The list of training images in the model's folder.
    """
    with path.open(encoding="utf-8", newline="") as file:
        return {row["patient"] for row in csv.DictReader(file)}


def find_marked(marks: Collection[str], name: str, batch: BatchParams, root: Path, key: IdKey) -> list[str]:
    """Return the pseudonyms of a batch's patients who have these marks."""
    return sorted(patient for patient in count_images(name, batch, root) if mark_of(patient, key) in marks)


def first_unexcluded(marks: Collection[str], root: Path) -> str | None:
    """Return the name of the first batch that has images of patients with these marks that are not excluded.

    Raises:
        IdKeyError: as `identity_key`.
        SourceError: a manifest or a list of excluded images is not as it must be.
    """
    if not marks:
        return None
    batches = batches_of(root)
    key = identity_key(batches)
    for name, batch in batches.items():
        found = find_marked(marks, name, batch, root, key)
        if found and not read_exclusion(name, root).patients.issuperset(found):
            return name
    return None
