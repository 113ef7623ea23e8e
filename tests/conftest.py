"""Settings of every test: jaxtyping checks shapes while the tests run, and each process keeps to one thread."""

import math
import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("DVC_NO_ANALYTICS", "1")
os.environ.setdefault("DAGSTER_DISABLE_TELEMETRY", "1")

import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

# The same examples in every run of one commit; `make fuzz` draws others. No deadline: the machine may be busy.
settings.register_profile("repeatable", deadline=None, derandomize=True)
# Hypothesis derandomises every profile by itself where CI is set.
settings.register_profile("fuzz", deadline=None, derandomize=False, max_examples=300, print_blob=True)
settings.load_profile("repeatable")
STARTED = time.monotonic()

CHECKED = {
    # Not the params: beartype does not know pydantic's `Self`.
    "ace.data": (
        "augment",
        "augment_device",
        "augmentation",
        "batches",
        "clahe",
        "crops",
        "erase",
        "lab",
        "loader",
        "views",
    ),
    # Not base: beartype does not know what it has for type checkers alone.
    "ace.properties": (
        "colours",
        "composition",
        "correspondence",
        "cosegmentation",
        "decomposition",
        "interpolation",
        "labels",
        "retrieval",
        "separation",
        "symmetry",
    ),
    "ace.downstream": (
        "cases",
        "classification",
        "heat_maps",
        "images",
        "joint",
        "landmarks",
        "localisation",
        "overlap",
        "page",
        "parts",
        "scores",
        "segmentation",
        "shown",
        "upernet",
        "views",
    ),
    "ace.embed": ("preprocessing", "probe_scores"),
    "ace.protocol": ("dense", "features", "intervals", "regions"),
    "ace.pretrain": ("monitors", "probe"),
    "ace": ("geometry", "losses", "models"),
    "shards": ("decode", "quality"),
    "shards.core": ("canvas",),
    "shards.reading": ("order", "reader"),
}
NAMES = [f"{package}.{module}" for package, modules in CHECKED.items() for module in modules]
for name in NAMES:
    path = Path(__file__).parents[1].joinpath(*name.split("."))
    assert path.is_dir() or path.with_suffix(".py").is_file(), f"{name} is to have its shapes checked and is not there"
# An int may stand for a float, as it may for mypy.
install_import_hook(
    NAMES,
    "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seconds", type=float, default=math.inf, help="begin no test after this time")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Take the files in an order of hypothesis' seed: each has its turn, however few fit into the time."""
    if config.getoption("hypothesis_seed") is not None:
        generator = random.Random(config.getoption("hypothesis_seed"))
        order = {path: generator.random() for path in dict.fromkeys(item.path for item in items)}
        items.sort(key=lambda item: order[item.path])


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Give torch the same seed before every test and its fixtures: a process of its own starts with any."""
    if time.monotonic() - STARTED > item.config.getoption("seconds"):
        pytest.skip("the time is up")
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(autouse=True)
def _signals_end_a_process() -> Iterator[None]:
    """A command that was asked to end ignores signals from then on, and so would all that a later test starts."""
    numbers = (signal.SIGTERM, signal.SIGUSR1)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def _gradual_underflow() -> Iterator[None]:
    """Stages flush denormals, a setting of the whole process; hypothesis refuses to draw floats while it is on."""
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].set_flush_denormal(False)
