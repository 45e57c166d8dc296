"""Our records on disk: one JSON object a line, with a schema version; read back as they were written.

Whatever a file holds, reading it gives records that keep what their types promise (texts that are valid, rewards in [0, 1],
parents before children), or a `UserError` that names file, line, place, what is there and what should be.
"""

import dataclasses
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Literal, cast

from agentrm_jax.data import fields
from agentrm_jax.data.fields import Fields
from agentrm_jax.types import JSON, Action, Outcome, SearchTree, Step, Task, Trajectory, TreeNode, UserError

VERSION = 1
_ROUNDING = 1e-6  # relative, of sums of returns


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


def trajectory_from_json(value: JSON, origin: str = "a trajectory record") -> Trajectory:
    """Inverse of `trajectory_to_json`. `origin` says where the value was found, for messages.

    Raises:
      UserError: it is no such record, or one of another version.
    """
    row = _record(value, origin, "trajectory")
    steps = tuple(Step(_action(fields.inner(s, "action")), _outcome(s)) for s in fields.objects(row, "steps"))
    goal, observation = fields.text(row, "goal"), fields.text(row, "observation")
    return Trajectory(_task(row), goal, observation, steps, _meta(row))


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


def tree_from_json(value: JSON, origin: str = "a tree record") -> SearchTree:
    """Inverse of `tree_to_json`. `origin` says where the value was found, for messages.

    Raises:
      UserError: it is no such record, one of another version, or its nodes do not make up a tree.
    """
    row = _record(value, origin, "tree")
    nodes = tuple(_node(node, i) for i, node in enumerate(fields.objects(row, "nodes")))
    if not nodes:
        raise row.error("nodes", "at least the root")
    _check_visits(row, nodes)
    return SearchTree(_task(row), fields.text(row, "goal"), nodes, fields.anything(row, "meta", default={}))


def read_rows(path: Path) -> Iterator[tuple[str, dict[str, JSON]]]:
    """(file and line, object) of every line of a JSON-lines file. A last line that a killed writer left unfinished is skipped.

    Raises:
      UserError: the file cannot be read, or a line in the middle is no JSON object.
    """
    try:
        with path.open("rb") as f:  # bytes: an unfinished line may end inside a character
            for number, text in enumerate(f, 1):
                if not text.endswith(b"\n"):
                    return
                origin = f"{path}, line {number}"
                yield origin, dict(fields.record(fields.parse(text, origin), origin, "row").values)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error


def read_jsonl(path: Path) -> Iterator[dict[str, JSON]]:
    """The objects of `read_rows`, without where they stand."""
    return (row for _, row in read_rows(path))


def line(row: Mapping[str, JSON]) -> bytes:
    """A row as one line of a JSON-lines file. Raises: ValueError: it holds a number that JSON lacks (NaN, infinity)."""
    return (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n").encode(errors="replace")


def append_jsonl(path: Path, rows: Iterable[Mapping[str, JSON]]) -> None:
    """Adds rows; each line is written whole. A line that a killed writer left unfinished is removed first.

    Raises:
      ValueError: a row holds a number that JSON lacks; the rows before it are written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as f:
        if size := f.tell():
            f.seek(size - 1)
            if f.read(1) != b"\n":
                f.seek(0)
                f.truncate(f.read().rfind(b"\n") + 1)
        f.writelines(map(line, rows))


def read_trajectories(path: Path) -> list[Trajectory]:
    """All trajectories of one of our files.

    Raises:
      UserError: a line is no trajectory record.
    """
    return [trajectory_from_json(row, origin) for origin, row in read_rows(path)]


def read_trees(folder: Path) -> list[SearchTree]:
    """All trees of a folder of `*.jsonl` files, by file name.

    Raises:
      UserError: the folder holds none, or a line is no tree record.
    """
    files = sorted(folder.glob("*.jsonl")) if folder.is_dir() else []
    trees = [tree_from_json(row, origin) for file in files for origin, row in read_rows(file)]
    if not trees:
        raise UserError(f"no search trees in {folder}; make some with: python search.py --config=configs/mcts.py")
    return trees


def task_key(value: JSON, origin: str = "a record") -> str:
    """`Task.key` of a trajectory or tree record, of which nothing else is read.

    Raises:
      UserError: it names no task.
    """
    task = fields.inner(fields.record(value, origin, "record"), "task")
    return f"{fields.text(task, 'env', verbatim=True)}/{fields.text(task, 'id', verbatim=True)}"


def _task_to_json(task: Task) -> dict[str, JSON]:
    return {"env": task.env, "id": task.id, "split": task.split, "max_steps": task.max_steps, "args": dict(task.args)}


def _action_to_json(action: Action) -> dict[str, JSON]:
    row: dict[str, JSON] = {"text": action.text}
    if action.tokens:
        row["tokens"] = list(action.tokens)
    if math.isfinite(action.logprob):
        row["logprob"] = action.logprob
    if action.finish != "stop":
        row["finish"] = action.finish
    return row


def _outcome_to_json(o: Outcome) -> dict[str, JSON]:
    row: dict[str, JSON] = {"observation": o.observation, "reward": o.reward, "progress": o.progress, "done": o.done}
    return row | {"success": o.success, "valid": o.valid, "parsed": o.parsed}


# --- Reading ---------------------------------------------------------------------------------------------------------


def _record(value: JSON, origin: str, kind: str) -> Fields:
    row = fields.record(value, origin, f"{kind} record")
    fields.choice(row, "kind", [kind])
    if (version := fields.whole(row, "schema_version", default=VERSION)) != VERSION:
        raise UserError(f"{origin}: a {kind} record of schema_version {version}; this program reads version {VERSION}")
    return row


def _task(row: Fields) -> Task:
    task = fields.inner(row, "task")
    return Task(
        fields.text(task, "env", verbatim=True),
        fields.text(task, "id", verbatim=True),
        fields.text(task, "split", verbatim=True),
        fields.whole(task, "max_steps", 1),
        fields.anything(task, "args", default={}),
    )


def _meta(row: Fields) -> dict[str, JSON]:
    """Anything, except for the scores that a search writes: numbers, or null where one is missing."""
    meta = fields.anything(row, "meta", default={})
    inner = Fields(meta, row.origin, row.kind, "meta.")
    scores = fields.items(inner, "step_scores", default=()) if meta.get("step_scores") is not None else ()
    for name, score in [("score", meta.get("score")), *((f"step_scores[{i}]", s) for i, s in enumerate(scores))]:
        if score is not None:
            fields.number(dataclasses.replace(inner, values={name: score}), name)
    return meta


def _action(row: Fields) -> Action:
    tokens = tuple(fields.items(row, "tokens", default=()))
    if not all(type(t) is int and 0 <= t < 2**31 for t in tokens):
        raise row.error("tokens", "token ids, whole numbers from 0 on")
    logprob = fields.number(row, "logprob") if "logprob" in row.values else math.nan
    finish = fields.choice(row, "finish", ["stop", "length", "error"], default="stop")
    words = fields.text(row, "text", verbatim=True)  # as it was sampled: it has to equal its token ids
    return Action(words, tokens, logprob, cast(Literal["stop", "length", "error"], finish))


def _outcome(row: Fields) -> Outcome:
    return Outcome(
        observation=fields.text(row, "observation"),
        reward=fields.number(row, "reward", 0, 1),
        progress=fields.number(row, "progress", 0, 1),
        done=fields.flag(row, "done"),
        success=fields.flag(row, "success"),
        valid=fields.flag(row, "valid"),
        parsed=None if row.values.get("parsed") is None else fields.text(row, "parsed", verbatim=True),
    )


def _node(row: Fields, index: int) -> TreeNode:
    fields.whole(row, "id", index, index)
    if not index and "action" in row.values:
        raise row.error("action", "none at the root")
    node = TreeNode(
        parent=fields.whole(row, "parent", 0 if index else -1, index - 1),
        action=_action(fields.inner(row, "action")) if index else None,
        outcome=_outcome(row),
        visits=fields.whole(row, "N", 0),
        return_sum=fields.number(row, "sumG"),
        return_sq_sum=fields.number(row, "sumG2"),
        return_min=fields.number(row, "minG", 0, 1),
        return_max=fields.number(row, "maxG", 0, 1),
        multiplicity=fields.whole(row, "multiplicity", 1),
        expanded=fields.flag(row, "expanded"),
        closed=fields.flag(row, "closed"),
    )
    _check_returns(row, node)
    return node


def _check_returns(row: Fields, node: TreeNode) -> None:
    """Whether the statistics are those of N returns, as far as sums and extremes can tell."""
    n, low, high = node.visits, node.return_min, node.return_max
    if low > high or (n == 0 and high > 0):
        raise row.error("maxG", "the greatest of N returns: at least minG, and 0 if N is 0")
    slack = _ROUNDING * max(n, 1)
    for name, total, power in (("sumG", node.return_sum, 1), ("sumG2", node.return_sq_sum, 2)):
        if not n * low**power - slack <= total <= n * high**power + slack:
            what = "the sum" if power == 1 else "the sum of the squares"
            raise row.error(name, f"{what} of {n} returns from {low:g} to {high:g}")


def _check_visits(row: Fields, nodes: tuple[TreeNode, ...]) -> None:
    """The returns below a node are its own too."""
    below = [0] * len(nodes)
    for node in nodes[1:]:
        below[node.parent] += node.visits
    for i, node in enumerate(nodes):
        if node.visits < below[i]:
            raise UserError(f"{row.origin}: nodes[{i}].N is {node.visits}, but its children's add up to {below[i]}")
