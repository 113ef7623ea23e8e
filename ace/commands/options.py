"""Options that several commands have, with their defaults, and the parsing of their values."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ruamel.yaml import YAML

from shards.store.location import parse_location

Number = TypeVar("Number", int, float)

SHARDS, MODELS = Path("data/shards"), Path("models")
MODEL = MODELS / "ace"
PROPERTIES = Path("metrics/properties.json")


def add_shards_option(command: argparse.ArgumentParser) -> None:
    """Add the folder of the shard sets."""
    command.add_argument(
        "--shards",
        type=parse_location,
        default=SHARDS,
        metavar="DIR",
        help=f"folder or URL that holds the shard sets, as s3://bucket/prefix; default: {SHARDS}",
    )


def add_branch_option(command: argparse.ArgumentParser) -> None:
    """Add the branch of the clone in which a command decides."""
    command.add_argument(
        "--branch", default="service", metavar="NAME", help="branch of the service's clone; default: service"
    )


def add_why_option(command: argparse.ArgumentParser, *, is_required: bool = True) -> None:
    """Add the reason of a decision, which has to say something."""
    command.add_argument(
        "--why", type=_reason, required=is_required, metavar="TEXT", help="the reason, for whoever reads the log later"
    )


def add_model_options(command: argparse.ArgumentParser) -> None:
    """Add the model, which of its networks to take, and how to normalise for it."""
    command.add_argument(
        "--model",
        type=Path,
        default=MODEL,
        metavar="MODEL",
        help=f"folder of a model, or the name of a shipped one (python -m ace models); default: {MODEL}",
    )
    command.add_argument(
        "--which",
        choices=["teacher", "student", "best"],
        default="teacher",
        help="the network to take; `best` is the teacher at the step where the probe scored it highest; default: "
        "teacher",
    )
    command.add_argument(
        "--normalisation",
        type=_normalisation,
        metavar="NAME",
        help="how pixels are normalised: the name of a training batch whose mean and std are used; or MEAN,STD of your "
        "pixels in [0, 1]; or six numbers, three means and three stds. Needed if the batches of the training mix "
        "differ in them. A shard set that the model was trained with is normalised as in the training",
    )


def add_architecture_options(command: argparse.ArgumentParser) -> None:
    """Add what is to be said of weights that others trained: arguments of the architecture, channels, mean and std."""
    command.add_argument(
        "--model-arg",
        type=assignment,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a further argument of timm's architecture, as output_stride=16; may be repeated",
    )
    command.add_argument(
        "--channels",
        type=int,
        choices=[1, 3],
        default=3,
        help="channels of the input; default: 3. The authors' files say it themselves",
    )
    command.add_argument(
        "--mean",
        type=_levels,
        metavar="MEAN",
        help="mean of pixels in [0, 1]: one number, or R,G,B; default: timm's for the architecture; for the authors' "
        "files 0.5056, theirs for chest X-rays",
    )
    command.add_argument(
        "--std",
        type=_levels,
        metavar="STD",
        help="standard deviation of pixels in [0, 1]: one number, or R,G,B; default: timm's for the architecture; for "
        "the authors' files 0.252",
    )


def _reason(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError("expected a reason; found none")
    return text


def _normalisation(text: str) -> str | tuple[Sequence[float], Sequence[float]]:
    if "," not in text:
        return text
    try:
        numbers = [float(number) for number in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in (2, 6):
        raise argparse.ArgumentTypeError(
            f"{text}: expected two numbers MEAN,STD, as 0.48,0.27, or six, three means and three stds"
        )
    return numbers[: len(numbers) // 2], numbers[len(numbers) // 2 :]


def _levels(text: str) -> Sequence[float]:
    try:
        levels = [float(number) for number in text.split(",")]
    except ValueError:
        levels = []
    if len(levels) not in (1, 3):
        raise argparse.ArgumentTypeError(f"{text}: expected a number, or three as 0.485,0.456,0.406")
    return levels


def assignment(text: str) -> tuple[str, Any]:
    """Parse KEY=VALUE, with the value as in YAML."""
    key, separator, value = text.partition("=")
    if not (key and separator):
        raise argparse.ArgumentTypeError(f"{text}: expected KEY=VALUE, as output_stride=16")
    return key, YAML(typ="safe", pure=True).load(value)


def positive(kind: Callable[[str], Number]) -> Callable[[str], Number]:
    """Build a parser of numbers above 0; `kind` is `int` or `float`."""

    def parse(text: str) -> Number:
        value = kind(text)
        if value <= 0:
            raise argparse.ArgumentTypeError(f"{text}: expected a number above 0")
        return value

    return parse
