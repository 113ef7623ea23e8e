"""The way of new images: incoming/X becomes deliveries/NAME, and that an accepted batch or quarantine/NAME.

A delivery has one folder with its images (`images`), the record of what was tried (`attempts.jsonl`) and the report of
its judge. Where that folder lies, what it holds, and what the last commit has say how far the delivery is; each step
leaves one of these states or, after a kill, the one before, and can be given again. There is at most one delivery that
has begun and is neither accepted nor refused: the next one waits for it.
"""

import fcntl
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from ruamel.yaml import YAML

from ace.operations.attempts import Attempts, Verdict, now
from ace.operations.clone import BRANCH, Clone
from ace.operations.events import Actor
from ace.operations.judge import Finding, format_findings, judge
from ace.operations.params import DeliveriesParams, OperationsParams
from shards.build.publishing import UNUSABLE
from shards.core.config import read_params
from shards.core.errors import ConfigError, SourceError, UserError
from shards.core.records import is_below
from shards.delivery.batches import batch_path, read_batches
from shards.delivery.mixing import Texts, mix_item, with_training, without_batch
from shards.delivery.project import Project
from shards.delivery.register import check_paths_fit, register_batch
from shards.delivery.yaml_lines import SHARDS, add_item
from shards.format.layout import BATCHES, INDEX, MANIFESTS
from shards.runtime.atomic import atomic_directory, make_private_folder, write_private_text, write_text
from shards.sources.base import Source
from shards.sources.datasets.dicom_tree import DicomTreeSource
from shards.sources.datasets.folder import FolderSource
from shards.sources.patients import parse_patient_rule
from shards.sources.registry import open_source

MARKER = "_COMPLETE"
"""File that whoever sends images puts into their folder last: from then on the folder is complete."""
INCOMING, DELIVERIES, QUARANTINE = "incoming", "deliveries", "quarantine"
IMAGES, ATTEMPTS, REPORT, REPORT_TEXT, BUILD_LOG = "images", "attempts.jsonl", "report.json", "report.txt", "build.log"
PARAMS, DVC, LOCK = "params.yaml", "dvc.yaml", "dvc.lock"
CHECKS = Actor("the checks", automatic=True)
"""Whoever accepts and refuses deliveries that no person decides about."""
State = Literal["taken", "registered", "built", "judged", "accepted", "refused"]
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_LAST_LINES = 15


class BusyError(UserError):
    """Another call is at work on the deliveries."""


class HeldDeliveryError(UserError):
    """A step of a delivery failed for no fault of its images; the next call tries it again."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What became of a delivery, and why.

    Attributes:
        batch: Name of its batch.
        delivery: Name of the folder as it came.
        judged: Time.
        verdict: The judge's; a person may overrule it.
        cause: Why it is refused; None of one that is accepted.
        findings: What the checks found; none where it was refused before its shards were built.
    """

    batch: str
    delivery: str
    judged: str
    verdict: Verdict
    cause: str | None
    findings: list[Finding]

    def to_text(self) -> str:
        """Write the report for people."""
        head = f"{self.batch}, delivered as {self.delivery}: {self.verdict} by the checks at {self.judged}"
        parts = [head, self.cause, format_findings(self.findings) if self.findings else None]
        return "\n\n".join(filter(None, parts)) + "\n"


@dataclass(frozen=True)
class Delivery:
    """A delivery on the disk.

    Attributes:
        name: Name of its batch.
        folder: Its folder, in deliveries/ or quarantine/.
        state: How far it is.
    """

    name: str
    folder: Path
    state: State

    @property
    def attempts(self) -> Attempts:
        """The record of what was tried."""
        return Attempts(self.folder / ATTEMPTS)

    @property
    def sent_as(self) -> str:
        """Name of the folder as it came."""
        return next((line["delivery"] for line in self.attempts.read() if "delivery" in line), "")

    @property
    def report(self) -> dict[str, Any] | None:
        """The report; None before it is judged."""
        path = self.folder / REPORT
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    @property
    def decision(self) -> Verdict | None:
        """What a person said last, else what the judge said; None before either."""
        if overruled := self.attempts.overruled():
            verdict: Verdict = overruled["overruled"]
            return verdict
        return self.report["verdict"] if self.report else None

    @property
    def last(self) -> str:
        """The last line of the record, for people."""
        line = (self.attempts.read() or [{}])[-1]
        if "overruled" in line:
            return f"{line['who']}: {line['overruled']}, {line['why']}"
        if "step" not in line:
            return f"taken at {line.get('at', '')}"
        if "started" in line:
            return f"{line['step']} begun at {line['started']}"
        return f"{line['step']} {line['error'] or 'done'} at {line['finished']}".replace("\n", " ")

    @property
    def is_open(self) -> bool:
        """There is something left to do."""
        return self.state not in ("accepted", "refused") or self.decision not in (None, self.state)


@dataclass(frozen=True)
class Arriving:
    """A folder in incoming/.

    Attributes:
        path: The folder.
        is_complete: It may be taken.
        text: How far it is, for people.
    """

    path: Path
    is_complete: bool
    text: str


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
        values = read_params(params).get("operations")
        settings = OperationsParams.from_params(values or {}, f"{params}: operations").deliveries
        if settings is None:
            raise ConfigError(
                f"{params}: has no section operations.deliveries; expected one with at least a name for the batches, "
                "as `operations: {deliveries: {name: clinic}}`"
            )
        return cls(params, settings, Clone(params.parent, branch))

    @property
    def project(self) -> Project:
        """The project's two files."""
        return Project(self.params, self.params.with_name(DVC))

    @property
    def folder(self) -> Path:
        """Folder of incoming/, deliveries/ and quarantine/."""
        return self.params.parent / self.settings.folder

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
        accepted = {Path(path).stem for path in self.clone.names_in(f"{BATCHES}/")}
        named = self._values()["batches"]
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
                elif (self.params.parent / SHARDS / name / INDEX).is_file():
                    state = "built"
                elif name in named:
                    state = "registered"
                found.append(Delivery(name, folder, state))
        return sorted(found, key=lambda delivery: delivery.name)

    def arriving(self, now_s: float) -> list[Arriving]:
        """List the folders in incoming/, by name.

        Args:
            now_s: The time, in seconds as files have it.
        """
        found: list[Arriving] = []
        for path in sorted((self.folder / INCOMING).glob("*")):
            if path.name.startswith("."):
                continue
            if path.is_symlink() or not path.is_dir():
                found.append(Arriving(path, False, "no folder: not taken"))
            elif (path / MARKER).is_file():
                found.append(Arriving(path, True, f"complete, it has {MARKER}"))
            else:
                found.append(self._settling(path, now_s))
        return found

    def _settling(self, path: Path, now_s: float) -> Arriving:
        try:
            num, changed_s = _last_change(path)
        except OSError as error:  # files come and go, or it is closed to the service
            return Arriving(path, False, f"cannot be looked through ({error.strerror})")
        quiet_s, needed_s = now_s - changed_s, self.settings.settle_s
        text = f"unchanged for {max(quiet_s, 0):.0f} of {needed_s:.0f} s, without {MARKER}"
        return Arriving(path, num > 0 and quiet_s >= needed_s, text if num else "empty")

    def run(self, now_s: float | None = None) -> Iterator[str]:
        """Do whatever is due once: finish what was begun, then take what is complete in incoming/.

        Args:
            now_s: The time, in seconds as files have it; None: now.

        Yields:
            A line for everything that was done.

        Raises:
            BusyError: another call is at work.
            OperationsError: this is not the service's clone, or a tracked file is modified.
            ConfigError: a file of the project is not as expected.
            HeldDeliveryError: a step failed for no fault of the images.
        """
        with self.locked():
            yield from self._finish()
            for item in self.arriving(time.time() if now_s is None else now_s):
                if item.is_complete:
                    yield f"{self._take(item.path)}: taken from {INCOMING}/{shown(item.path.name)}"
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
            found = [delivery for delivery in self.taken() if delivery.name == name]
            if not found:
                raise ConfigError(
                    f"found no delivery {name} in {self.folder / DELIVERIES} or {self.folder / QUARANTINE}; "
                    "`python -m ace deliveries list` names them"
                )
            self.clone.check()
            self._texts(name)  # an accepted one that is measured on cannot be taken out
            found[0].attempts.overrule(verdict, who, why)
            yield f"{name}: {who.name} says {verdict}: {why}"
            yield from self._finish()

    def _finish(self) -> Iterator[str]:
        """Bring every delivery that has begun to its end, first the one that the work tree has traces of."""
        self.clone.check()
        at_work = self._values()["batches"].keys() - {Path(path).stem for path in self.clone.names_in(f"{BATCHES}/")}
        due = sorted((d for d in self.taken() if d.is_open), key=lambda d: (d.name not in at_work, d.name))
        if not due:
            self._check_tree(None)
        for delivery in due:
            self._check_tree(delivery.name)
            yield f"{delivery.name}: {self._advance(delivery)}"

    def _take(self, path: Path) -> str:
        """Give a folder in incoming/ a name and a record, from which moving it goes on; returns the name."""
        numbered = re.compile(re.escape(self.settings.name) + r"-b(\d+)")
        files = {file.stem for file in (self.params.parent / BATCHES).glob("*.yaml")}
        names = {*(delivery.name for delivery in self.taken()), *self._values()["batches"], *files}
        numbers = [int(match[1]) for name in names if (match := numbered.fullmatch(name))]
        name = f"{self.settings.name}-b{max(numbers, default=-1) + 1:03}"
        with atomic_directory(self.folder / DELIVERIES / name) as folder:
            Attempts(folder / ATTEMPTS).append({"delivery": path.name, "at": now()})
        return name

    def _move(self, delivery: Delivery) -> None:
        """Move the images from incoming/, unless that is done.

        Raises:
            HeldDeliveryError: they are gone, or lie on another file system.
        """
        source, images = self.folder / INCOMING / delivery.sent_as, delivery.folder / IMAGES
        if os.path.lexists(images):
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

    def _advance(self, delivery: Delivery) -> str:
        """Bring one delivery to its end; returns what became of it."""
        name, decision = delivery.name, delivery.decision
        if decision == "accepted" and delivery.report and delivery.report["verdict"] == "refused":
            # A person accepts it all the same: what the refusal has taken away is made again.
            for file in (REPORT, REPORT_TEXT):
                (delivery.folder / file).unlink(missing_ok=True)
        if decision != "refused" and delivery.folder.parent.name == QUARANTINE:
            folder = self.folder / DELIVERIES / name
            delivery.folder.rename(folder)
            delivery = replace(delivery, folder=folder)
        if decision != "refused":
            self._move(delivery)
            if delivery.report is None:
                self._prepare(delivery)
        self._check_tree(name)  # again, for much time may have passed
        return self._refuse(delivery) if delivery.decision == "refused" else self._accept(delivery)

    def _prepare(self, delivery: Delivery) -> None:
        """Check, register, build and judge a delivery; the report of its judge is written last."""
        attempts, findings = delivery.attempts, []
        try:
            with attempts.step("check"):
                check_tree(delivery.folder / IMAGES)
            if delivery.name not in self._values()["batches"]:
                with attempts.step("register") as outputs:
                    self._register(delivery)
                    outputs["batch"] = f"{BATCHES}/{delivery.name}.yaml"
            with attempts.step("build") as outputs:
                self._build(delivery)
                outputs["shards"] = SHARDS + delivery.name
            with attempts.step("judge") as outputs:
                findings = judge(delivery.name, self.params, self.settings.judge)
                outputs["findings"] = {item.check: [item.measured, item.bound, item.passed] for item in findings}
            cause = "\n".join(f"{item.check}: {item.text}" for item in findings if not item.passed)
        except SourceError as error:  # the images are at fault, and nobody can overrule that
            cause = str(error)
            if delivery.decision == "accepted":
                attempts.overrule("refused", CHECKS, cause)
        self._write_report(delivery, cause or None, findings)

    def _register(self, delivery: Delivery) -> None:
        # Nothing depends on what a killed call left: params.yaml, which names the batch, is written last.
        batch_path(delivery.name, self.params.parent).unlink(missing_ok=True)
        for path in self._manifests(delivery.name):
            path.unlink()
        images, settings = delivery.folder / IMAGES, self.settings
        register_batch(
            delivery.name,
            images,
            self._source(images),
            weight=0,
            site=settings.site,
            modality=settings.modality,
            project=self.project,
        )

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
        said = repro(f"shard@{name}", self.params.parent, log)
        if said is None:
            return
        if UNUSABLE in said:
            raise SourceError(next(line for line in said.splitlines() if UNUSABLE in line).removeprefix("error: "))
        raise HeldDeliveryError(
            f"{name}: its shards could not be built, and the next call tries again; `python -m ace deliveries refuse "
            f"{name}` gives up. {log} has what dvc said, at its end:\n{said}"
        )

    def _write_report(self, delivery: Delivery, cause: str | None, findings: list[Finding]) -> None:
        report = Report(
            batch=delivery.name,
            delivery=shown(delivery.sent_as),
            judged=now(),
            verdict="refused" if cause else "accepted",
            cause=cause,
            findings=findings,
        )
        write_private_text(delivery.folder / REPORT_TEXT, report.to_text())
        # Last, for this one is the verdict.
        write_private_text(delivery.folder / REPORT, json.dumps(asdict(report), indent=1) + "\n")

    def _accept(self, delivery: Delivery) -> str:
        """Enter the batch in the mix, and commit it."""
        paths = [PARAMS, DVC, LOCK, f"{BATCHES}/{delivery.name}.yaml"]
        with delivery.attempts.step("accept") as outputs, self.project.editing():
            self._write(self._texts(delivery.name)["accepted"])
            self.clone.commit(paths, f"Batch {delivery.name} is accepted")
            outputs["committed"] = paths
        return "accepted"

    def _refuse(self, delivery: Delivery) -> str:
        """Take all traces of the batch out of the project, and move the delivery to quarantine."""
        name, root, target = delivery.name, self.params.parent, self.folder / QUARANTINE / delivery.name
        if delivery.report is None:
            self._write_report(delivery, "a person refuses it, as the record says", [])
        with delivery.attempts.step("refuse") as outputs, self.project.editing():
            file = f"{BATCHES}/{name}.yaml"
            was_accepted = self.clone.committed(file) is not None
            self._write(self._texts(name)["out"])
            (root / file).unlink(missing_ok=True)
            self._drop_from_lock(f"shard@{name}")
            if was_accepted:
                self.clone.commit([PARAMS, DVC, LOCK, file], f"Batch {name} is refused after all")
            else:
                self.clone.unstage(file)
            shutil.rmtree(root / SHARDS / name, ignore_errors=True)
            for manifest in self._manifests(name):
                shutil.move(manifest, delivery.folder / manifest.name)
            outputs["folder"] = str(target)
        cause = (delivery.report or {}).get("cause")
        delivery.folder.rename(target)
        return f"refused: {cause.splitlines()[0] if cause else 'a person overruled the checks'}"

    def _values(self) -> Mapping[str, Any]:
        """Read params.yaml as it is now."""
        values: Mapping[str, Any] = _parsed(self.params.read_text(encoding="utf-8"))
        return values

    def _manifests(self, name: str) -> list[Path]:
        """List the private files that `register` wrote beside the manifest."""
        return sorted((self.params.parent / MANIFESTS).glob(f"{name}.*"))

    def _write(self, texts: Texts) -> None:
        """Write the two files in an order in which a kill between them leaves a graph that runs."""
        for path, text in ((self.project.dvc, texts.dvc), (self.params, texts.params)):
            if path.read_text(encoding="utf-8") != text:
                write_text(path, text)

    def _texts(self, name: str) -> dict[str, Texts]:
        """Make the project's two files as they are without a batch, with it registered, and with it accepted.

        They follow from the last commit alone, so that a killed call is finished by doing the same again.
        """
        committed = Texts(*(self.clone.committed(path) or "" for path in (PARAMS, DVC)))
        values = _parsed(committed.params)
        if name in values["batches"]:
            return {"out": without_batch(committed, name, values), "accepted": committed}
        dep = (MANIFESTS / f"{name}.jsonl").as_posix()
        registered = committed._replace(params=add_item(committed.params, "batches", name, dep))
        texts = {"out": committed, "registered": registered}
        if batch_path(name, self.params.parent).is_file() and name in self._values()["batches"]:
            batches = read_batches(self.params, self._values())
            item, _ = mix_item(name, batches[name], self.settings.weight, values, batches)
            texts["accepted"] = with_training(registered, name, item)
        return texts

    def _check_tree(self, name: str | None) -> None:
        """Refuse to work where tracked files are modified, but for what the delivery under way has changed.

        Raises:
            OperationsError: naming the files.
        """
        own = set()
        if name is not None:
            known = self._texts(name).values()
            if self.params.read_text(encoding="utf-8") in {texts.params for texts in known}:
                own.add(PARAMS)
            if self.project.dvc.read_text(encoding="utf-8") in {texts.dvc for texts in known}:
                own.add(DVC)
            if self.params.with_name(LOCK).is_file() and self._lock_differs_by(f"shard@{name}"):
                own.add(LOCK)
            own.add(f"{BATCHES}/{name}.yaml")
        self.clone.check_unmodified(own)

    def _lock_differs_by(self, stage: str) -> bool:
        """Tell whether dvc.lock has nothing but this stage that the last commit has not.

        One that dvc was killed in the moment of writing is taken from the last commit, which loses nothing: dvc has
        the results of what was done since.
        """
        path, committed = self.params.with_name(LOCK), self.clone.committed(LOCK) or ""
        text = path.read_text(encoding="utf-8")
        if text == committed:
            return False
        if committed.startswith(text) or not text.endswith("\n"):
            write_text(path, committed)
            return True
        stages = [_stages(committed), _stages(text)]
        for entries in stages:
            entries.pop(stage, None)
        return stages[0] == stages[1]

    def _drop_from_lock(self, stage: str) -> None:
        """Remove a stage's lines from dvc.lock."""
        path = self.params.with_name(LOCK)
        if path.is_file():
            text = path.read_text(encoding="utf-8")
            without = re.sub(rf"^  {re.escape(stage)}:\n(?:   .*\n)*", "", text, flags=re.MULTILINE)
            if without != text:
                write_text(path, without)


def check_tree(images: Path) -> None:
    """Refuse a delivered folder with anything but files and folders that lie in it.

    Raises:
        SourceError: there is a link that leads out, a device, a pipe, another file system, or a name with control
            characters; says how many, and no name.
    """
    if images.is_symlink() or not images.is_dir():
        raise SourceError("the delivery is a link or no folder; expected a folder of images")
    root, device = images.resolve(), images.stat().st_dev
    faults: dict[str, int] = {}
    for entry in _entries(images):
        status = entry.stat(follow_symlinks=False)
        fault = None
        if _CONTROL.search(entry.name):
            fault = "names with control characters"
        elif stat.S_ISLNK(status.st_mode):
            leads_in = is_below(root, Path(entry.path)) and not Path(entry.path).readlink().is_absolute()
            fault = None if leads_in else "symbolic links that lead out of it"
        elif not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
            fault = "devices, pipes or sockets"
        elif status.st_dev != device:
            fault = "mounts of another file system"
        if fault:
            faults[fault] = faults.get(fault, 0) + 1
    if faults:
        found = ", ".join(f"{number} {fault}" for fault, number in faults.items())
        raise SourceError(f"the delivery has {found}; expected files and folders alone")


def repro(stage: str, project: Path, log: Path) -> str | None:
    """Run one stage with dvc, which waits for other ones and passes over what has not changed.

    Args:
        stage: Name of the stage.
        project: Folder of the project.
        log: File that gets all that dvc says.

    Returns:
        The last lines of what dvc said, if it failed.
    """
    command = [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "-s", stage]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    with log.open("wb") as file:
        # dvc runs commands with $SHELL, which for a service's account may run none.
        environment = {**os.environ, "PATH": path, "SHELL": "/bin/sh"}
        done = subprocess.run(
            command,
            cwd=project,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            check=False,
            close_fds=False,  # it holds the lock on the deliveries as long as it lives
        )
    if not done.returncode:
        return None
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LAST_LINES:])


def shown(name: str) -> str:
    """Write the name of a file so that it can stand in a line of text."""
    return name if name.isprintable() else ascii(name)


def _stages(text: str) -> dict[str, Any]:
    """Read the stages of a dvc.lock; an empty one has none."""
    return dict((_parsed(text) or {}).get("stages") or {})


@lru_cache(maxsize=8)
def _parsed(text: str) -> Any:
    """Parse a file of the project, which is asked for again and again, and which nobody changes."""
    return YAML(typ="safe", pure=True).load(text)


def _entries(folder: Path) -> Iterator["os.DirEntry[str]"]:
    """Yield everything in a folder at any depth; links are yielded and not followed."""
    with os.scandir(folder) as found:
        entries = list(found)
    for entry in entries:
        yield entry
        if entry.is_dir(follow_symlinks=False):
            yield from _entries(Path(entry.path))


def _last_change(folder: Path) -> tuple[int, float]:
    """Count the files below a folder, and tell when anything in it last changed, in seconds as files have it.

    By the time that a system keeps itself: a copy that keeps the times of its files does not look old.
    """
    statuses = [(entry.is_file(follow_symlinks=False), entry.stat(follow_symlinks=False)) for entry in _entries(folder)]
    changed_s = max([folder.stat().st_ctime, *(status.st_ctime for _, status in statuses)])
    return sum(is_file for is_file, _ in statuses), changed_s
