"""Source images per second of the training loader, against decoding alone and against a conventional data set.

One process, one core, the same images, in turn in every round; of the rounds' ratios the medians:

- ours: samples read from shards, both crops resampled, a collated batch of 8-bit crops, as training takes it; and the
  same with augmentation on the host;
- decoding: the same canvases as whole JPEGs of `shard.jpg_quality`, 4:4:4, *without* restart markers, which cost a
  decoder a tenth, by the fastest of Pillow, OpenCV, torchvision and simplejpeg; `ratio_to_decode_as_stored` is to the
  shard's own files;
- `reference/conventional.py`: PNGs to RGB, full-canvas bicubic resampling, targets in Python loops, torchvision's
  augmentation on the host; and, harder to beat, the same with Pillow's Gaussian blur instead of torchvision's.

And with `--num-workers` processes at once, as training has them: what an image takes by each decoder, what a batch
takes in the loader's processes and in the process that trains, and how much of it is handed over and would be pinned
for an accelerator.

All times are of the processor (user and system), so that a busy machine falsifies them less than those of a clock.

Images are the phantom's, rendered at the canvas's size with the configuration's parameters into a temporary folder
(seconds an image), or smooth noise (`--images noise`). Last line: one JSON object with `ratio_to_decode`,
`ratio_to_decode_augmented`, `ratio_to_conventional` and `ratio_to_conventional_pillow_blur` (above 1: ours is faster).

    python benchmarks/loader.py [--config ace_swin_b_cxr] [--num-images 16] [--image-format jpg] [--images phantom]
"""

import argparse
import csv
import io
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import psutil
import simplejpeg
import torch
import torchvision
from PIL import Image
from reference.conventional import ConventionalDataset
from torch.utils.data import default_collate

from ace.config import Config, resolve
from ace.data.batches import collate
from ace.data.loader import PREFETCHED, CropDataset, StepSampler, build_loader
from ace.data.params import AugmentParams
from shards.build.stage import build_shards
from shards.core.params import MixParams, PhantomSourceParams
from shards.phantom.dataset import build_phantom
from shards.reading.reader import ShardIndex, ShardReader
from shards.runtime.execution import Processes
from shards.runtime.memory import keep_freed_memory

ROOT = Path(__file__).parents[1]
CONVENTIONAL: dict[str, Literal["torchvision", "Pillow"]] = {
    "conventional": "torchvision",
    "with Pillow's blur": "Pillow",
}
NUM_CONVENTIONAL = 16
"""Items of a conventional data set in a round: half of the crops are blurred, which is most of what one differs by."""

Decoder = Callable[[bytes], Any]
DECODERS: dict[str, dict[str, Decoder]] = {
    "png": {
        "Pillow": lambda data: np.asarray(Image.open(io.BytesIO(data))),
        "OpenCV": lambda data: cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED),
    },
    "jpg": {
        "Pillow": lambda data: np.asarray(Image.open(io.BytesIO(data))),
        "OpenCV": lambda data: cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE),
        "torchvision": lambda data: torchvision.io.decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8)),
        "simplejpeg": lambda data: simplejpeg.decode_jpeg(data, "GRAY"),
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="ace_swin_b_cxr", help="a named configuration (configs/)")
    parser.add_argument("--num-images", type=int, default=16, help="images, and samples in a batch")
    parser.add_argument("--image-format", choices=("png", "jpg"), default="jpg")
    parser.add_argument("--images", choices=("phantom", "noise"), default="phantom")
    parser.add_argument("--num-rounds", type=int, default=15, help="after one to warm up")
    parser.add_argument("--num-workers", type=int, default=2, help="processes at once, in the second part")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)  # of torchvision's draws
    keep_freed_memory()  # as the loader's processes do
    config = Config.from_params(resolve(arguments.config, ROOT / "configs"), arguments.config)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        os.environ["ACE_SCRATCH"] = str(root / "scratch")
        print(json.dumps(vars(arguments) | measure(config, root, arguments)))


def measure(config: Config, root: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    num_images, image_format = arguments.num_images, arguments.image_format
    write_images(config, root / "raw", num_images, arguments.images)
    index = shard_images(config, root, image_format)
    on_host = config.pretrain.augment.model_copy(update={"where": "host"})
    plain, augmented = data_set(config, index, None), data_set(config, index, on_host)
    paths = sorted((root / "raw" / "images").iterdir())
    conventional = {
        name: ConventionalDataset(paths, config.grid.spec, config.pretrain.augment, seed=0, blur_by=blur_by)
        for name, blur_by in CONVENTIONAL.items()
    }
    reader = ShardReader(index)
    samples = [reader.read(row) for row in range(num_images)]
    stored = [bytes(sample.encoded) for sample in samples]
    whole = [encoded(sample.image, image_format, config.shard.jpg_quality) for sample in samples]
    decoders = DECODERS[image_format]

    def ours(dataset: CropDataset, step: int) -> None:
        collate([dataset[(0, position, step, 0)] for position in range(num_images)])

    def theirs(dataset: ConventionalDataset, step: int) -> None:
        first = step * NUM_CONVENTIONAL
        default_collate([dataset[number % num_images] for number in range(first, first + NUM_CONVENTIONAL)])

    rounds: dict[str, list[float]] = {name: [] for name in (*decoders, "stored", "plain", "augmented", *conventional)}
    for step in range(1 + arguments.num_rounds):
        for name, decode in decoders.items():
            rounds[name].append(timed(lambda decode=decode: decode_all(decode, whole)) / num_images)
        fastest = min(decoders, key=lambda name: statistics.median(rounds[name]))
        rounds["stored"].append(timed(lambda fastest=fastest: decode_all(decoders[fastest], stored)) / num_images)
        rounds["plain"].append(timed(lambda step=step: ours(plain, step)) / num_images)
        rounds["augmented"].append(timed(lambda step=step: ours(augmented, step)) / num_images)
        for name, dataset in conventional.items():
            seconds = timed(lambda dataset=dataset, step=step: theirs(dataset, step))
            rounds[name].append(seconds / NUM_CONVENTIONAL)
    rounds = {name: seconds[1:] for name, seconds in rounds.items()}
    for name, seconds in rounds.items():
        print(f"{name:>18}: {1e3 * statistics.median(seconds):8.3f} ms an image ({1e3 * min(seconds):.3f} at best)")
    fastest = min(decoders, key=lambda name: statistics.median(rounds[name]))
    halves = sum(len(sample.half or b"") for sample in samples)
    measured = {
        "jpg_quality": config.shard.jpg_quality,
        "canvas_px": config.grid.spec.canvas_px,
        "fastest_decoder": fastest,
        "images_per_s": round(1 / statistics.median(rounds["plain"]), 1),
        "bytes_of_markers": round(total(stored) / total(whole) - 1, 4),
        "bytes_of_halves": round(halves / total(whole), 4),
        "ratio_to_decode": ratio(rounds[fastest], rounds["plain"]),
        "ratio_to_decode_range": ratio_range(rounds[fastest], rounds["plain"]),
        "ratio_to_decode_as_stored": ratio(rounds["stored"], rounds["plain"]),
        "ratio_to_decode_augmented": ratio(rounds[fastest], rounds["augmented"]),
        "ratio_to_conventional": ratio(rounds["conventional"], rounds["plain"]),
        "ratio_to_conventional_pillow_blur": ratio(rounds["with Pillow's blur"], rounds["plain"]),
        "ratio_to_conventional_augmented": ratio(rounds["conventional"], rounds["augmented"]),
    }
    workers = arguments.num_workers, arguments.num_rounds
    on_device = config.pretrain.augment.model_copy(update={"where": "device"})
    return (
        measured
        | decoded_in_processes(image_format, whole, *workers)
        | batches_of_processes(data_set(config, index, on_device), num_images, *workers)
    )


def decoded_in_processes(image_format: str, files: list[bytes], num_workers: int, num_rounds: int) -> dict[str, Any]:
    """Milliseconds of an image by each decoder, while as many processes decode; the slowest of them, in its median."""
    with ProcessPoolExecutor(num_workers, multiprocessing.get_context("spawn")) as processes:
        found = {}
        for name in DECODERS[image_format]:
            calls = [processes.submit(decode_rounds, image_format, name, files, num_rounds) for _ in range(num_workers)]
            found[name] = round(1e3 * max(call.result() for call in calls), 3)
    return {"decode_ms_in_processes": found}


def decode_rounds(image_format: str, name: str, files: list[bytes], num_rounds: int) -> float:
    """Seconds an image; for a process of its own."""
    torch.set_num_threads(1)
    keep_freed_memory()
    decode = DECODERS[image_format][name]
    rounds = [timed(lambda: decode_all(decode, files)) for _ in range(1 + num_rounds)]
    return statistics.median(rounds[1:]) / len(files)


def batches_of_processes(dataset: CropDataset, batch_size: int, num_workers: int, num_rounds: int) -> dict[str, Any]:
    """Milliseconds of a batch on either side, and what of it is handed over and pinned."""
    epochs = 2 + num_rounds + num_workers * PREFETCHED
    sampler = StepSampler(dataset, batch_size=batch_size, rank=0, world_size=1, first_step=0, epochs=epochs)
    with closing(iter(build_loader(sampler, num_workers=num_workers, is_pinned=False))) as batches:
        for _ in range(num_workers):
            next(batches)
        workers = psutil.Process().children()
        before = processor_s(workers), time.process_time()
        for _ in range(num_rounds):
            batch = next(batches)
            batch.coarse.sum(), batch.fine.sum()  # so that its pages are there
        after = processor_s(workers), time.process_time()
    tensors = [value for value in vars(batch).values() if isinstance(value, torch.Tensor)]
    tensors += [batch.augmentations.on_device] if batch.augmentations else []
    shared = [tensor for tensor in tensors if tensor.is_shared()]
    in_workers, in_trainer = (1e3 * (late - early) / num_rounds for early, late in zip(before, after, strict=True))
    return {
        "batch_ms_in_workers": round(in_workers, 2),
        "batch_ms_in_trainer": round(in_trainer, 2),
        "tensors_handed_over": len(shared),
        "bytes_handed_over": sum(tensor.nbytes for tensor in shared),
        "tensors_pinned": len(tensors),
        "bytes_pinned": sum(tensor.nbytes for tensor in tensors),
    }


def processor_s(processes: Sequence[psutil.Process]) -> float:
    """Seconds of the processor that processes have taken so far, rounded to its ticks of 10 ms."""
    return sum(times.user + times.system for times in (process.cpu_times() for process in processes))


def write_images(config: Config, root: Path, num_images: int, kind: str) -> None:
    if kind == "noise":
        write_noise(root, num_images, config.grid.spec.canvas_px)
        return
    changes = {"num_patients": num_images, "images_per_patient": 1, "size_px": config.grid.spec.canvas_px}
    build_phantom(config.phantom.model_copy(update=changes), root)


def write_noise(root: Path, num_images: int, size_px: int) -> None:
    """Smooth noise in the phantom's layout: compresses as radiographs do, near enough."""
    (root / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    with (root / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image_id", "patient_id", "study_id", "view"])
        for number in range(num_images):
            smooth = Image.fromarray(rng.integers(0, 256, (16, 16), dtype=np.uint8))
            pixels = np.asarray(smooth.resize((size_px, size_px), Image.Resampling.BICUBIC), dtype=np.float32)
            noisy = (pixels + rng.normal(0, 3, pixels.shape)).clip(0, 255).astype(np.uint8)
            Image.fromarray(noisy).save(root / "images" / f"p{number}-i0.png")
            writer.writerow([f"p{number}-i0", f"p{number}", f"p{number}-s0", "PA"])
    (root / "landmarks.csv").write_text("image_id,landmark,row,col\n")
    (root / "dataset.json").write_text(json.dumps({"name": "noise"}))


def shard_images(config: Config, root: Path, image_format: str) -> ShardIndex:
    everything = config.shard.splits.model_copy(update={"train": 1.0, "val": 0.0, "test": 0.0})
    shard = config.shard.model_copy(update={"splits": everything, "image_format": image_format})
    source = PhantomSourceParams(kind="phantom", dep=str(root / "raw"))
    build_shards("benchmark", source, config.grid, shard, root / "set", execution=Processes(1))
    return ShardIndex.open(root / "set")


def data_set(config: Config, index: ShardIndex, augment: AugmentParams | None) -> CropDataset:
    return CropDataset(
        [(index, MixParams(weight=1.0, mean=0.5, std=0.25))],
        config.grid.spec,
        objective="ace",
        views=config.pretrain.views,
        crops=config.pretrain.crops,
        augment=augment,
        in_channels=1,
        seed=0,
    )


def encoded(pixels: np.ndarray, image_format: str, quality: int) -> bytes:
    """The whole canvas as other programs write it."""
    file = io.BytesIO()
    options = {"quality": quality, "subsampling": 0} if image_format == "jpg" else {"compress_level": 4}
    Image.fromarray(pixels).save(file, "JPEG" if image_format == "jpg" else "PNG", **options)
    return file.getvalue()


def decode_all(decode: Decoder, files: Sequence[bytes]) -> None:
    for data in files:
        decode(data)


def timed(function: Callable[[], object]) -> float:
    started = time.process_time()
    function()
    return time.process_time() - started


def total(files: Sequence[bytes]) -> int:
    return sum(map(len, files))


def ratios(theirs: Sequence[float], ours: Sequence[float]) -> list[float]:
    return [one / other for one, other in zip(theirs, ours, strict=True)]


def ratio(theirs: Sequence[float], ours: Sequence[float]) -> float:
    return round(statistics.median(ratios(theirs, ours)), 3)


def ratio_range(theirs: Sequence[float], ours: Sequence[float]) -> list[float]:
    return [round(bound(ratios(theirs, ours)), 3) for bound in (min, max)]


if __name__ == "__main__":
    main()
