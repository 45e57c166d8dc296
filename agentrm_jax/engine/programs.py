"""The programs that an engine runs, compiled for the shapes that occur; and the same from shapes alone, for plans.

They are made once for a process, so engines of one kind share what is compiled.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from agentrm_jax import parallel
from agentrm_jax.engine import decode as decoding
from agentrm_jax.engine import layout, memory
from agentrm_jax.engine.prefill import prefill as _prefill
from agentrm_jax.engine.requests import EngineConfig, SamplingParams
from agentrm_jax.models.config import ModelConfig
from agentrm_jax.models.transformer import Transformer

lay_out = jax.jit(memory.Weights, static_argnums=1)
empty_pool = jax.jit(memory.empty_pool, static_argnums=(0, 1, 2))
prefill = jax.jit(_prefill, static_argnums=1, static_argnames="logprobs")
write = jax.jit(memory.write, donate_argnums=0)
empty_state = jax.jit(decoding.empty_state, static_argnums=(0, 1, 2))
read_trunk = jax.jit(decoding.read_trunk, static_argnums=0)
admit = jax.jit(decoding.admit, static_argnums=(0, 1), donate_argnums=3)
keep_rows = jax.jit(decoding.keep_rows, static_argnums=0)
decode = jax.jit(decoding.decode, static_argnums=(1, 2), donate_argnums=3)
store = jax.jit(decoding.store, static_argnums=(0, 1), donate_argnums=2)

_ALL = (prefill, write, empty_state, read_trunk, admit, keep_rows, decode, store)


def compilations() -> int:
    """Programs compiled so far by all engines of this process."""
    return sum(program._cache_size() for program in _ALL)  # type: ignore[attr-defined]


@dataclasses.dataclass(frozen=True)
class Planned:
    """A program from shapes alone.

    Attributes:
      program, args: `program.lower(*args)` compiles it.
      passing: those of its arguments that do not stay on the device between calls.
    """

    program: Any
    args: tuple[Any, ...]
    passing: Any


def abstract_memory(
    model: ModelConfig, dtype: jnp.dtype, slots: int, policy: bool, mesh: jax.sharding.Mesh
) -> tuple[Planned, Planned]:
    """The programs that lay out an engine's weights and make its pool."""

    def make() -> Transformer:
        return Transformer(model, rngs=nnx.Rngs(0), lm_head=policy, value_head=not policy, dtype=dtype)

    graph, params = nnx.split(nnx.eval_shape(make))
    where = parallel.shardings(params, mesh)
    placed = jax.tree.map(lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at), params, where)
    return Planned(lay_out, (nnx.merge(graph, placed), dtype), ()), Planned(empty_pool, (model, slots, dtype), ())


def abstract_batches(
    model: ModelConfig, sizes: Mapping[str, Any], policy: bool, mesh: jax.sharding.Mesh, weights: Any, pool: Any, state: Any
) -> dict[str, Planned]:
    """The programs of an engine that need most memory beside weights and pool, by name.

    Args:
      weights, pool: shapes of what `abstract_memory`'s programs return; `state`: of what `abstract_state`'s does.
    """
    e, everywhere = _config(sizes), jax.NamedSharding(mesh, jax.sharding.PartitionSpec())

    def shapes(arrays: Any) -> Any:
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), arrays)

    planned = {}
    for new in {e.new_tokens[0], e.new_tokens[-1]}:
        tile = layout.tile(new)
        tiles = -(-e.batch_tokens[-1] // tile), tile
        batch = shapes(layout.tiles([], [], tiles, new, e.context[-1], nowhere=0)[0])
        planned[f"prefill {new}"] = Planned(
            jax.jit(_prefill, static_argnums=1, static_argnames="logprobs"), (weights, model, pool, batch), batch
        )
    return planned
