"""Models are accepted, served and taken back; clocks, kills, two at once and changed bytes do no harm."""

import json
import multiprocessing
import os
import random
import signal
import sys
from datetime import UTC, datetime
from pathlib import Path

import gto.api
import pytest

from ace.operations import history
from ace.operations.audit import first_problem
from ace.operations.clone import SCHEDULE
from ace.operations.errors import OperationsError
from ace.operations.tags import accepted_by_tags, read_tags
from tests.ace.operations.service import ANNA, Service
from tests.support.checkout import git

CONTEXT = multiprocessing.get_context("fork")


def test_a_promoted_model_is_registered_exported_read_only_and_served(service: Service) -> None:
    service.train("one")
    assert service.registry.promote(ANNA).name == "v1"
    assert service.is_served("v1", "one")
    assert service.kinds == ["registered", "promoted"]
    assert {path.stat().st_mode & 0o222 for path in (service.models / "v1").rglob("*")} == {0}
    assert first_problem(service.registry) is None


def test_gto_itself_says_the_same(service: Service) -> None:
    for text in ("one", "two"):
        service.train(text)
        service.registry.promote(ANNA)
    service.registry.rollback(1, ANNA, "worse on lateral views")
    shown = gto.api.show(str(service.root))["ace"]
    assert (shown["version"], shown["stage"]) == ("v2.0.0", {"accepted": "v1.0.0"})


def test_promoting_again_changes_nothing(service: Service) -> None:
    service.train("one")
    service.registry.promote(ANNA)
    before = service.registry.log.read(), read_tags(service.root)
    assert service.registry.promote(ANNA).name == "v1"
    assert (service.registry.log.read(), read_tags(service.root)) == before


def test_a_commit_with_the_same_model_is_no_new_version(service: Service) -> None:
    service.train("one")
    service.registry.promote(ANNA)
    service.train("one")
    assert service.registry.promote(ANNA).name == "v1"


def test_rollback_serves_old_bytes_by_a_new_event_and_holds_retraining(service: Service) -> None:
    for text in ("one", "two"):
        service.train(text)
        service.registry.promote(ANNA)
    service.registry.rollback(1, ANNA, "worse on lateral views")
    assert service.is_served("v1", "one")
    assert service.kinds == ["registered", "promoted", "registered", "promoted", "rolled_back"]
    held = history.hold(service.registry.events())
    assert held is not None
    assert held.facts == {"version": 1, "before": 2, "why": "worse on lateral views"}
    assert first_problem(service.registry) is None


def test_a_schedule_promotes_nothing_while_a_hold_is_set(service: Service) -> None:
    service.train("one")
    service.registry.hold(ANNA, "the scanner was replaced")
    with pytest.raises(OperationsError, match=r"Anna .* holds new models .*: the scanner was replaced"):
        service.registry.promote(SCHEDULE)
    service.registry.release(ANNA, "it was calibrated")
    assert service.registry.promote(SCHEDULE).name == "v1"
    assert [(event.who, event.automatic) for event in service.registry.events()][-1] == ("schedule", True)


def test_a_second_hold_keeps_the_first_and_a_release_needs_one(service: Service) -> None:
    service.train("one")
    first = service.registry.hold(ANNA, "the scanner was replaced")
    assert service.registry.hold(ANNA, "another reason") == first
    service.registry.release(ANNA, "it was calibrated")
    with pytest.raises(OperationsError, match="not held"):
        service.registry.release(ANNA, "again")


def test_rollback_to_bytes_that_were_changed_is_refused(service: Service) -> None:
    for text in ("one", "two"):
        service.train(text)
        service.registry.promote(ANNA)
    path = service.models / "v1/README.md"
    path.chmod(0o644)
    path.write_text("# other\n")
    before = service.registry.log.read()
    with pytest.raises(OperationsError, match=r"v1 is not as it was registered: README\.md has the sha256"):
        service.registry.rollback(1, ANNA, "worse")
    assert service.registry.log.read() == before
    assert service.is_served("v2", "two")


def test_a_version_whose_folder_is_gone_is_exported_again_and_not_if_the_cache_was_changed(service: Service) -> None:
    for text in ("one", "two", "three"):
        service.train(text)
        service.registry.promote(ANNA)
    for name in ("v1", "v2"):
        (service.models / name).rename(service.models / f"{name}-away")
    service.registry.rollback(1, ANNA, "worse")
    assert service.is_served("v1", "one")
    service.cache("# two\n")
    cached = next(path for path in service.root.glob(".dvc/cache/files/md5/*/*") if path.read_text() == "# two\n")
    cached.write_text("# other\n")
    with pytest.raises(OperationsError, match=r"models/ace/README\.md with md5 .* fetch it"):
        service.registry.rollback(2, ANNA, "worse still")
    assert service.is_served("v1", "one")


def test_bytes_come_from_the_work_tree_where_the_cache_has_none(service: Service) -> None:
    service.train("one")
    for path in service.root.glob(".dvc/cache/files/md5/*/*"):
        if not path.name.endswith(".dir"):
            name = {"{}": "config.json", "# one\n": "README.md"}.get(path.read_text(), "heads/weights")
            target = service.root / "models/ace" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            path.rename(target)
    next(service.root.glob(".dvc/cache/files/md5/*/*.dir")).unlink()
    service.registry.promote(ANNA)
    assert service.is_served("v1", "one")


@pytest.mark.parametrize("step", [{"days": 4000}, {"days": -4000}, {"seconds": -60.5}], ids=str)
def test_no_step_of_the_clock_keeps_a_decision_from_counting(service: Service, step: dict[str, float]) -> None:
    for text in ("one", "two"):
        service.train(text)
        service.registry.promote(ANNA)
        service.clock.set_by(**step)
    service.registry.rollback(1, ANNA, "worse")
    assert (accepted_by_tags(service.root), service.registry.served) == (1, "v1")
    service.clock.set_by(**{unit: -2 * number for unit, number in step.items()})
    service.registry.promote(ANNA, 2)
    assert (accepted_by_tags(service.root), service.registry.served) == (2, "v2")
    dates = [tag.date for tag in sorted(read_tags(service.root).values(), key=lambda tag: tag.sequence)]
    assert dates == sorted(set(dates))
    assert first_problem(service.registry) is None


def test_the_accepted_version_of_a_moment_is_told(service: Service) -> None:
    for hour, text in ((8, "one"), (10, "two")):
        service.clock.moment = datetime(2026, 12, 1, hour, tzinfo=UTC)
        service.train(text)
        service.registry.promote(ANNA)
    service.clock.moment = datetime(2026, 12, 1, 12, tzinfo=UTC)
    service.registry.rollback(1, ANNA, "worse")

    def at(hour: int) -> int | None:
        event = history.accepted(service.registry.events(), datetime(2026, 12, 1, hour, tzinfo=UTC))
        return None if event is None else event.facts["version"]

    assert [at(hour) for hour in (7, 9, 11, 13)] == [None, 1, 2, 1]


def test_a_modified_file_another_branch_and_an_unknown_person_are_refused(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.train("one")
    lock = service.root / "dvc.lock"
    text = lock.read_text()
    lock.write_text(text + "\n")
    with pytest.raises(OperationsError, match=r"tracked files are modified: dvc\.lock"):
        service.registry.promote(ANNA)
    lock.write_text(text)
    git(service.root, "checkout", "--quiet", "-b", "trial")
    with pytest.raises(OperationsError, match=r"on the branch 'trial'; .* --branch trial"):
        service.registry.promote(ANNA)
    git(service.root, "checkout", "--quiet", "service")
    for name in ("user.name", "user.email"):
        git(service.root, "config", "--unset", name)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", os.devnull)
    with pytest.raises(OperationsError, match="does not know who you are"):
        service.registry.promote(ANNA)
    assert service.kinds == []
    assert not service.models.exists()


def test_the_log_may_be_modified_though_it_is_tracked(service: Service) -> None:
    for text in ("one", "two"):
        service.train(text)
        service.registry.promote(ANNA)
    assert "registry/events.jsonl" in git(service.root, "ls-files")
    assert service.registry.promote(ANNA).name == "v2"


def test_two_at_once_register_one_version_once(service: Service) -> None:
    service.train("one")
    service.registry.promote(ANNA)
    service.train("two")
    promoting = [CONTEXT.Process(target=service.registry.promote, args=(ANNA,)) for _ in range(3)]
    for process in promoting:
        process.start()
    for process in promoting:
        process.join(300)
        assert process.exitcode == 0
    assert service.kinds == ["registered", "promoted"] * 2
    assert service.is_served("v2", "two")
    assert first_problem(service.registry) is None


STEPS = {
    "open",
    "os.chmod",
    "os.mkdir",
    "os.remove",
    "os.rename",
    "os.symlink",
    "os.truncate",
    "shutil.rmtree",
    "subprocess.Popen",
}


def _die_before_step(number: int, service: Service, rollback: bool) -> None:
    left = number

    def count(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        is_read = event == "open" and isinstance(arguments[2], int) and not arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if event in STEPS and not is_read:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    _decide(service, rollback)
    os._exit(77)


def _decide(service: Service, rollback: bool) -> None:
    if rollback:
        service.registry.rollback(1, ANNA, "worse")
    else:
        service.registry.promote(ANNA)


def killed_before(step: int, service: Service, rollback: bool) -> bool:
    """Decide anew, in a process that is killed before this step, then again to the end; False if it had fewer steps."""
    text = f"killed before {step}"
    service.train(text)
    if rollback:
        service.registry.promote(ANNA)
    before = len(service.kinds)
    process = CONTEXT.Process(target=_die_before_step, args=(step, service, rollback))
    process.start()
    process.join(300)
    assert process.exitcode in (-signal.SIGKILL, 77)
    _decide(service, rollback)
    done = [kind for kind in service.kinds[before:] if kind != "set_aside"]
    assert done == (["rolled_back"] if rollback else ["registered", "promoted"])
    assert service.is_served(*(("v1", "one") if rollback else (f"v{service.kinds.count('registered')}", text)))
    assert first_problem(service.registry) is None
    return process.exitcode != 77


@pytest.mark.slow
@pytest.mark.parametrize("rollback", [False, True])
def test_a_kill_at_a_random_moment_is_finished_by_the_same_command(service: Service, rollback: bool) -> None:
    service.train("one")
    service.registry.promote(ANNA)
    for step in random.Random(0).sample(range(1, 23 if rollback else 57), 8):
        assert killed_before(step, service, rollback)


@pytest.mark.slow
@pytest.mark.parametrize("rollback", [False, True])
def test_a_kill_before_any_step_is_finished_by_the_same_command(service: Service, rollback: bool) -> None:
    service.train("one")
    service.registry.promote(ANNA)
    number = next(step for step in range(1, 200) if not killed_before(step, service, rollback))
    assert number > (15 if rollback else 40)


def edit_log(service: Service, old: str, new: str) -> None:
    path = service.registry.log.path
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def drop_last_line(service: Service) -> None:
    path = service.registry.log.path
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))


def replace_file(path: Path, text: str | None) -> None:
    path.parent.chmod(0o755)
    path.unlink(missing_ok=True)
    if text is not None:
        path.write_text(text)


def tag_as_a_person(service: Service, name: str) -> None:
    git(service.root, "tag", "--force", "-a", "-m", "mine", name, "HEAD")


def link_elsewhere(service: Service) -> None:
    (service.models / "accepted").unlink()
    (service.models / "accepted").symlink_to("v2")


DAMAGE = {
    "a line": (lambda s: edit_log(s, '"why":"calm"', '"why":"storm"'), "line 6 was changed"),
    "the last line": (lambda s: edit_log(s, '"version":1,"before":2', '"version":1,"before":3'), "line 7 was changed"),
    "the end": (drop_last_line, "the log ends after 6 lines"),
    "a file": (lambda s: replace_file(s.models / "v1/README.md", "# x\n"), "README.md has the sha256"),
    "a file more": (lambda s: replace_file(s.models / "v2/extra", ""), "extra was added"),
    "a file less": (lambda s: replace_file(s.models / "v2/README.md", None), "README.md is missing"),
    "a tag less": (lambda s: git(s.root, "tag", "-d", "ace#accepted#2"), "tag ace#accepted#2: missing"),
    "a tag more": (lambda s: tag_as_a_person(s, "ace#accepted#99"), "tag ace#accepted#99: no event"),
    "a tag moved": (lambda s: tag_as_a_person(s, "ace@v1.0.0"), "tag ace@v1.0.0: is on commit"),
    "the link": (link_elsewhere, "accepted leads to v2, and the accepted version is v1"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_an_audit_names_the_first_thing_that_is_wrong(service: Service, name: str) -> None:
    damage, text = DAMAGE[name]
    for model in ("one", "two"):
        service.train(model)
        service.registry.promote(ANNA)
        if model == "one":
            service.registry.hold(ANNA, "storm")
    assert len(service.kinds) == 5
    service.registry.release(ANNA, "calm")
    service.registry.promote(ANNA, 1)
    assert first_problem(service.registry) is None
    damage(service)
    assert text in str(first_problem(service.registry))


def test_a_log_whose_end_is_cut_off_answers_nothing_and_takes_no_decision(service: Service) -> None:
    for text in ("one", "two"):
        service.train(text)
        service.registry.promote(ANNA)
    drop_last_line(service)
    before = service.registry.log.read()
    for attempt in (service.registry.events, lambda: service.registry.promote(ANNA, 1)):
        with pytest.raises(OperationsError, match="the log ends after 3 lines"):
            attempt()
    assert service.registry.log.read() == before


def test_a_lost_tag_in_the_middle_is_not_written_again_with_a_later_date(service: Service) -> None:
    for text in ("one", "two"):
        service.train(text)
        service.registry.promote(ANNA)
    git(service.root, "tag", "-d", "ace#accepted#2")
    with pytest.raises(OperationsError, match="the tag ace#accepted#2 of event 2 is missing"):
        service.registry.promote(ANNA, 1)
    assert json.loads(service.registry.log.read().splitlines()[-1])["facts"]["version"] == 2
