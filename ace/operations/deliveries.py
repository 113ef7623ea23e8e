"""The way of new images: incoming/X becomes deliveries/NAME, and that an accepted batch or quarantine/NAME.

A delivery has one folder with its images (`images`), the record of what was tried (`attempts.jsonl`) and the report of
its judge. Where that folder lies, what it holds, and what the last commit has say how far the delivery is; each step
leaves one of these states or, after a kill, the one before, and can be given again. There is at most one delivery that
has begun and is neither accepted nor refused: the next one waits for it.
"""

import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ace.operations import history
from ace.operations.attempts import CHECKS, Attempts, Verdict, now
from ace.operations.bucket import Bucket, Seen, Sent
from ace.operations.clone import BRANCH, Clone
from ace.operations.delivery import ATTEMPTS, BUILD_LOG, FETCHING, IMAGES, REPORT, REPORT_TEXT, Delivery, Report, State
from ace.operations.delivery_events import log_decision
from ace.operations.due import DELIVERIES, INCOMING, QUARANTINE
from ace.operations.errors import BusyError, HeldDeliveryError
from ace.operations.events import Actor
from ace.operations.incoming import Arriving, arriving, check_tree, shown
from ace.operations.judge import CheckResult, judge
from ace.operations.params import DeliveriesParams, read_operations
from ace.operations.patients import batches_of, find_marked, identity_key
from ace.operations.repro import repro
from ace.operations.service import refuse_when_stopped
from ace.operations.tags import read_events
from ace.operations.withdrawal_state import withdrawals
from ace.operations.work_tree import DVC, LOCK, PARAMS, WorkTree
from shards.build.publishing import UNUSABLE
from shards.checking.exclude import set_excluded
from shards.core.errors import ConfigError, SourceError, StoreError
from shards.delivery.batches import batch_path
from shards.delivery.project import Project
from shards.delivery.register import check_paths_fit, register_batch
from shards.delivery.yaml_lines import SHARDS
from shards.format.exclusion import exclusion_dep, exclusion_path, list_path
from shards.format.layout import BATCHES, INDEX, MANIFESTS
from shards.runtime.atomic import atomic_directory, make_private_folder, write_private_text
from shards.sources.base import Source
from shards.sources.datasets.dicom_tree import DicomTreeSource
from shards.sources.datasets.folder import FolderSource
from shards.sources.patients import parse_patient_rule
from shards.sources.registry import open_source

FETCHED = ".fetched.jsonl"
"""Record in deliveries/ of what was taken from S3, which stays when the folder of a delivery goes."""


@dataclass(frozen=True)
class Deliveries:
    """All deliveries of a project.

    Attributes:
        params: The project's params.yaml, at the top of the service's clone.
        settings: Section `operations.deliveries`.
        clone: The clone that the project is.
    """

    params: Path
    settings: DeliveriesParams
    clone: Clone

    @classmethod
    def open(cls, params: Path, branch: str = BRANCH) -> "Deliveries":
        """Read the section.

        Args:
            params: The project's params.yaml, at the top of the service's clone.
            branch: Branch that the service's clone is on.

        Raises:
            ConfigError: it is missing or wrong.
        """
        settings = read_operations(params).deliveries
        if settings is None:
            raise ConfigError(
                f"{params}: operations.deliveries is empty; expected at least a name for the batches: under "
                "`operations:`, write `deliveries: {name: clinic}`"
            )
        return cls(params, settings, Clone(params.parent.resolve(), branch))

    @property
    def project(self) -> Project:
        """The project's two files."""
        return Project(self.params, self.params.with_name(DVC))

    @property
    def tree(self) -> WorkTree:
        """The tracked files that a delivery changes."""
        return WorkTree(self.project, self.clone, self.settings.weight)

    @property
    def folder(self) -> Path:
        """Folder of incoming/, deliveries/ and quarantine/."""
        return self.clone.root / self.settings.folder

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Let one process at a time work on the deliveries.

        The lock ends with its process, but for a dvc that outlives it: that one holds it until it has finished.

        Raises:
            BusyError: another one is at work.
        """
        for name in (INCOMING, DELIVERIES, QUARANTINE):
            if not (self.folder / name).is_dir():
                make_private_folder(self.folder / name)
        with (self.folder / DELIVERIES / ".lock").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise BusyError(f"another call is at work on the deliveries and holds {lock.name}") from None
            os.set_inheritable(lock.fileno(), True)  # by `repro` alone: Python closes it in other processes
            yield

    def taken(self) -> list[Delivery]:
        """List all deliveries that were taken, by name."""
        accepted, named = self._accepted(), self.tree.values()["batches"]
        events = history.deliveries(read_events(self.clone.root))
        found = []
        for place in (DELIVERIES, QUARANTINE):
            for folder in (self.folder / place).glob("[!.]*/"):
                name = folder.name
                state: State = "taken"
                if place == QUARANTINE:
                    state = "refused"
                elif name in accepted:
                    state = "accepted"
                elif (folder / REPORT).is_file():
                    state = "judged"
                elif (self.clone.root / SHARDS / name / INDEX).is_file():
                    state = "built"
                elif name in named:
                    state = "registered"
                found.append(Delivery(name=name, folder=folder, state=state, event=events.get(name)))
        return sorted(found, key=lambda delivery: delivery.name)

    def arriving(self, now_s: float) -> list[Arriving]:
        """List what lies in incoming/, by name.

        Args:
            now_s: The time, in seconds as files have it.
        """
        return arriving(self.folder / INCOMING, self.settings.settle_s, now_s)

    def sent(self, now_s: float) -> list[Sent]:
        """List the deliveries on S3 that were not taken yet, by name; none without the setting `incoming`.

        Args:
            now_s: The time, in seconds.

        Raises:
            StoreError: the server does not answer, or refuses.
            ConfigError: s3fs is not installed.
        """
        if self.settings.incoming is None:
            return []
        known: dict[str, list[Seen]] = {}
        for line in (*Attempts(self.folder / DELIVERIES / FETCHED).read(), *self._fetched()):
            known.setdefault(line["url"], []).append(Seen(line["mark"], line["digest"], line["batch"]))
        return self._bucket(self.settings.incoming).sent(known, self.settings.settle_s, now_s)

    def run(self, now_s: float | None = None) -> Iterator[str]:
        """Do whatever is due once: finish what was begun, then take what is complete in incoming/ and on S3.

        Args:
            now_s: The time, in seconds as files have it; None: now.

        Yields:
            A line for everything that was done.

        Raises:
            BusyError: another call is at work.
            StoppedError: the service is stopped.
            OperationsError: this is not the service's clone, or a tracked file is modified.
            ConfigError: a file of the project is not as expected.
            HeldDeliveryError: a step failed for no fault of the images.
            StoreError: the deliveries on S3 cannot be listed.
        """
        with self.locked():
            refuse_when_stopped(self.clone.root)
            yield from self._finish()
            now_s = time.time() if now_s is None else now_s
            for item in self.arriving(now_s):
                if item.is_complete:
                    refuse_when_stopped(self.clone.root)  # much time may have passed
                    yield f"{self._take(item.path.name)}: taken from {INCOMING}/{shown(item.path.name)}"
                    yield from self._finish()
            self._remember()
            for sent in self.sent(now_s):
                if sent.is_complete:
                    refuse_when_stopped(self.clone.root)
                    name = self._take(sent.name, url=sent.url, mark=sent.mark, digest=sent.digest)
                    again = f", where {sent.earlier} came from with other contents" if sent.earlier else ""
                    yield f"{name}: taken from {shown(sent.url)}{again}"
                    self._remember()
                    yield from self._finish()

    def overrule(self, name: str, verdict: Verdict, who: Actor, why: str) -> Iterator[str]:
        """Accept or refuse a delivery, whatever the judge says, and keep who said so and why.

        Args:
            name: Name of its batch.
            verdict: What is to become of it.
            who: Who says so.
            why: The reason.

        Yields:
            A line for everything that was done.

        Raises:
            ConfigError: there is no such delivery, or as `run`.
            BusyError: as `run`.
            HeldDeliveryError: as `run`.
        """
        with self.locked():
            delivery = self._find(name)
            self.clone.check()
            self.tree.texts(name)  # an accepted one that is measured on cannot be taken out
            places = (delivery.folder / IMAGES, self.folder / INCOMING / delivery.sent_as)
            # What came from S3 is fetched again.
            if verdict == "accepted" and "url" not in delivery.origin and not any(map(os.path.lexists, places)):
                raise ConfigError(
                    f"{name}: its images are gone, by a clean-up (operations.retention.quarantine_days) or by hand; "
                    "have them sent again"
                )
            if delivery.state == delivery.verdict:
                self._conclude(name)  # a call that was killed may not have written that yet
            delivery.attempts.overrule(verdict, who, why)
            yield f"{name}: {who.name} says {verdict}: {why}"
            yield from self._finish()

    def _find(self, name: str) -> Delivery:
        found = next((delivery for delivery in self.taken() if delivery.name == name), None)
        if found is None:
            raise ConfigError(
                f"found no delivery {name} in {self.folder / DELIVERIES} or {self.folder / QUARANTINE}; "
                "`python -m ace deliveries list` names them"
            )
        return found

    def _finish(self) -> Iterator[str]:
        """Bring every delivery that has begun to its end, first the one that the work tree has traces of."""
        self.clone.check()
        at_work = self.tree.values()["batches"].keys() - self._accepted()
        due = sorted((d for d in self.taken() if d.is_open), key=lambda d: (d.name not in at_work, d.name))
        if not due:
            self.tree.check(None)
        for delivery in due:
            self.tree.check(delivery.name)
            if delivery.state != delivery.verdict:
                self._advance(delivery)
            yield f"{delivery.name}: {self._conclude(delivery.name)}"

    def _bucket(self, url: str) -> Bucket:
        return Bucket(url, self.settings.max_objects, self.settings.max_gb * 1e9)

    def _fetched(self) -> list[dict[str, str]]:
        """List what the records of deliveries say of those that were taken from S3."""
        return [
            {name: origin[name] for name in ("url", "mark", "digest")} | {"batch": delivery.name}
            for delivery in self.taken()
            if "url" in (origin := delivery.origin)
        ]

    def _remember(self) -> None:
        """Write what was taken from S3 into the record that stays, unless it is there."""
        if self.settings.incoming is None:
            return
        kept = Attempts(self.folder / DELIVERIES / FETCHED)
        there = kept.read()
        for line in self._fetched():
            if line not in there:
                kept.append(line)

    def _take(self, sent_as: str, **origin: str) -> str:
        """Give a delivery a name and a record, from which moving or fetching it goes on; returns the name.

        Args:
            sent_as: Name of the folder in incoming/, or of the last part of the prefix on S3.
            origin: Of a delivery on S3, `url`, `mark` and `digest` as `Sent` has them.
        """
        numbered = self.settings.numbered
        files = {file.stem for file in (self.clone.root / BATCHES).glob("*.yaml")}
        names = {*(delivery.name for delivery in self.taken()), *self.tree.values()["batches"], *files}
        numbers = [int(match[1]) for name in names if (match := numbered.fullmatch(name))]
        name = f"{self.settings.name}-b{max(numbers, default=-1) + 1:03}"
        with atomic_directory(self.folder / DELIVERIES / name) as folder:
            stated = self.settings.legal_basis
            Attempts(folder / ATTEMPTS).append({"delivery": sent_as, "at": now(), "legal_basis": stated, **origin})
        return name

    def _move(self, delivery: Delivery) -> None:
        """Move the images from incoming/, or fetch them from S3, unless that is done.

        Raises:
            HeldDeliveryError: they are gone, or lie on another file system; they cannot be fetched now.
            SourceError: what lies on S3 cannot become a folder.
        """
        source, images = self.folder / INCOMING / delivery.sent_as, delivery.folder / IMAGES
        if os.path.lexists(images):
            shutil.rmtree(delivery.folder / FETCHING, ignore_errors=True)
            return
        if url := delivery.origin.get("url"):
            with delivery.attempts.step("fetch") as outputs:
                try:
                    outputs |= self._bucket(url).fetch(url, images, delivery.folder / FETCHING)
                except StoreError as error:
                    raise HeldDeliveryError(
                        f"{delivery.name}: {error}; the next call goes on, and `python -m ace deliveries refuse "
                        f"{delivery.name}` gives up"
                    ) from None
            return
        with delivery.attempts.step("move") as outputs:
            try:
                source.rename(images)
            except OSError as error:
                raise HeldDeliveryError(
                    f"{delivery.name}: {source} cannot be moved to {images} ({error.strerror}); expected both on one "
                    f"file system and open to the service. `python -m ace deliveries refuse {delivery.name}` gives up"
                ) from None
            outputs["images"] = str(images)

    def _conclude(self, name: str) -> str:
        """Write what has become of a delivery, as the disk says, into the event log unless it is there; returns it."""
        delivery = self._find(name)
        decision = delivery.decision
        if decision is not None and not delivery.is_logged:
            log_decision(delivery, decision, self.clone.root)
        if decision is not None and "overruled" in delivery.attempts.last():
            # A person confirmed what it is already: nothing is left to do, and its record ends with its last step.
            with delivery.attempts.step("accept" if decision.verdict == "accepted" else "refuse"):
                pass
        return delivery.outcome

    def _advance(self, delivery: Delivery) -> None:
        """Bring one delivery to its end."""
        name, verdict = delivery.name, delivery.verdict
        is_gone = name not in self.tree.values()["batches"]  # a person refused what the judge had accepted
        if verdict == "accepted" and delivery.report and (is_gone or delivery.report["verdict"] == "refused"):
            # A person accepts it all the same: what the refusal has taken away is made again.
            for file in (REPORT, REPORT_TEXT):
                (delivery.folder / file).unlink(missing_ok=True)
        if verdict != "refused" and delivery.folder.parent.name == QUARANTINE:
            folder = self.folder / DELIVERIES / name
            delivery.folder.rename(folder)
            delivery = replace(delivery, folder=folder)
        if verdict != "refused" and delivery.report is None:
            self._prepare(delivery)
        self.tree.check(name)  # again, for much time may have passed
        if delivery.verdict == "refused":
            self._refuse(delivery)
        else:
            self._accept(delivery)

    def _prepare(self, delivery: Delivery) -> None:
        """Bring, check, register, build and judge a delivery; the report of its judge is written last."""
        attempts, results = delivery.attempts, []
        try:
            self._move(delivery)
            with attempts.step("check"):
                check_tree(delivery.folder / IMAGES)
            if delivery.name not in self.tree.values()["batches"]:
                with attempts.step("register") as outputs:
                    self._register(delivery)
                    outputs["batch"] = f"{BATCHES}/{delivery.name}.yaml"
            with attempts.step("build") as outputs:
                self._build(delivery)
                outputs["shards"] = SHARDS + delivery.name
            with attempts.step("judge") as outputs:
                results = judge(delivery.name, self.params, self.settings.judge)
                outputs["findings"] = {item.check: [item.measured, item.bound, item.passed] for item in results}
            cause = "\n".join(f"{item.check}: {item.text}" for item in results if not item.passed)
        except SourceError as error:  # the images are at fault, and nobody can overrule that
            cause = self._as_in_quarantine(str(error), delivery)
            if delivery.verdict == "accepted":
                attempts.overrule("refused", CHECKS, cause)
        self._write_report(delivery, cause or None, results)

    def _register(self, delivery: Delivery) -> None:
        # Nothing depends on what a killed call left: params.yaml, which names the batch, is written last.
        batch_path(delivery.name, self.clone.root).unlink(missing_ok=True)
        for path in self._manifests(delivery.name):
            path.unlink()
        self._bring_exclusion_back(delivery)
        images, settings = delivery.folder / IMAGES, self.settings
        register_batch(
            delivery.name,
            images,
            self._source(images),
            weight=0,
            site=settings.site,
            modality=settings.modality,
            unattended=True,
            project=self.project,
        )

    def _bring_exclusion_back(self, delivery: Delivery) -> None:
        """Exclude again what was excluded of a batch that was refused after it had been accepted."""
        root = self.clone.root
        for path in (list_path(delivery.name, root), exclusion_path(delivery.name, root)):
            kept = delivery.folder / path.name
            if kept.is_file():
                write_private_text(path, kept.read_text(encoding="utf-8"))

    def _source(self, images: Path) -> Source:
        """Open the source, with the CSV of the delivery.

        Raises:
            SourceError: the delivery has no such CSV.
        """
        source, settings = open_source(self.settings.source), self.settings
        if not isinstance(source, FolderSource | DicomTreeSource):
            return source
        labels = None if settings.labels is None else images / settings.labels
        if labels is not None and not labels.is_file():
            raise SourceError(
                f"found no {settings.labels}; expected it in every delivery (operations.deliveries.labels)"
            )
        rule = None if settings.patient_from is None else parse_patient_rule(settings.patient_from)
        if labels is not None and isinstance(source, FolderSource):
            check_paths_fit(labels, images)
        return replace(source, labels=labels, patient_from=rule)

    def _build(self, delivery: Delivery) -> None:
        """Build the shards.

        Raises:
            SourceError: so many images cannot be used that there are none.
            HeldDeliveryError: dvc failed, and the images are not at fault.
        """
        name, log = delivery.name, delivery.folder / BUILD_LOG
        said = repro(f"shard@{name}", self.clone.root, log)
        if said is None:
            return
        if UNUSABLE in said:
            raise SourceError(next(line for line in said.splitlines() if UNUSABLE in line).removeprefix("error: "))
        raise HeldDeliveryError(
            f"{name}: its shards could not be built, and the next call tries again; `python -m ace deliveries refuse "
            f"{name}` gives up. {log} has what dvc said, at its end:\n{said}"
        )

    def _as_in_quarantine(self, said: str, delivery: Delivery) -> str:
        """Name in a cause of refusal the places of the files as they will be once the delivery is refused."""
        target = self.folder / QUARANTINE / delivery.name
        said = said.replace(f"{delivery.folder}/", f"{target}/")
        for manifests in (self.clone.root / MANIFESTS, MANIFESTS):  # a stage names them relative to the project
            said = said.replace(f"{manifests / delivery.name}.", f"{target / delivery.name}.")
        return said

    def _write_report(self, delivery: Delivery, cause: str | None, results: list[CheckResult]) -> None:
        report = Report(
            batch=delivery.name,
            delivery=shown(delivery.sent_as),
            judged=now(),
            verdict="refused" if cause else "accepted",
            cause=cause,
            findings=results,
        )
        write_private_text(delivery.folder / REPORT_TEXT, report.to_text())
        # Last, for this one is the verdict.
        write_private_text(delivery.folder / REPORT, json.dumps(asdict(report), indent=1) + "\n")

    def _accept(self, delivery: Delivery) -> None:
        """Enter the batch in the mix, and commit it."""
        name = delivery.name
        with delivery.attempts.step("accept") as outputs:
            self._exclude_withdrawn(name)
            paths = [PARAMS, DVC, LOCK, f"{BATCHES}/{name}.yaml"]
            if exclusion_path(name, self.clone.root).is_file():
                paths.append(exclusion_dep(name))
            with self.project.editing():
                self.tree.write(self.tree.texts(name)["accepted"])
                self.clone.commit(paths, f"Batch {name} is accepted")
            outputs["committed"] = paths

    def _exclude_withdrawn(self, name: str) -> None:
        """Exclude the images of patients who have withdrawn before they came."""
        marks = {found.mark for found in withdrawals(read_events(self.clone.root)).values()}
        if marks:
            batches = batches_of(self.clone.root)
            patients = find_marked(marks, name, batches[name], self.clone.root, identity_key(batches))
            if patients:
                set_excluded(name, [], patients, self.project)

    def _refuse(self, delivery: Delivery) -> None:
        """Take all traces of the batch out of the project, and move the delivery to quarantine."""
        name, root, target = delivery.name, self.clone.root, self.folder / QUARANTINE / delivery.name
        if delivery.report is None:
            self._write_report(delivery, "a person refuses it, as the record says", [])
        with delivery.attempts.step("refuse") as outputs, self.project.editing():
            files = [f"{BATCHES}/{name}.yaml", exclusion_dep(name)]
            committed = [file for file in files if self.clone.committed(file) is not None]
            self.tree.write(self.tree.texts(name)["out"])
            for file in files:
                if (root / file).is_file():
                    shutil.move(root / file, delivery.folder / Path(file).name)
            self.tree.drop_from_lock(f"shard@{name}")
            if files[0] in committed:
                self.clone.commit([PARAMS, DVC, LOCK, *committed], f"Batch {name} is refused after all")
            else:
                for file in files:
                    self.clone.unstage(file)
            shutil.rmtree(root / SHARDS / name, ignore_errors=True)
            for manifest in self._manifests(name):
                shutil.move(manifest, delivery.folder / manifest.name)
            outputs["folder"] = str(target)
        delivery.folder.rename(target)

    def _accepted(self) -> set[str]:
        """Return the names of the batches that the last commit has."""
        return {Path(path).stem for path in self.clone.names_in(f"{BATCHES}/")}

    def _manifests(self, name: str) -> list[Path]:
        """List the private files that `register` wrote beside the manifest."""
        return sorted((self.clone.root / MANIFESTS).glob(f"{name}.*"))
