"""Datasets of token trees for training: expert trajectories to imitate, and search trees with their step values.

A dataset is made once and kept in the workdir's folder `data`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agentrm_jax import tree
from agentrm_jax.data import datasets, targets
from agentrm_jax.envs.spec import EnvSpec
from agentrm_jax.prompts import Encoder, opening
from agentrm_jax.types import SearchTree, Trajectory, UserError


def imitation(
    trajectories: Sequence[Trajectory], encoder: Encoder, folder: Path, *, row_length: int, context_weight: float
) -> Any:
    """The dataset of expert trajectories to imitate; those longer than a row are left out, and counted.

    Raises:
      UserError: none fits a row.
    """
    flat = []
    for trajectory in trajectories:
        one = tree.flatten(targets.imitation_tree(encoder, trajectory, context_weight=context_weight))
        if len(one) <= row_length:
            flat.append(one)
    _report(flat, len(trajectories) - len(flat), row_length)
    datasets.write_dataset(folder, flat, meta={"kind": "imitation", "trajectories": len(flat)})
    return datasets.read_dataset(folder)


def step_values(
    trees: Sequence[SearchTree],
    encoder: Encoder,
    folder: Path,
    *,
    row_length: int,
    min_visits: int,
    target: targets.Target,
    outcome: str,
) -> Any:
    """The dataset of search trees with a value target at every state that has earned one (`targets.value_tree`).

    Raises:
      UserError: no state has.
    """
    flat, histogram, wanted = [], [0] * 10, 0
    for one in trees:
        nodes = targets.value_tree(encoder, one, min_visits=min_visits, target=target, outcome=outcome)
        wanted += sum(targets.target_histogram([nodes]))
        for part in tree.split(nodes, row_length):
            counts = targets.target_histogram([part])
            if sum(counts):
                flat.append(tree.flatten(part))
                histogram = [a + b for a, b in zip(histogram, counts, strict=True)]
    print(f"{len(trees)} trees, {sum(histogram)} target states; by value in tenths: {histogram}")
    if lost := wanted - sum(histogram):
        print(f"{lost} states lie deeper than {row_length} tokens and are left out; --config.row_length raises it")
    _report(flat, 0, row_length)
    datasets.write_dataset(folder, flat, meta={"kind": "step_values", "states": sum(histogram)})
    return datasets.read_dataset(folder)


def texts(trajectories: Sequence[Trajectory], specs: Mapping[str, EnvSpec]) -> list[str]:
    """All texts that a policy or a reward model will read of these trajectories, to train a tokenizer on."""
    found = []
    for t in trajectories:
        for reader in ("policy", "reward"):
            found += [m.content for m in opening(specs[t.task.env].texts(t.task), t.goal, t.observation, reader=reader)]
        found += [s.action.text for s in t.steps] + [s.outcome.observation for s in t.steps]
    return found


def _report(flat: list[tree.FlatTree], skipped: int, row_length: int) -> None:
    if not flat:
        raise UserError(f"none of the data fits rows of {row_length} tokens; raise --config.row_length")
    sizes = sorted(len(f) for f in flat)
    print(
        f"{len(flat)} token trees, {sum(sizes)} tokens, median {sizes[len(sizes) // 2]}, longest {sizes[-1]}"
        + (f"; {skipped} longer than a row were left out" if skipped else "")
    )
