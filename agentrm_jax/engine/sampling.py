"""Drawing tokens: by one uniform number that depends on a sample's seed and the place of the token alone.

Letters: r rows, v vocabulary, i entries of a block of it.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array | np.ndarray
_BLOCK = 64  # vocabulary entries that are summed first


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Shaping:
    """What changes the distribution that is drawn from, beside a temperature.

    Attributes:
      top_k: int32[...], 0 for all; `top_p`, `min_p`, `penalty`: float32[...], as in `SamplingParams`.
      seen: bool[..., v], tokens of the path and the sample so far.
    """

    top_k: Array
    top_p: Array
    min_p: Array
    penalty: Array
    seen: Array


def sample(
    logits_rv: jax.Array,
    temperature_r: jax.Array,
    seeds_r: jax.Array,
    place_r: jax.Array,
    shaping: Shaping | None = None,
) -> tuple[jax.Array, jax.Array]:
    """One token a row, and its log-probability under the logits themselves (temperature 1, nothing filtered).

    Inverse transform of one uniform number: first a block of the vocabulary, then a token in it. Temperature 0 takes the
    highest logit (lowest index on ties).
    """
    drawn_rv = logits_rv if shaping is None else shaped(logits_rv, temperature_r, shaping)
    r, v = logits_rv.shape
    cut = jnp.pad(drawn_rv, ((0, 0), (0, -v % _BLOCK)), constant_values=-jnp.inf).reshape(r, -1, _BLOCK)
    highs = cut.max(-1)
    high = highs.max(-1, keepdims=True)
    best_block = jnp.argmax(highs == high, axis=-1)
    best = best_block * _BLOCK + jnp.argmax(_row_block(cut, best_block) == high, axis=-1)

    greedy = temperature_r <= 0
    mass = jnp.exp((cut - high[..., None]) / jnp.where(greedy, 1.0, temperature_r)[:, None, None])
    uniform = jax.vmap(lambda seed, place: jax.random.uniform(jax.random.fold_in(jax.random.key(seed), place)))(
        seeds_r, jnp.broadcast_to(place_r, seeds_r.shape)
    )
    blocks = mass.sum(-1)
    before = _running_sum(blocks)
    target = uniform[:, None] * before[:, -1:]
    block = jnp.argmax(before > target, axis=-1)
    inside = _row_block(mass, block)
    offset = jnp.take_along_axis(before - blocks, block[:, None], axis=1)
    crossed = (offset + _running_sum(inside) > target) & (inside > 0)
    drawn = block * _BLOCK + jnp.argmax(crossed, axis=-1)
    token = jnp.where(greedy | ~crossed.any(-1), best, drawn).astype(jnp.int32)

    if shaping is not None:
        high = logits_rv.max(-1, keepdims=True)
    norm = jnp.log(jnp.sum(jnp.exp(logits_rv - high), axis=-1)) + high[:, 0]
    return token, jnp.take_along_axis(logits_rv, token[:, None], axis=1)[:, 0] - norm


def shaped(logits_rv: jax.Array, temperature_r: jax.Array, shaping: Shaping) -> jax.Array:
    """The logits [r, v] with repetition penalised, and -inf where a filter leaves nothing to draw."""
    v = logits_rv.shape[1]
    penalty = jnp.where(shaping.seen, shaping.penalty[:, None], 1.0)
    logits_rv = jnp.where(logits_rv > 0, logits_rv / penalty, logits_rv * penalty)
    scaled = logits_rv / jnp.where(temperature_r > 0, temperature_r, 1.0)[:, None]
    ordered = -jnp.sort(-scaled, axis=-1)
    index = jnp.arange(v)
    ordered = jnp.where((shaping.top_k[:, None] > 0) & (index >= shaping.top_k[:, None]), -jnp.inf, ordered)
    probability = jax.nn.softmax(ordered, axis=-1)
    before = jnp.cumsum(probability, axis=-1) - probability
    kept = (index == 0) | ((before < shaping.top_p[:, None]) | (shaping.top_p[:, None] >= 1)) & (ordered > -jnp.inf)
    kept &= probability >= shaping.min_p[:, None] * probability[:, :1]
    lowest = jnp.where(kept, ordered, jnp.inf).min(-1, keepdims=True)
    return jnp.where(scaled >= lowest, logits_rv, -jnp.inf)


def most_likely(logits_rv: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """int32[r, k] and float32[r, k]: the most likely tokens and their log-probabilities."""
    highest, token = jax.lax.top_k(logits_rv, min(k, logits_rv.shape[1]))
    return token.astype(jnp.int32), highest - jax.nn.logsumexp(logits_rv, axis=-1, keepdims=True)


def fold(seed: int, index: int) -> int:
    """A 32-bit seed for sample `index` of a request (a Weyl step and a finaliser: neighbours are unrelated)."""
    x = (seed * 0x9E3779B1 + index * 0x85EBCA77 + 0x165667B1) & 0xFFFFFFFF
    x = ((x ^ (x >> 15)) * 0x2C1B3C6D) & 0xFFFFFFFF
    x = ((x ^ (x >> 12)) * 0x297A2D39) & 0xFFFFFFFF
    return x ^ (x >> 15)


def _row_block(x_rbi: jax.Array, block_r: jax.Array) -> jax.Array:
    return jnp.take_along_axis(x_rbi, block_r[:, None, None], axis=1)[:, 0]


def _running_sum(x_ri: jax.Array) -> jax.Array:
    """Cumulative sum along the last axis as a product with a triangle: fast on every platform for a few hundred entries."""
    size = x_ri.shape[-1]
    return jnp.matmul(x_ri, jnp.triu(jnp.ones((size, size), x_ri.dtype)), precision=jax.lax.Precision.HIGHEST)
