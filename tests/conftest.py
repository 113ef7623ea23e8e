"""Settings of every test: jaxtyping checks shapes while the tests run, and each process keeps to one thread."""

import os
import sys
from collections.abc import Iterator

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("DVC_NO_ANALYTICS", "1")
os.environ.setdefault("DAGSTER_DISABLE_TELEMETRY", "1")

import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

settings.register_profile("loaded-machine", deadline=None)
settings.load_profile("loaded-machine")

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
    "ace.evaluation": ("composition", "correspondence", "decomposition", "intervals", "regions"),
    "ace.training": ("monitors", "probe", "probe_scores"),
    # Not images and embedder: what they are given is theirs to refuse.
    "ace.inference": ("preprocessing",),
    "ace": ("geometry", "losses", "models"),
    "shards": ("annotations", "canvas", "decode", "masks", "order", "quality", "read", "shuffle"),
}
# An int may stand for a float, as it may for mypy.
install_import_hook(
    [f"{package}.{module}" for package, modules in CHECKED.items() for module in modules],
    "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))",
)


@pytest.fixture(autouse=True)
def _gradual_underflow() -> Iterator[None]:
    """Stages flush denormals, a setting of the whole process; hypothesis refuses to draw floats while it is on."""
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].set_flush_denormal(False)
