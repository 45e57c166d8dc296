"""The engine's answers are those of a model that reads everything afresh, whatever is cached, batched or evicted."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrm_jax.engine import layout
from agentrm_jax.engine.engine import Engine, make_engine
from agentrm_jax.engine.requests import EngineConfig, GenerateRequest
from agentrm_jax.testing.tiny import dense_greedy, dense_logits, dense_values, tiny_model
from agentrm_jax.types import UserError

END = 3
SIZES = EngineConfig(
    cache_tokens=1024, rows=(2, 4), batch_tokens=(24, 96), new_tokens=(8, 24), context=(32, 64), samples=3, max_new=6
)
MODEL = tiny_model()


def engine(**changes):
    return Engine(MODEL, dataclasses.replace(SIZES, **changes), end_id=END)


@pytest.fixture(scope="module")
def shared():
    """One engine for many tests: what earlier tests left in its cache must not matter."""
    return engine()


def ids(size, seed):
    return np.random.default_rng(seed).integers(4, 97, size).astype(np.int32)


def greedy(tokens, n=1):
    return GenerateRequest(tokens, n, 0.0, 0)


def sampled(tokens, n, seed=0):
    return GenerateRequest(tokens, n, 1.0, seed)


def tokens_of(results):
    return [[s.tokens.tolist() for s in samples] for samples in results]


def state(*segments):
    return np.concatenate(segments)


def value(path):
    return dense_values(MODEL, path)[-1]


# --- sampling ----------------------------------------------------------------------------------------------------------


def test_greedy_is_the_argmax_of_a_dense_pass(shared):
    histories = [ids(size, size) for size in (1, 5, 20, 30, 50)]
    results = shared.generate([greedy(h) for h in histories])
    for history, [sample] in zip(histories, results, strict=True):
        want = dense_greedy(MODEL, history, SIZES.max_new, END)
        assert sample.tokens.tolist() == want
        assert sample.finished == (want[-1] == END)


def test_log_probabilities_are_those_of_a_dense_pass(shared):
    history = ids(19, 1)
    for sample in shared.generate([sampled(history, 4)])[0]:
        logits = dense_logits(MODEL, np.concatenate([history, sample.tokens]))[len(history) - 1 : -1].astype(np.float64)
        logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        assert sample.logprob == pytest.approx(logp[np.arange(len(sample.tokens)), sample.tokens].sum(), abs=1e-3)


def test_samples_do_not_depend_on_batch_grouping_or_cache(shared):
    requests = [sampled(ids(10 + i, i), n, seed=i) for i, n in enumerate((1, 3, 5, 2, 7, 1))]
    together = tokens_of(shared.generate(requests))
    assert [len(samples) for samples in together] == [1, 3, 5, 2, 7, 1]
    again = tokens_of(shared.generate(requests))
    alone = [tokens_of(shared.generate([r]))[0] for r in requests]
    reverse = tokens_of(engine(rows=(4,), context=(64,)).generate(requests[::-1]))[::-1]
    assert together == again == alone == reverse


def test_more_samples_begin_with_the_fewer(shared):
    history = ids(12, 5)
    one, four = (tokens_of(shared.generate([sampled(history, n, seed=3)]))[0] for n in (1, 4))
    assert four[:1] == one
    assert len({tuple(t) for t in four}) > 1


def test_seeds_decide(shared):
    history = ids(12, 5)
    first, second, third = (tokens_of(shared.generate([sampled(history, 3, seed=s)]))[0] for s in (1, 2, 1))
    assert first == third != second


def test_a_continued_sample_is_read_from_the_cache():
    mine = engine()
    history = ids(20, 2)
    [sample] = mine.generate([greedy(history)])[0]
    before = mine.stats.read_tokens
    following = np.concatenate([history, sample.tokens, ids(4, 9)])
    [reply] = mine.generate([greedy(following)])[0]
    assert reply.tokens.tolist() == dense_greedy(MODEL, following, SIZES.max_new, END)
    assert mine.stats.read_tokens - before == 4 + 1  # the sample's last token was never read


def test_no_compilation_once_all_sizes_have_occurred():
    mine = engine(context=(64,))

    def everything(seed):
        histories = [ids(size, seed + size) for size in (3, 7, 20, 22, 50, 57, 58)]
        mine.generate([sampled(h, 5, seed) for h in histories] + [greedy(h) for h in histories])
        mine.score([state(h[: len(h) // 2], h[len(h) // 2 :]) for h in histories])

    for seed in (0, 100, 200):
        everything(seed)
    before = mine.compilations
    for seed in (300, 400):
        everything(seed)
    assert mine.compilations == before > 0


def test_a_history_without_room_is_refused(shared):
    with pytest.raises(UserError, match="a history of 60 tokens leaves no room for 6 more in 64"):
        shared.generate([greedy(ids(60, 0))])
    with pytest.raises(UserError, match="a history of 65 tokens is longer"):
        shared.score([state(ids(65, 0))])
    with pytest.raises(UserError, match=r"raise --config\.engine\.cache_tokens"):
        engine(cache_tokens=63)


# --- scoring -----------------------------------------------------------------------------------------------------------


def test_step_scores_of_one_path_are_those_of_its_prefixes(shared):
    """Invariant 9: scores of all steps from one path = separate passes over every prefix."""
    segments = [ids(size, 50 + size) for size in (9, 5, 4, 6, 3, 7)]
    steps = [state(*segments[:end]) for end in (2, 4, 6)]
    want = [value(s) for s in steps]
    assert np.ptp(want) > 0.1
    np.testing.assert_allclose(shared.score(steps), want, atol=1e-4)
    np.testing.assert_allclose(engine().score(steps[::-1]), want[::-1], atol=1e-4)


def test_incremental_scores_are_full_scores(shared):
    """Invariant 10, after every turn of a growing and forking episode."""
    history = [ids(11, 70)]
    for turn in range(3):
        candidates = [state(*history, ids(3 + i, 10 * turn + i)) for i in range(4)]
        got = shared.score(candidates)
        np.testing.assert_allclose(got, [value(c) for c in candidates], atol=1e-4)
        best = candidates[int(np.argmax(got))]
        history = [best, ids(4, 200 + turn)]


def test_siblings_are_read_as_one_tree():
    mine = engine()
    prompt = ids(20, 0)
    mine.score([state(prompt, ids(2, 1))])
    before = dataclasses.replace(mine.stats)
    candidates = [state(prompt, ids(4, 10 + i)) for i in range(5)]
    np.testing.assert_allclose(mine.score(candidates), [value(c) for c in candidates], atol=1e-4)
    assert mine.stats.calls - before.calls == 1
    assert mine.stats.read_tokens - before.read_tokens == 5 * 4


def test_a_score_does_not_depend_on_the_company(shared):
    """Invariant 28, with equal, nested and unrelated paths in one batch."""
    prompt, action = ids(8, 1), ids(5, 2)
    one = state(prompt, action)
    company = [state(prompt, action), state(prompt, action[:3]), state(prompt, np.append(action, 9)), state(ids(30, 4))]
    want = [value(s) for s in (one, *company)]
    np.testing.assert_allclose(shared.score([one, *company]), want, atol=1e-4)
    np.testing.assert_allclose(engine().score([*company[::-1], one]), [*want[:0:-1], want[0]], atol=1e-4)


def test_long_histories_and_long_segments_are_read_in_pieces():
    mine = engine(new_tokens=(8,))
    paths = [state(ids(60, 1)), state(ids(30, 2), ids(25, 3)), state(ids(30, 2), ids(26, 4))]
    np.testing.assert_allclose(mine.score(paths), [value(p) for p in paths], atol=1e-4)
    history = ids(55, 6)
    assert tokens_of(mine.generate([greedy(history)])) == [[dense_greedy(MODEL, history, SIZES.max_new, END)]]


def test_nothing_scored_is_no_error(shared):
    assert shared.score([]).shape == (0,)
    assert shared.generate([]) == []


# --- a cache that is too small -----------------------------------------------------------------------------------------


def test_results_stay_right_when_everything_is_evicted_again_and_again():
    small = engine(cache_tokens=70)
    rng = np.random.default_rng(0)
    trunks = [ids(12, 300 + i) for i in range(4)]
    for turn in range(6):
        states = [state(trunks[i % 4], ids(int(rng.integers(1, 20)), 1000 * turn + i)) for i in range(9)]
        np.testing.assert_allclose(small.score(states), [value(s) for s in states], atol=1e-4)
        histories = [np.concatenate([trunks[i], ids(5 * i, turn)]) for i in range(4)]
        results = small.generate([greedy(h, n=2) for h in histories])
        for history, samples in zip(histories, tokens_of(results), strict=True):
            assert samples == [dense_greedy(MODEL, history, SIZES.max_new, END)] * 2
    assert small._cache.free >= 0


def test_a_common_beginning_is_read_once():
    mine = engine(cache_tokens=4096, rows=(4,), context=(64,))
    common = ids(45, 1)
    histories = [np.concatenate([common, ids(8, 10 + i)]) for i in range(8)]
    results = tokens_of(mine.generate([greedy(h) for h in histories]))
    assert results == [[dense_greedy(MODEL, h, SIZES.max_new, END)] for h in histories]
    assert mine.stats.read_tokens == 45 + 8 * 8


# --- sizes -------------------------------------------------------------------------------------------------------------


def test_a_value_that_is_known_is_not_computed_again():
    mine = engine()
    path = ids(30, 1)
    mine.score([path])
    before = mine.stats.read_tokens
    prefixes = [path[:end] for end in range(1, 31)]
    np.testing.assert_allclose(mine.score(prefixes), [value(p) for p in prefixes], atol=1e-4)
    assert mine.stats.read_tokens == before


def test_values_of_sampled_tokens_are_read_when_asked_for():
    """One model as policy and reward model: what was sampled is cached without a value."""
    mine = engine()
    history = ids(20, 2)
    [sample] = mine.generate([greedy(history)])[0]
    path = np.concatenate([history, sample.tokens])
    prefixes = [path[:end] for end in range(18, len(path) + 1)]
    np.testing.assert_allclose(mine.score(prefixes), [value(p) for p in prefixes], atol=1e-4)


@given(st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=9), min_size=1, max_size=12, unique_by=tuple))
def test_rows_are_trees_of_their_paths(paths):
    """Every path lies in at most one row, once, whole up to the row's size; a token sees its own path and nothing else."""
    cached = np.array([7, 5], np.int32)
    whole = [np.array([9, 9, *p], np.int32) for p in paths]
    rows = layout.rows(cached, whole, (3, 6))
    placed = [p.tobytes() for row in rows for p in row.paths]
    assert len(set(placed)) == len(placed) > 0
    for row in rows:
        assert len(row.tokens) <= 6
        for path, index in zip(row.paths, row.index, strict=True):
            np.testing.assert_array_equal(row.tokens[index], path[2:8])
            np.testing.assert_array_equal(row.depth[index], np.arange(len(index)))
            for i in index:
                seen = [j for j in range(i + 1) if i < row.subtree_end[j]]
                assert seen == [j for j in index if j <= i]
    left = [p for p in whole if p.tobytes() not in placed]
    begun = {(int(p[2])) for row in rows for p in row.paths}
    assert all(int(p[2]) in begun for p in left)  # the next round finds their beginning cached


def test_rows_fill_batches_in_order():
    made = [layout.rows(np.zeros(0, np.int32), [ids(size, size)], (64,))[0] for size in (5, 40, 17, 16, 33)]
    batches = layout.fill(made, 16, (4, 8))
    assert [row for batch in batches for row in batch] == made
    for batch in batches:
        assert sum(-(-len(row.tokens) // 16) for row in batch) <= 8


def test_batches_fill_the_allowed_sizes():
    sizes = (8, 24, 64)
    assert layout.cover(64, sizes) == (64,)
    assert layout.cover(8, sizes) == (8,)
    assert sum(layout.cover(25, sizes)) == 25
    for count in range(1, 150):
        batches = layout.cover(count, sizes)
        assert sum(batches) == count
        assert max(batches) <= 64


def test_make_engine_takes_a_config_group():
    made = make_engine(MODEL, {**dataclasses.asdict(SIZES), "dtype": "float32"}, end_id=END)
    assert made.config == SIZES
