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
from agentrm_jax.models import lora
from agentrm_jax.models.transformer import Transformer, token_logprobs, values
from agentrm_jax.models.weights import Params
from agentrm_jax.training import losses
from agentrm_jax.types import UserError

Metrics = dict[str, jax.Array]
Loss = Callable[[Transformer, Mapping[str, jax.Array]], tuple[jax.Array, Metrics]]


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["step", "params", "opt_state", "rng", "frozen"], meta_fields=[]
)
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Step counter, trained parameters (an NNX state), optimizer state, the random key of the run, frozen parameters.

    Frozen parameters (the base of adapters; else none) are read by every step and neither donated, copied nor checkpointed.
    """

    step: jax.Array
    params: nnx.State
    opt_state: optax.OptState
    rng: jax.Array
    frozen: nnx.State = dataclasses.field(default_factory=lambda: nnx.State({}))


def _init(make_model: Callable[[nnx.Rngs], Transformer], tx: optax.GradientTransformation) -> Callable[..., TrainState]:
    """(random key, parameters that are already there) -> a state at step 0."""

    def init(rng: jax.Array, given: Params) -> TrainState:
        init_rng, run_rng = jax.random.split(rng)
        params = nnx.state(make_model(nnx.Rngs(params=init_rng)), nnx.Param)
        # What is given is never initialised: the compiler drops what nobody reads.
        nnx.replace_by_pure_dict(params, given)
        params, frozen = lora.split(params)
        return TrainState(jnp.zeros((), jnp.int32), params, tx.init(params), jax.random.key_data(run_rng), frozen)

    return init


def abstract_state(
    make_model: Callable[[nnx.Rngs], Transformer], tx: optax.GradientTransformation, mesh: Mesh
) -> tuple[nnx.GraphDef, TrainState, TrainState]:
    """What a state will be, without making it: (graph definition, shapes with their shardings, the shardings alone)."""
    graphdef = nnx.graphdef(nnx.eval_shape(lambda: make_model(nnx.Rngs(0))))
    shape = jax.eval_shape(_init(make_model, tx), jax.random.key(0), {})
    placed = parallel.shardings(shape, mesh)
    return (
        graphdef,
        jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shape, placed),
        placed,
    )


def init_state(
    make_model: Callable[[nnx.Rngs], Transformer],
    tx: optax.GradientTransformation,
    mesh: Mesh,
    seed: int,
    read: Callable[[Params], Params] | None = None,
) -> tuple[nnx.GraphDef, TrainState, TrainState]:
    """A fresh state, each array created where it belongs. Returns (graph definition, state, its shardings).

    With `read`, parameters come from a model that is there already: it is asked for all of them (shape, type, sharding) and gives
    those it has, shard by shard; only the others (a new head) are initialised. Nothing is ever on one device as a whole.
    """
    graphdef, shape, placed = abstract_state(make_model, tx, mesh)
    given = read(nnx.to_pure_dict(nnx.merge_state(shape.params, shape.frozen))) if read else {}
    init = jax.jit(_init(make_model, tx), donate_argnums=1, out_shardings=placed)
    return graphdef, init(jax.random.key(seed), given), placed


def read_frozen(state: TrainState, read: Callable[[Params], Params]) -> TrainState:
    """A restored state, whose frozen parameters are shapes as yet, with these read from the base."""
    frozen = jax.tree.map(lambda x: x, state.frozen)
    nnx.replace_by_pure_dict(frozen, read(nnx.to_pure_dict(frozen)))
    return dataclasses.replace(state, frozen=frozen)


def make_train_step(
    graphdef: nnx.GraphDef, tx: optax.GradientTransformation, loss_fn: Loss, placed: TrainState, mesh: Mesh
) -> Callable[[TrainState, Mapping[str, jax.Array]], tuple[TrainState, Metrics]]:
    """The jitted update: (state, batch) -> (state, metrics). The old state is donated, but for what is frozen.

    Metrics are replicated scalars.
    """

    nothing: nnx.State = nnx.State({})
    out = dataclasses.replace(placed, frozen=nothing), NamedSharding(mesh, PartitionSpec())

    @functools.partial(jax.jit, donate_argnums=0, out_shardings=out)
    def train_step(state: TrainState, frozen: nnx.State, batch: Mapping[str, jax.Array]) -> tuple[TrainState, Metrics]:
        def loss(params: nnx.State) -> tuple[jax.Array, Metrics]:
            return loss_fn(nnx.merge(graphdef, params, frozen), batch)

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
            new, metrics = train_step(dataclasses.replace(state, frozen=nothing), state.frozen, batch)
        return dataclasses.replace(new, frozen=state.frozen), metrics

    def lower(state: TrainState, batch: Mapping[str, jax.Array]) -> jax.stages.Lowered:
        with jax.set_mesh(mesh):
            return train_step.lower(dataclasses.replace(state, frozen=nothing), state.frozen, batch)

    update.compilations = train_step._cache_size  # type: ignore[attr-defined]
    update.lower = lower  # type: ignore[attr-defined]  # of shapes too: what the program needs before anything is made
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


def optimizer_of(config: Any) -> optax.GradientTransformation:
    """The optimizer that a training config asks for."""
    return make_optimizer(
        learning_rate=config.learning_rate,
        warmup=config.warmup,
        total_steps=config.total_steps,
        weight_decay=config.weight_decay,
        clip=config.clip,
    )


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
            lambda v: not {"embed", "rank"}.isdisjoint(v.get_metadata().get("axes", ())),
            params,
            is_leaf=lambda v: isinstance(v, nnx.Variable),
        )

    return optax.chain(
        optax.clip_by_global_norm(clip), optax.adamw(schedule, b2=b2, weight_decay=weight_decay, mask=decays)
    )
