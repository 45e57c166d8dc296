"""Checkpoints (Orbax): everything a run needs to go on as if nothing had happened, and models for others to load."""

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp
from absl import logging
from flax import nnx
from orbax.checkpoint import v1 as ocp

from agentrm_jax import parallel
from agentrm_jax.models import checksums
from agentrm_jax.training.step import TrainState
from agentrm_jax.types import JSON, UserError


class Checkpoints:
    """The `checkpoints/` folder of a workdir; use as a context manager.

    Items of a checkpoint: `params` and `opt_state` (plain nested dicts), `meta` (JSON), and `position` (the state of the data's
    iterator, which is the same on every process). Beside them lie checksums of all files. (Older checkpoints have no checksums,
    an item `rng` that is not read, and an item `data` of every process, with which the same number of processes goes on.)
    """

    def __init__(self, folder: Path, *, keep: int = 2):
        training = ocp.training
        self._folder = folder = folder.resolve()
        self._questions = itertools.count()
        self._checkpointer = training.Checkpointer(
            folder,
            save_decision_policy=training.save_decision_policies.FixedIntervalPolicy(1),  # the caller decides when
            preservation_policy=training.preservation_policies.LatestN(keep),
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self._checkpointer.close()

    def save(self, state: TrainState, data: grain.DatasetIterator, meta: dict[str, JSON]) -> None:
        """Writes a checkpoint and returns when it is on disk.

        Not in the background: on a busy CPU backend the copies of a background save queue behind the next steps, and the
        checkpoint of a run that is killed would still be unfinished minutes later.
        """
        step = int(state.step)
        items = {
            "params": nnx.to_pure_dict(state.params),
            "opt_state": _pure(state.opt_state),
            "meta": meta,
            "position": data.get_state(),
        }
        if self._checkpointer.latest is not None and self._checkpointer.latest.step == step:
            return
        if not self._checkpointer.save_checkpointables(step, items):
            raise RuntimeError(f"the checkpoint of step {step} was not written")
        checksums.write(self._folder / str(step), process=jax.process_index(), processes=jax.process_count())

    def restore(
        self, state: TrainState, placed: TrainState, data: grain.DatasetIterator
    ) -> tuple[TrainState, dict[str, JSON]]:
        """The latest good checkpoint, put into `state`'s shapes and `placed` shardings; `data` is moved to where it was.

        Returns `state` itself and {} if there is no checkpoint. Those that are damaged or cannot be read on some process are
        passed over, with a warning that says which one is used. They are removed once an older one was restored: they would
        keep the run from writing those steps again.

        Raises:
          UserError: there are checkpoints, but none can be read.
        """
        steps = [c.step for c in self._checkpointer.checkpoints][::-1]
        shape = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, placed)
        wanted = {
            "params": nnx.to_pure_dict(shape.params),
            "opt_state": _pure(shape.opt_state),
            "meta": None,
        }
        faults: dict[int, str] = {}
        for step in steps:
            older = (self._folder / str(step) / "data").exists()
            found = self._load(step, wanted | ({"data": data} if older else {"position": None}), faults)
            if found is None:
                continue
            for damaged, fault in faults.items():
                logging.warning(
                    "checkpoint %s cannot be read (%s); using step %d", self._folder / str(damaged), fault, step
                )
                self._checkpointer.delete(damaged, missing_ok=True)
            nnx.replace_by_pure_dict(state.params, found["params"])
            opt_state = _unpure(state.opt_state, found["opt_state"])
            if not older:
                data.set_state(found["position"])
            number = jax.device_put(jnp.int32(step), placed.step)
            return dataclasses.replace(state, step=number, opt_state=opt_state), found["meta"]
        if faults:
            raise UserError(
                f"no checkpoint in {self._folder} can be read; move the folder away to start again ({faults[steps[0]]})"
            )
        return state, {}

    def _load(self, step: int, wanted: dict[str, Any], faults: dict[int, str]) -> dict[str, Any] | None:
        """The items of a checkpoint if it is good on every process; else None, and what is wrong is noted in `faults`."""
        process, processes = jax.process_index(), jax.process_count()
        fault = checksums.find_damage(self._folder / str(step), process=process, processes=processes)
        found = None
        if self._agreed(not fault):
            try:
                found = self._checkpointer.load_checkpointables(step, wanted)
            except Exception as error:  # whatever a damaged file makes Orbax raise
                fault = checksums.one_line(error)
            if self._agreed(not fault):
                return found
        faults[step] = fault or "another process found it damaged"
        return None

    def _agreed(self, good: bool) -> bool:
        return parallel.all_agree(f"checkpoint {next(self._questions)}", good)


def keep_best(folder: Path, state: TrainState, meta: dict[str, JSON]) -> None:
    """Writes the model alone (`params` and `meta`, no optimizer) as the only checkpoint of `folder`; opening a workdir prefers it.

    What is there of this step or a later one is from a run that was killed and is now being repeated: it is replaced.
    """
    step, training = int(state.step), ocp.training
    folder = folder.resolve()
    with training.Checkpointer(
        folder,
        save_decision_policy=training.save_decision_policies.FixedIntervalPolicy(1),
        preservation_policy=training.preservation_policies.LatestN(1),
    ) as checkpointer:
        for late in [c.step for c in checkpointer.checkpoints if c.step >= step]:
            checkpointer.delete(late)
        if not checkpointer.save_checkpointables(step, {"params": nnx.to_pure_dict(state.params), "meta": meta}):
            raise RuntimeError(f"the best checkpoint, of step {step}, was not written")
        checksums.write(folder / str(step), process=jax.process_index(), processes=jax.process_count())


def _pure(opt_state: Any) -> dict[str, Any]:
    """Optimizer state as a flat dict of path -> array: a file format that does not depend on optax's classes."""
    leaves = jax.tree_util.tree_leaves_with_path(opt_state)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def _unpure(like: Any, flat: dict[str, Any]) -> Any:
    """Inverse of `_pure` for a state of the same structure."""
    paths = [jax.tree_util.keystr(p, simple=True, separator=".") for p, _ in jax.tree_util.tree_leaves_with_path(like)]
    return jax.tree.unflatten(jax.tree.structure(like), [flat[p] for p in paths])
