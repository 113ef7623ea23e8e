from pathlib import Path

import pytest

from shards.core.errors import SourceError
from shards.core.params import PhantomSourceParams
from shards.core.records import Record
from shards.sources.check import check_source
from shards.sources.datasets.phantom import PhantomSource
from tests.support.datasets import FINDINGS, write_phantom


def read(params: PhantomSourceParams) -> tuple[Record, ...]:
    return PhantomSource().read(Path(params.dep)).records


def problem(params: PhantomSourceParams) -> str:
    with pytest.raises(SourceError) as error:
        read(params)
    return str(error.value)


def test_the_phantom_passes_the_battery(tmp_path: Path) -> None:
    check_source(PhantomSource(), Path(write_phantom(tmp_path / "phantom").dep))


def test_records_hold_what_the_files_say(tmp_path: Path) -> None:
    params = write_phantom(tmp_path / "phantom", num_patients=4)
    records = {record.source_id: record for record in read(params)}
    assert list(records) == ["p0000-i1", "p0001-i1", "p0001-i2", "p0002-i1", "p0003-i1", "p0003-i2"]
    record = records["p0003-i2"]
    assert (record.patient, record.study, record.view) == ("p0003", "p0003-s1", "PA")
    assert record.labels == {name: int(name == "nodule") for name in FINDINGS}
    assert record.landmarks == {"carina": (20.25, 24.5), "apex_left": (3.125, 30.0)}
    assert sorted(record.masks) == ["heart", "nodule"]
    assert sorted(records["p0002-i1"].masks) == ["heart"]
    assert record.spacing_mm == (1.3, 1.3)
    assert records["p0003-i1"].spacing_mm == (1.2, 1.2)


def test_a_spacing_may_be_unknown(tmp_path: Path) -> None:
    params = write_phantom(tmp_path / "phantom", num_patients=1)
    labels = tmp_path / "phantom" / "labels.csv"
    text = labels.read_text()
    labels.write_text(text.replace(",1.2", ","))
    assert read(params)[0].spacing_mm is None
    labels.write_text(text.replace(",1.2", "").replace(",detector_spacing_mm", ""))
    assert read(params)[0].spacing_mm is None


@pytest.mark.parametrize("spacing", ["wide", "0", "-0.4", "nan", "inf"])
def test_a_spacing_that_no_pixel_can_have_is_refused(spacing: str, tmp_path: Path) -> None:
    params = write_phantom(tmp_path / "phantom", num_patients=1)
    labels = tmp_path / "phantom" / "labels.csv"
    labels.write_text(labels.read_text().replace(",1.2", f",{spacing}"))
    assert f"p0000-i1: detector_spacing_mm is '{spacing}'" in problem(params)


@pytest.mark.parametrize("name", ["dataset.json", "labels.csv", "landmarks.csv"])
def test_a_missing_file_is_named_with_what_was_looked_for(name: str, tmp_path: Path) -> None:
    params = write_phantom(tmp_path / "phantom")
    (tmp_path / "phantom" / name).unlink()
    assert name in problem(params)


def test_an_empty_folder_names_the_whole_layout(tmp_path: Path) -> None:
    params = write_phantom(tmp_path / "elsewhere").model_copy(update={"dep": str(tmp_path / "nothing")})
    text = problem(params)
    assert "images/<image_id>.png" in text
    assert "python -m shards phantom" in text


def test_a_lost_image_and_a_stray_one_are_named(tmp_path: Path) -> None:
    params = write_phantom(tmp_path / "phantom")
    images = tmp_path / "phantom" / "images"
    (images / "p0003-i1.png").rename(images / "stray.png")
    text = problem(params)
    assert "without a file: ['p0003-i1']" in text
    assert "without a row: ['stray']" in text


def test_a_missing_column_shows_what_was_found(tmp_path: Path) -> None:
    params = write_phantom(tmp_path / "phantom")
    labels = tmp_path / "phantom" / "labels.csv"
    labels.write_text(labels.read_text().replace("patient_id", "subject"))
    text = problem(params)
    assert "patient_id" in text
    assert "'subject'" in text
