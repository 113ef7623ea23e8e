"""Real builds of a folder with planted defects."""

import csv
import json
import shutil
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from shards.__main__ import build_parser
from shards.build.stage import build_shards
from shards.build.tar_files import TarFiles
from shards.checking.verify import find_copies
from shards.cli import run_command
from shards.core.errors import IndexFormatError, SourceError
from shards.core.params import RegisteredSourceParams
from shards.core.quality_params import QualityParams
from shards.delivery.manifest import iterate_manifest
from shards.quality.judge import Images, judge
from shards.quality.measure import MEASURE_DTYPE, ImageMeasures, measure
from shards.quality.reasons import (
    BLANK,
    BURNED_IN,
    CONTRADICTION,
    INVERTED,
    LATERAL,
    SAME_FILE,
    SAME_PICTURE,
    SAME_PICTURE_ELSEWHERE,
    SAME_PIXELS,
    SATURATED,
    UPSIDE_DOWN,
)
from shards.quality.report import near_duplicates_between
from shards.quality.store import MeasureFiles, MeasureStore
from shards.reading.reader import ShardIndex, ShardReader
from shards.runtime.execution import Processes
from tests.support.datasets import (
    QUALITY,
    Here,
    folder_bytes,
    folder_params,
    grid_params,
    shard_params,
    write_csv,
    write_phantom,
    write_project,
)

PLANTED = {
    "blank.png": BLANK,
    "cut-off.png": SATURATED,
    "negative.png": INVERTED,
    "upside-down.png": UPSIDE_DOWN,
    "same-file.png": SAME_FILE,
    "same-pixels.png": SAME_PIXELS,
    "cropped-copy.png": SAME_PICTURE_ELSEWHERE,
}
SHARD = {"max_quarantined_fraction": 0.5, "splits": {"train": 1.0, "val": 0.0, "test": 0.0}, "num_images_per_shard": 8}


def params(**changes: Any) -> Any:
    return shard_params(**SHARD | changes)


@pytest.fixture
def planted(chests: list[np.ndarray], laterals: list[np.ndarray], tmp_path: Path) -> RegisteredSourceParams:
    """Images that a test may change (`plant`)."""
    return plant(chests, laterals, tmp_path)


@pytest.fixture(scope="module")
def shared(
    chests: list[np.ndarray], laterals: list[np.ndarray], tmp_path_factory: pytest.TempPathFactory
) -> RegisteredSourceParams:
    """The same images, which no test changes."""
    return plant(chests, laterals, tmp_path_factory.mktemp("shared"))


@pytest.fixture(scope="module")
def inspected(shared: RegisteredSourceParams, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Their shard set."""
    return built_once(shared, tmp_path_factory.mktemp("inspected"))


@pytest.fixture(scope="module")
def unjudged(shared: RegisteredSourceParams, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Their shard set where every check is off."""
    return built_once(shared, tmp_path_factory.mktemp("unjudged"), quality=ignoring())


def built_once(source: RegisteredSourceParams, folder: Path, **changes: Any) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACE_SCRATCH", str(folder / "scratch"))
        build(source, folder / "out", **changes)
    return folder / "out"


def plant(chests: list[np.ndarray], laterals: list[np.ndarray], folder: Path) -> RegisteredSourceParams:
    """Twenty-eight good radiographs, ten of them for the test, seven bad ones, a lateral and a pair of near copies."""
    root = folder / "raw"
    root.mkdir()
    for number, image in enumerate(chests[:28]):
        Image.fromarray(image).save(root / f"good{number:02d}.png")
    bad = {
        "blank.png": np.full((160, 160), 90, np.uint8),
        "cut-off.png": np.minimum(chests[0].astype(int) * 257, 255).astype(np.uint8),
        "negative.png": 255 - chests[28],
        "side.png": laterals[0],
        "upside-down.png": chests[29][::-1],
        "same-pixels.png": chests[1],
        "cropped-copy.png": chests[2][3:-3, 3:-3],
        "twin.png": chests[12][3:-3, 3:-3],
    }
    for name, image in bad.items():
        Image.fromarray(image).save(root / name, compress_level=1)
    shutil.copy(root / "good03.png", root / "same-file.png")
    rows = []
    for path in sorted(root.iterdir()):
        number = path.stem.removeprefix("good")
        split = "test" if number.isdecimal() and int(number) < 10 else "train"
        rows.append((path.name, path.stem, "PA", split, int(number in ("01", "03"))))
    write_csv(folder / "labels.csv", ("path", "patient", "view", "split", "Effusion"), rows)
    return folder_params(root, folder / "m.jsonl", folder / "labels.csv")


def build(source: Any, out: Path, num_workers: int | None = None, **changes: Any) -> ShardReader:
    execution = Here() if num_workers is None else Processes(num_workers)
    build_shards("own-b000", source, grid_params(), params(**changes), out, execution=execution)
    return ShardReader(ShardIndex.open(out))


def names(source: RegisteredSourceParams) -> list[str]:
    """Of the manifest's images in its order."""
    _, entries = iterate_manifest(Path(source.dep))
    return [entry.record.image.path for _, entry in entries]


def report(out: Path, source: RegisteredSourceParams) -> dict[str, dict[str, Any]]:
    """File name → row of quality.parquet."""
    rows = pq.read_table(out / "quality.parquet").to_pylist()
    listed = names(source)
    return {listed[int(row["place"].split()[-1]) - 1]: row for row in rows}


@pytest.mark.slow
def test_every_planted_defect_is_quarantined_for_its_reason_and_nothing_else_is(
    planted: RegisteredSourceParams, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reader = build(planted, tmp_path / "out")
    rows = report(tmp_path / "out", planted)
    assert sorted(rows) == sorted(names(planted))
    assert {name: row["reason"] for name, row in rows.items() if row["verdict"] == "quarantined"} == PLANTED
    suspects = {name: row["reason"] for name, row in rows.items() if row["verdict"] == "suspect"}
    assert suspects == {"good12.png": SAME_PICTURE, "twin.png": SAME_PICTURE, "side.png": LATERAL}
    assert all(row["reason"] is None for row in rows.values() if row["verdict"] == "kept")
    groups: dict[str, set[str]] = {}
    for name, row in rows.items():
        if row["group"]:
            groups.setdefault(row["group"], set()).add(name)
    assert sorted(map(sorted, groups.values())) == [
        ["cropped-copy.png", "good02.png"],
        ["good01.png", "same-pixels.png"],
        ["good03.png", "same-file.png"],
        ["good12.png", "twin.png"],
    ]
    values = reader.index.description.to_json()
    assert values["quarantined"] == {"count": 7, "reasons": dict.fromkeys(sorted(PLANTED.values()), 1)}
    assert values["quality"]["suspects"] == {"count": 3, "reasons": {LATERAL: 1, SAME_PICTURE: 2}}
    assert values["quality"]["num_groups_of_copies"] == 4
    assert values["quality"]["view_means"]["PA"]["coherence"] > 0.7
    assert values["counts"]["images"] == {"train": 20, "val": 0, "test": 10}
    assert values["counts"]["labels"]["test"] == {"Effusion": {"0": 8, "1": 2}}
    assert "30 images" in (said := capsys.readouterr().err)
    assert "7 quarantined, 3 suspect" in said


def test_the_shards_hold_the_kept_samples_alone_and_the_index_finds_each(
    shared: RegisteredSourceParams, inspected: Path, unjudged: Path
) -> None:
    reader = ShardReader(ShardIndex.open(inspected))
    rows = report(inspected, shared)
    kept = {row["key"]: name for name, row in rows.items() if row["verdict"] != "quarantined"}
    assert sorted(reader.index.keys(np.arange(len(reader.index.rows)))) == sorted(kept)
    reader.index.verify()
    whole = ShardReader(ShardIndex.open(unjudged))
    everything = {sample.key: sample for sample in map(whole.read, range(len(whole.index.rows)))}
    for row in range(len(reader.index.rows)):
        sample = reader.read(row)
        assert np.array_equal(sample.image, everything[sample.key].image)
        assert sample.meta == everything[sample.key].meta
    published = b"".join(path.read_bytes() for path in inspected.glob("*.tar"))
    for row in rows.values():
        assert (row["key"].encode() in published) == (row["verdict"] != "quarantined")


def ignoring() -> dict[str, Any]:
    return {name: section | ({"action": "ignore"} if "action" in section else {}) for name, section in QUALITY.items()}


def test_nothing_is_judged_or_remarked_on_where_every_check_is_off(
    shared: RegisteredSourceParams, unjudged: Path
) -> None:
    index = ShardIndex.open(unjudged)
    assert len(index.rows) == 37
    assert index.description.quality.suspects.to_json() == {"count": 0, "reasons": {}}
    assert index.description.quality.num_groups_of_copies == 0
    assert {row["verdict"] for row in report(unjudged, shared).values()} == {"kept"}


def test_the_private_list_names_the_files_and_the_set_does_not(
    planted: RegisteredSourceParams, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build(planted, tmp_path / "out")
    with (tmp_path / "own-b000.quarantine.csv").open(newline="") as file:
        assert {row["path"]: row["reason"] for row in csv.DictReader(file)} == PLANTED
    assert str(tmp_path / "own-b000.quarantine.csv") in capsys.readouterr().err
    published = b"".join(folder_bytes(tmp_path / "out").values())
    parquet = str(pq.read_table(tmp_path / "out" / "quality.parquet").drop(["thumbnail"]).to_pylist()).encode()
    for name in names(planted):
        assert name.encode() not in published + parquet
    with (tmp_path / "out" / "quarantine.csv").open(newline="") as file:
        listed = list(csv.DictReader(file))
    assert sorted(row["reason"] for row in listed) == sorted(PLANTED.values())
    assert all(row["path"].startswith("manifest image ") for row in listed)
    build(planted, tmp_path / "out", quality=ignoring())
    assert not (tmp_path / "own-b000.quarantine.csv").exists()


def test_pictures_of_quarantined_images_are_not_in_the_report(shared: RegisteredSourceParams, inspected: Path) -> None:
    rows = report(inspected, shared)
    assert {name for name, row in rows.items() if row["thumbnail"] is None} == set(PLANTED)
    assert {name for name, row in rows.items() if row["std"] is None} == {"same-file.png"}
    assert rows["blank.png"]["std"] == 0


def test_a_picture_that_may_show_a_name_is_shown_nowhere(
    planted: RegisteredSourceParams, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def marked(grey: np.ndarray, *others: Any, is_burned_in: bool | None) -> ImageMeasures:
        return measure(grey, *others, is_burned_in=bool((grey == 255 - 90).all()) or is_burned_in)

    Image.new("L", (160, 160), 255 - 90).save(Path(planted.root) / "marked.png")
    monkeypatch.setattr("shards.build.encode.measure", marked)
    source = folder_params(Path(planted.root), tmp_path / "m.jsonl")
    build(source, tmp_path / "out")
    row = report(tmp_path / "out", source)["marked.png"]
    assert (row["verdict"], row["reason"], row["burned_in"]) == ("quarantined", BURNED_IN, True)
    assert row["thumbnail"] is None
    with Image.open(tmp_path / "out" / "quality.png") as sheet:
        # A tile has 192 × 192 pixels; a few of other pictures have this grey too.
        assert (np.asarray(sheet) == 255 - 90).all(axis=2).sum() < 192**2 / 2


@pytest.mark.slow
def test_builds_with_one_and_two_workers_are_byte_identical(planted: RegisteredSourceParams, tmp_path: Path) -> None:
    build(planted, tmp_path / "a", num_workers=1)
    build(planted, tmp_path / "b", num_workers=2)
    assert folder_bytes(tmp_path / "a") == folder_bytes(tmp_path / "b")


def test_a_threshold_fails_the_stage_and_the_next_run_judges_the_same_tars_again(
    planted: RegisteredSourceParams, tmp_path: Path, scratch: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SourceError) as error:
        build(planted, tmp_path / "out", max_quarantined_fraction=0.1)
    assert "4 of 37 images cannot be used" in str(error.value)
    assert "the same" not in str(error.value), "a copy is no fault: its original is kept"
    assert f"1 × {INVERTED}" in str(error.value)
    assert str(tmp_path / "own-b000.quarantine.csv") in str(error.value)
    assert not (tmp_path / "out").exists()
    (tar,) = scratch.rglob("test-000000.tar")
    inode = tar.stat().st_ino
    without_inverted = QUALITY | {"inverted": QUALITY["inverted"] | {"action": "ignore"}}
    reader = build(planted, tmp_path / "out", max_quarantined_fraction=0.1, quality=without_inverted)
    assert (tmp_path / "out" / "test-000000.tar").stat().st_ino == inode
    assert len(reader.index.rows) == 31
    build(planted, tmp_path / "fresh", max_quarantined_fraction=0.1, quality=without_inverted)
    assert folder_bytes(tmp_path / "out") == folder_bytes(tmp_path / "fresh")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="ends a process in the middle")
def test_a_build_killed_while_tars_are_rewritten_goes_on_and_leaves_the_same_bytes(
    shared: RegisteredSourceParams, inspected: Path, tmp_path: Path, scratch: Path
) -> None:
    write_project(tmp_path, "own-b000", shared, grid_params(), params())
    command = ["shard", "--batch", "own-b000", "--num-workers", "1"]
    command += ["--params", str(tmp_path / "params.yaml"), "--out", str(tmp_path / "killed")]
    process = subprocess.Popen([sys.executable, "-m", "shards", *command], stderr=subprocess.DEVNULL)
    while not list(scratch.rglob(f"{TarFiles(Path(), 'a.tar').without_quarantined.folder}/*")):
        assert process.poll() is None, "the build ended before the kill"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed").exists()
    assert run_command(build_parser(), command) == 0
    assert folder_bytes(tmp_path / "killed") == folder_bytes(inspected)
    assert {path.suffix for path in scratch.rglob("*") if path.is_file()} <= {".lock"}


def test_a_mask_that_contradicts_its_label_is_remarked_on_by_name(tmp_path: Path) -> None:
    source = write_phantom(tmp_path / "phantom")
    for name, drawn in (("p0002-i1", True), ("p0003-i1", False)):
        mask = np.full((48, 48), drawn)
        Image.fromarray(mask).save(tmp_path / "phantom" / "masks" / "nodule" / f"{name}.png")
    build_shards("a-b000", source, grid_params(), shard_params(), tmp_path / "out", execution=Here())
    rows = {row["key"]: row for row in pq.read_table(tmp_path / "out" / "quality.parquet").to_pylist()}
    found = {key for key, row in rows.items() if CONTRADICTION in (row["reason"] or "")}
    assert found == {"p0002-i1", "p0003-i1"} == {key for key, row in rows.items() if row["contradictions"]}
    assert rows["p0003-i1"]["contradictions"] == ["nodule"]
    assert dict(rows["p0002-i1"]["mask_areas"]) == {"heart": pytest.approx(18 * 19 / 48**2), "nodule": 1}


def test_a_tar_whose_samples_are_all_quarantined_is_not_published(tmp_path: Path) -> None:
    source = write_phantom(tmp_path / "phantom")
    names = [path.stem for path in sorted((tmp_path / "phantom" / "images").iterdir())]
    first = ShardReader(_phantom_index(source, tmp_path / "whole"))
    chosen = [row["key"].decode() for row in first.index.rows if row["shard"] == 0]
    for level, name in enumerate(names, start=60):
        if name in chosen:
            Image.new("L", (48, 48), level).save(tmp_path / "phantom" / "images" / f"{name}.png")
    index = _phantom_index(source, tmp_path / "out")
    assert [tar.name for tar in index.shards] == [tar.name for tar in first.index.shards][1:]
    assert index.description.quarantined.to_json() == {"count": len(chosen), "reasons": {BLANK: len(chosen)}}
    for row in range(len(index.rows)):
        ShardReader(index).read(row)


def _phantom_index(source: Any, out: Path) -> ShardIndex:
    build_shards("a-b000", source, grid_params(), shard_params(max_quarantined_fraction=0.4), out, execution=Here())
    return ShardIndex.open(out)


def test_copies_between_sets_are_found_across_splits_and_quarantined_images_are_no_part_of_it(
    chests: list[np.ndarray], shared: RegisteredSourceParams, inspected: Path, tmp_path: Path
) -> None:
    root = tmp_path / "more"
    root.mkdir()
    images = {
        "new": chests[29],
        "of-test": chests[4][2:-2, 2:-2],
        "of-train": chests[20],
        "of-negative": 255 - chests[28],
    }
    for name, image in images.items():
        Image.fromarray(image).save(root / f"{name}.png")
    source = folder_params(root, tmp_path / "more.jsonl")
    build(source, tmp_path / "second")
    reports = [inspected / "quality.parquet", tmp_path / "second" / "quality.parquet"]
    (pair,) = near_duplicates_between(reports)
    (finding,) = find_copies([inspected, tmp_path / "second"])
    assert f"{pair.first.key} ({pair.first.split}) is {pair.second.key}" in finding.detail
    first, second = report(inspected, shared), report(tmp_path / "second", source)
    assert (pair.first.report, pair.second.report) == tuple(reports)
    assert (pair.first.key, pair.first.split) == (first["good04.png"]["key"], "test")
    assert (pair.second.key, pair.second.split) == (second["of-test.png"]["key"], "train")
    assert pair.correlation > 0.95
    (reverse,) = near_duplicates_between(reports[::-1])
    assert (reverse.first, reverse.second) == (pair.second, pair.first)
    assert near_duplicates_between(reports[:1]) == []


def test_a_report_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"no parquet")
    for name in ("a.parquet", "missing.parquet"):
        with pytest.raises(IndexFormatError, match=f"{name}: found no quality report"):
            near_duplicates_between([tmp_path / name, tmp_path / name])


def test_the_memory_of_judging_does_not_hold_the_pictures(tmp_path: Path) -> None:
    peaks = [peak_bytes(tmp_path / str(num), num) for num in (500, 3000)]
    assert (peaks[1] - peaks[0]) / 2500 < 1000, "a thumbnail alone has 4096 bytes"


def peak_bytes(folder: Path, num_images: int) -> int:
    folder.mkdir()
    tars = tuple(written(folder, num_images))
    tracemalloc.start()
    store = MeasureStore(tars, folder / "compared")
    none = np.zeros(num_images, np.int64)
    images = Images(
        keys=none.astype("U16"),
        patients=np.arange(num_images),
        ranks=none,
        views=np.full(num_images, "PA"),
        numbers=store.numbers(),
        contradicts=none > 0,
        is_kept=none > 0,
    )
    judge(images, store, QualityParams.from_params(QUALITY, "test: quality"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def written(folder: Path, num_images: int) -> Iterator[MeasureFiles]:
    """Measures of random images, as the worker writes them."""
    rng = np.random.default_rng(0)
    for start in range(0, num_images, 100):
        values = np.zeros(100, MEASURE_DTYPE)
        values["std"], values["entropy_bits"], values["num_levels"], values["brightest"] = 50, 7, 200, 255
        values["hashes"] = rng.integers(0, 2**64, values["hashes"].shape, dtype=np.uint64)
        values["pixels"] = rng.integers(0, 2**64, values["pixels"].shape, dtype=np.uint64)
        values["thumbnail"] = rng.integers(0, 256, values["thumbnail"].shape, dtype=np.uint8)
        files = TarFiles(folder, f"{start}.tar").measures
        np.save(files.values, values)
        yield files


def test_index_json_names_every_view_mean(inspected: Path) -> None:
    quality = json.loads((inspected / "index.json").read_text())["quality"]
    assert quality["view_means"]["PA"]["has_bright_corners"] is False
    with Image.open(inspected / "quality.png") as sheet:
        # The mean, six quarantined that could be read, and three suspects: two rows of tiles.
        assert sheet.size == (1208, 524)
        assert np.ptp(np.asarray(sheet)[10:190, 10:190]) > 60
