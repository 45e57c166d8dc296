"""Checkpoints (Orbax): everything a run needs to go on as if nothing had happened, and models for others to load."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging
from flax import nnx
from orbax.checkpoint import v1 as ocp

from agentrm_jax.chat import Chat, load_chat
from agentrm_jax.data.tokenizer import load_tokenizer
from agentrm_jax.models import weights
from agentrm_jax.models.config import ModelConfig
from agentrm_jax.models.pretrained import open_pretrained
from agentrm_jax.models.transformer import Transformer
from agentrm_jax.training.state import TrainState
from agentrm_jax.types import JSON, UserError


class Checkpoints:
    """The `checkpoints/` folder of a workdir; use as a context manager.

    Items of a checkpoint: `params` and `opt_state` (plain nested dicts), `rng`, `data` (the iterator), `meta` (JSON).
    """

    def __init__(self, folder: Path, *, keep: int = 2):
        training = ocp.training
        self._folder = folder = folder.resolve()
        self._checkpointer = training.Checkpointer(
            folder,
            save_decision_policy=training.save_decision_policies.FixedIntervalPolicy(1),  # the caller decides when
            preservation_policy=training.preservation_policies.LatestN(keep),
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self._checkpointer.close()

    def save(self, state: TrainState, data: Iterator[Any], meta: dict[str, JSON]) -> None:
        """Writes a checkpoint and returns when it is on disk.

        Not in the background: on a busy CPU backend the copies of a background save queue behind the next steps, and the
        checkpoint of a run that is killed would still be unfinished minutes later.
        """
        step = int(state.step)
        items = {
            "params": nnx.to_pure_dict(state.params),
            "opt_state": _pure(state.opt_state),
            "rng": {"key": state.rng},
            "data": data,
            "meta": meta,
        }
        if self._checkpointer.latest is not None and self._checkpointer.latest.step == step:
            return
        if not self._checkpointer.save_checkpointables(step, items):
            raise RuntimeError(f"the checkpoint of step {step} was not written")

    def restore(self, state: TrainState, placed: TrainState, data: Iterator[Any]) -> tuple[TrainState, dict[str, JSON]]:
        """The latest readable checkpoint, put into `state`'s shapes and `placed` shardings; `data` is moved to where it was.

        Returns `state` itself and {} if there is none. Checkpoints that cannot be read are removed, with a warning, once an
        older one was: they would keep the run from writing those steps again.

        Raises:
          UserError: there are checkpoints, but none can be read.
        """
        steps = [c.step for c in self._checkpointer.checkpoints][::-1]
        shape = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, placed)
        for at, step in enumerate(steps):
            wanted = {
                "params": nnx.to_pure_dict(shape.params),
                "opt_state": _pure(shape.opt_state),
                "rng": {"key": shape.rng},
                "data": data,
                "meta": None,
            }
            try:
                found = self._checkpointer.load_checkpointables(step, wanted)
            except Exception as error:  # whatever a damaged file makes Orbax raise
                logging.warning(
                    "checkpoint %s cannot be read (%s); trying the one before", self._folder / str(step), error
                )
                continue
            for damaged in steps[:at]:
                self._checkpointer.delete(damaged, missing_ok=True)
            nnx.replace_by_pure_dict(state.params, found["params"])
            opt_state = _unpure(state.opt_state, found["opt_state"])
            number = jax.device_put(jnp.int32(step), placed.step)
            return TrainState(number, state.params, opt_state, found["rng"]["key"]), found["meta"]
        if steps:
            raise UserError(f"no checkpoint in {self._folder} can be read; move the folder away to start again")
        return state, {}


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A trained model with what is needed to use it."""

    model: Transformer
    chat: Chat
    step: int
    meta: dict[str, JSON]


def load_model(place: Path | str, *, step: int | None = None) -> LoadedModel:
    """A model ready for use: of a training workdir, of a Hugging Face folder or GGUF file, or `smollm2` by name.

    Of a workdir it is the latest readable checkpoint (or the one of `step`), parameters only.

    Raises:
      UserError: there is no model, or it cannot be read.
    """
    workdir = Path(place)
    about = workdir / "model.json"
    if not about.exists():
        return _load_pretrained(place)
    folder = (workdir / "checkpoints").resolve()
    if not folder.is_dir():
        raise UserError(f"{workdir} holds no checkpoints; train it with train.py")
    info = json.loads(about.read_text())
    config = ModelConfig.from_json(info["config"])
    with ocp.training.Checkpointer(folder) as checkpointer:
        steps = [c.step for c in checkpointer.checkpoints][::-1] if step is None else [step]
        for number in steps:
            try:
                found = checkpointer.load_checkpointables(number, _abstract(config, info))
            except Exception as error:  # whatever a damaged file makes Orbax raise
                logging.warning("checkpoint %s cannot be read (%s)", folder / str(number), error)
                continue
            model = build_model(config, nnx.Rngs(0), info)
            state = nnx.state(model, nnx.Param)
            nnx.replace_by_pure_dict(state, found["params"])
            nnx.update(model, state)
            return LoadedModel(model, load_chat(load_tokenizer(workdir / "tokenizer")), number, found["meta"] or {})
    raise UserError(f"no checkpoint in {folder} can be read")


def _load_pretrained(place: Path | str) -> LoadedModel:
    """A model that was trained elsewhere; a one-label classifier brings its value head."""
    found = open_pretrained(str(place))
    shape = weights.abstract_params(found.config, lm_head=found.head == "CausalLM", value_head=found.head != "CausalLM")
    params = weights.load_params(found.source(), found.config, shape)
    return LoadedModel(weights.build(found.config, params), load_chat(found.tokenizer()), 0, {})


def build_model(config: ModelConfig, rngs: nnx.Rngs, info: dict[str, JSON], **options: Any) -> Transformer:
    """A model with the heads that `model.json` names."""
    return Transformer(config, rngs=rngs, lm_head=info["lm_head"], value_head=info["value_head"], **options)


def _abstract(config: ModelConfig, info: dict[str, JSON]) -> dict[str, Any]:
    params = nnx.state(nnx.eval_shape(lambda: build_model(config, nnx.Rngs(0), info)), nnx.Param)
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), nnx.to_pure_dict(params))
    return {"params": shapes, "meta": None}


def _pure(opt_state: Any) -> dict[str, Any]:
    """Optimizer state as a flat dict of path -> array: a file format that does not depend on optax's classes."""
    leaves = jax.tree_util.tree_leaves_with_path(opt_state)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def _unpure(like: Any, flat: dict[str, Any]) -> Any:
    """Inverse of `_pure` for a state of the same structure."""
    paths = [jax.tree_util.keystr(p, simple=True, separator=".") for p, _ in jax.tree_util.tree_leaves_with_path(like)]
    return jax.tree.unflatten(jax.tree.structure(like), [flat[p] for p in paths])
