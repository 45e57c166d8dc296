"""Mixtures of experts: a router gives every token a few of many feed-forward layers.

On GPUs and TPUs, whose compilers have a grouped product, tokens are sorted by expert and each expert reads its own. XLA's CPU backend
computes that product for all pairs anyway, so there all experts read all tokens, and what a router did not choose counts zero times.
On a mesh the experts are divided over `tensor`: every device gives what its own experts say of its rows, and the sum is the answer.

Letters: b row, t token, m tokens of all rows, c chosen experts of a token, s = m * c, d model, e experts, f feed-forward.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from agentrm_jax import parallel
from agentrm_jax.parallel import BATCH

Activation = Callable[[jax.Array], jax.Array]


def mixture(
    x_btd: Float[Array, "b t d"],
    router_de: Float[Array, "d e"],
    gate_edf: Float[Array, "e d f"],
    up_edf: Float[Array, "e d f"],
    down_efd: Float[Array, "e f d"],
    *,
    chosen: int,
    normalize: bool,
    activation: Activation,
    grouped: bool | None = None,
) -> Float[Array, "b t d"]:
    """The weighted sum of what the `chosen` likeliest experts of every token give.

    Weights are the router's probabilities (float32), with `normalize` divided by their sum. `grouped` says how it is computed;
    by default, as the platform is.
    """
    dtype = x_btd.dtype
    weights = [w.astype(dtype) for w in (gate_edf, up_edf, down_efd)]
    share_btc, expert_btc = _route(x_btd, router_de, chosen, normalize)
    if grouped is None:
        grouped = parallel.platform() in ("gpu", "tpu")
    if not grouped:
        return _dense(activation, x_btd, share_btc, expert_btc, *weights)

    def local(x: jax.Array, share: jax.Array, expert: jax.Array, *weights: jax.Array, axis: str | None) -> jax.Array:
        first = jax.lax.axis_index(axis) * len(weights[0]) if axis else 0
        out = grouped_experts(activation, x.reshape(-1, x.shape[-1]), *_rows(share, expert - first), *weights)
        out = out.reshape(x.shape)
        return jax.lax.psum(out, axis) if axis else out

    return _over_mesh(local, x_btd, share_btc, expert_btc, *weights)


def _route(x_btd: jax.Array, router_de: jax.Array, chosen: int, normalize: bool) -> tuple[jax.Array, jax.Array]:
    """[b, t, c] weights, float32, and numbers of every token's experts."""
    scores = jnp.einsum("btd,de->bte", x_btd, router_de.astype(x_btd.dtype), preferred_element_type=jnp.float32)
    share, expert = jax.lax.top_k(jax.nn.softmax(scores, axis=-1), chosen)
    return share / share.sum(-1, keepdims=True) if normalize else share, expert


def _rows(share_btc: jax.Array, expert_btc: jax.Array) -> tuple[jax.Array, jax.Array]:
    chosen = share_btc.shape[-1]
    return share_btc.reshape(-1, chosen), expert_btc.reshape(-1, chosen)


def _dense(
    activation: Activation,
    x: jax.Array,
    share_btc: jax.Array,
    expert_btc: jax.Array,
    gate: jax.Array,
    up: jax.Array,
    down: jax.Array,
) -> jax.Array:
    """All experts read all tokens."""
    share_bte = (jax.nn.one_hot(expert_btc, len(gate)) * share_btc[..., None]).sum(-2).astype(x.dtype)
    hidden = activation(jnp.einsum("btd,edf->btef", x, gate)) * jnp.einsum("btd,edf->btef", x, up)
    return jnp.einsum("btef,efd->btd", hidden * share_bte[..., None], down)


def grouped_experts(
    activation: Activation,
    x_md: Float[Array, "m d"],
    share_mc: Float[Array, "m c"],
    expert_mc: Int[Array, "m c"],
    gate_edf: Float[Array, "e d f"],
    up_edf: Float[Array, "e d f"],
    down_efd: Float[Array, "e f d"],
) -> Float[Array, "m d"]:
    """Every expert reads the tokens that chose it, which are made to lie side by side; numbers that are no expert's count 0."""
    (m, c), e = expert_mc.shape, len(gate_edf)
    mine = (expert_mc >= 0) & (expert_mc < e)
    group_s = jnp.where(mine, expert_mc, e).reshape(-1)
    order_s = jnp.argsort(group_s, stable=True)
    sizes_e = jnp.bincount(group_s, length=e + 1)[:e].astype(jnp.int32)
    x_sd = x_md[order_s // c]
    hidden = activation(jax.lax.ragged_dot(x_sd, gate_edf, sizes_e)) * jax.lax.ragged_dot(x_sd, up_edf, sizes_e)
    out_sd = jax.lax.ragged_dot(hidden, down_efd, sizes_e)
    out_mcd = jnp.zeros_like(out_sd).at[order_s].set(out_sd, unique_indices=True).reshape(m, c, -1)
    out_mcd = jnp.where(mine[..., None], out_mcd, 0) * share_mc[..., None].astype(x_md.dtype)
    return out_mcd.sum(1)


def _over_mesh(local: Callable[..., jax.Array], x: jax.Array, share: jax.Array, expert: jax.Array, *weights: jax.Array):
    """`local` on every device, with its rows and its experts; an axis that does not divide is computed whole."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return local(x, share, expert, *weights, axis=None)
    rows = BATCH if len(x) % (mesh.shape["data"] * mesh.shape["fsdp"]) == 0 else P()
    axis = "tensor" if mesh.shape["tensor"] > 1 and len(weights[0]) % mesh.shape["tensor"] == 0 else None

    def of_device(*args: jax.Array) -> jax.Array:
        return local(*args, axis=axis)

    specs = (rows, rows, rows, *(P(axis) for _ in weights))
    return jax.shard_map(of_device, in_specs=specs, out_specs=rows, check_vma=False)(x, share, expert, *weights)
