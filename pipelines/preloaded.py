"""Import and read once what every step of a run needs: Dagster imports this where it forks the steps from."""

from contextlib import suppress
from pathlib import Path

from tqdm import tqdm

import pipelines.definitions  # noqa: F401  each step loads its definitions from it
from pipelines.graph import load_graph
from pipelines.lock import read_lock

tqdm.monitor_interval = 0  # DVC's bars start a thread, and a process that is forked should have none
with suppress(Exception):  # what is wrong with the graph, each step says
    read_lock(Path.cwd(), load_graph(Path.cwd()))
