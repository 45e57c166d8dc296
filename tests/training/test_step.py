"""The training step: packing, trees and padding do not change what is learned; one program; heads and what they start from."""

import dataclasses
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from agentrm_jax import parallel, tree
from agentrm_jax.data import forest
from agentrm_jax.data.lessons import Path, Unit
from agentrm_jax.models.transformer import Transformer, token_logprobs
from agentrm_jax.testing.tiny import dense_values
from agentrm_jax.training import objectives
from agentrm_jax.training.optimizer import make_optimizer
from agentrm_jax.training.step import abstract_state, init_state, make_train_step
from agentrm_jax.tree import FlatTree, Kind, Node, Segment
from agentrm_jax.types import UserError

LENGTH = 48
FIELDS = (
    *("tokens", "positions", "subtree_end", "previous", "group", "before"),
    *("loss_weight", "value", "value_weight", "count"),
)
KINDS = ("imitation", "regression")


def batch_of(*rows: list[FlatTree], length: int = LENGTH) -> dict[str, np.ndarray]:
    packed = [tree.to_row(row, length) for row in rows]
    return {f: np.stack([getattr(r, f) for r in packed]) for f in FIELDS}


def episode(seed: int, turns: int = 2) -> list[Segment]:
    """A prompt and turns of random tokens."""
    rng = np.random.default_rng(seed)
    kinds: list[Kind] = ["prompt", *cast(list[Kind], ["action", "observation"] * turns)][: 2 * turns]
    return [Segment(rng.integers(1, 64, rng.integers(1, 4)).astype(np.int32), k, k == "action") for k in kinds]


def with_values(nodes: list[Node], values: dict[int, float]) -> list[Node]:
    """Nodes whose actions have a target, found by the action's first token; it counts as often as the node's paths."""
    return [
        dataclasses.replace(n, value=values[int(n.segment.tokens[0])], value_weight=n.weight) if n.segment.loss else n
        for n in nodes
    ]


def valued(segments: list[Segment]) -> FlatTree:
    return tree.flatten(with_values(tree.path_tree(segments), VALUE))


VALUE = {token: (token % 7) / 7 for token in range(64)}


@pytest.fixture(scope="module")
def both(tiny):
    """A model with both heads, its value head not at zero, and one compiled (sum of loss, gradient) for each loss."""
    model = Transformer(tiny, rngs=nnx.Rngs(0), lm_head=True, value_head=True)
    model.value_d[...] = jax.random.normal(jax.random.key(1), (tiny.d_model,))
    graphdef, params = nnx.split(model, nnx.Param)

    def make(kind: str):
        loss_fn, weight = (
            objectives.find(kind).loss(jnp.float32),
            "loss_weight" if kind == "imitation" else "value_weight",
        )

        @jax.jit
        def total(batch):
            def f(params):
                return loss_fn(nnx.merge(graphdef, params), batch)[0] * jnp.sum(batch[weight])

            loss, gradient = jax.value_and_grad(f)(params)
            return loss, nnx.to_pure_dict(gradient)

        return total

    return {kind: make(kind) for kind in KINDS}


def assert_same(a, b, tolerance: float = 1e-5):
    """Equal losses and gradients, up to `tolerance` of the largest entry."""
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, atol=tolerance * max(1.0, float(jnp.abs(y).max())))


def added(*results):
    return jax.tree.map(lambda *xs: sum(xs[1:], start=xs[0]), *results)


@pytest.mark.parametrize("kind", KINDS)
def test_packed_documents_give_the_sum_of_what_they_give_alone(both, kind):
    flats = [valued(episode(s)) for s in range(4)]
    packed = both[kind](batch_of(flats[:2], flats[2:]))
    alone = [both[kind](batch_of([f], [])) for f in flats]
    assert_same(packed, added(*alone))


@pytest.mark.parametrize("kind", KINDS)
def test_a_tree_gives_the_sum_over_its_paths(both, kind):
    trunk, more = episode(1), episode(2)
    fork = [*trunk, more[0], more[1]]
    paths = [[*trunk, *episode(s)[:2]] for s in (3, 4)] + [[*fork, *episode(5)[:2]], [*fork, *episode(6)[:2]]]
    paths = [
        [dataclasses.replace(s, kind="observation") if s.kind == "prompt" and i else s for i, s in enumerate(p)]
        for p in paths
    ]
    merged = tree.flatten(with_values(tree.merge_paths(paths), VALUE))
    assert len(merged) < sum(len(s.tokens) for p in paths for s in p)
    assert merged.loss_weight.max() == 4
    one_tree = both[kind](batch_of([merged], []))
    alone = [both[kind](batch_of([valued(p)], [])) for p in paths]
    assert_same(one_tree, added(*alone))


@pytest.mark.parametrize("kind", KINDS)
def test_a_split_tree_gives_what_the_whole_gives(both, kind):
    nodes = with_values(tree.merge_paths([[*episode(1), *episode(s)[:2]] for s in (3, 4, 5)]), VALUE)
    parts = tree.split(nodes, len(tree.flatten(nodes)) - 3)
    assert len(parts) > 1
    whole = both[kind](batch_of([tree.flatten(nodes)], []))
    cut = [both[kind](batch_of([tree.flatten(p)], [])) for p in parts]
    assert_same(whole, added(*cut))


@pytest.mark.parametrize("kind", KINDS)
def test_padding_and_place_in_the_row_change_nothing(both, kind):
    flat = valued(episode(1))
    plain = both[kind](batch_of([flat], []))
    filled = batch_of([flat], [])
    pad = filled["previous"] < 0
    pad[0, 0] = False
    filled["tokens"] = np.where(pad, 63, filled["tokens"])  # a pad id that is a real token, e.g. the end of turn
    assert_same(both[kind](filled), plain, 0.0)
    for silent in (2, 9):
        before = dataclasses.replace(valued(episode(7)), loss_weight=np.zeros(0), value_weight=np.zeros(0))
        size = len(before)
        before = dataclasses.replace(
            before, loss_weight=np.zeros(size, np.float32), value_weight=np.zeros(size, np.float32)
        )
        assert_same(both[kind](batch_of([before] * (silent % 4), [flat])), plain)
        assert_same(both[kind](batch_of([before, flat], [before])), plain)


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_that_no_target_depends_on_change_nothing(both, kind):
    segments = episode(1)
    tail = Segment(np.array([5, 6, 7], np.int32), "observation")
    other = Segment(np.array([9, 8, 1], np.int32), "observation")
    one, two = (batch_of([valued([*segments, t])], []) for t in (tail, other))
    assert_same(both[kind](one), both[kind](two), 0.0)


def test_a_token_is_predicted_at_the_token_before_it_on_its_path(tiny):
    """A model whose logits name the next token is right everywhere, also where the neighbour to the left is another branch."""
    flat = tree.flatten(tree.merge_paths([episode(1), [*episode(1)[:1], *episode(2)[1:]], episode(3)]))
    vocab = 64
    config = dataclasses.replace(tiny, vocab_size=vocab, d_model=2 * vocab, tie_embeddings=False)
    model = Transformer(config, rngs=nnx.Rngs(0))
    model.head_dv[...] = 100 * jnp.eye(2 * vocab)[:, :vocab]
    knows = np.zeros((1, len(flat), 2 * vocab), np.float32)
    for child, parent in enumerate(flat.previous):
        if parent >= 0:
            knows[0, parent, flat.tokens[child]] = 1
    single = np.bincount(flat.previous[flat.previous >= 0], minlength=len(flat))[flat.previous] == 1

    def logprobs(previous):
        return np.asarray(
            token_logprobs(model, jnp.asarray(knows), jnp.asarray(flat.tokens)[None], jnp.asarray(previous)[None])
        )[0]

    right = logprobs(flat.previous)
    np.testing.assert_allclose(right[single & (flat.previous >= 0)], 0, atol=1e-5)
    np.testing.assert_allclose(right[~single & (flat.previous >= 0)], -np.log(2), atol=1e-5)
    assert (right[flat.previous < 0] == 0).all()
    left = logprobs(np.arange(len(flat), dtype=np.int32) - 1)
    assert left[(flat.previous >= 0) & (flat.previous != np.arange(len(flat)) - 1)].max() < -1


@pytest.fixture(scope="module")
def explicit(tiny):
    """How train.py makes the state of a reward model, and its step."""
    mesh = parallel.make_mesh(devices=jax.devices()[:1])
    tx = make_optimizer(learning_rate=1e-2, warmup=0.1, total_steps=40, weight_decay=0.0, clip=1.0)

    def make_model(rngs):
        return Transformer(tiny, rngs=rngs, lm_head=False, value_head=True)

    graphdef, _, placed = abstract_state(make_model, tx, mesh)
    loss = objectives.find("regression").loss(jnp.float32)
    return mesh, tx, make_model, make_train_step(graphdef, tx, loss, placed, mesh)


def test_a_value_head_starts_at_zero_takes_the_policys_body_and_learns_with_one_program(explicit, tiny):
    mesh, tx, make_model, train_step = explicit
    policy = nnx.to_pure_dict(nnx.state(Transformer(tiny, rngs=nnx.Rngs(7), lm_head=True), nnx.Param))
    theirs = jax.tree.map(np.asarray, policy)
    _, state, _ = init_state(make_model, tx, mesh, 0, lambda wanted: policy)
    ours = nnx.to_pure_dict(state.params)
    assert not np.asarray(ours.pop("value_d")).any()
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)

    batch = parallel.put_batch(batch_of([valued(episode(1)), valued(episode(2))], [valued(episode(3))]), mesh)
    targets, weights = np.asarray(batch["value"]), np.asarray(batch["value_weight"])
    mean = (targets * weights).sum() / weights.sum()
    old, rows = state, []
    for _ in range(30):
        state, metrics = train_step(state, batch)
        rows.append(jax.device_get(metrics))
    assert rows[0]["loss"] == pytest.approx((targets**2 * weights).sum() / weights.sum(), rel=1e-5), "it predicts 0"
    assert rows[0]["target_variance"] == pytest.approx(
        ((targets - mean) ** 2 * weights).sum() / weights.sum(), rel=1e-5
    )
    assert (rows[0]["states"], rows[0]["tokens"]) == (6, (np.asarray(batch["previous"]) >= 0).sum())
    assert rows[-1]["squared_error"] < 0.3 * rows[0]["target_variance"], "better than the mean"
    assert train_step.compilations() == 1
    assert int(state.step) == 30
    assert all(x.is_deleted() for x in jax.tree.leaves(old.params)), "the old state is donated"


def test_cross_entropy_predicts_with_a_sigmoid(tiny):
    model = Transformer(tiny, rngs=nnx.Rngs(0), lm_head=False, value_head=True)
    batch = batch_of([valued(episode(1))], [])
    loss, metrics = jax.jit(objectives.find("cross_entropy").loss(jnp.float32))(model, batch)
    assert loss == pytest.approx(np.log(2), rel=1e-5)
    wanted = ((batch["value"] - 0.5) ** 2 * batch["value_weight"]).sum() / batch["value_weight"].sum()
    assert metrics["squared_error"] == pytest.approx(wanted, rel=1e-5)


def test_a_loss_that_does_not_exist_is_named():
    with pytest.raises(UserError, match=r"--config\.loss=hinge: known losses are"):
        objectives.find("hinge").loss(jnp.float32)


def test_reported_norms_are_of_the_whole_gradient_and_of_the_new_parameters(explicit):
    mesh, tx, make_model, train_step = explicit
    graphdef, state, _ = init_state(make_model, tx, mesh, 0)
    batch = parallel.put_batch(batch_of([valued(episode(1)), valued(episode(2))], [valued(episode(3))]), mesh)
    batch["value"] = 100 * batch["value"]

    def loss(params):
        return objectives.find("regression").loss(jnp.float32)(nnx.merge(graphdef, params), batch)[0]

    expected = optax.tree.norm(jax.jit(jax.grad(loss))(state.params))
    assert expected > 10, "far above what is clipped"
    state, metrics = train_step(state, batch)
    assert metrics["gradient_norm"] == pytest.approx(float(expected), rel=1e-4)
    assert metrics["parameter_norm"] == pytest.approx(float(optax.tree.norm(state.params)), rel=1e-5)


def test_a_seed_gives_one_state_and_another_seed_another(explicit):
    mesh, tx, make_model, _ = explicit
    once, again, other = (init_state(make_model, tx, mesh, seed)[1].params for seed in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, once, again)
    name = "embed_vd"
    assert not np.allclose(nnx.to_pure_dict(once)[name], nnx.to_pure_dict(other)[name])


# --- Preferences ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["pairwise", "listwise"])
def test_the_sides_of_a_preference_in_one_tree_give_what_they_give_apart(tiny, name):
    """Loss and gradient are those of two conversations that are read whole, each by itself, and then compared."""
    trunk = episode(1)
    better, worse = [*trunk, *episode(2, 1)[1:], *episode(5)[1:]], [*trunk, *episode(4)[1:]]
    sides = tuple(Path(path, {len(path) - 1: value}) for path, value in ((better, 1.0), (worse, 0.0)))
    [[one_tree], lost] = forest.grown([Unit("t", "preference", sides, "each other")], 64)
    assert not lost
    shared = one_tree.nodes
    apart = [
        *tree.path_tree(better),
        *(
            dataclasses.replace(n, parent=n.parent + len(better) if n.parent >= 0 else -1)
            for n in tree.path_tree(worse)
        ),
    ]
    ends = {len(better) - 1: 1.0, len(apart) - 1: 0.0}
    apart = [
        dataclasses.replace(n, value=ends[i], value_weight=1.0, group=0) if i in ends else n
        for i, n in enumerate(apart)
    ]
    model = Transformer(tiny, rngs=nnx.Rngs(0), lm_head=False, value_head=True)
    model.value_d[...] = jax.random.normal(jax.random.key(1), (tiny.d_model,))
    graphdef, params = nnx.split(model, nnx.Param)
    loss = objectives.find(name).loss(jnp.float32)

    @jax.jit
    def both(params, batch):
        return jax.value_and_grad(lambda params: loss(nnx.merge(graphdef, params), batch)[0])(params)

    flats = [tree.flatten(nodes) for nodes in (shared, apart)]
    assert len(flats[0]) < len(flats[1])
    one, other = (both(params, batch_of([flat], length=64)) for flat in flats)
    assert_same(one, other)
    values = [float(dense_values(model, np.concatenate([s.tokens for s in path]))[-1]) for path in (better, worse)]
    assert one[0] == pytest.approx(np.log1p(np.exp(values[1] - values[0])), rel=1e-4)


# --- Parts, frozen trunks, and updates that are not made --------------------------------------------------------------


def many_rows(count: int) -> dict[str, np.ndarray]:
    """Rows with very different numbers of targets, siblings among them; the last one is empty."""
    made = []
    for i in range(count - 1):
        nodes = with_values(tree.merge_paths([[*episode(i), *episode(j)[:2]] for j in range(3, 4 + i % 3)]), VALUE)
        grouped = [dataclasses.replace(n, group=n.parent) if n.value_weight else n for n in nodes]
        made.append([tree.flatten(grouped)])
    return batch_of(*made, [])


def update_of(
    tiny, name: str, batch: dict[str, np.ndarray], *, head_only: bool = False, tx=None, heads: int = 1, **parts
):
    """The state before and after an update, and its metrics, on one device with a value head that is not at zero."""
    mesh = parallel.make_mesh(devices=jax.devices()[:1])
    how = {"learning_rate": 1e-2, "warmup": 0.0, "total_steps": 40, "weight_decay": 0.0, "clip": 1e9}
    tx = tx or make_optimizer(**how, head_only=head_only)
    objective = objectives.find(name)

    def make_model(rngs):
        return Transformer(tiny, rngs=rngs, lm_head=objective.lm_head, value_head=objective.value_head, heads=heads)

    graphdef, state, placed = init_state(make_model, tx, mesh, 0)
    if objective.value_head and heads == 1:
        state.params["value_d"] = state.params["value_d"].replace(jax.random.normal(jax.random.key(1), (tiny.d_model,)))
    loss = objective.loss(jnp.float32, head_only=head_only)
    step = make_train_step(graphdef, tx, loss, placed, mesh, weight=objective.weight, **parts)
    before = jax.tree.map(np.asarray, (state.step, nnx.to_pure_dict(state.params), state.opt_state))
    first, _ = step(state, parallel.put_batch(batch, mesh))  # the rate of the first one is 0
    after, metrics = step(first, parallel.put_batch(batch, mesh))
    return before, after, jax.device_get(metrics)


@pytest.mark.parametrize(
    ("name", "heads"),
    [
        *((name, 1) for name in ("imitation", "regression", "listwise", "pairwise", "promise", "temporal_difference")),
        ("cross_entropy", 3),
    ],
)
def test_rows_read_in_parts_give_the_update_of_rows_read_at_once(tiny, name, heads):
    """Also where parts have very different numbers of targets, or none."""
    batch = many_rows(6)
    if heads > 1:
        batch["head_weight"] = np.random.default_rng(0).poisson(1.0, (*batch["tokens"].shape, heads)).astype(np.float32)
    how = {"tx": optax.sgd(0.1), "heads": heads}  # Adam would make much of the rounding of a small entry
    _, whole, said = update_of(tiny, name, batch, **how)
    _, parted, also = update_of(tiny, name, batch, **how, accumulate=3)
    assert_same(nnx.to_pure_dict(parted.params), nnx.to_pure_dict(whole.params), 1e-5)
    for metric in (
        "loss",
        "gradient_norm",
        "tokens",
        *({"states", "trained_tokens", *(("squared_error",) if heads == 1 else ())} & said.keys()),
    ):
        assert also[metric] == pytest.approx(said[metric], rel=1e-5), metric


def test_a_frozen_trunk_is_not_touched_and_the_head_learns_as_it_did(tiny):
    batch = many_rows(3)
    before, frozen, _ = update_of(tiny, "regression", batch, head_only=True)
    _, whole, _ = update_of(tiny, "regression", batch)
    params, free = nnx.to_pure_dict(frozen.params), nnx.to_pure_dict(whole.params)
    np.testing.assert_allclose(params.pop("value_d"), free.pop("value_d"), rtol=1e-4)
    jax.tree.map(np.testing.assert_array_equal, params, {k: v for k, v in before[1].items() if k != "value_d"})
    assert not np.array_equal(free["embed_vd"], params["embed_vd"])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_of_a_loss_that_is_not_finite_no_update_is_made(tiny, bad):
    batch = many_rows(3)
    batch["value"] = np.where(batch["value_weight"] > 0, bad, batch["value"]).astype(np.float32)
    before, after, metrics = update_of(tiny, "regression", batch)
    assert not np.isfinite(metrics["loss"])
    now = jax.tree.map(np.asarray, (after.step, nnx.to_pure_dict(after.params), after.opt_state))
    jax.tree.map(np.testing.assert_array_equal, jax.tree.leaves(now), jax.tree.leaves(before))
