"""How a search spreads over the engines of a Ray cluster: tasks by engine and seconds, with 1, 2 and 4 engines.

    python -m benchmarks.cluster [--engines 1 2 4] [--step-seconds 0.1] [--address HOST:PORT]

Trees of 16 tasks of a game whose every step takes so long, and no model: what is measured is the handing out of tasks and the way to
the environments, on any machine, since steps that sleep need no cores. Without an address a cluster of three nodes is started here,
which needs the extra `ray`. The trees must be the same whatever the number of engines. Prints a row for each number as JSON.
"""

import argparse
import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agentrm_jax.testing.ray_nodes import Nodes

ROOT = Path(__file__).parents[1]
_POLICY = """
from agentrm_jax.testing.scripted import uniform_policy

def make(specs, config):
    return uniform_policy("abc")
"""
_SEARCH = (
    *(
        "--config.policy=drawn_letters:make",
        "--config.env.names=agentrm_jax.testing.toy_env,",
        "--config.env.split=test",
    ),
    *("--config.env.start=0", "--config.env.count=16", "--config.env.workers=1", "--config.concurrency=4"),
    *("--config.search.iterations=5", "--config.search.k=3"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and prints; returns 1 if the trees of two searches differ."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cluster", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--engines", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--step-seconds", type=float, default=0.1)
    parser.add_argument("--address", default="", help="of the head of a cluster that is there already")
    args = parser.parse_args(argv)
    trees = set()
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        address = args.address or stack.enter_context(Nodes(folder / "ray.txt")).address
        (folder / "drawn_letters.py").write_text(_POLICY)
        for engines in args.engines:
            print(json.dumps(measure(folder, address, engines, args.step_seconds)), flush=True)
            found = (folder / str(engines) / "trees" / "trees.jsonl").read_text().splitlines()
            trees.add("\n".join(sorted(found)))
    return int(len(trees) > 1)


def measure(folder: Path, address: str, engines: int, step_seconds: float) -> dict[str, Any]:
    """One search: how many tasks each engine finished, and the seconds from the first engine's being ready to the last task's end."""
    command = [
        *(sys.executable, str(ROOT / "search.py"), f"--config={ROOT}/configs/mcts.py", f"--workdir={engines}"),
        *(*_SEARCH, f"--config.env.options.toy.delay={step_seconds}"),
        *(f"--config.ray={address}", f"--config.engines={engines}"),
    ]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    run = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    shares = re.search(r"^tasks by engine: (.*)$", run.stdout, re.MULTILINE)
    if run.returncode or shares is None:
        raise RuntimeError(f"{' '.join(command)} failed: {run.stderr[-2000:]}")
    budget = json.loads((folder / str(engines) / "results.json").read_text())["budget"]
    tasks = [int(part.partition(": ")[2]) for part in shares[1].split(", ")]
    return {"engines": engines, "tasks": tasks, "seconds": budget["seconds"], "env_steps": budget["env_steps"]}


if __name__ == "__main__":
    sys.exit(main())
