"""Embed an image with a shipped model, and compare it with a sample of a shard set.

For instance, after `make demo`: python examples/embed_and_read.py chest.png data/shards/phantom-b000
"""

import argparse

import ace
from shards.reading.reader import ShardIndex, ShardReader


def main(image: str, shard_set: str) -> None:
    """Print the embedding of an image, the set's first test sample, and how far apart the two are."""
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image", help="file of an image, as a PNG, a JPEG or a DICOM file")
    parser.add_argument("shard_set", help="folder or URL of a shard set")
    arguments = parser.parse_args()
    main(arguments.image, arguments.shard_set)
