"""`models`, `publish`: list the models that come with the package, and make one of them."""

import argparse
from pathlib import Path

from ace.commands.accepted_models import add_registry_commands
from ace.commands.options import PROPERTIES


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `models` and `publish` to the command line."""
    command = commands.add_parser(
        "models", help="list shipped models; decide which model is the accepted one", description=models.__doc__
    )
    command.set_defaults(run=models)
    add_registry_commands(command)

    command = commands.add_parser(
        "publish", help="make a shipped model from a finished training", description=publish.__doc__
    )
    command.add_argument("folder", type=Path, metavar="MODEL_DIR", help="the folder that the training wrote")
    command.add_argument("--name", required=True, help="name that the model is loaded by, as cxr-small")
    command.add_argument(
        "--metrics",
        type=Path,
        default=PROPERTIES,
        metavar="FILE",
        help=f"the figures that `evaluate` wrote for the model; default: {PROPERTIES}",
    )
    command.add_argument(
        "--images",
        type=Path,
        required=True,
        metavar="FILE",
        help="file with the names of the training images, one per line; or the manifest of the batch, "
        "data/manifests/NAME.jsonl. The file names are published, so give those of public datasets only",
    )
    command.add_argument(
        "--terms",
        required=True,
        metavar="FILE|TEXT",
        help="the terms under which the images may be used, and whom to cite: a text file, or the text itself",
    )
    command.add_argument(
        "--summary",
        metavar="TEXT",
        help="one sentence that describes the model; default: a sentence on its size, channels and tokens",
    )
    command.add_argument(
        "--half", action="store_true", help="store the weights in 16 bits; computations stay in 32 bits"
    )
    command.add_argument(
        "--out", type=Path, metavar="DIR", help="folder of the model; default: ace/zoo/NAME in the package"
    )
    command.set_defaults(run=publish)


def models(arguments: argparse.Namespace) -> None:
    """List the models that come with the package, each with its training images, its figures and its size."""
    from ace.zoo.shipped import models_text

    print(models_text())


def publish(arguments: argparse.Namespace) -> None:
    """Make the folder of a shipped model from a finished training.

    It holds the teacher's backbone, its figures, the names of its training images and the terms of their use. The
    student, the heads and the paths of this machine are left out.
    """
    from ace.zoo.publishing import publish as publish_model
    from ace.zoo.shipped import ZOO
    from shards.core.errors import ConfigError

    terms = Path(arguments.terms)
    if not _is_file(terms) and not any(character.isspace() for character in arguments.terms.strip()):
        raise ConfigError(
            f"--terms {arguments.terms}: found one word and no file of this name; expected a text file, or the terms "
            "in words"
        )
    done = publish_model(
        arguments.folder,
        name=arguments.name,
        metrics=arguments.metrics,
        images=arguments.images,
        terms=terms.read_text(encoding="utf-8") if _is_file(terms) else arguments.terms,
        out=arguments.out or ZOO / arguments.name,
        half=arguments.half,
        summary=arguments.summary,
    )
    print(
        f"wrote {done.folder}: {done.num_bytes / 1e6:.2f} MB of weights; on random inputs its embeddings have a cosine "
        f"of at least {done.min_cosine:.6f} with those of the trained model"
    )


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a text too long to be a file's name
        return False
