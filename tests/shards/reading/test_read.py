import gc
import hashlib
import io
import json
import multiprocessing
import pickle
import re
import shutil
import tarfile
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from shards.build.stage import build_shards
from shards.core.errors import IndexFormatError
from shards.format.layout import ROW_DTYPE, SampleSpans
from shards.reading.reader import Sample, ShardIndex, ShardReader
from tests.support.datasets import Here, grid_params, shard_params, write_phantom


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One shard set that no test changes."""
    root = tmp_path_factory.mktemp("read")
    source = write_phantom(root / "phantom")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACE_SCRATCH", str(root / "scratch"))
        build_shards("phantom-b000", source, grid_params(), shard_params(), root / "set", execution=Here())
    return root / "set"


@pytest.fixture
def copy(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "set"))


def test_the_index_describes_the_set(built: Path) -> None:
    index = ShardIndex.open(built)
    assert (index.name, index.channels) == ("phantom-b000", 1)
    assert index.spec == grid_params().spec
    selected = [index.select(split) for split in ("train", "val", "test")]  # type: ignore[arg-type]
    assert sorted(np.concatenate(selected).tolist()) == list(range(30))
    for rows in selected:
        names = [index.shards[number].name for number in index.rows["shard"][rows]]
        assert names == sorted(names)
    assert index.description.to_text() == (built / "index.json").read_text()
    index.verify()


def test_the_fingerprint_changes_with_any_content(built: Path, copy: Path) -> None:
    before = ShardIndex.open(built).fingerprint
    assert ShardIndex.open(copy).fingerprint == before
    values = json.loads((copy / "index.json").read_text())
    values["shards"][0]["sha256"] = "0" * 64
    (copy / "index.json").write_text(json.dumps(values))
    assert ShardIndex.open(copy).fingerprint != before


# webdataset leaves its tars to the garbage collector.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_webdataset_reads_the_same_samples(built: Path) -> None:
    index = ShardIndex.open(built)
    reader = ShardReader(index)
    ours = {sample.key: sample for sample in (reader.read(row) for row in range(len(index.rows)))}
    urls = [str(built / tar.name) for tar in index.shards]
    dataset = webdataset.WebDataset(urls, shardshuffle=False).decode("l8", partial=True)
    theirs = {sample["__key__"]: sample for sample in dataset}
    del dataset
    gc.collect()
    assert list(theirs) == index.keys(np.arange(len(index.rows)))
    for key, sample in theirs.items():
        assert np.array_equal(sample["png"], ours[key].image)
        assert sample["json"] == ours[key].meta
        landmarks = {name: tuple(point) for name, point in sample["landmarks.json"].items()}
        assert landmarks == ours[key].landmarks
        masks = {name.split(".")[1]: value > 0 for name, value in sample.items() if name.startswith("mask.")}
        assert sorted(masks) == sorted(ours[key].masks())
        assert all(np.array_equal(mask, ours[key].masks()[name]) for name, mask in masks.items())


def test_a_sample_without_masks_and_landmarks_has_empty_ones(tmp_path: Path, scratch: Path) -> None:
    source = write_phantom(tmp_path / "phantom", num_patients=4)
    shutil.rmtree(tmp_path / "phantom" / "masks")
    (tmp_path / "phantom" / "landmarks.csv").write_text("image_id,landmark,row,col\n")
    build_shards("a", source, grid_params(), shard_params(num_bank_pairs=0), tmp_path / "set", execution=Here())
    sample = ShardReader(ShardIndex.open(tmp_path / "set")).read(0)
    assert sample.masks() == {}
    assert sample.landmarks == {}
    assert sample.meta["grid"]["bank"] == []


def test_a_reader_works_pickled_in_processes_and_in_threads(built: Path) -> None:
    reader = ShardReader(ShardIndex.open(built))
    expected = [reader.read(row).key for row in range(30)]
    assert pickle.loads(pickle.dumps(reader)).read(3).key == expected[3]
    with ThreadPoolExecutor(4) as threads:
        assert [sample.key for sample in threads.map(reader.read, range(30))] == expected
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as processes:
        assert [sample.key for sample in processes.map(reader.read, range(30))] == expected


def test_what_is_said_about_a_sample_can_be_read_without_its_image(built: Path, copy: Path) -> None:
    index = ShardIndex.open(copy)
    reader = ShardReader(ShardIndex.open(built))
    for row in index.rows:
        path, span = copy / index.shards[row["shard"]].name, SampleSpans.of(row).image
        data = bytearray(path.read_bytes())
        data[span.start : span.start + span.num_bytes] = bytes(span.num_bytes)
        path.write_bytes(data)
    for row in range(len(index.rows)):
        assert ShardReader(index).meta(row) == reader.read(row).meta


@pytest.fixture(scope="module")
def jpegs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same samples as JPEGs; no test changes it."""
    root = tmp_path_factory.mktemp("jpegs")
    source = write_phantom(root / "phantom")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACE_SCRATCH", str(root / "scratch"))
        params = shard_params(image_format="jpg")
        build_shards("phantom-b000", source, grid_params(), params, root / "set", execution=Here())
    return root / "set"


def all_samples(root: Path) -> list[Sample]:
    reader = ShardReader(ShardIndex.open(root))
    return [reader.read(row) for row in range(len(reader.index.rows))]


def test_a_set_of_jpegs_holds_the_canvas_and_its_half_and_the_same_beside_them(built: Path, jpegs: Path) -> None:
    for exact, close in zip(all_samples(built), all_samples(jpegs), strict=True):
        assert (exact.key, exact.meta, exact.landmarks) == (close.key, close.meta, close.landmarks)
        assert exact.masks().keys() == close.masks().keys()
        assert np.abs(close.image.astype(int) - exact.image).mean() < 2
        assert close.half is not None
        means = exact.image.reshape(24, 2, 24, 2).mean(axis=(1, 3))
        assert np.abs(np.asarray(Image.open(io.BytesIO(close.half))) - means).mean() < 2
        assert exact.half is None


def test_a_region_of_a_sample_is_cut_from_its_canvas_or_is_its_half(built: Path, jpegs: Path) -> None:
    for sample in (all_samples(built)[3], all_samples(jpegs)[3]):
        pixels, row, col = sample.region((17, 9, 30, 20))
        assert row <= 17 < 30 <= row + len(pixels)
        np.testing.assert_array_equal(pixels, sample.image[row : row + len(pixels), col : col + pixels.shape[1]])
    pixels, row, _ = sample.region((9, 9, 20, 20), 2)
    half = np.asarray(Image.open(io.BytesIO(sample.half)))
    assert row == 0
    np.testing.assert_array_equal(pixels, half)


def test_a_png_has_no_half_to_cut_from(built: Path) -> None:
    with pytest.raises(IndexFormatError, match=r"has no half\.jpg; take its canvas"):
        all_samples(built)[0].region((0, 0, 8, 8), 2)


@pytest.mark.parametrize(
    "changes",
    [{"scales": [{"k": 1, "l": 2, "weight": 1.0}]}, {"n": 5, "cell_px": 5}],
    ids=["no crop is twice as large", "odd canvas"],
)
def test_no_half_is_kept_where_no_crop_would_be_made_of_it(changes: dict, tmp_path: Path) -> None:
    source = write_phantom(tmp_path / "phantom", num_patients=4)
    params = shard_params(image_format="jpg")
    build_shards("a", source, grid_params(**changes), params, tmp_path / "set", execution=Here())
    assert [sample.half for sample in all_samples(tmp_path / "set")] == [None] * 6


def test_a_damaged_jpeg_is_named_by_its_tar_and_key(jpegs: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(jpegs, tmp_path / "set"))
    sample = all_samples(root)[4]
    start, num_bytes = SampleSpans.of(sample.row).image.start, int(sample.row["image_bytes"])
    path = root / sample.tar.stored.name
    content = bytearray(path.read_bytes())
    content[start + num_bytes // 2 : start + num_bytes] = bytes(num_bytes - num_bytes // 2)
    path.write_bytes(content)
    damaged = all_samples(root)[4]
    for look in (lambda: damaged.image, lambda: damaged.region((0, 0, 8, 8))):
        with pytest.raises(IndexFormatError, match=rf"{path.name}: image of sample {sample.key}: truncated or"):
            look()
    assert damaged.meta == sample.meta


def test_a_folder_without_an_index_says_how_to_build_one(tmp_path: Path) -> None:
    with pytest.raises(IndexFormatError, match=r"no shard set.*dvc repro shard@clinic-b000"):
        ShardIndex.open(tmp_path / "clinic-b000")


def test_another_format_version_is_refused(copy: Path) -> None:
    values = json.loads((copy / "index.json").read_text())
    (copy / "index.json").write_text(json.dumps({**values, "format_version": 99}))
    with pytest.raises(IndexFormatError, match="format_version 99, this code reads 2"):
        ShardIndex.open(copy)


def write_index(folder: Path, values: object) -> None:
    (folder / "index.json").write_text(json.dumps(values))


def write_rows(folder: Path, rows: np.ndarray) -> None:
    """With an index that names them."""
    np.save(folder / "samples.npy", rows, allow_pickle=True)
    values, content = json.loads((folder / "index.json").read_text()), (folder / "samples.npy").read_bytes()
    about = {"name": "samples.npy", "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    write_index(folder, {**values, "samples": about})


@pytest.mark.parametrize("name", ["../train-000000.tar", "/etc/passwd", "train-000000.tar/../../x", "a.tar", "", 7])
def test_a_tars_name_that_could_lead_out_of_the_set_is_refused(name: object, copy: Path) -> None:
    values = json.loads((copy / "index.json").read_text())
    values["shards"][0]["name"] = name
    write_index(copy, values)
    with pytest.raises(IndexFormatError, match=rf"shards\.0\.name is {re.escape(repr(name))}: .*build the shard set"):
        ShardIndex.open(copy)


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("samples.name", {"samples": {"name": "../samples.npy"}}),
        ("samples.sha256", {"samples": {"sha256": "../../" + "0" * 58}}),
        ("samples.bytes", {"samples": {"bytes": -1}}),
        ("shards.0.sha256", {"shards": {"sha256": "/tmp/" + "0" * 59}}),
        ("shards.0.sha256", {"shards": {"sha256": "A" * 64}}),
        ("shards.0.bytes", {"shards": {"bytes": 1e9}}),
        ("shards.0.num_samples", {"shards": {"num_samples": -3}}),
        ("shards.0.split", {"shards": {"split": "all"}}),
        ("batch", {"batch": "../a"}),
        ("channels", {"channels": 2}),
        ("spec", {"spec": None}),
        ("spec", {"spec": {}}),
        ("spec", {"spec": {"n": "9"}}),
        ("shards", {"shards": None}),
    ],
)
def test_an_index_that_is_not_what_this_code_writes_is_refused_by_its_field(
    part: str, change: dict, copy: Path
) -> None:
    values = json.loads((copy / "index.json").read_text())
    for name, value in change.items():
        if isinstance(value, dict) and name == "shards":
            values["shards"][0].update(value)
        elif isinstance(value, dict) and value:
            values[name].update(value)
        else:
            values[name] = value
    write_index(copy, values)
    with pytest.raises(IndexFormatError, match=rf"index\.json: damaged, or by other hands: {re.escape(part)}\b"):
        ShardIndex.open(copy)


@pytest.mark.parametrize("values", [[], None, "text", 3, {}])
def test_json_that_is_no_index_is_refused(values: object, copy: Path) -> None:
    write_index(copy, values)
    with pytest.raises(IndexFormatError, match="format_version None, this code reads"):
        ShardIndex.open(copy)


def test_json_nested_too_deeply_is_refused(copy: Path) -> None:
    (copy / "index.json").write_text("[" * 100_000)
    with pytest.raises(IndexFormatError, match="no JSON"):
        ShardIndex.open(copy)


def test_rows_of_a_size_that_does_not_fit_the_tars_are_refused_before_they_are_fetched(copy: Path) -> None:
    values = json.loads((copy / "index.json").read_text())
    values["samples"]["bytes"] = 2**40
    write_index(copy, values)
    with pytest.raises(IndexFormatError, match=rf"samples\.npy of {2**40} bytes for 30 samples of 113 bytes each"):
        ShardIndex.open(copy)


class Planted:
    """Unpickled, it leaves a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def test_rows_are_never_unpickled(copy: Path, tmp_path: Path) -> None:
    rows = np.array([Planted(tmp_path / "planted")] + [None] * 29, dtype=object)
    write_rows(copy, rows)
    with (copy / "samples.npy").open("ab") as file:
        file.write(bytes(30 * ROW_DTYPE.itemsize + 128 - file.tell()))
    content = (copy / "samples.npy").read_bytes()
    values = json.loads((copy / "index.json").read_text())
    values["samples"] |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    write_index(copy, values)
    with pytest.raises(IndexFormatError, match="rows of object, expected"):
        ShardIndex.open(copy)
    assert not (tmp_path / "planted").exists()


def test_rows_of_another_shape_or_of_no_array_are_refused(copy: Path) -> None:
    rows = np.array(ShardIndex.open(copy).rows)
    write_rows(copy, rows[:, None])
    with pytest.raises(IndexFormatError, match="30 rows, and its tars hold 30 samples"):
        ShardIndex.open(copy)
    write_rows(copy, rows)
    content = bytes((copy / "samples.npy").stat().st_size)
    (copy / "samples.npy").write_bytes(content)
    values = json.loads((copy / "index.json").read_text())
    values["samples"]["sha256"] = hashlib.sha256(content).hexdigest()
    write_index(copy, values)
    with pytest.raises(IndexFormatError, match="rows of None, expected"):
        ShardIndex.open(copy)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("start", -(2**40), "are not in it"),
        ("start", 2**40, "are not in it"),
        ("image_bytes", 2**32 - 1, "are not in it"),
        ("shard", 99, "a row in tar number 99"),
    ],
)
def test_a_row_that_points_outside_its_tar_is_told(field: str, value: int, message: str, copy: Path) -> None:
    rows = np.array(ShardIndex.open(copy).rows)
    rows[field] = value
    write_rows(copy, rows)
    with pytest.raises(IndexFormatError, match=message):
        ShardReader(ShardIndex.open(copy)).read(0)


def test_a_damaged_png_and_a_damaged_mask_are_named_by_tar_and_key(copy: Path) -> None:
    sample = all_samples(copy)[4]
    structure = min(sample.masks())
    path = copy / sample.tar.stored.name
    content = bytearray(path.read_bytes())
    with tarfile.open(path) as tar:
        for name in (f"{sample.key}.png", f"{sample.key}.mask.{structure}.png"):
            member = tar.getmember(name)
            start, stop = member.offset_data + 33, member.offset_data + member.size  # all but the size
            content[start:stop] = bytes(stop - start)
    path.write_bytes(content)
    damaged = all_samples(copy)[4]
    with pytest.raises(IndexFormatError, match=rf"{path.name}: image of sample {sample.key}: truncated or damaged PNG"):
        _ = damaged.image
    with pytest.raises(IndexFormatError, match=rf"{path.name}: mask\.{structure}\.png of sample {sample.key}: trunc"):
        damaged.masks()


def test_rows_of_another_set_are_refused(copy: Path) -> None:
    rows = np.load(copy / "samples.npy")
    np.save(copy / "samples.npy", rows[::-1])
    with pytest.raises(IndexFormatError, match=r"samples\.npy: missing or not the file of this index"):
        ShardIndex.open(copy)


def test_a_missing_or_shortened_tar_is_named(copy: Path) -> None:
    name = ShardIndex.open(copy).shards[1].name
    (copy / name).write_bytes((copy / name).read_bytes()[:-512])
    with pytest.raises(IndexFormatError, match=f"{name}: .* bytes, the index says"):
        ShardIndex.open(copy)
    (copy / name).unlink()
    with pytest.raises(IndexFormatError, match=f"{name}: None bytes"):
        ShardIndex.open(copy)


def test_verify_names_the_tar_with_a_changed_byte(copy: Path) -> None:
    index = ShardIndex.open(copy)
    path = copy / index.shards[2].name
    content = bytearray(path.read_bytes())
    content[700] ^= 1
    path.write_bytes(content)
    with pytest.raises(IndexFormatError, match=f"damaged tars: {path.name};"):
        ShardIndex.open(copy).verify()


def test_a_sample_in_the_place_of_another_is_noticed(copy: Path) -> None:
    index = ShardIndex.open(copy)
    rows = np.array(index.rows)
    swapped = rows[[1, 0, *range(2, len(rows))]]
    swapped["key"] = rows["key"]
    with pytest.raises(IndexFormatError, match="in the place of"):
        ShardReader(
            ShardIndex(store=index.store, description=index.description, rows=swapped, fingerprint=index.fingerprint)
        ).read(0)


def test_another_member_in_the_place_of_the_image_is_noticed(built: Path) -> None:
    index = ShardIndex.open(built)
    for field, shift in (("start", -512), ("meta_bytes", 512), ("start", 512 * 7)):
        rows = np.array(index.rows)
        rows[field] += np.array(shift).astype(rows.dtype[field])
        with pytest.raises(IndexFormatError, match="in the place of"):
            ShardReader(
                ShardIndex(store=index.store, description=index.description, rows=rows, fingerprint=index.fingerprint)
            ).read(3)


def test_a_size_that_does_not_fit_a_row_is_an_error_and_never_another_size() -> None:
    row = dict.fromkeys(ROW_DTYPE.names, 0) | {"key": "a", "patient": "b"}
    assert np.array([tuple({**row, "image_bytes": 2**32 - 1}.values())], dtype=ROW_DTYPE)["image_bytes"] == 2**32 - 1
    with pytest.raises(OverflowError):
        np.array([tuple({**row, "image_bytes": 2**32}.values())], dtype=ROW_DTYPE)


def test_the_contact_sheet_shows_samples_beside_what_is_known_of_them(built: Path) -> None:
    sheet = np.asarray(Image.open(built / "contact_sheet.png"))
    coloured = np.ptp(sheet.astype(int), axis=2) > 60
    assert sheet.std() > 20
    assert 0.005 < coloured.mean() < 0.3
