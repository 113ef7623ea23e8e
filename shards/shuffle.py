"""How well an order is shuffled, against a uniform permutation of the same samples: 1 is as good as that."""

import numpy as np
from jaxtyping import Int, Int64


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
