"""A decoder-only transformer over token trees, with a language-model head, a value head, or both."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from agentrm_jax.models.attention import ATTENTION, tree_attention
from agentrm_jax.models.config import ModelConfig
from agentrm_jax.models.layers import PRODUCT, Attend, Block, rms_norm
from agentrm_jax.models.lora import LoRA
from agentrm_jax.models.rope import Rotation, rotation, rotations
from agentrm_jax.models.tiles import NO_WINDOW
from agentrm_jax.models.vocabulary import log_probabilities, look_up
from agentrm_jax.parallel import BATCH, constrain

AttendLayer = Callable[[int], Attend]


VALUE_HEADS = ("value_d", "value_ed")  # parameters that are value heads: a model has one of them, or none


class Transformer(nnx.Module):
    """Embeds tokens, runs the layers, and returns final hidden states; heads are applied by the functions below.

    Parameters of all layers are stacked on a leading axis l, so that a checkpoint does not depend on how they are run:
    `scan` runs one compiled layer l times (training of deep models), otherwise the loop is unrolled.
    For the gradient, only what enters a layer is kept with `remat`; otherwise also the results of its products and of
    attention, and what is computed from them element by element is computed again.

    Attributes:
      embed_vd: token embeddings, also the output map when embeddings are tied.
      layers: a `Block` whose arrays have a leading axis l; with `lora` it has adapters, float32 whatever `dtype` is.
      head_dv: output map of an untied language-model head.
      value_d: the value head: one bias-free linear map on the final hidden state, float32, zero at the start.
      value_ed: instead of it, an ensemble of `heads` such maps.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        rngs: nnx.Rngs,
        lm_head: bool = True,
        value_head: bool = False,
        heads: int = 1,
        dtype: DTypeLike = jnp.float32,
        scan: bool = False,
        remat: bool = False,
        lora: LoRA | None = None,
    ):
        c = config
        self.config, self.scan, self.remat = config, scan, remat
        self.embed_vd = nnx.Param(
            jax.random.normal(rngs.params(), (c.vocab_size, c.d_model), dtype) * c.d_model**-0.5,
            axes=("vocab", "embed"),
        )
        self.layers = nnx.vmap(lambda r: Block(config, dtype=dtype, rngs=r, lora=lora))(rngs.split(c.num_layers))
        self.final_norm_d = nnx.Param(jnp.full((c.d_model,), 1.0 - c.norm_offset, dtype), axes=("norm",))
        if lm_head and not c.tie_embeddings:
            self.head_dv = nnx.Param(
                jax.random.normal(rngs.params(), (c.d_model, c.vocab_size), dtype) * c.d_model**-0.5,
                axes=("embed", "vocab"),
            )
        if value_head and heads == 1:
            self.value_d = nnx.Param(jnp.zeros((c.d_model,), jnp.float32), axes=("norm",))
        elif value_head:
            self.value_ed = nnx.Param(jnp.zeros((heads, c.d_model), jnp.float32), axes=("ensemble", "norm"))

    def __call__(
        self,
        tokens_bt: Int[Array, "b t"],
        positions_bt: Int[Array, "b t"],
        subtree_end_bt: Int[Array, "b t"],
        *,
        dtype: DTypeLike = jnp.float32,
    ) -> Float[Array, "b t d"]:
        """Final hidden states of flattened token trees (see `agentrm_jax.tree`), computed in `dtype`."""
        c = self.config
        short = [w if w is not None and w < tokens_bt.shape[1] else None for w in c.windows]

        def layer(x: jax.Array, block: Block, window: jax.Array | int | None, turn: Rotation | None) -> jax.Array:
            def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
                return tree_attention(q, k, v, subtree_end_bt, positions_bt=positions_bt, window=window)

            return constrain(block(x, positions_bt, attend, turn), BATCH)

        kept = jax.checkpoint_policies.save_only_these_names(*(() if self.remat else (PRODUCT, ATTENTION)))

        def run(x: jax.Array, block: Block, **how: Any) -> jax.Array:
            return jax.checkpoint(functools.partial(layer, **how), prevent_cse=not self.scan, policy=kept)(x, block)

        x = self.embed(tokens_bt, dtype)
        if self.scan:
            same = len(set(short)) == 1
            windows = None if same else jnp.array([NO_WINDOW if w is None else w for w in short])

            def one(x: jax.Array, xs: tuple[Block, jax.Array | None, Rotation | None]) -> tuple[jax.Array, None]:
                block, window, turn = xs  # what does not differ from layer to layer is not among them
                return run(x, block, window=short[0] if same else window, turn=turn or rotation(c, 0)), None

            x, _ = jax.lax.scan(one, x, (self.layers, windows, rotations(c)))
        else:
            for l, block in enumerate(self.unstacked()):
                x = run(x, block, window=short[l], turn=rotation(c, l))
        return rms_norm(x, self.final_norm_d[...], c.norm_eps, c.norm_offset)

    def embed(self, tokens_bt: Int[Array, "b t"], dtype: DTypeLike) -> Float[Array, "b t d"]:
        """Token embeddings in `dtype`, as the first layer reads them."""
        x = look_up(self.embed_vd[...], tokens_bt, dtype)
        return x * jnp.asarray(self.config.d_model**0.5, dtype) if self.config.scale_embeddings else x

    def unstacked(self) -> list[Block]:
        """The layers one by one, as views on the stacked parameters."""
        leaves, structure = jax.tree.flatten(self.layers)
        parts = [jax.lax.split(a, (1,) * len(a)) for a in leaves]  # its gradient is one concatenation
        return [jax.tree.unflatten(structure, [p[l][0] for p in parts]) for l in range(self.config.num_layers)]


def output_map(model: Transformer) -> Float[Array, "d v"]:
    """The map from hidden states to logits."""
    return model.embed_vd[...].T if model.config.tie_embeddings else model.head_dv[...]


def logits(model: Transformer, hidden_btd: Float[Array, "b t d"]) -> Float[Array, "b t v"]:
    """Next-token logits, float32. For small vocabularies and tests; training uses `token_logprobs`."""
    head = output_map(model).astype(hidden_btd.dtype)
    return jnp.einsum("btd,dv->btv", hidden_btd, head, preferred_element_type=jnp.float32)


def value_map(model: Transformer) -> Float[Array, "d ..."] | None:
    """The value head, or the heads of an ensemble side by side; None for a model without one."""
    if hasattr(model, "value_ed"):
        return model.value_ed[...].T
    return model.value_d[...] if hasattr(model, "value_d") else None


def values(model: Transformer, hidden_btd: Float[Array, "b t d"]) -> Float[Array, "b t"]:
    """Predicted expected returns, float32; meaningful at end-of-turn tokens. Of an ensemble, the mean of its heads."""
    value_d = jnp.mean(model.value_ed[...], axis=0) if hasattr(model, "value_ed") else model.value_d[...]
    return finished_values(model.config, jnp.einsum("btd,d->bt", hidden_btd.astype(jnp.float32), value_d))


def finished_values(config: ModelConfig, raw: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Values as the model's makers read them, from what the value head gives."""
    raw = raw + config.value_bias if config.value_bias else raw
    return jax.nn.sigmoid(raw) if config.value_probability else raw


def head_values(model: Transformer, hidden_btd: Float[Array, "b t d"]) -> Float[Array, "b t e"]:
    """What each value head predicts; one entry for a model with a single head."""
    if not hasattr(model, "value_ed"):
        return values(model, hidden_btd)[..., None]
    return jnp.einsum("btd,ed->bte", hidden_btd.astype(jnp.float32), model.value_ed[...])


def token_logprobs(
    model: Transformer, hidden_btd: Float[Array, "b t d"], tokens_bt: Int[Array, "b t"], previous_bt: Int[Array, "b t"]
) -> Float[Array, "b t"]:
    """log p(token | its path) for every token, float32; 0 for a root's first token.

    The prediction of token j is read at `previous[j]`, the token before it on its path.
    """
    before = jnp.take_along_axis(hidden_btd, jnp.maximum(previous_bt, 0)[..., None], axis=1)
    return jnp.where(previous_bt >= 0, log_probabilities(output_map(model), before, tokens_bt), 0.0)
