"""Patients withdraw from a service's clone with a real git and dvc: what is excluded, recorded and decided."""

import io
import json
import shutil
import tarfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

import ace.operations.deliveries as deliveries_module
import ace.operations.withdrawal as module
from ace.__main__ import build_parser
from ace.operations.audit import first_problem
from ace.operations.clone import Clone
from ace.operations.deliveries import Deliveries
from ace.operations.errors import OperationsError
from ace.operations.events import EventLog
from ace.operations.patients import mark_of
from ace.operations.retraining_state import BEGAN, running
from ace.operations.status import read_status
from ace.operations.withdrawal import Decision, Patient
from ace.operations.withdrawal_state import Action
from ace.zoo.shipped import find_model
from shards.checking.exclude import exclude_images
from shards.cli import run_command
from shards.core.identity import IdKey, read_id_key
from shards.delivery.manifest import iterate_manifest
from shards.delivery.project import Project
from shards.delivery.yaml_lines import keep_items
from shards.format.exclusion import read_exclusion
from shards.format.layout import sha256_of
from tests.ace.operations.delivered import build_here, deliver
from tests.ace.operations.killed import KILLED, in_child, kill_after
from tests.ace.operations.service import ANNA, config_text
from tests.ace.operations.withdrawn import (
    FIRST,
    KEY,
    SECOND,
    Clinic,
    id_of,
    stale,
)
from tests.support.checkout import git
from tests.support.datasets import write_csv

RECEIVED = datetime(2026, 11, 1, tzinfo=UTC)
WHOLE = ["withdrawal_received", "withdrawal_excluded", "withdrawal_settled", "withdrawal_completed"]


def main(*arguments: str) -> int:
    return run_command(build_parser(), arguments)


def command(monkeypatch: pytest.MonkeyPatch, patient: str, *arguments: str) -> int:
    """Give `withdraw` a patient on stdin."""
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{patient}\n"))
    return main("withdraw", *arguments)


def withdraw(clinic: Clinic, patient: str, action: Action | None = None) -> list[str]:
    decision = None if action is None else Decision(action, "as the board has decided")
    return list(clinic.withdrawals.withdraw(Patient(identifier=patient), RECEIVED, ANNA, decision))


def excluded(clinic: Clinic) -> dict[str, set[str]]:
    return {name: set(read_exclusion(name, clinic.root).patients) for name in (FIRST, SECOND)}


def both(patients: set[str]) -> dict[str, set[str]]:
    return {FIRST: patients, SECOND: patients}


def test_a_patient_is_traced_to_samples_models_and_all_that_is_made_from_them(clinic: Clinic) -> None:
    (trained, *_), (tested, *_) = clinic.patients("train"), clinic.patients("test")
    found = clinic.withdrawals.trace(Patient(identifier=trained))
    assert dict(found.batches) == {FIRST: 2, SECOND: 1}
    assert dict(found.versions) == {1: "its training_images.csv has them"}
    assert list(found.exported) == [1]
    assert dict(found.outs) == {"data/answers/trained": "measure", "models/ace": "pretrain"}
    assert not clinic.withdrawals.trace(Patient(identifier=tested)).versions
    assert clinic.kinds == []


def tars_of(folder: Path, keys: set[str]) -> dict[str, set[str]]:
    """Tars of a shard set with members of some samples, as tar itself lists them: name → keys."""
    found: dict[str, set[str]] = {}
    for path in folder.glob("*.tar"):
        with tarfile.open(path) as tar:
            found[path.name] = keys & {name.partition(".")[0] for name in tar.getnames()}
    return {name: there for name, there in found.items() if there}


def test_a_trace_names_the_samples_and_the_tars_that_hold_them(
    clinic: Clinic, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    patient = clinic.patients("train")[0]
    pseudonym = clinic.pseudonym(patient)
    for name in (FIRST, SECOND):
        _, entries = iterate_manifest(clinic.root / f"data/manifests/{name}.jsonl")
        keys = {entry.record.source_id for _, entry in entries if entry.record.patient == pseudonym}
        found = clinic.withdrawals.trace(Patient(patient)).samples[name]
        assert {tar: set(there) for tar, there in found.items()} == tars_of(clinic.root / "data/shards" / name, keys)
        assert sum(map(len, found.values())) == len(keys) > 0
    (clinic.root / "data/shards" / SECOND / "index.json").write_text("damaged")
    assert command(monkeypatch, patient, "--trace") == 0
    said = capsys.readouterr().out
    assert f"  {SECOND}  1 image\n    its shards are not here\n" in said
    tars = clinic.withdrawals.trace(Patient(patient)).samples[FIRST]
    lines = "".join(f"    {tar}  {' '.join(keys)}\n" for tar, keys in tars.items())
    assert f"  {FIRST}  2 images\n{lines}" in said
    assert command(monkeypatch, patient, "--trace", "--json") == 0
    assert json.loads(capsys.readouterr().out)["samples"] == {FIRST: tars}


def write_export(folder: Path, sha256: str) -> str:
    folder.mkdir(parents=True)
    record = {"model_sha256": sha256, "network": "teacher", "commit": None, "version": "0.1.0"}
    (folder / "ace_model.json").write_text(json.dumps(record))
    return str(folder)


def test_a_trace_names_what_was_exported_or_published_from_the_patients_models(
    clinic: Clinic, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = "teacher_backbone.safetensors"
    trained = sha256_of(clinic.models / "v1" / weights)
    served = write_export(clinic.models / "onnx", trained)
    published = clinic.root / "share/small"
    shutil.copytree(find_model("cxr-small"), published)
    config = json.loads((published / "config.json").read_text())
    config["published"]["measured"]["model_sha256"] = trained
    (published / "config.json").write_text(json.dumps(config))
    own = write_export(clinic.root / "share/a", sha256_of(published / weights))
    variant = clinic.root / "models/gentle"
    variant.mkdir()
    for name in ("config.json", "training_images.csv"):
        shutil.copyfile(clinic.root / "models/ace" / name, variant / name)
    (variant / weights).write_text("of a variant")
    of_variant = write_export(clinic.root / "share/variant", sha256_of(variant / weights))
    write_export(clinic.root / "share/other", "f" * 64)
    damaged = write_export(clinic.root / "share/damaged", "")
    (Path(damaged) / "ace_model.json").write_text("{}")
    (trained_patient, *_), (tested, *_) = clinic.patients("train"), clinic.patients("test")
    assert clinic.withdrawals.trace(Patient(trained_patient)).copies == {
        served: "exported from the teacher of v1",
        str(published): "published from the teacher of v1",
        own: "exported from the teacher of small",
        of_variant: "exported from the teacher of models/gentle",
    }
    assert clinic.withdrawals.trace(Patient(tested)).copies == {}
    assert command(monkeypatch, trained_patient, "--trace") == 0
    assert f"\nexported or published from these models\n  {own}  exported from" in capsys.readouterr().out


@pytest.mark.slow
def test_only_consumers_are_stale_after_a_withdrawal_and_no_shard(clinic: Clinic) -> None:
    assert stale(clinic.root) == set()
    before = {path: path.read_bytes() for path in sorted((clinic.root / "data/shards").rglob("*")) if path.is_file()}
    patient = clinic.patients("train")[0]
    withdraw(clinic, patient)
    assert stale(clinic.root) == {"pretrain", "measure"}
    assert {path: path.read_bytes() for path in before} == before
    assert excluded(clinic) == both({clinic.pseudonym(patient)})
    assert clinic.changed == ""
    clinic.train("without the patient")
    assert clinic.pseudonym(patient) not in (clinic.root / "models/ace/training_images.csv").read_text()
    assert clinic.pseudonym(clinic.patients("train")[1]) in (clinic.root / "models/ace/training_images.csv").read_text()


def test_the_command_records_when_it_came_what_it_affects_and_what_was_decided(
    clinic: Clinic, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    patient = clinic.patients("train")[0]
    assert command(monkeypatch, patient, "--received", "2026-11-01T08:30") == 0
    said = capsys.readouterr().out
    assert f"excluded from {FIRST}, {SECOND}" in said
    assert "say what becomes of v1: python -m ace withdraw --settle" in said
    received, done = clinic.registry.events()[-2:]
    assert received.facts == {
        "patient": mark_of(clinic.pseudonym(patient), read_id_key()),
        "received": "2026-11-01T08:30:00+00:00",
        "batches": [FIRST, SECOND],
        "versions": [1],
        "outs": ["data/answers/trained", "models/ace"],
    }
    head = git(clinic.root, "rev-parse", "HEAD").strip()
    assert (done.facts["batches"], done.facts["commit"]) == ([FIRST, SECOND], head)
    assert git(clinic.root, "log", "-1", "--format=%s").strip() == f"Withdrawal {received.sequence}"
    assert main("withdraw", "--settle", str(received.sequence), "--action", "keep", "--why", "one of 40,000") == 0
    assert clinic.kinds == WHOLE
    capsys.readouterr()
    assert main("withdraw", "--list", "--json") == 0
    (listed,) = json.loads(capsys.readouterr().out)
    assert listed["versions"] == {"v1": "keep"}
    assert listed["todo"] == []
    assert listed["completed"] is not None
    assert main("withdraw", "--list") == 0
    assert f"{FIRST}, {SECOND}" in capsys.readouterr().out
    assert first_problem(clinic.registry) is None


def test_the_identifier_is_nowhere_below_the_clone_and_the_pseudonym_nowhere_in_git(
    clinic: Clinic, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    patient = clinic.patients("train")[0]
    assert command(monkeypatch, patient, "--action", "keep", "--why", "one of many") == 0
    said = capsys.readouterr()
    assert patient not in said.out + said.err
    pseudonym = clinic.pseudonym(patient)
    git(clinic.root, "add", "registry")
    git(clinic.root, "commit", "--quiet", "-m", "the log")
    for name in clinic.root.rglob("*"):
        assert "Canary" not in name.name
        assert not name.is_file() or b"Canary" not in name.read_bytes(), name
    names = [line.split()[0] for line in git(clinic.root, "rev-list", "--all", "--objects").splitlines()]
    assert len(names) > 20
    for name in names:
        kind = git(clinic.root, "cat-file", "-t", name).strip()
        text = git(clinic.root, "cat-file", "-p", name)
        assert "Canary" not in text, kind
        assert pseudonym not in text, kind


def test_giving_it_again_changes_nothing(clinic: Clinic) -> None:
    patient = clinic.patients("train")[0]
    withdraw(clinic, patient, "keep")

    def state() -> tuple[object, ...]:
        return clinic.registry.log.read(), git(clinic.root, "rev-parse", "HEAD"), clinic.changed, excluded(clinic)

    before = state()
    assert withdraw(clinic, patient, "keep") == [f"withdrawal {3}: complete, nothing is left to do"]
    withdraw(clinic, patient)
    assert state() == before
    assert clinic.kinds == WHOLE


def test_another_patient_is_not_touched(clinic: Clinic) -> None:
    one, other = clinic.patients("train")[:2]
    withdraw(clinic, one)
    assert clinic.pseudonym(other) not in excluded(clinic)[FIRST] | excluded(clinic)[SECOND]
    found = read_status(clinic.root, clinic.models, None).withdrawals
    assert len(found) == 1
    withdraw(clinic, other)
    assert excluded(clinic) == both({clinic.pseudonym(one), clinic.pseudonym(other)})
    assert len(clinic.withdrawals.known()) == 2
    assert len({withdrawal.mark for withdrawal in clinic.withdrawals.known().values()}) == 2


STEPS = (
    ("append", "withdrawal_received"),
    ("exclude", FIRST),
    ("exclude", SECOND),
    ("commit", ""),
    ("append", "withdrawal_excluded"),
    ("append", "withdrawal_settled"),
    ("append", "withdrawal_completed"),
)


@pytest.mark.parametrize("is_before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("step", STEPS, ids=lambda step: "-".join(filter(None, step)))
def test_a_kill_between_any_two_steps_is_finished_by_the_same_command(
    clinic: Clinic, monkeypatch: pytest.MonkeyPatch, step: tuple[str, str], is_before: bool
) -> None:
    patient = clinic.patients("train")[0]
    with monkeypatch.context() as patch:
        die_at(step, patch, is_before=is_before)
        with pytest.raises(KeyboardInterrupt):
            withdraw(clinic, patient, "keep")
    withdraw(clinic, patient, "keep")
    assert clinic.kinds == WHOLE
    assert clinic.changed == ""
    assert excluded(clinic) == both({clinic.pseudonym(patient)})
    subjects = git(clinic.root, "log", "--format=%s").splitlines()
    assert subjects == ["Withdrawal 3", "the project, and a model"]
    assert first_problem(clinic.registry) is None


def die_at(step: tuple[str, str], patch: pytest.MonkeyPatch, *, is_before: bool) -> None:
    """Let the process die just before or just after a step."""
    what, name = step

    def dying(call: Callable[..., object], is_meant: Callable[..., bool]) -> Callable[..., object]:
        def replacement(*arguments: object, **keywords: object) -> object:
            if is_meant(*arguments) and is_before:
                raise KeyboardInterrupt
            found = call(*arguments, **keywords)
            if is_meant(*arguments):
                raise KeyboardInterrupt
            return found

        return replacement

    if what == "append":
        patch.setattr(EventLog, "append", dying(EventLog.append, lambda _, kind, *__: kind == name))
    elif what == "exclude":
        patch.setattr(module, "set_excluded", dying(module.set_excluded, lambda batch, *_: batch == name))
    else:
        patch.setattr(Clone, "commit", dying(Clone.commit, lambda *_: True))


@pytest.mark.slow
def test_a_kill_at_any_change_on_the_disk_is_finished_by_the_same_command(clinic: Clinic, tmp_path: Path) -> None:
    patient, number = clinic.patients("train")[0], 0
    while True:
        copy = Clinic(tmp_path / "copy/project", tmp_path / "copy/served")
        shutil.rmtree(tmp_path / "copy", ignore_errors=True)
        shutil.copytree(clinic.root.parent, tmp_path / "copy", symlinks=True)

        def go(copy: Clinic = copy, number: int | None = number) -> None:
            if number is not None:
                kill_after(number)
            withdraw(copy, patient, "keep")

        if in_child(go) != KILLED:
            break
        number += 1
        withdraw(copy, patient, "keep")
        assert (copy.kinds, copy.changed) == (WHOLE, ""), f"killed after {number} changes"
        assert excluded(copy) == both({copy.pseudonym(patient)})
        assert first_problem(copy.registry) is None
    assert number > 20


def test_a_patient_whom_nobody_knows_is_refused_and_nothing_is_written(
    clinic: Clinic, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = clinic.registry.log.read()
    assert command(monkeypatch, "Zaphod Canary 999") == 2
    said = capsys.readouterr().err
    assert "no batch has images of this patient" in said
    assert "Canary" not in said
    for text in ("", "one\ntwo"):
        assert command(monkeypatch, text) == 2
        assert "lines on stdin; expected one" in capsys.readouterr().err
    assert clinic.registry.log.read() == before


def test_a_mark_is_always_the_same_for_the_log_keeps_it() -> None:
    """By openssl: printf ace/withdrawal/0123456789abcdef | openssl dgst -sha256 -mac HMAC -macopt hexkey:KEY."""
    key = IdKey(bytes.fromhex(KEY), is_public=False)
    assert mark_of("0123456789abcdef", key) == "b200c8c075986a7f8025036a1fea47716d84c7e5629f22e4dfafd1eebd84ea25"


def test_options_that_would_do_nothing_are_refused(clinic: Clinic, capsys: pytest.CaptureFixture[str]) -> None:
    decision = ("--action", "keep", "--why", "one of many")
    for words, said in (
        (("--list", "--erase"), "--erase and --received go with the withdrawal"),
        (("--trace", "--erase"), "--erase and --received go with the withdrawal"),
        (("--settle", "3", "--erase", *decision), "--erase and --received go with the withdrawal"),
        (("--settle", "3", "--received", "2026-11-01", *decision), "--erase and --received go with the withdrawal"),
        (("--list", *decision), "decide about no model"),
        (("--trace", *decision), "decide about no model"),
    ):
        assert main("withdraw", *words) == 2
        assert said in capsys.readouterr().err
    assert clinic.kinds == []


def test_another_decision_names_its_versions(clinic: Clinic) -> None:
    withdraw(clinic, clinic.patients("train")[0], "retire")
    (number,) = clinic.withdrawals.known()
    keep, same = Decision("keep", "the board has met again"), Decision("retire", "as the board has decided")
    with pytest.raises(OperationsError, match=r"all its models are decided about; .*: --version v1"):
        list(clinic.withdrawals.settle(number, keep, ANNA))
    list(clinic.withdrawals.settle(number, same, ANNA))
    list(clinic.withdrawals.settle(number, Decision("keep", keep.why, (1,)), ANNA))
    assert clinic.withdrawals.known()[number].action(1) == "keep"


def test_the_same_id_at_another_site_is_another_person(clinic: Clinic) -> None:
    patient = clinic.patients("train")[0]
    path = clinic.root / f"batches/{SECOND}.yaml"
    path.write_text(path.read_text().replace("site: clinic", "site: elsewhere"))
    clinic.commit("another site")
    with pytest.raises(OperationsError, match=r"of the sites 'clinic', 'elsewhere'.*--site NAME"):
        withdraw(clinic, patient)
    with pytest.raises(OperationsError, match="--site NAME"):
        clinic.withdrawals.pseudonym(Patient(identifier=patient, site="nowhere"))
    found = {site: clinic.withdrawals.pseudonym(Patient(patient, site=site)) for site in ("clinic", "elsewhere")}
    assert found["clinic"] == clinic.pseudonym(patient) != found["elsewhere"]


def test_letters_are_composed_before_they_are_hashed(clinic: Clinic) -> None:
    found = {clinic.withdrawals.pseudonym(Patient(name)) for name in ("Mu\u0308ller", "M\u00fcller")}
    assert len(found) == 1


def test_a_pseudonym_does_as_well_and_a_patient_who_was_only_measured_leaves_nothing_to_decide(
    clinic: Clinic, monkeypatch: pytest.MonkeyPatch
) -> None:
    pseudonym = clinic.pseudonym(clinic.patients("test")[0])
    assert main("withdraw", "--pseudonym", pseudonym) == 0
    assert clinic.kinds == ["withdrawal_received", "withdrawal_excluded", "withdrawal_completed"]
    assert clinic.withdrawals.known()[3].versions == []
    assert excluded(clinic) == both({pseudonym})


def test_a_retired_version_is_accepted_no_more_and_the_withdrawal_waits_for_another(clinic: Clinic) -> None:
    withdraw(clinic, clinic.patients("train")[0], "retire")
    (todo,) = clinic.withdrawals.known()[3].todo(clinic.registry.events())
    assert todo == "v1 is to be retired and is the accepted model: promote or roll back to another one"
    clinic.train("without the patient")
    assert clinic.registry.promote(ANNA).name == "v2"
    assert clinic.kinds == WHOLE
    for decide in (lambda: clinic.registry.promote(ANNA, 1), lambda: clinic.registry.rollback(1, ANNA, "better")):
        with pytest.raises(OperationsError, match="event 5 retires it: as the board has decided"):
            decide()
    assert clinic.registry.served == "v2"
    list(clinic.withdrawals.settle(3, Decision("keep", "the board decides again", (1,)), ANNA))
    assert clinic.registry.rollback(1, ANNA, "better").name == "v1"
    assert first_problem(clinic.registry) is None


@pytest.mark.slow
def test_a_model_that_was_trained_with_a_withdrawn_patient_is_not_registered(clinic: Clinic) -> None:
    one, other = clinic.patients("train")[:2]
    withdraw(clinic, one)
    (clinic.root / "data/shards" / SECOND / "quality.png").touch()
    clinic.train("without one patient")
    withdraw(clinic, other)
    with pytest.raises(OperationsError, match=r"trained with a patient who has withdrawn since \(event 5\)"):
        clinic.registry.promote(ANNA)
    assert len(clinic.withdrawals.known()) == 2
    clinic.train("without both")
    assert clinic.registry.promote(ANNA).name == "v2"


def test_a_model_without_a_list_of_its_images_is_taken_for_one_that_was_trained_with_the_patient(
    clinic: Clinic,
) -> None:
    train = clinic.root / "train.py"
    start = {"teacher": sha256_of(clinic.models / "v1" / "training_images.csv")}
    (clinic.root / "made.json").write_text(config_text(start_from=start))
    lines = [line.replace('"{}"', 'Path("made.json").read_text()') for line in train.read_text().splitlines()]
    train.write_text("\n".join(line for line in lines if "write_lineage(" not in line) + "\n")
    measure = clinic.root / "dvc.yaml"
    measure.write_text(
        measure.read_text()
        .replace("training_images.csv", "README.md")
        .replace("python train.py", "true && python train.py")
    )
    clinic.train("a model without a list")
    clinic.registry.promote(ANNA)
    (patient, *_), (tested, *_) = clinic.patients("train"), clinic.patients("test")
    found = clinic.withdrawals.trace(Patient(tested)).versions
    assert dict(found) == {2: f"has no training_images.csv, and was made from {FIRST}, {SECOND}"}
    assert set(clinic.withdrawals.trace(Patient(patient)).versions) == {1, 2}
    assert clinic.withdrawals.trace(Patient(patient)).versions[2] == "started from v1"
    (clinic.root / "made.json").write_text(config_text(format_version=2))
    (clinic.root / "dvc.yaml").write_text(measure.read_text().replace("true && ", "true && true && "))
    clinic.train("a model of a format that is not read any more")
    clinic.registry.promote(ANNA)
    how = clinic.withdrawals.trace(Patient(patient)).versions[3]
    assert how.startswith("has no training_images.csv, and its config.json, which says what it started from, cannot be")


def test_an_exclusion_that_was_undone_is_found_and_made_again(clinic: Clinic) -> None:
    patient = clinic.patients("train")[0]
    withdraw(clinic, patient, "keep")
    files = Project(clinic.root / "params.yaml", clinic.root / "dvc.yaml")
    exclude_images(SECOND, [], [clinic.pseudonym(patient)], files, undo=True)
    clinic.commit("by mistake")
    problem = first_problem(clinic.registry)
    assert problem is not None
    assert problem.startswith(f"{SECOND}: has images of a patient who has withdrawn")
    withdraw(clinic, patient)
    assert excluded(clinic) == both({clinic.pseudonym(patient)})
    assert clinic.changed == ""
    assert first_problem(clinic.registry) is None


def test_a_commit_that_is_gone_is_missed_by_the_audit(clinic: Clinic) -> None:
    withdraw(clinic, clinic.patients("train")[0], "keep")
    git(clinic.root, "commit", "--quiet", "--amend", "-m", "history was changed")
    problem = first_problem(clinic.registry)
    assert problem is not None
    assert "not in the history of this branch, and event 4 names it" in problem


def test_nothing_is_withdrawn_beside_a_retraining_or_over_a_persons_changes(
    clinic: Clinic, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    patient = clinic.patients("train")[0]
    with running(clinic.root):
        assert command(monkeypatch, patient) == 75
    assert "a retraining is at work" in capsys.readouterr().err
    with Deliveries.open(clinic.root / "params.yaml").locked():
        assert command(monkeypatch, patient) == 75
    (clinic.root / "train.py").write_text("# mine\n")
    with pytest.raises(OperationsError, match=r"modified: train\.py"):
        withdraw(clinic, patient)
    git(clinic.root, "restore", "train.py")
    clinic.registry.log.append(BEGAN, {"run_key": "0" * 64}, actor=ANNA, now=clinic.clock())
    with pytest.raises(OperationsError, match=r"has not ended.*retrain abandon"):
        withdraw(clinic, patient)
    assert clinic.kinds == []


def test_what_came_later_is_a_withdrawal_of_its_own(clinic: Clinic, monkeypatch: pytest.MonkeyPatch) -> None:
    assert command(monkeypatch, id_of(0), "--received", "2999-01-01") == 2
    patient = clinic.patients("train")[0]
    text = (clinic.root / "params.yaml").read_text()
    without = keep_items(keep_items(text, "batches", [FIRST]), "mix", [FIRST])
    (clinic.root / "params.yaml").write_text(without)
    clinic.commit("without the second batch")
    withdraw(clinic, patient, "keep")
    (clinic.root / "params.yaml").write_text(text)
    clinic.commit("with it")
    problem = first_problem(clinic.registry)
    assert problem is not None
    assert problem.startswith(f"{SECOND}: has images")
    withdraw(clinic, patient)
    first, second = clinic.withdrawals.known().values()
    assert (first.batches, second.batches) == ([FIRST], [SECOND])
    assert (first.versions, second.versions) == ([1], [])
    assert first_problem(clinic.registry) is None


def test_images_that_are_delivered_after_a_withdrawal_are_excluded_with_their_acceptance(
    clinic: Clinic, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(deliveries_module, "repro", build_here)
    patient, other = clinic.patients("train")[:2]
    withdraw(clinic, patient, "keep")
    capsys.readouterr()
    folder = deliver(clinic.root / "incoming/March", range(200, 230))
    rows = [(f"{seed:04}.png", id_of(seed), "PA") for seed in range(200, 228)]
    write_csv(
        folder / "labels.csv",
        ("path", "patient", "view"),
        [*rows, ("0228.png", patient, "PA"), ("0229.png", other, "PA")],
    )

    def run() -> list[str]:
        return list(Deliveries.open(clinic.root / "params.yaml").run())

    assert run()[-1] == "clinic-b002: accepted"
    said = capsys.readouterr()
    assert "images of 1 patient excluded from other batches" in said.err
    assert clinic.pseudonym(patient) not in said.out + said.err, "Dagster keeps what a service prints"
    name = "clinic-b002"
    assert clinic.changed == ""
    assert read_exclusion(name, clinic.root).patients == {clinic.pseudonym(patient)}
    changed = git(clinic.root, "show", "--format=%s", "--name-only").splitlines()
    assert changed[0] == "Batch clinic-b002 is accepted"
    assert f"batches/{name}.exclude.yaml" in changed
    assert f"batches/{name}.exclude.yaml" in (clinic.root / "dvc.yaml").read_text()
    assert first_problem(clinic.registry) is None
    own = clinic.index(name).keys(clinic.index(name).select("train"))[0]
    exclude_images(name, [own], project=Project(clinic.root / "params.yaml", clinic.root / "dvc.yaml"))
    clinic.commit("and one image")
    for verdict in ("refused", "accepted"):
        list(Deliveries.open(clinic.root / "params.yaml").overrule(name, verdict, ANNA, "I looked at them"))
        assert clinic.changed == ""
        assert (clinic.root / f"batches/{name}.exclude.yaml").is_file() == (verdict == "accepted")
    assert read_exclusion(name, clinic.root).keys == {own}
    assert read_exclusion(name, clinic.root).patients == {clinic.pseudonym(patient)}
    assert first_problem(clinic.registry) is None


def test_a_withdrawal_that_was_killed_is_not_complete_whatever_is_decided_meanwhile(
    clinic: Clinic, monkeypatch: pytest.MonkeyPatch
) -> None:
    patient = clinic.patients("test")[0]
    with monkeypatch.context() as patch:
        die_at(("append", "withdrawal_received"), patch, is_before=False)
        with pytest.raises(KeyboardInterrupt):
            withdraw(clinic, patient)
    clinic.registry.promote(ANNA)
    assert clinic.kinds == ["withdrawal_received"]
    (todo,) = read_status(clinic.root, clinic.models, None).withdrawals.values()
    assert todo == ["the images are not excluded everywhere: give the same command again"]
