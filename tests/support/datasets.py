"""Small raw datasets in the layouts that the sources read, and the parameters to build them with."""

import csv
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from shards.core.identity import KEY_FILE_VARIABLE, IdKey, read_id_key
from shards.core.params import (
    BatchParams,
    GridParams,
    MeasuredParams,
    PhantomSourceParams,
    RegisteredSourceParams,
    ShardParams,
    SourceParams,
)
from shards.delivery.batches import batch_path, format_batch, root_path
from shards.delivery.manifest import format_manifest, hashed, identify, iterate_manifest
from shards.format.layout import sha256_of
from shards.runtime.execution import Item
from shards.sources.base import Listing
from shards.sources.datasets.folder import FolderSource

TEST_KEY = IdKey(b"a test's own key", is_public=False)
FINDINGS = ("nodule", "pleural_effusion", "pneumothorax", "consolidation", "cardiomegaly")
PHANTOM_COLUMNS = ("image_id", "patient_id", "study_id", "view", *FINDINGS, "finding_side", "detector_spacing_mm")


QUALITY: dict[str, dict[str, Any]] = {
    "view_means": {"min_images": 24, "min_coherence": 0.5},
    "blank": {"action": "quarantine", "min_std": 5.0, "max_one_level": 0.95, "min_levels": 16, "min_entropy_bits": 2.0},
    "saturated": {"action": "quarantine", "max_white": 0.5, "max_black": 0.9, "min_brightest": 32},
    "inverted": {"action": "quarantine", "max_correlation": -0.2},
    "turned": {"action": "quarantine", "min_correlation": 0.4, "min_gain": 0.3},
    "lateral": {"action": "remark", "max_correlation": 0.6, "min_deviations": 6.0},
    "burned_in": {"action": "quarantine"},
    "exact_copies": {"action": "quarantine"},
    "near_copies": {
        "action": "quarantine",
        "max_bits": 4,
        "min_correlation": 0.95,
        "min_correlation_of_patient": 0.985,
    },
    "masks": {"action": "remark"},
}
"""Section `shard.quality`, as in configs/demo.yaml."""
NO_CHECKS = {name: section | ({"action": "ignore"} if "action" in section else {}) for name, section in QUALITY.items()}
"""For drawn images, which are blank, or copies, on purpose."""


def grid_params(**changes: Any) -> GridParams:
    values = {
        "n": 6,
        "cell_px": 8,
        "t": 2,
        "scales": [{"k": 2, "l": 2, "weight": 1.0}, {"k": 1, "l": 2, "weight": 0.5}],
        "min_overlap": 0.5,
        "min_jitter_area": 0.85,
    }
    return GridParams.from_params({**values, **changes}, "test: grid")


def shard_params(**changes: Any) -> ShardParams:
    values = {
        "image_format": "png",
        "jpg_quality": 95,
        "num_images_per_shard": 5,
        "num_bank_pairs": 2,
        "seed": 0,
        "splits": {"train": 0.6, "val": 0.1, "test": 0.3},
        "foreground": {"min_mean": 8.0, "min_std": 4.0},
        "max_source_megapixels": 1.0,
        "max_quarantined_fraction": 0.2,
        "quality": QUALITY,
    }
    return ShardParams.from_params({**values, **changes}, "test: shard")


def smooth_image(height: int, width: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(30, 250, (4, 4), dtype=np.uint8))
    return np.array(coarse.resize((width, height), Image.Resampling.BICUBIC))


def write_csv(path: Path, header: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])


def write_phantom(root: Path, num_patients: int = 20, size_px: int = 48) -> PhantomSourceParams:
    """Write a dataset in the phantom's layout: patients have one or two images, every second one a nodule."""
    labels, landmarks = [], []
    for patient in range(num_patients):
        for number in range(1 + patient % 2):
            image_id, study = f"p{patient:04d}-i{number + 1}", f"p{patient:04d}-s1"
            _save(root / "images" / f"{image_id}.png", smooth_image(size_px, size_px, 10 * patient + number))
            heart = np.zeros((size_px, size_px), bool)
            heart[10 + patient % 5 : 30, 12:31] = True
            _save(root / "masks" / "heart" / f"{image_id}.png", heart)
            if patient % 2:
                _save(root / "masks" / "nodule" / f"{image_id}.png", heart.T)
            labels.append(
                (image_id, f"p{patient:04d}", study, "PA", patient % 2, 0, 0, 0, 0, "left", 1.2 + 0.1 * number)
            )
            landmarks += [(image_id, "carina", 20.25, 24.5), (image_id, "apex_left", 3.125, 30.0 + patient % 3)]
    write_csv(root / "labels.csv", PHANTOM_COLUMNS, labels)
    write_csv(root / "landmarks.csv", ("image_id", "landmark", "row", "col"), landmarks)
    (root / "dataset.json").write_text(json.dumps({"name": "phantom"}), encoding="utf-8")
    return PhantomSourceParams(kind="phantom", dep=str(root))


class Here:
    """An execution in the test's own process: without the seconds that others take to start, and with its patches."""

    def run(
        self, function: Callable[[Item], None], items: Sequence[Item], on_poll: Callable[[], None]
    ) -> Iterator[tuple[Item, bool]]:
        for item in items:
            function(item)
            on_poll()
            yield item, False


def write_folder(root: Path, names: list[str], size: tuple[int, int] = (40, 30), first: int = 0) -> None:
    """Draw an image for each name; from another `first` on they are other images."""
    for number, name in enumerate(names, start=first):
        _save(root / name, smooth_image(*size, number))


def folder_params(
    root: Path,
    manifest: Path,
    labels: Path | None = None,
    *,
    spacing_mm: tuple[float, float] | None = None,
    as_former: bool = False,
    **changes: Any,
) -> RegisteredSourceParams:
    """Write the manifest of a folder as it is now, as `register` does or did; the params that name it."""
    listing = FolderSource(labels).read(root)
    records = tuple(replace(record, spacing_mm=spacing_mm) for record in listing.records)
    return delivered(replace(listing, records=records), root, manifest, as_former=as_former, **changes)


def number_in_manifest(source: RegisteredSourceParams, path: str) -> int:
    """Return the number of the image in the manifest, from 1, that has this path."""
    _, entries = iterate_manifest(Path(source.dep))
    return [entry.record.image.path for _, entry in entries].index(path) + 1


def delivered(
    listing: Listing, root: Path, manifest: Path, *, as_former: bool = False, **changes: Any
) -> RegisteredSourceParams:
    """Write the manifest of a listing with its files as they are now; the params that name it."""
    key = read_id_key() if os.environ.get(KEY_FILE_VARIABLE) else TEST_KEY
    delivery = identify(
        replace(listing, records=tuple(hashed(listing.records, root))),
        "folder",
        key,
        split_rule="official",
        with_sex=False,
        as_former=as_former,
    )
    manifest.parent.mkdir(parents=True, exist_ok=True)
    manifest.write_text("".join(format_manifest(delivery)), encoding="utf-8")
    values = {
        "kind": "folder",
        "dep": str(manifest),
        "dep_sha256": sha256_of(manifest),
        "root": str(root),
        "channels": 1,
        "shares_images_with": [],
        "id_key_fingerprint": key.fingerprint,
    }
    return RegisteredSourceParams.from_params({**values, **changes}, "test: source")


def write_project(folder: Path, batch: str, source: SourceParams, grid: GridParams, shard: ShardParams) -> Path:
    """Write params.yaml and the file of its one batch, as far as the stage `shard` reads them; returns params.yaml."""
    write_batch(folder, batch, source, grid, shard)
    params = folder / "params.yaml"
    params.write_text(f"batches:\n  {batch}: {source.dep}\n", encoding="utf-8")
    return params


def write_batch(folder: Path, batch: str, source: SourceParams, grid: GridParams, shard: ShardParams) -> None:
    """Write the file of a batch, and where its images are."""
    item = BatchParams(source=source, measured=MeasuredParams(mean=(0.5,), std=(0.2,)), grid=grid, shard=shard)
    for path in (batch_path(batch, folder), root_path(batch, folder)):
        path.parent.mkdir(parents=True, exist_ok=True)
    batch_path(batch, folder).write_text(format_batch(batch, item), encoding="utf-8")
    if isinstance(source, RegisteredSourceParams):
        root_path(batch, folder).write_text(f"{source.root}\n", encoding="utf-8")


def forget_patients(shard_set: Path) -> None:
    """Make a shard set one of images whose patients are unknown, as its index says it."""
    path = shard_set / "index.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    values["dataset"]["patient_grouping"] = "image"
    path.write_text(json.dumps(values), encoding="utf-8")


def folder_bytes(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def _save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
