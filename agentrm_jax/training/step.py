"""The state that training carries from step to step, how it is made and placed, and the compiled update."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from agentrm_jax import parallel
from agentrm_jax.models import lora
from agentrm_jax.models.transformer import Transformer
from agentrm_jax.models.weights import Params
from agentrm_jax.training import accumulation
from agentrm_jax.training.accumulation import Weight
from agentrm_jax.training.objectives import Batch, Loss, Metrics


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["step", "params", "opt_state", "frozen"], meta_fields=[]
)
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that an update reads, and changes, beside its batch. Nothing random: an update has no dropout.

    Attributes:
      step: int32 scalar, the number of updates so far.
      params: trained parameters, an NNX state.
      opt_state: the optimizer's state for them.
      frozen: parameters that are read only (the base of adapters; else none): neither donated, copied nor checkpointed.
    """

    step: jax.Array
    params: nnx.State
    opt_state: optax.OptState
    frozen: nnx.State = dataclasses.field(default_factory=lambda: nnx.State({}))


def _init(make_model: Callable[[nnx.Rngs], Transformer], tx: optax.GradientTransformation) -> Callable[..., TrainState]:
    """The function from a random key, and parameters that exist already, to a state at step 0."""

    def init(rng: jax.Array, given: Params) -> TrainState:
        init_rng = jax.random.split(rng)[0]  # not `rng` itself: a seed gives the parameters that it always gave
        params = nnx.state(make_model(nnx.Rngs(params=init_rng)), nnx.Param)
        # What is given is never initialised: the compiler drops what nobody reads.
        nnx.replace_by_pure_dict(params, given)
        params, frozen = lora.split(params)
        return TrainState(jnp.zeros((), jnp.int32), params, tx.init(params), frozen)

    return init


def abstract_state(
    make_model: Callable[[nnx.Rngs], Transformer], tx: optax.GradientTransformation, mesh: Mesh
) -> tuple[nnx.GraphDef, TrainState, TrainState]:
    """A state's graph definition, its shapes with their shardings, and the shardings alone; no array is made."""
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

    With `read`, parameters come from an existing model: it is asked for all of them (shape, type, sharding) and gives those it
    has, shard by shard; only the others (a new head) are initialised. No device ever holds a whole sharded array.
    """
    graphdef, shape, placed = abstract_state(make_model, tx, mesh)
    given = read(nnx.to_pure_dict(nnx.merge_state(shape.params, shape.frozen))) if read else {}
    init = jax.jit(_init(make_model, tx), donate_argnums=1, out_shardings=placed)
    return graphdef, init(jax.random.key(seed), given), placed


def read_frozen(state: TrainState, read: Callable[[Params], Params]) -> TrainState:
    """A restored state with its frozen parameters, which are only shapes before, read from the base."""
    frozen = jax.tree.map(lambda x: x, state.frozen)
    nnx.replace_by_pure_dict(frozen, read(nnx.to_pure_dict(frozen)))
    return dataclasses.replace(state, frozen=frozen)


def make_train_step(
    graphdef: nnx.GraphDef,
    tx: optax.GradientTransformation,
    loss_fn: Loss,
    placed: TrainState,
    mesh: Mesh,
    *,
    accumulate: int = 1,
    weight: Weight | None = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """The compiled update: (state, batch of arrays [b, t]) -> (state, metrics).

    The old state is donated, except for its frozen parameters. Metrics are replicated scalars: those of the objective, and
    `loss`, `gradient_norm` (before clipping), `parameter_norm` (after the update) and `tokens` (that are no padding). Where loss or
    gradient are not finite the update is not made: the new state is the old one, its step included.

    Args:
      accumulate: parts that the rows are read in, one after another; needs `weight` (`accumulation.value_and_grad`).
    """

    nothing: nnx.State = nnx.State({})
    out = dataclasses.replace(placed, frozen=nothing), NamedSharding(mesh, PartitionSpec())

    @functools.partial(jax.jit, donate_argnums=0, out_shardings=out)
    def train_step(state: TrainState, frozen: nnx.State, batch: Batch) -> tuple[TrainState, Metrics]:
        def loss(params: nnx.State, part: Batch) -> tuple[jax.Array, Metrics]:
            return loss_fn(nnx.merge(graphdef, params, frozen), part)

        (value, metrics), gradients = accumulation.value_and_grad(
            loss, state.params, batch, parts=accumulate, weight=weight
        )
        norm = optax.tree.norm(gradients)

        def updated() -> TrainState:
            updates, opt_state = tx.update(gradients, state.opt_state, state.params)
            return TrainState(state.step + 1, optax.apply_updates(state.params, updates), opt_state)

        # A branch, not a choice between arrays: that would hold old and new ones at the same time.
        new = jax.lax.cond(jnp.isfinite(value) & jnp.isfinite(norm), updated, lambda: state)
        metrics = {
            "loss": value,
            "gradient_norm": norm,
            "parameter_norm": optax.tree.norm(new.params),
            "tokens": jnp.sum(batch["previous"] >= 0, dtype=jnp.int32),
            **metrics,
        }
        return new, metrics

    def update(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        with jax.set_mesh(mesh):  # attention looks at it to keep its loops on their own shards
            new, metrics = train_step(dataclasses.replace(state, frozen=nothing), state.frozen, batch)
        return dataclasses.replace(new, frozen=state.frozen), metrics

    def lower(state: TrainState, batch: Batch) -> jax.stages.Lowered:
        with jax.set_mesh(mesh):
            return train_step.lower(dataclasses.replace(state, frozen=nothing), state.frozen, batch)

    update.compilations = train_step._cache_size  # type: ignore[attr-defined]
    update.lower = lower  # type: ignore[attr-defined]  # of shapes too: what the program needs before anything is made
    return update
