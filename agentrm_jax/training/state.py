"""What training carries from step to step, and the step itself."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from agentrm_jax import parallel
from agentrm_jax.models.transformer import Transformer, token_logprobs, values
from agentrm_jax.training import losses
from agentrm_jax.types import UserError

Metrics = dict[str, jax.Array]
Loss = Callable[[Transformer, Mapping[str, jax.Array]], tuple[jax.Array, Metrics]]


@functools.partial(jax.tree_util.register_dataclass, data_fields=["step", "params", "opt_state", "rng"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Step counter, parameters (an NNX state), optimizer state, and the random key of the run."""

    step: jax.Array
    params: nnx.State
    opt_state: optax.OptState
    rng: jax.Array


def init_state(
    make_model: Callable[[nnx.Rngs], Transformer], tx: optax.GradientTransformation, mesh: Mesh, seed: int
) -> tuple[nnx.GraphDef, TrainState, TrainState]:
    """A fresh state, each array created where it belongs. Returns (graph definition, state, its shardings)."""

    def init(rng: jax.Array) -> TrainState:
        init_rng, run_rng = jax.random.split(rng)
        params = nnx.state(make_model(nnx.Rngs(params=init_rng)), nnx.Param)
        return TrainState(jnp.zeros((), jnp.int32), params, tx.init(params), jax.random.key_data(run_rng))

    graphdef = nnx.graphdef(nnx.eval_shape(lambda: make_model(nnx.Rngs(0))))
    placed = parallel.shardings(jax.eval_shape(init, jax.random.key(0)), mesh)
    return graphdef, jax.jit(init, out_shardings=placed)(jax.random.key(seed)), placed


def make_train_step(
    graphdef: nnx.GraphDef, tx: optax.GradientTransformation, loss_fn: Loss, placed: TrainState, mesh: Mesh
) -> Callable[[TrainState, Mapping[str, jax.Array]], tuple[TrainState, Metrics]]:
    """The jitted update: (state, batch) -> (state, metrics). The old state is donated; metrics are replicated scalars."""

    @functools.partial(jax.jit, donate_argnums=0, out_shardings=(placed, NamedSharding(mesh, PartitionSpec())))
    def train_step(state: TrainState, batch: Mapping[str, jax.Array]) -> tuple[TrainState, Metrics]:
        def loss(params: nnx.State) -> tuple[jax.Array, Metrics]:
            return loss_fn(nnx.merge(graphdef, params), batch)

        (value, metrics), gradients = jax.value_and_grad(loss, has_aux=True)(state.params)
        updates, opt_state = tx.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {
            "loss": value,
            "gradient_norm": optax.tree.norm(gradients),
            "parameter_norm": optax.tree.norm(params),
            "tokens": jnp.sum(batch["previous"] >= 0, dtype=jnp.int32),
            **metrics,
        }
        return TrainState(state.step + 1, params, opt_state, state.rng), metrics

    def update(state: TrainState, batch: Mapping[str, jax.Array]) -> tuple[TrainState, Metrics]:
        with jax.set_mesh(mesh):  # attention looks at it to keep its loops on their own shards
            return train_step(state, batch)

    update.compilations = train_step._cache_size  # type: ignore[attr-defined]
    return update


def make_loss(kind: str, dtype: Any) -> Loss:
    """`imitation`, `regression` or `cross_entropy` as a function of model and packed batch; metrics beside the loss."""

    def hidden_states(model: Transformer, batch: Mapping[str, jax.Array]) -> jax.Array:
        return model(batch["tokens"], batch["positions"], batch["subtree_end"], dtype=dtype)

    def imitate(model: Transformer, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, Metrics]:
        logprobs = token_logprobs(model, hidden_states(model, batch), batch["tokens"], batch["previous"])
        weights = batch["loss_weight"]
        return losses.imitation(logprobs, weights), {"trained_tokens": jnp.sum(weights > 0, dtype=jnp.int32)}

    def evaluate(model: Transformer, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, Metrics]:
        predicted = values(model, hidden_states(model, batch))
        targets, weights = batch["value"], batch["value_weight"]
        loss = {"regression": losses.regression, "cross_entropy": losses.cross_entropy}[kind]
        expected = jax.nn.sigmoid(predicted) if kind == "cross_entropy" else predicted
        mean = losses.weighted_mean(targets, weights)
        metrics = {
            "squared_error": losses.regression(expected, targets, weights),
            "target_variance": losses.regression(jnp.broadcast_to(mean, targets.shape), targets, weights),
            "states": jnp.sum(weights > 0, dtype=jnp.int32),
        }
        return loss(predicted, targets, weights), metrics

    if kind not in ("imitation", "regression", "cross_entropy"):
        raise UserError(f"--config.loss={kind}: known losses are imitation, regression and cross_entropy")
    return imitate if kind == "imitation" else evaluate


def make_optimizer(
    *, learning_rate: float, warmup: float, total_steps: int, weight_decay: float, clip: float, b2: float = 0.999
) -> optax.GradientTransformation:
    """AdamW with a cosine schedule to zero after a linear warm-up (a fraction of all steps), gradients clipped by norm.

    Decay applies to matrices only, not to norms, biases and the value head.
    """
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, learning_rate, max(int(warmup * total_steps), 1), max(total_steps, 2), 0.0
    )

    def decays(params: Any) -> Any:
        return jax.tree.map(
            lambda v: "embed" in v.get_metadata().get("axes", ()), params, is_leaf=lambda v: isinstance(v, nnx.Variable)
        )

    return optax.chain(
        optax.clip_by_global_norm(clip), optax.adamw(schedule, b2=b2, weight_decay=weight_decay, mask=decays)
    )


def adopt(state: TrainState, placed: TrainState, model: Transformer) -> TrainState:
    """The state with every parameter that `model` has too taken from it; what it lacks (a new head) stays as it was."""
    theirs = dict(nnx.to_flat_state(nnx.state(model, nnx.Param)))
    shardings = dict(nnx.to_flat_state(placed.params))
    flat = []
    for path, variable in nnx.to_flat_state(state.params):
        if path in theirs:
            value = jax.device_put(theirs[path][...].astype(variable[...].dtype), shardings[path].get_value())
            variable = variable.replace(value)
        flat.append((path, variable))
    return dataclasses.replace(state, params=nnx.from_flat_state(flat))
