"""Settings of every test: jaxtyping checks shapes while the tests run, and each process keeps to one thread."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("DVC_NO_ANALYTICS", "1")
os.environ.setdefault("DAGSTER_DISABLE_TELEMETRY", "1")

from hypothesis import settings
from jaxtyping import install_import_hook

settings.register_profile("loaded-machine", deadline=None)
settings.load_profile("loaded-machine")

install_import_hook(["ace.geometry", "ace.losses", "ace.models"], "beartype.beartype")
