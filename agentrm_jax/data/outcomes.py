"""Datasets for an implicit reward model: whole trajectories with what they were worth (paper 3.2.2).

Trajectories of a task are the paths of a tree, from its root to states in which an episode ended.
"""

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from agentrm_jax import tree
from agentrm_jax.data import datasets, heldout, targets
from agentrm_jax.prompts import Encoder
from agentrm_jax.tree import Node
from agentrm_jax.types import SearchTree, UserError

EXTRA = ("action",)  # arrays of a token tree that other datasets do not have


def outcome_tree(encoder: Encoder, one: SearchTree, *, outcome: str = "reward") -> list[Node]:
    """A search tree whose only targets are the outcomes of ended episodes, each read at its last turn.

    A target weighs as much as trajectories ended there. States that lead to no end are left out.
    """
    nodes = targets.value_tree(encoder, one, min_visits=sys.maxsize, outcome=outcome)
    return [
        dataclasses.replace(n, value_weight=float(max(one.nodes[n.origin].visits, 1))) if n.value_weight > 0 else n
        for n in nodes
    ]


def outcomes(
    trees: Sequence[SearchTree],
    encoder: Encoder,
    folder: Path,
    *,
    row_length: int,
    outcome: str,
    min_visits: int,
    heldout_fraction: float = 0.0,
) -> Any:
    """The dataset of trees with the outcomes of their trajectories.

    The trees of `heldout_fraction` of the tasks are kept apart, to be read with `heldout.read`. There every state is measured whose
    value rests on at least `min_visits` returns, as an explicit reward model is: an implicit one predicts it as well.

    Raises:
      UserError: no trajectory has ended, or none fits a row.
    """
    chosen, kept_out = heldout.choose(trees, heldout_fraction)
    ended = lost = 0
    flat = []
    for one in chosen:
        nodes = outcome_tree(encoder, one, outcome=outcome)
        wanted = _targets(nodes)
        parts = [part for part in tree.split(nodes, row_length) if _targets(part)]
        ended += wanted
        lost += wanted - sum(map(_targets, parts))
        flat += [tree.flatten(part) for part in parts]
    if not ended:
        raise UserError(
            "no trajectory of the named runs has ended, so there is no outcome to learn; finish them, or raise their tasks' steps"
        )
    if not flat:
        raise UserError(f"no trajectory fits a row of {row_length} tokens; raise --config.row_length")
    sizes = [len(f) for f in flat]
    print(f"{len(chosen)} tasks, {ended - lost} outcomes, {len(flat)} token trees of {sum(sizes)} tokens")
    if lost:
        print(
            f"{lost} trajectories are longer than {row_length} tokens and are left out; --config.row_length raises it"
        )

    def measured() -> Iterator[tuple[SearchTree, list[Node]]]:
        for one in kept_out:
            nodes = targets.value_tree(encoder, one, min_visits=min_visits, outcome=outcome)
            yield from ((one, part) for part in tree.split(nodes, row_length) if _targets(part))

    if (held := heldout.collect(measured(), row_length, extra=EXTRA)) is not None:
        print(f"held out to measure: {len(held.target)} target states of {len(kept_out)} tasks")
        heldout.write(folder, held)
    datasets.write_dataset(folder, flat, meta={"outcomes": ended - lost}, extra=EXTRA)
    return datasets.read_dataset(folder)


def _targets(nodes: Sequence[Node]) -> int:
    return sum(n.value_weight > 0 for n in nodes)
