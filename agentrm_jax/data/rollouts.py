"""Sampled trajectories as search trees, so that step values are learned from plain rollouts as from an exploration."""

from collections.abc import Sequence

from agentrm_jax.types import Action, Outcome, SearchTree, Trajectory, TreeNode


def rollout_trees(trajectories: Sequence[Trajectory], outcome: str = "reward") -> list[SearchTree]:
    """A tree for every task: trajectories share their beginning as long as turns and answers are the same.

    A node's returns are the outcomes of the trajectories through it, its multiplicity their number, so that its value is their
    mean. A trajectory that was cut short before its episode ended has no return; its states are left out.

    Args:
      outcome: field of `Outcome` that is the return of an ended episode.
    """
    by_task: dict[str, list[Trajectory]] = {}
    for trajectory in trajectories:
        if trajectory.last.done:
            by_task.setdefault(trajectory.task.key, []).append(trajectory)
    return [_tree(of_task, outcome) for of_task in by_task.values()]


def _tree(trajectories: Sequence[Trajectory], outcome: str) -> SearchTree:
    first = trajectories[0]
    paths: list[tuple[int, Action | None, Outcome]] = [(-1, None, Outcome(first.observation))]
    index: dict[tuple[int, str, Outcome], int] = {}
    returns: list[list[float]] = [[]]
    for trajectory in trajectories:
        gained = float(getattr(trajectory.last, outcome))
        at = 0
        returns[0].append(gained)
        for step in trajectory.steps:
            key = (at, step.action.text, step.outcome)
            if key not in index:
                index[key] = len(paths)
                paths.append((at, step.action, step.outcome))
                returns.append([])
            at = index[key]
            returns[at].append(gained)
    nodes = tuple(
        TreeNode(
            parent,
            action,
            answer,
            visits=len(found),
            return_sum=sum(found),
            return_sq_sum=sum(g * g for g in found),
            return_min=min(found),
            return_max=max(found),
            multiplicity=len(found),
        )
        for (parent, action, answer), found in zip(paths, returns, strict=True)
    )
    return SearchTree(first.task, first.goal, nodes, {"rollouts": len(trajectories)})
