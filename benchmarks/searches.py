"""The demo's searches on two checkouts of this project, in turn: seconds of each, and on how many tasks they end alike.

    python -m benchmarks.searches --before DIR --after DIR --policy runs/nano/sft --reward-model runs/nano/explicit
        [--methods greedy,best_of_n,beam] [--repeats 3] [--size nano] [ARGUMENT ...]

Further arguments go to every search (`--config.env.count=16` for a short one). Each run has a new workdir below `--out` and this Python.
Wall seconds are of the whole process, start and compilation included: the first repetition warms the compilation caches (each checkout
has its own, below `--out`) and does not count. The seconds of the search alone are what its `tasks.jsonl` says. A checkout of an old
commit: `git worktree add DIR COMMIT`.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agentrm_jax.types import UserError
from benchmarks.measure import machine

SIDES = ("before", "after")


def main(argv: Sequence[str] | None = None) -> int:
    text = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m benchmarks.searches", description=__doc__, formatter_class=text)
    parser.add_argument("--before", type=Path, required=True, help="a checkout")
    parser.add_argument("--after", type=Path, required=True, help="another one")
    parser.add_argument("--policy", type=Path, required=True, help="a workdir of train.py, which both can read")
    parser.add_argument("--reward-model", type=Path, required=True, help="another one")
    parser.add_argument("--methods", default="greedy,best_of_n,beam")
    parser.add_argument("--size", default="nano", help="what configs/METHOD.py is asked for")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/searches"))
    arguments, further = parser.parse_known_args(argv)
    places = {"before": arguments.before.resolve(), "after": arguments.after.resolve()}
    try:
        for place in places.values():
            if not (place / "search.py").exists():
                raise UserError(f"{place} is no checkout: it has no search.py")
        for model in (arguments.policy, arguments.reward_model):
            if not model.is_dir():
                raise UserError(f"{model} is no folder; train it first (make demo)")
        found: dict[str, Any] = {}
        out = (arguments.out / time.strftime("%Y%m%d_%H%M%S")).resolve()
        for repeat in range(arguments.repeats + 1):
            for method in arguments.methods.split(","):
                for side in SIDES:
                    models = [f"--config.policy={arguments.policy.resolve()}"]
                    if method != "greedy":
                        models.append(f"--config.reward_model={arguments.reward_model.resolve()}")
                    command = ["search.py", f"--config=configs/{method}.py:{arguments.size}", *models, *further]
                    workdir = out / f"{method}_{side}_{repeat}"
                    wall = run_once(places[side], [*command, f"--workdir={workdir}"], out.parent / f"cache_{side}")
                    print(f"{method}, {side}, repetition {repeat}: {wall:.1f} s", flush=True)
                    if repeat:
                        found.setdefault(method, {s: [] for s in SIDES})[side].append((wall, workdir))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    rows = [compared(method, runs) for method, runs in found.items()]
    (out / "searches.json").write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")
    print(f"\n{table(rows)}\n\nwritten to {out / 'searches.json'}")
    return 0


def run_once(checkout: Path, command: Sequence[str], cache: Path) -> float:
    """Wall seconds of a command in a checkout.

    Raises:
      UserError: it ended with an error.
    """
    own = os.environ | {"PYTHONPATH": str(checkout), "JAX_COMPILATION_CACHE_DIR": str(cache)}
    begin = time.perf_counter()
    done = subprocess.run([sys.executable, *command], cwd=checkout, env=own, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"in {checkout}: python {' '.join(command)}: {done.stderr.strip()[-500:]}")
    return time.perf_counter() - begin


def compared(method: str, runs: Mapping[str, Sequence[tuple[float, Path]]]) -> dict[str, Any]:
    """What both sides did in all repetitions, and how far the results of their first ones agree."""
    row: dict[str, Any] = {"method": method}
    for side, done in runs.items():
        rows = [_lines(workdir / "tasks.jsonl") for _, workdir in done]
        row[side] = {
            "wall": [wall for wall, _ in done],
            "search": [max(task["spent"]["seconds"] for task in tasks) for tasks in rows],
            "score": statistics.mean(task["reward"] for task in rows[0]),
        }
    for kind in ("wall", "search"):
        pairs = zip(row["before"][kind], row["after"][kind], strict=True)
        row[f"times_faster_{kind}"] = statistics.median(a / b for a, b in pairs)
    before, after = (_ends(runs[side][0][1]) for side in SIDES)
    row["tasks"] = len(before)
    row["same_reward"] = sum(before[key][0] == after.get(key, (None,))[0] for key in before)
    row["same_turns"] = sum(before[key] == after.get(key) for key in before)
    return row


def _ends(workdir: Path) -> dict[str, tuple[float, tuple[str, ...]]]:
    """Task -> its reward, and the texts of all turns of its trajectories in a search's workdir."""
    turns: dict[str, list[str]] = {}
    for row in _lines(workdir / "trajectories.jsonl"):
        key = f"{row['task']['env']}/{row['task']['id']}"
        turns.setdefault(key, []).append(json.dumps([step["action"]["text"] for step in row["steps"]]))
    ends = {}
    for task in _lines(workdir / "tasks.jsonl"):
        ends[task["task"]] = task["reward"], tuple(sorted(turns.get(task["task"], ())))
    return ends


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "| search | before, s | after, s | times faster | times faster without start | tasks with the same reward, the same turns |",
        "| --- " * 6 + "|",
    ]
    for row in rows:
        spent = [f"{statistics.median(row[side]['wall']):.1f} ({row[side]['score']:.3f})" for side in SIDES]
        faster = [f"{row['times_faster_wall']:.2f}", f"{row['times_faster_search']:.2f}"]
        alike = f"{row['same_reward']}, {row['same_turns']} of {row['tasks']}"
        lines.append(f"| {' | '.join([row['method'], *spent, *faster, alike])} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
