"""Sampled trajectories of a task as one search tree: what they have in common is there once."""

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path

from agentrm_jax.data import formats
from agentrm_jax.types import Action, Outcome, SearchTree, Trajectory, TreeNode, UserError


def sample_trees(trajectories: Iterable[Trajectory], *, outcome: str = "reward") -> list[SearchTree]:
    """A tree for every task, in the order in which tasks come first; trajectories that did not end are left out.

    Nodes are shared as long as turns (their tokens too) and the answers to them are the same. `visits` and `multiplicity` count the
    trajectories through a node, and the statistics are of their returns: `outcome` names the field of the last `Outcome` that is
    one. Episodes of one task that began differently have trees of their own.
    """
    groups: dict[tuple[str, str, str], list[Trajectory]] = {}
    for t in trajectories:
        if t.steps and t.last.done:
            groups.setdefault((t.task.key, t.goal, t.observation), []).append(t)
    return [_tree(group, outcome) for group in groups.values()]


def read_samples(place: Path, *, outcome: str = "reward") -> list[SearchTree]:
    """`sample_trees` of a file of our trajectories, or of a search's workdir.

    Raises:
      UserError: it holds none, or a line is no trajectory record.
    """
    path = place if place.is_file() else place / "trajectories.jsonl"
    if not path.exists():
        raise UserError(f"{place} holds no trajectories; make some with: python search.py --config=configs/sample.py")
    return sample_trees(formats.read_trajectories(path), outcome=outcome)


def _tree(trajectories: Sequence[Trajectory], outcome: str) -> SearchTree:
    first = trajectories[0]
    nodes = [_new(-1, None, Outcome(first.observation))]
    children: dict[tuple[int, str, tuple[int, ...], Outcome], int] = {}
    for t in trajectories:
        value = float(getattr(t.last, outcome))
        at = 0
        nodes[at] = _returned(nodes[at], value)
        for step in t.steps:
            key = (at, step.action.text, step.action.tokens, step.outcome)
            if key not in children:
                children[key] = len(nodes)
                nodes.append(_new(at, step.action, step.outcome))
            at = children[key]
            nodes[at] = _returned(nodes[at], value)
    return SearchTree(first.task, first.goal, tuple(nodes), {"samples": len(trajectories)})


def _new(parent: int, action: Action | None, outcome: Outcome) -> TreeNode:
    return TreeNode(parent, action, outcome, 0, 0.0, 0.0, 0.0, 0.0)


def _returned(node: TreeNode, value: float) -> TreeNode:
    """The node with one more return."""
    return dataclasses.replace(
        node,
        visits=node.visits + 1,
        multiplicity=node.visits + 1,
        return_sum=node.return_sum + value,
        return_sq_sum=node.return_sq_sum + value * value,
        return_min=min(node.return_min, value) if node.visits else value,
        return_max=max(node.return_max, value) if node.visits else value,
    )
