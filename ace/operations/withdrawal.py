"""Withdraw a patient: exclude the images from all that reads them, and keep what became of the models.

A withdrawal is an event (what came, when, and what it affects), then the exclusion of the patient in each batch and one
commit, then an event that says so, then a decision about each model that was trained with the patient, then its
completion. Each step finds what an earlier call did, so a kill anywhere is finished by the same command.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from ace.operations.alone import alone
from ace.operations.clone import git
from ace.operations.errors import OperationsError
from ace.operations.events import Actor, Event
from ace.operations.patient_lineage import PatientTrace, trace_patient
from ace.operations.patients import batches_of, identity_key, mark_of, pseudonym_of
from ace.operations.registry import LOCK, Registry
from ace.operations.retraining_state import open_retraining
from ace.operations.withdrawal_state import (
    EXCLUDED,
    RECEIVED,
    SETTLED,
    Action,
    Withdrawal,
    complete_withdrawals,
    withdrawals,
)
from ace.operations.work_tree import DVC, PARAMS
from shards.checking.exclude import set_excluded
from shards.delivery.project import Project
from shards.delivery.yaml_lines import set_dep
from shards.format.exclusion import exclusion_dep, list_path, parse_list


@dataclass(frozen=True)
class Patient:
    """A patient, as the command line names one.

    Attributes:
        identifier: The id as the site has it; None where the pseudonym is given.
        pseudonym: The keyed hash in manifests and shards; None where the id is given.
        site: Site that gave the id; None if all batches are of one.
    """

    identifier: str | None = None
    pseudonym: str | None = None
    site: str | None = None


@dataclass(frozen=True)
class Decision:
    """A decision says what becomes of models that were trained with a patient who has withdrawn.

    Attributes:
        action: `retire`: it may not be accepted any more. `retrain`: it serves until a model without the patient is
            accepted. `keep`: it serves on.
        why: The reason.
        versions: Numbers of the models; empty for all that nobody has decided about.
    """

    action: Action
    why: str
    versions: Sequence[int] = ()


@dataclass(frozen=True)
class Withdrawals:
    """The withdrawals of one service.

    Attributes:
        registry: The accepted models.
    """

    registry: Registry

    @property
    def root(self) -> Path:
        """Top folder of the service's clone."""
        return self.registry.root

    def known(self) -> dict[int, Withdrawal]:
        """Return the withdrawals by number, the oldest first."""
        return withdrawals(self.registry.events())

    def pseudonym(self, patient: Patient) -> str:
        """Return a patient's pseudonym.

        Raises:
            OperationsError: the site is missing or not one of the batches'.
            IdKeyError: there is no identity key, or another one than the project's.
        """
        if patient.identifier is None:
            return patient.pseudonym or ""
        return pseudonym_of(patient.identifier, patient.site, batches_of(self.root))

    def mark(self, pseudonym: str) -> str:
        """Return what stands for a patient in the log."""
        return mark_of(pseudonym, identity_key(batches_of(self.root)))

    def of(self, mark: str) -> list[Withdrawal]:
        """Return the withdrawals of one patient, the oldest first: several, where batches came in between."""
        return [found for found in self.known().values() if found.mark == mark]

    def trace(self, patient: Patient) -> PatientTrace:
        """Find a patient's images and what was made from them; nothing is changed.

        Raises:
            OperationsError: nothing has images of the patient, or as `pseudonym`.
            SourceError: a manifest is missing or damaged.
        """
        pseudonym = self.pseudonym(patient)
        found = trace_patient(self.registry, pseudonym)
        if not found and not self.of(self.mark(pseudonym)):
            raise OperationsError(
                "no batch has images of this patient, and no version was trained with any; compare the id with the "
                "site's own list, letter by letter and with leading zeros"
            )
        return found

    def withdraw(
        self, patient: Patient, received: datetime, actor: Actor, decision: Decision | None = None
    ) -> Iterator[str]:
        """Exclude a patient's images from all that reads them, unless that is done, and decide about models.

        Args:
            patient: The patient.
            received: When the patient's wish came.
            actor: Whoever carries it out.
            decision: What becomes of models that were trained with the patient; None: that is decided later.

        Yields:
            A line for everything that was done.

        Raises:
            BusyError: a retraining or a call about deliveries is at work.
            OperationsError: as `trace`, a retraining has begun and not ended, or this is not the service's clone as the
                last commit has it.
            SourceError: a manifest or a list of excluded images is not as it must be.
        """
        with self.deciding():
            pseudonym, trace = self.pseudonym(patient), self.trace(patient)
            mark = self.mark(pseudonym)
            if received > self.registry.clock():
                raise OperationsError(f"--received {received.isoformat()} is in the future")
            found = self._new(trace, mark)
            if found is not None:
                self.registry.clone.check_unmodified()
                facts = {"patient": mark, "received": received.isoformat(), **found}
                event = self.registry.log.append(RECEIVED, facts, actor=actor, now=self.registry.clock())
                yield f"withdrawal {event.sequence}: received {received:%Y-%m-%d %H:%M} UTC"
            for withdrawal in self.of(mark):
                if not self._is_excluded(withdrawal, pseudonym, trace):
                    yield self._exclude(withdrawal, pseudonym, actor)
            if decision is not None:
                yield from self._settle(self.of(mark), decision, actor)
            self._complete(actor)
            events = self.registry.events()
            for withdrawal in self.of(mark):
                yield from _left(withdrawal, events)

    def settle(self, number: int, decision: Decision, actor: Actor) -> Iterator[str]:
        """Say what becomes of models that were trained with a patient who has withdrawn.

        Args:
            number: Number of the withdrawal.
            decision: What becomes of which versions.
            actor: Whoever decides so.

        Yields:
            A line for everything that was done.

        Raises:
            OperationsError: there is no such withdrawal, or it does not affect a version.
        """
        with self.registry.clone.locked(LOCK):
            known = self.known()
            if number not in known:
                names = ", ".join(map(str, known)) or "none"
                raise OperationsError(f"there is no withdrawal {number}; expected one of {names} (withdraw --list)")
            withdrawal = known[number]
            if not (
                decision.versions
                or withdrawal.undecided
                or all(withdrawal.has(version, decision.action, decision.why) for version in withdrawal.versions)
            ):
                names = " ".join(f"--version v{version}" for version in withdrawal.versions)
                raise OperationsError(
                    f"withdrawal {number}: all its models are decided about; to decide otherwise, name them: {names}"
                )
            yield from self._settle([withdrawal], decision, actor)
            self._complete(actor)
            yield from _left(self.known()[number], self.registry.events())

    def _settle(self, found: Sequence[Withdrawal], decision: Decision, actor: Actor) -> Iterator[str]:
        """Write a decision into the log, unless it is there."""
        affected = {version for withdrawal in found for version in withdrawal.versions}
        others = [f"v{version}" for version in decision.versions if version not in affected]
        if others:
            names = ", ".join(f"v{version}" for version in sorted(affected)) or "no version"
            raise OperationsError(f"the withdrawal affects {names}, not {', '.join(others)}")
        for withdrawal in found:
            wanted = decision.versions or withdrawal.undecided
            versions = [version for version in withdrawal.versions if version in wanted]
            if all(withdrawal.has(version, decision.action, decision.why) for version in versions):
                continue
            facts = {"versions": versions, "action": decision.action, "why": decision.why}
            self.registry.log.append(
                SETTLED, {"withdrawal": withdrawal.number, **facts}, actor=actor, now=self.registry.clock()
            )
            names = ", ".join(f"v{version}" for version in versions)
            yield f"withdrawal {withdrawal.number}: {decision.action} {names}: {decision.why}"

    @contextmanager
    def deciding(self) -> Iterator[None]:
        """Let nothing train, take in deliveries or decide about models meanwhile."""
        with alone(self.registry.clone):
            began = open_retraining(self.registry.events())
            if began is not None:
                raise OperationsError(
                    f"a retraining that began {began.time:%Y-%m-%d %H:%M} UTC has not ended, and may train with the "
                    "patient; give it up first: python -m ace retrain abandon --why TEXT"
                )
            yield

    def _new(self, trace: PatientTrace, mark: str) -> dict[str, object] | None:
        """Return what the log does not name yet of what a withdrawal affects; None if there is nothing."""
        earlier = self.of(mark)
        named = {name for found in earlier if found.erased is None for name in found.batches}
        decided = {number for found in earlier for number in found.versions}
        # Without the numbers of images, by which whoever has the shards could find out who it is.
        batches = [name for name in trace.batches if name not in named]
        versions = [number for number in trace.versions if number not in decided]
        if not (batches or versions):
            return None
        return {"batches": batches, "versions": versions, "outs": list(trace.outs)}

    def _is_excluded(self, withdrawal: Withdrawal, pseudonym: str, trace: PatientTrace) -> bool:
        """Tell whether the images that there are are excluded and the log says so; somebody may have undone it."""
        lists = [list_path(name, self.root) for name in withdrawal.batches if name in trace.batches]
        return withdrawal.excluded is not None and all(
            path.is_file() and pseudonym in parse_list(path.read_text(encoding="utf-8")).patients for path in lists
        )

    def _batches(self, withdrawal: Withdrawal) -> list[str]:
        """Return the names of the batches of a withdrawal that the project still has."""
        return [name for name in withdrawal.batches if name in batches_of(self.root)]

    def _exclude(self, withdrawal: Withdrawal, pseudonym: str, actor: Actor) -> str:
        """Exclude the patient in the batches of a withdrawal, commit that, and say so in the log."""
        clone, project = self.registry.clone, Project(self.root / PARAMS, self.root / DVC)
        names = self._batches(withdrawal)
        clone.check_unmodified(self._own_changes(names))
        for name in names:
            set_excluded(name, [], [pseudonym], project)
        files = [exclusion_dep(name) for name in names]
        if files and git(self.root, "status", "--porcelain", "--", DVC, *files):
            clone.commit([DVC, *files], f"Withdrawal {withdrawal.number}")
        facts = {"withdrawal": withdrawal.number, "batches": names}
        if files:
            facts["commit"] = git(self.root, "log", "-1", "--format=%H", "--", *files).strip()
        self.registry.log.append(EXCLUDED, facts, actor=actor, now=self.registry.clock())
        return f"withdrawal {withdrawal.number}: excluded from {', '.join(names) or 'no batch that is there now'}"

    def _own_changes(self, names: Sequence[str]) -> set[str]:
        """Name the tracked files that an earlier call may have changed: dvc.yaml, if as it leaves it, and records."""
        text, found = self.registry.clone.committed(DVC) or "", {exclusion_dep(name) for name in names}
        texts = [text]
        for name in names:
            texts.append(set_dep(texts[-1], exclusion_dep(name), name, wanted=True))
        return found | ({DVC} if (self.root / DVC).read_text(encoding="utf-8") in texts else set())

    def _complete(self, actor: Actor) -> None:
        registry = self.registry
        complete_withdrawals(registry.log, registry.events(), actor, registry.clock)


def _left(withdrawal: Withdrawal, events: Sequence[Event]) -> Iterator[str]:
    """Say what is left to do, a line each."""
    for line in withdrawal.todo(events) or ["complete, nothing is left to do"]:
        yield f"withdrawal {withdrawal.number}: {line}"
