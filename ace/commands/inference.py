"""`embed`, `export`: use a trained encoder, here or in other programs."""

import argparse
import sys
from pathlib import Path

from ace.commands.options import add_model_options, positive
from shards.core.identity import KEY_FILE_VARIABLE, SPLITS
from shards.runtime.text import count_of
from shards.store.location import is_remote, parse_location


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `embed` and `export` to the command line."""
    command = commands.add_parser("embed", help="embed a folder of images or a shard set", description=embed.__doc__)
    command.add_argument(
        "source",
        type=parse_location,
        help="a shard set, as data/shards/phantom-b000 or s3://bucket/phantom-b000, or a folder with images (PNG, "
        "JPEG, TIFF, BMP, GIF, DICOM) at any depth. The key of an image of a folder is its relative path, which may "
        "contain a patient's name: see --hash-keys",
    )
    add_model_options(command)
    written = command.add_mutually_exclusive_group(required=True)
    written.add_argument("--out", type=Path, metavar="FILE", help="the Parquet file")
    written.add_argument(
        "--companions",
        type=Path,
        metavar="DIR",
        help="of a shard set, instead of --out: a folder for tars with the embeddings, of the same names, keys and "
        "order as the set's, to be read in step with them",
    )
    command.add_argument("--tokens", action="store_true", help="write the token maps too (float16)")
    command.add_argument(
        "--split", choices=[*SPLITS, "all"], default="all", help="the split of a shard set to embed; default: all"
    )
    command.add_argument(
        "--hash-keys",
        action="store_true",
        help="with a folder: write keyed hashes of the paths instead of the paths, under the identity key that "
        f"{KEY_FILE_VARIABLE} names",
    )
    command.add_argument(
        "--max-megapixels",
        type=positive(float),
        default=100.0,
        metavar="M",
        help="with a folder: larger images are not read; default: 100",
    )
    command.add_argument(
        "--batch-size", type=positive(int), default=32, metavar="N", help="images of one forward pass; default: 32"
    )
    command.add_argument(
        "--num-threads",
        type=positive(int),
        metavar="N",
        help="threads that read images; default: one per core. With --ray: cores of each process, for its readers and "
        "its network; default: 1, or on GPUs what a machine has for each GPU",
    )
    command.add_argument(
        "--device",
        default="auto",
        help="auto, cpu, or one device, as cuda:0; default: auto. With --ray: auto, cpu or cuda; a process has one GPU",
    )
    command.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="embed on a Ray cluster (HOST:6379, auto, or local); its machines must see the images and the "
        "result's folder, which is DIR or for --out ACE_SCRATCH, under the same paths. The embeddings are those of a "
        "run on one machine of the same kind; after a kill, the same command goes on",
    )
    command.set_defaults(run=embed)

    command = commands.add_parser(
        "export", help="export the encoder to ONNX, timm or MONAI", description=export.__doc__
    )
    add_model_options(command)
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder")
    command.add_argument(
        "--format",
        choices=["onnx", "timm", "monai"],
        required=True,
        help="onnx for ONNX Runtime; timm for timm and Hugging Face Transformers; monai for a MONAI bundle",
    )
    command.add_argument(
        "--tolerance",
        type=float,
        default=1e-4,
        metavar="X",
        help="largest difference between ONNX Runtime and torch at which the export is written; default: 1e-4",
    )
    command.set_defaults(run=export)


def embed(arguments: argparse.Namespace) -> None:
    """Embed the images of a folder or a shard set into one Parquet file.

    Of a shard set the embeddings can be written to companion shards instead: tars of the same names, keys and order.
    """
    from ace.inference.cluster import EmbeddingCluster
    from ace.inference.companions import write_companions
    from ace.inference.embedder import load_model
    from ace.inference.parquet import write_embeddings
    from ace.inference.sources import ImageSource, is_shard_set, measured_of, open_folder, open_shards
    from shards.core.errors import ConfigError
    from shards.reading.reader import ShardIndex
    from shards.runtime.parallel import default_num_workers

    cluster = None
    if arguments.ray:
        if arguments.device not in ("auto", "cpu", "cuda"):
            raise ConfigError(
                f"--device {arguments.device}: with --ray each process has one GPU of its own, or none; give auto, cpu "
                "or cuda"
            )
        cluster = EmbeddingCluster(arguments.ray, arguments.device, arguments.num_threads)
        # The processes of a cluster start in another folder.
        if not is_remote(arguments.source):
            arguments.source = Path(arguments.source).absolute()
    images: ImageSource
    batch = trimmed = measured = None
    if is_shard_set(arguments.source):
        if arguments.hash_keys:
            raise ConfigError(
                f"--hash-keys: {arguments.source} is a shard set, whose keys are hashes already; leave the option out"
            )
        index = ShardIndex.open(arguments.source).without_excluded(Path())
        images, batch, trimmed = open_shards(index, arguments.split), index.name, index.spec.trim_level
        measured = measured_of(index, Path())
    else:
        if arguments.companions is not None:
            raise ConfigError(
                f"--companions is for shard sets, and {arguments.source} is none: it has no index.json. Build the set "
                "first (`dvc repro shard@NAME`); for a folder of images write --out FILE"
            )
        if arguments.split != "all":
            raise ConfigError(
                f"--split {arguments.split}: {arguments.source} is a folder of images and has no splits; leave the "
                "option out, or give a shard set"
            )
        max_pixels = arguments.max_megapixels * 1e6
        folder = open_folder(arguments.source, is_hashed=arguments.hash_keys, max_pixels=max_pixels)
        for line in folder.left_out:
            print(f"{arguments.source}: {line}", file=sys.stderr)
        images = folder
    model = load_model(
        arguments.model,
        which=arguments.which,
        device="cpu" if cluster else arguments.device,
        normalisation=arguments.normalisation,
        batch=batch,
        measured=measured,
    )
    # No record says how the images of an imported model were framed.
    if trimmed not in (None, model.preprocessing.trim_level) and not model.encoder.is_imported:
        print(
            f"warning: {batch} was built with grid.trim_level {trimmed}, and the model was trained with "
            f"{model.preprocessing.trim_level}: the dark border of its images is cut off differently here",
            file=sys.stderr,
        )
    num_threads = arguments.num_threads or default_num_workers()
    if arguments.companions is not None:
        number = write_companions(
            model,
            index,
            arguments.split,
            arguments.companions,
            batch_size=arguments.batch_size,
            num_threads=num_threads,
            with_tokens=arguments.tokens,
            cluster=cluster,
        )
        print(f"wrote {arguments.companions}: companions of {number} samples")
        return
    outcome = write_embeddings(
        model,
        images,
        arguments.out,
        batch_size=arguments.batch_size,
        num_threads=num_threads,
        with_tokens=arguments.tokens,
        cluster=cluster,
    )
    print(f"wrote {arguments.out}: {outcome.num_embedded} embeddings")
    if outcome.num_unreadable:
        print(f"{count_of(outcome.num_unreadable, 'image')} could not be read; {outcome.errors} says why")


def export(arguments: argparse.Namespace) -> None:
    """Export the encoder: `onnx` for ONNX Runtime, `timm` for timm and Hugging Face Transformers, `monai` for MONAI."""
    import ace

    model = ace.load(arguments.model, which=arguments.which, device="cpu", normalisation=arguments.normalisation)
    if arguments.format == "timm":
        from ace.inference.timm_folder import export_timm

        export_timm(model, arguments.out)
        print(f"wrote {arguments.out}")
    elif arguments.format == "monai":
        from ace.inference.monai_bundle import export_monai

        export_monai(model, arguments.out)
        print(f"wrote {arguments.out}")
    else:
        from ace.inference.onnx import export_onnx

        found = export_onnx(model, arguments.out, tolerance=arguments.tolerance)
        print(f"wrote {arguments.out}: ONNX Runtime is within {found.max_difference:.2g} of torch on random inputs")
