"""Embed one image with a shipped model, and read one sample of a shard set.

python examples/embed_and_read.py IMAGE SHARD_SET, for instance chest.png data/shards/phantom-b000 (after `make demo`).
"""

import sys

import ace
from shards.reading.reader import ShardIndex, ShardReader


def main(image: str, shard_set: str) -> None:
    """Print what the model makes of an image, and what the shard set says of its first test sample."""
    model = ace.load("cxr-small")
    out = model.embed(image)
    print(f"embedding of {image}: {tuple(out.embedding.shape)}, norm {out.embedding.norm():.3f}")

    index = ShardIndex.open(shard_set)
    row = index.select("test")[0]
    sample = ShardReader(index).read(row)
    print(f"sample {sample.key}: canvas {sample.image.shape}, labels {sample.meta['labels']}")
    distance = 1 - float(out.embedding @ model.embed(sample.image).embedding)
    print(f"cosine distance between the two: {distance:.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
