"""The engine's answers are those of a model that reads everything afresh, whatever is cached, batched or evicted."""

import dataclasses

import numpy as np
import pytest

from agentrm_jax.engine.engine import Engine, make_engine
from agentrm_jax.engine.requests import (
    EngineConfig,
    GenerateRequest,
    LogprobsRequest,
    RequestError,
    SamplingParams,
    ScoreRequest,
)
from agentrm_jax.models.config import RopeScaling
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
    return GenerateRequest(tokens, SamplingParams(temperature=0.0, n=n))


def sampled(tokens, n, seed=0):
    return GenerateRequest(tokens, SamplingParams(n=n, seed=seed))


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
    assert mine.stats.prefills - before.prefills == 1
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


# --- log-probabilities ---------------------------------------------------------------------------------------------------


def dense_logprobs(path):
    logits = dense_logits(MODEL, path).astype(np.float64)
    logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return logp[np.arange(len(path) - 1), path[1:]]


def test_log_probabilities_of_given_continuations_are_those_of_a_dense_pass(shared):
    paths = [(ids(30, 7), 1), (ids(60, 8), 13), (ids(64, 9), 63), (ids(5, 10), 5), (np.append(ids(30, 7), 9), 30)]
    shared.score([paths[1][0][:20]])  # a part is cached, without log-probabilities
    got = shared.logprobs([LogprobsRequest(path, start) for path, start in paths])
    for (path, start), logprobs in zip(paths, got, strict=True):
        np.testing.assert_allclose(logprobs, dense_logprobs(path)[start - 1 :], atol=1e-4)


def test_log_probabilities_of_what_was_sampled_cost_its_last_token():
    mine = engine()
    history = ids(20, 2)
    [samples] = mine.generate([sampled(history, 3, seed=4)])
    before = mine.stats.read_tokens
    paths = [np.concatenate([history, sample.tokens]) for sample in samples]
    got = mine.logprobs([LogprobsRequest(path, len(history)) for path in paths])
    for logprobs, sample in zip(got, samples, strict=True):
        np.testing.assert_allclose(logprobs, sample.logprobs, atol=1e-4)
    assert mine.stats.read_tokens - before <= 2 * len(samples)
    before = mine.stats.read_tokens
    again = mine.logprobs([LogprobsRequest(path, len(history)) for path in paths])
    assert all(np.array_equal(a, b) for a, b in zip(got, again, strict=True))
    assert mine.stats.read_tokens == before


def test_the_most_likely_tokens_are_reported_with_every_token(shared):
    history = ids(17, 3)
    [[sample]] = shared.generate([GenerateRequest(history, SamplingParams(seed=2, logprobs=4))])
    [[plain]] = shared.generate([sampled(history, 1, seed=2)])
    assert sample.tokens.tolist() == plain.tokens.tolist()
    logits = dense_logits(MODEL, np.concatenate([history, sample.tokens]))[len(history) - 1 : -1].astype(np.float64)
    logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    tokens, logprobs = sample.top
    np.testing.assert_array_equal(tokens, np.argsort(-logp, axis=-1)[:, :4])
    np.testing.assert_allclose(logprobs, np.take_along_axis(logp, tokens, axis=1), atol=1e-4)


# --- requests of all kinds -----------------------------------------------------------------------------------------------


def test_every_request_has_parameters_of_its_own(shared):
    path = ids(21, 4)
    long = dense_greedy(MODEL, path, 30, end_id=-1)
    params = [
        SamplingParams(temperature=0.0, max_tokens=2),
        SamplingParams(temperature=0.0, max_tokens=30, stop_token_ids=()),
        SamplingParams(temperature=0.0, max_tokens=30, stop_token_ids=(long[7], long[4])),
        SamplingParams(temperature=3.0, top_k=1, max_tokens=9, stop_token_ids=()),
        SamplingParams(temperature=3.0, top_p=1e-6, max_tokens=9, stop_token_ids=()),
        SamplingParams(temperature=3.0, min_p=1.0, max_tokens=9, stop_token_ids=()),
    ]
    got = [samples[0] for samples in shared.generate([GenerateRequest(path, p) for p in params])]
    stop = min(long.index(long[7]), long.index(long[4])) + 1
    assert [s.tokens.tolist() for s in got] == [long[:2], long, long[:stop], *[long[:9]] * 3]
    assert [s.finished for s in got] == [False, False, True, False, False, False]


def test_samples_that_outgrow_their_row_go_on_in_another(shared):
    path = ids(4, 11)
    want = dense_greedy(MODEL, path, 60, end_id=-1)
    params = SamplingParams(temperature=0.0, n=3, max_tokens=60, stop_token_ids=())
    assert tokens_of(shared.generate([GenerateRequest(path, params)])) == [[want] * 3]


def test_a_stop_text_ends_a_sample_across_token_boundaries():
    def text(tokens):
        return "".join(f"<{token}>" for token in tokens)

    mine = Engine(MODEL, SIZES, end_id=END, text=text)
    path = ids(21, 4)
    want = dense_greedy(MODEL, path, 6, END)
    stop = f"{want[1]}><{want[2]}"
    params = SamplingParams(temperature=0.0, stop=("never", stop))
    [[sample], [other]] = mine.generate([GenerateRequest(path, params), greedy(path)])
    assert (sample.tokens.tolist(), sample.finished, sample.stop) == (want[:3], True, stop)
    assert other.tokens.tolist() == want
    with pytest.raises(RequestError, match="no tokenizer"):
        engine().generate([GenerateRequest(path, params)])


def test_a_repeated_token_is_penalised_as_asked(shared):
    path = ids(21, 4)
    params = SamplingParams(temperature=0.0, repetition_penalty=1e6, stop_token_ids=())
    [[sample]] = shared.generate([GenerateRequest(path, params)])
    seen = set(path.tolist())
    for i, token in enumerate(sample.tokens.tolist()):
        logits = dense_logits(MODEL, np.concatenate([path, sample.tokens[:i]]))[-1]
        adjusted = np.array([(x / 1e6 if x > 0 else x * 1e6) if v in seen else x for v, x in enumerate(logits)])
        assert token == int(np.argmax(adjusted))
        seen.add(token)


def test_a_value_that_is_not_a_number_comes_back_as_it_is():
    model = tiny_model()
    model.value_d[...] = model.value_d[...].at[0].set(np.nan)
    mine = Engine(model, SIZES, end_id=END)
    path = ids(20, 1)
    assert np.isnan(mine.score([path, path[:7], ids(9, 2)])).all()
    before = mine.stats.read_tokens
    assert np.isnan(mine.score([path])).all()
    assert mine.stats.read_tokens == before


@pytest.mark.parametrize("token", [97, 5000, -1])
def test_ids_without_an_embedding_are_refused(shared, token):
    path = np.append(ids(5, 1), token)
    for request in (greedy(path), ScoreRequest(path), LogprobsRequest(path, 1)):
        with pytest.raises(RequestError, match=rf"token id {token} has no embedding: the model has 97"):
            shared.submit(request)


def test_scores_need_a_value_head():
    model = tiny_model()
    del model.value_d
    with pytest.raises(RequestError, match="no value head"):
        Engine(model, SIZES, end_id=END).score([ids(5, 1)])


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1.0},
        {"n": 0},
        {"max_tokens": 0},
        {"top_p": 0.0},
        {"min_p": 2.0},
        {"stop": ("",)},
        {"logprobs": 99},
    ],
)
def test_parameters_without_meaning_are_refused(wrong):
    with pytest.raises(RequestError, match=f"{next(iter(wrong))}="):
        SamplingParams(**wrong)


def test_sequences_join_and_leave_a_running_batch():
    """A short request that comes late is done before a long one that runs already, and neither changes."""
    mine = engine()
    long = mine.submit(GenerateRequest(ids(9, 1), SamplingParams(temperature=0.0, max_tokens=40, stop_token_ids=())))
    while mine.stats.decode_steps < 8:
        mine.step()
    short = mine.submit(greedy(ids(30, 2)))
    while not short.done:
        mine.step()
    assert not long.done
    while mine.step():
        pass
    assert long.result[0].tokens.tolist() == dense_greedy(MODEL, ids(9, 1), 40, end_id=-1)
    assert short.result[0].tokens.tolist() == dense_greedy(MODEL, ids(30, 2), SIZES.max_new, END)


def test_a_cancelled_request_leaves_nothing_behind():
    mine = engine()
    params = SamplingParams(n=3, max_tokens=20, stop_token_ids=())
    jobs = [mine.submit(GenerateRequest(ids(12 + i, i), params)) for i in range(4)]
    for _ in range(3):
        mine.step()
    mine.cancel(jobs[0])
    mine.cancel(jobs[3])
    while mine.step():
        pass
    assert [job.done for job in jobs] == [False, True, True, False]
    assert (mine.idle, mine.cache.locked) == (True, 0)


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
    assert small.cache.locked == 0
    small.cache.allocate(70)  # every slot can be had again
    assert small.cache.free == 0


def test_a_batch_that_fits_exactly_can_be_asked_for_twice():
    small = engine(cache_tokens=64, rows=(4,))
    paths = [ids(32, 1), ids(32, 2)]
    for _ in range(2):
        np.testing.assert_allclose(small.score(paths), [value(p) for p in paths], atol=1e-4)
        requests = [greedy(p) for p in paths]
        want = [[dense_greedy(MODEL, p, SIZES.max_new, END)] for p in paths]
        assert tokens_of(small.generate(requests)) == want
    [sample] = small.generate([greedy(ids(58, 3))])[0]
    whole = np.concatenate([ids(58, 3), sample.tokens])
    np.testing.assert_allclose(small.score([whole]), [value(whole)], atol=1e-4)


def test_a_common_beginning_is_read_once():
    mine = engine(cache_tokens=4096, rows=(4,), context=(64,))
    common = ids(45, 1)
    histories = [np.concatenate([common, ids(8, 10 + i)]) for i in range(8)]
    results = tokens_of(mine.generate([greedy(h) for h in histories]))
    assert results == [[dense_greedy(MODEL, h, SIZES.max_new, END)] for h in histories]
    assert mine.stats.read_tokens == 45 + 8 * 8


def test_rows_that_begin_alike_may_read_their_beginning_together():
    """A trunk changes no answer, and who does not share it is served all the same."""
    mine = engine(cache_tokens=4096, rows=(2, 4), trunk=16)
    common = ids(20, 1)
    histories = [np.concatenate([common, ids(3 * i + 1, 10 + i)]) for i in range(6)]
    stranger = ids(25, 9)
    jobs = [mine.submit(greedy(h)) for h in histories]
    trunks = set()
    while mine.step():
        trunks |= {batch.shape.trunk for batch in mine.scheduler.seats.batches}
    assert trunks == {16}
    results = [[s.tokens.tolist() for s in job.result] for job in jobs]
    assert results == [[dense_greedy(MODEL, h, SIZES.max_new, END)] for h in histories]
    assert tokens_of(mine.generate([greedy(stranger), greedy(histories[0], n=3)])) == [
        [dense_greedy(MODEL, stranger, SIZES.max_new, END)],
        [dense_greedy(MODEL, histories[0], SIZES.max_new, END)] * 3,
    ]


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


def test_make_engine_takes_a_config_group():
    made = make_engine(MODEL, {**dataclasses.asdict(SIZES), "dtype": "float32"}, end_id=END)
    assert made.config == SIZES


@pytest.mark.parametrize("kind", ["longrope", "dynamic"])
def test_no_engine_reads_paths_for_which_positions_would_turn_otherwise(kind):
    lists = {"short_factors": (1.0,) * 4, "long_factors": (2.0,) * 4} if kind == "longrope" else {}
    model = tiny_model(rope_scaling=RopeScaling(kind, 2.0, original_length=32, **lists), max_length=32)
    Engine(model, dataclasses.replace(SIZES, context=(16, 32)), end_id=END)
    with pytest.raises(UserError, match=r"context=64: positions of this model .* at most 32 tokens"):
        Engine(model, SIZES, end_id=END)


# --- weights in fewer bytes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("weights", "bound"), [("bfloat16", 0.05), ("int8", 0.15)])
def test_an_engine_with_narrow_matrices_says_almost_what_the_whole_ones_say(weights, bound):
    """Logits spread by 2 here: log-probabilities move by rounding, and what is decoded is what is read again."""
    whole = tiny_model(tie_embeddings=False)
    narrow = Engine(whole, dataclasses.replace(SIZES, weights=weights), end_id=END)
    path = ids(20, 70)
    logits = dense_logits(whole, path)
    want = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    [got] = narrow.logprobs([LogprobsRequest(path, 1)])
    moved = np.abs(got - want[np.arange(19), path[1:]])
    assert 0 < moved.mean() < bound
    [[sample]] = narrow.generate([greedy(path)])
    fresh = Engine(whole, dataclasses.replace(SIZES, weights=weights), end_id=END)
    [again] = fresh.logprobs([LogprobsRequest(np.concatenate([path, sample.tokens]), len(path))])
    assert np.abs(sample.logprobs - again).mean() < bound
