"""Rows of every layout train every objective that docs/data.md says they can: the loss of a small model falls."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import jaxtyping
import ml_collections
import numpy as np
import optax
import pytest
from flax import nnx

from agentrm_jax import parallel, tree
from agentrm_jax.chat import load_chat
from agentrm_jax.data import conversations, files, own
from agentrm_jax.models.config import ModelConfig
from agentrm_jax.models.transformer import Transformer, token_logprobs
from agentrm_jax.tokenizer import train_tokenizer
from agentrm_jax.training import objectives
from agentrm_jax.training.step import init_state, make_train_step
from agentrm_jax.types import UserError
from tests.data.layout_rows import ROWS
from tests.data.test_own import records

LENGTH, STEPS = 256, 10
RATES = {"implicit_regression": 0.002, "pairwise": 0.004}
SETTINGS = {"beta": 0.1, "center": 0.0, "advantage_weight": 1.0, "td_lambda": 0.9}
MODEL = ModelConfig(
    vocab_size=1024, num_layers=1, d_model=32, num_heads=2, num_kv_heads=1, head_dim=16, d_ff=48, max_length=LENGTH
)


@pytest.fixture(scope="module")
def chat():
    every = own.Rows("all", [one for rows in ROWS.values() for one in records(rows)], files.refuse)
    return load_chat(train_tokenizer(every.texts(), MODEL.vocab_size))


@pytest.fixture(autouse=True)
def unchecked(monkeypatch):
    """Attention over long rows is compiled with a window that is a number of numpy's; its annotations say JAX's."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


@functools.cache
def program(loss: str):
    """(objective, mesh, state maker, compiled step), the same for all layouts: their rows have one shape."""
    objective = objectives.of(ml_collections.ConfigDict({"loss": loss, **SETTINGS}))
    mesh, tx = parallel.make_mesh(devices=jax.devices()[:1]), optax.adam(RATES.get(loss, 0.02))

    def make(rngs: nnx.Rngs) -> Transformer:
        return Transformer(MODEL, rngs=rngs, lm_head=objective.lm_head, value_head=objective.value_head)

    graphdef, _, placed = init_state(make, tx, mesh, 0)
    step = make_train_step(graphdef, tx, objective.loss(jnp.float32), placed, mesh, weight=objective.weight)
    reference = jax.jit(
        lambda params, batch: token_logprobs(
            model := nnx.merge(graphdef, params), objectives.hidden_states(model, batch, jnp.float32), batch["tokens"], batch["previous"]
        )
    )  # fmt: skip
    return objective, mesh, lambda: init_state(make, tx, mesh, 0)[1], step, reference


def trained(name: str, loss: str, chat) -> list[float]:
    """The losses of a few updates, all on one row of the layout's trees."""
    objective, mesh, fresh, step, reference = program(loss)
    encode = functools.partial(conversations.segments, chat=chat)
    rows = own.Rows(name, records(ROWS[name]), files.Skipped())
    made = own.made(rows, objective.lesson, encode, row_length=LENGTH, loss=loss)
    row = tree.to_row([made.flat[i] for i in tree.pack(made.flat, LENGTH)[0]], LENGTH)
    names = ("tokens", "positions", "subtree_end", "previous", *objective.fields)
    batch = parallel.put_batch({n: getattr(row, n)[None] for n in names if n != "reference"}, mesh)
    state = fresh()
    if objective.reference:
        with jax.set_mesh(mesh):
            batch["reference"] = reference(state.params, batch)
    losses = []
    for _ in range(STEPS):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    return losses


# An objective of each lesson, but for that of `promise`, whose targets are those of two of these. What a layout cannot train, the page
# says, and a test beside it.
@pytest.mark.parametrize("loss", ["imitation", "regression", "temporal_difference", "pairwise", "implicit_regression"])
def test_every_layout_trains_the_objectives_that_it_can(loss, chat):
    learned = set()
    for name in ROWS:
        with contextlib.suppress(UserError):
            losses = trained(name, loss, chat)
            assert np.isfinite(losses).all()
            assert losses[-1] < 0.7 * losses[0], (name, losses)
            learned.add(name)
    assert len(learned) >= {"imitation": len(ROWS), "pairwise": 6}.get(loss, 14)
