"""`python -m ace publish` makes shipped models, `ace.load("NAME")` finds them; and every shipped model is in order."""

import csv
import hashlib
import json
import re
import shutil
import socket
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import ace
from ace.__main__ import build_parser
from ace.embed.encoder import load_encoder
from ace.report.summary import ROWS
from ace.zoo import shipped
from ace.zoo.publishing import MAX_BYTES, publish
from ace.zoo.shipped import ZOO, find_model, published_of, shipped_names
from shards.cli import run_command
from shards.core.errors import ConfigError
from shards.delivery.project import Project
from shards.delivery.register import register_batch
from shards.format.layout import sha256_of
from shards.sources.datasets.folder import FolderSource
from tests.ace.inference.models import DIM, ROOT, mix, write_model
from tests.support.checkout import copy_project
from tests.support.datasets import smooth_image, write_folder

SHIPPED = shipped_names()
NAMES = [f"{number:08d}_000.png" for number in range(7)]
TERMS = "Use is unrestricted. Cite Wang et al., CVPR 2017."


def figures(model: Path, **measured: Any) -> dict[str, Any]:
    """metrics/properties.json of a model with one figure of each kind."""
    figure = {"value": 0.3, "low": 0.2, "high": 0.4, "chance": 0.0, "n": 66, "num_regions": 264}
    absent = {"value": None, "low": None, "high": None, "n": 0, "reason": "no landmarks"}
    row = {
        **dict.fromkeys(ROWS, figure),
        "decompositionality": {**figure, "chance": 0.03125, "num_candidates": 32},
        "correspondence_px_at_1024": absent,
    }
    section = {
        "model_sha256": sha256_of(model / "teacher_backbone.safetensors"),
        "batch": "a-b000",
        "split": "test",
        "num_patients": 66,
        "num_shared_patients": 0,
        "batches_that_may_share_images": [],
    }
    return {"trained": row, "untrained": row, "gain": row, "measured": section | measured}


MACHINE = {"processor": "a fast one", "cores": 8, "memory_gb": 33.6, "accelerators": ["H200"]}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished training whose config.json speaks of the machine, with its lists and its metrics beside it."""
    root = tmp_path_factory.mktemp("finished")
    folder = write_model(root / "run" / "ace", is_whitened=True, batches={"a-b000": mix(1.0, 0.4, 0.2)})
    config = json.loads((folder / "config.json").read_text())
    config["params"]["batches"]["a-b000"]["source"] = {"root": "/home/somebody/Doe^Jane", "dep_sha256": "1" * 64}
    config["params"]["pretrain"]["start_from"] = "/home/somebody/models/before"
    config["start_from"] = {"teacher_backbone.safetensors": "2" * 64}
    config["hardware"] = MACHINE
    config["run_dir"] = "/home/somebody/runs/1"
    config["shards"][0]["shards"] = [{"name": "train-000000.tar", "sha256": "3" * 64}]
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "training_images.csv").write_text("batch,key,patient\na-b000,0123456789abcdef,fedcba9876543210\n")
    (folder / "metrics.jsonl").write_text("{}\n")
    (root / "properties.json").write_text(json.dumps(figures(folder)))
    (root / "images.txt").write_text("\n".join(reversed(NAMES)) + "\n")
    return root


@pytest.fixture
def trained(finished: Path, tmp_path: Path) -> Path:
    """The model's folder in a copy to change."""
    return Path(shutil.copytree(finished, tmp_path, dirs_exist_ok=True)) / "run" / "ace"


def publish_as(trained: Path, out: Path, **changes: Any) -> Path:
    inputs = trained.parents[1]
    arguments: dict[str, Any] = {
        "name": out.name,
        "metrics": inputs / "properties.json",
        "images": inputs / "images.txt",
        "terms": TERMS,
        "half": False,
    }
    return publish(trained, out=out, **{**arguments, **changes}).folder


@pytest.fixture(scope="module")
def published(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("published") / "cxr-tiny"
    return publish_as(finished / "run" / "ace", out)


@pytest.fixture
def zoo(published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A zoo of one model, in the place of the package's; a copy to change."""
    monkeypatch.setattr(shipped, "ZOO", tmp_path / "zoo")
    shutil.copytree(published, tmp_path / "zoo" / "cxr-tiny")
    return tmp_path / "zoo"


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def command(*arguments: str | Path) -> int:
    return run_command(build_parser(), [*map(str, arguments)])


def test_a_shipped_model_is_loaded_by_its_name(zoo: Path, trained: Path, offline: None) -> None:
    image = smooth_image(50, 40, 0)
    named, original = ace.load("cxr-tiny").embed(image), ace.load(trained).embed(image)
    assert torch.equal(named.embedding, original.embedding)
    assert named.tokens.shape == (4, 4, DIM)
    assert find_model("cxr-tiny") == zoo / "cxr-tiny"


def test_a_folder_that_exists_wins(zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "cxr-tiny", "convnext")
    assert find_model("cxr-tiny") == Path("cxr-tiny")
    assert ace.load("cxr-tiny", device="cpu").folder == Path("cxr-tiny")


def test_an_unknown_name_lists_those_there_are_and_says_what_a_folder_looks_like(zoo: Path) -> None:
    places = f"there is no folder {Path('cxr-huge').absolute()}, and no model of that name in {zoo}"
    with pytest.raises(ConfigError, match=rf"{places}\. Shipped models: cxr-tiny\. .* config\.json and teacher"):
        ace.load("cxr-huge")
    shutil.rmtree(zoo)
    with pytest.raises(ConfigError, match="Shipped models: none in this installation"):
        ace.load("cxr-tiny")


@pytest.mark.parametrize(("which", "reason"), [("student", "the model has teacher"), ("best", "has no best teacher")])
def test_a_shipped_model_has_the_teacher_alone(which: Any, reason: str, zoo: Path) -> None:
    with pytest.raises(ConfigError, match=reason):
        ace.load("cxr-tiny", which=which)


def test_weights_that_are_not_the_published_ones_are_refused(zoo: Path) -> None:
    weights = zoo / "cxr-tiny" / "teacher_backbone.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    for model in ("cxr-tiny", zoo / "cxr-tiny"):
        with pytest.raises(ConfigError, match="not the published weights: sha256"):
            ace.load(model)
    weights.unlink()
    with pytest.raises(ConfigError, match="not found, although"):
        ace.load("cxr-tiny")


@pytest.mark.parametrize("sums", [None, {"../teacher.safetensors": "0" * 64}, {"teacher_backbone.safetensors": "0"}])
def test_a_model_whose_published_sums_are_damaged_is_not_loaded_without_them(sums: Any, zoo: Path) -> None:
    path = zoo / "cxr-tiny" / "config.json"
    config = json.loads(path.read_text())
    config["published"]["sha256"] = sums
    path.write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"config\.json: damaged \(published\.sha256"):
        ace.load("cxr-tiny")


def test_models_lists_what_is_shipped(zoo: Path, capsys: pytest.CaptureFixture) -> None:
    assert command("models") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert text.startswith("cxr-tiny (0.1 MB) An encoder of 0.01 million parameters for grey images at 64 px")
    assert "saw: 7 images of 5 patients (batch a-b000), without labels." in text
    assert "compositionality (cosine, true − mismatched): 0.300 [0.200, 0.400], untrained 0.300 [0.200, 0.400]" in text
    assert "30.0% [20.0%, 40.0%]" in text
    assert "correspondence" not in text
    shutil.rmtree(zoo)
    assert command("models") == 0
    assert "no model is shipped" in capsys.readouterr().out


def test_listing_models_does_not_import_torch() -> None:
    code = "import sys; from ace.zoo.shipped import models_text; models_text(); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_embed_and_export_take_the_name(zoo: Path, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    Image.fromarray(smooth_image(40, 30, 0)).save(tmp_path / "images" / "a.png")
    out = tmp_path / "embeddings.parquet"
    assert command("embed", tmp_path / "images", "--model", "cxr-tiny", "--out", out, "--device", "cpu") == 0
    assert out.is_file()
    assert command("export", "--format", "timm", "--model", "cxr-tiny", "--out", tmp_path / "timm") == 0
    assert command("export", "--format", "timm", "--model", "cxr-huge", "--out", tmp_path / "none") == 2


def test_a_published_folder_holds_nothing_private(zoo: Path) -> None:
    folder = zoo / "cxr-tiny"
    assert {path.name for path in folder.iterdir()} == {
        "config.json",
        "teacher_backbone.safetensors",
        "README.md",
        "images.txt",
    }
    secrets = ("somebody", "Doe", "0123456789abcdef", "fedcba9876543210", "1" * 64, "3" * 64, "run_dir")
    for path in folder.iterdir():
        assert not any(secret.encode() in path.read_bytes() for secret in secrets), path.name
    config = json.loads((folder / "config.json").read_text())
    assert config["params"]["pretrain"]["start_from"] == "before"
    assert config["params"]["batches"] == {"a-b000": mix(1.0, 0.4, 0.2)}
    assert config["hardware"] == MACHINE
    assert (folder / "images.txt").read_text().split() == NAMES
    assert [path.name for path in zoo.iterdir()] == ["cxr-tiny"]


def test_half_weights_are_half_as_large_and_compute_in_32_bits(trained: Path, tmp_path: Path) -> None:
    whole, half = publish_as(trained, tmp_path / "whole"), publish_as(trained, tmp_path / "half", half=True)
    stored = load_file(half / "teacher_backbone.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.float16}
    sizes = [(folder / "teacher_backbone.safetensors").stat().st_size for folder in (half, whole)]
    assert sizes[0] < 0.65 * sizes[1]
    loaded = load_encoder(half, device="cpu").backbone.state_dict()
    assert {value.dtype for value in loaded.values()} == {torch.float32}
    assert all(torch.equal(loaded[name], value.float()) for name, value in stored.items())
    about = published_of(half)
    assert about is not None
    assert 0.999 < about.min_cosine <= 1
    card = (half / "README.md").read_text()
    assert "stored in 16 bits and computed with in 32" in card
    assert ", whitening |" in card
    assert f"{about.min_cosine:.6f}" in card
    assert "16 bits" not in (whole / "README.md").read_text()


def test_the_card_has_figures_with_intervals_and_the_terms(zoo: Path) -> None:
    card = (zoo / "cxr-tiny" / "README.md").read_text()
    assert TERMS in card
    assert "| decompositionality: top-1 of 32" in card
    assert "set to another patient's tissue |" in card
    assert "| linear probe: AUROC, mean over labels |" in card
    assert "| 30.0% [20.0%, 40.0%] | 30.0% [20.0%, 40.0%] | 3.1% | 66 |" in card
    assert "not measured: no landmarks" in card
    assert "Not a medical device" in card
    table = re.findall(r"^\|.*\|$", card.split("## What it is worth")[1].split("## Files")[0], re.M)
    assert len({line.count("|") for line in table}) == 1


def test_publishing_again_replaces_the_model_and_nothing_else(trained: Path, tmp_path: Path) -> None:
    out = publish_as(trained, tmp_path / "cxr-tiny")
    before = (out / "config.json").read_bytes()
    publish_as(trained, out)
    assert (out / "config.json").read_bytes() == before
    publish_as(trained, out, terms="Others.")
    assert "Others." in (out / "README.md").read_text()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    with pytest.raises(ConfigError, match="exists and is not the published model 'mine'"):
        publish_as(trained, tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").exists()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"name": "CXR small"}, "expected small letters"),
        ({"name": "other"}, "named after it; expected"),
        ({"terms": " "}, "--terms: empty"),
        ({"metrics": Path("none.json")}, "expected the figures"),
        ({"images": Path("none.txt")}, "no such file"),
    ],
)
def test_a_mistake_leaves_nothing_behind(changes: dict[str, Any], reason: str, trained: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=reason):
        publish_as(trained, tmp_path / "zoo" / "cxr-tiny", **changes)
    assert not (tmp_path / "zoo").exists()


@pytest.mark.parametrize(
    ("measured", "reason"),
    [
        ({"model_sha256": 64 * "5"}, r"figures of another model, .* 5555555555555555…; those of .* evaluate --model"),
        ({"num_shared_patients": 3}, "was trained on 3 of the test patients of a-b000; expected none"),
        ({"num_shared_patients": None, "batches_that_may_share_images": None}, "trained on an unknown number of the"),
        ({"batches_that_may_share_images": ["nih-b000"]}, "and nih-b000 may hold images of a-b000; expected none"),
        ({"split": "train"}, r"measured\.split: Input should be 'test' or 'val'"),
    ],
)
def test_figures_of_another_model_or_of_its_training_patients_are_refused(
    measured: dict[str, Any], reason: str, trained: Path, tmp_path: Path
) -> None:
    (tmp_path / "properties.json").write_text(json.dumps(figures(trained, **measured)))
    with pytest.raises(ConfigError, match=reason):
        publish_as(trained, tmp_path / "zoo" / "cxr-tiny")
    assert not (tmp_path / "zoo").exists()


def test_metrics_that_do_not_say_whose_they_are_are_refused(trained: Path, tmp_path: Path) -> None:
    values = figures(trained)
    del values["measured"]
    (tmp_path / "properties.json").write_text(json.dumps(values))
    with pytest.raises(ConfigError, match=r"an older release wrote it, .*measure this model: .* evaluate --model"):
        publish_as(trained, tmp_path / "cxr-tiny")


def test_the_card_says_where_patients_are_unknown(trained: Path, tmp_path: Path) -> None:
    unknown = {"batches_without_patients": ["a-b000"]}
    (tmp_path / "properties.json").write_text(json.dumps(figures(trained, **unknown)))
    folder = publish_as(trained, tmp_path / "cxr-tiny", half=True)
    card = (folder / "README.md").read_text()
    assert "the patients of a-b000 are unknown" in card
    assert "saw none of them" not in card
    about = published_of(folder)
    assert about is not None
    assert about.measured["batches_without_patients"] == ["a-b000"]


@pytest.mark.parametrize(("split", "named"), [("test", "test patients"), ("val", "validation patients, on whom")])
def test_the_card_says_of_which_split_the_figures_are(split: str, named: str, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "properties.json").write_text(json.dumps(figures(trained, split=split)))
    folder = publish_as(trained, tmp_path / "cxr-tiny", half=True)
    assert f"Every figure is of {named}" in (folder / "README.md").read_text()
    about = published_of(folder)
    assert about is not None
    assert "the training saw none of them" in (folder / "README.md").read_text()
    assert about.measured["split"] == split
    assert about.measured["model_sha256"] == sha256_of(trained / "teacher_backbone.safetensors")


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (NAMES[:6], "6 names of training images, and the model was trained on 7"),
        ([*NAMES[:6], NAMES[0]], "1 names are there twice"),
        ([*NAMES[:6], "/home/somebody/a.png"], "1 lead out of the dataset"),
        ([*NAMES[:6], "../../somebody/a.png"], "1 lead out of the dataset"),
        ([*NAMES[:6], "..\\somebody\\a.png"], "1 lead out of the dataset"),
        ([*NAMES[:6], "s3://bucket/a.png"], "1 lead out of the dataset"),
    ],
)
def test_the_names_must_be_those_of_the_training_images(
    lines: list[str], reason: str, trained: Path, tmp_path: Path
) -> None:
    (tmp_path / "images.txt").write_text("\n".join(lines))
    with pytest.raises(ConfigError, match=reason):
        publish_as(trained, tmp_path / "cxr-tiny")


def test_weights_above_the_bound_are_refused(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ace.zoo.publishing.MAX_BYTES", 1000)
    with pytest.raises(ConfigError, match="--half makes them half as large"):
        publish_as(trained, tmp_path / "cxr-tiny")
    assert not list(tmp_path.glob("*cxr-tiny*"))


def test_a_published_or_imported_model_is_not_published_again(trained: Path, tmp_path: Path) -> None:
    out = publish_as(trained, tmp_path / "cxr-tiny")
    with pytest.raises(ConfigError, match="found a published model"):
        publish(
            out,
            name="b",
            metrics=tmp_path / "properties.json",
            images=tmp_path / "images.txt",
            terms=TERMS,
            out=tmp_path / "b",
            half=False,
        )
    config = json.loads((trained / "config.json").read_text())
    source = {"file": "w.pth", "sha256": "ab" * 32, "nest": "", "adapted": [], "derived": [], "heads": []}
    (trained / "config.json").write_text(json.dumps({**config, "origin": "imported", "source": source}))
    with pytest.raises(ConfigError, match="whose weights belong to others"):
        publish_as(trained, tmp_path / "c")


def test_the_names_come_from_the_manifest_of_the_batch_too(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only those of images that were trained on, which training_images.csv lists by their keys."""
    from shards.core.identity import KEY_FILE_VARIABLE, create_key
    from shards.delivery.manifest import iterate_manifest

    create_key(tmp_path / "keys" / "id.key")
    monkeypatch.setenv(KEY_FILE_VARIABLE, str(tmp_path / "keys" / "id.key"))
    write_folder(tmp_path / "own", [f"x{number}.png" for number in range(9)])
    (tmp_path / "project").mkdir()
    copy_project(tmp_path / "project")
    project = Project(tmp_path / "project/params.yaml", tmp_path / "project/dvc.yaml")
    register_batch("a-b000", tmp_path / "own", FolderSource(), project=project)
    manifest = tmp_path / "project/data/manifests/a-b000.jsonl"
    entries = [entry.record for _, entry in iterate_manifest(manifest)[1]]
    with (trained / "training_images.csv").open("w", newline="") as file:
        rows = [("a-b000", record.source_id, record.patient) for record in entries[2:]]
        csv.writer(file).writerows([("batch", "key", "patient"), *rows])
    out = publish_as(trained, tmp_path / "cxr-tiny", images=manifest)
    assert (out / "images.txt").read_text().split() == sorted(record.image.path for record in entries[2:])


def test_the_command_publishes_and_takes_the_terms_as_text_or_file(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "terms.md").write_text("Terms of a file.")
    for terms, expected in ((tmp_path / "terms.md", "Terms of a file."), (TERMS * 100, TERMS)):
        arguments = ["--name", "cxr-tiny", "--metrics", tmp_path / "properties.json", "--terms", terms, "--half"]
        out = tmp_path / "zoo" / "cxr-tiny"
        assert command("publish", trained, *arguments, "--images", tmp_path / "images.txt", "--out", out) == 0
        assert expected in (out / "README.md").read_text()
        assert "MB of weights" in capsys.readouterr().out


def test_the_package_ships_what_it_says() -> None:
    """Folders of the zoo are models, and nothing else lies there but this package's own modules."""
    folders = {path.name for path in ZOO.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders == set(SHIPPED)


def test_an_encoder_of_chest_radiographs_ships() -> None:
    assert "cxr-small" in SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_model_is_in_order(name: str, offline: None) -> None:
    folder = ZOO / name
    about = published_of(folder)
    assert about is not None
    assert about.name == name
    weights = {path.name for path in folder.glob("*.safetensors")}
    assert weights == about.sha256.keys() == {"teacher_backbone.safetensors"}
    data = (folder / "teacher_backbone.safetensors").read_bytes()
    assert len(data) <= MAX_BYTES
    assert hashlib.sha256(data).hexdigest() == about.sha256["teacher_backbone.safetensors"]
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert all(f"`{path.name}`" in card for path in folder.iterdir())
    assert about.terms in card
    assert all(figure.keys() >= {"value"} for figure in about.figures["trained"].values())
    names = (folder / "images.txt").read_text(encoding="utf-8").splitlines()
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert len(names) == len(set(names)) == sum(item["num_images"] for item in config["shards"])
    out = ace.load(name, device="cpu").embed(np.full((300, 200), 128, np.uint8))
    assert out.embedding.isfinite().all()
    assert out.embedding.norm().item() == pytest.approx(1, abs=1e-4)


@pytest.mark.slow
def test_a_wheel_holds_the_shipped_models(trained: Path, tmp_path: Path) -> None:
    """Built from a copy of the sources with one model more, and loaded from where it was unpacked."""
    source = tmp_path / "source"
    for name in ("ace", "shards", "pipelines"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, source)
    publish_as(trained, source / "ace" / "zoo" / "cxr-tiny")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--wheel-dir", str(tmp_path / "wheels"), str(source)], check=True)
    (wheel,) = (tmp_path / "wheels").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
        archive.extractall(tmp_path / "installed")
    assert not any("__pycache__" in name for name in held)
    for name in (*SHIPPED, "cxr-tiny"):
        for path in (source / "ace" / "zoo" / name).iterdir():
            assert f"ace/zoo/{name}/{path.name}" in held
    code = "import ace; print(ace.__file__, ace.load('cxr-tiny').embed(__import__('numpy').zeros((9, 9))).tokens.shape)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path / "installed",
        env={"PYTHONPATH": str(tmp_path / "installed"), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert str(tmp_path / "installed") in done.stdout
