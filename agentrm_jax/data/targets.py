"""Turns records into token trees that say what training wants of every node."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Literal, get_args

from agentrm_jax.prompts import Encoder
from agentrm_jax.tree import Node, Segment, merge_paths
from agentrm_jax.types import SearchTree, Trajectory, TreeNode, UserError

Target = Literal["mean", "max"]
OUTCOMES = ("reward", "progress", "success")


def imitation_trees(
    encoder: Encoder, trajectories: Sequence[Trajectory], max_tokens: int, *, context_weight: float = 0.0
) -> tuple[list[list[Node]], int]:
    """Trajectories to imitate: a tree for every task, whose actions are learned with the number of trajectories as weight.

    Trajectories of one task share their beginning as far as it is the same, so it is read once. With `context_weight` above 0
    the rest (prompt and observations) is learned too, with that weight: a model that starts from nothing has no other way to
    learn to read. Models that were pretrained want 0 (paper eq. 1).

    Returns: the trees, and how many trajectories were left out because they have more than `max_tokens` tokens.
    """
    paths: dict[str, list[list[Segment]]] = {}
    left_out = 0
    for trajectory in trajectories:
        segments = encoder.trajectory(trajectory)
        if sum(len(s.tokens) for s in segments) > max_tokens:
            left_out += 1
        else:
            paths.setdefault(trajectory.task.key, []).append(segments)
    trees = [merge_paths(of_task) for of_task in paths.values()]
    return [[_with_context(n, context_weight) for n in nodes] for nodes in trees], left_out


def _with_context(node: Node, weight: float) -> Node:
    """A node that is learned with this weight if it is no action."""
    if node.segment.loss or not weight:
        return node
    learned = dataclasses.replace(node.segment, loss=True)
    return dataclasses.replace(node, segment=learned, weight=node.weight * weight)


def value_tree(
    encoder: Encoder, tree: SearchTree, *, min_visits: int = 3, target: Target = "mean", outcome: str = "reward"
) -> list[Node]:
    """A search tree with its step values (paper 3.2.1, with the repairs of algorithms 2.0).

    A state is a target if its value rests on at least `min_visits` returns (lambda in the paper), or if the episode ended
    there: then the target is its true outcome. A state that only a cached rollout passed rests on one, that rollout's, just as
    a new child rests on its own: with a bar of 1 both are targets. States that lead to no target are left out. Each target
    weighs the same. A node's `origin` is the search tree's node whose action it holds.

    Args:
      target: `mean` of the returns below a state (the paper's V), or their `max` (the best that was reached).
      outcome: field of `Outcome` that is the return of an ended episode.
    """
    if target not in get_args(Target) or outcome not in OUTCOMES:
        raise UserError(f"target={target!r} must be mean or max, and outcome={outcome!r} one of {', '.join(OUTCOMES)}")
    ends = _rollout_ends(tree.nodes)
    wanted = [_target(n, end, min_visits, target, outcome) for n, end in zip(tree.nodes, ends, strict=True)]
    needed = [w is not None for w in wanted]
    for i in range(len(tree.nodes) - 1, 0, -1):
        if needed[i] and (p := tree.nodes[i].parent) >= 0:
            needed[p] = True
    root = tree.nodes[0].outcome
    nodes = [Node(encoder.prompt(tree.task, tree.goal, root.observation), -1, weight=0.0)]
    history = {0: 0}  # tree node -> index of the segment that its children follow
    turn_of: dict[int, int] = {}  # tree node -> index of its action's segment
    for i, n in enumerate(tree.nodes[1:], 1):
        if not needed[i]:
            continue
        assert n.action is not None
        if n.parent not in history:
            before = tree.nodes[n.parent]
            observation = encoder.chat.observation(before.outcome.observation)
            history[n.parent] = len(nodes)
            nodes.append(Node(observation, turn_of[n.parent], weight=0.0))
        turn_of[i] = len(nodes)
        node = Node(encoder.action(n.action), history[n.parent], weight=0.0, origin=i)
        if (value := wanted[i]) is not None:
            node = dataclasses.replace(node, value=value, value_weight=1.0)
        nodes.append(node)
    return nodes


def _rollout_ends(nodes: Sequence[TreeNode]) -> list[TreeNode]:
    """The last state of the cached rollout that passed each state (of those with visits: the state itself)."""
    ends = list(nodes)
    for i in range(len(nodes) - 1, 0, -1):  # children come after their parents
        parent = nodes[i].parent
        if parent >= 0 and not nodes[parent].visits:
            ends[parent] = ends[i]
    return ends


def _target(node: TreeNode, end: TreeNode, min_visits: int, target: Target, outcome: str) -> float | None:
    """The value that a state should have; None if too few returns say what it is."""
    if node.action is None:
        return None
    if node.outcome.done:
        return float(getattr(node.outcome, outcome))
    if not node.visits:
        return float(getattr(end.outcome, outcome)) if min_visits <= 1 and end.outcome.done else None
    if node.visits < min_visits:
        return None
    return node.value if target == "mean" else node.return_max


def target_histogram(trees: Iterable[list[Node]], bins: int = 10) -> list[int]:
    """Counts the value targets in equal bins of [0, 1]; those outside count in the first or last bin."""
    counts = [0] * bins
    for tree in trees:
        for node in tree:
            if node.value_weight > 0:
                counts[max(min(int(node.value * bins), bins - 1), 0)] += 1
    return counts
