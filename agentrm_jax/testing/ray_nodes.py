"""A Ray cluster of three nodes on this machine, which may be killed, for tests and benchmarks."""

import os
import subprocess
import sys
from pathlib import Path

_ROOT = Path(__file__).parents[2]
_QUIET = {"RAY_enable_worker_prestart": "0", "RAY_prestart_worker_first_driver": "0", "RAY_USAGE_STATS_ENABLED": "0"}

# In a process of its own: it prints the address and the ids of its nodes 0 and 1, and kills the node whose number it reads.
_CLUSTER = """
import sys
from ray.cluster_utils import Cluster
node = {"num_cpus": 4, "object_store_memory": 10**8}
cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
nodes = [cluster.add_node(**node) for _ in range(2)]
print(cluster.address, *(node.node_id for node in nodes), flush=True)
for line in sys.stdin:
    cluster.remove_node(nodes[int(line)], allow_graceful=False)
    print("killed", flush=True)
cluster.shutdown()
"""


class Nodes:
    """A running cluster of a head and two nodes, with 4 CPUs each as far as Ray knows; use it as `with`.

    Args:
      log: a file for what the cluster writes.

    Attributes:
      address: of its head.
      ids: of the nodes 0 and 1.
      killed: those of them that are dead.
    """

    def __init__(self, log: Path):
        self._log = log
        self._process: subprocess.Popen[str] | None = None
        self.address, self.ids = "", list[str]()
        self.killed: set[int] = set()

    def __enter__(self) -> "Nodes":
        env = os.environ | _QUIET | {"PYTHONPATH": str(_ROOT)}  # engines find the package there
        pipe, command = subprocess.PIPE, [sys.executable, "-c", _CLUSTER]
        with self._log.open("w") as log:
            self._process = subprocess.Popen(command, env=env, stdin=pipe, stdout=pipe, stderr=log, text=True)
        self.address, *self.ids = self._line().split()
        return self

    def __exit__(self, *exc: object) -> None:
        assert self._process is not None
        self._process.communicate(timeout=60)

    def kill(self, number: int) -> None:
        """Kills node 0 or 1 as a machine dies: nothing on it is told."""
        assert self._process is not None
        assert self._process.stdin is not None
        print(number, file=self._process.stdin, flush=True)
        assert self._line() == "killed"
        self.killed.add(number)

    def _line(self) -> str:
        assert self._process is not None
        assert self._process.stdout is not None
        if not (line := self._process.stdout.readline().strip()):
            raise RuntimeError(f"the cluster has ended: {self._log.read_text()[-3000:]}")
        return line
