"""Trajectories and search trees as the JSON that the report's viewers read, cut to a sane size."""

import json
import math
import re
from collections.abc import Sequence

from agentrm_jax.types import JSON, Action, SearchTree, Trajectory, TreeNode

_TEXT = 6000  # characters of one observation or turn
_NODES = 3000  # of one tree
_ACTION = re.compile(r"^[ \t]*Action[ \t]*:[ \t]*", re.IGNORECASE | re.MULTILINE)
_THOUGHT = re.compile(r"^\s*Thought[ \t]*:\s*", re.IGNORECASE)
_SHOWN = ("step_scores", "score", "method", "sample", "chosen", "failed")


def trajectories_data(trajectories: Sequence[Trajectory], limit: int, max_bytes: int) -> JSON:
    """`{"items": [...], "left_out": n}`; tasks are taken in turns from all environments, all samples of a task together."""
    by_task: dict[str, dict[str, list[Trajectory]]] = {}
    for t in trajectories:
        by_task.setdefault(t.task.env, {}).setdefault(t.task.key, []).append(t)
    groups = [list(tasks.values()) for tasks in by_task.values()]
    turns = [tasks[i] for i in range(max(map(len, groups), default=0)) for tasks in groups if i < len(tasks)]
    items: list[JSON] = []
    size = 0
    for t in (t for group in turns for t in group):
        item = _trajectory(t)
        size += len(json.dumps(item))
        if len(items) == limit or size > max_bytes:
            break
        items.append(item)
    return {"items": items, "left_out": len(trajectories) - len(items)}


def _trajectory(t: Trajectory) -> JSON:
    values = t.meta.get("step_scores") or []
    return {
        "task": t.task.key,
        "env": t.task.env,
        "goal": _clip(t.goal),
        "observation": _clip(t.observation),
        "reward": t.last.reward,
        "progress": t.last.progress,
        "success": t.last.success,
        "done": t.last.done,
        **{key: t.meta[key] for key in _SHOWN[1:] if t.meta.get(key) is not None},
        "meta": {str(key): value for key, value in t.meta.items() if key not in _SHOWN},
        "steps": [
            {
                **_turn(step.action),
                "observation": _clip(step.outcome.observation),
                "reward": step.outcome.reward,
                "progress": step.outcome.progress,
                "valid": step.outcome.valid,
                "parsed": step.outcome.parsed,
                "value": values[i] if i < len(values) else None,
            }
            for i, step in enumerate(t.steps)
        ],
    }


def trees_data(trees: Sequence[SearchTree], limit: int, max_bytes: int) -> JSON:
    """`{"items": [...], "left_out": n}` of the first trees that fit."""
    items: list[JSON] = []
    size = 0
    for tree in trees[:limit]:
        item = _tree(tree)
        size += len(json.dumps(item))
        if size > max_bytes:
            break
        items.append(item)
    return {"items": items, "left_out": len(trees) - len(items)}


def _tree(tree: SearchTree) -> JSON:
    kept = _kept_nodes(tree.nodes)
    place = {old: new for new, old in enumerate(kept)} | {-1: -1}
    return {
        "task": tree.task.key,
        "goal": _clip(tree.goal),
        "meta": {str(key): value for key, value in tree.meta.items()},
        "left_out": len(tree.nodes) - len(kept),
        "nodes": [_node(tree.nodes[old], place[tree.nodes[old].parent]) for old in kept],
    }


def _kept_nodes(nodes: Sequence[TreeNode]) -> list[int]:
    """Indices of the most visited nodes, in order; every one's parent is among them."""
    if len(nodes) <= _NODES:
        return list(range(len(nodes)))
    # A parent is visited at least as often as its children and precedes them, so it also ranks before them.
    ranked = set(sorted(range(len(nodes)), key=lambda i: (-nodes[i].visits, i))[:_NODES])
    kept: set[int] = set()
    for i in range(len(nodes)):
        if i in ranked and (nodes[i].parent < 0 or nodes[i].parent in kept):
            kept.add(i)
    return sorted(kept)


def _node(node: TreeNode, parent: int) -> JSON:
    spread = node.return_sq_sum / node.visits - node.value**2 if node.visits else 0.0
    return {
        "parent": parent,
        **(_turn(node.action) if node.action is not None else {"action": ""}),
        "parsed": node.outcome.parsed,
        "observation": _clip(node.outcome.observation),
        "visits": node.visits,
        "value": round(node.value, 6),
        "std": round(math.sqrt(max(spread, 0.0)), 6),
        "min": node.return_min,
        "max": node.return_max,
        "copies": node.multiplicity,
        "expanded": node.expanded,
        "closed": node.closed,
        "done": node.outcome.done,
        "success": node.outcome.success,
        "valid": node.outcome.valid,
        "reward": node.outcome.reward,
        "progress": node.outcome.progress,
    }


def _turn(action: Action) -> dict[str, JSON]:
    """Thought and action of a turn; a turn without an action line is all action."""
    marks = list(_ACTION.finditer(action.text))
    if not marks:
        return {"thought": "", "action": _clip(action.text.strip())}
    thought = _THOUGHT.sub("", action.text[: marks[-1].start()]).strip()
    return {"thought": _clip(thought), "action": _clip(action.text[marks[-1].end() :].strip())}


def _clip(text: str) -> str:
    if len(text) <= _TEXT:
        return text
    return f"{text[:_TEXT]}\n[{len(text) - _TEXT} more characters are not in this report]"
