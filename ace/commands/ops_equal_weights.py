"""`ops equal-weights`: show before an upgrade is taken over that it leaves the weights as they are."""

import argparse
import os
import sys
from functools import partial
from pathlib import Path


def add_equal_weights_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `equal-weights` to the commands of `ops`."""
    command = commands.add_parser(
        "equal-weights",
        help="say whether an earlier commit trains the same weights as this one, in the smallest configuration",
        description=equal_weights.__doc__,
    )
    command.add_argument("revision", metavar="REVISION", help="a tag, a branch or a commit, as v0.1.0")
    command.add_argument(
        "--new",
        default="HEAD",
        metavar="REVISION",
        help="what it is compared with; default: HEAD. A clone whose project does not have the phantom any more "
        "compares two tags of the project",
    )
    command.add_argument("--repo", type=Path, default=Path(), metavar="DIR", help="the clone; default: this folder")
    command.set_defaults(run=equal_weights)


def equal_weights(arguments: argparse.Namespace) -> int:
    """Say whether an earlier commit and HEAD train the same weights: exit code 0 if every byte is equal, 1 if not.

    Both are cloned into a temporary folder, where `config use smoke` and `dvc repro pretrain` run with the code of the
    clone; then the sha256 of models/ace/*.safetensors and of the tars of shards are compared. Nothing of this checkout
    is changed; `dvc commit` is yours to give. It is a proof for configs/smoke.yaml on this machine and with the
    packages that are installed now, not for the settings of params.yaml: it trains on the phantom, in fp32, with the
    objective `ace` and the heads of the demo. Code that only other settings use, as dino, ace_v2, MLP heads, bf16,
    micro-batches, the probe or weights to start from, does not run. Exit code 75: a signal ended it.
    """
    from ace.engine.stop import EXIT_CODE, StoppedError
    from ace.operations.clone import git
    from ace.operations.equal_weights import compare

    root = Path(git(arguments.repo, "rev-parse", "--show-toplevel").strip())
    try:
        comparison = compare(root, arguments.revision, arguments.new, partial(print, flush=True))
    except StoppedError as reason:
        print(f"ended by {reason}; nothing is known of the weights, and nothing is left behind", file=sys.stderr)
        return EXIT_CODE
    print(comparison.to_text())
    return 1 if comparison.different else os.EX_OK
