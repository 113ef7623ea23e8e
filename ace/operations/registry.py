"""Decide which model is the accepted one, and let it serve from a folder that no pipeline writes to.

Each decision is an event in the log, then a tag, then a folder `vN` below the models' root, then the symlink `accepted`
there. Each step finds what an earlier run of it did, so a kill anywhere is finished by the same command.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ace.gate.params import MODEL
from ace.operations import history
from ace.operations.clone import Clone, git
from ace.operations.durable import replace_symlink
from ace.operations.errors import OperationsError
from ace.operations.events import LOG, Actor, Event, EventLog
from ace.operations.history import PROMOTED, REGISTERED, ROLLED_BACK, Version
from ace.operations.model_files import (
    batches_of_model,
    close,
    export,
    find_files,
    first_difference,
    recorded_model,
)
from ace.operations.patients import batches_of, identity_key, mark_of, training_patients
from ace.operations.tags import read_events, write_missing_tags
from ace.operations.withdrawal_state import complete_withdrawals, retiring, withdrawals
from shards.format.layout import sha256_of
from shards.reading.lineage import TRAINING_IMAGES

ACCEPTED = "accepted"
"""The symlink to the accepted model."""
LOCK = "registry"
"""Name of the lock under which one process at a time decides about models (`Clone.locked`)."""


def utc_now() -> datetime:
    """Return what the clock shows."""
    return datetime.now(UTC)


@dataclass(frozen=True, kw_only=True)
class Registry:
    """The accepted models of one service.

    Attributes:
        clone: The service's clone.
        models: Folder that models serve from, absolute.
        clock: Returns what the clock shows; it may jump in either direction.
    """

    clone: Clone
    models: Path
    clock: Callable[[], datetime] = utc_now

    @property
    def root(self) -> Path:
        """Top folder of the clone."""
        return self.clone.root

    @property
    def log(self) -> EventLog:
        """The event log."""
        return EventLog(self.root / LOG)

    @property
    def served(self) -> str | None:
        """Name of the version that `accepted` points at; None if there is no such link."""
        link = self.models / ACCEPTED
        return link.readlink().name if link.is_symlink() else None

    def events(self) -> tuple[Event, ...]:
        """Return the events of the log, the oldest first.

        Raises:
            OperationsError: a line is not as it was written, or a line that a tag names is missing.
        """
        return read_events(self.root)

    def files(self, version: Version) -> dict[str, Path]:
        """Return where the bytes of a version are, after a look at each: its exported folder, or else DVC's cache.

        Raises:
            OperationsError: they are not as they were registered, or nowhere.
        """
        folder = self.models / version.name
        if not folder.exists():
            return find_files(self.root, version.model)
        difference = first_difference(folder, version.files)
        if difference is not None:
            raise OperationsError(
                f"{folder} is not as it was registered: {difference}. Nothing was decided. Move the folder away and "
                f"promote or roll back to {version.name} again, which exports it anew from DVC's cache"
            )
        return {name: folder / name for name in version.files}

    def file(self, version: Version, name: str) -> Path | None:
        """Return where one file of a version is, after a look at its bytes; None if the version has none of this name.

        Raises:
            OperationsError: as `files`.
        """
        if name not in version.files:
            return None
        path = self.models / version.name / name
        return path if path.is_file() and sha256_of(path) == version.files[name] else self.files(version)[name]

    def promote(self, actor: Actor, number: int | None = None) -> Version:
        """Make a version the accepted one, register it if it is new, and let it serve.

        Args:
            actor: Whoever decides so.
            number: The version; None for the model that dvc.lock of the last commit records.

        Raises:
            OperationsError: the clone, the log, the tags or the model's bytes are not as they must be; or nobody is at
                the keyboard and a hold is set.
        """
        with self._deciding():
            held = history.hold(self.events())
            if held is not None and actor.automatic:
                raise OperationsError(
                    f"{held.who} holds new models since {held.time:%Y-%m-%d %H:%M} UTC: {held.facts['why']}. A person "
                    "may promote one, or end the hold: python -m ace models release"
                )
            version = self._registered(actor) if number is None else self._find(number)
            self._check_not_retired(version)
            last = history.accepted(self.events())
            files = self.files(version)
            if last is None or last.facts["version"] != version.number:
                self._decide(PROMOTED, self._facts(version, last), actor)
            self._bring(version, files)
            self._serve(version)
            complete_withdrawals(self.log, self.events(), actor, self.clock)
            return version

    def rollback(self, number: int, actor: Actor, why: str) -> Version:
        """Return to an earlier version, whose bytes are checked first, and hold retraining.

        Args:
            number: The version.
            actor: Whoever decides so.
            why: The reason.

        Raises:
            OperationsError: as `promote`, or the version is the accepted one already.
        """
        with self._deciding():
            version, last = self._find(number), history.accepted(self.events())
            if last is None:
                raise OperationsError("no version is accepted yet, so there is nothing to go back from")
            is_accepted = last.facts["version"] == number
            if is_accepted and last.kind != ROLLED_BACK:
                raise OperationsError(
                    f"{version.name} is the accepted version; to stop retraining alone: python -m ace models hold"
                )
            self._check_not_retired(version)
            files = self.files(version)
            if not is_accepted:
                self._decide(ROLLED_BACK, {**self._facts(version, last), "why": why}, actor)
            self._bring(version, files)
            self._serve(version)
            complete_withdrawals(self.log, self.events(), actor, self.clock)
            return version

    def restore(self) -> list[Version]:
        """Bring back the folders of models that were accepted, where they are lost, and let the accepted one serve.

        Nothing is decided: the log says which versions these are, and their bytes come from DVC's cache.

        Returns:
            The versions whose folders were lost.

        Raises:
            OperationsError: the log or the bytes of a version are not as they must be.
        """
        with self.clone.locked(LOCK):
            events = self.events()
            self.models.mkdir(parents=True, exist_ok=True)
            numbers = [event.facts["version"] for event in history.acceptances(events)]
            versions = [history.find_version(events, number) for number in dict.fromkeys(numbers)]
            lost = [version for version in versions if not (self.models / version.name).exists()]
            for version in lost:
                self._bring(version, self.files(version))
            if numbers:
                self._serve(history.find_version(events, numbers[-1]))
            return lost

    def hold(self, actor: Actor, why: str) -> Event:
        """Hold retraining, and return the hold: the one that is set already, or else a new one."""
        with self.clone.locked(LOCK):
            held = history.hold(self.events())
            return held or self.log.append(history.HELD, {"why": why}, actor=actor, now=self.clock())

    def release(self, actor: Actor, why: str) -> Event:
        """End the hold on retraining.

        Raises:
            OperationsError: there is none.
        """
        with self.clone.locked(LOCK):
            if history.hold(self.events()) is None:
                raise OperationsError("retraining is not held, so there is nothing to release")
            return self.log.append(history.RELEASED, {"why": why}, actor=actor, now=self.clock())

    @contextmanager
    def _deciding(self) -> Iterator[None]:
        """Check that a version may be decided about, and write the tag that an earlier command was killed before."""
        with self.clone.locked(LOCK):
            self.clone.check_unmodified()
            write_missing_tags(self.root, self.events())
            self.models.mkdir(parents=True, exist_ok=True)
            yield

    def _find(self, number: int) -> Version:
        return history.find_version(self.events(), number)

    def _registered(self, actor: Actor) -> Version:
        """Return the version that has the bytes of the last commit's model, registered now if none has."""
        commit = git(self.root, "rev-parse", "HEAD").strip()
        model, known = recorded_model(self.root, commit, MODEL), history.versions(self.events())
        same = next((version for version in known.values() if version.model == model), None)
        if same is not None:
            return same
        number, found = 1 + max(known, default=0), find_files(self.root, model)
        self._check_without_withdrawn(found, commit)
        files = {name: sha256_of(path) for name, path in found.items()}
        facts = {"version": number, "commit": commit, "model": model.path, "md5": model.md5}
        self._decide(REGISTERED, facts, actor, files)
        return self._find(number)

    def _check_without_withdrawn(self, files: Mapping[str, Path], commit: str) -> None:
        """Refuse to register a model that was trained with patients who have withdrawn.

        Raises:
            OperationsError: it was, or its list of training images is missing and it was made from their batches.
            IdKeyError: there is no identity key, which alone tells.
        """
        withdrawn = withdrawals(self.events()).values()
        if not withdrawn:
            return
        if TRAINING_IMAGES in files:
            key = identity_key(batches_of(self.root))
            marks = {mark_of(patient, key) for patient in training_patients(files[TRAINING_IMAGES])}
            found = next((item for item in withdrawn if item.mark in marks), None)
        else:
            made_from = batches_of_model(self.root, commit, MODEL)
            found = next((item for item in withdrawn if not made_from.isdisjoint(item.batches)), None)
        if found is not None:
            raise OperationsError(
                f"{MODEL} of commit {commit[:12]} was trained with a patient who has withdrawn since (event "
                f"{found.number}), or has no {TRAINING_IMAGES} that says otherwise; train it again: dvc repro, from "
                "weights that were not either"
            )

    def _check_not_retired(self, version: Version) -> None:
        """Refuse a version that may not be accepted any more.

        Raises:
            OperationsError: a withdrawal has retired it.
        """
        event = retiring(self.events(), version.number)
        if event is not None:
            raise OperationsError(
                f"{version.name} was trained with a patient who has withdrawn, and event {event.sequence} retires it: "
                f"{event.facts['why']}. To decide otherwise: python -m ace withdraw --settle "
                f"{event.facts['withdrawal']} --action keep --version {version.name} --why TEXT"
            )

    def _facts(self, version: Version, last: Event | None) -> dict[str, Any]:
        return {"version": version.number, "before": None if last is None else last.facts["version"]}

    def _decide(
        self, kind: str, facts: Mapping[str, Any], actor: Actor, files: Mapping[str, str] | None = None
    ) -> None:
        """Write the event and its tag."""
        self.log.append(kind, facts, actor=actor, now=self.clock(), files=files)
        write_missing_tags(self.root, self.events())

    def _bring(self, version: Version, files: Mapping[str, Path]) -> None:
        """Make a version's folder, or finish it."""
        folder = self.models / version.name
        if not folder.exists():
            export(files, version.files, folder)
        close(folder)

    def _serve(self, version: Version) -> None:
        if self.served != version.name:
            replace_symlink(self.models / ACCEPTED, version.name)
