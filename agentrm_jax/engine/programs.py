"""The programs that an engine runs, compiled for the shapes that occur; and the same from shapes alone, for plans.

They are made once for a process, so engines of one kind share what is compiled.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from agentrm_jax import parallel
from agentrm_jax.engine import batch, layout, memory
from agentrm_jax.engine import decode as decoding
from agentrm_jax.engine import prefill as reading
from agentrm_jax.engine.batch import DecodeShape
from agentrm_jax.engine.histories import choose_reader
from agentrm_jax.engine.paged import bytes_read
from agentrm_jax.engine.requests import EngineConfig
from agentrm_jax.engine.rows import joining_rows
from agentrm_jax.engine.seats import DecodeBatch
from agentrm_jax.models.config import ModelConfig
from agentrm_jax.models.transformer import Transformer

lay_out = jax.jit(memory.Weights, static_argnums=(1, 2))
empty_pool = jax.jit(memory.empty_pool, static_argnums=(0, 1, 2))
prefill = jax.jit(reading.prefill, static_argnums=1, static_argnames=("logprobs", "in_place"))
write = jax.jit(memory.write, donate_argnums=0)
empty_state = jax.jit(batch.empty_state, static_argnums=(0, 1, 2))
read_trunk = jax.jit(batch.read_trunk, static_argnums=0)
admit = jax.jit(batch.admit, static_argnums=(0, 1), donate_argnums=3)
keep_rows = jax.jit(batch.keep_rows, static_argnums=0)
decode = jax.jit(decoding.decode, static_argnums=(1, 2, 3), donate_argnums=5)
store = jax.jit(batch.store, static_argnums=(0, 1), donate_argnums=2)

_ALL = (prefill, write, empty_state, read_trunk, admit, keep_rows, decode, store)


def compilations() -> int:
    """Programs compiled so far by all engines of this process."""
    return sum(program._cache_size() for program in _ALL)  # type: ignore[attr-defined]


@dataclasses.dataclass(frozen=True)
class Planned:
    """A program and the shapes of its arguments: `program.lower(*args, **options)` makes it without any array.

    Attributes:
      passing: those of the arguments that do not stay on the device between calls.
    """

    program: Any
    args: tuple[Any, ...]
    passing: Any = ()
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def planned_memory(
    model: ModelConfig, sizes: Mapping[str, Any], head: bool, mesh: jax.sharding.Mesh
) -> tuple[Planned, Planned]:
    """The programs that lay out an engine's weights, with a language-model head or a value head, and make its pool.

    `sizes` is a config's `engine` group.
    """
    dtype = jnp.dtype(sizes["dtype"])

    def make() -> Transformer:
        return Transformer(model, rngs=nnx.Rngs(0), lm_head=head, value_head=not head, dtype=dtype)

    graph, params = nnx.split(nnx.eval_shape(make))
    where = parallel.shardings(params, mesh)
    placed = jax.tree.map(lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at), params, where)
    stacked = nnx.merge(graph, placed)
    laid_out = Planned(lay_out, (stacked, dtype, sizes["weights"]), stacked)
    return laid_out, Planned(empty_pool, (model, sizes["cache_tokens"], dtype))


def planned_prefill(
    model: ModelConfig,
    sizes: Mapping[str, Any],
    weights: Any,
    pool: Any,
    mesh: jax.sharding.Mesh,
    *,
    logprobs: bool = False,
) -> dict[str, Planned]:
    """The largest prefill batches by name, given the shapes of what `planned_memory`'s programs make."""
    e = _config(sizes)
    planned = {}
    for new in {e.new_tokens[0], e.new_tokens[-1]}:
        tile = layout.tile(new)
        tiles = -(-e.batch_tokens[-1] // tile), tile
        new_tokens = _shapes(layout.tiles([], [], tiles, new, e.context[-1], nowhere=0)[0], mesh)
        planned[f"prefill {new}"] = Planned(
            prefill,
            (weights, model, pool, new_tokens),
            new_tokens,
            {"logprobs": logprobs, "in_place": _reader(model, sizes, mesh)},
        )
    return planned


def largest_batch(model: ModelConfig, sizes: Mapping[str, Any], mesh: jax.sharding.Mesh) -> DecodeShape:
    """The decode batch that takes most memory."""
    e, reader = _config(sizes), _reader(model, sizes, mesh)
    return DecodeShape(e.rows[-1], e.samples, e.context[-1], e.max_new, draft=e.draft, in_place=reader)


def planned_state(model: ModelConfig, sizes: Mapping[str, Any], mesh: jax.sharding.Mesh) -> Planned:
    """The program that makes the state of the largest decode batch."""
    return Planned(empty_state, (model, largest_batch(model, sizes, mesh), jnp.dtype(sizes["dtype"])))


def planned_decode(
    model: ModelConfig, sizes: Mapping[str, Any], weights: Any, pool: Any, state: Any, mesh: jax.sharding.Mesh
) -> dict[str, Planned]:
    """What is done with the largest decode batch, by name, given the shapes of weights, pool and state."""
    e, shape = _config(sizes), largest_batch(model, sizes, mesh)
    arguments = _shapes(
        joining_rows(DecodeBatch(shape, [], np.zeros(0, np.int32)), [], model.vocab_size, 0, shape.max_new), mesh
    )
    stopped = _shapes(np.zeros((shape.rows, shape.samples), bool), mesh)
    return {
        "admit": Planned(admit, (model, shape, pool, state, *arguments), (state, arguments)),
        "decode": Planned(
            decode,
            (weights, model, shape, e.draft > 0, pool, state, None, stopped, np.int32(batch.STEPS)),
            (state, stopped),
        ),
    }


def decode_traffic(
    model: ModelConfig, sizes: Mapping[str, Any], weights: Any, itemsize: int, mesh: jax.sharding.Mesh
) -> tuple[int, int, int]:
    """Bytes of one device and one step of the largest decode batch with full rows, as far as they follow from shapes.

    Returns: what a step has to read at least (weights, and every row's keys and values once); what kernels of ours move, which
    XLA does not look into; the embeddings, of which a step looks up a few rows and XLA counts all.
    """
    e, shape = _config(sizes), largest_batch(model, sizes, mesh)
    kv = model.num_kv_heads // e.tensor if model.num_kv_heads % e.tensor == 0 else model.num_kv_heads
    own = e.max_new * e.samples
    cached = 2 * shape.rows * (shape.columns + own) * kv * model.head_dim * itemsize * model.num_layers
    embeddings = _of_one_device(weights.embed_vd)
    read = _of_one_device(weights) - (0 if model.tie_embeddings else embeddings)
    queries = shape.samples * (e.draft + 1) * (model.num_heads // model.num_kv_heads)
    kernel = bytes_read((shape.rows, kv, queries, model.head_dim), shape.columns, itemsize) if shape.in_place else 0
    return read + cached, kernel * model.num_layers, embeddings


def _of_one_device(tree: Any) -> int:
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _reader(model: ModelConfig, sizes: Mapping[str, Any], mesh: jax.sharding.Mesh) -> str:
    platform = mesh.devices.flat[0].platform
    return choose_reader(platform, model, sizes["cache_tokens"], sizes["tensor"])


def _config(sizes: Mapping[str, Any]) -> EngineConfig:
    return EngineConfig(**{k: v for k, v in sizes.items() if k != "dtype"})


def _shapes(arrays: Any, mesh: jax.sharding.Mesh) -> Any:
    """Shapes of arguments that come from the host, which every device is given whole."""
    everywhere = jax.NamedSharding(mesh, jax.sharding.PartitionSpec())
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), arrays)
