"""An index of a million samples: how long it takes to open, how much memory, and how soon the first batch is there.

A small shard set is built by the real writer; its one training tar is linked a thousand times under other names, and
the index lists its samples over and over. Each measurement is a process of its own. Last line: one JSON object.
`open_s` and `rss_mb` (peak resident memory after selecting the training rows) are those of a process that only opens
the index, its imports not counted in `open_s`; `import_s` is theirs. `first_batch_s` is from the start of a process
to its first training batch, imports of torch included (`first_batch_import_s`), with `--num-workers` loader processes.

    python benchmarks/index.py [--num-samples 1000000] [--num-tars 1000] [--num-workers 1]
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from loader import write_noise

from ace.config import Config, resolve
from shards.build.stage import build_shards
from shards.core.params import PhantomSourceParams
from shards.format.layout import INDEX, ROWS
from shards.reading.reader import ShardIndex
from shards.runtime.execution import Processes

ROOT = Path(__file__).parents[1]
NUM_IMAGES = 32

OPEN = """
import json, sys, time
started = time.perf_counter()
from shards.reading.reader import ShardIndex
imported = time.perf_counter()
index = ShardIndex.open(sys.argv[1])
opened = time.perf_counter()
rows = index.select("train")
print(json.dumps({
    "num_rows": len(rows), "import_s": imported - started, "open_s": opened - imported,
    "select_s": time.perf_counter() - opened,
    # Not getrusage: its peak counts what the process that started this one had.
    "rss_mb": next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) * 1024 / 1e6,
}))
"""
FIRST_BATCH = """
import json, sys, time
from pathlib import Path

def main():
    from ace.config import Config, resolve
    from ace.data.loader import CropDataset, StepSampler, build_loader
    from shards.core.params import MixParams
    from shards.reading.reader import ShardIndex
    imported = time.time()
    config = Config.from_params(resolve(sys.argv[2], Path(sys.argv[3]) / "configs"), sys.argv[2])
    pretrain = config.pretrain
    dataset = CropDataset(
        [(ShardIndex.open(sys.argv[1]), MixParams(weight=1.0, mean=0.5, std=0.25))], config.grid.spec,
        objective="ace", views=pretrain.views, crops="fresh", augment=pretrain.augment,
        in_channels=pretrain.backbone.in_channels, seed=0,
    )
    sampler = StepSampler(dataset, batch_size=pretrain.batch_size, rank=0, world_size=1, first_step=0, epochs=1)
    batch = next(iter(build_loader(sampler, num_workers=int(sys.argv[5]), is_pinned=False)))
    now, started = time.time(), float(sys.argv[4])
    print(json.dumps({
        "batch_size": len(batch), "first_batch_import_s": imported - started, "first_batch_s": now - started
    }))

if __name__ == "__main__":
    main()
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="demo", help="a named configuration (configs/)")
    parser.add_argument("--num-samples", type=int, default=1_000_000)
    parser.add_argument("--num-tars", type=int, default=1000)
    parser.add_argument("--num-workers", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        os.environ["ACE_SCRATCH"] = str(root / "scratch")
        build(arguments.config, root)
        multiply(root / "set", arguments.num_samples, arguments.num_tars)
        script = root / "first_batch.py"  # a file: loader processes import it
        script.write_text(FIRST_BATCH)
        result = run("-c", OPEN, str(root / "set"))
        numbers = (str(time.time()), str(arguments.num_workers))
        result |= run(str(script), str(root / "set"), arguments.config, str(ROOT), *numbers)
    rounded = {name: round(value, 3) for name, value in result.items()}
    print(json.dumps({"num_samples": arguments.num_samples, "num_tars": arguments.num_tars, **rounded}))


def build(name: str, root: Path) -> None:
    """A shard set of one training tar in `root`/set."""
    config = Config.from_params(resolve(name, ROOT / "configs"), name)
    everything = config.shard.splits.model_copy(update={"train": 1.0, "val": 0.0, "test": 0.0})
    shard = config.shard.model_copy(update={"splits": everything, "num_images_per_shard": NUM_IMAGES})
    write_noise(root / "raw", NUM_IMAGES, config.grid.spec.canvas_px)
    source = PhantomSourceParams(kind="phantom", dep=str(root / "raw"))
    build_shards("noise", source, config.grid, shard, root / "set", execution=Processes(1))


def multiply(folder: Path, num_samples: int, num_tars: int) -> None:
    """Make the set look as if its tar lay there `num_tars` times, with `num_samples` samples in all."""
    index = ShardIndex.open(folder)
    rows = np.array(index.rows)[np.arange(num_samples) % len(index.rows)]
    rows["shard"] = np.arange(num_samples) * num_tars // num_samples
    (tar,) = index.shards
    counts = np.bincount(rows["shard"], minlength=num_tars).tolist()
    for number in range(1, num_tars):
        os.link(folder / tar.name, folder / f"train-{number:06d}.tar")
    np.save(folder / ROWS, rows)
    values = json.loads((folder / INDEX).read_text())
    values["shards"] = [
        {**tar.to_json(), "name": f"train-{number:06d}.tar", "num_samples": count}
        for number, count in enumerate(counts)
    ]
    data = (folder / ROWS).read_bytes()
    values["samples"] = {"name": ROWS, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / INDEX).write_text(json.dumps(values))


def run(*command: str) -> dict[str, float]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    answer = subprocess.run([sys.executable, *command], env=environment, check=True, text=True, stdout=subprocess.PIPE)
    return dict(json.loads(answer.stdout.splitlines()[-1]))


if __name__ == "__main__":
    main()
