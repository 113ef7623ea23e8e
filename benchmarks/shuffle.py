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
from jaxtyping import Int, Int64

from shards.reading.order import TarWindow, epoch_order


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


def displacement_ratio(order: Int[np.ndarray, "num_samples"]) -> float:
    """Mean distance of a sample from its place in storage, over that of a uniform permutation, (n² - 1) / 3n.

    Args:
        order: A permutation of at least 2 places in storage, in the order in which they are read.

    Returns:
        0 for storage order, about 1 for a uniform permutation; blind to neighbours that stay together.
    """
    num_samples = len(order)
    mean = float(np.abs(order - np.arange(num_samples)).mean())
    return mean / ((num_samples**2 - 1) / (3 * num_samples))


def same_tar_ratio(tars: Int64[np.ndarray, "num_batches batch_size"]) -> float:
    """Share of pairs in a batch that come from one tar, over that of a uniform permutation.

    Args:
        tars: The tar of each sample, batch by batch; at least 2 samples a batch, and some tar with 2 samples.

    Returns:
        About 1 for a uniform permutation; T / w where batches come from w of T equal tars at a time; the greatest
        possible, about T, in storage order.
    """
    num_batches, batch_size = tars.shape
    in_batches: float = sum(_num_pairs(batch) for batch in tars) / (num_batches * _pairs_of(batch_size))
    expected = _num_pairs(tars.ravel()) / _pairs_of(tars.size)
    return in_batches / expected


def _num_pairs(tars: Int64[np.ndarray, "num_samples"]) -> float:
    """Pairs of samples from one tar."""
    _, counts = np.unique(tars, return_counts=True)
    return float(np.sum(counts * (counts - 1)) / 2)


def _pairs_of(num_samples: int) -> float:
    return num_samples * (num_samples - 1) / 2


if __name__ == "__main__":
    main()
