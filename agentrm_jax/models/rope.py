"""Rotary positions: how far each pair of a head's dimensions turns a token, layer by layer, and the rotation itself.

Letters: b t n h as in `layers`, r pairs of dimensions that turn.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from agentrm_jax.models.config import ModelConfig, RopeScaling


class Rotation(NamedTuple):
    """How a layer turns queries and keys.

    Attributes:
      frequencies_r: radians a position, float32; the dimensions of a head behind the first 2 r are left as they are.
      amplitude: what the turned dimensions are multiplied by.
    """

    frequencies_r: jax.Array | np.ndarray
    amplitude: jax.Array | np.ndarray


def rope_frequencies(config: ModelConfig) -> Float[np.ndarray, " r"]:
    """Radians a position of every pair of dimensions that turns, float32, after the configured scaling."""
    plain, scaling = _plain(config, config.rope_theta), config.rope_scaling
    return (plain if scaling is None else _scaled(plain, scaling, config)).astype(np.float32)


def rotation(config: ModelConfig, l: int) -> Rotation | None:
    """How layer l turns; None if it does not."""
    if config.rope_layers and not config.rope_layers[l]:
        return None
    if config.local_rope_theta is not None and config.windows[l] is not None:
        return Rotation(_plain(config, config.local_rope_theta).astype(np.float32), np.ones((), np.float32))
    amplitude = config.rope_scaling.amplitude if config.rope_scaling else 1.0
    return Rotation(rope_frequencies(config), np.asarray(amplitude, np.float32))


def rotations(config: ModelConfig) -> Rotation | None:
    """The same for all layers, stacked on a leading axis l; None if all of them turn alike.

    A layer that does not turn has frequencies of 0, with which turning changes nothing.
    """
    if not config.rope_layers and config.local_rope_theta is None:
        return None
    still = Rotation(np.zeros_like(rope_frequencies(config)), np.ones((), np.float32))
    found = [rotation(config, l) or still for l in range(config.num_layers)]
    return Rotation(np.stack([f.frequencies_r for f in found]), np.stack([f.amplitude for f in found]))


def rotate(x_btnh: Float[Array, "b t n h"], positions_bt: Int[Array, "b t"], by: Rotation) -> Float[Array, "b t n h"]:
    """Rotary position embedding in Hugging Face's layout: of the dimensions that turn, i is paired with i + r."""
    size = 2 * by.frequencies_r.shape[-1]
    angle = positions_bt[..., None].astype(jnp.float32) * by.frequencies_r
    cos, sin = (f(angle)[:, :, None] * by.amplitude for f in (jnp.cos, jnp.sin))
    turned, rest = x_btnh[..., :size], x_btnh[..., size:]
    a, b = jnp.split(turned.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x_btnh.dtype)
    return jnp.concatenate([turned, rest], axis=-1) if rest.shape[-1] else turned


def _plain(config: ModelConfig, theta: float) -> np.ndarray:
    half = (config.rotary_dim or config.head_dim) // 2
    return 1.0 / theta ** (np.arange(half, dtype=np.float64) / half)


def _scaled(plain: np.ndarray, scaling: RopeScaling, config: ModelConfig) -> np.ndarray:
    match scaling.kind:
        case "linear":
            return plain / scaling.factor
        case "llama3":
            return _llama3(plain, scaling)
        case "yarn":
            return _yarn(plain, scaling, config.rope_theta)
        case "longrope":  # the other factors belong to paths that are longer than `max_length`
            return plain / np.asarray(scaling.short_factors)
        case "dynamic":  # paths that are longer than `max_length` would turn otherwise
            return plain


def _llama3(plain: np.ndarray, scaling: RopeScaling) -> np.ndarray:
    wavelength = 2 * np.pi / plain
    low = scaling.original_length / scaling.low_freq_factor
    high = scaling.original_length / scaling.high_freq_factor
    smooth = (scaling.original_length / wavelength - scaling.low_freq_factor) / (
        scaling.high_freq_factor - scaling.low_freq_factor
    )
    blended = (1 - smooth) * plain / scaling.factor + smooth * plain
    return np.where(wavelength > low, plain / scaling.factor, np.where(wavelength < high, plain, blended))


def _yarn(plain: np.ndarray, scaling: RopeScaling, theta: float) -> np.ndarray:
    """YaRN (arXiv 2309.00071, section 3.2): pairs that turn often in the original length stay, slow ones are stretched."""
    half = len(plain)

    def pair(turns: float) -> float:
        """The pair that turns so often in the original length."""
        return half * math.log(scaling.original_length / (turns * 2 * math.pi)) / math.log(theta)

    low, high = pair(scaling.beta_fast), pair(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, 2 * half - 1)
    ramp = np.clip((np.arange(half) - low) / (high - low or 0.001), 0, 1)
    return ramp * plain / scaling.factor + (1 - ramp) * plain
