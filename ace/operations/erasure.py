"""Erase a patient who has withdrawn: build the affected batches anew without the images, and remove the old ones.

A plan, in a private file beside the manifests, has what the manifests say no more once they are rewritten. Each step
finds what an earlier call did; the plan goes last, so a kill anywhere is finished by the same command.
"""

import csv
import gzip
import io
import json
import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from unicodedata import normalize

from ace.operations.clone import git
from ace.operations.dagster_runs import HOME_VARIABLE, erase_runs
from ace.operations.dvc_objects import ERASED_OBJECTS, Stores, made_from, read_recorded, recorded_now
from ace.operations.erasure_plan import Plan, make_plan, manifests, service_folders
from ace.operations.errors import OperationsError
from ace.operations.events import Actor
from ace.operations.model_files import read_lock
from ace.operations.params import read_operations
from ace.operations.patients import batches_of
from ace.operations.registry import Registry
from ace.operations.repro import repro
from ace.operations.residue import is_in_git, search
from ace.operations.withdrawal import Patient, Withdrawals
from ace.operations.withdrawal_state import ERASED, ERASING, Withdrawal
from ace.operations.work_tree import DVC, LOCK, PARAMS, WorkTree, mended_lock
from shards.checking.exclude import set_excluded
from shards.core.modality import OWN_KINDS
from shards.core.params import RegisteredSourceParams
from shards.delivery.batches import batch_path, format_batch
from shards.delivery.keep_list import path_of_list, sha256_of_list
from shards.delivery.project import Project
from shards.delivery.yaml_lines import SHARDS
from shards.format.exclusion import PATIENT, exclusion_dep, list_path
from shards.format.layout import BATCHES, INDEX, MANIFESTS, sha256_of
from shards.reading.lineage import COLUMNS
from shards.runtime.atomic import atomic_path, write_private_text, write_text
from shards.runtime.scratch import scratch_root
from shards.runtime.text import count_of
from shards.store.cache import ShardCache

_LOG = Path(".dvc/tmp/erasure.log")
_DEPTH_OF_WORK = 2
"""Unfinished work lies below scratch in STAGE/FINGERPRINT."""


@dataclass(frozen=True)
class Erasure:
    """The erasure of one patient.

    Attributes:
        withdrawals: The service's withdrawals.
        plan: What is to be erased.
    """

    withdrawals: Withdrawals
    plan: Plan

    @property
    def registry(self) -> Registry:
        """The accepted models."""
        return self.withdrawals.registry

    @property
    def root(self) -> Path:
        """Top folder of the service's clone."""
        return self.registry.root

    @property
    def project(self) -> Project:
        """The project's two files."""
        return Project(self.root / PARAMS, self.root / DVC)

    @property
    def withdrawal(self) -> Withdrawal:
        """The withdrawal that it belongs to, as far as it has come."""
        return self.withdrawals.known()[self.plan.number]

    @property
    def record(self) -> Path:
        """The list of erased objects."""
        return self.root / ERASED_OBJECTS / f"{self.plan.number}.txt"

    def run(self, actor: Actor) -> Iterator[str]:
        """Do all that is not done yet.

        Yields:
            A line for everything that was done.

        Raises:
            OperationsError: shards cannot be built, the remote cannot be reached, or objects cannot be removed.
        """
        plan = self.plan
        if self.withdrawal.erasing is None:
            self._check_work_tree()
            self._forget_rows()
            for name in plan.names:
                self._register(name)
                self._build(name)
                yield f"{name}: its shards are built without the patient"
            self._unexclude()
            self._pin_frozen()
            self._drop_derived()
            self._commit(actor)
        yield f"files of the patient removed from the service's own folders: {self._remove_files()}"
        objects, stores = self.record.read_text(encoding="utf-8").split(), Stores.open(self.root)
        stores.remove(objects)
        if stores.left(objects):
            raise OperationsError(f"{len(stores.left(objects))} objects of DVC could not be removed")
        yield f"objects removed from DVC's cache and its remote: {len(objects)}"
        self._clear_caches()
        yield from self._forget_runs()
        left = list(self._left(stores))
        if self.withdrawal.erased is None:
            facts = {"withdrawal": plan.number, "objects": len(objects), "left": left}
            self.registry.log.append(ERASED, facts, actor=actor, now=self.registry.clock())
        Plan.path(self.root).unlink()
        yield from (f"left: {text}" for text in left or ["nothing was found"])

    def _check_work_tree(self) -> None:
        """Refuse to go on where tracked files are modified, but for what an erasure itself changes."""
        mended_lock(self.registry.clone)
        own = {f"{BATCHES}/{name}.yaml" for name in self.plan.names} | set(map(exclusion_dep, self.plan.names))
        self.registry.clone.check_unmodified({PARAMS, DVC, LOCK, *own})

    def _forget_rows(self) -> None:
        """Take the patient's rows out of manifests, the lists beside them, and the CSV of the deliveries' labels."""
        for place in (*self.plan.places, *self.plan.others):
            _forget_patient(place.manifest, self.plan.pseudonym)
        settings = read_operations(self.root / PARAMS).deliveries
        files = {path.resolve() for path in self.plan.files}
        for name, manifest, images in manifests(self.root):
            paths = {os.path.relpath(path, images.resolve()) for path in files if path.is_relative_to(images.resolve())}
            tables = [manifest.with_name(f"{name}.{word}.csv") for word in ("left_out", "quarantine")]
            if settings is not None and settings.labels and self._is_own(images):
                tables.append(images / settings.labels)
            for table in tables if paths else ():
                _forget_paths(table, paths)

    def _is_own(self, path: Path) -> bool:
        """Tell whether a file lies in a folder of the service, which takes in deliveries."""
        return any(path.resolve().is_relative_to(folder.resolve()) for folder in service_folders(self.root))

    def _register(self, name: str) -> None:
        """Write the file of a batch for its manifest and its keep list as they are now."""
        batch = batches_of(self.root)[name]
        assert isinstance(batch.source, RegisteredSourceParams)
        place = next(place for place in self.plan.places if place.name == name)
        changes = {"dep_sha256": sha256_of(place.manifest)}
        keep = self.root / path_of_list(name, batch.source)
        if batch.source.keep_sha256 is not None:
            text = _without_lines(keep.read_text(encoding="utf-8"), place.keys)
            write_private_text(keep, text)
            changes["keep_sha256"] = sha256_of_list(text)
        source = batch.source.model_copy(update=changes)
        write_text(batch_path(name, self.root), format_batch(name, batch.model_copy(update={"source": source})))

    def _build(self, name: str) -> None:
        failure = repro(f"shard@{name}", self.root, self.root / _LOG)
        if failure is not None:
            raise OperationsError(
                f"{name}: its shards could not be built without the patient, and the same command goes on; "
                f"{self.root / _LOG} has what dvc said, at its end:\n{failure}"
            )

    def _unexclude(self) -> None:
        """Take the patient off the lists of what is excluded: the batches have no such patient any more."""
        for place in self.plan.places:
            path = list_path(place.name, self.root)
            if path.is_file():
                text = path.read_text(encoding="utf-8")
                write_private_text(path, _without_lines(text, [*place.keys, f"{PATIENT} {self.plan.pseudonym}"]))
                set_excluded(place.name, [], [], self.project)

    def _pin_frozen(self) -> None:
        """Pin the frozen set as it is without the patient."""
        gate = read_operations(self.root / PARAMS).gate
        if gate is not None and gate.frozen.fingerprint == self.plan.frozen:
            text = self.project.params.read_text(encoding="utf-8")
            now = sha256_of(self.root / SHARDS / gate.frozen.batch / INDEX)
            write_text(self.project.params, text.replace(self.plan.frozen, now))

    def _drop_derived(self) -> None:
        """Remove what was made from the images, also from dvc.lock: the next `dvc repro` makes it again."""
        stages = read_lock(self.root, self.plan.commit)
        tree = WorkTree(self.project, self.registry.clone, weight=0)
        for path, stage in made_from(stages, self.plan.names, through_models=False).items():
            tree.drop_from_lock(stage)
            if not git(self.root, "ls-files", "--", path):
                _remove(self.root / path)
        for place in self.plan.others:
            _remove(self.root / SHARDS / place.name)

    def _commit(self, actor: Actor) -> None:
        """Commit the batches as they are now, with the list of the objects to erase, and say so in the log."""
        plan, stores = self.plan, Stores.open(self.root)
        others = read_recorded(self.root, plan.commit, [place.name for place in (*plan.places, *plan.others)]).others
        needed = stores.expand(others | recorded_now(self.root))
        write_text(self.record, "".join(f"{md5}\n" for md5 in plan.objects if md5 not in needed))
        files = [f"{BATCHES}/{name}.yaml" for name in plan.names]
        excluded = [exclusion_dep(name) for name in plan.names]
        files += [name for name in excluded if (self.root / name).exists() or self.registry.clone.committed(name)]
        files.append(self.record.relative_to(self.root).as_posix())
        if git(self.root, "status", "--porcelain", "--", PARAMS, DVC, LOCK, *files):
            self.registry.clone.commit([PARAMS, DVC, LOCK, *files], f"Erasure of withdrawal {plan.number}")
        commit = git(self.root, "log", "-1", "--format=%H", "--", files[-1]).strip()
        facts = {"withdrawal": plan.number, "batches": plan.names, "commit": commit}
        changed = [*(self.root / name for name in files), *(place.manifest for place in (*plan.places, *plan.others))]
        hashes = {os.path.relpath(path, self.root): sha256_of(path) for path in changed if path.is_file()}
        self.registry.log.append(ERASING, facts, actor=actor, now=self.registry.clock(), files=hashes)

    def _remove_files(self) -> int:
        """Remove the patient's files from folders of the service; others, which are the user's, are listed."""
        own = [path for path in self.plan.files if self._is_own(path)]
        for path in own:
            path.unlink(missing_ok=True)
        others = [path for path in self.plan.files if path not in own and path.is_file()]
        if others:
            write_private_text(self._listed("to-delete"), "".join(f"{path}\n" for path in others))
        return len(own)

    def _listed(self, word: str) -> Path:
        """Return the path of a private list of files, whose names may be of people."""
        return self.root / MANIFESTS / f"{word}-{self.plan.number}.txt"

    def _clear_caches(self) -> None:
        """Remove copies of the shards in this account's cache, and unfinished work with images of the patient."""
        for name in self.plan.cached:
            (ShardCache.from_environment().root / name).unlink(missing_ok=True)
        with chdir(self.root):
            scratch = scratch_root()
        for path in search([scratch], self._needles, Plan.path(self.root)):
            _remove(scratch.joinpath(*path.relative_to(scratch).parts[:_DEPTH_OF_WORK]))

    def _forget_runs(self) -> Iterator[str]:
        """Let Dagster remove what it keeps of the patient; a service may run meanwhile.

        Raises:
            OperationsError: a run that has not ended has something of the patient in its output or events.
        """
        if not os.environ.get(HOME_VARIABLE):
            return
        found = erase_runs(self.plan.needles)
        if found["output"] or found["removed"]:
            yield (
                f"removed from Dagster: {count_of(len(found['removed']), 'run')}, and the output of "
                f"{count_of(len(found['output']), 'other run')}"
            )
        if found["running"]:
            raise OperationsError(
                "Dagster keeps something of the patient in the output or events of runs that have not ended: "
                f"{', '.join(found['running'])}. Wait for their end, or end them in Dagster; then give the same "
                "command again"
            )

    @property
    def _needles(self) -> list[bytes]:
        return [bytes.fromhex(needle) for needle in self.plan.needles]

    def _left(self, stores: Stores) -> Iterator[str]:
        """Search for the pseudonym, keys and pieces of images, and say what is left."""
        home = os.environ.get(HOME_VARIABLE)
        folders = [self.root, *stores.local, self.registry.models, *service_folders(self.root)]
        folders += [ShardCache.from_environment().root, *([Path(home)] if home else [])]
        found = search(folders, self._needles, Plan.path(self.root))
        lists = [path for path in found if _is_training_list(path)]
        if lists:
            yield f"{count_of(len(lists), 'list')} of training images in folders of models, which name the pseudonym"
        others = [path for path in found if path not in lists]
        if others:
            write_private_text(self._listed("found"), "".join(f"{path}\n" for path in others))
            yield f"{count_of(len(others), 'other file')}, which {self._listed('found').relative_to(self.root)} lists"
        if not home:
            yield f"whatever Dagster has: ${HOME_VARIABLE} is not set, so nothing was looked for there"
        if is_in_git(self.root, self._needles):
            yield "an object in git's history"
        if len(stores.local) < len(stores.folders):
            yield "DVC's remote was not searched: its objects were removed by name"
        if self._listed("to-delete").is_file():
            listed = self._listed("to-delete").relative_to(self.root)
            yield f"files of the patient outside the service, which {listed} lists"
        settings = read_operations(self.root / PARAMS).deliveries
        if settings is not None and settings.source == "dicom" and settings.labels:
            yield f"rows of the patient in {settings.labels} of deliveries, which names images by their UID"
        kinds = {
            batches_of(self.root)[place.name].source.kind for place in self.plan.places if self._is_own(place.images)
        }
        for kind in sorted(kinds.difference(OWN_KINDS)):
            yield f"rows of the patient in the dataset's own tables, which came with deliveries of {kind}"
        for number in self.withdrawal.versions:
            yield f"the weights of v{number} ({self.withdrawal.action(number) or 'nobody has decided'})"


def erase(withdrawals: Withdrawals, patient: Patient, actor: Actor) -> Iterator[str]:
    """Erase a patient who has withdrawn, or finish that.

    Args:
        withdrawals: The service's withdrawals.
        patient: The patient.
        actor: Whoever carries it out.

    Yields:
        A line for everything that was done.

    Raises:
        BusyError: a retraining or a call about deliveries is at work.
        OperationsError: another patient's erasure is not finished, the patient has not withdrawn, or as `make_plan` and
            `Erasure.run`.
    """
    with withdrawals.deciding():
        root, pseudonym = withdrawals.root, withdrawals.pseudonym(patient)
        mark = withdrawals.mark(pseudonym)
        own, plan = withdrawals.of(mark), Plan.read(root)
        if plan is not None and plan.mark != mark:
            raise OperationsError(
                f"the erasure of withdrawal {plan.number} is not finished; first give that command again: it is of "
                "another patient"
            )
        if not own:
            raise OperationsError("this patient has not withdrawn; without an exclusion nothing is erased")
        if plan is None:
            last = own[-1]
            if last.erased is not None and not withdrawals.trace(patient).batches:
                yield f"withdrawal {last.number}: erased by event {last.erased.sequence}"
                return
            withdrawals.registry.clone.check_unmodified()
            plan = make_plan(root, last.number, mark, pseudonym)
            plan.write(root)
        yield from Erasure(withdrawals, plan).run(actor)


def _forget_patient(manifest: Path, pseudonym: str) -> None:
    """Take a patient out of a manifest; all other lines stay as they are."""
    first, *lines = manifest.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if json.loads(line)["record"]["patient"] != pseudonym]
    if len(kept) < len(lines):
        header = json.dumps({**json.loads(first), "num_images": len(kept)}, separators=(",", ":"))
        write_private_text(manifest, "".join([f"{header}\n", *kept]))


def _forget_paths(table: Path, paths: Collection[str]) -> None:
    """Take the rows of some files out of a CSV, gzipped if its name ends in .gz, if it has a column `path`."""
    if not table.is_file():
        return
    is_compressed = table.suffix == ".gz"
    content = gzip.decompress(table.read_bytes()) if is_compressed else table.read_bytes()
    header, *rows = csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""))
    header = [name.strip() for name in header]
    if "path" not in header:
        return
    column, gone = header.index("path"), set(map(_as_listed, paths))
    kept = [row for row in rows if len(row) <= column or _as_listed(row[column]) not in gone]
    if len(kept) < len(rows):
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([header, *kept])
        content = text.getvalue().encode()
        with atomic_path(table) as temporary:
            temporary.touch(mode=0o600)
            temporary.write_bytes(gzip.compress(content, mtime=0) if is_compressed else content)


def _as_listed(path: str) -> str:
    """Return a path as `register` reads it from a CSV, in whatever way it is written there."""
    return normalize("NFC", PurePosixPath(path.strip().replace("\\", "/")).as_posix())


def _without_lines(text: str, lines: Collection[str]) -> str:
    """Return a list without some lines, whatever notes stand behind them."""
    return "".join(
        line for line in text.splitlines(keepends=True) if " ".join(line.partition("#")[0].split()) not in lines
    )


def _is_training_list(path: Path) -> bool:
    with path.open("rb") as file:
        return file.readline().strip() == ",".join(COLUMNS).encode()


def _remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
