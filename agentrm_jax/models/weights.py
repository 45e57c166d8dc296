"""Weights in Hugging Face's names and layouts and in ours: one table translates them in both directions.

Our parameters are a plain nested dict (what checkpoints hold too): layers are stacked on a leading axis l, maps are stored
input first and heads have axes of their own (`wq_dnh`); Hugging Face stores `[out, in]` with heads flattened. Reading goes
straight into arrays of the wanted sharding and type: every shard reads its own part of every tensor, one parameter at a time.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes  # noqa: F401  (lets numpy read bfloat16)
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from agentrm_jax.models.config import ModelConfig
from agentrm_jax.models.transformer import VALUE_HEADS, Transformer
from agentrm_jax.types import UserError

Params = dict[str, Any]
"""Nested dict of arrays (or of `jax.ShapeDtypeStruct`): `Transformer`'s parameters by attribute name."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """One parameter and the tensor it is stored as.

    Attributes:
      tensor: Hugging Face's name; `{l}` where layers are counted, `{e}` where experts are.
      axes: our axes without l, one letter each.
      stored: Hugging Face's axes of one tensor; several letters on one axis are flattened together.
      fused: the first axes of all parts of the tensor, one below the other, if this is a part; else empty.
      part: which of them this is.
    """

    tensor: str
    axes: str
    stored: tuple[str, ...]
    fused: tuple[str, ...] = ()
    part: int = 0


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """Named tensors in some file format.

    Attributes:
      origin: the file or folder that holds them, for messages.
      shapes: shape of every tensor by Hugging Face name.
      read: (name, one slice an axis) -> numpy array.
    """

    origin: str
    shapes: Mapping[str, tuple[int, ...]]
    read: Callable[[str, tuple[slice, ...]], np.ndarray]


def _linear(name: str, ours: str, out: str, into: str) -> Entry:
    return Entry(f"model.layers.{{l}}.{name}.weight", ours, (out, into))


def _vector(name: str, axes: str) -> Entry:
    return Entry(f"model.layers.{{l}}.{name}", axes, (axes,))


def _fused(name: str, entries: Sequence[Entry]) -> list[Entry]:
    """Maps that are stored as one, their outputs one after another."""
    tensor, rows = f"model.layers.{{l}}.{name}.weight", tuple(entry.stored[0] for entry in entries)
    return [dataclasses.replace(e, tensor=tensor, fused=rows, part=i) for i, e in enumerate(entries)]


_ATTENTION: dict[str, Entry] = {
    "wq_dnh": _linear("self_attn.q_proj", "dnh", "nh", "d"),
    "wk_dkh": _linear("self_attn.k_proj", "dkh", "kh", "d"),
    "wv_dkh": _linear("self_attn.v_proj", "dkh", "kh", "d"),
    "wo_nhd": _linear("self_attn.o_proj", "nhd", "d", "nh"),
    "bq_nh": _vector("self_attn.q_proj.bias", "nh"),
    "bk_kh": _vector("self_attn.k_proj.bias", "kh"),
    "bv_kh": _vector("self_attn.v_proj.bias", "kh"),
    "bo_d": _vector("self_attn.o_proj.bias", "d"),
    "q_norm_h": _vector("self_attn.q_norm.weight", "h"),
    "k_norm_h": _vector("self_attn.k_norm.weight", "h"),
    "q_norm_nh": _vector("self_attn.q_norm.weight", "nh"),
    "k_norm_kh": _vector("self_attn.k_norm.weight", "kh"),
}
_FEED_FORWARD: dict[str, Entry] = {
    "w_gate_df": _linear("mlp.gate_proj", "df", "f", "d"),
    "w_up_df": _linear("mlp.up_proj", "df", "f", "d"),
    "w_down_fd": _linear("mlp.down_proj", "fd", "d", "f"),
    "b_gate_f": _vector("mlp.gate_proj.bias", "f"),
    "b_up_f": _vector("mlp.up_proj.bias", "f"),
    "b_down_d": _vector("mlp.down_proj.bias", "d"),
}
PLAIN_TABLE = _ATTENTION | _FEED_FORWARD  # where families store linear maps, unless `layer_table` says otherwise
_NORMS: dict[str, dict[str, str]] = {  # by ModelConfig.norms
    "pre": {"attention_norm_d": "input_layernorm", "mlp_norm_d": "post_attention_layernorm"},
    "post": {"attention_post_norm_d": "post_attention_layernorm", "mlp_post_norm_d": "post_feedforward_layernorm"},
    "both": {
        "attention_norm_d": "input_layernorm",
        "attention_post_norm_d": "post_attention_layernorm",
        "mlp_norm_d": "pre_feedforward_layernorm",
        "mlp_post_norm_d": "post_feedforward_layernorm",
    },
}


def layer_table(config: ModelConfig) -> dict[str, Entry]:
    """Where the parameters of a layer are stored in files of the model's family, whichever of them it has."""
    table = PLAIN_TABLE | {ours: _vector(f"{name}.weight", "d") for ours, name in _NORMS[config.norms].items()}
    if config.architecture == "phi3":
        for name, parts in {
            "self_attn.qkv_proj": ("wq_dnh", "wk_dkh", "wv_dkh"),
            "mlp.gate_up_proj": ("w_gate_df", "w_up_df"),
        }.items():
            table |= dict(zip(parts, _fused(name, [table[p] for p in parts]), strict=True))
    if config.num_experts:
        mixtral = config.architecture == "mixtral"
        where, names = ("block_sparse_moe", "w1 w3 w2") if mixtral else ("mlp", "gate_proj up_proj down_proj")
        gate, up, down = (f"{where}.experts.{{e}}.{name}" for name in names.split())
        table |= {
            "router_de": _linear(f"{where}.gate", "de", "e", "d"),
            "experts_gate_edf": _linear(gate, "edf", "f", "d"),
            "experts_up_edf": _linear(up, "edf", "f", "d"),
            "experts_down_efd": _linear(down, "efd", "d", "f"),
        }
    return table


TABLE: dict[str, Entry] = {
    "embed_vd": Entry("model.embed_tokens.weight", "vd", ("v", "d")),
    "final_norm_d": Entry("model.norm.weight", "d", ("d",)),
    "head_dv": Entry("lm_head.weight", "dv", ("v", "d")),
    "value_d": Entry("score.weight", "d", ("1", "d")),
}
_HEADS = {"lm_head.weight", "score.weight", "score.bias"}


def _sizes(config: ModelConfig) -> dict[str, int]:
    c = config
    heads = {"n": c.num_heads, "k": c.num_kv_heads, "h": c.head_dim}
    return heads | {"v": c.vocab_size, "d": c.d_model, "f": c.d_ff, "e": c.num_experts, "1": 1}


def abstract_params(
    config: ModelConfig,
    *,
    lm_head: bool = True,
    value_head: bool = False,
    heads: int = 1,
    dtype: DTypeLike = jnp.float32,
) -> Params:
    """Shapes and types of a model's parameters, without making them; value heads are float32 always."""
    made = nnx.eval_shape(
        lambda: Transformer(config, rngs=nnx.Rngs(0), lm_head=lm_head, value_head=value_head, heads=heads, dtype=dtype)
    )
    return nnx.to_pure_dict(nnx.state(made, nnx.Param))


def build(config: ModelConfig, params: Params, *, scan: bool = False, remat: bool = False) -> Transformer:
    """A `Transformer` around given parameters; which heads it has follows from them."""
    has: dict[str, Any] = {
        "lm_head": config.tie_embeddings or "head_dv" in params,
        "value_head": any(name in params for name in VALUE_HEADS),
        "heads": params["value_ed"].shape[0] if "value_ed" in params else 1,
    }
    model = nnx.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0), scan=scan, remat=remat, **has))
    graph, state = nnx.split(model)
    nnx.replace_by_pure_dict(state, params)
    return nnx.merge(graph, state)


def with_mean_head(params: Params) -> Params:
    """`params` with one value head in place of an ensemble: the mean of linear maps is the map of their mean."""
    if "value_ed" not in params:
        return params
    return {k: v for k, v in params.items() if k != "value_ed"} | {"value_d": jnp.mean(params["value_ed"], axis=0)}


def load_params(source: Source, config: ModelConfig, abstract: Params, *, new_value_head: bool = False) -> Params:
    """Reads the parameters of `abstract`, in their dtype and (where given) sharding.

    A head that the file has and `abstract` has not is left out; with `new_value_head` a missing value head starts at zero.

    Raises:
      UserError: tensors are missing, of another shape, or left over.
    """
    new_value_head &= "value_d" in abstract and "score.weight" not in source.shapes
    wanted = {k: v for k, v in abstract.items() if k != "layers" and not (new_value_head and k == "value_d")}
    prefix = check_tensors(source, config, wanted | {"layers": abstract["layers"]})
    sizes, table = _sizes(config), layer_table(config)

    def one(entry: Entry, leaf: jax.ShapeDtypeStruct, stacked: bool) -> jax.Array:
        def part(index: tuple[slice, ...] | None) -> np.ndarray:
            index = index or (slice(None),) * leaf.ndim
            shape = tuple(len(range(n)[s]) for n, s in zip(leaf.shape, index, strict=True))
            counted = "l" * stacked + "e" * ("{e}" in entry.tensor)
            numbers = [range(n)[s] for n, s in zip(leaf.shape, index, strict=True)][: len(counted)]
            out = np.empty(shape, leaf.dtype)
            for at in np.ndindex(*shape[: len(counted)]):
                name = _name(entry.tensor, prefix, **{c: n[i] for c, n, i in zip(counted, numbers, at, strict=True)})
                out[at] = _read(source, name, entry, index[len(counted) :], sizes)
            return out

        sharding = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
        return jax.make_array_from_callback(leaf.shape, sharding, part)

    params: Params = {k: one(TABLE[k], leaf, False) for k, leaf in wanted.items()}
    params["layers"] = {k: one(table[k], leaf, True) for k, leaf in abstract["layers"].items()}
    if new_value_head:
        leaf = abstract["value_d"]
        params["value_d"] = jax.jit(lambda: jnp.zeros(leaf.shape, leaf.dtype), out_shardings=leaf.sharding)()
    return params


def check_tensors(source: Source, config: ModelConfig, wanted: Params) -> str:
    """Compares a file's tensors with the parameters that are wanted of it, before any is read; returns its name prefix.

    Raises:
      UserError: tensors are missing, of another shape, or left over.
    """
    prefix, table = "" if "embed_tokens.weight" in source.shapes else "model.", layer_table(config)
    used = [(TABLE[k], _name(TABLE[k].tensor, prefix)) for k in wanted if k != "layers"]
    for key in wanted["layers"]:
        entry = table[key]
        experts = range(config.num_experts) if "{e}" in entry.tensor else (0,)
        used += [(entry, _name(entry.tensor, prefix, l=l, e=e)) for l in range(config.num_layers) for e in experts]
    _check(source, config, used)
    return prefix


def _name(tensor: str, prefix: str, **numbers: int) -> str:
    """A tensor's name in a file whose backbone's names begin with `prefix`, for the layer and expert of these numbers."""
    if tensor.startswith("model."):
        tensor = prefix + tensor.removeprefix("model.")
    return tensor.format(**numbers)


def _extent(axis: str, sizes: Mapping[str, int]) -> int:
    return math.prod(sizes[a] for a in axis)


def _stored_shape(entry: Entry, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """The shape of a whole tensor, of which the entry may be a part."""
    rows = sum(_extent(axis, sizes) for axis in entry.fused or entry.stored[:1])
    return rows, *(_extent(axis, sizes) for axis in entry.stored[1:])


def _read(source: Source, name: str, entry: Entry, index: tuple[slice, ...], sizes: Mapping[str, int]) -> np.ndarray:
    """The part `index` (in our axes, without those that names count) of a tensor, in our layout; reads no more than it must."""
    axes = entry.axes[-len(index) :]
    want = dict(zip(axes, index, strict=True)) | {"1": slice(0, 1)}
    ranges, shape, inner = [], [], []
    for at, axis in enumerate(entry.stored):
        first, rest = axis[0], axis[1:]
        start, stop, _ = want[first].indices(sizes[first])
        width = _extent(rest, sizes)
        before = 0 if at else sum(_extent(part, sizes) for part in entry.fused[: entry.part])
        ranges.append(slice(before + start * width, before + stop * width))
        shape += [stop - start, *(sizes[a] for a in rest)]
        inner += [slice(None), *(want[a] for a in rest)]
    block = source.read(name, tuple(ranges)).reshape(shape)[tuple(inner)]
    letters = "".join(entry.stored)
    if "1" in letters:
        block, letters = block.squeeze(letters.index("1")), letters.replace("1", "")
    return block.transpose([letters.index(a) for a in axes])


def _check(source: Source, config: ModelConfig, used: list[tuple[Entry, str]]) -> None:
    sizes = _sizes(config)
    names = {name for _, name in used}
    if missing := [name for name in names if name not in source.shapes]:
        raise UserError(f"{source.origin} lacks {some(missing)}")
    shapes = {name: (tuple(source.shapes[name]), _stored_shape(entry, sizes)) for entry, name in used}
    if wrong := [
        f"{name} has shape {found}, its configuration says {wanted}"
        for name, (found, wanted) in shapes.items()
        if found != wanted
    ]:
        raise UserError(f"{source.origin}: {some(wrong)}")
    # Llama 2 files carry the rotary frequencies, which follow from the configuration.
    extra = [n for n in source.shapes if n not in names and n not in _HEADS and not n.endswith("rotary_emb.inv_freq")]
    if extra:
        raise UserError(f"{source.origin} has tensors this model has no place for: {some(extra)}")
    if "score.bias" in source.shapes and "score.weight" in names and np.any(source.read("score.bias", (slice(None),))):
        raise UserError(f"{source.origin}: score.bias is not zero, and our value head has no bias")


def some(names: Sequence[str]) -> str:
    """The first three of many names, in order, and how many more there are."""
    names = sorted(names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def tensors(params: Params, config: ModelConfig) -> Iterator[tuple[str, tuple[int, ...], Callable[[], np.ndarray]]]:
    """Every tensor of a Hugging Face file: its name, shape, and how to get it (one at a time, in the parameters' type)."""
    sizes = _sizes(config)

    def stored(entry: Entry, array: jax.Array, *at: int) -> np.ndarray:
        letters = "".join(entry.stored).replace("1", "")
        block = np.asarray(array[at] if at else array)
        axes = entry.axes[-block.ndim :]
        block = block.transpose([axes.index(a) for a in letters])
        return np.ascontiguousarray(block).reshape(-1, *_stored_shape(entry, sizes)[1:])

    def joined(parts: Sequence[tuple[Entry, jax.Array]], *at: int) -> np.ndarray:
        blocks = [stored(entry, array, *at) for entry, array in sorted(parts, key=lambda part: part[0].part)]
        return blocks[0] if len(blocks) == 1 else np.concatenate(blocks)

    for key, array in params.items():
        if key != "layers":
            entry = TABLE[key]
            yield entry.tensor, _stored_shape(entry, sizes), functools.partial(stored, entry, array)
    table, by_tensor = layer_table(config), dict[str, list[tuple[Entry, jax.Array]]]()
    for key, array in params["layers"].items():
        by_tensor.setdefault(table[key].tensor, []).append((table[key], array))
    for l in range(config.num_layers):
        for tensor, parts in by_tensor.items():
            shape = _stored_shape(parts[0][0], sizes)
            for e in range(config.num_experts) if "{e}" in tensor else (None,):
                at = (l,) if e is None else (l, e)
                yield tensor.format(l=l, e=e), shape, functools.partial(joined, parts, *at)
