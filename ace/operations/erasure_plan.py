"""What the erasure of a patient has to remove, written down before anything is: the manifests will not say it after."""

import json
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from ace.operations.clone import git
from ace.operations.delivery import IMAGES
from ace.operations.due import DELIVERIES, QUARANTINE
from ace.operations.dvc_objects import Stores, read_recorded
from ace.operations.errors import OperationsError
from ace.operations.params import read_operations
from ace.operations.patients import batches_of
from ace.operations.residue import piece_of, pieces_of_samples
from ace.operations.work_tree import PARAMS
from shards.core.params import RegisteredSourceParams
from shards.core.records import files_of
from shards.delivery.batches import root_path
from shards.delivery.manifest import iterate_manifest, key_of
from shards.delivery.yaml_lines import SHARDS
from shards.format.layout import INDEX, MANIFESTS, sha256_of
from shards.reading.reader import ShardIndex
from shards.runtime.atomic import write_private_text


class Place(BaseModel):
    """A manifest that has images of the patient.

    Attributes:
        name: Name of the batch.
        manifest: Path of the manifest.
        images: Folder to which its paths are relative.
        paths: Paths of the patient's files below that folder, without those that are other patients' too, as a mask.
        keys: Keys of the patient's images.
        contents: Size and sha256 of each of these images.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    manifest: Path
    images: Path
    paths: tuple[str, ...]
    keys: tuple[str, ...]
    contents: tuple[tuple[int, str], ...]

    @property
    def files(self) -> list[Path]:
        """The patient's files."""
        return [self.images / path for path in self.paths]


class Plan(BaseModel):
    """A plan has everything that is known of what is to be erased before anything is.

    Attributes:
        number: Number of the withdrawal.
        mark: The patient's mark.
        pseudonym: The patient's pseudonym.
        commit: The last commit before the erasure.
        places: Manifests of the project's batches.
        others: Manifests that no batch of the project has: of deliveries that were refused, or batches taken out.
        copies: Further files with the bytes of the patient's images, in folders of the service.
        objects: Objects of DVC that hold images of the affected batches.
        cached: Names of files in caches of shards.
        frozen: Fingerprint of the frozen set, if that is built anew.
        needles: Texts that are searched for at the end, in hex.
    """

    model_config = ConfigDict(frozen=True)

    number: int
    mark: str
    pseudonym: str
    commit: str
    places: tuple[Place, ...]
    others: tuple[Place, ...]
    copies: tuple[Path, ...]
    objects: tuple[str, ...]
    cached: tuple[str, ...]
    frozen: str | None
    needles: tuple[str, ...]

    @property
    def names(self) -> list[str]:
        """Names of the batches that are built anew."""
        return [place.name for place in self.places]

    @property
    def files(self) -> list[Path]:
        """All files with images of the patient that are known."""
        return [*(path for place in (*self.places, *self.others) for path in place.files), *self.copies]

    @classmethod
    def path(cls, root: Path) -> Path:
        """Return where the plan lies while an erasure is under way; there is one at a time."""
        return root / MANIFESTS / "erasing.json"

    @classmethod
    def read(cls, root: Path) -> "Plan | None":
        """Read the plan of the erasure that is under way, if one is."""
        path = cls.path(root)
        return cls.model_validate_json(path.read_bytes()) if path.is_file() else None

    def write(self, root: Path) -> None:
        """Write the plan to a file that its owner alone may read."""
        write_private_text(self.path(root), self.model_dump_json())


def make_plan(root: Path, number: int, mark: str, pseudonym: str) -> Plan:
    """Look for all that holds images of a patient.

    Args:
        root: The service's clone.
        number: Number of the withdrawal.
        mark: The patient's mark.
        pseudonym: The patient's pseudonym.

    Raises:
        OperationsError: a batch would have no image left, is of the phantom, or its images are not there to build the
            others anew.
        SourceError: a manifest is missing or damaged.
    """
    batches, places, needles = batches_of(root), [], [pseudonym.encode()]
    shared = _files_of_others(root, pseudonym)
    for name, batch in batches.items():
        if not isinstance(batch.source, RegisteredSourceParams):
            continue
        place = _place(name, root / batch.source.dep, root / batch.source.root, pseudonym, shared)
        if place is None:
            continue
        _check(place, batch.source.root)
        places.append(place)
        if (root / SHARDS / name / INDEX).is_file():
            needles += pieces_of_samples(ShardIndex.open(root / SHARDS / name), pseudonym)
    outside = [item for item in manifests(root) if item[0] not in batches]
    found = [_place(name, manifest, images, pseudonym, shared) for name, manifest, images in outside]
    others = tuple(place for place in found if place is not None)
    for place in (*places, *others):
        needles += [key.encode() for key in place.keys]
        needles += [piece for file in place.files if file.is_file() and (piece := piece_of(file.read_bytes()))]
    commit = git(root, "rev-parse", "HEAD").strip()
    stores = Stores.open(root)
    names = [place.name for place in (*places, *others)]
    holding = read_recorded(root, commit, names).holding
    gate = read_operations(root / PARAMS).gate
    is_frozen = gate is not None and gate.frozen.batch in {place.name for place in places}
    return Plan(
        number=number,
        mark=mark,
        pseudonym=pseudonym,
        commit=commit,
        places=tuple(places),
        others=others,
        copies=tuple(_copies(root, (*places, *others))),
        objects=tuple(sorted(stores.expand(holding))),
        cached=tuple(sorted(_cached(stores, holding))),
        frozen=gate.frozen.fingerprint if gate is not None and is_frozen else None,
        needles=tuple(dict.fromkeys(needle.hex() for needle in needles)),
    )


def service_folders(root: Path) -> list[Path]:
    """Return the folders with images that the service owns: of deliveries that were taken, and of refused ones."""
    settings = read_operations(root / PARAMS).deliveries
    folder = None if settings is None else root / settings.folder
    return [] if folder is None else [folder / name for name in (DELIVERIES, QUARANTINE) if (folder / name).is_dir()]


def _files_of_others(root: Path, pseudonym: str) -> set[Path]:
    """Return the files of all other patients."""
    return {
        images / file.path
        for _, manifest, images in manifests(root)
        for _, entry in iterate_manifest(manifest)[1]
        if entry.record.patient != pseudonym
        for file in files_of(entry.record)
    }


def _place(name: str, manifest: Path, images: Path, pseudonym: str, shared: Collection[Path]) -> Place | None:
    """Return what a manifest has of a patient, without files that are shared; None if that is nothing."""
    header, entries = iterate_manifest(manifest)
    records = [entry.record for _, entry in entries if entry.record.patient == pseudonym]
    if not records:
        return None
    paths = dict.fromkeys(file.path for record in records for file in files_of(record))
    return Place(
        name=name,
        manifest=manifest,
        images=images,
        paths=tuple(path for path in paths if images / path not in shared),
        keys=tuple(key_of(record, header) for record in records),
        contents=tuple((record.image.num_bytes or 0, record.image.sha256 or "") for record in records),
    )


def _check(place: Place, root: str) -> None:
    """Refuse a batch that cannot be built anew without the patient."""
    if iterate_manifest(place.manifest)[0].num_images == len(place.keys):
        raise OperationsError(
            f"{place.name} has images of this patient alone, so nothing would be left; first take it out: python -m "
            f"ace deliveries refuse {place.name}, or python -m shards remove {place.name}"
        )
    if not root or not place.images.is_dir():
        raise OperationsError(
            f"{place.name}: its images are not in {root or 'a folder that is known here'}, and its shards cannot be "
            "built without the patient; mount their disk, or say where they are: python -m shards relocate"
        )


def manifests(root: Path) -> Iterator[tuple[str, Path, Path]]:
    """Yield name, manifest and folder of images of all that was ever registered here and has not been removed."""
    for manifest in sorted((root / MANIFESTS).glob("*.jsonl")):
        file = root_path(manifest.stem, root)
        images = root / file.read_text(encoding="utf-8").removesuffix("\n") if file.is_file() else root
        yield manifest.stem, manifest, images
    for folder in (path for owned in service_folders(root) for path in sorted(owned.glob("[!.]*/"))):
        manifest = folder / f"{folder.name}.jsonl"
        if manifest.is_file():
            yield folder.name, manifest, folder / IMAGES


def _copies(root: Path, places: Sequence[Place]) -> list[Path]:
    """List the files in folders of the service that have the bytes of the patient's images and are nobody's image.

    They were left out of a batch because another one has them. An image that is registered for somebody else too, as a
    blank page may be, is none.
    """
    contents = {content for place in places for content in place.contents}
    sizes = {size for size, _ in contents}
    files = (path for folder in service_folders(root) for path in folder.rglob("*") if not path.is_symlink())
    alike = [path for path in files if path.is_file() and path.stat().st_size in sizes]
    found = {path for path in alike if (path.stat().st_size, sha256_of(path)) in contents}
    if found:
        for _, manifest, images in manifests(root):
            found -= {images / entry.record.image.path for _, entry in iterate_manifest(manifest)[1]}
    return sorted(found)


def _cached(stores: Stores, holding: Collection[str]) -> Iterator[str]:
    """Yield the names in a cache of shards of the tars and rows of the shard sets among some folders."""
    for md5 in holding:
        for entry in stores.listing(md5) if md5.endswith(".dir") else ():
            text = stores.read(entry["md5"]) if entry["relpath"] == INDEX else None
            if text is not None:
                index = json.loads(text)
                for file in (*index["shards"], index["samples"]):
                    yield f"{file['sha256']}{Path(file['name']).suffix}"
