"""What a frozen reference says of the data: computed once, kept, and the same for every packing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from agentrm_jax import parallel, tree
from agentrm_jax.data import datasets
from agentrm_jax.data.heldout import HeldOut
from agentrm_jax.models.lora import LoRA
from agentrm_jax.models.transformer import Transformer
from agentrm_jax.testing.tiny import dense_logits, tiny_model
from agentrm_jax.training import reference
from agentrm_jax.training.step import init_state
from agentrm_jax.tree import FlatTree, Node, Segment
from agentrm_jax.types import UserError

MODEL = tiny_model()
ROW = 40


def document(seed: int) -> tuple[FlatTree, list[list[int]]]:
    """A tree with two branches, and its paths."""
    rng = np.random.default_rng(seed)
    a, b, c = (rng.integers(1, 97, n).astype(np.int32) for n in rng.integers(3, 9, 3))
    nodes = [Node(Segment(x, "action", loss=True), p) for x, p in ((a, -1), (b, 0), (c, 0))]
    return tree.flatten(nodes), [[*a, *b], [*a, *c]]


DOCUMENTS = [document(seed) for seed in range(7)]


@pytest.fixture
def source(tmp_path):
    datasets.write_dataset(tmp_path, [flat for flat, _ in DOCUMENTS], meta={}, extra=("action",))
    return datasets.read_dataset(tmp_path)


def held_out() -> HeldOut:
    row = tree.to_row([flat for flat, _ in DOCUMENTS[:2]], 48)
    fields = ("tokens", "positions", "subtree_end", "previous", "action")
    nothing = np.zeros(0)
    return HeldOut({f: getattr(row, f)[None] for f in fields}, *[nothing] * 7)


def start(lora: LoRA | None = None):
    mesh = parallel.make_mesh(devices=jax.devices()[:1])
    config = MODEL.config
    given = nnx.to_pure_dict(nnx.state(MODEL, nnx.Param))

    def make(rngs: nnx.Rngs) -> Transformer:
        return Transformer(config, rngs=rngs, lora=lora)

    def read(wanted):
        return {k: _same(wanted[k], given[k]) for k in wanted}

    return functools.partial(init_state, make, optax.set_to_zero(), mesh, 0, read), mesh


def _same(wanted, given):
    return (
        {k: _same(v, given[k]) for k, v in wanted.items() if k in given}
        if isinstance(wanted, dict)
        else jnp.array(given)
    )


def attach(source, held, folder, begin, mesh):
    return reference.attach(source, held, folder, start=begin, mesh=mesh, rows=2, row_length=ROW, dtype=jnp.float32)


def alone(path: list[int]) -> np.ndarray:
    """log p of each token of a path, read by itself; 0 for the first."""
    logits = dense_logits(MODEL, path)[:-1]
    logp = (
        logits
        - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))
        - logits.max(-1, keepdims=True)
    )
    return np.concatenate([[0], logp[np.arange(len(path) - 1), path[1:]]])


@pytest.mark.parametrize("lora", [None, LoRA(2, 4.0, ("all-linear",))])
def test_every_token_has_the_log_probability_it_has_on_its_path_alone(source, tmp_path, lora):
    """Of adapters it is that of their base."""
    joined, held = attach(source, held_out(), tmp_path, *start(lora))
    kept = {
        joined[i]["tokens"].tobytes(): joined[i]["reference"] for i in range(len(joined))
    }  # in an order of their own
    assert len(kept) == len(DOCUMENTS)
    for flat, paths in DOCUMENTS:
        for branch, path in enumerate(paths, 1):
            on = (flat.node == 0) | (flat.node == branch)
            np.testing.assert_allclose(kept[flat.tokens.tobytes()][on], alone(path), atol=1e-4)
    first = DOCUMENTS[0][0]
    np.testing.assert_allclose(held.rows["reference"][0, : len(first)], kept[first.tokens.tobytes()], atol=1e-4)


def test_it_is_computed_once_and_refused_for_other_data(source, tmp_path):
    begin, mesh = start()
    joined, held = attach(source, held_out(), tmp_path, begin, mesh)

    def never():
        raise AssertionError("it is kept already")

    again, held_again = attach(source, held_out(), tmp_path, never, mesh)
    for i in range(len(joined)):
        np.testing.assert_array_equal(joined[i]["reference"], again[i]["reference"])
    np.testing.assert_array_equal(held.rows["reference"], held_again.rows["reference"])
    with pytest.raises(UserError, match=r"reference\.npz belongs to other data; remove it"):
        attach(source, None, tmp_path, never, mesh)


def test_batches_carry_it_beside_each_token(source, tmp_path):
    joined, _ = attach(source, None, tmp_path, *start())
    batch = next(iter(datasets.batches(joined, rows=2, row_length=ROW, seed=0)))
    known = {}
    for i in range(len(joined)):
        one = joined[i]
        for token, previous, value in zip(one["tokens"], one["previous"], one["reference"], strict=True):
            known.setdefault((int(token), previous < 0), []).append(float(value))
    real = batch["action"] > 0
    assert real.sum() > 20
    for b, t in zip(*np.nonzero(real), strict=True):
        values = known[int(batch["tokens"][b, t]), bool(batch["previous"][b, t] < 0)]
        assert float(batch["reference"][b, t]) in values
    assert (batch["reference"][~real] == 0).all()
