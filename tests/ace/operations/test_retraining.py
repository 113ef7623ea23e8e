"""Retraining in a service's clone with real shards, git and `dvc add`; the graph itself is stood in for."""

import csv
import io
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock, Timeout

import ace.operations.incumbent as incumbent_module
import ace.operations.retraining as module
from ace.engine.hardware import hardware
from ace.operations.audit import first_problem
from ace.operations.clone import SCHEDULE, Clone
from ace.operations.deliveries import Deliveries
from ace.operations.errors import BusyError, OperationsError, StoppedError
from ace.operations.events import EventLog
from ace.operations.registry import Registry
from ace.operations.retraining import Retraining, num_uses
from ace.operations.retraining_state import open_retraining
from ace.operations.service import start, stop
from ace.operations.withdrawal import Decision, Patient, Withdrawals
from ace.pretrain.start import FILES, start_sha256
from shards.build.stage import build_shards
from shards.checking.exclude import exclude_images
from shards.core.config import parse_yaml
from shards.core.errors import ConfigError
from shards.core.params import PhantomSourceParams
from shards.delivery.project import Project
from shards.delivery.yaml_lines import add_deps, add_item
from shards.format.exclusion import exclusion_path, list_path
from shards.format.layout import sha256_of
from shards.reading.reader import ShardIndex
from tests.ace.operations.service import ANNA, Service, make_service
from tests.support.checkout import ROOT, git
from tests.support.datasets import Here, grid_params, shard_params, write_batch, write_phantom

FROZEN, FIRST, SECOND = "frozen-b000", "clinic-b000", "clinic-b001"


@dataclass
class Trained(Service):
    """A service whose `dvc repro` is `repro`: it leaves what the stages leave, as `is_good` says."""

    is_good: bool = True
    num_trained: int = 0

    @property
    def retraining(self) -> Retraining:
        return Retraining(self.registry)

    @property
    def params(self) -> Path:
        return self.root / "params.yaml"

    @property
    def params_of(self) -> dict[str, Any]:
        """Content of params.yaml."""
        values: dict[str, Any] = parse_yaml(self.params.read_text())
        return values

    def run(self) -> list[str]:
        return list(self.retraining.run(SCHEDULE))

    def edit(self, old: str, new: str) -> None:
        text = self.params.read_text()
        assert old in text
        self.params.write_text(text.replace(old, new))
        self.commit("a person's change")

    def commit(self, text: str) -> None:
        git(self.root, "add", "--all")
        git(self.root, "commit", "--quiet", "-m", text)

    def mix(self, name: str) -> None:
        """As an accepted delivery does."""
        text = add_item(self.params.read_text(), "batches", name, f"data/manifests/{name}.jsonl")
        self.params.write_text(add_item(text, "mix", name, {"weight": 1.0, "mean": 0.5, "std": 0.2}))
        dvc = self.root / "dvc.yaml"
        dvc.write_text(add_deps(dvc.read_text(), name))
        self.commit(f"Batch {name} is accepted")

    def repro(self, stage: str | None, project: Path, log: Path) -> str | None:
        """Train if something has changed, and decide."""
        assert stage is None
        settings = self.retraining.settings()
        assert settings is not None
        content = io.StringIO()
        rows = csv.writer(content, lineterminator="\n")
        rows.writerow(("batch", "key", "patient"))
        for name in settings.trained_batches:
            index = ShardIndex.open(self.root / "data/shards" / name).without_excluded(self.root)
            chosen = index.rows[index.select("train")]
            rows.writerows((name, row["key"].decode(), row["patient"].decode()) for row in chosen)
        files = {"config.json": "{}", "README.md": f"# {self.is_good}\n", "training_images.csv": content.getvalue()}
        files |= dict.fromkeys(FILES, content.getvalue())
        entries = [{"md5": self.cache(text), "relpath": name} for name, text in sorted(files.items())]
        md5 = self.cache(json.dumps(entries), suffix=".dir")
        lock = {"schema": "2.0", "stages": {"pretrain": {"cmd": "train", "outs": [{"path": "models/ace", "md5": md5}]}}}
        lock["stages"]["decide@trained"] = {"cmd": "decide", "outs": [{"path": "metrics/gate.json"}]}
        path = self.root / "dvc.lock"
        text = json.dumps(lock) + "\n"
        self.num_trained += not path.is_file() or path.read_text() != text
        path.write_text(text)
        decision = {"accepted": self.is_good, "gate_sha256": settings.gate_sha256, "sentence": "as it was measured"}
        reason = {"rule": "all_kept"} if self.is_good else {"rule": "not_worse", "value": -0.3, "bound": -0.1}
        (self.root / "metrics").mkdir(exist_ok=True)
        (self.root / "metrics/gate.json").write_text(json.dumps({**decision, "reason": reason}))
        return None


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shard sets that the tests share."""
    folder = tmp_path_factory.mktemp("shards")
    for name, num_patients in ((FROZEN, 12), (FIRST, 20), (SECOND, 12)):
        write_phantom(folder / "raw" / name, num_patients)
        source = PhantomSourceParams(kind="phantom", dep=str(folder / "raw" / name))
        shard = shard_params(splits={"train": 0.6, "val": 0.1, "test": 0.3})
        build_shards(name, source, grid_params(), shard, folder / "sets" / name, execution=Here())
    return folder / "sets"


@pytest.fixture
def service(tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch) -> Trained:
    made = make_service(tmp_path)
    service = Trained(made.root, made.models)
    for name in ("params.yaml", "dvc.yaml"):
        text = (ROOT / name).read_text().replace("phantom-b000", FIRST)
        (service.root / name).write_text(text)
    (service.root / ".gitignore").write_text("/.dvc/cache\n/.dvc/tmp\n/models\n/data\n.*.lock\n.*.tmp\n")
    shutil.copytree(shards, service.root / "data/shards")
    (service.root / ".dvc/tmp").mkdir()
    fingerprint = sha256_of(shards / FROZEN / "index.json")
    text = service.params.read_text()
    text = text.replace(f"  batch: {FIRST}", f"  batch: {FROZEN}").replace("decide: []", "decide: [trained]")
    operations = {
        "gate": {
            "frozen": {"batch": FROZEN, "fingerprint": fingerprint},
            "figures": {"compositionality": {"margin": 0.05, "floor": 0.2}},
        },
        "retraining": {"min_new_images": 5},
    }
    text = text[: text.index("operations:")] + f"operations: {json.dumps(operations)}\n"
    service.params.write_text(add_item(text, "batches", FROZEN, "data/manifests/frozen.jsonl"))
    service.commit("the project")
    monkeypatch.setattr(module, "repro", service.repro)
    return service


def num_images(service: Trained, name: str) -> int:
    return len(ShardIndex.open(service.root / "data/shards" / name).select("train"))


def test_what_is_due_counts_the_images_that_the_accepted_version_has_not_seen(service: Trained) -> None:
    due = service.retraining.due()
    assert (due.due, due.reason) == (
        True,
        f"{num_images(service, FIRST)} of 5 new images and no version is accepted yet",
    )
    assert service.run()[-1] == "accepted: v1, as it was measured"
    due = service.retraining.due()
    assert (due.due, due.reason) == (False, "0 of 5 new images since v1")
    assert service.run() == ["nothing is due: 0 of 5 new images since v1"]
    service.mix(SECOND)
    due = service.retraining.due()
    assert (due.due, due.reason) == (True, f"{num_images(service, SECOND)} of 5 new images since v1")


def test_the_whole_way_pins_the_incumbent_and_leaves_a_clean_clone_whose_log_holds(service: Trained) -> None:
    service.run()
    service.mix(SECOND)
    lines = service.run()
    assert lines[1:] == [
        "v1 is the incumbent",
        "trained, measured and committed",
        "accepted: v2, as it was measured",
    ]
    assert service.kinds == [
        "retraining_began",
        "registered",
        "promoted",
        "retraining_accepted",
        "retraining_began",
        "registered",
        "promoted",
        "retraining_accepted",
    ]
    assert first_problem(service.registry) is None
    assert git(service.root, "status", "--porcelain", "--", ":!registry/events.jsonl") == ""
    encoders = parse_yaml(service.params.read_text())["encoders"]
    assert list(encoders)[-1] == "incumbent"
    assert encoders["incumbent"] == {"model": "registry/incumbent", "network": "teacher"}
    pinned = parse_yaml((service.root / "registry/incumbent.dvc").read_text())["outs"][0]
    versions = module.history.versions(service.registry.events())
    assert pinned["md5"] == versions[1].model.md5
    assert (service.registry.served, service.num_trained) == ("v2", 2)
    began = service.registry.events()[4]
    settings = service.retraining.settings()
    assert settings is not None
    assert began.facts["gate_sha256"] == settings.gate_sha256
    assert (began.who, began.automatic, began.facts["incumbent"]) == ("schedule", True, 1)
    assert began.facts["hardware"] == hardware().model_dump(mode="json")


def test_promoting_changes_no_file_that_a_stage_depends_on(service: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    service.run()
    service.mix(SECOND)
    before: list[str] = []
    promote = Registry.promote

    def watched(*arguments: Any) -> Any:
        before.append(git(service.root, "rev-parse", "HEAD"))
        return promote(*arguments)

    monkeypatch.setattr(Registry, "promote", watched)
    service.run()
    assert before == [git(service.root, "rev-parse", "HEAD")]
    assert git(service.root, "diff", "--name-only").split() == ["registry/events.jsonl"]
    assert service.retraining.due().reason == "0 of 5 new images since v2"


def test_a_rejected_model_is_not_trained_again_until_images_or_params_change(service: Trained) -> None:
    service.run()
    service.mix(SECOND)
    service.is_good = False
    assert service.run()[-1] == "rejected: as it was measured"
    last = service.registry.events()[-1]
    assert (last.kind, last.facts["reason"]["rule"]) == ("rejected", "not_worse")
    assert last.files == {"metrics/gate.json": sha256_of(service.root / "metrics/gate.json")}
    assert service.registry.served == "v1"
    due = service.retraining.due()
    assert not due.due
    assert "and a model of the same images and params was rejected on 2026-11-30" in due.reason
    assert service.run()[0].startswith("nothing is due")
    service.edit("epochs: 150", "epochs: 151")
    assert service.retraining.due().due
    assert num_uses(service.registry.events(), last.facts["frozen"]) == 2


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("epochs: 150", "epochs: 151"),
        ("min_overlap: 0.5", "min_overlap: 0.6"),
        ('"margin": 0.05', '"margin": 0.06'),
        ('"min_new_images": 5', '"min_new_images": 5, "start": "incumbent"'),
        ("weight: 1.0, mean", "weight: 2.0, mean"),
    ],
)
def test_the_key_of_a_run_follows_what_decides_its_result(service: Trained, old: str, new: str) -> None:
    key = service.retraining.due().run_key
    service.edit(old, new)
    assert service.retraining.due().run_key != key


def test_a_withdrawal_changes_the_key_and_a_pinned_incumbent_or_a_comment_does_not(service: Trained) -> None:
    service.run()
    service.mix(SECOND)
    key = service.retraining.due().run_key
    service.edit("seed: 0", "seed: 0  # a comment")
    assert service.retraining.due().run_key == key
    service.is_good = False
    service.run()
    assert service.retraining.due().run_key == key
    (service.root / "batches").mkdir()
    (service.root / f"batches/{SECOND}.exclude.yaml").write_text(f"list_sha256: {sha256_of(service.params)}\n")
    settings = service.retraining.settings()
    assert settings is not None
    assert service.retraining._run_key(settings, module.accepted_version(service.registry.events())) != key


def test_a_hold_is_no_time_to_train(service: Trained) -> None:
    service.registry.hold(ANNA, "the scanner is broken")
    due = service.retraining.due()
    assert (due.due, due.reason.endswith(": the scanner is broken")) == (False, True)
    assert service.run()[0].startswith("nothing is due: held since")
    assert service.kinds == ["held"]


def test_a_stopped_service_trains_nothing_until_it_is_started(service: Trained) -> None:
    stop(service.registry.clone, ANNA, "the disk is changed", service.clock())
    with pytest.raises(StoppedError, match="the disk is changed"):
        service.run()
    start(service.registry.clone, ANNA, "it is changed", service.clock())
    assert service.run()[-1] == "accepted: v1, as it was measured"


def test_other_images_in_place_of_the_frozen_ones_are_refused_before_anything_is_trained(service: Trained) -> None:
    index = service.root / "data/shards" / FROZEN / "index.json"
    index.write_text(index.read_text() + "\n")
    with pytest.raises(ConfigError, match="these are not the frozen images"):
        service.run()
    assert service.kinds == []


def test_a_frozen_set_that_is_trained_on_is_refused(service: Trained) -> None:
    text = service.params.read_text()
    service.params.write_text(add_item(text, "mix", FROZEN, {"weight": 1.0, "mean": 0.5, "std": 0.2}))
    with pytest.raises(ConfigError, match="is trained on"):
        service.retraining.due()
    service.params.write_text(add_item(text, "mix", FROZEN, {"weight": 0.0, "mean": 0.5, "std": 0.2}))
    assert service.retraining.due().due


def test_bounds_that_changed_after_the_training_began_decide_nothing(
    service: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "repro", lambda *_: "the disk is full")
    with pytest.raises(OperationsError, match="the disk is full"):
        service.run()
    monkeypatch.setattr(module, "repro", service.repro)
    service.edit('"margin": 0.05', '"margin": 0.5')
    with pytest.raises(ConfigError, match="has changed since the retraining began"):
        service.run()
    assert service.retraining.due().reason.endswith("has not ended")
    service.retraining.abandon(ANNA, "other bounds are wanted")
    assert service.kinds == ["retraining_began", "retraining_abandoned"]
    with pytest.raises(OperationsError, match="nothing to abandon"):
        service.retraining.abandon(ANNA, "again")
    assert service.run()[-1] == "accepted: v1, as it was measured"


def test_a_modified_file_is_named_and_nothing_begins(service: Trained) -> None:
    service.params.write_text(service.params.read_text() + "# by hand\n")
    with pytest.raises(OperationsError, match=r"tracked files are modified: params\.yaml"):
        service.run()
    assert service.kinds == []


def test_one_call_works_at_a_time(service: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Any] = []

    def repro(*arguments: Any) -> str | None:
        found.append(service.retraining.due())
        with pytest.raises(BusyError):
            service.run()
        return service.repro(*arguments)

    monkeypatch.setattr(module, "repro", repro)
    service.run()
    assert [(due.due, due.reason) for due in found] == [(False, "a retraining is at work")]
    assert service.num_trained == 1


class Killed(BaseException):
    """What ends a call in place of a step."""


STEPS: dict[str, tuple[Any, str]] = {
    "log": (EventLog, "append"),
    "export": (incumbent_module, "export"),
    "dvc add": (incumbent_module, "_track"),
    "write": (incumbent_module, "write_text"),
    "commit": (Clone, "commit"),
    "repro": (module, "repro"),
    "promote": (Registry, "promote"),
    "serve": (Registry, "_serve"),
}


@pytest.mark.slow
@pytest.mark.parametrize("is_good", [True, False], ids=["accepted", "rejected"])
@pytest.mark.parametrize("is_after", [False, True], ids=["before", "after"])
def test_a_call_that_is_killed_before_or_after_any_step_is_finished_by_the_same_command(
    service: Trained, is_good: bool, is_after: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.run()
    service.mix(SECOND)
    service.is_good = is_good
    spent: set[tuple[str, str]] = set()
    for _ in range(40):
        with monkeypatch.context() as patched:
            for name, (owner, attribute) in STEPS.items():
                _kill_once(patched, owner, attribute, name, spent, is_after)
            try:
                service.run()
                break
            except Killed:
                continue
    assert {name for name, _ in spent} == STEPS.keys() - (set() if is_good else {"promote", "serve"})
    assert len(spent) >= (11 if is_good else 9)
    ends = [kind for kind in service.kinds if kind in module.ENDS]
    assert ends == ["retraining_accepted", "retraining_accepted" if is_good else "rejected"]
    assert service.kinds.count("retraining_began") == 2
    assert service.kinds.count("promoted") == 1 + is_good
    assert service.registry.served == ("v2" if is_good else "v1")
    assert open_retraining(service.registry.events()) is None
    assert first_problem(service.registry) is None
    assert git(service.root, "status", "--porcelain", "--", ":!registry/events.jsonl") == ""
    subjects = git(service.root, "log", "--format=%s").splitlines()
    assert len(subjects) == len(set(subjects)) == 5


def _kill_once(
    patched: pytest.MonkeyPatch,
    owner: Any,
    attribute: str,
    name: str,
    spent: set[tuple[str, str]],
    is_after: bool,
) -> None:
    """End the call at each use of a step, as its arguments tell it apart, that no earlier call was ended at."""
    real: Callable[..., Any] = getattr(owner, attribute)

    def step(*arguments: Any, **options: Any) -> Any:
        here = (name, str(arguments[1:2]))
        is_killed = here not in spent
        spent.add(here)
        if is_killed and not is_after:
            raise Killed
        result = real(*arguments, **options)
        if is_killed:
            raise Killed
        return result

    patched.setattr(owner, attribute, step)


def mix_copy(service: Trained, name: str) -> None:
    """Accept a further batch: the shards of SECOND under another name."""
    folder = service.root / "data/shards" / name
    shutil.copytree(service.root / "data/shards" / SECOND, folder)
    index = folder / "index.json"
    index.write_text(index.read_text().replace(SECOND, name))
    service.mix(name)


def fail_once(service: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call whose dvc fails, after which a retraining has begun and not ended."""
    with monkeypatch.context() as patched:
        patched.setattr(module, "repro", lambda *_: "the disk is full")
        with pytest.raises(OperationsError, match="the disk is full"):
            service.run()


@pytest.mark.slow
def test_the_next_incumbent_takes_the_place_of_the_one_before(service: Trained) -> None:
    service.run()
    for name in (SECOND, "clinic-b002"):
        if name == SECOND:
            service.mix(name)
        else:
            mix_copy(service, name)
        assert service.run()[-1].startswith("accepted: ")
    pinned = parse_yaml((service.root / "registry/incumbent.dvc").read_text())["outs"][0]
    version = module.history.versions(service.registry.events())[2]
    assert pinned["md5"] == version.model.md5
    assert incumbent_module.first_difference(service.root / "registry/incumbent", version.files) is None
    assert git(service.root, "log", "-2", "--format=%s").splitlines()[-1] == "v2 is the incumbent"


@pytest.mark.slow
def test_other_bytes_in_the_incumbents_folder_are_replaced_before_they_are_pinned(
    service: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.run()
    service.mix(SECOND)
    folder = service.root / "registry/incumbent"
    folder.mkdir(parents=True)
    (folder / "README.md").write_text("another model")
    track = incumbent_module._track

    def spoil(root: Path) -> None:
        (folder / "README.md").chmod(0o644)
        (folder / "README.md").write_text("another model")
        track(root)

    with monkeypatch.context() as patched:
        patched.setattr(incumbent_module, "_track", spoil)
        with pytest.raises(OperationsError, match=r"remove registry/incumbent\.dvc and registry/incumbent"):
            service.run()
    assert service.run()[-1] == "accepted: v2, as it was measured"
    version = module.history.versions(service.registry.events())[1]
    assert incumbent_module.first_difference(folder, version.files) is None


@pytest.mark.slow
def test_training_starts_with_the_incumbents_weights_while_the_params_say_so(service: Trained) -> None:
    service.edit('"min_new_images": 5', '"min_new_images": 5, "start": "incumbent"')
    service.run()
    service.mix(SECOND)
    service.is_good = False
    key = service.retraining.due().run_key
    assert service.run()[-1] == "rejected: as it was measured"
    pretrain = parse_yaml(service.params.read_text())["pretrain"]
    folder = service.root / "registry/incumbent"
    assert (pretrain["start_from"], pretrain["start_from_sha256"]) == ("registry/incumbent", start_sha256(folder))
    assert service.retraining.due().run_key == key
    service.edit('"start": "incumbent"', '"start": "scratch"')
    assert service.run()[-1] == "rejected: as it was measured"
    pretrain = parse_yaml(service.params.read_text())["pretrain"]
    assert (pretrain.get("start_from"), pretrain.get("start_from_sha256")) == (None, None)


@pytest.mark.slow
def test_nobody_else_changes_the_batches_while_the_incumbent_is_entered(
    service: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.run()
    service.mix(SECOND)
    real, is_locked = incumbent_module.write_text, []

    def write_text(path: Path, text: str) -> None:
        lock = FileLock(service.root / ".params.yaml.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            is_locked.append(True)
        else:
            is_locked.append(False)
            lock.release()
        real(path, text)

    monkeypatch.setattr(incumbent_module, "write_text", write_text)
    service.run()
    assert is_locked == [True, True]


def test_nothing_begins_on_another_branch(service: Trained) -> None:
    git(service.root, "switch", "--quiet", "-c", "mine")
    with pytest.raises(OperationsError, match="is on the branch 'mine'"):
        service.run()
    with pytest.raises(OperationsError, match="is on the branch 'mine'"):
        service.retraining.abandon(ANNA, "by mistake")
    assert service.kinds == []


def test_deliveries_and_a_retraining_keep_out_of_each_others_way(
    service: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.edit('{"gate"', '{"deliveries": {"name": "clinic"}, "gate"')
    deliveries = Deliveries.open(service.params)
    (service.root / ".git/info/exclude").write_text("/incoming\n/deliveries\n/quarantine\n")
    with deliveries.locked(), pytest.raises(BusyError, match="at work on the deliveries"):
        service.run()
    assert service.kinds == []

    def repro(*arguments: Any) -> str | None:
        with pytest.raises(BusyError, match="at work on the deliveries"):
            list(deliveries.run())
        return service.repro(*arguments)

    monkeypatch.setattr(module, "repro", repro)
    assert service.run()[-1] == "accepted: v1, as it was measured"


def test_a_hold_also_halts_a_retraining_that_has_begun(service: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_once(service, monkeypatch)
    service.registry.hold(ANNA, "the scanner is broken")
    assert service.run()[0].startswith("nothing is due: held since")
    service.registry.release(ANNA, "it is mended")
    assert service.run()[-1] == "accepted: v1, as it was measured"


def test_a_hold_that_is_set_while_a_model_is_trained_keeps_it_from_being_promoted_by_anybody(
    service: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    def held(*arguments: Any) -> None:
        service.repro(*arguments)
        service.registry.hold(ANNA, "the scanner is broken")

    monkeypatch.setattr(module, "repro", held)
    with pytest.raises(OperationsError, match="holds new models: the scanner is broken"):
        list(service.retraining.run(ANNA))
    assert service.registry.served is None
    service.registry.release(ANNA, "it is mended")
    monkeypatch.setattr(module, "repro", service.repro)
    assert service.run()[-1] == "accepted: v1, as it was measured"


@pytest.mark.slow
def test_a_model_that_was_compared_with_what_is_no_longer_accepted_is_not_promoted(
    service: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.run()
    service.mix(SECOND)
    service.run()
    service.edit("epochs: 150", "epochs: 151")
    service.edit('"min_new_images": 5', '"min_new_images": 1')
    third = "clinic-b002"
    shutil.copytree(service.root / "data/shards" / SECOND, service.root / "data/shards" / third)
    index = service.root / "data/shards" / third / "index.json"
    index.write_text(index.read_text().replace(SECOND, third))
    service.mix(third)

    def rolled_back(*arguments: Any) -> None:
        service.repro(*arguments)
        service.registry.clone.commit(["dvc.lock", "metrics/gate.json"], "as a killed call leaves it")
        service.registry.rollback(1, ANNA, "worse")
        service.registry.release(ANNA, "go on")

    monkeypatch.setattr(module, "repro", rolled_back)
    assert service.run()[-1] == "abandoned: v1 was accepted meanwhile, and the model was compared with another one"
    assert service.registry.served == "v1"
    assert service.kinds[-1] == "retraining_abandoned"


@pytest.mark.parametrize("change", ["params", "images"])
def test_what_changes_after_a_retraining_began_is_not_trained_in_its_name(
    service: Trained, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_once(service, monkeypatch)
    if change == "params":
        service.edit("epochs: 150", "epochs: 10")
    else:
        service.mix(SECOND)
    with pytest.raises(ConfigError, match="have changed since the retraining began"):
        service.run()
    assert service.num_trained == 0
    service.retraining.abandon(ANNA, "they are wanted")
    assert service.run()[-1] == "accepted: v1, as it was measured"


@pytest.mark.slow
def test_giving_up_leaves_a_clean_clone(service: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    service.run()
    service.mix(SECOND)

    def half(*arguments: Any) -> str:
        service.repro(*arguments)
        (service.root / "metrics/notes.txt").write_text("a person's")
        return "the disk is full"

    monkeypatch.setattr(module, "repro", half)
    with pytest.raises(OperationsError, match="the disk is full"):
        service.run()
    assert git(service.root, "status", "--porcelain", "--", "dvc.lock", "metrics/gate.json")
    service.retraining.abandon(ANNA, "the disk is too small")
    found = git(service.root, "status", "--porcelain").splitlines()
    assert found == [" M registry/events.jsonl", "?? metrics/notes.txt"]


def test_a_persons_new_file_is_not_committed_with_the_figures(service: Trained) -> None:
    (service.root / "metrics").mkdir()
    (service.root / "metrics/notes.txt").write_text("a person's")
    (service.root / "docs").mkdir()
    (service.root / "docs/.gitignore").write_text("/drafts\n")
    service.run()
    assert "?? docs/" in git(service.root, "status", "--porcelain").splitlines()
    assert "?? metrics/notes.txt" in git(service.root, "status", "--porcelain").splitlines()


@pytest.mark.slow
def test_an_incumbent_that_is_changed_while_a_model_is_measured_decides_nothing(
    service: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.run()
    service.mix(SECOND)
    card = service.root / "registry/incumbent/README.md"

    def spoiled(*arguments: Any) -> None:
        service.repro(*arguments)
        card.chmod(0o644)
        card.write_text("another model")

    with monkeypatch.context() as patched:
        patched.setattr(module, "repro", spoiled)
        with pytest.raises(OperationsError, match="was changed while the model was trained and measured"):
            service.run()
    assert service.registry.served == "v1"
    assert service.run()[-1] == "accepted: v2, as it was measured"
    assert card.read_text() == "# True\n"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"compositionality":', '"compositionalty":', "names compositionalty; expected some of compositionality"),
        ('"compositionality":', '"correspondence_px_at_1024":', "less is better, and there is no ceiling"),
        ('"floor": 0.2', '"ceiling": 0.2', "more is better, and there is no floor"),
        ("{weight: 1.0", "{weigth: 1.0", f"mix.{FIRST}"),
        ("\nevaluate:", "\nevaluated:", "found no evaluate"),
        ("\nmix:", "\nmixed:", "found no mix"),
    ],
)
def test_a_mistake_in_the_params_is_named_before_anything_is_trained(
    service: Trained, old: str, new: str, said: str
) -> None:
    service.edit(old, new)
    with pytest.raises(ConfigError, match=said):
        service.retraining.due()
    with pytest.raises(ConfigError, match=said):
        service.run()
    assert service.kinds == []


def test_exactly_as_many_new_images_as_are_asked_for_are_enough(service: Trained) -> None:
    number = num_images(service, FIRST)
    service.edit('"min_new_images": 5', f'"min_new_images": {number + 1}')
    assert not service.retraining.due().due
    service.edit(f'"min_new_images": {number + 1}', f'"min_new_images": {number}')
    assert service.retraining.due().due
    service.is_good = False
    assert service.run()[-1] == "rejected: as it was measured"
    assert not service.retraining.due().due


def test_withdrawn_images_are_no_new_ones(service: Trained) -> None:
    index = ShardIndex.open(service.root / "data/shards" / FIRST)
    key = next(iter(index.keys(index.select("train"))))
    path = list_path(FIRST, service.root)
    path.parent.mkdir(parents=True)
    path.write_text(f"{key}\n")
    exclusion_path(FIRST, service.root).parent.mkdir(exist_ok=True)
    exclusion_path(FIRST, service.root).write_text(f"list_sha256: {sha256_of(path)}\n")
    assert service.retraining.due().reason.startswith(f"{num_images(service, FIRST) - 1} of 5 new images")


def write_batches(service: Trained) -> None:
    for name, dep in service.params_of["batches"].items():
        write_batch(service.root, name, PhantomSourceParams(kind="phantom", dep=dep), grid_params(), shard_params())
    service.commit("the files of the batches")


@pytest.mark.slow
def test_a_withdrawal_makes_a_retraining_due_which_starts_from_nothing_that_the_patient_has_taught(
    service: Trained,
) -> None:
    write_batches(service)
    service.run()
    service.edit('"min_new_images": 5', '"min_new_images": 500, "start": "incumbent"')
    assert not service.retraining.due().due
    index = ShardIndex.open(service.root / "data/shards" / FIRST)
    pseudonym = index.rows["patient"][index.select("train")][0].decode()
    withdrawals = Withdrawals(service.registry)

    def withdraw(decision: Decision | None) -> None:
        list(withdrawals.withdraw(Patient(pseudonym=pseudonym), service.clock(), ANNA, decision))

    withdraw(None)
    assert not service.retraining.due().due, "nobody has decided"
    withdraw(Decision("retrain", "the patient asks for it"))
    (number,) = withdrawals.known()
    due = service.retraining.due()
    assert due.due
    assert due.reason.startswith(f"withdrawal {number} asks for a model without the patient, and there are 0 of 500")
    service.is_good = False
    assert service.run()[-1].startswith("rejected")
    assert not service.retraining.due().due, "the same images are tried once"
    assert withdrawals.known()[number].completed is None
    service.is_good = True
    service.edit('"min_new_images": 500', '"min_new_images": 499')
    service.edit("seed: 0", "seed: 1")
    assert service.run()[-1] == "accepted: v2, as it was measured"
    assert service.params_of["pretrain"]["start_from"] is None
    assert pseudonym not in (service.models / "v2/training_images.csv").read_text()
    assert withdrawals.known()[number].completed is not None
    assert not service.retraining.due().due
    with pytest.raises(OperationsError, match="retires it: the patient asks for it"):
        service.registry.rollback(1, ANNA, "it was better")
    assert first_problem(service.registry) is None


def test_a_patient_of_the_frozen_set_leaves_the_pin_as_it_is_and_changes_the_key(service: Trained) -> None:
    write_batches(service)
    service.run()
    before = service.retraining.due()
    index = ShardIndex.open(service.root / "data/shards" / FROZEN)
    only_there = index.rows["patient"][index.select("test")][0].decode()
    list(Withdrawals(service.registry).withdraw(Patient(pseudonym=only_there), service.clock(), ANNA))
    assert service.retraining.due().run_key != before.run_key
    assert f"batches/{FROZEN}.exclude.yaml" in (service.root / "dvc.yaml").read_text()


def test_no_training_begins_with_images_of_a_patient_who_has_withdrawn(service: Trained) -> None:
    write_batches(service)
    index = ShardIndex.open(service.root / "data/shards" / FIRST)
    pseudonym = index.rows["patient"][index.select("train")][0].decode()
    list(Withdrawals(service.registry).withdraw(Patient(pseudonym=pseudonym), service.clock(), ANNA))
    files = Project(service.params, service.root / "dvc.yaml")
    exclude_images(FIRST, [], [pseudonym], files, undo=True)
    service.commit("by mistake")
    with pytest.raises(OperationsError, match=f"{FIRST} has images of a patient who has withdrawn"):
        service.run()
    assert service.num_trained == 0


def test_a_changed_list_of_what_the_accepted_model_saw_is_not_believed(service: Trained) -> None:
    service.run()
    (path,) = service.models.glob("v1/training_images.csv")
    path.chmod(0o644)
    path.write_text("batch,key,patient\n")
    with pytest.raises(OperationsError, match="is not as it was registered"):
        service.retraining.due()


def test_a_decision_by_another_gate_is_not_taken(service: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    def repro(*arguments: Any) -> str | None:
        service.repro(*arguments)
        path = service.root / "metrics/gate.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"gate_sha256": "0" * 64}))
        return None

    monkeypatch.setattr(module, "repro", repro)
    with pytest.raises(OperationsError, match="decided by another gate"):
        service.run()
    assert service.kinds == ["retraining_began"]


@pytest.mark.slow
def test_a_model_that_was_rolled_back_and_is_made_again_later_is_promoted_again(service: Trained) -> None:
    service.run()
    service.mix(SECOND)
    service.run()
    service.registry.rollback(1, ANNA, "worse")
    service.registry.release(ANNA, "other params are tried")
    assert "was accepted on" in service.retraining.due().reason
    service.edit("epochs: 150", "epochs: 151")
    assert service.run()[-1] == "accepted: v2, as it was measured"
    assert service.registry.served == "v2"


def test_a_lock_file_that_dvc_was_killed_over_is_the_committed_one_again(
    service: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.run()
    service.mix(SECOND)
    lock, seen = service.root / "dvc.lock", []
    committed = lock.read_text()

    def torn(*_: Any) -> str | None:
        lock.write_text(committed[:20])
        raise Killed

    def repro(*arguments: Any) -> str | None:
        seen.append(lock.read_text())
        return service.repro(*arguments)

    monkeypatch.setattr(module, "repro", torn)
    with pytest.raises(Killed):
        service.run()
    monkeypatch.setattr(module, "repro", repro)
    assert service.run()[-1] == "accepted: v2, as it was measured"
    assert seen == [committed]


def test_figures_that_dvc_removed_before_it_was_killed_in_a_stage_without_a_record_are_no_edit(
    service: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    came_with_it = ("metrics/pretrain/metrics.json", "metrics/variants/one/plots/metrics/loss.tsv")
    for name in came_with_it:
        (service.root / name).parent.mkdir(parents=True)
        (service.root / name).write_text("{}")
    service.commit("as the repository has them")

    def removed(*_: Any) -> str | None:
        for name in came_with_it:
            (service.root / name).unlink()
        raise Killed

    monkeypatch.setattr(module, "repro", removed)
    with pytest.raises(Killed):
        service.run()
    monkeypatch.setattr(module, "repro", service.repro)
    assert service.run()[-1] == "accepted: v1, as it was measured"


@pytest.mark.parametrize(
    ("stage", "made", "other"),
    [
        ("{outs: [models/a], metrics: [m/a.json: {cache: false}]}", ["models/a/b", "m/a.json"], ["m/a.json.txt", "m"]),
        ("{foreach: [x], do: {plots: ['p/${item}/b']}}", ["p/x/b", "p/x/b/c.tsv"], ["p/b", "p/x/y/b", "p/x/b.tsv"]),
        ("{outs: [./models//a/]}", ["models/a", "models/a/b"], ["models"]),
        ("{wdir: study, outs: [a, ../b]}", ["study/a", "b"], ["a", "study/b"]),
        ("{outs: ['${folder}', '${folder}/a', b]}", ["b"], ["params.yaml", "docs/a"]),
        ("{wdir: '${folder}', outs: [a]}", [], ["a", "docs/a"]),
    ],
)
def test_what_a_stage_makes_is_told_from_what_somebody_edits(stage: str, made: list[str], other: list[str]) -> None:
    names = module._made(f"stages:\n  one: {stage}\n")
    assert [name for name in (*made, *other) if names.fullmatch(name)] == made


def test_what_somebody_edits_meanwhile_is_named_before_and_after_the_training(
    service: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_once(service, monkeypatch)
    text = service.params.read_text()
    service.params.write_text(text + "# by hand\n")
    with pytest.raises(OperationsError, match=r"tracked files are modified: params\.yaml"):
        service.run()
    assert service.num_trained == 0
    service.params.write_text(text)

    def repro(*arguments: Any) -> str | None:
        service.params.write_text(text + "# by hand\n")
        return service.repro(*arguments)

    head = git(service.root, "rev-parse", "HEAD")
    monkeypatch.setattr(module, "repro", repro)
    with pytest.raises(OperationsError, match=r"tracked files are modified: params\.yaml"):
        service.run()
    assert service.kinds == ["retraining_began"]
    assert git(service.root, "rev-parse", "HEAD") == head


def test_the_key_of_a_run_follows_the_accepted_version_and_what_is_excluded_of_the_frozen_set(service: Trained) -> None:
    service.run()
    service.mix(SECOND)
    service.run()
    keys = [service.retraining.due().run_key]
    service.registry.rollback(1, ANNA, "worse")
    keys.append(service.retraining.due().run_key)
    exclusion_path(FROZEN, service.root).parent.mkdir(exist_ok=True)
    exclusion_path(FROZEN, service.root).write_text(f"list_sha256: {'0' * 64}\n")
    keys.append(service.retraining.due().run_key)
    assert len({*keys}) == 3


def test_params_by_which_nothing_would_decide_are_refused(service: Trained) -> None:
    service.edit("decide: [trained]", "decide: []")
    with pytest.raises(ConfigError, match=r"decide is empty.*`decide: \[trained\]`"):
        service.retraining.due()


def test_nobody_abandons_a_retraining_that_is_at_work(service: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    def repro(*arguments: Any) -> str | None:
        with pytest.raises(BusyError):
            service.retraining.abandon(ANNA, "too slow")
        return service.repro(*arguments)

    monkeypatch.setattr(module, "repro", repro)
    assert service.run()[-1] == "accepted: v1, as it was measured"


def test_a_model_that_a_killed_call_promoted_and_a_person_rolled_back_is_not_promoted_again(
    service: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.run()
    service.mix(SECOND)
    with monkeypatch.context() as patched:
        _kill_once(patched, Registry, "promote", "promote", set(), True)
        with pytest.raises(Killed):
            service.run()
    assert service.registry.served == "v2"
    service.registry.rollback(1, ANNA, "worse")
    service.registry.release(ANNA, "go on")
    assert service.run()[-1] == "accepted: v2, as it was measured"
    assert service.registry.served == "v1"
