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

import ace.operations.incumbent as incumbent_module
import ace.operations.retraining as module
from ace.operations.audit import first_problem
from ace.operations.clone import SCHEDULE, Clone
from ace.operations.errors import BusyError, OperationsError, StoppedError
from ace.operations.events import EventLog
from ace.operations.registry import Registry
from ace.operations.retraining import Retraining, num_uses, open_retraining
from ace.operations.service import start, stop
from shards.build.stage import build_shards
from shards.core.config import parse_yaml
from shards.core.errors import ConfigError
from shards.core.params import PhantomSourceParams
from shards.delivery.yaml_lines import add_deps, add_item
from shards.format.layout import sha256_of
from shards.reading.reader import ShardIndex
from tests.ace.operations.service import ANNA, Service, make_service
from tests.support.checkout import ROOT, git
from tests.support.datasets import Here, grid_params, shard_params, write_phantom

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
            index = ShardIndex.open(self.root / "data/shards" / name)
            rows.writerows((name, key, "someone") for key in index.keys(index.select("train")))
        files = {"config.json": "{}", "README.md": f"# {self.is_good}\n", "training_images.csv": content.getvalue()}
        files |= {f"{network}/model.safetensors": content.getvalue() for network in ("teacher", "student")}
        entries = [{"md5": self.cache(text), "relpath": name} for name, text in sorted(files.items())]
        md5 = self.cache(json.dumps(entries), suffix=".dir")
        lock = {"schema": "2.0", "stages": {"pretrain": {"cmd": "train", "outs": [{"path": "models/ace", "md5": md5}]}}}
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
    assert service.retraining._run_key(settings, service.registry.events()) != key


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
