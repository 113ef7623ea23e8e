"""The default run draws the same examples every time; `make fuzz` draws others, and its seed draws them again."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.checkout import MAKE, ROOT

PROPERTIES = """
import torch
from hypothesis import given, strategies as st
from tests.support.examples import examples

DRAWN = []

@given(st.integers())
def test_property(number):
    DRAWN.append(number)

@examples(0.1)
@given(st.integers())
def test_costly_property(number):
    DRAWN.append(number)

def test_without_examples():
    print("\\ndrawn", __name__, len(DRAWN), hash(tuple(DRAWN)))
    print("\\ntorch", torch.rand(1))
"""
FILES = ["test_a", "test_b", "test_c", "test_d"]


def said(*command: str) -> str:
    # Hypothesis has other defaults where CI is set, and continuous integration runs `make fuzz` too.
    env = {**os.environ, "CI": "true"}
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, env=env).stdout


def drawn(folder: Path, *options: str) -> list[str]:
    """What each file drew, in the order in which they ran."""
    for name in FILES:
        (folder / f"{name}.py").write_text(PROPERTIES)
    config = ("-c", str(ROOT / "pyproject.toml"), "-p", "tests.conftest", "-p", "no:cacheprovider")
    printed = said(sys.executable, "-m", "pytest", "-s", *config, *options, str(folder))
    return re.findall(r"^drawn (.*)$", printed, re.M)


def numbers(lines: list[str]) -> dict[str, int]:
    return {name: int(number) for name, number, *_ in map(str.split, lines)}


@pytest.mark.slow
def test_the_default_run_does_not_depend_on_luck(tmp_path: Path) -> None:
    first = drawn(tmp_path)
    assert numbers(first) == dict.fromkeys(FILES, 110)
    assert drawn(tmp_path) == first
    assert len({line.split()[-1] for line in first}) == 1, "torch is seeded before every test"


@pytest.mark.slow
def test_a_seed_draws_examples_of_its_own_in_an_order_of_its_own_and_both_again(tmp_path: Path) -> None:
    one, again, other = (
        drawn(tmp_path, "--hypothesis-profile=fuzz", f"--hypothesis-seed={seed}") for seed in (1, 1, 2)
    )
    assert one == again
    assert set(one).isdisjoint(other)
    assert numbers(one) == numbers(other) == dict.fromkeys(FILES, 330)
    assert list(numbers(one)) != list(numbers(other))


@pytest.mark.slow
def test_make_fuzz_says_its_seed_and_takes_one() -> None:
    file = "tests/benchmarks/test_shuffle.py"
    make = (*MAKE, "fuzz", f"FILES={file}")
    printed = said(*make)
    (seed,) = re.findall(r"^random examples of seed (\d+); ", printed, re.M)
    assert f"the same again: make fuzz SEED={seed} FILES='{file}'\n" in printed
    assert "1 passed" in printed
    bounded = said(*make, "SEED=5", "SECONDS=0")
    assert "random examples of seed 5; the same again: make fuzz SEED=5 " in bounded
    assert re.search(r"SKIPPED \[1\] .*: the time is up", bounded)
