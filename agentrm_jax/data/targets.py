"""From records to token trees with what training wants of every node."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Literal, get_args

from agentrm_jax.prompts import Encoder
from agentrm_jax.tree import Node, path_tree
from agentrm_jax.types import SearchTree, Trajectory, TreeNode, UserError

Target = Literal["mean", "max"]
OUTCOMES = ("reward", "progress", "success")


def imitation_tree(encoder: Encoder, trajectory: Trajectory, *, context_weight: float = 0.0) -> list[Node]:
    """A trajectory to imitate: a path whose actions are learned with weight 1.

    With `context_weight` above 0 the rest (prompt and observations) is learned too, with that weight: a model that starts from
    nothing has no other way to learn to read. Models that were pretrained want 0 (paper eq. 1).
    """
    nodes = path_tree(encoder.trajectory(trajectory))
    if not context_weight:
        return nodes
    return [
        n
        if n.segment.loss
        else dataclasses.replace(n, segment=dataclasses.replace(n.segment, loss=True), weight=context_weight)
        for n in nodes
    ]


def value_tree(
    encoder: Encoder, tree: SearchTree, *, min_visits: int = 3, target: Target = "mean", outcome: str = "reward"
) -> list[Node]:
    """A search tree with its step values (paper 3.2.1, with the repairs of algorithms 2.0).

    A state is a target if its value rests on at least `min_visits` returns (lambda in the paper), or if the episode ended
    there: then the target is its true outcome. A state that only a cached rollout passed rests on one, that rollout's, just as
    a new child rests on its own: with a bar of 1 both are targets. States that lead to no target are left out. Each target
    weighs the same.

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
        node = Node(encoder.action(n.action), history[n.parent], weight=0.0)
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
    """How many value targets fall into equal bins of [0, 1]: a look at the balance of the data."""
    counts = [0] * bins
    for tree in trees:
        for node in tree:
            if node.value_weight > 0:
                counts[min(int(node.value * bins), bins - 1)] += 1
    return counts
