"""The shard format on disk (docs/format.md), as writer and reader share it."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shards.format.tar import BLOCK, Span

FORMAT_VERSION = 2

INDEX = "index.json"
ROWS = "samples.npy"
QUARANTINE = "quarantine.csv"
CONTACT_SHEET = "contact_sheet.png"
BATCHES = Path("batches")
"""The files of a project that decide its batches."""
MANIFESTS = Path("data/manifests")
"""Folder of a project, private: file names of patients' images, and the folders that hold them."""

IMAGE_FORMATS = ("png", "jpg")  # suffixes of the canvas
META_SUFFIX = "json"
HALF_SUFFIX = "half.jpg"  # stands right behind the image, where a reader looks for it
LANDMARKS_SUFFIX = "landmarks.json"
MASK_SUFFIX = "mask.{structure}.png"

MAX_KEY_LENGTH = 64
MAX_INDEX_BYTES = 2**26
"""Greatest size of index.json; a tar takes some 200 bytes in it."""
MAX_HEADER_BYTES = 2**12
"""Greatest size of the header of samples.npy; numpy writes 320 bytes."""

ROW_DTYPE = np.dtype(
    [
        ("key", f"S{MAX_KEY_LENGTH}"),  # ASCII
        ("patient", "S16"),
        ("split", np.uint8),  # position in SPLITS
        ("shard", np.uint32),  # position in the index's list of shards; rows are in its order
        ("start", np.int64),  # first byte of the sample's first header
        ("num_bytes", np.uint32),  # of all its members, headers and padding included
        ("meta_bytes", np.uint32),
        ("image_bytes", np.uint32),
        ("half_bytes", np.uint32),  # 0: the set has no half-sized canvases
        ("landmarks_bytes", np.uint32),  # 0: the sample has none
    ]
)
"""One row per sample. Offsets are bytes in its tar; where a member lies follows from the sizes (`SampleSpans`)."""


@dataclass(frozen=True, kw_only=True)
class SampleSpans:
    """Hold the spans of a sample's members in its tar.

    These are the description, the image, its half size and the landmarks if there are any, and all members together. A
    member that is not there has no bytes.
    """

    members: Span
    meta: Span
    image: Span
    half: Span
    landmarks: Span

    @classmethod
    def of(cls, row: np.void) -> "SampleSpans":
        """Compute the spans from a row of the index; each header is one block."""
        start = int(row["start"])
        meta = Span(start + BLOCK, int(row["meta_bytes"]))
        image = Span(meta.member_stop + BLOCK, int(row["image_bytes"]))
        half = Span(image.member_stop + BLOCK, int(row["half_bytes"]))
        before = half if half.num_bytes else image
        landmarks = Span(before.member_stop + BLOCK, int(row["landmarks_bytes"]))
        return cls(members=Span(start, int(row["num_bytes"])), meta=meta, image=image, half=half, landmarks=landmarks)


def sha256_of(path: Path) -> str:
    """Hash of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
