"""The implicit reward model's losses: published numbers, trees that equal their paths, tokens that count for nothing."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from agentrm_jax import tree
from agentrm_jax.models.transformer import Transformer, token_logprobs
from agentrm_jax.training import implicit, objectives
from agentrm_jax.tree import FlatTree, Node, Segment

LENGTH = 64
FIELDS = ("tokens", "positions", "subtree_end", "previous", "action", "value", "value_weight")
LOSSES = ("implicit_regression", "implicit_cross_entropy", "implicit_brier")


def objective(loss: str, beta: float = 0.05) -> objectives.Objective:
    return objectives.of(ml_collections.ConfigDict({"loss": loss, "beta": beta}))


# --- Published numbers (golden vectors 13.1) ------------------------------------------------------------------------------


@pytest.fixture
def given_logprobs(monkeypatch):
    """Log-probabilities of tokens are what stands in the place of hidden states."""
    monkeypatch.setattr(implicit, "token_logprobs", lambda model, hidden, tokens, previous: hidden[..., 0])


def one_path(ratios: list[float], action: list[int], *, value: float = 0.0, reference: float = -3.0):
    """(hidden states, batch) of a path with these log-ratios, whose last token is the target."""
    t = len(ratios)
    last = np.eye(t, dtype=np.float32)[-1:]
    batch = {
        "tokens": np.ones((1, t), np.int32),
        "previous": np.arange(t, dtype=np.int32)[None] - 1,
        "action": np.array([action], np.int32),
        "reference": np.full((1, t), reference, np.float32),
        "value": value * last,
        "value_weight": last,
    }
    return jnp.asarray(ratios, jnp.float32)[None, :, None] + reference, {k: jnp.asarray(x) for k, x in batch.items()}


def loss_of(name: str, delta: float, value: float, beta: float = 0.05) -> float:
    hidden, batch = one_path([0.0, delta], [0, 1], value=value)
    return float(objective(name, beta).compute(None, hidden, batch)[0])


@pytest.mark.parametrize(
    ("name", "value", "want"),
    [
        ("implicit_cross_entropy", 1.0, 0.5981388694),
        ("implicit_cross_entropy", 0.0, 0.7981388694),
        ("implicit_regression", 0.3, 0.01),
        ("implicit_brier", 0.3, 0.0624170262),
    ],
)
def test_losses_have_the_published_values(given_logprobs, name, value, want):
    assert loss_of(name, 4.0, value) == pytest.approx(want, abs=1e-6)


def test_step_rewards_have_the_published_values(given_logprobs):
    """Log-ratios [0, 0 | .5, -.2 | .3, .1, -.4], of which the first two are the prompt: rewards 0.015 and 0."""
    hidden, batch = one_path([0.0, 0.0, 0.5, -0.2, 0.3, 0.1, -0.4], [0, 0, 1, 1, 1, 1, 1])
    q = np.asarray(implicit.rewards(None, hidden, batch, beta=0.05))[0]
    np.testing.assert_allclose([q[3] - q[1], q[6] - q[3]], [0.015, 0.0], atol=1e-7)
    assert q[1] == 0


@given(delta=st.floats(-200, 200), beta=st.floats(0.01, 1))
def test_cross_entropies_of_the_two_outcomes_differ_by_the_reward(delta, beta):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(implicit, "token_logprobs", lambda model, hidden, tokens, previous: hidden[..., 0])
        won, lost = (loss_of("implicit_cross_entropy", delta, value, beta) for value in (1.0, 0.0))
    assert won - lost == pytest.approx(-beta * delta, abs=1e-3)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("delta", [1e4, -1e4])
def test_extreme_log_ratios_give_finite_losses_and_gradients(given_logprobs, name, delta):
    hidden, batch = one_path([0.0, delta], [0, 1], value=1.0)
    loss, gradient = jax.value_and_grad(lambda h: objective(name).compute(None, h, batch)[0])(hidden)
    assert np.isfinite(loss)
    assert np.isfinite(gradient).all()


def test_tokens_that_are_no_action_count_for_nothing_even_where_they_are_no_number(given_logprobs):
    hidden, batch = one_path([7.0, 1.0, 5.0, 2.0], [0, 1, 0, 1])
    clean = implicit.rewards(None, hidden, batch, beta=1.0)
    np.testing.assert_allclose(clean, [[0, 1, 1, 3]], atol=1e-6)
    batch["reference"] = batch["reference"].at[0, jnp.array([0, 2])].set(jnp.nan)
    q, gradient = jax.value_and_grad(lambda h: implicit.rewards(None, h, batch, beta=1.0)[0, 3])(hidden)
    assert q == 3
    np.testing.assert_array_equal(gradient[0, :, 0], [0, 1, 0, 1])


def test_rewards_are_linear_in_beta(given_logprobs):
    hidden, batch = one_path([0.0, 1.5, -0.25], [0, 1, 1])
    one, five = (implicit.rewards(None, hidden, batch, beta=beta) for beta in (1.0, 5.0))
    np.testing.assert_allclose(five, 5 * one, rtol=1e-6)


# --- Sums along paths ------------------------------------------------------------------------------------------------------


@given(parents=st.lists(st.integers(-1, 11), min_size=1, max_size=12), seed=st.integers(0, 99))
def test_sums_along_paths_are_those_added_up_one_by_one(parents, seed):
    rng = np.random.default_rng(seed)
    nodes = [
        Node(Segment(np.ones(rng.integers(1, 5), np.int32), "action"), min(p, i - 1)) for i, p in enumerate(parents)
    ]
    row = tree.to_row([tree.flatten(nodes)], LENGTH)
    x = rng.normal(size=LENGTH).astype(np.float32)
    want = np.zeros(LENGTH)
    for i in range(LENGTH):  # a token comes after the one before it on its path
        want[i] = x[i] + (want[row.previous[i]] if row.previous[i] >= 0 else 0)
    got = implicit.along_paths(jnp.asarray(x)[None], jnp.asarray(row.previous)[None])[0]
    np.testing.assert_allclose(got, want, atol=1e-5)


# --- Packed, tree, path ----------------------------------------------------------------------------------------------------


def turn(seed: int, size: int = 3) -> Segment:
    return Segment(np.random.default_rng(seed).integers(1, 64, size).astype(np.int32), "action", loss=True)


def other(seed: int, kind: str = "observation") -> Segment:
    return dataclasses.replace(turn(seed, 4), kind=kind, loss=False)


def ending(segments: list[Segment], value: float) -> list[Node]:
    nodes = tree.path_tree(segments)
    return [*nodes[:-1], dataclasses.replace(nodes[-1], value=value, value_weight=1.0)]


PROMPT, TRUNK = other(0, "prompt"), turn(1)
PATHS = [
    ([PROMPT, TRUNK, other(2), turn(3, 5)], 1.0),
    ([PROMPT, TRUNK, other(2), turn(4, 2), other(5), turn(6)], 0.0),
    ([PROMPT, turn(7)], 0.25),
]


def whole() -> list[Node]:
    """The tree of all paths."""
    nodes = tree.merge_paths(path for path, _ in PATHS)
    values = {path[-1].tokens.tobytes(): value for path, value in PATHS}
    return [
        dataclasses.replace(n, value=values[key], value_weight=1.0)
        if (key := n.segment.tokens.tobytes()) in values
        else n
        for n in nodes
    ]


@pytest.fixture(scope="module")
def models(tiny):
    """A policy and its reference."""
    return tuple(Transformer(tiny, rngs=nnx.Rngs(seed), lm_head=True) for seed in (0, 1))


def batch_of(reference: Transformer, *rows: list[FlatTree]) -> dict[str, jax.Array]:
    packed = [tree.to_row(row, LENGTH) for row in rows]
    batch = {f: jnp.asarray(np.stack([getattr(r, f) for r in packed])) for f in FIELDS}
    hidden = objectives.hidden_states(reference, batch, jnp.float32)
    return batch | {"reference": token_logprobs(reference, hidden, batch["tokens"], batch["previous"])}


@functools.cache
def _total(name: str, graphdef: nnx.GraphDef):
    loss_fn = objective(name, beta=0.5).loss(jnp.float32)

    def total(params, batch):
        return loss_fn(nnx.merge(graphdef, params), batch)[0] * jnp.sum(batch["value_weight"])

    return jax.jit(jax.value_and_grad(total))


def total(name: str, models, *rows: list[FlatTree]):
    """Sum (not mean) of the loss over the targets of a batch, and its gradient."""
    graphdef, params = nnx.split(models[0], nnx.Param)
    loss, gradient = _total(name, graphdef)(params, batch_of(models[1], *rows))
    return loss, nnx.to_pure_dict(gradient)


def assert_same(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5 * max(1.0, float(jnp.abs(y).max())))


@pytest.mark.parametrize("name", LOSSES)
def test_a_tree_a_packed_row_and_single_paths_give_the_same_losses_and_gradients(models, name):
    alone = [total(name, models, [tree.flatten(ending(path, value))], []) for path, value in PATHS]
    summed = jax.tree.map(lambda *xs: sum(xs[1:], start=xs[0]), *alone)
    assert float(summed[0]) > 0.01
    flats = [tree.flatten(ending(path, value)) for path, value in PATHS]
    assert_same(total(name, models, flats[:2], flats[2:]), summed)
    assert_same(total(name, models, [tree.flatten(whole())], []), summed)


def test_a_tree_that_is_cut_to_rows_gives_what_it_gave_whole(models):
    """Repeated ancestors have no loss of their own, and still count in the sums of what continues them."""
    parts = [tree.flatten(part) for part in tree.split(whole(), 22)]
    assert len(parts) > 1
    name = "implicit_regression"
    assert_same(total(name, models, parts, []), total(name, models, [tree.flatten(whole())], []))


def test_where_policy_and_reference_are_one_rewards_are_zero_and_gradients_are_not(models):
    policy = models[0]
    batch = batch_of(policy, [tree.flatten(whole())])
    predict = objective("implicit_regression").predict
    q = predict(policy, objectives.hidden_states(policy, batch, jnp.float32), batch)
    np.testing.assert_array_equal(q, np.zeros_like(q))
    _, gradient = total("implicit_regression", (policy, policy), [tree.flatten(whole())])
    assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(gradient)) > 1e-4


def test_step_rewards_add_up_to_that_of_the_trajectory_whatever_stands_beside_it(models):
    path, value = PATHS[1]
    flat = tree.flatten(ending(path, value))
    ends = np.cumsum([len(s.tokens) for s in path])[[1, 3, 5]] - 1
    predict = objective("implicit_regression", beta=1.0).predict

    def q(row: list[FlatTree]) -> np.ndarray:
        batch = batch_of(models[1], row)
        return np.asarray(predict(models[0], objectives.hidden_states(models[0], batch, jnp.float32), batch))[0]

    alone, packed = q([flat]), q([tree.flatten(ending(*PATHS[0])), flat])
    before = sum(len(s.tokens) for s in PATHS[0][0])
    np.testing.assert_allclose(alone[ends], packed[before + ends], atol=1e-5)
    # Each step by itself: the log-ratio of its own tokens, given all before them.
    batch = batch_of(models[1], [flat])
    ratios = token_logprobs(
        models[0], objectives.hidden_states(models[0], batch, jnp.float32), batch["tokens"], batch["previous"]
    )
    ratios = np.asarray(ratios - batch["reference"])[0]
    steps = [ratios[e - n + 1 : e + 1].sum() for e, n in zip(ends, (3, 2, 3), strict=True)]
    np.testing.assert_allclose(np.cumsum(steps), alone[ends], atol=1e-5)
