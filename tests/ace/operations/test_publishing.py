"""Publishing, with a real DVC, its remote a folder, and `origin` a bare repository."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pytest
from filelock import FileLock, Timeout

from ace.__main__ import build_parser
from ace.operations import history, publishing
from ace.operations.audit import first_problem
from ace.operations.clone import Clone
from ace.operations.errors import OperationsError
from ace.operations.publishing import publish, published_commit
from shards.cli import run_command
from shards.core.errors import OutOfReachError
from tests.ace.operations.killed import KILLED, in_child
from tests.ace.operations.service import ANNA, Service, make_service
from tests.support.checkout import git

DVC = """\
stages:
  pretrain:
    cmd: mkdir -p models/ace && cp text models/ace/README.md && echo {} > models/ace/config.json && cp text score
    deps: [text]
    outs:
      - models/ace
      - score: {cache: false}
"""


@dataclass
class Published:
    """A service whose models a real DVC makes, and the two places that it publishes to."""

    service: Service
    origin: Path
    remote: Path

    @property
    def root(self) -> Path:
        return self.service.root

    def train(self, text: str) -> str:
        (self.root / "text").write_text(text)
        dvc(self.root, "repro", "--quiet")
        git(self.root, "add", "--all", "--", ":!registry")
        git(self.root, "commit", "--quiet", "-m", text)
        return git(self.root, "rev-parse", "HEAD").strip()

    def publish(self) -> list[str]:
        return list(publish(Clone(self.root), pauses_s=()))

    @property
    def head(self) -> str:
        return git(self.root, "rev-parse", "HEAD").strip()

    @property
    def at_origin(self) -> dict[str, str]:
        lines = git(self.root, "ls-remote", "--refs", str(self.origin)).splitlines()
        return {name: commit for commit, name in (line.split("\t") for line in lines)}

    @property
    def at_remote(self) -> set[str]:
        return {path.parent.name + path.name for path in self.remote.rglob("*") if path.is_file()}


def dvc(root: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "dvc", *arguments]
    return subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout


def make_published(folder: Path, remote: str, stages: str = DVC) -> Published:
    """Make a service with two accepted versions, of which nothing is published.

    Args:
        folder: A folder for all of it.
        remote: URL of DVC's remote as its configuration has it, which leads to `folder/remote`.
        stages: The dvc.yaml.
    """
    service = make_service(folder)
    (service.root / ".dvc/config").write_text(f"[core]\n    remote = store\n['remote \"store\"']\n    url = {remote}\n")
    (service.root / ".dvcignore").touch()
    (service.root / "dvc.yaml").write_text(stages)
    git(service.root, "config", "remote.origin.url", "../origin.git")
    git(service.root, "config", "remote.origin.fetch", "+refs/heads/*:refs/remotes/origin/*")
    (folder / "remote").mkdir()
    git(folder, "init", "--quiet", "--bare", "--initial-branch", "service", "origin.git")
    made = Published(service, folder / "origin.git", folder / "remote")
    for text in ("one", "two"):
        made.train(text)
        service.registry.promote(ANNA)
    return made


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    make_published(folder, remote="../../remote")
    return folder


@pytest.fixture
def made(template: Path, tmp_path: Path) -> Published:
    """Two versions, of which nothing is published."""
    shutil.copytree(template, tmp_path, symlinks=True, dirs_exist_ok=True)
    return Published(Service(tmp_path / "clone", tmp_path / "served"), tmp_path / "origin.git", tmp_path / "remote")


def test_publishing_brings_data_branch_tags_and_the_event_log_and_once_more_nothing(made: Published) -> None:
    lines = made.publish()
    assert git(made.root, "status", "--porcelain") == ""
    assert made.at_origin["refs/heads/service"] == made.head == published_commit(made.root)
    tags = {f"refs/tags/{name}" for name in git(made.root, "tag").split()}
    assert len(tags) == 4
    assert tags <= set(made.at_origin)
    models = {version.model.md5 for version in history.versions(made.service.registry.events()).values()}
    assert len(models) == 2
    assert models <= made.at_remote
    assert lines[0] == "committed registry/events.jsonl"
    before = made.head, made.at_origin, made.at_remote
    data, commits = made.publish()
    assert data == "data: 0 files pushed, and all are at DVC's remote"
    assert commits.startswith("commits: 0 new commits; ")
    assert (made.head, made.at_origin, made.at_remote) == before
    assert first_problem(made.service.registry) is None


@pytest.mark.slow
def test_a_clean_clone_pulls_what_was_published_and_has_nothing_to_do(made: Published, tmp_path: Path) -> None:
    made.publish()
    clone = tmp_path / "other" / "clone"
    clone.parent.mkdir()
    git(tmp_path, "clone", "--quiet", str(made.origin), str(clone))
    dvc(clone, "remote", "modify", "--local", "store", "url", str(made.remote))
    dvc(clone, "pull", "--quiet")
    assert "up to date" in dvc(clone, "status")
    assert "up to date" in dvc(clone, "repro")
    assert git(clone, "status", "--porcelain") == ""
    assert (clone / "models/ace/README.md").read_text() == "two"
    for commit, text in (("ace@v1.0.0", "one"), ("ace@v2.0.0", "two")):
        git(clone, "checkout", "--quiet", commit)
        dvc(clone, "pull", "--quiet")
        assert (clone / "models/ace/README.md").read_text() == text


@pytest.mark.parametrize("num_effects", range(4))
def test_a_kill_before_or_after_each_step_is_finished_by_the_next_call(made: Published, num_effects: int) -> None:
    assert in_child(lambda: killed_publish(made, num_effects)) == KILLED
    seen = made.at_origin.get("refs/heads/service")
    assert seen is None or made.at_remote  # data first
    assert published_commit(made.root) is None
    made.publish()
    assert made.at_origin["refs/heads/service"] == made.head == published_commit(made.root)
    assert git(made.root, "log", "--format=%s").splitlines() == ["The event log up to event 4", "two", "one"]


def killed_publish(made: Published, num_effects: int) -> None:
    """End the process as kill -9 does, after so many of: commit of the log, push of data, of commits, the ref."""
    if not num_effects:
        Clone.commit = lambda *_: os._exit(KILLED)  # type: ignore[assignment, return-value]
    list(islice(publish(Clone(made.root), pauses_s=()), num_effects))
    os._exit(KILLED)


def test_whoever_sees_a_commit_at_origin_finds_its_data(made: Published, monkeypatch: pytest.MonkeyPatch) -> None:
    real, seen = publishing._push_commits, []
    monkeypatch.setattr(publishing, "_push_commits", lambda *given: (seen.append(made.at_remote), real(*given)))
    made.publish()
    assert seen == [made.at_remote]


def test_a_modified_file_is_refused_by_name_and_nothing_is_pushed(made: Published) -> None:
    (made.root / "text").write_text("three")
    with pytest.raises(OperationsError, match=r"modified: text\. If a .* training is under way, wait for its end\. "):
        made.publish()
    assert not made.at_origin
    assert not made.at_remote


def test_what_somebody_else_pushed_is_never_overwritten(made: Published, tmp_path: Path) -> None:
    made.publish()
    other = tmp_path / "other"
    git(tmp_path, "clone", "--quiet", str(made.origin), str(other))
    git(other, "-c", "user.name=B", "-c", "user.email=b@b", "commit", "--quiet", "--allow-empty", "-m", "theirs")
    git(other, "push", "--quiet")
    theirs = made.at_origin
    made.service.registry.rollback(1, ANNA, "worse")
    with pytest.raises(OperationsError, match=r"somebody else pushed to 'service'.*git merge origin/service"):
        made.publish()
    assert made.at_origin == theirs  # no tag either
    git(made.root, "fetch", "--quiet", "origin")
    git(made.root, "merge", "--quiet", "--no-edit", "origin/service")
    made.publish()
    assert made.at_origin["refs/heads/service"] == made.head == published_commit(made.root)
    assert len(made.at_origin) == len(theirs) + 1


def test_what_another_clone_decided_is_passed_over_and_the_services_own_log_stays(
    made: Published, tmp_path: Path
) -> None:
    made.publish()
    other = Service(tmp_path / "other", tmp_path / "served by the other")
    git(tmp_path, "clone", "--quiet", "--branch", "service", str(made.origin), str(other.root))
    git(other.root, "config", "user.name", "B")
    git(other.root, "config", "user.email", "b@b")
    other.registry.hold(ANNA, "by mistake")
    git(other.root, "commit", "--quiet", "--all", "-m", "theirs")
    for event in (5, 6):
        git(other.root, "tag", "-a", "-m", f"event {event}\nsha256 {'0' * 64}", f"ace#accepted#{event}")
    git(other.root, "push", "--quiet", "--follow-tags", "origin", "service")
    made.service.registry.rollback(1, ANNA, "worse")
    with pytest.raises(OperationsError, match=r"git merge --strategy ours origin/service"):
        made.publish()
    made.service.registry.release(ANNA, "better now")
    log = made.service.registry.log.read()
    git(made.root, "fetch", "--quiet", "origin")
    with pytest.raises(OperationsError, match="a tag of the registry keeps another sha256"):
        made.service.registry.events()
    git(made.root, "tag", "--delete", "ace#accepted#6")
    git(made.root, "fetch", "--quiet", "--no-tags", "origin")
    git(made.root, "merge", "--quiet", "--no-edit", "--strategy", "ours", "origin/service")
    assert made.service.registry.log.read() == log
    with pytest.raises(OperationsError, match="the tag 'ace#accepted#5' is another one there"):
        made.publish()
    git(made.root, "push", "--quiet", "origin", ":refs/tags/ace#accepted#5")
    made.publish()
    assert made.at_origin["refs/heads/service"] == made.head
    assert made.service.registry.log.read() == log
    assert first_problem(made.service.registry) is None


def test_another_tag_at_origin_is_named(made: Published) -> None:
    made.publish()
    git(made.origin, "update-ref", "refs/tags/ace@v1.0.0", made.head)
    with pytest.raises(OperationsError, match=r"the tag 'ace@v1\.0\.0' is another one there"):
        made.publish()


@pytest.mark.parametrize(("lost", "named"), [("origin", "origin"), ("remote", "DVC's remote")])
def test_a_remote_out_of_reach_loses_nothing(made: Published, lost: str, named: str) -> None:
    place: Path = getattr(made, lost)
    place.rename(place.with_name("away"))
    with pytest.raises(OutOfReachError, match=f"{named} cannot be reached"):
        made.publish()
    assert not place.exists()  # DVC would make a folder anew
    assert published_commit(made.root) is None
    place.with_name("away").rename(place)
    made.publish()
    assert published_commit(made.root) == made.head


@pytest.mark.parametrize("lost", ["origin", "remote"])
def test_only_what_is_out_of_reach_is_tried_again_and_not_for_ever(
    made: Published, lost: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, pauses_s = getattr(made, lost), []
    away = place.with_name("away")

    def come_back(pause_s: float) -> None:
        if pause_s:  # DVC's threads pause for none
            pauses_s.append(pause_s)
        if len(pauses_s) == 2 and away.exists():
            away.rename(place)

    place.rename(away)
    monkeypatch.setattr("time.sleep", come_back)
    lines = list(publish(Clone(made.root), pauses_s=(1, 2, 3)))
    assert pauses_s == [1, 2]
    said = [line for line in lines if "cannot be reached: " in line]
    assert [line.rpartition("; ")[2] for line in said] == ["trying again in 1 s", "trying again in 2 s"]


def test_data_that_is_nowhere_keeps_the_commits_here(made: Published) -> None:
    shutil.rmtree(made.root / ".dvc/cache")
    with pytest.raises(OperationsError, match="neither in DVC's cache nor at its remote"):
        made.publish()
    assert not made.at_origin


def test_nothing_is_published_from_a_log_that_was_changed(made: Published) -> None:
    log = made.root / "registry/events.jsonl"
    log.write_bytes(log.read_bytes().replace(b"Anna", b"Otto", 1))
    with pytest.raises(OperationsError, match="was changed"):
        made.publish()
    assert not made.at_remote


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda root: git(root, "config", "--unset", "remote.origin.url"), "git remote add origin URL"),
        (lambda root: git(root, "checkout", "--quiet", "-b", "mine"), "is on the branch 'mine'"),
    ],
)
def test_the_command_says_what_to_do_where_it_cannot_publish(
    made: Published, capsys: pytest.CaptureFixture[str], spoil: Callable[[Path], str], said: str
) -> None:
    spoil(made.root)
    assert run_command(build_parser(), ["ops", "publish", "--repo", str(made.root)]) == 2
    assert said in capsys.readouterr().err


def test_a_tag_that_a_killed_promotion_left_out_is_written_before_anything_is_pushed(made: Published) -> None:
    git(made.root, "tag", "--delete", "ace#accepted#4")
    made.publish()
    assert "refs/tags/ace#accepted#4" in made.at_origin


def test_half_lines_that_were_set_aside_are_published_too(made: Published) -> None:
    log = made.root / "registry/events.jsonl"
    with log.open("ab") as file:
        file.write(b'{"sequence": 5')
    made.service.registry.hold(ANNA, "the power went")
    made.publish()
    assert git(made.root, "status", "--porcelain") == ""
    assert git(made.root, "ls-tree", "-r", "--name-only", "HEAD", "--", "registry/set_aside/")


def test_data_that_the_remote_did_not_take_keeps_the_commits_here(
    made: Published, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dvc.data_cloud import DataCloud
    from dvc_data.hashfile.transfer import TransferResult

    monkeypatch.setattr(DataCloud, "push", lambda *_, **__: TransferResult(set(), set()))
    with pytest.raises(OutOfReachError, match="did not take"):
        made.publish()
    assert not made.at_origin


def test_the_log_is_committed_while_nobody_decides(made: Published, monkeypatch: pytest.MonkeyPatch) -> None:
    real, is_locked = publishing._commit_log, []

    def commit_log(*given: object) -> bool:
        for name in ("ace-registry.lock", "ace-publishing.lock"):
            lock = FileLock(made.root / ".git" / name, is_singleton=False)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                is_locked.append(True)
            else:
                is_locked.append(False)
                lock.release()
        return real(*given)

    monkeypatch.setattr(publishing, "_commit_log", commit_log)
    made.publish()
    assert is_locked == [True, True]
