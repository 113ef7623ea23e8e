"""The MONAI bundle, run by MONAI itself."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

import ace
from tests.support.checkout import ROOT

pytest.importorskip("monai", reason="NOT TESTED: monai is missing, so no bundle was run with it (pip install .[dev])")
MODEL = "cxr-small"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bundle") / "bundle"
    assert export(out).returncode == 0
    return out


def export(out: Path) -> subprocess.CompletedProcess[str]:
    """Export in a process of its own, which does not check shapes: torch cannot follow the checks."""
    command = [sys.executable, "-m", "ace", "export", "--model", MODEL, "--format", "monai", "--out", str(out)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_monai_runs_the_bundle_and_its_embeddings_are_the_models(bundle: Path, tmp_path: Path) -> None:
    rng, images = np.random.default_rng(0), tmp_path / "images"
    images.mkdir()
    levels = rng.integers(0, 256, (90, 60), dtype=np.uint8)
    Image.fromarray(levels).resize((300, 200)).save(images / "a.png")
    Image.fromarray(np.stack([levels] * 3, -1)).resize((128, 128)).save(images / "b.png")
    (images / "notes.txt").touch()
    # What `python -m monai.bundle run run` calls, which needs the package `fire` to read its options.
    options = {"bundle_root": ".", "dataset_dir": str(images), "output": str(tmp_path / "found.npz")}
    code = f"from monai.bundle import run; run(run_id='run', config_file='configs/inference.json', **{options})"
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    subprocess.run([sys.executable, "-c", code], cwd=bundle, check=True, env=environment, capture_output=True)
    with np.load(tmp_path / "found.npz", allow_pickle=False) as found:
        assert [Path(path).name for path in found["paths"]] == ["a.png", "b.png"]
        embeddings = found["embeddings"]
    model = ace.load(MODEL, device="cpu")
    padded = [ImageOps.pad(Image.open(images / name).convert("L"), (128, 128)) for name in ("a.png", "b.png")]
    expected = model.embed([np.asarray(image) for image in padded], with_tokens=False).embedding.numpy()
    assert np.abs(embeddings - expected).max() < 1e-4
    own = model.embed([images / "a.png", images / "b.png"], with_tokens=False).embedding.numpy()
    assert (embeddings * own).sum(1).min() > 0.99


@pytest.mark.slow
def test_the_bundle_says_whose_weights_it_has_and_names_no_path_of_this_machine(bundle: Path) -> None:
    metadata = json.loads((bundle / "configs/metadata.json").read_text())
    assert metadata["ace"]["model_sha256"] == ace.load(MODEL, device="cpu").describe()["model_sha256"]
    assert "Not a medical device" in (bundle / "docs/README.md").read_text()
    for path in bundle.rglob("*"):
        if path.is_file():
            assert str(ROOT).encode() not in path.read_bytes(), path
    assert "exists and is not empty" in export(bundle).stderr
