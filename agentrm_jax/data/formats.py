"""Our records on disk: one JSON object a line, with a schema version; read back as they were written."""

import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from agentrm_jax.types import JSON, Action, Outcome, SearchTree, Step, Task, Trajectory, TreeNode, UserError

VERSION = 1


def trajectory_to_json(trajectory: Trajectory) -> dict[str, JSON]:
    """`{"schema_version", "kind": "trajectory", "task", "goal", "observation", "steps": [...], "meta"}`."""
    return {
        "schema_version": VERSION,
        "kind": "trajectory",
        "task": _task_to_json(trajectory.task),
        "goal": trajectory.goal,
        "observation": trajectory.observation,
        "steps": [{"action": _action_to_json(s.action), **_outcome_to_json(s.outcome)} for s in trajectory.steps],
        "meta": dict(trajectory.meta),
    }


def trajectory_from_json(row: dict[str, Any]) -> Trajectory:
    """Inverse of `trajectory_to_json`."""
    steps = tuple(Step(_action_from_json(s["action"]), _outcome_from_json(s)) for s in row["steps"])
    return Trajectory(_task_from_json(row["task"]), row["goal"], row["observation"], steps, row.get("meta", {}))


def tree_to_json(tree: SearchTree) -> dict[str, JSON]:
    """`{"schema_version", "kind": "tree", "task", "goal", "nodes": [...], "meta"}`; node 0 is the root."""
    nodes = []
    for i, n in enumerate(tree.nodes):
        row: dict[str, JSON] = {"id": i, "parent": n.parent, **_outcome_to_json(n.outcome)}
        if n.action is not None:
            row["action"] = _action_to_json(n.action)
        row |= {
            "N": n.visits,
            "sumG": n.return_sum,
            "sumG2": n.return_sq_sum,
            "minG": n.return_min,
            "maxG": n.return_max,
        }
        row |= {"multiplicity": n.multiplicity, "expanded": n.expanded, "closed": n.closed}
        nodes.append(row)
    return {
        "schema_version": VERSION,
        "kind": "tree",
        "task": _task_to_json(tree.task),
        "goal": tree.goal,
        "nodes": nodes,
        "meta": dict(tree.meta),
    }


def tree_from_json(row: dict[str, Any]) -> SearchTree:
    """Inverse of `tree_to_json`."""
    nodes = tuple(
        TreeNode(
            parent=n["parent"],
            action=_action_from_json(n["action"]) if "action" in n else None,
            outcome=_outcome_from_json(n),
            visits=n["N"],
            return_sum=n["sumG"],
            return_sq_sum=n["sumG2"],
            return_min=n["minG"],
            return_max=n["maxG"],
            multiplicity=n["multiplicity"],
            expanded=n["expanded"],
            closed=n["closed"],
        )
        for n in row["nodes"]
    )
    return SearchTree(_task_from_json(row["task"]), row["goal"], nodes, row.get("meta", {}))


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a JSON-lines file. A last line that a killed writer left unfinished is skipped.

    Raises:
      UserError: a line in the middle is not JSON.
    """
    with path.open("rb") as f:  # bytes: an unfinished line may end inside a character
        for number, line in enumerate(f, 1):
            if not line.endswith(b"\n"):
                return
            try:
                yield json.loads(line)
            except ValueError as e:
                raise UserError(f"{path}, line {number}: not JSON ({e})") from e


def append_jsonl(path: Path, rows: Iterable[dict[str, JSON]]) -> None:
    """Adds rows; each line is written whole. A line that a killed writer left unfinished is removed first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as f:
        if size := f.tell():
            f.seek(size - 1)
            if f.read(1) != b"\n":
                f.seek(0)
                f.truncate(f.read().rfind(b"\n") + 1)
        for row in rows:
            f.write((json.dumps(row, ensure_ascii=False) + "\n").encode())


def read_trajectories(path: Path) -> list[Trajectory]:
    """All trajectories of one of our files."""
    return [trajectory_from_json(r) for r in read_jsonl(path)]


def read_trees(folder: Path) -> list[SearchTree]:
    """All trees of a folder of `*.jsonl` files, by file name.

    Raises:
      UserError: the folder holds none.
    """
    files = sorted(folder.glob("*.jsonl")) if folder.is_dir() else []
    trees = [tree_from_json(r) for f in files for r in read_jsonl(f)]
    if not trees:
        raise UserError(f"no search trees in {folder}; make some with: python search.py --config=configs/mcts.py")
    return trees


def _task_to_json(task: Task) -> dict[str, JSON]:
    return {"env": task.env, "id": task.id, "split": task.split, "max_steps": task.max_steps, "args": dict(task.args)}


def _task_from_json(row: dict[str, Any]) -> Task:
    return Task(row["env"], row["id"], row["split"], row["max_steps"], row["args"])


def _action_to_json(action: Action) -> dict[str, JSON]:
    row: dict[str, JSON] = {"text": action.text}
    if action.tokens:
        row["tokens"] = list(action.tokens)
    if not math.isnan(action.logprob):
        row["logprob"] = action.logprob
    if action.finish != "stop":
        row["finish"] = action.finish
    return row


def _action_from_json(row: dict[str, Any]) -> Action:
    tokens = tuple(row.get("tokens", ()))
    return Action(row["text"], tokens, row.get("logprob", math.nan), row.get("finish", "stop"))


def _outcome_to_json(o: Outcome) -> dict[str, JSON]:
    row: dict[str, JSON] = {"observation": o.observation, "reward": o.reward, "progress": o.progress, "done": o.done}
    return row | {"success": o.success, "valid": o.valid, "parsed": o.parsed}


def _outcome_from_json(row: dict[str, Any]) -> Outcome:
    return Outcome(
        row["observation"], row["reward"], row["progress"], row["done"], row["success"], row["valid"], row["parsed"]
    )
