"""Register a folder of images as a new batch: a manifest, an item of `batches`, and a dep line for every consumer."""

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shards.atomic import write_text
from shards.canvas import Placement, cell_statistics, is_coloured
from shards.config import DEFAULT_PARAMS, read_params
from shards.decode import UnreadableImageError, decode
from shards.errors import ConfigError, SourceError
from shards.format import sha256_of
from shards.identity import IdKey, load_id_key, read_id_key
from shards.params import BatchParams, GridParams, ShardParams, check_batch_name, parse_batches
from shards.progress import progress
from shards.sources.folder import patient_of_path, read_label_rows
from shards.sources.manifest import describe_file, find_images, format_manifest
from shards.yaml_lines import add_deps, add_item

MANIFESTS = Path("data/manifests")
_MAX_SAMPLED = 256
_DECIMALS = 4
_FEW_PATIENTS = 10


def register_batch(
    name: str,
    root: Path,
    *,
    labels: Path | None,
    weight: float,
    params_path: Path = DEFAULT_PARAMS,
    dvc_path: Path = Path("dvc.yaml"),
) -> None:
    """Add a folder of PNG and JPEG images to the project; `dvc repro` then does the rest.

    The files stay where they are. A batch never changes: the same call twice is harmless (and completes a call that was
    killed), the same name with other files is refused. Every batch names the identity key, and all the same one.

    Args:
        name: Of the batch, as `clinic-b000`.
        root: The folder.
        labels: CSV with path, patient, optional study and view, and label columns; images without a row are left out,
            and counted on standard error.
        weight: Share in training; 1 shows each image once per epoch.
        params_path: The project's params.yaml; the manifest goes to data/manifests beside it.
        dvc_path: The project's dvc.yaml.

    Raises:
        ConfigError: the name is taken by other files or unfit, or the files of the project are not as expected.
        SourceError: the folder or the CSV is not as expected, or no image in it can be read.
        IdKeyError: there is no identity key, or another one than the project's.
    """
    check_batch_name(name)
    values = read_params(params_path)
    grid = GridParams.from_params(values.get("grid"), f"{params_path}: grid")
    shard = ShardParams.from_params(values.get("shard"), f"{params_path}: shard")
    key = _id_key(parse_batches(values.get("batches"), f"{params_path}: batches"))

    chosen = _choose_images(root, labels)
    paths = progress(chosen.paths, total=len(chosen.paths), description="hash", unit="file")
    manifest = format_manifest([describe_file(root, path) for path in paths])
    dep = (MANIFESTS / f"{name}.csv").as_posix()
    survey = survey_images(root, chosen.paths, grid, shard)
    source = {
        "kind": "folder",
        "dep": dep,
        "root": _portable(root, params_path.parent),
        "labels": _portable(labels, params_path.parent) if labels else None,
        "labels_sha256": sha256_of(labels) if labels else None,
        "channels": survey.channels,
        "spacing_mm": None,
        "id_key_fingerprint": key.fingerprint,
    }
    item = {"source": source, "mix": {"weight": weight, "mean": survey.mean, "std": survey.std}}
    BatchParams.from_params(item, f"batch {name}")

    manifest_path = params_path.parent / dep
    known = (values.get("batches") or {}).get(name)
    _check_immutable(name, known, source, manifest_path, manifest)
    params_text = params_path.read_text(encoding="utf-8")
    if known is None:
        params_text = add_item(params_text, "batches", name, item)
    dvc_text = add_deps(dvc_path.read_text(encoding="utf-8"), name)
    write_text(manifest_path, manifest)
    write_text(dvc_path, dvc_text)
    write_text(params_path, params_text)
    _report(name, labels, chosen, item, is_known=known is not None)


@dataclass(frozen=True)
class Survey:
    """What the images of a folder look like.

    Attributes:
        channels: 3 if any is coloured.
        mean: Of the foreground, in [0, 1].
        std: Likewise.
    """

    channels: int
    mean: float
    std: float


def survey_images(root: Path, paths: list[str], grid: GridParams, shard: ShardParams) -> Survey:
    """Look at up to 256 images spread evenly over the folder; unreadable ones are left to the stage `shard`.

    Raises:
        SourceError: none can be read, or none has any foreground.
    """
    chosen = paths[:: -(-len(paths) // _MAX_SAMPLED)]
    total = squares = count = num_read = 0
    has_colour = False
    for path in progress(chosen, total=len(chosen), description="look", unit="image"):
        try:
            image = decode((root / path).read_bytes(), max_pixels=shard.max_source_megapixels * 1e6).pixels
        except UnreadableImageError:
            continue
        canvas = Placement(grid.spec.canvas_px, *image.shape[:2]).place_image(image)
        cells = cell_statistics(canvas, grid.spec, shard.foreground)
        total, squares, count = total + cells.total, squares + cells.total_squares, count + cells.num_values
        has_colour, num_read = has_colour or is_coloured(image), num_read + 1
    if not count:
        raise SourceError(
            f"{root}: looked at {len(chosen)} images, could read {num_read} and found no foreground in them "
            "(shard.foreground); expected PNG or JPEG files with something in them"
        )
    mean = total / count
    std = math.sqrt(max(squares / count - mean**2, 1.0))
    return Survey(3 if has_colour else 1, round(mean / 255, _DECIMALS), round(std / 255, _DECIMALS))


@dataclass(frozen=True)
class _Choice:
    """The images to register: sorted paths below the folder, their patients, and how many have no row in the CSV."""

    paths: list[str]
    patients: set[str]
    num_left_out: int


def _id_key(batches: Mapping[str, BatchParams]) -> IdKey:
    """The key of the batches there are; the first one decides."""
    for batch in batches.values():
        if batch.source.kind == "folder":
            return load_id_key(batch.source.id_key_fingerprint)
    return read_id_key()


def _choose_images(root: Path, labels: Path | None) -> _Choice:
    found = find_images(root)
    if labels is None:
        return _Choice(found, {patient_of_path(path) for path in found}, num_left_out=0)
    rows = read_label_rows(labels)
    missing = [number for number, path in enumerate(rows, start=1) if not (root / path).is_file()]
    if missing:
        raise SourceError(
            f"{labels}: {len(missing)} rows name no file, first: row {missing[0]}; paths are relative to {root}"
        )
    return _Choice(sorted(rows), {row["patient"] for row in rows.values()}, num_left_out=len(set(found) - set(rows)))


def _check_immutable(
    name: str, known: Mapping[str, Any] | None, source: Mapping[str, Any], manifest_path: Path, manifest: str
) -> None:
    if known is None:
        return
    is_same = manifest_path.is_file() and manifest_path.read_text(encoding="utf-8") == manifest
    if not is_same or known.get("source") != source:
        raise ConfigError(
            f"batch {name} exists with other files or settings; a batch never changes: choose another name for the new "
            "files, as its number + 1"
        )


def _portable(path: Path, project: Path) -> str:
    """Relative to the project where it lies in it (so that a clone finds it), else absolute."""
    resolved, home = path.resolve(), project.resolve()
    return resolved.relative_to(home).as_posix() if resolved.is_relative_to(home) else str(resolved)


def _report(name: str, labels: Path | None, chosen: _Choice, item: Mapping[str, Any], *, is_known: bool) -> None:
    """Say what was understood; without a CSV that includes where the patients come from."""
    num_patients = len(chosen.patients)
    if labels is None:
        where = "top-level subfolders" if any("/" in path for path in chosen.paths) else "file names"
        print(f"no CSV: patients are taken from the {where}; give --labels CSV if that is wrong", file=sys.stderr)
        if num_patients < _FEW_PATIENTS:
            print(f"only {num_patients} patients: are the folders classes rather than patients?", file=sys.stderr)
    if chosen.num_left_out:
        print(f"{chosen.num_left_out} images in the folder have no row in {labels} and are left out", file=sys.stderr)
    verb, mix = "already registered" if is_known else "registered", item["mix"]
    print(
        f"{verb}: {name}, {len(chosen.paths)} images of {num_patients} patients, "
        f"{item['source']['channels']} channel(s), mean {mix['mean']}, std {mix['std']}; now run `dvc repro`",
        file=sys.stderr,
    )
