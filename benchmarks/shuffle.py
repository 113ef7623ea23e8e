"""How well an epoch is shuffled: the full permutation, and windows of tars as a cache bounds them.

Against a uniform permutation, which is 1: `displacement` (mean distance from the place in storage; 1 also where whole
tars are shuffled) and `same_tar` (pairs of a batch from one tar; T / w where w of T tars are mixed at a time). Last
line: one JSON object with both of the full permutation, of storage order and of each window, and the seconds that an
epoch's order takes.

    python benchmarks/shuffle.py [--num-samples 1000000] [--num-tars 1000] [--window-tars 10 50 200]
"""

import argparse
import json
import time

import numpy as np

from shards.order import TarWindow, epoch_order
from shards.shuffle import displacement_ratio, same_tar_ratio


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-samples", type=int, default=1_000_000)
    parser.add_argument("--num-tars", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--window-tars", type=int, nargs="+", default=[10, 50, 200])
    arguments = parser.parse_args()
    tars = np.arange(arguments.num_samples) * arguments.num_tars // arguments.num_samples
    whole = arguments.num_samples // arguments.batch_size * arguments.batch_size
    results = {"storage": measured(np.arange(whole).reshape(-1, arguments.batch_size), tars)}
    windows = {"full": None} | {f"window_{num}": TarWindow((tars,), num) for num in arguments.window_tars}
    for name, window in windows.items():
        started = time.perf_counter()
        order = epoch_order(
            [arguments.num_samples],
            [1.0],
            seed=0,
            epoch=0,
            rank=0,
            world_size=1,
            batch_size=arguments.batch_size,
            window=window,
        )
        seconds = time.perf_counter() - started
        results[name] = measured(order[..., 1], tars) | {"order_s": round(seconds, 3)}
    for name, result in results.items():
        print(name, result)
    print(json.dumps({"num_samples": arguments.num_samples, "num_tars": arguments.num_tars, **results}))


def measured(order: np.ndarray, tars: np.ndarray) -> dict[str, float]:
    # Ranks: the samples that filled no batch are missing from the order.
    ranks = np.argsort(np.argsort(order.ravel()))
    return {
        "displacement": round(displacement_ratio(ranks), 4),
        "same_tar": round(same_tar_ratio(tars[order]), 3),
    }


if __name__ == "__main__":
    main()
