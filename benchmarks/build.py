"""Images per second of `build_shards`, against decoding, placing and encoding the same images and nothing else.

The images are a registered delivery of the kind `folder`, mixed from a few of the phantom's. In every round it is built
by one process and by two, with all that belongs to it: their start, checks of the files, tars, quality pass, index and
contact sheets. Between them comes the bound: processes that are there already read each file and do to it what no
builder can leave out, by the library calls that the product makes (Pillow's decoder, its resize where the sizes differ,
the canvas's encoder; of JPEGs the half-size copy too). The rest costs about as much for every image, so the ratio is
the higher the more there is to decode: by default 8-bit PNGs of 1024 px, which ChestX-ray14 comes as; its lowest is
that of small JPEGs. Of the rounds' ratios the medians are taken:

- `ratio_to_bound`: images/s of the product over those of the bound, one process each;
- `ratio_of_scaling`: how much faster two processes are than one, over how much faster two bare processes are.

Tars hold fewer images than the configuration's, so that there are as many as a delivery four times as large would have:
of 9 tars the last ones leave a process idle, of hundreds they do not matter.

Then deliveries of 1,000 and 20,000 images are built by two processes on small canvases of the same grid, each in a
process of its own: `memory_mb` has the peak resident memory of that process and of the largest of its two. Last line:
one JSON object.

    python benchmarks/build.py [--config ace_swin_b_cxr] [--num-images 4096] [--source-format png] [--size 1024]
"""

import argparse
import io
import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from shards.build.stage import build_shards
from shards.core.canvas import Canvas, Pixels, Placement
from shards.core.identity import IdKey
from shards.core.params import GridParams, RegisteredSourceParams, ShardParams
from shards.core.records import File, Record
from shards.delivery.manifest import format_manifest, identify
from shards.format.jpeg import encode_canvas, encode_half
from shards.runtime.execution import Processes
from shards.runtime.memory import keep_freed_memory
from shards.sources.base import Listing

ROOT = Path(__file__).parents[1]
NUM_DISTINCT = 4
NUM_IMAGES_PER_SHARD = 128
MAX_RENDERED_PX = 1024  # larger images are enlarged
NUM_FINDINGS = 14
SHADOWS, SHADOW_LEVELS = 12, 24.0
SOURCE_QUALITY, SOURCE_LEVEL = 90, 1
SMALL_CELL_PX, SMALL_PX = 2, 96
KEY = IdKey(b"identity key of nobody", is_public=False)
PNG_LEVEL = 4
"""The product's (shards/build/encode.py)."""

Item = TypeVar("Item")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="ace_swin_b_cxr", help="a named configuration (configs/)")
    parser.add_argument("--num-images", type=int, default=4096, help="of the delivery whose speed is measured")
    parser.add_argument(
        "--image-format", choices=("png", "jpg"), help="of the canvases; the configuration's if not given"
    )
    parser.add_argument("--source-format", choices=("png", "jpg"), default="png", help="of the delivered files")
    parser.add_argument("--size", type=int, default=1024, help="pixels along a side of the delivered images")
    parser.add_argument("--num-rounds", type=int, default=3, help="of which the medians are taken")
    parser.add_argument(
        "--num-images-memory", type=int, nargs=2, default=(1000, 20_000), help="of the deliveries compared in memory"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["ACE_SCRATCH"] = str(Path(folder) / "scratch")
        print(json.dumps(vars(arguments) | measure(Path(folder), arguments)))


def measure(root: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    grid, shard = sections(arguments.config, arguments.image_format)
    write_phantom(root / "phantom", min(arguments.size, MAX_RENDERED_PX))
    radiographs = read_radiographs(root / "phantom")
    delivery = deliver(radiographs, arguments.num_images, arguments.size, arguments.source_format, root / "speed")
    rounds = time_rounds(delivery, grid, shard, root / "set", arguments)
    small_grid = grid.model_copy(update={"cell_px": SMALL_CELL_PX})
    small = [np.array(Image.fromarray(pixels).resize((SMALL_PX, SMALL_PX))) for pixels in radiographs]
    memory = {}
    for num_images in arguments.num_images_memory:
        delivery = deliver(small, num_images, SMALL_PX, arguments.source_format, root / f"memory-{num_images}")
        memory[str(num_images)] = peak_memory(delivery, small_grid, shard, root / "sets")
    for name, seconds in rounds.items():
        print(f"{name:>15}: {1e3 * statistics.median(seconds) / arguments.num_images:8.3f} ms an image")
    return {
        "image_format": shard.image_format,
        "canvas_px": grid.spec.canvas_px,
        "images_per_s": round(arguments.num_images / statistics.median(rounds["built by one"]), 1),
        "ratio_to_bound": median(ratios(rounds["bare one"], rounds["built by one"])),
        "ratio_of_scaling": median(scalings(rounds)),
        "scaling_of_bare": median(ratios(rounds["bare one"], rounds["bare two"])),
        "memory_mb": memory,
    }


def sections(config: str, image_format: str | None) -> tuple[GridParams, ShardParams]:
    # Here alone: worker processes import this file again, and should have what the product's have.
    from ace.config import Config, resolve

    values = Config.from_params(resolve(config, ROOT / "configs"), config)
    changes: dict[str, object] = {"num_images_per_shard": NUM_IMAGES_PER_SHARD}
    if image_format:
        changes["image_format"] = image_format
    return values.grid, values.shard.model_copy(update=changes)


def write_phantom(folder: Path, size_px: int) -> None:
    """A few radiographs, in one process of its own: rendering imports torch."""
    flags = {"--num-patients": NUM_DISTINCT, "--images-per-patient": 1, "--size": size_px, "--num-workers": 1}
    flags["--out"] = folder
    command = [str(part) for flag in flags.items() for part in flag]
    subprocess.run([sys.executable, "-m", "shards", "phantom", *command], cwd=ROOT, check=True)


def read_radiographs(phantom: Path) -> list[Pixels]:
    return [np.array(Image.open(path)) for path in sorted((phantom / "images").iterdir())]


def deliver(
    radiographs: Sequence[Pixels], num_images: int, size_px: int, file_format: str, root: Path
) -> RegisteredSourceParams:
    """A registered folder of images, two of every patient."""
    (root / "images").mkdir(parents=True)
    records = []
    for number in range(num_images):
        path = Path("images") / f"{number:06d}.{file_format}"
        data = encoded(vary(radiographs, size_px, np.random.default_rng(number)), file_format)
        (root / path).write_bytes(data)
        file = File(path.as_posix(), len(data), sha256(data).hexdigest())
        labels = {f"finding-{finding}": (number >> finding) & 1 for finding in range(NUM_FINDINGS)}
        records.append(
            Record(source_id=path.as_posix(), image=file, patient=f"patient-{number // 2}", view="PA", labels=labels)
        )
    delivery = identify(
        Listing(records=tuple(records), patient_grouping="patient", warnings=()),
        "folder",
        KEY,
        split_rule="official",
        with_sex=False,
    )
    manifest = "".join(format_manifest(delivery)).encode()
    (root / "manifest.jsonl").write_bytes(manifest)
    return RegisteredSourceParams(
        kind="folder",
        dep=str(root / "manifest.jsonl"),
        dep_sha256=sha256(manifest).hexdigest(),
        root=str(root),
        channels=1,
        shares_images_with=(),
        id_key_fingerprint=KEY.fingerprint,
    )


def vary(radiographs: Sequence[Pixels], size_px: int, rng: np.random.Generator) -> Pixels:
    """Parts of two radiographs over one another, with shadows: a picture that the search for copies tells from all."""
    mixed = np.zeros((size_px, size_px), np.float32)
    for weight in (0.6, 0.4):
        radiograph = radiographs[rng.integers(len(radiographs))]
        top, left, side = rng.uniform((0, 0, 0.75), (0.25, 0.25, 0.75)) * radiograph.shape[0]
        part = Image.fromarray(radiograph).resize((size_px, size_px), box=(left, top, left + side, top + side))
        mixed += np.float32(weight) * np.asarray(part)
    shadows = Image.fromarray(rng.normal(0, SHADOW_LEVELS, (SHADOWS, SHADOWS)).astype(np.float32))
    mixed += np.asarray(shadows.resize((size_px, size_px), Image.Resampling.BICUBIC))
    pixels: Pixels = mixed.clip(0, 255).astype(np.uint8)
    return pixels


def encoded(pixels: Pixels, file_format: str) -> bytes:
    file = io.BytesIO()
    options = {"quality": SOURCE_QUALITY} if file_format == "jpg" else {"compress_level": SOURCE_LEVEL}
    Image.fromarray(pixels).save(file, "JPEG" if file_format == "jpg" else "PNG", **options)
    return file.getvalue()


def time_rounds(
    delivery: RegisteredSourceParams,
    grid: GridParams,
    shard: ShardParams,
    out: Path,
    arguments: argparse.Namespace,
) -> dict[str, list[float]]:
    """Seconds of every round; product and bound take turns."""

    def built_by(num_processes: int) -> float:
        os.sync()  # what was written before is not this build's to wait for
        seconds = timed(partial(build_shards, "speed", delivery, grid, shard, out, execution=Processes(num_processes)))
        shutil.rmtree(out)
        return seconds

    rounds: dict[str, list[float]] = {"bare one": [], "built by one": [], "bare two": [], "built by two": []}
    paths = sorted((Path(delivery.root) / "images").iterdir())
    middle = len(paths) // 2
    with BareProcesses(Bare(grid.spec.canvas_px, shard)) as bare:
        for _ in range(arguments.num_rounds):
            rounds["bare one"].append(timed(partial(bare.run, [paths])))
            rounds["built by one"].append(built_by(1))
            rounds["bare two"].append(timed(partial(bare.run, [paths[:middle], paths[middle:]])))
            rounds["built by two"].append(built_by(2))
    return rounds


@dataclass(frozen=True)
class Bare:
    """What no builder can leave out of an image."""

    canvas_px: int
    shard: ShardParams

    def __call__(self, path: Path) -> None:
        with Image.open(io.BytesIO(path.read_bytes())) as image:
            pixels = np.asarray(image)
        placement = Placement.of(pixels, self.canvas_px, None)
        self._encode(placement.place_image(pixels))

    def _encode(self, canvas: Canvas) -> None:
        image = Image.fromarray(canvas)
        if self.shard.image_format == "png":
            image.save(io.BytesIO(), "PNG", compress_level=PNG_LEVEL)
            return
        encode_canvas(canvas, self.shard.jpg_quality)
        encode_half(canvas, self.shard.jpg_quality)


class BareProcesses:
    """Two processes, which are there before the clock starts and wait for images."""

    def __init__(self, bare: Bare) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipes: list[Connection] = []
        for _ in range(2):
            ours, theirs = context.Pipe()
            context.Process(target=serve, args=(theirs, bare), daemon=True).start()
            self._pipes.append(ours)

    def __enter__(self) -> "BareProcesses":
        for pipe in self._pipes:
            pipe.recv()
        return self

    def __exit__(self, *_: object) -> None:
        for pipe in self._pipes:
            pipe.send([])

    def run(self, parts: Sequence[Sequence[Path]]) -> None:
        """Each process takes a part of the images, at once; one part leaves the second process idle."""
        busy = self._pipes[: len(parts)]
        for pipe, paths in zip(busy, parts, strict=True):
            pipe.send(paths)
        for pipe in busy:
            pipe.recv()


def serve(pipe: Connection, bare: Bare) -> None:
    keep_freed_memory()
    pipe.send("ready")
    while paths := pipe.recv():
        for path in paths:
            bare(path)
        pipe.send("done")


def peak_memory(delivery: RegisteredSourceParams, grid: GridParams, shard: ShardParams, out: Path) -> dict[str, float]:
    """Peak resident MB of a fresh process that builds the delivery with two others, and of the larger of those."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(build_watched, delivery, grid, shard, out / "memory").result()


def build_watched(
    delivery: RegisteredSourceParams, grid: GridParams, shard: ShardParams, out: Path
) -> dict[str, float]:
    watched = WatchedProcesses()
    build_shards("memory", delivery, grid, shard, out, execution=watched)
    return {"main": resident_mb("self"), "largest_worker": max(watched.peaks.values())}


@dataclass(frozen=True)
class WatchedProcesses:
    """Two processes, whose peak memory in MB is looked at whenever a tar is finished."""

    peaks: dict[int, float] = field(default_factory=dict)

    def run(
        self, function: Callable[[Item], None], items: Sequence[Item], on_poll: Callable[[], None]
    ) -> Iterator[tuple[Item, bool]]:
        def watch() -> None:
            on_poll()
            for child in multiprocessing.active_children():
                self.peaks[child.pid or 0] = resident_mb(str(child.pid))

        return Processes(2).run(function, items, watch)


def resident_mb(process: str) -> float:
    """Its peak. Not getrusage's, which counts what the process that started it had."""
    status = Path(f"/proc/{process}/status").read_text()
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return round(int(peak.split()[1]) * 1024 / 1e6, 1)


def timed(function: Callable[[], object]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    return [one / other for one, other in zip(ours, theirs, strict=True)]


def scalings(rounds: dict[str, list[float]]) -> list[float]:
    return ratios(
        ratios(rounds["built by one"], rounds["built by two"]), ratios(rounds["bare one"], rounds["bare two"])
    )


def median(values: Sequence[float]) -> float:
    return round(statistics.median(values), 3)


if __name__ == "__main__":
    main()
