"""Which images of a delivery a batch takes, through the commands that users give."""

import csv
from pathlib import Path

import pytest
from PIL import Image
from pydicom.uid import generate_uid

from shards.__main__ import build_parser
from shards.checking.stats import format_statistics
from shards.cli import run_command
from shards.core.config import read_params
from shards.core.errors import SourceError
from shards.core.modality import modality_of
from shards.core.records import File, Record
from shards.delivery.batches import read_batch
from shards.delivery.manifest import Entry, iterate_manifest
from shards.delivery.selection import parse_select, select_images, select_of
from shards.reading.reader import ShardIndex
from shards.sources.registry import MODULES, open_source
from tests.shards.decode.dicom_files import data_of, dataset_of
from tests.shards.sources.test_chexpert import write_small
from tests.support.checkout import copy_project
from tests.support.dataset_tables import family_of
from tests.support.datasets import smooth_image, write_csv, write_folder

ROWS = (
    # path, patient, view, sex, age_years, Edema, Mass
    ("a.png", "1", "PA", "F", "17.9", "1", "0"),
    ("b.png", "1", "LL", "F", "18", "1", "0"),
    ("c.png", "2", "AP", "M", "65.9", "0", "1"),
    ("d.png", "3", "", "M", "66", "0", "0"),
    ("e.png", "4", "lateral", "", "", "-1", ""),
    ("f.png", "5", "LLO", "F", "40", "", "1"),
)
FILE = Path("batches/own-b000.yaml")


@pytest.fixture
def project(tmp_path: Path, id_key: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project beside a folder of six images with a CSV."""
    (tmp_path / "project").mkdir()
    copy_project(tmp_path / "project")
    write_folder(tmp_path / "own", [row[0] for row in ROWS])
    write_csv(tmp_path / "own.csv", ("path", "patient", "view", "sex", "age_years", "Edema", "Mass"), list(ROWS))
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path


def command(*arguments: str) -> int:
    return run_command(build_parser(), arguments)


def register(*select: str, name: str = "own-b000") -> int:
    rules = [word for rule in select for word in ("--select", rule)]
    return command("register", name, "../own", "--labels", "../own.csv", *rules)


def entries(name: str = "own-b000") -> list[Entry]:
    return [entry for _, entry in iterate_manifest(Path(f"data/manifests/{name}.jsonl"))[1]]


def taken(name: str = "own-b000") -> str:
    """The names of its images, a letter each."""
    return "".join(sorted(Path(entry.record.image.path).stem for entry in entries(name)))


@pytest.mark.parametrize(
    ("rules", "expected", "left_out", "unknown"),
    [
        (["view=frontal"], "acd", {"view": 3}, {"view": 1}),
        (["view=lateral"], "bde", {"view": 3}, {"view": 1}),
        (["view=pa,llo"], "adf", {"view": 3}, {"view": 1}),
        (["view=frontal", "unknown=drop"], "ac", {"view": 4}, {}),
        (["view=any", "age=18.."], "bcdef", {"age": 1}, {"age": 1}),
        (["view=any", "age=18..65"], "bcef", {"age": 2}, {"age": 1}),
        (["view=any", "age=..17"], "ae", {"age": 4}, {"age": 1}),
        (["view=any", "sex=f"], "abef", {"sex": 2}, {"sex": 1}),
        (["view=any", "label=Edema"], "ab", {"label": 4}, {}),
        (["view=any", "label=edema,Mass"], "abcf", {"label": 2}, {}),
        (["view=frontal", "age=18.."], "cd", {"view": 3, "age": 1}, {"view": 1}),
        (["view=any", "age=18..", "unknown=drop"], "bcdf", {"age": 2}, {}),
    ],
)
def test_a_batch_takes_the_images_that_fit_every_rule_and_says_how_many_each_left_out(
    project: Path, rules: list[str], expected: str, left_out: dict[str, int], unknown: dict[str, int]
) -> None:
    assert register(*rules) == 0
    assert taken() == expected
    selected = read_batch("own-b000", Path()).selected
    assert selected is not None
    assert (selected.num_listed, selected.left_out, selected.unknown) == (6, left_out, unknown)


def test_the_file_of_the_batch_has_the_rules_and_the_command_says_what_they_did(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert register("view=frontal", "age=18..65") == 0
    said = capsys.readouterr().err
    assert "selected: 1 of 6 images\n" in said
    assert "     3 left out, not view=frontal: LL 1, LATERAL 1, LLO 1\n" in said
    assert "     2 left out, not age=18..65: another age 2\n" in said
    assert "17" not in said.replace("0.17", ""), "an age is nobody's business"
    values = read_params(FILE)
    assert values["select"] == {"view": ["frontal"], "age": "18..65"}
    assert list(values)[:2] == ["source", "select"]
    with Path("data/manifests/own-b000.left_out.csv").open(newline="") as file:
        listed = dict(csv.reader(file))
    assert listed["b.png"] == "not view=frontal (--select)"
    assert listed["a.png"] == "not age=18..65 (--select)"


def test_what_is_left_out_is_not_even_read(project: Path) -> None:
    (project / "own" / "b.png").write_bytes(b"")
    (project / "own" / "b.png").chmod(0)
    assert register("view=frontal") == 0
    assert taken() == "acd"


def test_a_batch_without_rules_has_no_word_of_them_in_any_file(project: Path) -> None:
    assert register("view=any") == 0
    assert taken() == "abcdef"
    assert not {"select", "selected"} & read_params(FILE).keys()
    assert "selection" not in built().dataset.to_json()


def test_the_same_command_and_the_one_without_rules_give_a_batch_its_manifest_again(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert register("view=frontal") == 0
    before, manifest = FILE.read_text(), Path("data/manifests/own-b000.jsonl")
    text = manifest.read_text()
    for rules in (["view=frontal"], []):
        manifest.unlink()
        assert register(*rules) == 0
        assert (manifest.read_text(), FILE.read_text()) == (text, before)
    capsys.readouterr()
    assert register("view=any") == 2
    assert "batch own-b000 exists with other files" in capsys.readouterr().err


def test_other_images_of_the_folder_are_another_batch_and_their_patients_stay(project: Path) -> None:
    assert register("view=frontal", "unknown=drop") == 0
    assert register("view=lateral", "unknown=drop", name="own-b001") == 0
    assert (taken(), taken("own-b001")) == ("ac", "be")
    first = {entry.record.patient: entry.position for entry in entries()}
    second = {entry.record.patient: entry.position for entry in entries("own-b001")}
    assert len(first.keys() & second.keys()) == 1, "the patient of a.png and b.png"
    assert all(second[patient] == first[patient] for patient in first.keys() & second.keys())
    assert register("view=any", name="own-b002") == 0
    assert taken("own-b002") == "df"


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (
            "frontal",
            "--select frontal: expected KEY=VALUE, as view=frontal, body_part=chest, label=Edema,Mass, age=18..",
        ),
        ("view=", "expected KEY=VALUE"),
        ("views=PA", "no key 'views'; did you mean 'view'? there are view, body_part, label, age, sex, unknown"),
        ("age=18", "expected years as FROM..TO, either may be missing: 18.. or 18..65"),
        ("age=..", "expected years as FROM..TO"),
        ("age=65..18", "age 65..18: expected the lower age first"),
        ("sex=female", "expected F, M, O"),
        ("unknown=keep", "expected drop"),
        ("unknown=drop", "expected a rule beside it"),
        ("view=any,PA", "'any' stands alone"),
        ("label=Edma", "no image has 'Edma'; did you mean 'edema'? there are Edema 2, Mass 2"),
        ("label=Pneumothorax", "no image has 'Pneumothorax'; there are Edema 2, Mass 2"),
        ("view=frontl", "no image has 'frontl'; did you mean 'frontal'? there are"),
        ("sex=O", "no image has 'O'; there are F 3, M 2"),
        ("age=90..", "none of its 6 images is selected"),
        (
            "body_part=chest",
            "the body_part is unknown of all its 6 images, so nothing can be selected by it; leave the rule out",
        ),
    ],
)
def test_a_rule_that_cannot_be_meant_is_refused_with_what_there_is(
    project: Path, capsys: pytest.CaptureFixture[str], rule: str, message: str
) -> None:
    extra = ["unknown=drop"] if rule == "age=90.." else []
    assert register(rule, *extra) == 2
    assert message in capsys.readouterr().err
    assert not FILE.exists()


def test_a_rule_that_is_given_twice_is_refused(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert register("view=PA", "view=AP") == 2
    assert "view is given twice; give all its values at once: view=ONE,OTHER" in capsys.readouterr().err


def write_chexpert(root: Path) -> None:
    """Five images of training, two of them lateral, and one of validation."""
    write_small(root)
    for number, path in enumerate(sorted(root.rglob("*.jpg"))):
        Image.fromarray(smooth_image(32, 32, number)).save(path)


@pytest.mark.parametrize("kind", MODULES)
def test_of_public_datasets_chest_radiographs_alone_are_frontal_by_default(kind: str) -> None:
    family = family_of(open_source(kind).info)
    assert modality_of(kind) == (None if family == "own" else family)
    assert select_of({}, kind, []).view == (("frontal",) if family == "chest" else None)
    assert select_of(parse_select(["view=any"]), kind, []).view is None
    assert select_of(parse_select(["age=18.."]), kind, []).view == select_of({}, kind, []).view


def record(view: str | None, body_part: str | None = None) -> Record:
    return Record(source_id="1", image=File("1.png"), patient="1", view=view, body_part=body_part)


@pytest.mark.parametrize(
    ("records", "expected"),
    [
        ([record("PA"), record("LL"), record(None)], ("frontal",)),
        ([record("PA", "CHEST"), record("LL", "CHEST")], ("frontal",)),
        ([record("PA"), record("AP"), record(None)], None),
        ([record("MLO", "BREAST"), record("CC", "BREAST")], None),
        ([record("L", "EYE"), record("R", "EYE")], None),
        ([record("PA", "CHEST"), record("LL", "HAND")], None),
        ([record(None), record(None)], None),
    ],
)
@pytest.mark.parametrize("kind", ["folder", "dicom"])
def test_of_ones_own_images_frontal_views_alone_are_taken_where_some_are_known_and_of_one_part(
    records: list[Record], expected: tuple[str, ...] | None, kind: str
) -> None:
    assert select_of({}, kind, records).view == expected
    assert select_of({"view": None}, kind, records).view is None


def test_own_lateral_images_are_left_out_unless_asked_for(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert register() == 0
    said = capsys.readouterr().err
    assert "selected: 3 of 6 images\n     3 left out, not view=frontal: LL 1, LATERAL 1, LLO 1\n" in said
    assert "to take images of every view: --select view=any" in said
    assert taken() == "acd"


def test_of_a_public_dataset_the_lateral_images_are_left_out_unless_asked_for(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_chexpert(project / "chexpert")
    assert command("register", "chexpert-b000", "../chexpert", "--source", "chexpert") == 0
    said = capsys.readouterr().err
    assert "selected: 4 of 6 images\n     2 left out, not view=frontal: " in said
    assert "to take images of every view: --select view=any" in said
    assert {entry.record.view for entry in entries("chexpert-b000")} == {"AP", "PA"}
    batch = read_batch("chexpert-b000", Path())
    assert batch.select is not None
    assert batch.select.view == ("frontal",)
    assert command("register", "all-b000", "../chexpert", "--source", "chexpert", "--select", "view=any", "--only") == 2
    assert command("remove", "chexpert-b000") == 0
    assert command("register", "all-b000", "../chexpert", "--source", "chexpert", "--select", "view=any") == 0
    assert len(entries("all-b000")) == 6
    assert read_batch("all-b000", Path()).select is None


def test_a_batch_of_an_earlier_version_keeps_the_images_that_it_has(project: Path) -> None:
    write_chexpert(project / "chexpert")
    words = ("register", "chexpert-b000", "../chexpert", "--source", "chexpert")
    assert command(*words, "--select", "view=any") == 0
    before, manifest = Path("batches/chexpert-b000.yaml").read_text(), Path("data/manifests/chexpert-b000.jsonl")
    assert "select" not in before
    manifest.unlink()
    assert command(*words) == 0
    assert len(entries("chexpert-b000")) == 6
    assert Path("batches/chexpert-b000.yaml").read_text() == before


def test_which_official_splits_there_are_does_not_depend_on_what_is_selected(project: Path) -> None:
    """Without the validation images a part of the training patients would be for validation."""
    write_chexpert(project / "chexpert")
    words = ("register", "chexpert-b000", "../chexpert", "--source", "chexpert", "--select", "age=..69")
    assert command(*words) == 0
    assert {entry.splits for entry in entries("chexpert-b000")} == {("train",)}


def write_dicom(folder: Path) -> None:
    folder.mkdir()
    rows = (("CHEST", "PA"), ("CHEST", "LL"), ("CHEST", ""), ("HAND", "PA"), ("", "AP"), ("SMITH CHEST", "PA"))
    for number, (part, view) in enumerate(rows):
        pixels = smooth_image(32, 32, number)
        header = {"Modality": "DX", "BodyPartExamined": part, "ViewPosition": view, "PatientID": str(number)}
        dataset = dataset_of(pixels, SOPInstanceUID=generate_uid(), BurnedInAnnotation="NO", **header)
        (folder / f"{number}.dcm").write_bytes(data_of(dataset))


def test_a_tree_of_dicom_files_is_selected_by_what_its_headers_say(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_dicom(project / "archive")
    assert command("register", "all-b000", "../archive", "--source", "dicom") == 0
    said = capsys.readouterr().err
    assert "warning: images of several kinds (body_part: CHEST 3, unknown 2, HAND 1)" in said
    assert "--select body_part=chest" in said
    assert "SMITH" not in said
    assert command("remove", "all-b000") == 0
    rules = ("--select", "body_part=chest", "--select", "view=frontal")
    assert command("register", "some-b000", "../archive", "--source", "dicom", *rules) == 0
    said = capsys.readouterr().err
    assert "selected: 4 of 6 images" in said
    assert "     1 left out, not body_part=chest: HAND 1" in said
    assert "     1 left out, not view=frontal: LL 1" in said
    assert "     1 kept, view unknown (--select unknown=drop leaves them out)" in said
    assert "     2 kept, body_part unknown" in said
    assert sorted(entry.record.image.path for entry in entries("some-b000")) == ["0.dcm", "2.dcm", "4.dcm", "5.dcm"]
    assert "body_part" not in Path("data/manifests/some-b000.jsonl").read_text()


def test_the_side_of_an_eye_is_no_lateral_view() -> None:
    left = Record(source_id="1", image=File("1.dcm"), patient="1", view="L", body_part="EYE")
    with pytest.raises(SourceError, match="none of its 1 images is selected"):
        select_images([left], select_of({"view": ("lateral",)}, "dicom", [left]), ("view",), "dicom", "archive")
    of_left = select_of({"view": ("L",)}, "dicom", [left])
    assert not select_images([left], of_left, ("view",), "dicom", "archive").left_out


def built(name: str = "own-b000") -> ShardIndex:
    assert command("build", "--batch", name, "--num-workers", "1") == 0
    return ShardIndex.open(Path("data/shards") / name)


def test_the_index_and_the_statistics_say_how_many_images_were_selected(project: Path) -> None:
    assert register("view=frontal", "age=18..") == 0
    index = built()
    assert index.dataset.to_json()["selection"] == {
        "rules": {"view": ["frontal"], "age": "18.."},
        "num_listed": 6,
        "left_out": {"view": 3, "age": 1},
        "unknown": {"view": 1},
    }
    said = format_statistics(index)
    assert (
        "selected by view=frontal, age=18..: 2 of 6 images of the delivery; 3 not view=frontal; 1 not age=18..; "
        "1 kept, view unknown" in said
    )


def test_the_built_in_dataset_is_no_source_to_register(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("register", "more-b000", "../own", "--source", "phantom") == 2
    said = capsys.readouterr().err
    assert "--source phantom: built in, and no folder to register" in said
    assert "hash" not in said, "it is refused before any work"
    assert command("register", "more-b000", "../own", "--source", "phantoms") == 2
    assert "no source 'phantoms'; expected one of folder, dicom" in capsys.readouterr().err
    assert command("sources", "phantom") == 0
    assert "--source phantom" not in capsys.readouterr().out
