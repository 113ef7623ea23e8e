"""A real Ray cluster on loopback, in a process of its own, whose processes start in a folder of their choice."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.checkout import ROOT

CLUSTER = """
import sys
from ray.cluster_utils import Cluster

# Ray takes 127.0.0.1 for a mistake and asks for the machine's own address instead.
node = {"num_cpus": 2, "node_ip_address": "127.0.0.2", "include_dashboard": False}
cluster = Cluster(initialize_head=True, head_node_args=node)
print(cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""


@contextmanager
def ray_cluster(elsewhere: Path) -> Iterator[str]:
    """Give the address of a cluster with two cores, whose processes start in the folder, which is made."""
    elsewhere.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"}
    command = [sys.executable, "-c", CLUSTER]
    with subprocess.Popen(
        command, cwd=elsewhere, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        addresses = (line.strip() for line in process.stdout)
        yield next(line for line in addresses if line.startswith("127.0.0.2:"))
        process.communicate()
