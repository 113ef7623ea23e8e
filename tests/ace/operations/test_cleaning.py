"""The clean-up, with a real DVC: what nobody needs goes, and every version can still be accepted and audited."""

import json
import os
import re
import shutil
import sys
import warnings
from collections.abc import Iterator
from contextlib import chdir
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from dvc.repo import Repo
from filelock import FileLock, Timeout

import ace.operations.deliveries as module
from ace.__main__ import build_parser
from ace.operations.alone import alone
from ace.operations.audit import first_problem
from ace.operations.cleaning import CLEANED, Cleaning, Plan
from ace.operations.clone import Clone
from ace.operations.delivery import BUILD_LOG, FETCHING
from ace.operations.errors import BusyError, OperationsError
from ace.operations.events import EventLog
from ace.operations.params import OperationsParams
from ace.operations.publishing import PUBLISHING
from ace.operations.registry import LOCK, Registry
from ace.operations.repro import RWLOCK
from ace.operations.retraining_state import BEGAN, running
from ace.operations.tags import read_events
from shards.cli import run_command
from shards.core.errors import ConfigError, NoSpaceError
from shards.runtime.scratch import SCRATCH_VARIABLE, unfinished_work
from tests.ace.operations import test_publishing as publishing
from tests.ace.operations.delivered import (
    MEASURED,
    build_here,
    commit_all,
    deliver,
    deliveries_of,
    make_service,
    open_key,
)
from tests.ace.operations.killed import KILLED, in_child
from tests.ace.operations.service import ANNA, Service
from tests.ace.operations.test_publishing import Published, dvc, make_published
from tests.support.checkout import git

STAGES = """\
stages:
  shard:
    cmd: mkdir -p data/shards/a && (echo pixels of; cat text) > data/shards/a/tar
    deps: [text]
    outs: [data/shards/a]
  pretrain:
    cmd: mkdir -p models/ace && cp text models/ace/README.md && echo {} > models/ace/config.json
    deps: [text]
    outs: [models/ace]
  report:
    cmd: mkdir -p reports && (echo page of; cat text) > reports/report.html
    deps: [text]
    outs: [reports/report.html]
"""
IGNORED = "/.dvc/cache\n/.dvc/tmp\n/models\n/data\n/reports\n/rest\n"
NOW = datetime(2026, 12, 24, tzinfo=UTC)
TEN_YEARS = timedelta(days=3660)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Versions 1 and 2, then two models that nobody accepted, the second of them in the last commit."""
    folder = tmp_path_factory.mktemp("cleaned")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(publishing, "dvc", repro_here)
        made = make_published(folder, remote="../../remote", stages=STAGES)
        (made.root / "params.yaml").write_text("mix: {}\n")
        (made.root / ".gitignore").write_text(IGNORED)
        for text in ("rejected", "last"):
            made.train(text)
    return folder


def repro_here(root: Path, *arguments: str) -> None:
    """Do what `dvc repro` does, in this process."""
    assert arguments == ("repro", "--quiet")
    with chdir(root), warnings.catch_warnings(), Repo() as repo:
        warnings.simplefilter("ignore", DeprecationWarning)  # of a library of dvc's
        repo.reproduce()


@pytest.fixture
def made(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Published:
    shutil.copytree(template, tmp_path, symlinks=True, dirs_exist_ok=True)
    monkeypatch.setenv(SCRATCH_VARIABLE, str(tmp_path / "scratch"))
    monkeypatch.setenv("ACE_MODELS", str(tmp_path / "served"))
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    return Published(Service(tmp_path / "clone", tmp_path / "served"), tmp_path / "origin.git", tmp_path / "remote")


def cached(root: Path) -> set[str]:
    """What the texts of files in DVC's cache say, lists of folders apart."""
    return {path.read_text() for path in (root / ".dvc/cache/files/md5").glob("*/*") if path.suffix != ".dir"}


def clean(root: Path, now: datetime = NOW) -> Plan:
    cleaning = Cleaning(Clone(root))
    with cleaning.deciding():
        plan = cleaning.plan(now)
        cleaning.remove(plan, ANNA, now)
    return plan


def command(*arguments: str) -> int:
    return run_command(build_parser(), arguments)


def texts_of(*texts: str) -> set[str]:
    return {form.format(text) for text in texts for form in ("{}", "pixels of\n{}", "page of\n{}")} | {"{}\n"}


def test_without_yes_it_says_what_would_go_and_changes_nothing(
    made: Published, capsys: pytest.CaptureFixture[str]
) -> None:
    before, log = cached(made.root), made.service.registry.log.read()
    assert command("ops", "clean", "--repo", str(made.root)) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "5 DVC objects in the cache, 0.2 kB"  # two folders' lists, and three files
    assert said[-1] == "nothing was changed; --yes removes it"
    assert (cached(made.root), made.service.registry.log.read()) == (before, log)
    assert command("ops", "clean", "--repo", str(made.root), "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["totals"]["objects"]["number"] == len(answer["objects"]) == 5
    assert sum(answer["objects"].values()) == answer["totals"]["objects"]["bytes"]


def test_what_no_version_needs_goes_and_every_version_can_still_be_accepted(
    made: Published, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cached(made.root) == texts_of("one", "two", "rejected", "last")
    assert command("ops", "clean", "--repo", str(made.root), "--yes") == 0
    assert cached(made.root) == texts_of("one", "two", "last")
    event = made.service.registry.events()[-1]
    assert (event.kind, event.who) == (CLEANED, "Anna <anna@example.org>")
    assert event.facts == {"objects": {"number": 5, "bytes": event.facts["objects"]["bytes"]}}
    assert capsys.readouterr().out.endswith(f"removed, as event {event.sequence} says\n")
    assert first_problem(made.service.registry) is None
    assert "up to date" in dvc(made.root, "status")
    assert git(made.root, "status", "--porcelain", "--", ":!registry") == ""
    for number, text in ((1, "one"), (2, "two")):
        made.service.models.joinpath(f"v{number}").rename(made.root.parent / f"lost-v{number}")
        made.service.registry.promote(ANNA, number)
        assert (made.service.models / "accepted/README.md").read_text() == text
    assert first_problem(made.service.registry) is None
    assert command("ops", "clean", "--repo", str(made.root), "--yes") == 0
    said = capsys.readouterr().out.splitlines()
    assert said == ["nothing is to go", "$DAGSTER_HOME is not set, so runs of Dagster were not looked at"]
    assert made.service.kinds.count(CLEANED) == 1


def test_what_was_made_and_is_not_committed_yet_stays(made: Published) -> None:
    (made.root / "text").write_text("under way")
    repro_here(made.root, "repro", "--quiet")
    clean(made.root)
    assert cached(made.root) == texts_of("one", "two", "last", "under way")


def test_it_says_nothing_of_what_was_never_made(made: Published, capsys: pytest.CaptureFixture[str]) -> None:
    with (made.root / "dvc.yaml").open("a") as graph:
        graph.write("  rest: {cmd: 'echo > rest', outs: [rest]}\n")
    assert command("ops", "clean", "--repo", str(made.root)) == 0
    assert capsys.readouterr().err == ""


def test_a_tag_that_somebody_made_keeps_what_its_commit_records(made: Published) -> None:
    git(made.root, "tag", "paper", "HEAD~1")
    assert not clean(made.root).found["objects"]


def test_ten_years_after_its_last_use_a_version_keeps_its_model_and_its_report_alone(made: Published) -> None:
    replaced = made.service.registry.events()[3].time
    clean(made.root, replaced + TEN_YEARS - timedelta(minutes=1))
    assert cached(made.root) == texts_of("one", "two", "last")
    clean(made.root, replaced + TEN_YEARS + timedelta(minutes=1))
    assert cached(made.root) == texts_of("one", "two", "last") - {"pixels of\none"}
    made.service.models.joinpath("v1").rename(made.root.parent / "lost")
    made.service.registry.rollback(1, ANNA, "an old one")
    assert first_problem(made.service.registry) is None


def test_a_tag_that_somebody_made_on_an_old_version_keeps_all_that_its_commit_records(made: Published) -> None:
    git(made.root, "tag", "paper", "ace@v1.0.0^{commit}")
    clean(made.root, made.service.registry.events()[3].time + TEN_YEARS + timedelta(minutes=1))
    assert cached(made.root) == texts_of("one", "two", "last")


def test_the_last_commit_keeps_all_of_a_version_however_old(made: Published) -> None:
    last = made.service.registry.promote(ANNA)
    made.service.registry.rollback(2, ANNA, "worse")
    (made.root / "text").write_text("under way")  # so that the work tree names what is newer
    repro_here(made.root, "repro", "--quiet")
    clean(made.root, made.service.registry.events()[-1].time + TEN_YEARS + timedelta(minutes=1))
    assert last.name == "v3"
    assert "pixels of\nlast" in cached(made.root)


def test_an_experiment_keeps_what_it_made(made: Published) -> None:
    (made.root / "text").write_text("tried")
    repro_here(made.root, "repro", "--quiet")
    git(made.root, "stash", "--quiet")
    tried = git(made.root, "rev-parse", "stash@{0}").strip()
    git(made.root, "stash", "drop", "--quiet")
    head = git(made.root, "rev-parse", "HEAD").strip()
    git(made.root, "update-ref", f"refs/exps/{head[:2]}/{head[2:]}/tried", tried)
    clean(made.root)
    assert cached(made.root) == texts_of("one", "two", "last", "tried")


def test_what_a_retraining_has_made_stays_until_it_ends_although_dvc_was_killed_over_its_lock_file(
    made: Published,
) -> None:
    log = made.service.registry.log
    began = log.append(BEGAN, {"run_key": "0"}, actor=ANNA, now=datetime.now(UTC) - timedelta(seconds=1))
    for path in (made.root / ".dvc/cache/runs").rglob("*"):  # what was made before it began is none of its
        os.utime(path, (0, 0))
    (made.root / "text").write_text("trained")
    repro_here(made.root, "repro", "--quiet")
    lock = made.root / "dvc.lock"
    lock.write_bytes(lock.read_bytes()[:-9])
    with pytest.raises(OperationsError, match=r"dvc\.lock was half written by a dvc that was killed"):
        clean(made.root)
    assert cached(made.root) == texts_of("one", "two", "rejected", "last", "trained")
    git(made.root, "restore", "dvc.lock")  # as the next call does
    clean(made.root)
    assert cached(made.root) == texts_of("one", "two", "last", "trained")
    log.append("retraining_abandoned", began.facts, actor=ANNA, now=NOW)
    clean(made.root)
    assert cached(made.root) == texts_of("one", "two", "last")


def test_nothing_goes_while_dvc_cannot_read_what_a_tag_or_the_work_tree_records(
    made: Published, capsys: pytest.CaptureFixture[str]
) -> None:
    graph = made.root / "dvc.yaml"
    good = graph.read_text()
    for name, remedy in (("a tag", r"git tag --points-at \w{40} names the tags"), ("nothing", "`dvc status` says")):
        graph.write_text("stages: {pretrain: {wrong: 1}}\n")
        if name == "a tag":
            git(made.root, "commit", "--quiet", "--all", "--message", "broken")
            git(made.root, "tag", "before")
            graph.write_text(good)
            git(made.root, "commit", "--quiet", "--all", "--message", "mended")
        assert command("ops", "clean", "--repo", str(made.root), "--yes") == 2
        said = capsys.readouterr().err
        assert re.search(rf"error: DVC cannot read what .* records, so nothing is removed: .*dvc.yaml.*{remedy}", said)
        if name == "a tag":
            git(made.root, "tag", "--delete", "before")
    assert cached(made.root) == texts_of("one", "two", "rejected", "last")


def test_a_version_that_became_the_accepted_one_again_is_as_young_as_that(made: Published) -> None:
    replaced = made.service.registry.events()[3].time
    made.service.clock.moment = replaced + timedelta(hours=1)
    made.service.registry.rollback(1, ANNA, "worse")
    clean(made.root, replaced + TEN_YEARS + timedelta(seconds=30))
    assert cached(made.root) == texts_of("one", "two", "last")


def test_nothing_goes_while_a_versions_commit_is_gone(made: Published) -> None:
    commit = git(made.root, "rev-parse", "ace@v2.0.0^{commit}").strip()
    for tag in ("ace@v2.0.0", "ace#accepted#4"):
        git(made.root, "tag", "--delete", tag)
    git(made.root, "checkout", "--quiet", "--orphan", "new")
    git(made.root, "commit", "--quiet", "--message", "what is left")
    git(made.root, "branch", "--quiet", "--force", "service", "new")
    git(made.root, "checkout", "--quiet", "service")
    git(made.root, "branch", "--quiet", "--delete", "--force", "new")
    git(made.root, "reflog", "expire", "--expire=now", "--all")
    git(made.root, "gc", "--quiet", "--prune=now")
    before = cached(made.root)
    with pytest.raises(OperationsError, match=r"^v2: what its commit records is not known, so nothing is removed") as e:
        clean(made.root)
    assert commit in str(e.value)
    assert cached(made.root) == before


def test_nothing_goes_while_the_list_of_a_versions_files_is_lost(made: Published) -> None:
    md5 = made.service.registry.events()[0].facts["md5"]
    (made.root / ".dvc/cache/files/md5" / md5[:2] / md5[2:]).unlink()
    before = cached(made.root)
    with pytest.raises(OperationsError, match=rf"^v1: the list of the files of models/ace \(md5 {md5}\) is neither"):
        clean(made.root)
    assert cached(made.root) == before


def test_a_list_that_only_the_remote_has_tells_what_is_kept(made: Published) -> None:
    made.publish()
    md5 = made.service.registry.events()[0].facts["md5"]
    (made.root / ".dvc/cache/files/md5" / md5[:2] / md5[2:]).unlink()
    clean(made.root)
    assert cached(made.root) == texts_of("one", "two", "last")


def test_nothing_goes_while_anything_else_is_at_work(made: Published, capsys: pytest.CaptureFixture[str]) -> None:
    with running(made.root):
        assert command("ops", "clean", "--repo", str(made.root), "--yes") == 75
        assert "a retraining is at work" in capsys.readouterr().err
    lock = made.root / RWLOCK
    lock.parent.mkdir(exist_ok=True)
    lock.write_text(json.dumps({"write": {str(made.root / "models/ace"): {"pid": os.getpid(), "cmd": "dvc repro"}}}))
    assert command("ops", "clean", "--repo", str(made.root), "--yes") == 75
    assert f"a dvc is at work on models/ace (process {os.getpid()})" in capsys.readouterr().err
    lock.unlink()
    with Repo(str(made.root)) as repo, repo.lock:
        assert command("ops", "clean", "--repo", str(made.root), "--yes") == 75
        assert "another dvc is at work" in capsys.readouterr().err
    assert cached(made.root) == texts_of("one", "two", "rejected", "last")
    assert CLEANED not in made.service.kinds


def test_nothing_else_begins_while_it_works(made: Published) -> None:
    with Cleaning(Clone(made.root)).deciding():
        with pytest.raises(BusyError, match="a retraining is at work"), running(made.root):
            pass
        for name in (PUBLISHING, LOCK):
            with pytest.raises(Timeout), FileLock(made.root / f".git/ace-{name}.lock", timeout=0):
                pass


def test_nothing_goes_while_a_patients_erasure_is_not_finished(
    made: Published, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ace.operations.erasure_plan import Plan as ErasurePlan

    monkeypatch.setattr(ErasurePlan, "read", lambda root: ErasurePlan.model_construct())
    with pytest.raises(OperationsError, match="erasure of a patient is not finished"):
        clean(made.root)


def test_it_cleans_nowhere_but_in_the_services_own_clone(made: Published, capsys: pytest.CaptureFixture[str]) -> None:
    git(made.root, "switch", "--quiet", "--create", "mine")
    assert command("ops", "clean", "--repo", str(made.root), "--yes") == 2
    assert "is on the branch 'mine'" in capsys.readouterr().err


def unfinished(scratch: Path, name: str, age: timedelta) -> Path:
    """Leave unfinished work of some age, as a killed stage does."""
    stage, _, fingerprint = name.rpartition("/")
    work = scratch / stage / fingerprint
    with pytest.raises(KeyboardInterrupt), unfinished_work(stage, fingerprint):
        _interrupt(work)
    moment = (NOW - age).timestamp()
    for path in (work / "checkpoints/step-1.pt", work / "checkpoints", work):
        os.utime(path, (moment, moment))
    return work


def _interrupt(work: Path) -> None:
    (work / "checkpoints").mkdir()
    (work / "checkpoints/step-1.pt").write_text("weights")
    raise KeyboardInterrupt


def test_only_work_goes_that_is_old_and_that_no_process_and_no_retraining_has(made: Published) -> None:
    scratch, old, new = made.root.parent / "scratch", timedelta(days=31), timedelta(days=29)
    gone = {unfinished(scratch, "pretrain/0a", old), unfinished(scratch, "shard/a-b000/0b", old)}
    kept = {unfinished(scratch, "pretrain/0c", new), unfinished(scratch, "pretrain/0d", old)}
    (scratch / "answers-x").mkdir()
    (scratch / "pretrain/0c/begun").touch()  # long ago, and the checkpoint beside it is new
    for path in (scratch / "answers-x", scratch / "pretrain/0c/begun"):
        os.utime(path, (0, 0))
    began = made.service.registry.log.append(BEGAN, {"run_key": "0"}, actor=ANNA, now=NOW)
    assert not clean(made.root).found["unfinished_work"], "the retraining that has begun may go on with any of it"
    made.service.registry.log.append("retraining_abandoned", began.facts, actor=ANNA, now=NOW)
    with unfinished_work("pretrain", "0d") as work:  # which makes it no younger
        os.utime(work, (0, 0))
        found = clean(made.root).found["unfinished_work"]
        assert {Path(path) for path in found} == {*gone, scratch / "answers-x"}
        assert all(path.is_dir() for path in kept)
    assert not any(path.exists() for path in gone)


def test_work_that_somebody_goes_on_with_or_has_finished_since_the_plan_is_left_alone(made: Published) -> None:
    work = unfinished(made.root.parent / "scratch", "pretrain/0a", timedelta(days=31))
    cleaning = Cleaning(Clone(made.root))
    with cleaning.deciding():
        plan = cleaning.plan(NOW)
        with unfinished_work("pretrain", "0a"):
            cleaning.remove(plan, ANNA, NOW)
            assert (work / "checkpoints/step-1.pt").is_file()
        assert not work.exists()
        cleaning.remove(plan, ANNA, NOW)


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A project whose service has refused one delivery and accepted another, each with a log of its build."""
    root = tmp_path_factory.mktemp("service")
    with pytest.MonkeyPatch.context() as patch:
        open_key(root, patch)
        patch.setattr(module, "repro", build_here)
        project = make_service(root)
        (project / ".dvc").mkdir()
        (project / ".dvc/config").touch()
        with (project / ".gitignore").open("a") as file:
            file.write("/.dvc/cache\n/.dvc/tmp\n")
        assert build_here(f"shard@{MEASURED}", project, root / "log") is None
        commit_all(project)
        deliver(project / "incoming" / "March", range(100, 130))
        deliver(project / "incoming" / "negatives", range(200, 230), is_negative=True)
        list(deliveries_of(project).run())
        for item in deliveries_of(project).taken():
            (item.folder / BUILD_LOG).write_text("dvc said this")
        git(project, "restore", "dvc.lock")
        yield project


def test_nobody_can_accept_what_a_clean_up_that_was_killed_has_left_of_refused_images(
    refused: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    project = Path(shutil.copytree(refused, tmp_path / "project", symlinks=True))
    params = project / "params.yaml"
    params.write_text(params.read_text() + "  retention: {quarantine_days: 30}\n")
    git(project, "commit", "--quiet", "--all", "--message", "refused images go after a month")

    def killed(folder: Path) -> None:
        next(folder.glob("*.png")).unlink()
        raise KeyboardInterrupt

    (images,) = project.glob("quarantine/*/images")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            clean(project, datetime.now(UTC) + timedelta(days=31))
    with pytest.raises(ConfigError, match="its images are gone, by a clean-up"):
        list(deliveries_of(project).overrule(images.parent.name, "accepted", ANNA, "all the same"))
    clean(project, datetime.now(UTC) + timedelta(days=31))
    assert not any(path.is_dir() for path in images.parent.iterdir())


def test_logs_of_builds_go_after_six_months_and_refused_images_only_if_asked_for(
    refused: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    now = datetime.now(UTC)
    logs = sorted(refused.glob("*/*/build.log"))
    assert len(logs) == 2
    assert not clean(refused, now + timedelta(days=180)).totals
    assert list(clean(refused, now + timedelta(days=187)).found["logs"]) == [str(path) for path in logs]
    assert not any(path.exists() for path in logs)
    (images,) = refused.glob("quarantine/*/images")
    params = refused / "params.yaml"
    params.write_text(params.read_text() + "  retention: {quarantine_days: 30}\n")
    git(refused, "commit", "--quiet", "--all", "--message", "refused images go after a month")
    assert not clean(refused, now + timedelta(days=29)).totals
    fetched = images.with_name(FETCHING)  # a delivery on S3 that was refused before all of it had come
    (fetched / "images").mkdir(parents=True)
    (delivery,) = (item for item in deliveries_of(refused).taken() if item.state == "refused")
    record = delivery.attempts.path.read_text()
    delivery.attempts.overrule("accepted", ANNA, "all the same")  # and the call was killed then
    assert not clean(refused, now + timedelta(days=31)).totals
    delivery.attempts.path.write_text(record)
    assert list(clean(refused, now + timedelta(days=31)).found["refused_images"]) == [str(images), str(fetched)]
    left = {path.name: path.is_dir() for path in images.parent.iterdir()}
    assert {"attempts.jsonl", "report.json", f"{images.parent.name}.yaml"} <= left.keys()
    assert not any(left.values()), "no folder is left"
    assert list(refused.glob("deliveries/*/images/*.png")), "those of accepted ones stay"
    assert first_problem(Registry(clone=Clone(refused), models=refused.parent / "served")) is None
    with pytest.raises(ConfigError, match="its images are gone, by a clean-up"):
        list(deliveries_of(refused).overrule(images.parent.name, "accepted", ANNA, "all the same"))
    assert [item.state for item in deliveries_of(refused).taken() if item.name == images.parent.name] == ["refused"]
    with deliveries_of(refused).locked(), pytest.raises(BusyError, match="deliveries"), alone(Clone(refused)):
        pass


@pytest.mark.parametrize(("section", "why"), [({"logs_months": 5}, "six months"), ({"models_years": 9}, "ten years")])
def test_less_than_the_law_asks_for_is_refused_with_the_reason(section: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=rf"retention.*found \d; expected \d+ or more.*{why}"):
        OperationsParams.from_params({"retention": section}, "params.yaml: operations")
    longer = {name: value + 1 for name, value in section.items()}
    OperationsParams.from_params({"retention": longer}, "params.yaml: operations")


def test_a_disk_without_room_for_a_line_of_the_log_is_cleaned_all_the_same(
    made: Published, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, left = EventLog.append, []

    def append(log: EventLog, *arguments: Any, **options: Any) -> Any:
        left.append(cached(made.root))
        if len(left) == 1:
            raise NoSpaceError("the disk is full")
        return real(log, *arguments, **options)

    monkeypatch.setattr(EventLog, "append", append)
    clean(made.root)
    assert left == [texts_of("one", "two", "rejected", "last"), texts_of("one", "two", "last")]
    assert read_events(made.root)[-1].kind == CLEANED


@pytest.mark.slow
def test_a_kill_anywhere_is_finished_by_the_next_call(made: Published) -> None:
    unfinished(made.root.parent / "scratch", "pretrain/0a", timedelta(days=31))
    killed = 0
    while True:
        copy = made.root.parent / "rest"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(made.root, copy / "clone", symlinks=True)
        shutil.copytree(made.root.parent / "remote", copy / "remote")
        shutil.copytree(made.root.parent / "scratch", copy / "scratch", copy_function=shutil.copy2)
        os.environ[SCRATCH_VARIABLE] = str(copy / "scratch")
        shutil.copytree(made.service.models, copy / "served", symlinks=True)
        code = in_child(lambda: killed_clean(copy / "clone", killed))  # noqa: B023, called at once
        clean(copy / "clone")
        assert cached(copy / "clone") == texts_of("one", "two", "last")
        assert not (copy / "scratch/pretrain/0a").exists()
        registry = Service(copy / "clone", copy / "served").registry
        assert first_problem(registry) is None
        assert CLEANED in [event.kind for event in registry.events()], f"killed after {killed} changes"
        if code != KILLED:
            break
        killed += 1
    assert killed >= 8, "five objects, the line of the log, and the files of the work"


def killed_clean(root: Path, num_effects: int) -> None:
    """End the process as kill -9 does, in place of the removal or write after so many."""
    cleaning, left = Cleaning(Clone(root)), num_effects
    with cleaning.deciding():
        plan = cleaning.plan(NOW)

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal left
            is_write = event == "open" and isinstance(arguments[2], int) and bool(arguments[2] & os.O_APPEND)
            if event in ("os.remove", "os.rmdir", "os.rename") or is_write:
                left -= 1
                if left < 0:
                    os._exit(KILLED)

        sys.addaudithook(hook)
        cleaning.remove(plan, ANNA, NOW)
        left = 10**6
