"""Turns records into token trees that say what training wants of every node."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, get_args

from agentrm_jax.prompts import Encoder
from agentrm_jax.tree import Node, Segment, merge_paths
from agentrm_jax.types import SearchTree, Trajectory, TreeNode, UserError

Target = Literal["mean", "max", "soft", "hard", "distance"]
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
    return [[with_context(n, context_weight) for n in nodes] for nodes in trees], left_out


def with_context(node: Node, weight: float) -> Node:
    """A node that is learned with this weight if it is no action."""
    if node.segment.loss or not weight:
        return node
    learned = dataclasses.replace(node.segment, loss=True)
    return dataclasses.replace(node, segment=learned, weight=node.weight * weight)


def value_tree(
    encoder: Encoder,
    tree: SearchTree,
    *,
    min_visits: int = 3,
    target: Target = "mean",
    outcome: str = "reward",
    weight_visits: float = 0.0,
) -> list[Node]:
    """A search tree with its step values (paper 3.2.1, with the repairs of algorithms 2.0).

    A state is a target if its value rests on at least `min_visits` returns (lambda in the paper), or if the episode ended
    there: then the target is its true outcome. A state that only a cached rollout passed rests on one, that rollout's, just as
    a new child rests on its own: with a bar of 1 both are targets. States that lead to no target are left out. Actions that
    were tried in one state are one group of nodes. A node's `origin` is the search tree's node whose action it holds, its
    `count` how often that action was proposed.

    Args:
      target: `mean` of the returns below a state (the paper's V), or their `max` (the best that was reached); `soft`, the mean of
        its own rollouts alone, which a search's preference for some children does not bend (IPR, arXiv 2406.11176); `hard`, 1 if
        an episode at or below it succeeded, else 0 (Math-Shepherd's hard estimate); `distance`, ReST-MCTS's value by the steps to
        the nearest success (`_distances`).
      outcome: field of `Outcome` that is the return of an ended episode.
      weight_visits: kappa; a state of N returns weighs N / (N + kappa), one that ended an episode 1. With 0 all weigh the same.
    """
    if target not in get_args(Target) or outcome not in OUTCOMES:
        *others, last = get_args(Target)
        raise UserError(
            f"target={target!r} must be {', '.join(others)} or {last}, and outcome={outcome!r} one of {', '.join(OUTCOMES)}"
        )
    wanted = _targets(tree.nodes, min_visits, target, outcome)
    needed = [w is not None for w in wanted]
    for i in range(len(tree.nodes) - 1, 0, -1):
        if needed[i] and (p := tree.nodes[i].parent) >= 0:
            needed[p] = True
    root = tree.nodes[0].outcome
    nodes = [Node(encoder.prompt(tree.task, tree.goal, root.observation), -1, weight=0.0)]
    history = {0: 0}  # tree node -> index of the segment that its children follow
    turn_of: dict[int, int] = {}  # tree node -> index of its action's segment

    def observe(i: int) -> int:
        """Where what was observed at a tree node is; it is put there if it is not."""
        if i not in history:
            history[i] = len(nodes)
            nodes.append(Node(encoder.observation(tree.nodes[i].outcome.observation), turn_of[i], weight=0.0))
        return history[i]

    for i, n in enumerate(tree.nodes[1:], 1):
        if not needed[i]:
            continue
        assert n.action is not None
        before = observe(n.parent)
        turn_of[i] = len(nodes)
        nodes.append(Node(encoder.action(n.action), before, weight=0.0, origin=i))
        if (value := wanted[i]) is not None:
            at = observe(i) if encoder.state == "last_observation" else turn_of[i]
            sure = 1.0 if n.outcome.done or not weight_visits else max(n.visits, 1) / (max(n.visits, 1) + weight_visits)
            nodes[at] = dataclasses.replace(
                nodes[at], value=value, value_weight=sure, origin=i, group=n.parent, count=float(n.multiplicity)
            )
    return nodes


def _targets(nodes: Sequence[TreeNode], min_visits: int, target: Target, outcome: str) -> list[float | None]:
    """The value that every state should have; None if too few returns say what it is."""
    if target == "distance":
        return [
            d if n.outcome.done or n.visits >= min_visits else None
            for n, d in zip(nodes, _distances(nodes), strict=True)
        ]
    ends = _rollout_ends(nodes)
    value = {"mean": lambda i: nodes[i].value, "max": lambda i: nodes[i].return_max}
    if target == "hard":
        won = _below(nodes, lambda n: n.outcome.done and n.outcome.success)
        value["hard"] = lambda i: float(won[i])
    if target == "soft":
        own = _own_means(nodes)
        value["soft"] = own.get  # type: ignore[assignment]

    def one(i: int, n: TreeNode) -> float | None:
        if n.action is None:
            return None
        if n.outcome.done:
            return float(n.outcome.success if target == "hard" else getattr(n.outcome, outcome))
        if not n.visits:
            end = ends[i].outcome
            known = min_visits <= 1 and end.done
            return float(end.success if target == "hard" else getattr(end, outcome)) if known else None
        return value[target](i) if n.visits >= min_visits else None

    return [one(i, n) for i, n in enumerate(nodes)]


def _rollout_ends(nodes: Sequence[TreeNode]) -> list[TreeNode]:
    """The last state of the cached rollout that passed each state (of those with visits: the state itself)."""
    ends = list(nodes)
    for i in range(len(nodes) - 1, 0, -1):  # children come after their parents
        parent = nodes[i].parent
        if parent >= 0 and not nodes[parent].visits:
            ends[parent] = ends[i]
    return ends


def _below(nodes: Sequence[TreeNode], holds: Callable[[TreeNode], bool]) -> list[bool]:
    """Whether something holds of each node or of one below it."""
    found = [holds(n) for n in nodes]
    for i in range(len(nodes) - 1, 0, -1):
        found[nodes[i].parent] |= found[i]
    return found


def _own_means(nodes: Sequence[TreeNode]) -> dict[int, float]:
    """The mean return of the simulations that began in a state: what is left of its returns without its children's."""
    counts, sums = [n.visits for n in nodes], [n.return_sum for n in nodes]
    for n in nodes[1:]:
        counts[n.parent] -= n.visits
        sums[n.parent] -= n.return_sum
    return {i: sums[i] / counts[i] for i in range(len(nodes)) if counts[i] > 0}


def _distances(nodes: Sequence[TreeNode]) -> list[float | None]:
    """ReST-MCTS's process reward of every state (arXiv 2406.03816, algorithms 3), in [0, 1]; None where there is none.

    From v = 0 at the root, a step moves v by (1 - v) / m towards 1 if a success lies at or below it, else away from it, not below
    0. m counts the states from the step to the nearest success, both included; on a branch without success it is that of the
    nearest ancestor that has one. States that lead to no end of an episode have no value; nor has any in a tree without success.
    """
    steps: list[float] = [1.0 if n.outcome.done and n.outcome.success else math.inf for n in nodes]
    ended = _below(nodes, lambda n: n.outcome.done)
    for i in range(len(nodes) - 1, 0, -1):
        steps[nodes[i].parent] = min(steps[nodes[i].parent], steps[i] + 1)
    if math.isinf(steps[0]):
        return [None] * len(nodes)
    values, nearest = [0.0] * len(nodes), list(steps)
    for i, n in enumerate(nodes[1:], 1):
        wins = math.isfinite(steps[i])
        nearest[i] = steps[i] if wins else nearest[n.parent]
        before = values[n.parent]
        values[i] = max(0.0, before + (1 - before) / nearest[i] * (1 if wins else -1))
    return [v if i and ended[i] else None for i, v in enumerate(values)]


def together(nodes: Sequence[Node]) -> list[Node]:
    """A value tree in which the actions of every group come one after another, for losses that compare them when it is cut.

    Where actions of a group have states below them, the whole group comes first as leaves that hold the values; the
    actions are repeated, without value, where they lead on. Groups whose values are not read at actions stay as they are.
    """
    children: dict[int, list[int]] = {}
    for i, n in enumerate(nodes):
        children.setdefault(n.parent, []).append(i)
    out: list[Node] = []
    silent: set[int] = set()
    stack = [(i, -1) for i in reversed(children.get(-1, []))]
    while stack:
        i, parent = stack.pop()
        at = len(out)
        value_weight = 0.0 if i in silent else nodes[i].value_weight
        out.append(dataclasses.replace(nodes[i], parent=parent, value_weight=value_weight))
        below = children.get(i, [])
        valued = [c for c in below if nodes[c].value_weight > 0 and nodes[c].segment.kind == "action"]
        apart = [c for c in valued if children.get(c)] if len(valued) > 1 else []
        if apart:
            out += [dataclasses.replace(nodes[c], parent=at) for c in valued]
            below = [c for c in below if c not in valued or c in apart]
            silent |= set(apart)
        stack += [(c, at) for c in reversed(below)]
    return out


def ordered_pairs(nodes: Iterable[Node]) -> int:
    """Pairs of a group whose values differ."""
    groups: dict[int, list[float]] = {}
    for node in nodes:
        if node.value_weight > 0 and node.group >= 0:
            groups.setdefault(node.group, []).append(node.value)
    return sum(a != b for values in groups.values() for a, b in itertools.combinations(values, 2))


def target_histogram(trees: Iterable[list[Node]], bins: int = 10) -> list[int]:
    """Counts the value targets in equal bins of [0, 1]; those outside count in the first or last bin."""
    counts = [0] * bins
    for tree in trees:
        for node in tree:
            if node.value_weight > 0:
                counts[max(min(int(node.value * bins), bins - 1), 0)] += 1
    return counts
