"""`python -m shards`, in which every log line of every library is shown, in this process and in those it starts."""

import logging
import sys
import warnings

logging.basicConfig(level=logging.DEBUG)
warnings.simplefilter("always")

if __name__ == "__main__":
    from shards.__main__ import build_parser
    from shards.cli import run_command

    sys.exit(run_command(build_parser()))
