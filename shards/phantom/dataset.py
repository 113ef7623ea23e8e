"""The stage `phantom`: writes the built-in dataset, in parallel, resumable, every byte decided by the parameters."""

import csv
import hashlib
import io
import json
import platform
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import lru_cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from shards.phantom.anatomy import ASSET, NOTICE_FILE, Anatomy, asset_hash, load_anatomy, verify
from shards.phantom.contact_sheet import draw_contact_sheet
from shards.phantom.findings import KINDS
from shards.phantom.params import PhantomParams
from shards.phantom.radiograph import Radiograph, take_radiograph
from shards.phantom.study import Study, count_images, draw_study, image_id
from shards.runtime.atomic import atomic_directory, clear_when_full, replace_directory, write_text
from shards.runtime.parallel import map_in_processes
from shards.runtime.progress import progress_bar
from shards.runtime.scratch import scratch_root, unfinished_work

FORMAT_VERSION = 1
LABEL_COLUMNS = ("image_id", "patient_id", "study_id", "view", *KINDS, "finding_side", "detector_spacing_mm")
LIMITS = (
    "One subject: the patients are warps of one scanned person and share its signature (a calcified first rib, one "
    "aorta). A split by seed measures invariance to pose, shape, tone and noise, not generalisation to new people. "
    "Findings are simulated. Labels of the scan are automatic and unreviewed. Good for a main job without downloads, "
    "exact dense and landmark correspondence, and relative ablations; not for claims about real radiographs."
)
NUM_ON_CONTACT_SHEET = 12


def build_phantom(params: PhantomParams, out: Path, *, num_workers: int | None = None) -> None:
    """Write the dataset to `out`; work that a kill interrupted goes on in the scratch folder, where it stopped.

    Args:
        params: section `phantom`.
        out: folder that appears, or is replaced, whole and at the end.
        num_workers: processes; one for each usable core if None. The bytes do not depend on it.

    Raises:
        SourceError: the shipped anatomy is incomplete or damaged.
        ConfigError: no place for unfinished work, parameters that no patient can meet, or the same dataset is being
            made by another process.
        NoSpaceError: a disk is full, or has too little room.
    """
    verify(ASSET)
    with clear_when_full(scratch_root()), unfinished_work("phantom", fingerprint(params)[:16]) as work:
        _render(params, work / "dataset", work / "records", num_workers)
        _assemble(params, work / "dataset", work / "records")
        _publish(work / "dataset", out)


def fingerprint(params: PhantomParams) -> str:
    """Hash all that decides the bytes: parameters, anatomy, this package's code, and the libraries."""
    digest = hashlib.sha256(params.model_dump_json().encode())
    digest.update(asset_hash().encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    digest.update(json.dumps(_versions()).encode())
    return digest.hexdigest()


def _render(params: PhantomParams, dataset: Path, records: Path, num_workers: int | None) -> None:
    """Render every image that has no complete record yet."""
    num_images, missing = 0, []
    for number in range(params.num_patients):
        indices = range(count_images(params, number))
        num_images += len(indices)
        if todo := [index for index in indices if not _is_done(dataset, records, image_id(number, index))]:
            missing.append((number, todo))
    num_missing = sum(len(indices) for _, indices in missing)
    render = partial(_render_patient, params, dataset, records)
    bar = progress_bar(total=num_images, initial=num_images - num_missing, description="phantom", unit="image")
    with bar, closing(map_in_processes(render, missing, num_workers)) as finished:
        for num_finished in finished:
            bar.update(num_finished)


@lru_cache(maxsize=1)
def _chest() -> Anatomy:
    """Load the chest once in this process."""
    return load_anatomy()


@contextmanager
def _fixed_arithmetic() -> Iterator[None]:
    """Use one thread and no denormals until the block ends.

    More threads would change the last bits of sums, and denormals are slow.
    """
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
        torch.set_num_threads(num_threads)


@_fixed_arithmetic()
@torch.inference_mode()
def _render_patient(params: PhantomParams, dataset: Path, records: Path, task: tuple[int, list[int]]) -> int:
    """Write the missing images of one patient; returns how many."""
    number, indices = task
    study = draw_study(params, _chest(), number)
    for index in indices:
        radiograph = take_radiograph(_chest(), study, study.exposures[index], params)
        _write_image(params, study, index, radiograph, dataset, records)
    return len(indices)


def _write_image(
    params: PhantomParams, study: Study, index: int, radiograph: Radiograph, dataset: Path, records: Path
) -> None:
    """Write image and masks first, the record last: an image without a record is drawn again."""
    name, exposure = study.image_ids[index], study.exposures[index]
    files = {f"images/{name}.png": _png(radiograph.image)}
    files |= {f"masks/{structure}/{name}.png": _png(mask) for structure, mask in radiograph.masks.items()}
    for path, content in files.items():
        (dataset / path).parent.mkdir(parents=True, exist_ok=True)
        (dataset / path).write_bytes(content)
    labels: dict[str, Any] = {
        "image_id": name,
        "patient_id": study.patient_id,
        "study_id": study.study_id,
        "view": exposure.view,
        **{kind: int(kind == study.kind) for kind in KINDS},
        "finding_side": study.side,
        # The beam spreads on its way to the detector: a pixel covers less of the chest than of the detector.
        "detector_spacing_mm": round(exposure.field_of_view_mm / params.size_px, 6),
    }
    record = {
        "labels": labels,
        "landmarks": radiograph.landmarks,
        "files": {path: len(content) for path, content in files.items()},
    }
    write_text(records / f"{name}.json", json.dumps(record))


def _is_done(dataset: Path, records: Path, name: str) -> bool:
    record = records / f"{name}.json"
    if not record.is_file():
        return False
    files: dict[str, int] = json.loads(record.read_text(encoding="utf-8"))["files"]
    paths = {dataset / path: size for path, size in files.items()}
    return all(path.is_file() and path.stat().st_size == size for path, size in paths.items())


def _assemble(params: PhantomParams, dataset: Path, records: Path) -> None:
    """Write tables, description and contact sheet, from the records in the order of their names."""
    for leftover in dataset.glob(".*.tmp"):
        leftover.unlink()  # a kill while a table was written
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(records.glob("*.json"))]
    rows = [record["labels"] for record in found]
    write_text(dataset / "labels.csv", _csv(LABEL_COLUMNS, ([row[column] for column in LABEL_COLUMNS] for row in rows)))
    write_text(
        dataset / "landmarks.csv",
        _csv(
            ("image_id", "landmark", "row", "col"),
            (
                [record["labels"]["image_id"], name, f"{row:.3f}", f"{col:.3f}"]
                for record in found
                for name, (row, col) in record["landmarks"].items()
            ),
        ),
    )
    write_text(dataset / "dataset.json", json.dumps(_describe(params, rows), indent=2) + "\n")
    sheet = draw_contact_sheet(dataset, found, NUM_ON_CONTACT_SHEET)
    sheet.save(dataset / "contact_sheet.png")


def _describe(params: PhantomParams, rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "format_version": FORMAT_VERSION,
        "name": "phantom",
        "licence": "CC BY 3.0",
        "notice": (ASSET / NOTICE_FILE).read_text(encoding="utf-8"),
        "limits": LIMITS,
        "params": params.model_dump(mode="json"),
        "asset_sha256": asset_hash(),
        "versions": _versions(),
        "counts": {
            "patients": len({row["patient_id"] for row in rows}),
            "images": len(rows),
            "views": dict(sorted(Counter(row["view"] for row in rows).items())),
            "findings": {kind: sum(row[kind] for row in rows) for kind in KINDS},
        },
    }


def _versions() -> dict[str, str]:
    libraries = ("torch", "numpy", "pillow")
    return {"python": platform.python_version(), **{name: version(name) for name in libraries}}


def _publish(dataset: Path, out: Path) -> None:
    """Let the finished dataset appear at `out`; copied first when that is another file system."""
    out.parent.mkdir(parents=True, exist_ok=True)
    if dataset.stat().st_dev == out.parent.stat().st_dev:
        replace_directory(dataset, out)
        return
    num_bytes = sum(path.stat().st_size for path in dataset.rglob("*") if path.is_file())
    with atomic_directory(out, num_bytes) as copy:
        shutil.copytree(dataset, copy, dirs_exist_ok=True)
    shutil.rmtree(dataset)


def _png(pixels: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="png")
    return buffer.getvalue()


def _csv(header: tuple[str, ...], rows: Iterator[list[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()
