"""Every kind of damage is found and named, and a repair puts back exactly what was there."""

import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shards.__main__ import build_parser
from shards.build.job import BuildJob
from shards.build.stage import build_shards
from shards.checking.stats import format_statistics, statistics_of
from shards.checking.verify import repair_set, verify_set
from shards.cli import run_command
from shards.core.errors import IndexFormatError, SourceError
from shards.core.params import PhantomSourceParams, SourceParams
from shards.delivery.manifest import iterate_manifest
from shards.reading.reader import ShardIndex
from tests.support.datasets import (
    NO_CHECKS,
    Here,
    folder_bytes,
    folder_params,
    grid_params,
    shard_params,
    write_folder,
    write_phantom,
    write_project,
)

TAR = "train-000001.tar"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[PhantomSourceParams, Path]:
    root = tmp_path_factory.mktemp("whole")
    source = write_phantom(root / "phantom")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACE_SCRATCH", str(root / "scratch"))
        build_shards("a-b000", source, grid_params(), shard_params(), root / "set", execution=Here())
    return source, root / "set"


@pytest.fixture
def damaged(whole: tuple[PhantomSourceParams, Path], tmp_path: Path) -> Path:
    shutil.copytree(whole[1], tmp_path / "set")
    return tmp_path / "set"


def rewritten(path: Path, change: Callable[[list[tuple[tarfile.TarInfo, bytes]]], None]) -> None:
    """The tar with its members changed."""
    with tarfile.open(path) as tar:
        members = [(member, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]
    change(members)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for member, data in members:
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def truncate(root: Path) -> None:
    path = root / TAR
    path.write_bytes(path.read_bytes()[:7000])


def flip_a_bit(root: Path) -> None:
    content = bytearray((root / TAR).read_bytes())
    content[600] ^= 1  # in the description of the first sample
    (root / TAR).write_bytes(content)


def swap_two_members(root: Path) -> None:
    rewritten(root / TAR, lambda members: members.insert(0, members.pop(1)))


def rename_a_key(root: Path) -> None:
    def change(members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
        first = members[0][0].name.partition(".")[0]
        for member, _ in members:
            member.name = member.name.replace(first, "p9999-i1")

    rewritten(root / TAR, change)


def repeat_a_sample(root: Path) -> None:
    rewritten(root / TAR, lambda members: members.extend(members[:2]))


def edit_the_rows(root: Path) -> None:
    rows = np.load(root / "samples.npy")
    rows["key"][1] = rows["key"][0]
    np.save(root / "samples.npy", rows)


def edit_the_rows_and_the_sum(root: Path) -> None:
    import hashlib

    edit_the_rows(root)
    values = json.loads((root / "index.json").read_text())
    values["samples"]["sha256"] = hashlib.sha256((root / "samples.npy").read_bytes()).hexdigest()
    (root / "index.json").write_text(json.dumps(values))


DAMAGES = {
    "a tar is missing": lambda root: (root / TAR).unlink(),
    "a tar is truncated": truncate,
    "an archive ends early": truncate,
    "a tar is too long": lambda root: (root / TAR).write_bytes((root / TAR).read_bytes() + b"\0" * 512),
    "checksum mismatch": flip_a_bit,
    "members are not where the index says": swap_two_members,
    "keys of the index are not in the tar": rename_a_key,
    "keys of the tar are not in the index": rename_a_key,
    "a tar that the index does not list": lambda root: shutil.copy(root / TAR, root / "train-000099.tar"),
    "a key is in two rows": edit_the_rows_and_the_sum,
}


def test_a_whole_set_has_nothing_wrong(whole: tuple[PhantomSourceParams, Path]) -> None:
    assert verify_set(whole[1]) == []


@pytest.mark.parametrize("kind", DAMAGES)
def test_every_damage_is_found_in_its_file(kind: str, damaged: Path) -> None:
    DAMAGES[kind](damaged)
    found = {problem.kind: problem.file for problem in verify_set(damaged)}
    assert kind in found
    if kind not in ("a tar that the index does not list", "a key is in two rows"):
        assert set(found.values()) == {TAR}


def test_a_sample_that_is_twice_in_a_tar_is_out_of_place(damaged: Path) -> None:
    repeat_a_sample(damaged)
    assert "members are not where the index says" in {problem.kind for problem in verify_set(damaged)}


def job_of(source: SourceParams, **changes: object) -> BuildJob:
    return BuildJob(batch="a-b000", source=source, grid=grid_params(), params=shard_params(**changes))


def change_the_index(change: Callable[[dict], None]) -> Callable[[Path], None]:
    def damage(root: Path) -> None:
        values = json.loads((root / "index.json").read_text())
        change(values)
        (root / "index.json").write_text(json.dumps(values))

    return damage


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda values: values["shards"][0].update(split="test"), "rows are of other tars or splits than the index"),
        (lambda values: values["counts"]["patients"].update(train=99), "counts are not those of the rows"),
        (lambda values: values.pop("reports"), "the index cannot be used"),
        (lambda values: values.pop("spec"), "the index cannot be used"),
        (lambda values: values["shards"][0].pop("sha256"), "the index cannot be used"),
        (lambda values: values["shards"][0].update(split="nowhere"), "the index cannot be used"),
    ],
)
def test_an_index_that_contradicts_itself_is_found(change: Callable[[dict], None], kind: str, damaged: Path) -> None:
    change_the_index(change)(damaged)
    (problem,) = verify_set(damaged)
    assert problem.file == "index.json"
    assert problem.kind.startswith(kind)


@pytest.mark.parametrize("name", ["quarantine.csv", "quality.parquet", "quality.png", "contact_sheet.png"])
@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(path.read_bytes()[:-9])])
def test_a_damaged_report_is_found_and_a_repair_leaves_it_alone(
    damage: Callable[[Path], None], name: str, whole: tuple[PhantomSourceParams, Path], damaged: Path, scratch: Path
) -> None:
    damage(damaged / name)
    truncate(damaged)
    before = {key: value for key, value in folder_bytes(damaged).items() if key != TAR}
    found = verify_set(damaged)
    assert (name, "a report is missing or changed") in {(problem.file, problem.kind) for problem in found}
    assert repair_set(damaged, found, job_of(whole[0]), Here()) == [TAR]
    assert [problem.file for problem in verify_set(damaged)] == [name]
    assert folder_bytes(damaged) == before | {TAR: (whole[1] / TAR).read_bytes()}


@pytest.mark.parametrize("damage", [edit_the_rows, lambda root: (root / "index.json").write_text("{")])
def test_a_damaged_index_is_one_problem_and_no_traceback(damage: Callable[[Path], None], damaged: Path) -> None:
    damage(damaged)
    (problem,) = verify_set(damaged)
    assert (problem.file, problem.kind) == ("index.json", "the index cannot be used")
    with pytest.raises(IndexFormatError, match="dvc checkout"):
        repair_set(damaged, [problem], None, Here())  # type: ignore[arg-type]


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, rename_a_key, lambda root: (root / TAR).unlink()])
def test_a_repair_builds_exactly_the_damaged_tar_and_its_bytes_are_as_before(
    damage: Callable[[Path], None], whole: tuple[PhantomSourceParams, Path], damaged: Path, scratch: Path
) -> None:
    source, original = whole
    damage(damaged)
    before = {path.name: path.stat().st_mtime_ns for path in damaged.iterdir() if path.name != TAR}
    repaired = repair_set(damaged, verify_set(damaged), job_of(source), Here())
    assert repaired == [TAR]
    assert folder_bytes(damaged) == folder_bytes(original)
    assert {path.name: path.stat().st_mtime_ns for path in damaged.iterdir() if path.name != TAR} == before
    assert verify_set(damaged) == []


def test_a_repair_replaces_a_link_and_never_writes_through_it(
    whole: tuple[PhantomSourceParams, Path], damaged: Path, tmp_path: Path, scratch: Path
) -> None:
    truncate(damaged)
    (tmp_path / "cache").hardlink_to(damaged / TAR)
    content = (tmp_path / "cache").read_bytes()
    repair_set(damaged, verify_set(damaged), job_of(whole[0]), Here())
    assert (tmp_path / "cache").read_bytes() == content
    assert (damaged / TAR).read_bytes() == (whole[1] / TAR).read_bytes()


def test_a_repair_with_other_parameters_is_refused_and_changes_nothing(
    whole: tuple[PhantomSourceParams, Path], damaged: Path, scratch: Path
) -> None:
    truncate(damaged)
    before = folder_bytes(damaged)
    with pytest.raises(IndexFormatError, match=r"dvc repro --force"):
        repair_set(damaged, verify_set(damaged), job_of(whole[0], seed=9), Here())
    assert folder_bytes(damaged) == before


def test_tars_without_what_was_quarantined_after_the_build_are_repaired_to_the_byte(
    tmp_path: Path, scratch: Path
) -> None:
    """A file that is there twice, pixels that are, a blank image and a damaged one; every tar is lost in turn."""
    source, images = write_phantom(tmp_path / "phantom"), tmp_path / "phantom" / "images"
    shutil.copy(images / "p0002-i1.png", images / "p0009-i2.png")
    Image.open(images / "p0004-i1.png").save(images / "p0011-i2.png", compress_level=1)
    Image.new("L", (48, 48), 50).save(images / "p0006-i1.png")
    (images / "p0013-i1.png").write_bytes((images / "p0013-i1.png").read_bytes()[:-60])
    build_shards("a-b000", source, grid_params(), shard_params(), tmp_path / "set", execution=Here())
    assert len((tmp_path / "set" / "quarantine.csv").read_text().splitlines()) == 5
    whole = folder_bytes(tmp_path / "set")
    for name in (name for name in whole if name.endswith(".tar")):
        (tmp_path / "set" / name).unlink()
        problems = verify_set(tmp_path / "set")
        repair_set(tmp_path / "set", problems, job_of(source), Here())
        assert folder_bytes(tmp_path / "set") == whole


def test_a_repair_needs_the_raw_files_of_the_damaged_tars_alone(tmp_path: Path, scratch: Path, id_key: str) -> None:
    write_folder(tmp_path / "own", [f"{number}.png" for number in range(20)])
    source = folder_params(tmp_path / "own", tmp_path / "manifest.jsonl")
    params = shard_params(quality=NO_CHECKS, splits={"train": 1.0, "val": 0.0, "test": 0.0})
    job = BuildJob(batch="a-b000", source=source, grid=grid_params(), params=params)
    build_shards("a-b000", source, grid_params(), params, tmp_path / "set", execution=Here())
    whole = folder_bytes(tmp_path / "set")
    (tmp_path / "set" / TAR).unlink()
    problems = verify_set(tmp_path / "set")
    kept = ShardIndex.open(tmp_path / "set", check_tars=False).keys(np.arange(5, 10))
    entries = [entry for _, entry in iterate_manifest(tmp_path / "manifest.jsonl")[1]]
    for entry in entries:
        if entry.record.source_id not in kept:
            (tmp_path / "own" / entry.record.image.path).unlink()
    repair_set(tmp_path / "set", problems, job, Here())
    assert folder_bytes(tmp_path / "set") == whole
    (tmp_path / "set" / TAR).unlink()
    shutil.rmtree(tmp_path / "own")
    with pytest.raises(SourceError, match="own is not there; expected the manifest, the images"):
        repair_set(tmp_path / "set", problems, job, Here())


def test_the_commands_verify_repair_stats_and_show(
    whole: tuple[PhantomSourceParams, Path],
    damaged: Path,
    tmp_path: Path,
    scratch: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def run(*arguments: str, code: int = 0) -> str:
        assert run_command(build_parser(), arguments) == code
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return said.out

    write_project(tmp_path, "a-b000", whole[0], grid_params(), shard_params())
    flip_a_bit(damaged)
    problems = json.loads(run("verify", str(damaged), str(whole[1]), "--json", code=1))
    assert [(problem["file"], problem["problem"]) for problem in problems] == [(TAR, "checksum mismatch")]
    answer = run("verify", str(damaged), "--repair", "--params", str(tmp_path / "params.yaml"), "--num-workers", "1")
    assert answer == "OK: 1 shard set verified\n"

    (statistics,) = json.loads(run("stats", str(damaged), "--json"))
    assert statistics == statistics_of(ShardIndex.open(damaged))
    assert format_statistics(ShardIndex.open(damaged)) in run("stats", str(damaged))

    picture = tmp_path / "sample.png"
    run("show", str(damaged), "p0003-i1", "--out", str(picture))
    with Image.open(picture) as image:
        assert image.width > 3 * 600
    assert json.loads(run("show", str(damaged), "p0003-i1", "--json"))["key"] == "p0003-i1"
    run("show", str(damaged), "nobody", code=2)
    run("show", str(damaged), "0", "--pair", "-1", code=2)
    run("show", str(damaged), "0", "--out", str(tmp_path / "sample.parquet"), code=2)
    (damaged / "quality.parquet").write_bytes(b"")
    (problem,) = json.loads(run("verify", str(damaged), str(whole[1]), "--json", code=1))
    assert problem["file"] == "quality.parquet"
    (damaged / "index.json").write_text("[]")
    problems = json.loads(run("verify", str(whole[1]), str(damaged), "--repair", "--json", code=1))
    assert [(problem["location"], problem["file"]) for problem in problems] == [(str(damaged), "index.json")]
    with pytest.raises(SystemExit, match="2"):
        run("verify", str(damaged), "--num-workers", "0")
    run("show", str(damaged), "p0003-i1", "--pair", "99", "--out", str(picture), code=2)


def test_statistics_add_up_to_the_samples(whole: tuple[PhantomSourceParams, Path]) -> None:
    index = ShardIndex.open(whole[1])
    statistics = statistics_of(index)
    assert sum(statistics["images"].values()) == len(index.rows)
    assert sum(statistics["bytes"].values()) == sum(path.stat().st_size for path in whole[1].glob("*.tar"))
    for split, images in statistics["images"].items():
        assert sum(statistics["labels"][split]["nodule"].values()) == images
        assert 0 < statistics["foreground"][split] <= 1
    text = format_statistics(index)
    assert max(map(len, text.splitlines())) <= 120
    assert "nodule" in text
