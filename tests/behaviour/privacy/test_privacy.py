"""Nothing of a patient leaves: raw files full of canaries go through the whole chain, then every byte is searched."""

import csv
import io
import json
import os
import tarfile
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from pydicom import dcmread
from pydicom.datadict import DicomDictionary
from pydicom.uid import DeflatedExplicitVRLittleEndian, ImplicitVRLittleEndian

from shards.decode import UnreadableImageError, decode
from shards.decode.dicom import read_header
from shards.decode.result import ODD_RESCALE, ODD_WINDOW
from shards.delivery.manifest import iterate_manifest, key_of
from shards.sources.datasets import dicom_tree
from shards.sources.dicom_facts import VIEWS
from tests.behaviour.privacy.canaries import Canaries, canaries_below, canaries_in, png_chunks
from tests.behaviour.privacy.conftest import Workplace
from tests.behaviour.privacy.dicom_corpus import (
    EXEMPT,
    FATAL_LIES,
    LIES,
    NOT_OF_A_FILE,
    data_of,
    every_tag,
    lying,
    write_dicom_corpus,
)
from tests.behaviour.privacy.raster_corpus import jpeg, png, tiff, write_raster_corpus
from tests.support.datasets import write_csv

NUM_WHOLE, NUM_DAMAGED = 3 + len(LIES), 2 + len(FATAL_LIES)
PRIVATE = "data/manifests/"
"""Where file names may stand: in neither git nor DVC."""


@pytest.fixture(scope="module")
def corpus(workplace: Workplace) -> Workplace:
    canaries = Canaries()
    write_dicom_corpus(workplace.folder / "tree", canaries)
    write_raster_corpus(workplace.folder / "own", workplace.folder / "labels.csv", canaries)
    return workplace


@pytest.fixture(scope="module")
def printed(corpus: Workplace) -> dict[str, str]:
    """What each command of the chain printed."""
    tree, own, labels = (corpus.folder / name for name in ("tree", "own", "labels.csv"))
    tolerant = ("--set", "shard.max_quarantined_fraction=0.9")
    printed = {
        "register dicom": corpus.run("register", "tree-b000", tree, "--source", "dicom"),
        "register folder": corpus.run("register", "own-b000", own, "--labels", labels),
        "refused": corpus.run("shard", "--num-workers", "1", "--batch", "tree-b000", "--out", "data/refused", code=2),
    }
    for batch in ("tree-b000", "own-b000"):
        printed[f"shard {batch}"] = corpus.run("shard", "--num-workers", "1", "--batch", batch, *tolerant)
        folder = f"data/shards/{batch}"
        corpus.run("show", folder, "1", "--out", f"{batch}.png")
    sets = ("data/shards/tree-b000", "data/shards/own-b000")
    printed["verify"] = corpus.run("verify", *sets)
    printed["stats"] = corpus.run("stats", *sets) + corpus.run("stats", *sets, "--json")
    printed["show"] = corpus.run("show", sets[0], "--json")
    return printed


def samples(corpus: Workplace, batch: str) -> Iterator[tuple[str, bytes]]:
    for path in sorted((corpus.project / "data" / "shards" / batch).glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                file = tar.extractfile(member)
                assert file is not None
                yield member.name, file.read()


def descriptions(corpus: Workplace, batch: str) -> list[dict[str, Any]]:
    return [json.loads(data) for name, data in samples(corpus, batch) if name.endswith(".json")]


@pytest.mark.slow
def test_the_corpus_has_a_canary_in_every_element_of_the_standard(corpus: Workplace) -> None:
    dataset = dcmread(corpus.folder / "tree" / "whole" / "0")
    assert set(DicomDictionary) - NOT_OF_A_FILE - EXEMPT <= set(dataset.keys())
    assert len(EXEMPT - NOT_OF_A_FILE) < 40
    elements = [element for element in (*dataset, *dataset.file_meta) if element.tag not in EXEMPT - NOT_OF_A_FILE]
    assert len(elements) > 5100
    silent = [
        element.keyword
        for element in elements
        if not canaries_in(str(element.value[0] if element.VR == "SQ" else [element.value]).encode())
        and element.VR != "AT"  # the number of a tag
    ]
    assert silent == ["TransferSyntaxUID"]
    assert canaries_in(dataset.preamble or b"")


def test_every_file_of_the_corpus_has_canaries(corpus: Workplace) -> None:
    files = [path for name in ("tree", "own") for path in (corpus.folder / name).rglob("*") if path.is_file()]
    assert len(files) > 60
    assert all(canaries_in(path.read_bytes()) for path in files)


@pytest.mark.slow
def test_no_canary_is_in_any_byte_that_any_command_writes_or_prints(corpus: Workplace, printed: dict[str, str]) -> None:
    names = {path.suffix for path in corpus.project.rglob("*") if path.is_file()}
    assert {".tar", ".json", ".npy", ".csv", ".jsonl", ".yaml", ".png", ".txt", ".parquet"} <= names
    assert canaries_below(corpus.project) == {}


def test_the_chain_did_what_it_is_for(corpus: Workplace, printed: dict[str, str]) -> None:
    _, entries = iterate_manifest(corpus.project / "data" / "manifests" / "tree-b000.jsonl")
    kept = {entry.record.image.path.split("/")[0] for _, entry in entries}
    assert kept == {"whole", "lies", "damaged", "other"}
    assert len(descriptions(corpus, "own-b000")) == 12
    # The report's neighbours: a copy, and an image for processing, are images too.
    assert len(descriptions(corpus, "tree-b000")) == NUM_WHOLE + 2
    with (corpus.project / "data" / "shards" / "tree-b000" / "quarantine.csv").open() as file:
        assert len(list(csv.DictReader(file))) == NUM_DAMAGED
    for reason in (
        *(dicom_tree.OTHER_FILE, dicom_tree.NO_IMAGE, dicom_tree.OTHER_MODALITY, dicom_tree.CAPTURE),
        *(dicom_tree.FRAMES, dicom_tree.BURNED_IN, dicom_tree.NO_PATIENT, dicom_tree.CONFLICT, dicom_tree.COPY),
    ):
        assert reason in printed["register dicom"]
    assert "cannot be used" in printed["refused"]


def test_log_lines_of_libraries_were_shown_and_searched(printed: dict[str, str]) -> None:
    assert "DEBUG:" in "".join(printed.values())


def test_pictures_hold_pixels_alone(corpus: Workplace, printed: dict[str, str]) -> None:
    pictures = [path.read_bytes() for path in corpus.project.rglob("*.png")]
    pictures += [data for batch in ("tree-b000", "own-b000") for name, data in samples(corpus, batch) if ".png" in name]
    assert len(pictures) > 40
    assert {name for picture in pictures for name, _ in png_chunks(picture)} == {b"IHDR", b"IDAT", b"IEND"}


def test_a_sample_of_a_tree_says_what_the_document_allows_and_no_more(
    corpus: Workplace, printed: dict[str, str]
) -> None:
    metas = descriptions(corpus, "tree-b000")
    document = (Path(__file__).parents[3] / "docs" / "privacy.md").read_text(encoding="utf-8")
    section = document.split("## Privacy")[1].split("\n## ")[0]
    for meta in metas:
        assert all(f"`{name}`" in section for name in (*meta, *meta["original"])), "docs/privacy.md, section Privacy"
        for name in ("key", "source_id", "patient", "study"):
            assert len(meta[name]) == 16
            assert set(meta[name]) <= set("0123456789abcdef")
        assert meta["key"] == meta["source_id"]
        assert meta["view"] in (None, *VIEWS.values())
        assert meta["labels"] == {}
        original = meta["original"]
        assert (original["height"], original["width"], original["bits_stored"]) == (96, 80, 12)
        assert original["photometric"] == "MONOCHROME1"
        assert original["spacing_mm"] == [0.2, 0.1]
        assert set(original["flags"]) <= {ODD_WINDOW, ODD_RESCALE}  # some of these are texts
        assert original["window_rule"] in ("voi window", "percentiles")
    assert {meta["view"] for meta in metas} == {"PA", None}


@pytest.mark.parametrize("batch", ["tree-b000", "own-b000"])
def test_sex_is_left_out_unless_it_is_asked_for_and_age_is_a_bucket(
    batch: str, corpus: Workplace, printed: dict[str, str]
) -> None:
    metas = descriptions(corpus, batch)
    assert {meta["sex"] for meta in metas} == {None}
    assert {meta["age"] for meta in metas} <= {"70-79", None}
    assert "70-79" in {meta["age"] for meta in metas}
    manifest = (corpus.project / "data" / "manifests" / f"{batch}.jsonl").read_text()
    assert '"sex"' not in manifest
    assert '"age_years":70.0' in manifest
    assert '"age_years":73' not in manifest


@pytest.mark.slow
def test_sex_is_there_where_it_is_asked_for(corpus: Workplace, printed: dict[str, str]) -> None:
    tree, canaries = corpus.folder / "few", Canaries(first=30_000)
    tree.mkdir()
    (tree / "whole").write_bytes(data_of(every_tag(canaries), ImplicitVRLittleEndian))
    for name in ("ImagerPixelSpacing", "ImageType", "PatientSex"):
        (tree / name).write_bytes(lying(canaries, name))
    corpus.run("register", "few-b000", tree, "--source", "dicom", "--sex")
    corpus.run("shard", "--num-workers", "1", "--batch", "few-b000")
    assert sorted(str(meta["sex"]) for meta in descriptions(corpus, "few-b000")) == ["F", "F", "F", "None"]
    assert canaries_below(corpus.project) == {}


@pytest.mark.slow
def test_names_of_files_stand_in_the_private_manifest_and_nowhere_else(
    corpus: Workplace, printed: dict[str, str]
) -> None:
    canaries = Canaries(first=60_000)
    tree, own, listed = (corpus.folder / f"named {name}" for name in ("tree", "own", "listed"))
    dataset = every_tag(canaries)
    files = [data_of(dataset, DeflatedExplicitVRLittleEndian)]
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = canaries.uid()
    files += [data_of(dataset)[:-2000], lying(canaries, "ViewPosition"), lying(canaries, "PatientSex")]
    for data in files:
        write_named(tree, data, "dcm", canaries)
    write_named(tree, b"no image", "txt", canaries)
    rows = []
    for folder in (own, listed):
        for write, suffix in ((png, "png"), (jpeg, "jpg"), (tiff, "tif")):
            rows.append((write_named(folder, write(canaries), suffix, canaries), canaries.text()))
        broken = png(canaries)
        rows.append((write_named(folder, broken[: len(broken) // 2], "png", canaries), canaries.text()))
    labels = corpus.folder / "named.csv"
    write_csv(labels, ("path", "patient"), rows[4:])
    for batch, arguments in {
        "named-b000": (tree, "--source", "dicom"),
        "named-b001": (own,),
        "named-b002": (listed, "--labels", labels),
    }.items():
        corpus.run("register", batch, *arguments)
        corpus.run("shard", "--num-workers", "1", "--batch", batch, code=2)
        corpus.run("shard", "--num-workers", "1", "--batch", batch, "--set", "shard.max_quarantined_fraction=0.9")
    sets = [f"data/shards/named-b{number:03d}" for number in range(3)]
    corpus.run("verify", *sets)
    corpus.run("stats", *sets)
    corpus.run("show", sets[0])
    assert list((corpus.project / "reports").glob("*.png")), "where git ignores a picture of a patient"
    changed, missing = sorted(own.rglob("*.png"))
    changed.write_bytes(changed.read_bytes()[::-1])
    assert "changed since" in corpus.run(
        "shard", "--num-workers", "1", "--batch", "named-b001", "--out", "data/other", code=2
    )
    missing.unlink()
    assert "missing or changed" in corpus.run(
        "shard", "--num-workers", "1", "--batch", "named-b001", "--out", "data/other", code=2
    )
    (own / f"{canaries.text()} \n.png").write_bytes(b"")
    corpus.run("register", "named-b003", own, code=2)
    found = canaries_below(corpus.project)
    lists = [f"named-b{number:03d}.{suffix}" for number in range(3) for suffix in ("jsonl", "quarantine.csv")]
    assert sorted(found) == sorted(f"{PRIVATE}{name}" for name in (*lists, "named-b000.left_out.csv"))
    assert {mode_of(corpus.project / name) for name in found} == {"600"}, "others may read them"


@pytest.mark.parametrize("batch", ["tree-b000", "own-b000"])
def test_the_rank_of_what_is_published_follows_keyed_hashes_and_no_file_names(
    batch: str, corpus: Workplace, printed: dict[str, str]
) -> None:
    """Whoever has a list of the cohort must not find out by its order which image is whose."""
    header, entries = iterate_manifest(corpus.project / PRIVATE / f"{batch}.jsonl")
    path_of = {key_of(entry.record, header): entry.record.image.path for _, entry in entries}
    folder = corpus.project / "data" / "shards" / batch
    report = pq.read_table(folder / "quality.parquet", columns=["key", "place"]).to_pylist()
    ranked = [row["key"] for row in sorted(report, key=lambda row: int(row["place"].rpartition(" ")[2]))]
    with (folder / "quarantine.csv").open(newline="") as file:
        quarantined = [int(row["path"].rpartition(" ")[2].rstrip(",")) for row in csv.DictReader(file)]
    rows = np.load(folder / "samples.npy")
    published = [ranked, *(rows["key"][rows["split"] == split].astype(str).tolist() for split in set(rows["split"]))]
    assert quarantined
    for keys in published:
        assert keys == sorted(keys)
    assert [path_of[key] for key in ranked] != sorted(path_of[key] for key in ranked)


@pytest.mark.skipif(os.name != "posix", reason="modes of files")
def test_all_that_is_private_is_closed_to_others(corpus: Workplace, printed: dict[str, str]) -> None:
    assert mode_of(corpus.project / PRIVATE) == "700"
    private = list((corpus.project / PRIVATE).iterdir())
    assert {path.suffix for path in private} == {".jsonl", ".csv", ".txt"}
    assert {mode_of(path) for path in private} == {"600"}


def mode_of(path: Path) -> str:
    return f"{path.stat().st_mode & 0o777:o}"


def write_named(root: Path, data: bytes, suffix: str, canaries: Canaries) -> str:
    """Write a file whose name and folder are canaries; its path below the root."""
    path = root / canaries.text() / f"{canaries.uid()}.{suffix}"
    path.parent.mkdir(parents=True)
    path.write_bytes(data)
    return path.relative_to(root).as_posix()


@pytest.mark.parametrize("name", [*LIES, *FATAL_LIES])
def test_errors_of_a_lying_file_hold_none_of_its_values(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a"
    path.write_bytes(lying(Canaries(), name))
    texts = []
    for read in (lambda: read_header(path) and None, lambda: decode(path.read_bytes(), max_pixels=1e7)):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                read()
            except UnreadableImageError as error:
                texts += traceback.format_exception(error)
        texts += [str(warning.message) for warning in caught]
    texts += capfd.readouterr()
    assert canaries_in("".join(texts).encode()) == set()


def test_pydicom_itself_would_have_told() -> None:
    """The tests above can fail: without our guards, values are in warnings and errors."""
    told = set()
    for name in ("WindowCenter", "PatientAge", "SpecificCharacterSet", "StudyInstanceUID", "NumberOfFrames"):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                str(dcmread(io.BytesIO(lying(Canaries(), name))))
                texts = [str(warning.message) for warning in caught]
            except Exception as error:
                texts = [str(error), *(str(warning.message) for warning in caught)]
        if canaries_in(" ".join(texts).encode()):
            told.add(name)
    assert len(told) >= 3
