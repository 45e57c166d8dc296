"""Datasets of token trees for training: expert trajectories to imitate, and search trees with their step values.

A dataset is made once and kept in the workdir's folder `data`.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from agentrm_jax import tree
from agentrm_jax.data import datasets, formats, heldout, samples, targets, weights
from agentrm_jax.envs.spec import EnvSpec
from agentrm_jax.prompts import Encoder, opening
from agentrm_jax.types import SearchTree, Trajectory, UserError


def imitation(
    trajectories: Sequence[Trajectory], encoder: Encoder, folder: Path, *, row_length: int, context_weight: float
) -> Any:
    """The dataset of expert trajectories to imitate; those longer than a row are left out, and counted.

    Trajectories of one task share what they have in common.

    Raises:
      UserError: none fits a row.
    """
    forests, left_out = targets.imitation_trees(encoder, trajectories, row_length, context_weight=context_weight)
    flat = [tree.flatten(part) for forest in forests for part in tree.split(forest, row_length)]
    if not flat:
        raise UserError(f"no trajectory fits a row of {row_length} tokens; raise --config.row_length")
    _report(flat, left_out)
    datasets.write_dataset(folder, flat, meta={"trajectories": len(trajectories) - left_out})
    return datasets.read_dataset(folder)


HOW = (
    "row_length",
    "min_visits",
    "target",
    "outcome",
    "weight_visits",
    "balance_values",
    "balance_tasks",
)  # config keys


def explored(workdir: Path, outcome: str) -> list[SearchTree]:
    """What a search workdir holds to learn step values from: the trees of an exploration, or its sampled trajectories as trees.

    Raises:
      UserError: it holds neither, or a record cannot be read.
    """
    sampled = workdir / "trajectories.jsonl"
    if not (workdir / "trees").is_dir() and sampled.exists():
        return samples.read_samples(workdir, outcome=outcome)
    return formats.read_trees(workdir / "trees")


def step_values(
    trees: Sequence[SearchTree],
    encoder: Encoder,
    folder: Path,
    *,
    row_length: int,
    min_visits: int,
    target: targets.Target,
    outcome: str,
    weight_visits: float = 0.0,
    balance_values: bool = False,
    balance_tasks: bool = False,
    heldout_fraction: float = 0.0,
    compared: bool = False,
) -> Any:
    """The dataset of search trees with a value target at every state that has earned one (`targets.value_tree`).

    The trees of `heldout_fraction` of the tasks are kept apart, to be read with `heldout.read`. Weights of states are those of
    `targets.value_tree` and `weights.balanced`.

    Args:
      compared: the loss compares siblings: they stay in one row where a tree is cut (`targets.together`).

    Raises:
      UserError: no state of a tree to train on has earned one, or none fits a row; or no two siblings differ.
    """
    if not trees:
        raise UserError("there are no search trees to learn from; finish the search that --config.trees names")
    chosen, kept_out = heldout.choose(trees, heldout_fraction)
    lost = 0

    def pieces(of: Sequence[SearchTree], compared: bool) -> Iterator[tuple[SearchTree, list[tree.Node]]]:
        """The trees with their targets, cut to rows; pieces without a target are left out."""
        nonlocal lost
        value_tree = functools.partial(
            targets.value_tree, min_visits=min_visits, target=target, outcome=outcome, weight_visits=weight_visits
        )
        for one in of:
            nodes = value_tree(encoder, one)
            if compared and sum(len(n.segment.tokens) for n in nodes) > row_length:
                nodes = targets.together(nodes)
            lost += sum(targets.target_histogram([nodes]))
            for part in tree.split(nodes, row_length):
                if count := sum(targets.target_histogram([part])):
                    lost -= count
                    yield one, part

    cut = [(one.task.key, part) for one, part in pieces(chosen, compared)]
    parts = weights.balanced(cut, values=balance_values, tasks=balance_tasks)
    held = heldout.collect(pieces(kept_out, False), row_length)
    histogram = targets.target_histogram(parts)
    print(f"{len(chosen)} trees, {sum(histogram)} target states; by value in tenths: {histogram}")
    if held is not None:
        print(f"held out to measure: {len(held.target)} target states of {len(kept_out)} trees")
        heldout.write(folder, held)
    if not parts and not lost:
        raise UserError(
            f"no state of {len(chosen)} trees has a target: none ended an episode or rests on --config.min_visits={min_visits} "
            "returns; lower it, or search with more --config.search.iterations"
        )
    if not parts:
        fewer = f", or lower --config.min_visits={min_visits}, for states nearer to the root" if min_visits > 1 else ""
        raise UserError(f"no state with a target fits a row of {row_length} tokens; raise --config.row_length{fewer}")
    if lost:
        print(f"{lost} states lie deeper than {row_length} tokens and are left out; --config.row_length raises it")
    if compared and not (pairs := sum(map(targets.ordered_pairs, parts))):
        raise UserError(
            "no two actions that were tried in one state differ in value: there is nothing to compare; search more"
        )
    if compared:
        print(f"{pairs} pairs of siblings that differ in value")
    flat = [tree.flatten(part) for part in parts]
    _report(flat, 0)
    datasets.write_dataset(folder, flat, meta={"states": sum(histogram)}, tasks=[key for key, _ in cut])
    return datasets.read_dataset(folder)


def texts(trajectories: Sequence[Trajectory], specs: Mapping[str, EnvSpec]) -> list[str]:
    """All texts that a policy or a reward model will read of these trajectories, to train a tokenizer on."""
    found = []
    for t in trajectories:
        for reader in ("policy", "reward"):
            found += [m.content for m in opening(specs[t.task.env].texts(t.task), t.goal, t.observation, reader=reader)]
        found += [s.action.text for s in t.steps] + [s.outcome.observation for s in t.steps]
    return found


def _report(flat: list[tree.FlatTree], skipped: int) -> None:
    sizes = sorted(len(f) for f in flat)
    print(
        f"{len(flat)} token trees, {sum(sizes)} tokens, median {sizes[len(sizes) // 2]}, longest {sizes[-1]}"
        + (f"; {skipped} longer than a row were left out" if skipped else "")
    )
