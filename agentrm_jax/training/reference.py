"""Log-probabilities of the frozen reference of an implicit reward model: computed once, before training, and kept with the data.

The reference is the model that training starts from (of adapters: their base, which new adapters do not change). So one forward
pass over the data replaces one in every step, and no second model is held.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from agentrm_jax import parallel, tree
from agentrm_jax.data.datasets import Joined
from agentrm_jax.data.heldout import HeldOut
from agentrm_jax.files import replacing
from agentrm_jax.models.transformer import token_logprobs
from agentrm_jax.training.evaluation import filled
from agentrm_jax.training.objectives import Batch, hidden_states
from agentrm_jax.training.step import TrainState
from agentrm_jax.tree import FlatTree
from agentrm_jax.types import UserError

NAME = "reference.npz"
_FIELDS = ("tokens", "positions", "subtree_end", "previous")


def attach(
    trees: Any,
    held: HeldOut | None,
    folder: Path,
    *,
    start: Callable[[], tuple[nnx.GraphDef, TrainState, TrainState]],
    mesh: Mesh,
    rows: int,
    row_length: int,
    dtype: Any,
) -> tuple[Any, HeldOut | None]:
    """A dataset and its held-out states with an array `reference`: log p of every token, float32.

    It is read from `folder` where it was kept; otherwise it is computed, which all processes do together, and kept there.

    Args:
      start: makes the state that training starts from, as `step.init_state` does; called only if there is something to compute.
      rows: rows of a batch that are this process's, as in training.
      dtype: what the forward pass is computed in, as in training.

    Raises:
      UserError: what was kept belongs to other data.
    """
    path = folder / NAME
    ends = np.cumsum([len(trees[i]["tokens"]) for i in range(len(trees))])
    if parallel.all_agree("reference", path.exists()):
        with np.load(path) as kept:
            found = {name: kept[name] for name in kept.files}
        shapes = {"trees": (int(ends[-1]),)} | ({"heldout": held.rows["tokens"].shape} if held else {})
        if {name: x.shape for name, x in found.items()} != shapes:
            raise UserError(f"{path} belongs to other data; remove it, and it is computed again")
    else:
        graphdef, state, _ = start()
        found = _computed(trees, held, ends, graphdef, state, mesh=mesh, rows=rows, row_length=row_length, dtype=dtype)
        if jax.process_index() == 0:
            with replacing(path) as draft, draft.open("wb") as file:
                np.savez(file, allow_pickle=False, **found)
            print(f"the reference's log-probabilities of {sum(x.size for x in found.values())} tokens are in {path}")
    if held:
        held = dataclasses.replace(held, rows={**held.rows, "reference": found["heldout"]})
    return Joined(trees, "reference", found["trees"], ends), held


def _computed(
    trees: Any,
    held: HeldOut | None,
    ends: np.ndarray,
    graphdef: nnx.GraphDef,
    state: TrainState,
    *,
    mesh: Mesh,
    rows: int,
    row_length: int,
    dtype: Any,
) -> dict[str, np.ndarray]:
    """`trees` float32[t] of all trees one after another, and `heldout` float32[r, t]."""

    @functools.partial(jax.jit, out_shardings=NamedSharding(mesh, PartitionSpec()))
    def run(params: nnx.State, frozen: nnx.State, batch: Batch) -> jax.Array:
        model = nnx.merge(graphdef, params, frozen)
        return token_logprobs(model, hidden_states(model, batch, dtype), batch["tokens"], batch["previous"])

    def logprobs(arrays: dict[str, np.ndarray]) -> np.ndarray:
        """Of rows [r, t], `rows` of each process at a time."""
        every, found = rows * jax.process_count(), []
        for begin in range(0, len(arrays["tokens"]), every):
            mine = begin + rows * jax.process_index()
            batch = {name: filled(x[mine : mine + rows], rows, name) for name, x in arrays.items()}
            with jax.set_mesh(mesh):
                found.append(np.asarray(run(state.params, state.frozen, parallel.put_batch(batch, mesh))))
        return np.concatenate(found)[: len(arrays["tokens"])]

    values = np.zeros(int(ends[-1]), np.float32)
    sizes = np.diff(ends, prepend=0)
    groups = _pack(sizes, row_length)
    every = rows * jax.process_count()
    for begin in range(0, len(groups), every):
        part = groups[begin : begin + every]
        packed = [tree.to_row([_flat(trees[i]) for i in group], row_length) for group in part]
        found = logprobs({name: np.stack([getattr(row, name) for row in packed]) for name in _FIELDS})
        for group, row in zip(part, found, strict=True):
            at = 0
            for i in group:
                values[ends[i] - sizes[i] : ends[i]] = row[at : at + sizes[i]]
                at += sizes[i]
    if held is None:
        return {"trees": values}
    return {"trees": values, "heldout": logprobs({name: held.rows[name] for name in _FIELDS})}


def _pack(sizes: Sequence[int] | np.ndarray, row_length: int) -> list[list[int]]:
    """Trees one after another in rows, in their order."""
    groups: list[list[int]] = []
    free = 0
    for i, size in enumerate(sizes):
        if size > free:
            groups.append([])
            free = row_length
        groups[-1].append(i)
        free -= int(size)
    return groups


def _flat(arrays: dict[str, np.ndarray]) -> FlatTree:
    zeros = np.zeros(len(arrays["tokens"]), np.int32)
    return FlatTree(**{f.name: arrays.get(f.name, zeros) for f in dataclasses.fields(FlatTree)})
