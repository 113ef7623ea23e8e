"""A batch's own settings, its part in training and where its images are, through the commands that users give."""

import shutil
import stat
from pathlib import Path

import numpy as np
import pytest

from shards.__main__ import build_parser
from shards.cli import run_command
from shards.core.config import read_params
from shards.core.params import RegisteredSourceParams
from shards.delivery.batches import read_batch
from shards.reading.reader import ShardIndex
from tests.support.checkout import copy_project
from tests.support.datasets import folder_bytes, write_folder


@pytest.fixture
def project(tmp_path: Path, id_key: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with the registered folder `own`."""
    folder = tmp_path / "project"
    folder.mkdir()
    copy_project(folder)
    write_folder(tmp_path / "own", [f"{number:02}.png" for number in range(12)])
    monkeypatch.chdir(folder)
    assert command("register", "own-b000", "../own") == 0
    return folder


def command(*arguments: str) -> int:
    return run_command(build_parser(), arguments)


def deps(stage: str) -> list[str]:
    return list(read_params(Path("dvc.yaml"))["stages"][stage]["deps"])


def test_a_batch_without_weight_is_measured_on_and_training_does_not_know_it(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = read_params(Path("params.yaml"))["mix"], deps("pretrain"), deps("report")
    write_folder(Path("../test"), ["a.png", "b.png"], first=50)
    assert command("register", "test-b000", "../test", "--weight", "0") == 0
    assert "`python -m ace evaluate --batch test-b000` measures on it" in capsys.readouterr().err
    assert (read_params(Path("params.yaml"))["mix"], deps("pretrain"), deps("report")) == before
    assert "test-b000" in read_params(Path("params.yaml"))["batches"]
    assert 0 < read_batch("test-b000", Path()).measured.mean[0] < 1
    assert command("register", "test-b000", "../test") == 0, "to give it again its manifest"
    assert (read_params(Path("params.yaml"))["mix"], deps("pretrain"), deps("report")) == before
    assert command("register", "test-b000", "../test", "--only") == 2
    assert "is not trained on" in capsys.readouterr().err
    assert command("remove", "test-b000") == 0
    assert (read_params(Path("params.yaml"))["mix"], deps("pretrain"), deps("report")) == before
    assert command("register", "only-b000", "../test", "--weight", "0", "--only") == 2
    assert "nothing would be trained on" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("registered", "given", "message"),
    [
        ((), "0", "is registered with the weight 1; take the batch out (`python -m shards remove test-b000`)"),
        (("--weight", "0"), "1", "is registered with the weight 0; take the batch out"),
    ],
)
def test_a_registered_batch_is_trained_on_or_not_as_before_whatever_weight_is_given_again(
    registered: tuple[str, ...], given: str, message: str, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_folder(Path("../test"), ["a.png", "b.png"], first=50)
    assert command("register", "test-b000", "../test", *registered) == 0
    before = Path("params.yaml").read_text(), Path("dvc.yaml").read_text()
    capsys.readouterr()
    assert command("register", "test-b000", "../test", "--weight", given) == 2
    assert message in capsys.readouterr().err
    assert (Path("params.yaml").read_text(), Path("dvc.yaml").read_text()) == before
    assert command("register", "test-b000", "../test", *registered) == 0
    assert command("remove", "test-b000") == 0
    assert command("register", "test-b000", "../test", "--weight", given) == 0
    mix = read_params(Path("params.yaml"))["mix"]
    assert mix.get("test-b000", {"weight": 0})["weight"] == float(given)


def test_deliveries_of_one_clinic_have_one_normalisation_unless_told_otherwise(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, options in enumerate(((), ("--normalize", "own"), ("--site", "elsewhere")), start=1):
        write_folder(Path(f"../own{number}"), ["a.png"], first=50 * number)
        assert command("register", f"own-b00{number}", f"../own{number}", *options) == 0
    mix = read_params(Path("params.yaml"))["mix"]
    means = {name: item["mean"] for name, item in mix.items()}
    measured = {name: read_batch(name, Path()).measured.mean[0] for name in mix}
    assert means["own-b001"] == means["own-b000"] == measured["own-b000"] != measured["own-b001"]
    assert all(means[name] == measured[name] for name in ("own-b002", "own-b003"))
    said = capsys.readouterr().err
    assert said.count("is normalised like own-b000") == 1
    assert "params.yaml keeps" not in said


def test_images_that_were_moved_are_the_same_batch(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.move("../own", "../archive 2")
    assert command("build", "--batch", "own-b000", "--num-workers", "1", "--out", "out") == 2
    said = capsys.readouterr().err
    assert "own: none of the first images of data/manifests/own-b000.jsonl is there" in said
    assert "`python -m shards relocate own-b000 FOLDER`" in said
    before = folder_bytes(project / "batches"), Path("params.yaml").read_bytes(), Path("dvc.yaml").read_bytes()
    assert command("relocate", "own-b000", "../archive 2") == 0
    assert (
        folder_bytes(project / "batches"),
        Path("params.yaml").read_bytes(),
        Path("dvc.yaml").read_bytes(),
    ) == before
    source = read_batch("own-b000", Path()).source
    assert isinstance(source, RegisteredSourceParams)
    assert source.root == str(project.parent / "archive 2")
    assert stat.S_IMODE(Path("data/manifests/own-b000.root.txt").stat().st_mode) == 0o600
    assert command("build", "--batch", "own-b000", "--num-workers", "1", "--out", "out") == 0


def test_a_folder_that_lacks_a_file_of_the_batch_is_not_where_it_was_moved_to(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree("../own", "../copy")
    Path("../copy/03.png").unlink()
    Path("../copy/04.png").write_bytes(b"another")
    assert command("relocate", "own-b000", "../copy") == 2
    said = capsys.readouterr().err
    assert "2 of the 12 files of own-b000 are missing or of another size" in said
    assert "03.png" not in said
    assert Path("data/manifests/own-b000.root.txt").read_text() == f"{project.parent / 'own'}\n"
    assert command("relocate", "own-b000", "../nowhere") == 2
    assert "../nowhere: no such folder; expected the one that has the images of own-b000 now" in capsys.readouterr().err
    assert command("relocate", "phantom-b000", "../copy") == 2


def test_settings_of_params_yaml_reach_a_batch_when_somebody_says_so(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    params = Path("params.yaml")
    params.write_text(params.read_text().replace("num_bank_pairs: 16", "num_bank_pairs: 3"))
    write_folder(Path("../next"), ["a.png"], first=50)
    assert command("register", "own-b001", "../next") == 0
    pairs = {name: read_batch(name, Path()).shard.num_bank_pairs for name in ("own-b000", "own-b001")}
    assert pairs == {"own-b000": 16, "own-b001": 3}, "a batch has its settings from when it was registered"
    phantom = Path("batches/phantom-b000.yaml").read_bytes()
    assert command("settings", "own-b000") == 0
    assert read_batch("own-b000", Path()).shard.num_bank_pairs == 3
    assert "its shards will be built again" in capsys.readouterr().err
    assert Path("batches/phantom-b000.yaml").read_bytes() == phantom
    assert command("settings") == 0
    assert read_batch("phantom-b000", Path()).shard.num_bank_pairs == 3
    capsys.readouterr()
    assert command("settings") == 0
    assert "have these settings already" in capsys.readouterr().err
    assert command("settings", "other-b000") == 2


def test_an_override_of_the_command_line_is_of_the_batch_alone(project: Path) -> None:
    build = ("build", "--batch", "own-b000", "--num-workers", "1")
    before = Path("batches/own-b000.yaml").read_bytes()
    assert command(*build, "--out", "one", "--set", "shard.num_images_per_shard=2") == 0
    assert command(*build, "--out", "two") == 0
    # Of all splits: which images are for training depends on the key.
    assert len(list(Path("one").glob("*.tar"))) > len(list(Path("two").glob("*.tar")))
    assert command(*build, "--out", "three", "--set", "source.kind=phantom") == 2
    assert Path("batches/own-b000.yaml").read_bytes() == before


def test_a_batch_that_was_taken_out_comes_back_with_its_settings_and_its_keep_list(project: Path) -> None:
    key = ShardIndex.open(built("own-b000")).keys(np.arange(1))[0]
    assert command("keep", "own-b000", key) == 0
    before = Path("batches/own-b000.yaml").read_bytes(), Path("params.yaml").read_bytes(), Path("dvc.yaml").read_bytes()
    assert command("remove", "own-b000") == 0
    params = Path("params.yaml")
    params.write_text(params.read_text().replace("num_bank_pairs: 16", "num_bank_pairs: 3"))
    assert command("register", "own-b000", "../own") == 0
    params.write_text(params.read_text().replace("num_bank_pairs: 3", "num_bank_pairs: 16"))
    assert (Path("batches/own-b000.yaml").read_bytes(), params.read_bytes(), Path("dvc.yaml").read_bytes()) == before


def built(batch: str) -> Path:
    assert command("build", "--batch", batch, "--num-workers", "1", "--out", "set") == 0
    return Path("set")
