"""Commands of `python -m shards`, in which every log line of every library is shown, and in the processes they start.

Each has a process of its own, forked from one that has imported what they import.
"""

import importlib
import json
import logging
import os
import sys
import warnings

logging.basicConfig(level=logging.DEBUG)
warnings.simplefilter("always")
PRELOADED = (
    "shards.build.stage",
    "shards.checking.gallery",
    "shards.checking.stats",
    "shards.checking.verify",
    "shards.delivery.register",
    "shards.sources.datasets.dicom_tree",
)


def main() -> None:
    """For each line of arguments and of a file, as JSON, run the command, which prints to the file; print its code."""
    from shards.__main__ import build_parser
    from shards.cli import run_command

    for name in PRELOADED:
        importlib.import_module(name)
    for line in sys.stdin:
        arguments, path = json.loads(line)
        if not (process := os.fork()):
            output = os.open(path, os.O_CREAT | os.O_WRONLY)
            os.dup2(output, 1)
            os.dup2(output, 2)
            sys.exit(run_command(build_parser(), arguments))
        print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
