"""A command as it is given, in the process of the test."""

from ace.__main__ import build_parser
from shards.cli import run_command


def main(arguments: list[str]) -> int:
    return run_command(build_parser(), arguments)
