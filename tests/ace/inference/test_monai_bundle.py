"""The MONAI bundle, run by MONAI itself."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import ace
from tests.support.checkout import ROOT

pytest.importorskip("monai", reason="NOT TESTED: monai is missing, so no bundle was run with it (pip install .[dev])")
GREY, COLOUR = "cxr-small", "fundus-small"  # the second one has dark edges cut off


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bundle") / "bundle"
    assert export(out, GREY, "--normalisation", "0.4,0.3").returncode == 0
    return out


def export(out: Path, model: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Export in a process of its own, which does not check shapes: torch cannot follow the checks."""
    command = [sys.executable, "-m", "ace", "export", "--model", model, "--format", "monai", "--out", str(out)]
    return subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True, check=False)


def images_of(folder: Path) -> list[Path]:
    """Images of each kind that a bundle reads: grey, colour, of 16 bits, with dark edges, not square."""
    rng = np.random.default_rng(0)
    levels = np.kron(rng.integers(0, 256, (9, 6)), np.ones((21, 31))).astype(np.uint16)
    levels[:40] = 0
    folder.mkdir()
    Image.fromarray(levels.astype(np.uint8)).save(folder / "a.png")
    Image.fromarray(np.stack([levels, 255 - levels, levels // 2], -1).astype(np.uint8)).save(folder / "b.JPG", "JPEG")
    Image.fromarray(levels * 13 + 900).save(folder / "c.png")
    (folder / "notes.txt").touch()
    return sorted(folder.glob("[abc].*"))


def run_by_monai(bundle: Path, images: Path, found: Path, cwd: Path, root: str) -> np.ndarray:
    """The embeddings that MONAI writes, in a process that does not find this package."""
    # What `python -m monai.bundle run run` calls, which needs the package `fire` to read its options.
    options = {"bundle_root": root, "dataset_dir": str(images), "output": str(found)}
    code = f"from monai.bundle import run; run(run_id='run', config_file='{root}/configs/inference.json', **{options})"
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "-c", code], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with np.load(found, allow_pickle=False) as written:
        assert [Path(path).name for path in written["paths"]] == ["a.png", "b.JPG", "c.png"]
        embeddings: np.ndarray = written["embeddings"]
    return embeddings


@pytest.mark.slow
def test_monai_runs_the_bundle_and_its_embeddings_are_the_models(bundle: Path, tmp_path: Path) -> None:
    images = images_of(tmp_path / "images [1]")
    embeddings = run_by_monai(bundle, tmp_path / "images [1]", tmp_path / "found.npz", cwd=bundle, root=".")
    model = ace.load(GREY, device="cpu", normalisation=(0.4, 0.3))
    expected = model.embed(images, with_tokens=False).embedding.numpy()
    np.testing.assert_allclose(embeddings, expected, atol=1e-5)


@pytest.mark.slow
def test_a_bundle_of_a_colour_model_runs_from_another_folder_and_place(tmp_path: Path) -> None:
    assert export(tmp_path / "made", COLOUR).returncode == 0
    bundle = (tmp_path / "made").rename(tmp_path / "moved")
    cwd = tmp_path / "elsewhere"
    (cwd / "scripts").mkdir(parents=True)
    (cwd / "scripts/__init__.py").write_text("raise RuntimeError('not the scripts of the bundle')")
    images = images_of(tmp_path / "images")
    embeddings = run_by_monai(bundle, tmp_path / "images", tmp_path / "found.npz", cwd=cwd, root=str(bundle))
    expected = ace.load(COLOUR, device="cpu").embed(images, with_tokens=False).embedding.numpy()
    np.testing.assert_allclose(embeddings, expected, atol=1e-5)


@pytest.mark.slow
def test_the_bundle_says_whose_weights_it_has_and_names_no_path_of_this_machine(bundle: Path) -> None:
    metadata = json.loads((bundle / "configs/metadata.json").read_text())
    assert metadata["ace"]["model_sha256"] == ace.load(GREY, device="cpu").describe()["model_sha256"]
    assert "Not a medical device" in (bundle / "docs/README.md").read_text()
    for path in bundle.rglob("*"):
        if path.is_file():
            assert str(ROOT).encode() not in path.read_bytes(), path
    assert "exists and is not empty" in export(bundle, GREY).stderr
