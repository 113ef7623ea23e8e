import csv
import errno
import io
import json
import os
import shutil
import sys
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from filelock import FileLock
from PIL import Image

from shards.build.stage import build_shards
from shards.core.errors import SourceError
from shards.core.grid import CropPair, crop_bank
from shards.core.identity import PUBLIC_KEY, SPLITS, split_of
from shards.decode.reasons import TOO_MANY_BYTES
from shards.format.layout import FORMAT_VERSION, sha256_of
from shards.reading.reader import ShardIndex, ShardReader
from shards.runtime.execution import Processes
from tests.support.datasets import (
    Here,
    folder_bytes,
    folder_params,
    grid_params,
    number_in_manifest,
    shard_params,
    smooth_image,
    write_csv,
    write_folder,
    write_phantom,
)

PLAIN_PNG = {"bits_stored": 8, "photometric": None, "window": [0.0, 255.0], "window_rule": "as stored", "flags": []}


def build(source: object, out: Path, num_workers: int | None = None, **changes: object) -> ShardReader:
    params = shard_params(**changes)
    execution = Here() if num_workers is None else Processes(num_workers)
    build_shards("batch-b000", source, grid_params(), params, out, execution=execution)  # type: ignore[arg-type]
    return ShardReader(ShardIndex.open(out))


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-60])


def test_written_samples_read_back_as_they_were(tmp_path: Path) -> None:
    source = write_phantom(tmp_path / "phantom")
    reader = build(source, tmp_path / "out")
    assert len(reader.index.rows) == 30
    for row in range(30):
        sample = reader.read(row)
        root = tmp_path / "phantom"
        assert np.array_equal(sample.image, np.asarray(Image.open(root / "images" / f"{sample.key}.png")))
        masks = {path.parent.name: np.asarray(Image.open(path)) for path in root.glob(f"masks/*/{sample.key}.png")}
        found = sample.masks()
        assert sorted(found) == sorted(masks)
        assert all(np.array_equal(found[name], masks[name]) for name in masks)
        patient = int(sample.key[1:5])
        assert sample.landmarks == {"carina": (20.25, 24.5), "apex_left": (3.125, 30.0 + patient % 3)}


def test_the_description_of_a_sample_has_exactly_what_it_may_have(tmp_path: Path) -> None:
    sample = build(write_phantom(tmp_path / "phantom"), tmp_path / "out").read(0)
    meta = sample.meta
    patient = sample.key[:5]
    assert {key: meta[key] for key in meta if key not in ("labels", "grid")} == {
        "format_version": FORMAT_VERSION,
        "key": sample.key,
        "batch": "batch-b000",
        "source_id": sample.key,
        "patient": PUBLIC_KEY.pseudonym("patient", patient),
        "study": f"{patient}-s1",
        "view": "PA",
        "dataset": "phantom",
        "sex": None,
        "age": None,
        "boxes": [],
        "original": {"height": 48, "width": 48, "spacing_mm": [1.2, 1.2], **PLAIN_PNG},
    }
    assert meta["labels"]["nodule"] == int(patient[1:]) % 2
    assert set(meta["grid"]) == {"n", "cell_px", "t", "affine", "mean", "std", "foreground", "bank"}
    assert meta["grid"]["affine"] == [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    cell = sample.image[8:16, 40:48].astype(float)
    assert meta["grid"]["mean"][1][5] == pytest.approx(cell.mean(), abs=0.006)
    assert meta["grid"]["std"][1][5] == pytest.approx(cell.std(), abs=0.006)


def test_the_stored_bank_gives_the_crops_back_from_the_shard_alone(tmp_path: Path) -> None:
    reader = build(write_phantom(tmp_path / "phantom"), tmp_path / "out", seed=3)
    spec = reader.index.spec
    for row in range(4):
        sample = reader.read(row)
        stored = [CropPair.from_json(pair) for pair in sample.meta["grid"]["bank"]]
        assert stored == crop_bank(spec, sample.key, seed=3, num_pairs=2)
        for pair, values in zip(stored, sample.meta["grid"]["bank"], strict=True):
            assert values["overlap_fine"] == list(pair.overlap_fine(spec.t))
            assert values["overlap_coarse"] == list(pair.overlap_coarse(spec.t))


@pytest.mark.slow
def test_two_builds_are_byte_identical_whatever_the_number_of_workers(tmp_path: Path) -> None:
    source = write_phantom(tmp_path / "phantom")
    for name, num_workers in (("a", 1), ("b", 1), ("c", 2)):
        build(source, tmp_path / name, num_workers)
    assert folder_bytes(tmp_path / "a") == folder_bytes(tmp_path / "b") == folder_bytes(tmp_path / "c")


def test_where_the_raw_files_lie_does_not_show_in_the_shards(tmp_path: Path) -> None:
    source = write_phantom(tmp_path / "phantom")
    build(source, tmp_path / "a")
    shutil.copytree(tmp_path / "phantom", tmp_path / "moved")
    build(source.model_copy(update={"dep": str(tmp_path / "moved")}), tmp_path / "b")
    assert folder_bytes(tmp_path / "a") == folder_bytes(tmp_path / "b")


def test_a_shard_set_has_its_files_and_leaves_no_others(tmp_path: Path, scratch: Path) -> None:
    index = build(write_phantom(tmp_path / "phantom"), tmp_path / "sets" / "out").index
    tars = [tar.name for tar in index.shards]
    others = ["contact_sheet.png", "index.json", "quality.parquet", "quality.png", "quarantine.csv", "samples.npy"]
    assert sorted(path.name for path in (tmp_path / "sets" / "out").iterdir()) == sorted([*tars, *others])
    assert [path.name for path in (tmp_path / "sets").iterdir()] == ["out"]
    assert {path.suffix for path in scratch.rglob("*") if path.is_file()} <= {".lock"}
    assert {tar.num_samples for tar in index.shards} <= {1, 2, 3, 4, 5}


def test_patients_stay_in_one_split_and_counts_are_right(tmp_path: Path) -> None:
    index = build(write_phantom(tmp_path / "phantom", num_patients=40), tmp_path / "out").index
    splits: dict[str, set[str]] = {}
    for row in index.rows:
        splits.setdefault(row["patient"].decode(), set()).add(SPLITS[row["split"]])
    assert len(splits) == 40
    assert all(len(names) == 1 for names in splits.values())
    counts = index.description.counts
    for split in ("train", "val", "test"):
        assert counts.images[split] == len(index.select(split))  # type: ignore[arg-type]
        assert counts.patients[split] == sum(names == {split} for names in splits.values())
        assert sum(counts.views[split].values()) == counts.images[split]
    nodules = sum(labels["nodule"].get("1", 0) for labels in counts.labels.values())
    assert nodules == 40


def test_adding_patients_moves_nobody_to_another_split(tmp_path: Path) -> None:
    small = build(write_phantom(tmp_path / "small", num_patients=10), tmp_path / "a").index
    large = build(write_phantom(tmp_path / "large", num_patients=30), tmp_path / "b").index
    before, after = ({row["key"].decode(): SPLITS[row["split"]] for row in index.rows} for index in (small, large))
    assert before == {key: after[key] for key in before}
    assert all(split == split_of(PUBLIC_KEY.position(key[:5]), shard_params().splits) for key, split in after.items())


def test_statistics_are_those_of_the_training_images_foreground(tmp_path: Path) -> None:
    reader = build(write_phantom(tmp_path / "phantom"), tmp_path / "out")
    values = []
    for row in reader.index.select("train"):
        sample = reader.read(int(row))
        foreground = np.kron(sample.meta["grid"]["foreground"], np.ones((8, 8))) > 0
        values.append(sample.image[foreground] / 255)
    pixels = np.concatenate(values)
    assert reader.index.description.statistics.mean == pytest.approx(pixels.mean())
    assert reader.index.description.statistics.std == pytest.approx(pixels.std())


def test_jpeg_shards_hold_grey_jpegs_close_to_the_canvas(tmp_path: Path) -> None:
    source = write_phantom(tmp_path / "phantom")
    exact = build(source, tmp_path / "png").read(0)
    close = build(source, tmp_path / "jpg", image_format="jpg").read(0)
    assert close.key == exact.key
    assert close.image.shape == (48, 48)
    assert np.abs(close.image.astype(int) - exact.image).mean() < 3


def test_a_coloured_batch_has_three_channels_everywhere(tmp_path: Path, id_key: str) -> None:
    write_folder(tmp_path / "own", ["grey.png"])
    colour = np.stack([smooth_image(40, 30, seed) for seed in range(3)], axis=2)
    Image.fromarray(colour).save(tmp_path / "own" / "colour.png")
    source = folder_params(tmp_path / "own", tmp_path / "m.jsonl", channels=3)
    reader = build(source, tmp_path / "out")
    assert reader.index.channels == 3
    assert {reader.read(row).image.shape for row in range(2)} == {(48, 48, 3)}
    grey = build(source.model_copy(update={"channels": 1}), tmp_path / "grey")
    assert {grey.read(row).image.shape for row in range(2)} == {(48, 48)}
    assert grey.index.description.counts.num_lost_colour == 1


def test_nothing_of_a_patient_but_the_allowed_leaves_a_secret_keyed_build(
    tmp_path: Path, id_key: str, capfd: pytest.CaptureFixture[str]
) -> None:
    names = [f"Doe^Jane/{number}.1.2.840.png" for number in range(6)] + [f"MRN77/{number}.png" for number in range(6)]
    write_folder(tmp_path / "own", names)
    damage(tmp_path / "own" / names[3])
    labels = tmp_path / "labels.csv"
    rows = [(name, name.split("/")[0], "ACC123", "PA", 1) for name in names]
    write_csv(labels, ("path", "patient", "study", "view", "Effusion"), rows)
    source = folder_params(tmp_path / "own", tmp_path / "m.jsonl", labels)
    reader = build(source, tmp_path / "out")
    sample = reader.read(0)
    assert sample.meta["source_id"] == sample.key
    assert sample.meta["study"] not in (None, "ACC123")
    assert sample.meta["labels"] == {"Effusion": 1}
    place = f"manifest image {number_in_manifest(source, names[3])},"
    assert (tmp_path / "out" / "quarantine.csv").read_text().splitlines()[1].startswith(place)
    written = b"".join(folder_bytes(tmp_path / "out").values()) + "".join(capfd.readouterr()).encode()
    for secret in (b"Doe", b"Jane", b"MRN77", b"ACC123", b"1.2.840", str(tmp_path / "own").encode()):
        assert secret not in written


@pytest.mark.parametrize("is_former", [False, True])
def test_nothing_published_is_in_the_order_of_the_files_names(is_former: bool, tmp_path: Path, id_key: str) -> None:
    """Whoever has a list of the cohort must not find out which key is whose, from manifests of earlier versions too."""
    names = [f"MRN{number:03}.png" for number in range(30)]
    write_folder(tmp_path / "own", names)
    for name in names[::10]:
        damage(tmp_path / "own" / name)
    source = folder_params(tmp_path / "own", tmp_path / "m.jsonl", as_former=is_former)
    assert is_former == all(number_in_manifest(source, name) == rank for rank, name in enumerate(names, start=1))
    index = build(source, tmp_path / "out").index
    rows = pq.read_table(tmp_path / "out" / "quality.parquet", columns=["key", "place"]).to_pylist()
    by_place = sorted(rows, key=lambda row: int(row["place"].removeprefix("manifest image ")))
    assert [row["key"] for row in by_place] == sorted(row["key"] for row in rows)
    with (tmp_path / "out" / "quarantine.csv").open(newline="") as file:
        listed = [row["path"] for row in csv.DictReader(file)]
    assert {row["place"] for row in rows if row["key"] not in index.keys(np.arange(len(index.rows)))} == set(listed)
    for split in range(len(SPLITS)):
        keys = index.rows["key"][index.rows["split"] == split].tolist()
        assert keys == sorted(keys)


def test_studies_of_two_patients_with_the_same_number_differ(tmp_path: Path, id_key: str) -> None:
    write_folder(tmp_path / "own", ["a.png", "b.png"])
    labels = tmp_path / "labels.csv"
    write_csv(labels, ("path", "patient", "study"), [("a.png", "a", "study1"), ("b.png", "b", "study1")])
    source = folder_params(tmp_path / "own", tmp_path / "m.jsonl", labels)
    reader = build(source, tmp_path / "out")
    assert reader.read(0).meta["study"] != reader.read(1).meta["study"]


def test_dotted_names_become_unique_keys_without_a_dot(tmp_path: Path, id_key: str) -> None:
    names = ["1.2.840.1.png", "1.2.840.2.png", "a.b.png", "a_b.png", "ü (1).png"]
    write_folder(tmp_path / "own", names)
    source = folder_params(tmp_path / "own", tmp_path / "m.jsonl")
    index = build(source, tmp_path / "out").index
    keys = index.keys(np.arange(len(index.rows)))
    assert len(set(keys)) == 5
    assert all(key.isalnum() for key in keys)


def test_a_manifest_that_is_not_the_registered_one_is_refused(tmp_path: Path, id_key: str) -> None:
    write_folder(tmp_path / "own", ["a.png", "b.png"])
    source = folder_params(tmp_path / "own", tmp_path / "m.jsonl")
    lines = (tmp_path / "m.jsonl").read_text()
    (tmp_path / "m.jsonl").write_text(lines.replace("b.png", "c.png"))
    with pytest.raises(SourceError, match=r"(?s)batches/ expects .*register"):
        build(source, tmp_path / "out")
    (tmp_path / "m.jsonl").unlink()
    with pytest.raises(SourceError, match="not found; expected the manifest"):
        build(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", ["", "{}\n", "path,bytes,sha256\n", "cut"])
def test_a_damaged_manifest_is_named_and_not_believed(content: str, tmp_path: Path, id_key: str) -> None:
    write_folder(tmp_path / "own", ["a.png", "b.png"])
    source = folder_params(tmp_path / "own", tmp_path / "m.jsonl")
    lines = (tmp_path / "m.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "m.jsonl").write_text("".join(lines[:-1]) if content == "cut" else content)
    source = source.model_copy(update={"dep_sha256": sha256_of(tmp_path / "m.jsonl")})
    with pytest.raises(SourceError, match=r"m\.jsonl: .*restore it, or register again"):
        build(source, tmp_path / "out")


def test_official_splits_are_kept_and_validation_comes_out_of_training(tmp_path: Path, id_key: str) -> None:
    names = [f"{number}.png" for number in range(60)]
    write_folder(tmp_path / "own", names)
    rows = [(name, name, "test" if number % 3 == 0 else "train") for number, name in enumerate(names)]
    write_csv(tmp_path / "labels.csv", ("path", "patient", "split"), rows)
    source = folder_params(tmp_path / "own", tmp_path / "m.jsonl", tmp_path / "labels.csv")
    splits = {"train": 0.5, "val": 0.5, "test": 0.0}
    counts = build(source, tmp_path / "out", splits=splits).index.description.counts.images
    assert counts["test"] == 20
    assert counts["train"] + counts["val"] == 40
    assert min(counts["train"], counts["val"]) > 8


def test_the_index_names_the_key_it_was_built_with(tmp_path: Path, id_key: str) -> None:
    write_folder(tmp_path / "own", ["a.png"])
    own = build(folder_params(tmp_path / "own", tmp_path / "m.jsonl"), tmp_path / "a")
    assert own.index.description.id_key_fingerprint == id_key
    phantom = build(write_phantom(tmp_path / "phantom"), tmp_path / "b")
    assert phantom.index.description.id_key_fingerprint == PUBLIC_KEY.fingerprint


def test_a_truncated_image_is_quarantined_with_its_reason_and_counted(tmp_path: Path) -> None:
    source = write_phantom(tmp_path / "phantom")
    damage(tmp_path / "phantom" / "images" / "p0004-i1.png")
    index = build(source, tmp_path / "out").index
    reasons = {"truncated or damaged image data": 1}
    assert index.description.quarantined.to_json() == {"count": 1, "reasons": reasons}
    assert sum(index.description.counts.images.values()) == len(index.rows) == 29
    assert "p0004-i1" not in index.keys(np.arange(len(index.rows)))
    assert sorted((tmp_path / "out" / "quarantine.csv").read_text().splitlines()) == [
        "images/p0004-i1.png,truncated or damaged image data",
        "path,reason",
    ]


def test_too_many_quarantined_images_fail_the_stage(tmp_path: Path) -> None:
    source = write_phantom(tmp_path / "phantom")
    for number in range(0, 14, 2):
        damage(tmp_path / "phantom" / "images" / f"p{number:04d}-i1.png")
    with pytest.raises(SourceError) as error:
        build(source, tmp_path / "out")
    assert "7 of 30 images cannot be used (7 × truncated or damaged image data)" in str(error.value)
    assert "max_quarantined_fraction allows 0.2" in str(error.value)
    assert not (tmp_path / "out").exists()
    assert len(build(source, tmp_path / "out", max_quarantined_fraction=0.3).index.rows) == 23


def test_a_batch_without_one_readable_image_fails_whatever_is_allowed(tmp_path: Path, id_key: str) -> None:
    write_folder(tmp_path / "own", ["a.png"])
    damage(tmp_path / "own" / "a.png")
    source = folder_params(tmp_path / "own", tmp_path / "m.jsonl")
    with pytest.raises(SourceError, match="1 of 1 images cannot be used"):
        build(source, tmp_path / "out", max_quarantined_fraction=1.0)


def test_an_image_changed_since_the_manifest_is_an_error_naming_its_row(tmp_path: Path, id_key: str) -> None:
    write_folder(tmp_path / "own", [f"{number}.png" for number in range(8)])
    source = folder_params(tmp_path / "own", tmp_path / "m.jsonl")
    content = bytearray((tmp_path / "own" / "5.png").read_bytes())
    content[-1] ^= 1
    (tmp_path / "own" / "5.png").write_bytes(content)
    place = f"manifest image {number_in_manifest(source, '5.png')}"
    with pytest.raises(SourceError, match=f"1 files are missing or changed since they were listed: {place}"):
        build(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("change", ["changed", "missing", "a link that leads out"])
def test_a_mask_that_is_no_longer_what_was_registered_is_an_error_naming_its_image(
    change: str, tmp_path: Path, id_key: str
) -> None:
    write_folder(tmp_path / "own", ["a.png", "b.png"])
    write_folder(tmp_path / "own/masks", ["a.png"], first=9)
    rows = [("a.png", "masks/a.png"), ("b.png", "0")]
    write_csv(tmp_path / "labels.csv", ("path", "mask:heart"), rows)
    source = folder_params(tmp_path / "own", tmp_path / "m.jsonl", tmp_path / "labels.csv")
    assert len(build(source, tmp_path / "whole").index.rows) == 2
    mask = tmp_path / "own/masks/a.png"
    content = mask.read_bytes()
    mask.unlink()
    if change == "changed":
        mask.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif change == "a link that leads out":
        (tmp_path / "elsewhere.png").write_bytes(content)
        mask.symlink_to(tmp_path / "elsewhere.png")
    number = number_in_manifest(source, "a.png")
    with pytest.raises(SourceError, match=rf"manifest image {number}\b|m\.jsonl images {number};"):
        build(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_drive_that_fails_is_an_error_that_names_the_image_by_its_row(
    tmp_path: Path, id_key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(tmp_path / "own", ["Doe.png"])
    source = folder_params(tmp_path / "own", tmp_path / "m.jsonl")

    read = Path.read_bytes

    def read_bytes(path: Path) -> bytes:
        if path.suffix != ".png":
            return read(path)
        raise OSError(errno.ELOOP, "the drive is gone", str(path))

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    with pytest.raises(SourceError, match=r"manifest image 1: cannot be read \(the drive is gone\)") as error:
        build(source, tmp_path / "out")
    assert "Doe" not in "".join(traceback.format_exception(error.value))


def test_a_file_that_is_larger_than_any_image_may_be_is_not_read(tmp_path: Path, id_key: str) -> None:
    write_folder(tmp_path / "own", ["a.png", "slide.tif"])
    os.truncate(tmp_path / "own" / "slide.tif", 80 * 10**6)  # with a hole
    source = folder_params(tmp_path / "own", tmp_path / "m.jsonl")
    reader = build(source, tmp_path / "out", max_quarantined_fraction=0.5)
    with (reader.index.root / "quarantine.csv").open() as file:
        assert [row["reason"] for row in csv.DictReader(file)] == [TOO_MANY_BYTES]


def test_wide_and_small_images_are_placed_with_their_affine(tmp_path: Path, id_key: str) -> None:
    write_folder(tmp_path / "own", ["wide.png"], size=(24, 96))
    params = folder_params(tmp_path / "own", tmp_path / "m.jsonl", spacing_mm=(0.2, 0.3), id_key_fingerprint=id_key)
    sample = build(params, tmp_path / "out").read(0)
    assert sample.meta["original"] == {"height": 24, "width": 96, "spacing_mm": [0.2, 0.3], **PLAIN_PNG}
    assert sample.meta["grid"]["affine"] == [[0.5, 0.0, 18.0], [0.0, 0.5, 0.0]]
    assert not sample.image[:18].any()
    assert sample.image[18:30].all()
    assert np.sum(sample.meta["grid"]["foreground"]) == 12  # the rows of cells from 16 to 32


def test_a_second_build_of_the_same_set_waits_for_the_first(
    tmp_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_phantom(tmp_path / "phantom")
    build(source, tmp_path / "first")
    (lock_file,) = scratch.rglob("*.lock")
    said = io.StringIO()  # not capsys, which loses what is written while it is read
    monkeypatch.setattr(sys, "stderr", said)
    with ThreadPoolExecutor(1) as thread:
        with FileLock(lock_file):
            second = thread.submit(build, source, tmp_path / "second")
            while "waiting for another process at work on this shard" not in said.getvalue():
                assert not second.done()
                time.sleep(0.01)
            assert not (tmp_path / "second").exists()
        second.result()
    assert folder_bytes(tmp_path / "second") == folder_bytes(tmp_path / "first")


def test_unfinished_work_of_other_parameters_is_named_and_not_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_phantom(tmp_path / "phantom")
    damage(tmp_path / "phantom" / "images" / "p0004-i1.png")
    with pytest.raises(SourceError):
        build(source, tmp_path / "a", max_quarantined_fraction=0.0)
    assert "which is not used" not in capsys.readouterr().err
    build(source, tmp_path / "b", seed=5)
    assert "which is not used" in capsys.readouterr().err
    assert ShardIndex.open(tmp_path / "b").description.bank.to_json() == {"seed": 5, "num_pairs_per_scale": 2}


@pytest.mark.parametrize("place", ["images/p0003-i1.png", "masks/heart/p0003-i1.png"])
def test_a_file_changed_in_place_after_a_kill_is_read_again(place: str, tmp_path: Path) -> None:
    source = write_phantom(tmp_path / "phantom")
    damage(tmp_path / "phantom" / "images" / "p0004-i1.png")
    with pytest.raises(SourceError):
        build(source, tmp_path / "out", max_quarantined_fraction=0.0)  # as a kill at the end: every tar is finished
    path = tmp_path / "phantom" / place
    changed = np.array(Image.open(path))[::-1]
    Image.fromarray(changed).save(path)
    reader = build(source, tmp_path / "out")
    sample = reader.read(reader.index.rows["key"].tolist().index(b"p0003-i1"))
    assert np.array_equal(sample.masks()["heart"] if "masks" in place else sample.image, changed)


def test_index_json_is_readable_by_people_and_complete(tmp_path: Path) -> None:
    build(write_phantom(tmp_path / "phantom"), tmp_path / "out")
    values = json.loads((tmp_path / "out" / "index.json").read_text())
    assert (values["format_version"], values["batch"]) == (FORMAT_VERSION, "batch-b000")
    assert values["dataset"] == {
        "kind": "phantom",
        "patient_grouping": "patient",
        "shares_images_with": [],
        "split_rule": "hash",
    }
    assert (values["channels"], values["image_format"]) == (1, "png")
    assert values["spec"] == grid_params().spec.to_json()
