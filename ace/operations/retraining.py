"""Train again when there are enough new images, and let the gate decide about the new model.

Each step finds what an earlier call did, so a kill anywhere is finished by the same command. The event log says when a
retraining began and how it ended; there is at most one that has begun and not ended.
"""

import csv
import hashlib
import json
import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ace.engine.hardware import hardware
from ace.evaluation.params import EvaluateParams
from ace.gate.decide import check_frozen
from ace.gate.figures import check_figures
from ace.gate.params import MODEL, GateParams
from ace.gate.rules import hash_of_gate
from ace.operations import history
from ace.operations.clone import git
from ace.operations.deliveries import Deliveries
from ace.operations.errors import BusyError, OperationsError
from ace.operations.events import LOG, Actor, Event, EventLog
from ace.operations.history import Version
from ace.operations.incumbent import FOLDER, Incumbent, committed_texts, without_pin
from ace.operations.model_files import recorded_model
from ace.operations.params import OperationsParams, RetrainingParams
from ace.operations.patients import first_unexcluded
from ace.operations.registry import Registry
from ace.operations.repro import repro
from ace.operations.retraining_state import ABANDONED, ACCEPTED, BEGAN, ENDS, REJECTED, open_retraining, running
from ace.operations.service import refuse_when_stopped
from ace.operations.withdrawal_state import affected_versions, waiting_for_training, withdrawals
from ace.operations.work_tree import DVC, LOCK, PARAMS, mended_lock
from ace.pretrain.params import PretrainParams
from shards.core.config import parse_yaml, read_params
from shards.core.errors import ConfigError
from shards.core.params import MixParams
from shards.delivery.yaml_lines import SHARDS
from shards.format.exclusion import exclusion_path
from shards.format.layout import INDEX, sha256_of
from shards.reading.lineage import TRAINING_IMAGES
from shards.reading.reader import ShardIndex

GATE = Path("metrics/gate.json")
_ANY_SHA256 = "0" * 64
REPRO_LOG = Path(".dvc/tmp/retraining.log")
_TEMPLATE = re.compile(r"\$\{[^}]*\}")


@dataclass(frozen=True)
class Due:
    """Says whether a retraining is due.

    Attributes:
        due: Whether `run` has something to do.
        reason: One sentence for people.
        run_key: Hash of all that decides what a retraining comes to; empty where nothing is trained again.
    """

    due: bool
    reason: str
    run_key: str


@dataclass(frozen=True)
class Settings:
    """The project's params, as far as a retraining goes by them.

    Attributes:
        retraining: Section `operations.retraining`.
        gate: Section `operations.gate`.
        values: All of params.yaml.
    """

    retraining: RetrainingParams
    gate: GateParams
    values: Mapping[str, Any]

    @property
    def evaluate(self) -> EvaluateParams:
        """Section `evaluate`."""
        return EvaluateParams.from_params(self.values["evaluate"], f"{PARAMS}: evaluate")

    @property
    def gate_sha256(self) -> str:
        """Hash of the gate, as metrics/gate.json has it."""
        pretrain = PretrainParams.from_params(self.values["pretrain"], f"{PARAMS}: pretrain")
        return hash_of_gate(self.gate, self.evaluate, pretrain.collapse.model_dump(mode="json"))

    @property
    def trained_batches(self) -> list[str]:
        """Names of the batches that training uses."""
        return [name for name, item in self.values["mix"].items() if item["weight"] > 0]


@dataclass(frozen=True)
class Retraining:
    """The retraining of one service.

    Attributes:
        registry: The accepted models.
    """

    registry: Registry

    @property
    def root(self) -> Path:
        """Top folder of the service's clone."""
        return self.registry.root

    def settings(self) -> Settings | None:
        """Read the params; None where nothing is trained again.

        Raises:
            ConfigError: they are no valid ones.
        """
        values = read_params(self.root / PARAMS)
        params = OperationsParams.from_params(values.get("operations") or {}, f"{PARAMS}: operations")
        if params.retraining is None or params.gate is None:
            return None
        for section in ("encoders", "evaluate", "grid", "mix", "pretrain"):
            if not values.get(section):
                raise ConfigError(f"{PARAMS}: found no {section}; `python -m ace config check` says what is expected")
        for name, item in values["mix"].items():
            MixParams.from_params(item, f"{PARAMS}: mix.{name}")
        if not values.get("decide"):
            raise ConfigError(
                f"{PARAMS}: decide is empty, so nothing would decide about the new model; expected the first of "
                f"`encoders`: `decide: [{next(iter(values['encoders']))}]`"
            )
        settings = Settings(params.retraining, params.gate, values)
        check_figures(params.gate, settings.evaluate)
        return settings

    def due(self) -> Due:
        """Say whether a retraining is due.

        Raises:
            ConfigError: the params are no valid ones, or the frozen set is another one.
            OperationsError: the log or the accepted model is not as it must be.
        """
        try:
            with running(self.root):
                return self._due(self.registry.events())
        except BusyError as error:
            return Due(False, str(error), "")

    def run(self, actor: Actor) -> Iterator[str]:
        """Go the whole way once: pin the incumbent, train, compare, and accept the new model or not.

        Args:
            actor: Whoever asks for it.

        Yields:
            A line for everything that was done.

        Raises:
            BusyError: another call, or one about deliveries, is at work.
            StoppedError: the service is stopped.
            OperationsError: this is not the service's clone, a tracked file is modified, or a step failed.
            ConfigError: the params are no valid ones, or have changed since the retraining began.
        """
        with ExitStack() as stack:
            stack.enter_context(running(self.root))
            settings = self.settings()
            if settings is not None and settings.values["operations"].get("deliveries"):
                # A delivery changes params.yaml and dvc.lock, and so does a retraining.
                stack.enter_context(Deliveries.open(self.root / PARAMS, self.registry.clone.branch).locked())
            self.registry.clone.check()
            refuse_when_stopped(self.root)
            events = self.registry.events()
            due = self._due(events)
            if settings is None or not due.due:
                yield f"nothing is due: {due.reason}"
                return
            began = open_retraining(events)
            if began is None:
                began = self._begin(settings, due, events, actor)
                yield f"a retraining begins: {due.reason}"
            yield from self._finish(settings, began, actor)

    def abandon(self, actor: Actor, why: str) -> Event:
        """Give the retraining up that has begun and not ended; what it has made so far stays in dvc's cache.

        Args:
            actor: Whoever decides so.
            why: The reason.

        Raises:
            OperationsError: none has begun.
            BusyError: it is at work.
        """
        with running(self.root):
            self.registry.clone.check()
            began = open_retraining(self.registry.events())
            if began is None:
                raise OperationsError("no retraining has begun that has not ended, so there is nothing to abandon")
            self._undo(began)
            return self._end(ABANDONED, began, {"why": why}, actor)

    def _undo(self, began: Event) -> None:
        """Bring the tracked files that an unfinished retraining has changed back to the last commit.

        What it has made stays in dvc's cache.
        """
        known, number = set(self._modified()), began.facts["incumbent"]
        if number is not None:
            version = history.find_version(self.registry.events(), number)
            for is_start in (False, True):  # whichever it began with
                known |= Incumbent(version, is_start).written(self.registry.clone)
        for name in sorted(known):
            if self.registry.clone.names_in(name):
                git(self.root, "restore", "--source", "HEAD", "--staged", "--worktree", "--", name)
            else:
                (self.root / name).unlink(missing_ok=True)

    def _due(self, events: Sequence[Event]) -> Due:
        settings = self.settings()
        if settings is None:
            return Due(False, "operations.retraining in params.yaml is empty: nothing is trained again by itself", "")
        held = history.hold(events)
        began = open_retraining(events)
        key = self._run_key(settings, accepted_version(events)) if began is None else began.facts["run_key"]
        if held is not None:
            why = held.facts.get("why")
            return Due(False, f"held since {held.time:%Y-%m-%d %H:%M} UTC by {held.who}: {why}", key)
        if began is not None:
            return Due(True, f"the retraining that began {began.time:%Y-%m-%d %H:%M} UTC has not ended", key)
        check_frozen(settings.gate.frozen, settings.evaluate.batch, settings.values["mix"], self.root / SHARDS)
        version = accepted_version(events)
        new, least = self._count_new(settings, version), settings.retraining.min_new_images
        since = "and no version is accepted yet" if version is None else f"since {version.name}"
        counted = f"{new} of {least} new images {since}"
        waiting = waiting_for_training(events)
        if waiting is not None:
            counted = f"withdrawal {waiting.number} asks for a model without the patient, and there are {counted}"
        tried = next((event for event in events if event.kind in ENDS and event.facts["run_key"] == key), None)
        is_wanted = new >= least or waiting is not None
        if not is_wanted or tried is None:
            return Due(is_wanted, counted, key)
        how = f"{tried.kind.removeprefix('retraining_')} on {tried.time:%Y-%m-%d}"
        return Due(False, f"{counted}, and a model of the same images and params was {how}", key)

    def _run_key(self, settings: Settings, version: Version | None) -> str:
        """Hash the images, the incumbent and the params; a withdrawal changes the list of excluded images."""
        values = settings.values
        images = {
            name: [sha256_of(path) if path.is_file() else None for path in self._files_of(name)]
            for name in (*settings.trained_batches, values["evaluate"]["batch"])
        }
        content = {
            "images": images,
            "incumbent": None if version is None else version.model.md5,
            "mix": values["mix"],
            "grid": values["grid"],
            "pretrain": without_pin(values["pretrain"]),
            "start": settings.retraining.start,
            "gate": settings.gate_sha256,
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def _files_of(self, name: str) -> tuple[Path, Path]:
        return self.root / SHARDS / name / INDEX, exclusion_path(name, self.root)

    def _count_new(self, settings: Settings, version: Version | None) -> int:
        """Count the training images that the accepted model has not seen."""
        seen = set() if version is None else self._seen(version)
        number = 0
        for name in settings.trained_batches:
            index = ShardIndex.open(self.root / SHARDS / name, check_tars=False).without_excluded(self.root)
            number += sum((name, key) not in seen for key in index.keys(index.select("train")))
        return number

    def _seen(self, version: Version) -> set[tuple[str, str]]:
        """Return batch and key of the images that a version was trained on, by the list in its folder."""
        path = self.registry.file(version, TRAINING_IMAGES)
        if path is None:
            return set()
        with path.open(encoding="utf-8", newline="") as file:
            return {(row["batch"], row["key"]) for row in csv.DictReader(file)}

    def _begin(self, settings: Settings, due: Due, events: Sequence[Event], actor: Actor) -> Event:
        """Write down what the retraining is of, and the hash of the gate, before anything is trained."""
        clone, version = self.registry.clone, accepted_version(events)
        clone.check_unmodified()
        unexcluded = first_unexcluded({found.mark for found in withdrawals(events).values()}, self.root)
        if unexcluded is not None:
            raise OperationsError(
                f"{unexcluded} has images of a patient who has withdrawn, and they are not excluded; give `python -m "
                "ace withdraw` again for that patient"
            )
        if version is not None:  # what would stop the next steps is found before the log says that it began
            self.registry.files(version)
            incumbent = _incumbent(settings, version, events)
            incumbent.texts(committed_texts(clone), _ANY_SHA256 if incumbent.is_start else None)
        facts = {
            "run_key": due.run_key,
            "gate_sha256": settings.gate_sha256,
            "frozen": settings.gate.frozen.fingerprint,
            "incumbent": None if version is None else version.number,
            "batches": {name: sha256_of(self._files_of(name)[0]) for name in settings.trained_batches},
            "hardware": hardware().model_dump(mode="json"),
        }
        return self.registry.log.append(BEGAN, facts, actor=actor, now=self.registry.clock())

    def _finish(self, settings: Settings, began: Event, actor: Actor) -> Iterator[str]:
        """Bring a retraining that has begun to its end."""
        check_gate_is_that_of_the_log(settings.gate_sha256, self.root)
        clone, number = self.registry.clone, began.facts["incumbent"]
        incumbent = None
        if number is not None:
            events = self.registry.events()
            incumbent = _incumbent(settings, history.find_version(events, number), events)
        if self._run_key(settings, None if incumbent is None else incumbent.version) != began.facts["run_key"]:
            raise ConfigError(
                f"{PARAMS} or the images have changed since the retraining began; undo the change, or give the "
                "retraining up: python -m ace retrain abandon --why TEXT"
            )
        self._check_work_tree(incumbent)
        if incumbent is not None and not incumbent.is_pinned(clone):
            incumbent.pin(self.registry)
            yield f"{incumbent.version.name} is the incumbent"
        failure = repro(None, self.root, self.root / REPRO_LOG)
        if failure is not None:
            raise OperationsError(
                f"dvc repro failed, and the next call goes on; `python -m ace retrain abandon` gives up. "
                f"{self.root / REPRO_LOG} has what dvc said, at its end:\n{failure}"
            )
        self._check_work_tree(incumbent)
        if incumbent is not None and not incumbent.is_pinned(clone):
            raise OperationsError(
                f"{self.root / FOLDER}: was changed while the model was trained and measured, and what it was compared "
                "with is not known; give the command again, which brings the incumbent back"
            )
        if self._modified():
            clone.commit(self._modified(), f"Retraining {began.facts['run_key'][:8]}: model and figures")
            yield "trained, measured and committed"
        yield self._decide(began, actor)

    def _decide(self, began: Event, actor: Actor) -> str:
        """Accept the model or not, as metrics/gate.json says."""
        decision = json.loads((self.root / GATE).read_text(encoding="utf-8"))
        if decision["gate_sha256"] != began.facts["gate_sha256"]:
            raise OperationsError(f"{GATE}: was decided by another gate than the retraining began with")
        if not decision["accepted"]:
            facts = {"reason": decision["reason"], "sentence": decision["sentence"]}
            self._end(REJECTED, began, facts, actor)
            return f"rejected: {decision['sentence']}"
        version = self._rolled_back(began)
        if version is None:
            events = self.registry.events()
            held, now = history.hold(events), accepted_version(events)
            if held is not None:
                raise OperationsError(
                    f"the model is trained, measured and good enough, and since {held.time:%Y-%m-%d %H:%M} UTC "
                    f"{held.who} holds new models: {held.facts['why']}. Once the hold has ended (python -m ace models "
                    "release), the same command goes on"
                )
            model = recorded_model(self.root, "HEAD", MODEL)
            if now is not None and now.number != began.facts["incumbent"] and now.model != model:
                why = f"{now.name} was accepted meanwhile, and the model was compared with another one"
                self._end(ABANDONED, began, {"why": why}, actor)
                return f"abandoned: {why}"
            version = self.registry.promote(actor)
        self._end(ACCEPTED, began, {"version": version.number, "sentence": decision["sentence"]}, actor)
        return f"accepted: {version.name}, {decision['sentence']}"

    def _rolled_back(self, began: Event) -> Version | None:
        """Return the version that a killed call has promoted and that a person has rolled back since, if any."""
        events = self.registry.events()
        model, last = recorded_model(self.root, "HEAD", MODEL), accepted_version(events)
        for event in history.acceptances(events):
            version = history.find_version(events, int(event.facts["version"]))
            if event.sequence > began.sequence and version.model == model and version != last:
                return version
        return None

    def _end(self, kind: str, began: Event, facts: Mapping[str, Any], actor: Actor) -> Event:
        own = {key: began.facts[key] for key in ("run_key", "frozen")}
        files = {} if kind == ABANDONED else {GATE.as_posix(): sha256_of(self.root / GATE)}
        return self.registry.log.append(kind, {**own, **facts}, actor=actor, now=self.registry.clock(), files=files)

    def _check_work_tree(self, incumbent: Incumbent | None) -> None:
        """Refuse to go on where tracked files are modified, but for what a retraining itself changes.

        Raises:
            OperationsError: naming the files.
        """
        clone = self.registry.clone
        mended_lock(clone)
        known = set(self._modified())
        if incumbent is not None:
            known |= incumbent.written(clone)
        clone.check_unmodified(known)

    def _modified(self) -> list[str]:
        """List the tracked or new files that dvc itself has written since the last commit."""
        found = git(self.root, "status", "--porcelain", "-z", "--no-renames", "--untracked-files=all").split("\0")
        text = mended_lock(self.registry.clone)
        stages = (parse_yaml(text) or {}).get("stages") or {}
        outs = [Path(out["path"]) for stage in stages.values() for out in stage.get("outs", ())]
        ignored = {out.parent / ".gitignore" for out in outs}
        made = _made((self.root / DVC).read_text(encoding="utf-8"))
        names = [Path(entry[3:]) for entry in found if entry]
        return [
            name.as_posix()
            for name in names
            if name.as_posix() == LOCK
            or name in ignored
            or any(name.is_relative_to(out) for out in outs)
            or made.fullmatch(name.as_posix())
        ]


def _made(dvc_yaml: str) -> re.Pattern[str]:
    """Match the names of what the stages make; dvc removes it before a stage runs, also where dvc.lock has no line yet.

    Args:
        dvc_yaml: Text of dvc.yaml, in which `${...}` stands for a part of a name. A name that begins with it matches
            nothing, for it could be that of any file, and what somebody edits is no stage's.
    """
    bodies = [stage.get("do", stage) for stage in parse_yaml(dvc_yaml)["stages"].values()]
    entries = [
        (body.get("wdir", "."), entry if isinstance(entry, str) else next(iter(entry)))
        for body in bodies
        for kind in ("outs", "metrics", "plots")
        for entry in body.get(kind, ())
    ]
    paths = [posixpath.normpath(posixpath.join(*entry)) for entry in entries]
    names = ["[^/]+".join(map(re.escape, _TEMPLATE.split(path))) for path in paths if not _TEMPLATE.match(path)]
    return re.compile(f"({'|'.join(names)})(/.*)?")


def _incumbent(settings: Settings, version: Version, events: Sequence[Event]) -> Incumbent:
    """Say how the accepted version is compared with: no training starts with what a withdrawn patient has taught."""
    is_start = settings.retraining.start == "incumbent" and version.number not in affected_versions(events)
    return Incumbent(version, is_start)


def check_gate_is_that_of_the_log(gate_sha256: str, root: Path) -> None:
    """Refuse to decide by other bounds than those that were written down before the training.

    Args:
        gate_sha256: Hash of the bounds, as the event log has it.
        root: Folder of the project; one that is no service's clone has no log, and nothing is refused.

    Raises:
        ConfigError: a retraining has begun with other ones.
    """
    began = open_retraining(EventLog(root / LOG).events())
    if began is not None and began.facts["gate_sha256"] != gate_sha256:
        raise ConfigError(
            f"{PARAMS}: operations.gate, evaluate or pretrain.collapse has changed since the retraining began, and a "
            "model is not held to bounds that were chosen after its training; undo the change, or give the retraining "
            "up: python -m ace retrain abandon --why TEXT"
        )


def accepted_version(events: Sequence[Event]) -> Version | None:
    """Return the accepted version, if any."""
    last = history.accepted(events)
    return None if last is None else history.find_version(events, int(last.facts["version"]))


def num_uses(events: Sequence[Event], fingerprint: str) -> int:
    """Count the decisions for which a frozen set was used: each one makes it a little less of a test."""
    return sum(event.kind in (ACCEPTED, REJECTED) and event.facts["frozen"] == fingerprint for event in events)
