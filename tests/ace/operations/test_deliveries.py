import json
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import ace.operations.deliveries as module
from ace.__main__ import build_parser
from ace.config import use
from ace.operations.attempts import Attempts
from ace.operations.audit import first_problem
from ace.operations.clone import Clone
from ace.operations.deliveries import Deliveries
from ace.operations.due import unfinished
from ace.operations.errors import BusyError, HeldDeliveryError, OperationsError
from ace.operations.incoming import Arriving, arriving
from ace.operations.registry import Registry
from ace.operations.tags import read_events
from shards.cli import run_command
from shards.core.errors import ConfigError
from tests.ace.operations.delivered import (
    MEASURED,
    chest,
    copy_built,
    deliver,
    deliveries_of,
    lines_of_log,
    load,
    make_built,
    mixed,
    status,
)
from tests.ace.operations.service import ANNA
from tests.support.checkout import ROOT, copy_project, git
from tests.support.datasets import write_csv

NEW, YET_NEWER = range(100, 130), range(200, 230)
QUARANTINED = "clinic-b001.quarantine.csv"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project once for all tests of this file, and its key beside it."""
    root = tmp_path_factory.mktemp("service")
    make_built(root)
    return root


@pytest.fixture
def project(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, whose shards are built in the tests' own process."""
    return copy_built(made, tmp_path / "service", monkeypatch)


def run(project: Path, now_s: float | None = None) -> list[str]:
    return list(deliveries_of(project).run(now_s))


def overrule(project: Path, name: str, verdict: Any) -> list[str]:
    return list(deliveries_of(project).overrule(name, verdict, ANNA, "I looked at them"))


def states(project: Path) -> dict[str, str]:
    return {delivery.name: delivery.state for delivery in deliveries_of(project).taken()}


def report(project: Path, name: str = "clinic-b001") -> dict[str, Any]:
    (path,) = project.glob(f"*/{name}/report.json")
    assert path.with_suffix(".txt").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def failed(project: Path) -> list[str]:
    return [item["check"] for item in report(project)["findings"] if not item["passed"]]


def assert_as_committed(project: Path) -> None:
    """Nothing is left of a batch that was refused."""
    assert status(project) == ""
    assert git(project, "log", "--format=%s").splitlines() == ["the project"]
    assert not list((project / "data").glob("*/clinic-b001*"))


def test_a_complete_folder_becomes_an_accepted_batch_in_one_commit(project: Path) -> None:
    deliver(project / "incoming" / "March", NEW)
    assert run(project) == ["clinic-b001: taken from incoming/March", "clinic-b001: accepted"]
    assert status(project) == ""
    changed = git(project, "show", "--format=%s", "--name-only").split("\n")
    assert changed[0] == "Batch clinic-b001 is accepted"
    assert sorted(filter(None, changed[1:])) == ["batches/clinic-b001.yaml", "dvc.lock", "dvc.yaml", "params.yaml"]
    assert mixed(project) == [MEASURED, "clinic-b001"]
    assert "data/shards/clinic-b001" in load(project / "dvc.yaml")["stages"]["pretrain"]["deps"]
    assert states(project) == {"clinic-b001": "accepted"}
    assert not list((project / "incoming").iterdir())
    assert report(project)["verdict"] == "accepted"
    assert failed(project) == []
    steps = [line["step"] for line in deliveries_of(project).taken()[0].attempts.read() if "finished" in line]
    assert steps == ["move", "check", "register", "build", "judge", "accept"]
    assert run(project) == []


def test_a_run_tells_nobody_to_take_the_next_step(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    deliver(project / "incoming" / "March", NEW)
    run(project)
    said = capfd.readouterr().err
    assert "registered: clinic-b001, 30 images" in said
    assert re.findall(r"`.*?`|now run", said) == []


def test_a_warning_of_a_run_names_settings_instead_of_options(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    params = project / "params.yaml"
    params.write_text(params.read_text("utf-8").replace("name: clinic", "name: north"), encoding="utf-8")
    git(project, "commit", "--quiet", "--all", "--message", "another name")
    march, may = (deliver(project / "incoming" / name, seeds) for name, seeds in (("March", NEW), ("May", YET_NEWER)))
    write_csv(march / "labels.csv", ("path", "patient"), [(f"{seed:04}.png", f"patient {seed - 100}") for seed in NEW])
    write_csv(may / "labels.csv", ("path",), [(f"{seed:04}.png",) for seed in YET_NEWER])
    run(project)
    said = capfd.readouterr().err
    assert "take the batch out (`python -m ace deliveries refuse north-b000`), have it sent again with " in said
    assert "operations.deliveries.site: clinic\n" in said
    assert "in the column patient of a CSV (operations.deliveries.labels) or by patient_from" in said
    assert not re.search(r" --\w", said)


def test_the_log_names_the_commit_and_the_bytes_that_show_a_decision(project: Path) -> None:
    deliver(project / "incoming" / "March", NEW)
    run(project)
    assert lines_of_log(project) == [("clinic-b001", "accepted", "the checks")]
    (event,) = read_events(project)
    assert event.facts["commit"] == git(project, "rev-parse", "HEAD").strip()
    assert event.facts["legal_basis"] == "research consent, form 3"
    report = "deliveries/clinic-b001/report.json"
    assert set(event.files) == {"batches/clinic-b001.yaml", "data/manifests/clinic-b001.jsonl", report}
    registry = Registry(clone=Clone(project), models=project.parent / "served")
    git(project, "commit", "--quiet", "--amend", "--message", "another")
    assert f"commit {event.facts['commit']}: not in the history" in str(first_problem(registry))
    (project / report).write_text("{}")
    assert f"{report}: has the sha256" in str(first_problem(registry))


def test_a_delivery_keeps_the_legal_basis_that_was_stated_when_it_came(project: Path) -> None:
    deliver(project / "incoming" / "March", NEW)
    run(project)
    params = project / "params.yaml"
    params.write_text(params.read_text().replace("research consent, form 3", "research consent, form 4"))
    git(project, "commit", "--quiet", "--all", "--message", "from now on form 4")
    overrule(project, "clinic-b001", "accepted")
    assert [event.facts["legal_basis"] for event in read_events(project)] == ["research consent, form 3"] * 2
    deliver(project / "incoming" / "April", YET_NEWER)
    run(project)
    assert read_events(project)[-1].facts["legal_basis"] == "research consent, form 4"


def test_a_folder_without_the_marker_is_taken_when_nothing_in_it_has_changed_for_long(project: Path) -> None:
    folder = deliver(project / "incoming" / "March", NEW, is_complete=False)
    (project / "incoming" / "empty").mkdir()
    for path in folder.iterdir():
        os.utime(path, (0, 0))  # as a copy that keeps the times of the files

    def taken_after(seconds: float) -> list[str]:
        arriving = deliveries_of(project).arriving(time.time() + seconds)
        return [item.path.name for item in arriving if item.is_complete]

    assert taken_after(590) == []
    assert taken_after(610) == ["March"]
    (folder / "0100.png").touch()
    assert taken_after(590) == []
    assert "empty: empty" in [f"{item.path.name}: {item.text}" for item in deliveries_of(project).arriving(0)]


def test_a_folder_that_was_written_while_the_clock_was_ahead_says_so_and_a_touch_lets_it_settle(project: Path) -> None:
    folder = deliver(project / "incoming" / "March", NEW[:1], is_complete=False)
    month = 30 * 86400

    def seen(now_s: float, settling: dict[str, float]) -> Arriving:
        (item,) = arriving(project / "incoming", 600, now_s, settling)
        return item

    now_s = time.time()
    item = seen(now_s - month, {})  # as after the clock was set back by a month
    assert not item.is_complete
    assert re.fullmatch(r"changed at a time that is 25920\d\d s ahead of the clock, without _COMPLETE", item.text)
    os.utime(folder)
    assert seen(now_s + 300, {"March": now_s + month}).text.startswith("unchanged for 300 of 600 s"), "it is looked at"
    assert seen(now_s + 700, {"March": now_s + month}).is_complete


def test_a_list_has_each_word_below_its_header(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("March", "March, the rest"):
        deliver(project / "incoming" / name, NEW[:1])
    assert run_command(build_parser(), ["deliveries", "list", "--params", str(project / "params.yaml")]) == 0
    header, _, *lines = capsys.readouterr().out.splitlines()
    for head, cell in (("delivered as", "March"), ("state", "incoming"), ("what happened last", "complete")):
        assert [line[header.index(head) :].startswith(cell) for line in lines] == [True, True]


def link_out(folder: Path) -> None:
    (folder / "0.png").symlink_to("../../../first/0001.png")


def link_to_a_folder_outside(folder: Path) -> None:
    (folder / "more").symlink_to("../../../first")


def link_by_an_absolute_path(folder: Path) -> None:
    (folder / "0.png").symlink_to(folder / "0100.png")


def pipe(folder: Path) -> None:
    os.mkfifo(folder / "pipe.png")


def control(folder: Path) -> None:
    (folder / "0\n1.png").write_bytes(b"")


def link_instead_of_a_folder(folder: Path) -> None:
    folder.rename(folder.parents[1] / "elsewhere")
    folder.symlink_to("../elsewhere")


def path_out(folder: Path) -> None:
    with (folder / "labels.csv").open("a", encoding="utf-8") as file:
        file.write("../../../first/0001.png,patient 1,PA\n")


def no_labels(folder: Path) -> None:
    (folder / "labels.csv").unlink()


def damage(folder: Path) -> None:
    for image in folder.glob("*.png"):
        image.write_bytes(b"no image")


def blank(folder: Path) -> None:
    for number, path in enumerate(folder.glob("*.png")):
        Image.new("L", (64, 64), 250 + number % 4).save(path)


def misplace_labels(folder: Path) -> None:
    (folder / "more").mkdir()
    for image in folder.glob("*.png"):
        image.rename(folder / "more" / image.name)


def test_a_dvc_lock_that_was_half_written_is_that_of_the_last_commit(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (project / "dvc.lock").read_text(encoding="utf-8")

    def killed(stage: str, root: Path, log: Path) -> str:
        (root / "dvc.lock").write_text(f"{before}  {stage}:\n    cm", encoding="utf-8")
        return "killed"

    deliver(project / "incoming" / "March", NEW[:3])
    monkeypatch.setattr(module, "repro", killed)
    with pytest.raises(HeldDeliveryError):
        run(project)
    monkeypatch.setattr(module, "repro", lambda *_: "No space left on device")
    with pytest.raises(HeldDeliveryError):
        run(project)
    assert (project / "dvc.lock").read_text(encoding="utf-8") == before


def test_an_accepted_batch_that_is_measured_on_cannot_be_refused(project: Path) -> None:
    (project / "deliveries" / MEASURED).mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"measured on, by evaluate\.batch"):
        overrule(project, MEASURED, "refused")
    assert not list((project / "deliveries" / MEASURED).iterdir())


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        (link_out, "1 symbolic links that lead out of it"),
        (link_to_a_folder_outside, "1 symbolic links that lead out of it"),
        (link_by_an_absolute_path, "1 symbolic links that lead out of it"),
        (pipe, "1 devices, pipes or sockets"),
        (control, "1 names with control characters"),
        (path_out, "leaves the folder"),
        (no_labels, "found no labels.csv"),
    ],
)
def test_a_delivery_that_reaches_out_of_its_folder_is_refused_with_the_cause(
    fault: Callable[[Path], None], cause: str, project: Path
) -> None:
    fault(deliver(project / "incoming" / "March", NEW[:3]))
    before = {path: path.read_bytes() for path in (project.parent / "first").rglob("*") if path.is_file()}
    lines = run(project)
    assert len(lines) == 2
    assert cause in lines[1]
    assert cause in report(project)["cause"]
    assert states(project) == {"clinic-b001": "refused"}
    assert (project / "quarantine" / "clinic-b001" / "images" / "0101.png").is_file()
    assert before == {path: path.read_bytes() for path in (project.parent / "first").rglob("*") if path.is_file()}
    assert_as_committed(project)
    assert run(project) == []


def test_a_link_in_incoming_is_not_taken(project: Path) -> None:
    link_instead_of_a_folder(deliver(project / "incoming" / "March", NEW[:3]))
    assert run(project) == []
    assert states(project) == {}


def test_a_delivery_of_copies_alone_is_refused(project: Path) -> None:
    shutil.copytree(project.parent / "first", project / "incoming" / "again")
    assert "nothing to add: found 40 images, all of earlier batches" in run(project)[-1]
    assert_as_committed(project)


def test_images_that_were_stored_again_are_refused(project: Path) -> None:
    folder = deliver(project / "incoming" / "March", NEW)
    for seed in range(30):
        Image.fromarray(chest(seed, size=64)).resize((60, 60)).save(folder / f"{100 + seed:04}.png")
    run(project)
    assert failed(project) == ["near_copies"]
    assert_as_committed(project)


def test_a_delivery_without_anything_to_see_is_refused(project: Path) -> None:
    blank(deliver(project / "incoming" / "March", NEW[:8]))
    assert "images cannot be used" in run(project)[-1]
    assert_as_committed(project)


def test_negatives_are_refused_and_a_person_may_accept_them_and_refuse_them_again(project: Path) -> None:
    before = {name: (project / name).read_text(encoding="utf-8") for name in ("params.yaml", "dvc.yaml", "dvc.lock")}
    deliver(project / "incoming" / "March", NEW, is_negative=True)
    run(project)
    assert "likeness" in failed(project)
    assert_as_committed(project)

    said = overrule(project, "clinic-b001", "accepted")
    assert said == ["clinic-b001: Anna <anna@example.org> says accepted: I looked at them", "clinic-b001: accepted"]
    assert mixed(project) == [MEASURED, "clinic-b001"]
    assert states(project) == {"clinic-b001": "accepted"}
    assert "likeness" in failed(project)

    assert overrule(project, "clinic-b001", "accepted") == said
    assert unfinished(project) == [], "what is confirmed asks for no run"

    assert overrule(project, "clinic-b001", "refused")[-1] == "clinic-b001: refused: I looked at them"
    assert states(project) == {"clinic-b001": "refused"}
    assert unfinished(project) == []
    assert mixed(project) == [MEASURED]
    assert status(project) == ""
    assert before == {name: (project / name).read_text(encoding="utf-8") for name in before}
    assert not list((project / "data").glob("*/clinic-b001*"))
    assert run(project) == []
    assert lines_of_log(project) == [
        ("clinic-b001", "refused", "the checks"),
        ("clinic-b001", "accepted", ANNA.name),
        ("clinic-b001", "accepted", ANNA.name),
        ("clinic-b001", "refused", ANNA.name),
    ]
    last = read_events(project)[-1]
    assert (last.automatic, last.facts["why"]) == (False, "I looked at them")
    names = ("clinic-b001.yaml", "clinic-b001.jsonl", "report.json")
    assert set(last.files) == {f"quarantine/clinic-b001/{name}" for name in names}


def test_nobody_can_accept_what_cannot_be_read(project: Path) -> None:
    pipe(deliver(project / "incoming" / "March", NEW[:3]))
    run(project)
    command = ["clinic-b001", "--why", "I looked at them", "--params", str(project / "params.yaml")]
    assert run_command(build_parser(), ["deliveries", "accept", *command]) == 1
    assert states(project) == {"clinic-b001": "refused"}
    assert run(project) == []
    assert lines_of_log(project) == [("clinic-b001", "refused", "the checks")] * 2
    assert run_command(build_parser(), ["deliveries", "refuse", *command]) == 0
    assert_as_committed(project)


def test_no_name_is_given_again_of_which_a_batch_file_is_left(project: Path) -> None:
    (project / "batches/clinic-b007.yaml").touch()
    deliver(project / "incoming" / "March", NEW)
    assert run(project)[0] == "clinic-b008: taken from incoming/March"


def test_a_refusal_is_told_in_a_line_with_its_reason(project: Path) -> None:
    damage(deliver(project / "incoming" / "March", NEW[:3]))
    assert "/images: looked at 3 images, none can be read: 3 none of the kinds of image" in run(project)[-1]


@pytest.mark.parametrize(
    ("fault", "places"),
    [(damage, ["images"]), (misplace_labels, ["images/labels.csv", "images/more", "images"]), (blank, [QUARANTINED])],
)
def test_a_refusal_names_places_that_are_there_once_the_delivery_is_refused(
    fault: Callable[[Path], None], places: list[str], project: Path
) -> None:
    fault(deliver(project / "incoming" / "March", NEW[:8]))
    run(project)
    named = re.findall(rf"{project}/[^\s:;,]+", report(project)["cause"])
    assert named == [str(project / "quarantine" / "clinic-b001" / place) for place in places]
    assert all(Path(path).exists() for path in named)


def test_a_decision_whose_line_was_not_written_is_in_the_log_before_a_person_decides_otherwise(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deliver(project / "incoming" / "March", NEW)
    with monkeypatch.context() as patch:
        patch.setattr(module, "log_decision", lambda *_: None)
        run(project)
    overrule(project, "clinic-b001", "refused")
    assert lines_of_log(project) == [("clinic-b001", "accepted", "the checks"), ("clinic-b001", "refused", ANNA.name)]


def test_a_delivery_whose_shards_cannot_be_built_holds_back_the_next_one_and_its_files_are_the_services(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deliver(project / "incoming" / "March", NEW)
    deliver(project / "incoming" / "may", range(200, 203))
    monkeypatch.setattr(module, "repro", lambda *_: "No space left on device")
    for _ in range(2):
        with pytest.raises(HeldDeliveryError, match="No space left on device"):
            run(project)
        assert states(project) == {"clinic-b001": "registered"}
    registered = (project / "params.yaml").read_text(encoding="utf-8")
    edited = f"{registered}# somebody's edit\n"
    (project / "params.yaml").write_text(edited, encoding="utf-8")
    with pytest.raises(OperationsError, match=r"tracked files are modified: params\.yaml"):
        run(project)
    assert (project / "params.yaml").read_text(encoding="utf-8") == edited
    (project / "params.yaml").write_text(registered, encoding="utf-8")
    overrule(project, "clinic-b001", "refused")
    with pytest.raises(HeldDeliveryError, match="No space left on device"):  # of the next one, in its turn
        run(project)
    assert states(project) == {"clinic-b001": "refused", "clinic-b002": "registered"}


def test_patients_whom_the_evaluation_measures_are_not_trained_on(project: Path) -> None:
    """A site that hashes its patients otherwise would be such a case; here the measured split is the training's."""
    text = (project / "params.yaml").read_text(encoding="utf-8")
    (project / "params.yaml").write_text(text.replace("split: test", "split: train"), encoding="utf-8")
    git(project, "commit", "--quiet", "--all", "--message", "the project", "--amend")
    folder = deliver(project / "incoming" / "March", NEW)
    labels = (folder / "labels.csv").read_text(encoding="utf-8").replace("patient 1", "patient ")
    (folder / "labels.csv").write_text(labels, encoding="utf-8")
    run(project)
    assert failed(project) == ["measured_patients"]


def test_a_modified_file_is_named_and_nothing_is_done(project: Path) -> None:
    deliver(project / "incoming" / "March", NEW)
    with (project / "dvc.yaml").open("a", encoding="utf-8") as file:
        file.write("# somebody's edit\n")
    with pytest.raises(OperationsError, match=r"tracked files are modified: dvc\.yaml"):
        run(project)
    assert states(project) == {}


def test_nothing_is_done_in_a_persons_checkout(project: Path) -> None:
    git(project, "switch", "--quiet", "--create", "main")
    deliver(project / "incoming" / "March", NEW)
    with pytest.raises(OperationsError, match=r"on the branch 'main'; .* only in the service's own clone"):
        run(project)
    Deliveries.open(project / "params.yaml", "main").clone.check()


def test_git_has_to_know_who_commits(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git(project, "config", "--unset", "user.email")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    for name in ("GIT_COMMITTER_EMAIL", "GIT_AUTHOR_EMAIL", "EMAIL"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(OperationsError, match="git does not know"):
        run(project)


def test_a_second_call_at_the_same_time_says_so_and_does_nothing(project: Path) -> None:
    deliver(project / "incoming" / "March", NEW)
    with deliveries_of(project).locked(), pytest.raises(BusyError, match="another call is at work"):
        run(project)
    assert states(project) == {}


def test_a_lock_of_a_git_that_was_killed_is_in_nobodys_way(project: Path) -> None:
    (project / ".git" / "index.lock").touch()
    (project / "dvc.yaml").write_text("stages: {}\n", encoding="utf-8")
    deliveries_of(project).clone.commit(["dvc.yaml"], "another one")
    assert git(project, "show", "HEAD:dvc.yaml") == "stages: {}\n"


def test_the_record_is_read_although_its_last_line_is_half_written(tmp_path: Path) -> None:
    record = Attempts(tmp_path / "attempts.jsonl")
    record.append({"overruled": "accepted"})
    with record.path.open("a", encoding="utf-8") as file:
        file.write('{"step": "bu')
    record.append({"step": "build"})
    assert record.read() == [{"overruled": "accepted"}, {"step": "build"}]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("settle_s: 60", "operations.deliveries.settle_s: .* greater than or equal to 600; found 60"),
        ("source: nih-chestxray14", "labels belongs to source folder or dicom; nih-chestxray14 brings its own"),
        ("setle_s: 900", "operations.deliveries.setle_s: unknown key; did you mean 'settle_s'?"),
    ],
)
def test_settings_that_cannot_be_are_refused(change: str, message: str, project: Path) -> None:
    with (project / "params.yaml").open("a", encoding="utf-8") as file:
        file.write(f"    {change}\n")
    with pytest.raises(ConfigError, match=message.replace("?", r"\?")):
        deliveries_of(project)


def test_a_project_without_the_section_is_told_what_to_write(project: Path) -> None:
    text = (project / "params.yaml").read_text(encoding="utf-8")
    (project / "params.yaml").write_text(text[: text.index("operations:")], encoding="utf-8")
    with pytest.raises(ConfigError, match=r"operations\.deliveries is empty; expected at least a name for the batches"):
        deliveries_of(project)


def test_another_configuration_leaves_the_service_alone(tmp_path: Path) -> None:
    copy_project(tmp_path)
    params = tmp_path / "params.yaml"
    text, count = re.subn(r"^  deliveries: .*$", "  deliveries: {name: clinic}", params.read_text("utf-8"), flags=re.M)
    assert count == 1
    params.write_text(text, encoding="utf-8")
    use("smoke", tmp_path / "params.yaml", ROOT / "configs")
    assert load(tmp_path / "params.yaml")["operations"]["deliveries"] == {"name": "clinic"}
