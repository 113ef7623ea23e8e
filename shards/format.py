"""The shard format on disk (docs/data.md), as writer and reader share it."""

import hashlib
from pathlib import Path

import numpy as np

FORMAT_VERSION = 1

INDEX = "index.json"
ROWS = "samples.npy"
QUARANTINE = "quarantine.csv"
CONTACT_SHEET = "contact_sheet.png"

IMAGE_FORMATS = ("png", "jpg")  # suffixes of the canvas
META_SUFFIX = "json"
HALF_SUFFIX = "half.jpg"  # stands right behind the image, where a reader looks for it
LANDMARKS_SUFFIX = "landmarks.json"
MASK_SUFFIX = "mask.{structure}.png"

MAX_KEY_LENGTH = 64

ROW_DTYPE = np.dtype(
    [
        ("key", f"U{MAX_KEY_LENGTH}"),
        ("patient", "U16"),
        ("split", "U5"),
        ("shard", np.int32),  # position in the index's list of shards
        ("start", np.int64),  # the sample's members, headers included: [start, stop)
        ("stop", np.int64),
        ("image_start", np.int64),
        ("image_bytes", np.int64),
        ("meta_start", np.int64),
        ("meta_bytes", np.int64),
        ("landmarks_start", np.int64),
        ("landmarks_bytes", np.int64),  # 0: the sample has none
    ]
)
"""One row per sample; offsets are bytes in its tar."""


def sha256_of(path: Path) -> str:
    """Hash of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
