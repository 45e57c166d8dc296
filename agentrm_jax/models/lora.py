"""Low-rank adapters (LoRA, arXiv 2106.09685): y = x W + (alpha / rank) (x A) B, where W stays as it is and A, B are trained.

Adapters are a small tree beside the weights they change, `layers.adapters.wq_dnh.{a, b}`, stacked on l like these. Training
multiplies by A, then by B: neither W + AB nor a gradient of W's size is ever made. After training `merge` adds A B to W, which
gives an ordinary model.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from agentrm_jax.models.linear import linear
from agentrm_jax.types import JSON, UserError

Params = dict[str, Any]

# The name users know -> our parameter, and how many of its leading axes are its input.
TARGETS: dict[str, tuple[str, int]] = {
    "q_proj": ("wq_dnh", 1),
    "k_proj": ("wk_dkh", 1),
    "v_proj": ("wv_dkh", 1),
    "o_proj": ("wo_nhd", 2),
    "gate_proj": ("w_gate_df", 1),
    "up_proj": ("w_up_df", 1),
    "down_proj": ("w_down_fd", 1),
}
ALL = "all-linear"


@dataclasses.dataclass(frozen=True)
class LoRA:
    """Which linear maps of every layer get an adapter, and of what size.

    Attributes:
      rank: columns of A and rows of B, at least 1.
      alpha: the product is multiplied by alpha / rank.
      targets: names among `TARGETS`, in its order; `all-linear` stands for all of them.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...]

    def __post_init__(self) -> None:
        known = f"known targets are {', '.join(TARGETS)} and {ALL}"
        if unknown := [t for t in self.targets if t not in TARGETS and t != ALL]:
            raise UserError(f"--config.lora.targets: no linear map is called {unknown[0]!r}; {known}")
        if not self.targets:
            raise UserError(f"--config.lora.targets is empty; {known}")
        if self.rank < 1:
            raise UserError(f"--config.lora.rank={self.rank}: must be at least 1, or 0 to train every parameter")
        if not self.alpha > 0:
            raise UserError(f"--config.lora.alpha={self.alpha}: must be more than 0")
        named = tuple(t for t in TARGETS if t in self.targets or ALL in self.targets)
        object.__setattr__(self, "targets", named)

    @classmethod
    def requested(cls, base: str, *, rank: int, alpha: float, targets: tuple[str, ...]) -> "LoRA | None":
        """The adapters that a config asks for; None if its rank is 0.

        Raises:
          UserError: a value is wrong, or there is no `base` to adapt.
        """
        if rank == 0:
            return None
        if not base:
            raise UserError(
                f"--config.lora.rank={rank} adapts a model that is there already: name it with --config.init"
            )
        return cls(rank, alpha, tuple(targets))

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def to_json(self) -> dict[str, JSON]:
        return {"rank": self.rank, "alpha": self.alpha, "targets": list(self.targets)}

    @classmethod
    def from_json(cls, fields: dict[str, JSON]) -> "LoRA":
        return cls(fields["rank"], fields["alpha"], tuple(fields["targets"]))


def new_adapters(lora: LoRA, block: nnx.Module, rngs: nnx.Rngs) -> nnx.Dict:
    """Adapters for one layer, float32: A uniform with bound (fan in)**-0.5 as in PEFT, B zero, so that nothing changes yet.

    All linear maps of a layer with experts are those of its attention.

    Raises:
      UserError: a map is named that the layer has not.
    """

    def pair(weight: nnx.Param, inputs: int) -> nnx.Dict:
        into, out = weight.shape[:inputs], weight.shape[inputs:]
        axes = weight.get_metadata()["axes"]
        bound = math.prod(into) ** -0.5
        a = jax.random.uniform(rngs.params(), (*into, lora.rank), jnp.float32, -bound, bound)
        b = jnp.zeros((lora.rank, *out), jnp.float32)
        return nnx.Dict(a=nnx.Param(a, axes=(*axes[:inputs], "rank")), b=nnx.Param(b, axes=("rank", *axes[inputs:])))

    has = [t for t in lora.targets if hasattr(block, TARGETS[t][0])]
    if len(has) < len(lora.targets) < len(TARGETS):
        missing = ", ".join(t for t in lora.targets if t not in has)
        raise UserError(f"--config.lora.targets: experts get no adapters, so layers of this model have no {missing}")
    chosen = (TARGETS[t] for t in has)
    return nnx.Dict({name: pair(getattr(block, name), inputs) for name, inputs in chosen})


def low_rank(x: Float[Array, "b t *inputs"], pair: nnx.Dict, scale: float) -> Float[Array, "b t *outputs"]:
    """scale (x A) B, in the type of x."""
    return linear(linear(x, pair["a"][...]) * scale, pair["b"][...])


def split(params: nnx.State) -> tuple[nnx.State, nnx.State]:
    """(trained, frozen) parameters: adapters and value head, and the rest. A model without adapters is trained as a whole."""
    adapters = nnx.PathContains("adapters")
    if not nnx.to_flat_state(nnx.filter_state(params, adapters)):
        return params, nnx.State({})
    heads = (nnx.PathContains(name) for name in ("value_d", "value_ed"))
    trained, frozen = nnx.split_state(params, nnx.Any(adapters, *heads), ...)
    return trained, frozen


def merge(params: Params, trained: Params, lora: LoRA) -> Params:
    """An ordinary model's parameters: those of the base with W + (alpha / rank) A B and the trained heads in their places.

    Every weight keeps its type and sharding; sums are float32. Arrays of `params` that change are used up (donated).
    """
    layers = dict(params["layers"])
    for name, pair in trained["layers"]["adapters"].items():
        weight = layers[name]
        layers[name] = _add(weight.sharding)(weight, pair["a"], pair["b"], lora.scale)
    return params | {k: v for k, v in trained.items() if k != "layers"} | {"layers": layers}


@functools.cache
def _add(sharding: jax.sharding.Sharding) -> Any:
    product = functools.partial(jnp.tensordot, axes=1, precision=jax.lax.Precision.HIGHEST)

    def add(weight: jax.Array, a: jax.Array, b: jax.Array, scale: jax.Array) -> jax.Array:
        return (weight.astype(jnp.float32) + scale * jax.vmap(product)(a, b)).astype(weight.dtype)

    return jax.jit(add, donate_argnums=0, out_shardings=sharding)
