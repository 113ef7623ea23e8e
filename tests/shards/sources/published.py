"""The real, full metadata files of public datasets, as the wheel torchxrayvision 1.5.7 carries them.

The tests read them from there and the project never commits them. Each is compared with its hash: the counts that the
tests expect hold for these bytes only.
"""

import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

WHEEL = "torchxrayvision==1.5.7"
SHA256 = {
    "BBox_List_2017.csv.gz": "cf9dc6029f65daa8b389415b0546af0eeeb91fbac7d63ec49d7f8de2fd8f40cd",
    "Data_Entry_2017_v2020.csv.gz": "9d4de640ee4f760215d8be98376b20387ca52f9c6b4d1b727cb588fb82f40b80",
    "NLMCXR_reports.tgz": "8fb6de7eec73d8c3665067ad4bb003ccd57f971ae316d2642e1627ac7268667a",
    "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv.gz": (
        "34a10144a87fe00c176f23f9aa174a10137fd425882b09d8fb012ab817d99d65"
    ),
    "chexpert_train.csv.gz": "cdd70817ac2f13e464d2e35de78cd6831b10382c869c3824c35b44f55928becb",
    "google2019_nih-chest-xray-labels.csv.gz": "1d1b846e463753ed0219f67e21b10c8aef381897dbd64865c8191aa5794e8048",
    "kaggle_stage_2_train_images_dicom_headers.csv.gz": (
        "600a2b388e0beddc1d32b8fc17de432c0559cfa6865238bdf83c916f42d86c72"
    ),
    "kaggle_stage_2_train_labels.csv.zip": "73044dc075ffa05bde37b6c6165661a87d7c3fd0fdd277f909945e11263c06b0",
    "nlmcxr_dicom_metadata.csv.gz": "996c7d7a23b6bef51b1308dfa9671fb59b00e67c8928f7ff45cc002ca16ebf3e",
    "nlmcxr_tsne_pa.csv.gz": "98d66188265a15f00038a5c894adeeaafcd78dbf82f687308f1443793805a253",
    "semantic_masks_v7labs_lungs.zip": "4ec292d919c2524032855fb071d3c0842b1ab5344357aaadc036b42d3ea0ded8",
    "siim-pneumothorax-train-rle.csv.gz": "f3663a1ae9d11067b7a37a3c4fb69e22eb3c7a960d4118c47235e0e1cab64489",
    "vinbigdata-train.csv.gz": "3de944071c7178f6187e669a12795ba5fed2bfdc77481437ae587d8c077215c2",
}
_DOWNLOAD_TIMEOUT_S = 300


def published_file(name: str, cache: Path) -> Path:
    """One of the files; `cache` (pytest's) keeps the wheel between runs. Skips the test where it cannot be had."""
    path = cache / name
    if not path.is_file():
        wheel = next(cache.glob("torchxrayvision-*.whl"), None) or _download(cache)
        with zipfile.ZipFile(wheel) as archive:
            data = archive.read(f"torchxrayvision/data/{name}")
        temporary = path.with_name(f".{name}.{os.getpid()}.tmp")
        temporary.write_bytes(data)
        temporary.replace(path)
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    assert found == SHA256[name], f"{name}: sha256 {found}, the counts hold for {SHA256[name]}"
    return path


def _download(cache: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(cache), WHEEL]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=_DOWNLOAD_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        pytest.skip(f"REAL METADATA NOT CHECKED: pip download {WHEEL} took more than {_DOWNLOAD_TIMEOUT_S} s")
    wheel = next(cache.glob("torchxrayvision-*.whl"), None)
    if wheel is None:
        pytest.skip(f"REAL METADATA NOT CHECKED: pip download {WHEEL} failed: {answer.stderr.strip()[-300:]}")
    return wheel
