"""Single images and patients that nothing reads any more, through the command that users give."""

import json
import os
import shutil
import stat
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import ace.__main__
from ace.inference.sources import open_shards
from ace.protocol.cohort import read_cohort
from shards.__main__ import build_parser
from shards.checking.stats import format_statistics
from shards.cli import run_command
from shards.core.config import read_params
from shards.core.errors import SourceError
from shards.core.identity import KEY_FILE_VARIABLE
from shards.delivery.batches import read_batch
from shards.delivery.manifest import iterate_manifest
from shards.format.exclusion import parse_list, read_exclusion
from shards.reading.lineage import write_lineage
from shards.reading.reader import ShardIndex
from tests.support.checkout import ROOT, copy_project
from tests.support.datasets import write_csv, write_folder, write_phantom

NAMES = [f"{patient:02}-{number}.png" for patient in range(20) for number in range(2)]
LIST, RECORD = Path("data/manifests/own-b000.exclude.txt"), Path("batches/own-b000.exclude.yaml")
SET = Path("data/shards/own-b000")
KEY = "5eed" * 16
"""The same in every test, so that all have the same pseudonyms and one built set does for them."""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with the batch `own-b000`: twenty patients with two images each."""
    return make_project(tmp_path, monkeypatch)


def make_project(root: Path, patch: pytest.MonkeyPatch) -> Path:
    (root / "id.key").write_text(KEY)
    patch.setenv(KEY_FILE_VARIABLE, str(root / "id.key"))
    (root / "project").mkdir()
    copy_project(root / "project")
    write_folder(root / "own", NAMES)
    write_csv(root / "own.csv", ("path", "patient"), [(name, name[:2]) for name in NAMES])
    patch.chdir(root / "project")
    assert command("register", "own-b000", "../own", "--labels", "../own.csv") == 0
    return root


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shard set of the images, built once; copied, never changed."""
    root = tmp_path_factory.mktemp("built")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACE_SCRATCH", str(root / "scratch"))
        make_project(root, patch)
        assert command("build", "--batch", "own-b000", "--num-workers", "1") == 0
    return root / "project" / SET


@pytest.fixture
def index(project: Path, built: Path) -> ShardIndex:
    """The built set of `own-b000`."""
    shutil.copytree(built, SET)
    return ShardIndex.open(SET)


def command(*arguments: str) -> int:
    return run_command(build_parser(), arguments)


def keys_of_manifest() -> list[str]:
    return [entry.record.source_id for _, entry in iterate_manifest(Path("data/manifests/own-b000.jsonl"))[1]]


def deps(stage: str) -> list[str]:
    return list(read_params(Path("dvc.yaml"))["stages"][stage]["deps"])


def test_an_excluded_image_is_read_by_nothing_and_stays_in_the_shards(index: ShardIndex, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in SET.iterdir()}
    gone = {split: index.keys(index.select(split)[:1])[0] for split in ("train", "test")}
    assert command("exclude", "own-b000", *gone.values()) == 0
    assert {path: path.read_bytes() for path in SET.iterdir()} == before
    left = ShardIndex.open(SET).without_excluded(Path())
    for split, key in gone.items():
        assert set(index.keys(index.select(split))) - set(left.keys(left.select(split))) == {key}
    assert len(left.select("val")) == len(index.select("val"))
    assert len(left.select("all")) == len(index.rows) - 2
    assert set(open_shards(left, "all").keys) == set(index.keys(index.select("all"))) - set(gone.values())
    assert gone["test"] not in {subject.key for subject in read_cohort(left, "test", 100, 0).subjects}
    write_lineage(tmp_path, {"own-b000": left})
    assert gone["train"] not in (tmp_path / "training_images.csv").read_text()
    assert left.fingerprint != index.fingerprint, "a training that was begun with the image does not go on without it"


def test_all_images_of_a_patient_are_excluded_and_other_batches_with_the_patient_are_named(
    index: ShardIndex, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_folder(project / "later", ["a.png"], first=100)
    write_csv(project / "later.csv", ("path", "patient"), [("a.png", "07")])
    assert command("register", "own-b001", "../later", "--labels", "../later.csv") == 0
    entries = [entry.record for _, entry in iterate_manifest(Path("data/manifests/own-b000.jsonl"))[1]]
    (patient,) = {record.patient for record in entries if record.image.path.startswith("07-")}
    capsys.readouterr()
    assert command("exclude", "own-b000", "--patient", patient) == 0
    said = capsys.readouterr().err
    assert "excludes 0 images and 1 patient of own-b000" in said
    assert f"`python -m shards exclude own-b001 --patient {patient}` excludes them there" in said
    left = ShardIndex.open(SET).without_excluded(Path())
    assert set(left.rows["patient"][left.select("all")].astype(str)) == {r.patient for r in entries} - {patient}
    assert sum(left.count_excluded().values()) == 2
    assert command("exclude", "own-b001", "--patient", patient) == 0
    assert "excludes them there" not in capsys.readouterr().err


def test_new_images_of_an_excluded_patient_are_named_with_the_command_that_excludes_them(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entries = [entry.record for _, entry in iterate_manifest(Path("data/manifests/own-b000.jsonl"))[1]]
    patient = entries[0].patient
    assert command("exclude", "own-b000", "--patient", patient) == 0
    names = [f"{number:02}-2.png" for number in range(20)]
    write_folder(project / "more", names, first=100)
    write_csv(project / "more.csv", ("path", "patient"), [(name, name[:2]) for name in names])
    capsys.readouterr()
    register = ("register", "own-b001", "../more", "--labels", "../more.csv")
    assert command(*register) == 0
    told = f"`python -m shards exclude own-b001 --patient {patient}` excludes them here too"
    assert f"own-b001 has images of 1 patient excluded from other batches; {told}" in capsys.readouterr().err
    assert command("exclude", "own-b001", "--patient", patient) == 0
    capsys.readouterr()
    assert command(*register) == 0
    assert "who are excluded" not in capsys.readouterr().err


def test_the_list_is_private_and_the_stages_that_read_the_set_depend_on_what_names_it(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    batch, keys = Path("batches/own-b000.yaml").read_text(), keys_of_manifest()
    dvc = Path("dvc.yaml").read_text()
    assert command("exclude", "own-b000", keys[0]) == 0
    assert stat.S_IMODE(LIST.stat().st_mode) == 0o600
    assert listed(LIST.read_text()) == keys[:1]
    assert keys[0] not in RECORD.read_text()
    assert Path("batches/own-b000.yaml").read_text() == batch, "or the shards would be stale"
    assert [str(RECORD) in deps(stage) for stage in ("pretrain", "report", "evaluate")] == [True] * 3
    first = RECORD.read_text()
    assert command("exclude", "own-b000", keys[1], keys[1]) == 0
    assert RECORD.read_text() != first
    assert listed(LIST.read_text()) == keys[:2]
    capsys.readouterr()
    assert command("exclude", "own-b000", "--list") == 0
    assert listed(capsys.readouterr().out) == keys[:2]
    assert command("exclude", "own-b000", "--undo", *keys[:2]) == 0
    assert not RECORD.exists()
    assert Path("dvc.yaml").read_text() == dvc


def listed(text: str) -> list[str]:
    """The lines of a list that are no note."""
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def test_who_knows_all_pseudonyms_cannot_tell_by_the_hash_in_git_whom_a_list_names(project: Path) -> None:
    patients = {entry.record.patient for _, entry in iterate_manifest(Path("data/manifests/own-b000.jsonl"))[1]}
    one, other = sorted(patients)[:2]
    hashes = []
    for undo in (False, True, False):
        words = ["--undo"] if undo else []
        assert command("exclude", "own-b000", *words, "--patient", one) == 0
        text = LIST.read_text()
        hashes += [] if undo else [RECORD.read_text()]
    assert hashes[0] == hashes[1], "the random line stays, so that the same list makes nothing stale"
    for guess in patients:
        assert sha256(f"patient {guess}\n".encode()).hexdigest() not in hashes[0]
    assert command("exclude", "own-b000", "--patient", other) == 0
    assert LIST.read_text() == f"{text}patient {other}\n"
    LIST.unlink()
    RECORD.unlink()
    assert command("exclude", "own-b000", "--patient", one) == 0
    assert RECORD.read_text() not in hashes, "no two lists have the same random line"


def test_a_batch_to_measure_on_makes_training_depend_on_nothing(project: Path) -> None:
    write_folder(project / "test", ["a.png", "b.png"], first=200)
    assert command("register", "test-b000", "../test", "--weight", "0") == 0
    key = next(iterate_manifest(Path("data/manifests/test-b000.jsonl"))[1])[1].record.source_id
    assert command("exclude", "test-b000", key) == 0
    found = {stage: "batches/test-b000.exclude.yaml" in deps(stage) for stage in ("pretrain", "report", "evaluate")}
    assert found == {"pretrain": False, "report": False, "evaluate": True}


def test_a_batch_that_is_taken_out_and_comes_back_is_without_the_same_images(project: Path) -> None:
    key = keys_of_manifest()[0]
    assert command("exclude", "own-b000", key) == 0
    dvc = Path("dvc.yaml").read_text()
    assert command("remove", "own-b000") == 0
    assert "exclude" not in "".join(dep for stage in ("pretrain", "report", "evaluate") for dep in deps(stage))
    assert command("register", "own-b000", "../own", "--labels", "../own.csv") == 0
    assert sorted(Path("dvc.yaml").read_text().splitlines()) == sorted(dvc.splitlines())
    write_folder(project / "new", [f"{number}.png" for number in range(130)], first=300)
    assert command("register", "new-b000", "../new", "--only") == 0
    assert "exclude" not in "".join(dep for stage in ("pretrain", "report", "evaluate") for dep in deps(stage))


def test_without_its_list_a_set_is_not_read(index: ShardIndex) -> None:
    key = index.keys(index.select("all"))[0]
    assert command("exclude", "own-b000", key) == 0
    LIST.write_text(f"# withdrawn in May\n{key}\n")
    with pytest.raises(SourceError, match=r"exclude\.txt: sha256 .* `python -m shards exclude own-b000` to take it"):
        index.without_excluded(Path())
    assert command("exclude", "own-b000") == 0
    assert index.without_excluded(Path()).excluded.keys == {key}
    assert command("exclude", "own-b000", "--undo", key) == 0
    assert LIST.read_text().splitlines()[1:] == ["# withdrawn in May"]
    assert command("exclude", "own-b000", key) == 0
    LIST.unlink()
    with pytest.raises(SourceError, match=r"exclude\.txt: not found"):
        index.without_excluded(Path())


@pytest.mark.parametrize("arguments", [[], ["--list"], ["KEY"], ["--patient", "KEY"], ["--undo", "KEY"]])
def test_a_list_that_is_lost_is_not_replaced_by_a_shorter_one(
    arguments: list[str], index: ShardIndex, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = index.keys(index.select("train")[:2])
    assert command("exclude", "own-b000", first) == 0
    text, record, dvc = LIST.read_text(), RECORD.read_text(), Path("dvc.yaml").read_text()
    LIST.unlink()
    capsys.readouterr()
    assert command("exclude", "own-b000", *(second if word == "KEY" else word for word in arguments)) == 2
    said = capsys.readouterr().err
    assert f"{LIST}: not found" in said
    assert "restore the list from a copy" in said
    assert (RECORD.read_text(), Path("dvc.yaml").read_text()) == (record, dvc)
    LIST.write_text(text)
    assert command("exclude", "own-b000", second) == 0
    assert parse_list(LIST.read_text()).keys == {first, second}


def test_a_list_that_is_lost_is_told_before_any_work(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("exclude", "own-b000", keys_of_manifest()[0]) == 0
    LIST.unlink()
    capsys.readouterr()
    assert run_command(ace.__main__.build_parser(), ("config", "check")) == 2
    assert f"{LIST}: not found" in capsys.readouterr().err


KILLED = """
import os, shutil, signal, sys
from itertools import count
from pathlib import Path

from shards.__main__ import build_parser
from shards.cli import run_command

begun, copies, words = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]


def enter(name):
    os.chdir(shutil.copytree(begun, copies / name, symlinks=True))


# What is imported and parsed here, each child finds done.
enter("whole")
assert run_command(build_parser(), words) == 0
for moment in count(1):
    enter(f"killed{moment:04d}")
    child = os.fork()
    if child == 0:
        left = moment

        def tell(event, arguments):
            global left
            if event in ("os.rename", "os.remove"):
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(tell)
        os._exit(run_command(build_parser(), words))
    status = os.waitpid(child, 0)[1]
    if status != signal.SIGKILL:
        assert status == 0
        shutil.rmtree(Path.cwd())
        break
"""
"""Python tells before it renames or removes a file; the command ends at one more of these moments each time."""


@pytest.mark.parametrize("undo", [False, True])
def test_after_a_kill_at_any_moment_the_set_is_not_read_or_dvc_knows_and_the_same_command_finishes(
    undo: bool, index: ShardIndex, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = index.keys(index.select("train")[:1])[0]
    if undo:
        assert command("exclude", "own-b000", key) == 0
    words = ["exclude", "own-b000", *(["--undo"] if undo else []), key]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    killing = [sys.executable, "-c", KILLED, str(project / "project"), str(project / "copies"), *words]
    subprocess.run(killing, env=environment, capture_output=True, check=True)
    copies = sorted((project / "copies").glob("killed*"))
    for copy in copies:
        monkeypatch.chdir(copy)
        is_dep = RECORD.as_posix() in Path("dvc.yaml").read_text()
        try:
            excluded = read_exclusion("own-b000", Path())
        except SourceError:  # nothing reads the set until the command is given again
            pass
        else:
            assert bool(excluded) == (RECORD.is_file() and is_dep), "a stage would not be stale"
            assert not excluded or is_dep
        left = read_lines()
        assert command(*(words if not undo or key in left else words[:2])) == 0
        assert (RECORD.is_file(), RECORD.as_posix() in Path("dvc.yaml").read_text()) == (not undo, not undo)
    assert len(copies) >= 3


def read_lines() -> str:
    return LIST.read_text() if LIST.is_file() else ""


def test_what_cannot_be_excluded_is_refused_with_the_closest_that_there_is(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = keys_of_manifest()[3]
    other = f"{key[:-1]}g"
    for arguments, message in (
        (("own-b000", other), f"1 of 1 keys belong to no image of own-b000, first '{other}'; the closest is '{key}'"),
        (("own-b000", "--patient", key), "1 of 1 keys belong to no patient of own-b000"),
        (("own-b000", "--undo", key), f"has no line '{key}'"),
        (("other", key), "has no batch 'other'; expected one of its batches: phantom-b000, own-b000"),
    ):
        assert command("exclude", *arguments) == 2
        assert message in capsys.readouterr().err
    assert not RECORD.exists()
    assert not LIST.exists()


def test_statistics_count_what_is_excluded(index: ShardIndex, capsys: pytest.CaptureFixture[str]) -> None:
    assert "excluded" not in format_statistics(index)
    assert command("exclude", "own-b000", *index.keys(index.select("train")[:2])) == 0
    capsys.readouterr()
    assert command("stats", str(SET), "--json") == 0
    assert json.loads(capsys.readouterr().out)[0]["excluded"] == {"train": 2, "val": 0, "test": 0}
    said = format_statistics(index.without_excluded(Path()))
    assert "excluded, in the shards and read by nothing: 2 images (train 2, val 0, test 0)" in said


def test_no_command_that_shows_or_embeds_a_set_has_an_excluded_image(index: ShardIndex, tmp_path: Path) -> None:
    key, *others = index.keys(index.select("all"))
    assert command("exclude", "own-b000", key) == 0
    assert command("gallery", "--batch", "own-b000", "--out", str(tmp_path / "gallery.html")) == 0
    page = (tmp_path / "gallery.html").read_text(encoding="utf-8")
    assert key not in page
    assert all(other in page for other in others)
    out = tmp_path / "embeddings.parquet"
    assert run_command(ace.__main__.build_parser(), ("embed", str(SET), "--model", "cxr-small", "--out", str(out))) == 0
    assert sorted(pq.read_table(out)["key"].to_pylist()) == sorted(others)


def test_of_the_phantom_images_can_be_excluded_once_its_shards_are_there(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("exclude", "phantom-b000", "p0001-i1") == 2
    assert "no shard set" in capsys.readouterr().err
    write_phantom(Path("data/phantom"))
    assert command("build", "--batch", "phantom-b000", "--num-workers", "1") == 0
    assert command("exclude", "phantom-b000", "p0001-i1") == 0
    left = ShardIndex.open("data/shards/phantom-b000").without_excluded(Path())
    assert "p0001-i1" not in left.keys(left.select("all"))
    assert read_batch("phantom-b000", Path()).source.kind == "phantom"


def test_a_list_may_say_why() -> None:
    found = parse_list("abc  # a name\n\n# all of\npatient  def # asked for it\n")
    assert (found.keys, found.patients) == ({"abc"}, {"def"})
