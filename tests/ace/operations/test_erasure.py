"""A patient's images are erased from a service with a real git, dvc and remote, and nothing of others is."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from dagster import DagsterInstance, job

import ace.operations.deliveries as deliveries_module
import ace.operations.erasure as module
from ace.operations.audit import first_problem
from ace.operations.deliveries import Deliveries
from ace.operations.dvc_objects import Stores
from ace.operations.erasure import Erasure, erase
from ace.operations.erasure_plan import Plan
from ace.operations.errors import OperationsError
from ace.operations.events import EventLog
from ace.operations.model_files import read_lock
from ace.operations.params import read_operations
from ace.operations.publishing import publish
from ace.operations.residue import pieces_of_samples
from ace.operations.withdrawal import Decision, Patient
from shards.checking.verify import verify_set
from shards.delivery.manifest import iterate_manifest
from shards.format.exclusion import read_exclusion
from shards.store.cache import CACHE_VARIABLE
from tests.ace.operations.delivered import deliver
from tests.ace.operations.service import ANNA
from tests.ace.operations.test_withdrawal import RECEIVED
from tests.ace.operations.withdrawn import (
    FIRST,
    SECOND,
    Clinic,
    add_stores,
    copy_clinic,
    dvc,
    id_of,
    make_clinic,
    rebuild,
    stale,
)
from tests.support.checkout import ROOT, git
from tests.support.datasets import write_csv

pytestmark = pytest.mark.slow
DELIVERED = "clinic-b002"


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A service that has published version 1 and has taken a delivery in since, with a copy of an earlier image."""
    folder = tmp_path_factory.mktemp("template") / "clinic"
    with pytest.MonkeyPatch.context() as patch:
        clinic = make_clinic(folder, patch)
        pin(clinic, clinic.fingerprint(FIRST))
        add_stores(clinic)
        patch.setattr(deliveries_module, "repro", rebuild)
        images = deliver(clinic.root / "incoming/March", range(200, 230))
        patient, other = clinic.patients("train")[:2]
        rows = [(f"{seed:04}.png", id_of(seed), "PA") for seed in range(200, 228)]
        shutil.copy(folder / FIRST / f"{int(patient.split()[-1]):04}.png", images / "again.png")
        mine = [("0228.png", patient, "PA"), ("again.png", patient, "PA")]
        write_csv(images / "labels.csv", ("path", "patient", "view"), [*rows, *mine, ("0229.png", other, "PA")])
        assert list(Deliveries.open(clinic.root / "params.yaml").run())[-1] == f"{DELIVERED}: accepted"
        list(publish(clinic.registry.clone, pauses_s=()))
    return folder


def pin(clinic: Clinic, fingerprint: str) -> None:
    """Freeze the first batch."""
    frozen = {"batch": FIRST, "fingerprint": fingerprint}
    gate = {"frozen": frozen, "figures": {"decompositionality": {"margin": 0.1}}}
    params = clinic.root / "params.yaml"
    params.write_text(params.read_text() + f"  gate: {json.dumps(gate)}\n")
    clinic.commit("a gate")


@pytest.fixture
def clinic(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clinic:
    made = copy_clinic(template, tmp_path / "clinic", monkeypatch)
    monkeypatch.setattr(module, "repro", rebuild)
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "clinic/cache"))
    return made


def run(clinic: Clinic, patient: str) -> list[str]:
    decision = Decision("keep", "as the board has decided")
    lines = list(clinic.withdrawals.withdraw(Patient(patient), RECEIVED, ANNA, decision))
    return [*lines, *erase(clinic.withdrawals, Patient(patient), ANNA)]


def manifest(clinic: Clinic, name: str) -> list[str]:
    return (clinic.root / f"data/manifests/{name}.jsonl").read_text().splitlines()


def files_with(folder: Path, texts: list[bytes]) -> list[Path]:
    return [
        path
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink() and any(text in path.read_bytes() for text in texts)
    ]


@job
def waiting() -> None:
    pass


def canceled_run(text: str) -> str:
    """Make a run of Dagster that has ended and says something."""
    with DagsterInstance.get() as instance:
        made = instance.create_run_for_job(waiting)
        instance.report_run_canceled(made, message=text)
        return str(made.run_id)


def try_something(clinic: Clinic) -> None:
    """Run a stage, and build shards, that no commit has: what they made is known to DVC's run cache alone."""
    path = clinic.root / "dvc.yaml"
    command = "cp models/ace/training_images.csv data/answers/trained"
    path.write_text(path.read_text().replace(command, f"cat data/shards/{FIRST}/*.tar > data/answers/trained"))
    dvc(clinic.root, "repro", "--quiet", "--single-item", "measure")
    git(clinic.root, "restore", "dvc.yaml", "dvc.lock")
    cache = clinic.root / ".dvc/cache"
    content = b"an earlier build " + b"".join(
        path.read_bytes() for path in (clinic.root / "data/shards").rglob("*.tar")
    )
    md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
    (cache / "files/md5" / md5[:2]).mkdir(exist_ok=True)
    (cache / "files/md5" / md5[:2] / md5[2:]).write_bytes(content)
    (cache / "runs/ab/abc").mkdir(parents=True)
    deps = read_lock(clinic.root, "HEAD")[f"shard@{FIRST}"]["deps"]
    entry = {"cmd": "build", "deps": deps, "outs": [{"path": f"data/shards/{FIRST}", "md5": md5}]}
    (cache / "runs/ab/abc/def").write_text(json.dumps(entry))


def test_nothing_of_the_patient_is_found_afterwards_and_others_are_as_they_were(
    clinic: Clinic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patient, other = clinic.patients("train")[:2]
    pseudonym, kept = clinic.pseudonym(patient), clinic.pseudonym(other)
    names = (FIRST, SECOND, DELIVERED)
    pieces = [piece for name in names for piece in pieces_of_samples(clinic.index(name), pseudonym)]
    theirs = [piece for name in names for piece in pieces_of_samples(clinic.index(name), kept)]
    assert len(pieces) >= 4
    folder = clinic.root.parent
    assert files_with(folder / "remote", [pieces[0]])
    before = {name: manifest(clinic, name) for name in names}
    cached = clinic.root.parent / "cache" / f"{clinic.index(FIRST).shards[0].sha256}.tar"
    cached.parent.mkdir()
    cached.touch()
    unfinished = folder / "scratch/shard/abc/train-000000.tar"
    unfinished.parent.mkdir(parents=True, exist_ok=True)
    unfinished.write_bytes(b"..." + pieces[0])
    other_work = folder / "scratch/pretrain/def/checkpoint"
    other_work.parent.mkdir(parents=True)
    other_work.write_bytes(b"weights")
    try_something(clinic)
    output = tmp_path / "dagster/storage/compute.err"
    output.parent.mkdir(parents=True)
    output.write_text(f"warning: --patient {pseudonym}")
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "dagster"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    told, untold = (canceled_run(text) for text in (f"as {pseudonym}", "of others"))

    lines = run(clinic, patient)

    assert "removed from Dagster: 1 run, and the output of 0 other runs" in lines
    with DagsterInstance.get() as instance:
        assert not instance.has_run(told)
        assert instance.has_run(untold)

    images = clinic.root / f"deliveries/{DELIVERED}/images"
    assert not (images / "0228.png").exists()
    assert not (images / "again.png").exists()
    assert (images / "0229.png").is_file()
    assert patient not in (images / "labels.csv").read_text()
    assert other in (images / "labels.csv").read_text()
    for place in (clinic.root, folder / "remote", folder / "cache", folder / "scratch"):
        assert not files_with(place, pieces), place
    runs = "".join(path.read_text() for path in (clinic.root / ".dvc/cache/runs").rglob("*") if path.is_file())
    (record,) = (clinic.root / "registry/erased").iterdir()
    assert runs
    assert not [md5 for md5 in record.read_text().split() if md5 in runs]
    assert not cached.exists()
    assert not unfinished.parent.exists()
    assert other_work.is_file()
    found = files_with(folder, [pseudonym.encode()])
    assert {path.read_bytes().splitlines()[0] for path in found} == {b"batch,key,patient"}
    for name in names:
        left = [line for line in before[name] if pseudonym not in line]
        assert manifest(clinic, name)[1:] == left[1:]
        assert iterate_manifest(clinic.root / f"data/manifests/{name}.jsonl")[0].num_images == len(left) - 1
        assert not read_exclusion(name, clinic.root)
        assert verify_set(clinic.root / "data/shards" / name) == []
    assert [piece for name in names for piece in pieces_of_samples(clinic.index(name), kept)] == theirs
    frozen = read_operations(clinic.root / "params.yaml").gate
    assert frozen is not None
    assert frozen.frozen.fingerprint == clinic.fingerprint(FIRST)
    assert clinic.changed == ""
    assert first_problem(clinic.registry) is None
    assert any("outside the service" in line for line in lines)
    (listed,) = (clinic.root / "data/manifests").glob("to-delete-*.txt")
    number = int(patient.split()[-1])
    expected = {(FIRST, number), (FIRST, 24 + number), (SECOND, 100 + number)}
    paths = [Path(line) for line in listed.read_text().splitlines()]
    assert {(path.parent.name, int(path.stem)) for path in paths} == expected
    assert all(path.is_file() for path in paths), "files of the user are listed and left"
    assert not Plan.path(clinic.root).exists()
    (erased,) = [event for event in clinic.registry.events() if event.kind == "erasure_completed"]
    assert pseudonym not in json.dumps(erased.facts)
    assert [text.split(",")[0] for text in erased.facts["left"]] == [
        "4 lists of training images in folders of models",
        "1 other file",
        "files of the patient outside the service",
        "the weights of v1 (keep)",
    ]
    (found_list,) = (clinic.root / "data/manifests").glob("found-*.txt")
    assert found_list.read_text() == f"{output}\n"


def test_an_erased_object_is_demanded_no_more_and_a_missing_one_still_is(clinic: Clinic) -> None:
    run(clinic, clinic.patients("train")[0])
    git(clinic.root, "update-ref", "-d", "refs/ace/published")  # so that version 1 is looked after again
    assert list(publish(clinic.registry.clone, pauses_s=()))[-1].startswith("commits:")
    clone = clinic.root.parent / "other/clone"
    clone.parent.mkdir()
    git(clone.parent, "clone", "--quiet", "--branch", "service", str(clinic.root.parent / "origin.git"), str(clone))
    dvc(clone, "remote", "modify", "--local", "store", "url", str(clinic.root.parent / "remote"))
    dvc(clone, "pull", "--quiet", "--allow-missing")
    assert (clone / f"data/shards/{DELIVERED}/index.json").is_file()
    assert stale(clone) <= {"pretrain", "measure", *(f"shard@{name}" for name in (FIRST, SECOND, DELIVERED))}
    clinic.train("without the patient")
    new = (clinic.root / "models/ace/training_images.csv").read_bytes()
    md5 = hashlib.md5(new, usedforsecurity=False).hexdigest()
    (clinic.root / ".dvc/cache/files/md5" / md5[:2] / md5[2:]).unlink()
    with pytest.raises(OperationsError, match="neither in DVC's cache nor at its remote"):
        list(publish(clinic.registry.clone, pauses_s=()))


def test_an_erasure_waits_for_a_run_of_dagster_that_has_something_of_the_patient(
    clinic: Clinic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patient = clinic.patients("train")[0]
    (tmp_path / "dagster").mkdir()
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "dagster"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    with DagsterInstance.get() as instance:
        at_work = instance.create_run_for_job(waiting, tags={"why": clinic.pseudonym(patient)})
        with pytest.raises(OperationsError, match=f"that have not ended: {at_work.run_id}. Wait for their end"):
            run(clinic, patient)
        assert Plan.path(clinic.root).exists()
        instance.report_run_canceled(at_work)
        run(clinic, patient)
        assert not instance.has_run(at_work.run_id)
    assert not Plan.path(clinic.root).exists()
    (erased,) = [event for event in clinic.registry.events() if event.kind == "erasure_completed"]
    assert not [text for text in erased.facts["left"] if "other file" in text]


STEPS = (
    "_forget_rows",
    "_register",
    "_build",
    "_unexclude",
    "_pin_frozen",
    "_drop_derived",
    "_commit",
    "_remove_files",
    "_clear_caches",
)


def test_an_erasure_that_is_killed_after_each_of_its_steps_is_finished_by_the_same_command(
    clinic: Clinic, monkeypatch: pytest.MonkeyPatch
) -> None:
    patient, other = clinic.patients("train")[:2]
    pseudonym = clinic.pseudonym(patient)
    pieces = pieces_of_samples(clinic.index(FIRST), pseudonym)
    for step in STEPS:
        with monkeypatch.context() as patch:
            whole = getattr(Erasure, step)

            def dying(*arguments: Any, whole: Callable[..., Any] = whole) -> None:
                whole(*arguments)
                raise KeyboardInterrupt

            patch.setattr(Erasure, step, dying)
            with pytest.raises(KeyboardInterrupt):
                run(clinic, patient)
    for kind in ("remove", "append"):
        with monkeypatch.context() as patch:
            target = {"remove": Stores, "append": EventLog}[kind]
            call = getattr(target, kind)

            def late(*arguments: Any, call: Callable[..., Any] = call, **options: Any) -> None:
                call(*arguments, **options)
                raise KeyboardInterrupt

            patch.setattr(target, kind, late)
            with pytest.raises(KeyboardInterrupt):
                run(clinic, patient)
    with pytest.raises(OperationsError, match="is of another patient"):
        run(clinic, other)
    run(clinic, patient)
    kinds = [event.kind for event in clinic.registry.events() if event.kind.startswith("erasure")]
    assert kinds == ["erasure_began", "erasure_completed"]
    assert clinic.changed == ""
    assert first_problem(clinic.registry) is None
    for folder in (clinic.root, clinic.root.parent / "remote"):
        assert not files_with(folder, pieces)
        assert not [path for path in files_with(folder, [pseudonym.encode()]) if path.name.endswith(("jsonl", "txt"))]
    before = clinic.registry.log.read()
    (erased,) = [event for event in clinic.registry.events() if event.kind == "erasure_completed"]
    assert run(clinic, patient)[-1] == f"withdrawal 4: erased by event {erased.sequence}"
    assert clinic.registry.log.read() == before


def test_a_second_patient_is_erased_from_what_the_first_erasure_has_built_and_from_a_refused_delivery(
    clinic: Clinic,
) -> None:
    one, other = clinic.patients("train")[:2]
    run(clinic, one)
    pseudonym = clinic.pseudonym(other)
    pieces = [piece for name in (FIRST, DELIVERED) for piece in pieces_of_samples(clinic.index(name), pseudonym)]
    list(Deliveries.open(clinic.root / "params.yaml").overrule(DELIVERED, "refused", ANNA, "the wrong scanner"))
    refused = clinic.root / "quarantine" / DELIVERED
    assert files_with(clinic.root, pieces[-1:]), "DVC's cache keeps the shards of a refused delivery"
    assert (refused / "images/0229.png").is_file()
    run(clinic, other)
    assert not (refused / "images/0229.png").exists()
    assert (refused / "images/0227.png").is_file()
    assert other not in (refused / "images/labels.csv").read_text()
    assert iterate_manifest(refused / f"{DELIVERED}.jsonl")[0].num_images == 28
    assert not files_with(refused, [pseudonym.encode()])
    assert not files_with(clinic.root, pieces)
    assert not files_with(clinic.root.parent / "remote", pieces)
    assert first_problem(clinic.registry) is None
    assert len(list((clinic.root / "registry/erased").iterdir())) == 2


def test_what_cannot_be_erased_is_refused_before_anything_is(clinic: Clinic, tmp_path: Path) -> None:
    patient = clinic.patients("train")[0]
    with pytest.raises(OperationsError, match="has not withdrawn"):
        list(erase(clinic.withdrawals, Patient(patient), ANNA))
    list(clinic.withdrawals.withdraw(Patient(patient), RECEIVED, ANNA))
    root = clinic.root / f"data/manifests/{SECOND}.root.txt"
    text = root.read_text()
    root.write_text(str(tmp_path / "gone"))
    with pytest.raises(OperationsError, match=f"{SECOND}: its images are not in .*gone"):
        list(erase(clinic.withdrawals, Patient(patient), ANNA))
    root.write_text(text)
    shutil.move(clinic.root.parent / "remote", tmp_path / "unmounted")
    with pytest.raises(OperationsError, match="DVC's remote cannot be reached"):
        list(erase(clinic.withdrawals, Patient(patient), ANNA))
    path = clinic.root / f"data/manifests/{SECOND}.jsonl"
    header, *lines = manifest(clinic, SECOND)
    (own,) = [line for line in lines if clinic.pseudonym(patient) in line]
    path.write_text(f"{header.replace(str(len(lines)), '1')}\n{own}\n")
    with pytest.raises(OperationsError, match=f"{SECOND} has images of this patient alone"):
        list(erase(clinic.withdrawals, Patient(patient), ANNA))
    assert not Plan.path(clinic.root).exists()
    assert clinic.changed == ""
