"""Tree search at test time: what it reads, where it moves, and what it settles on."""

import asyncio
import dataclasses
import math

import pytest

from agentrm_jax.search.budget import Meter
from agentrm_jax.search.guided_mcts import guided_mcts
from agentrm_jax.search.lookahead import lookahead
from agentrm_jax.search.mcts import ucb
from agentrm_jax.testing.inline import InlineEnvironments
from agentrm_jax.testing.scripted import (
    ScriptedEnvironments,
    ScriptedPolicy,
    ScriptedRewardModel,
    constant_reward,
    listing_policy,
    optimum_reward,
    random_reward,
    turn,
    uniform_policy,
)
from agentrm_jax.testing.scripted import word_of as word
from agentrm_jax.testing.scripted import word_reward_model as scores
from agentrm_jax.testing.toy_env import SPEC, make_task, optimum, words
from agentrm_jax.types import Outcome, State, TooLong, UserError

TASK = make_task(4)


def run(envs, reward_model, policy=None, task=TASK, method=guided_mcts, **options):
    return asyncio.run(method(task, policy or listing_policy("abc"), envs, reward_model, **options))


def toy():
    return InlineEnvironments(SPEC)


@pytest.mark.parametrize("iterations", [1, 3, 10])
@pytest.mark.parametrize("prefix", ["", "x", "7"])
def test_with_exact_values_and_all_actions_the_optimum_is_found(iterations, prefix):
    task = make_task(4, prefix)
    result = run(toy(), optimum_reward(), task=task, iterations=iterations, k=3, backup="max")
    assert result.state.outcome.reward == optimum(task)[1]


@pytest.mark.parametrize("backup", ["mean", "max"])
def test_with_one_expansion_a_turn_it_is_lookahead(backup):
    for seed in range(10):
        ahead = run(toy(), random_reward(seed), method=lookahead, samples=3)
        found = run(toy(), random_reward(seed), iterations=1, k=3, backup=backup)
        assert word(found.state) == word(ahead.state)


def test_with_enough_expansions_every_episode_is_seen_and_the_best_score_wins():
    model = random_reward(4)
    result = run(toy(), model, iterations=100, k=3)
    assert sorted(word(c.state) for c in result.candidates) == sorted(words(TASK))
    assert result.candidates[result.chosen].score == max(model.value(c.state) for c in result.candidates)


def plain(task, model, iterations, c, best):
    """The same search over words alone, written out: every expansion adds all three letters."""
    horizon = task.args["horizon"]
    returns, children, ends = {"": []}, {}, []

    def value(w):
        return max(returns[w]) if best else sum(returns[w]) / len(returns[w])

    def closed(w):
        return len(w) == horizon or (w in children and all(map(closed, children[w])))

    here = ""
    while len(here) < horizon:
        for _ in range(iterations):
            if closed(here):
                break
            leaf = here
            while leaf in children:
                open_ = [x for x in children[leaf] if not closed(x)]
                leaf = max(open_, key=lambda x: ucb(value(x), len(returns[x]), len(returns[leaf]), c))
            children[leaf] = [leaf + letter for letter in "abc"]
            for child in children[leaf]:
                score = model(child)
                returns[child] = []
                for end in range(len(child) + 1):
                    returns[child[:end]].append(score)
                if len(child) == horizon:
                    ends.append(child)
        here = max(children[here], key=lambda x: (len(returns[x]), value(x)))
    return ends, max(ends, key=model)


@pytest.mark.parametrize("iterations", [1, 2, 5, 20])
@pytest.mark.parametrize("c", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("backup", ["mean", "max"])
def test_it_is_the_search_that_is_written_out_over_words(iterations, c, backup):
    for seed in range(4):
        model = random_reward(seed)
        state = State(TASK, "goal")

        def score(w, model=model, state=state):
            for letter in w:
                state = state.propose(turn(letter))
            return model.value(state)

        ends, chosen = plain(TASK, score, iterations, c, backup == "max")
        result = run(toy(), model, iterations=iterations, c=c, k=3, backup=backup)
        assert [word(x.state) for x in result.candidates] == ends
        assert word(result.state) == chosen


def test_it_never_reads_what_the_environment_pays():
    class Poor(InlineEnvironments):
        async def step(self, state, action):
            new = await super().step(state, action)
            outcome = dataclasses.replace(new.outcome, reward=0.0, progress=0.0, success=False)
            return self._keep(dataclasses.replace(new, outcome=outcome))

    policy, model = uniform_policy("abc"), random_reward(2)
    for options in ({}, {"n": 2, "depth": 2, "rollout_temperature": 1.0}):
        rich, poor = (run(envs, model, policy, iterations=4, k=3, **options) for envs in (toy(), Poor(SPEC)))
        assert [word(c.state) for c in poor.candidates] == [word(c.state) for c in rich.candidates]
        assert poor.chosen == rich.chosen


def test_it_moves_to_the_most_visited_successor_not_to_the_best_one():
    """`b` scores best, but both turns after it are bad: the second and third expansion lead to `a`, which then leads by visits."""
    values = {"a": 0.5, "b": 0.6, "ba": -1.0, "bb": -1.0, "aa": 0.5, "ab": 0.5, "aaa": 0.5, "aab": 0.5}
    envs = ScriptedEnvironments(ends=[])
    run(envs, scores(values), listing_policy("ab"), make_task(3, max_steps=4), iterations=4, k=2, c=0.0)
    assert envs.executed[:8] == ["a", "b", "ba", "bb", "aa", "ab", "aaa", "aab"]
    assert all(w.startswith("a") for w in envs.executed[8:])


def test_the_best_finished_episode_wins_also_when_it_is_not_where_the_search_moved():
    values = {"a": 0.5, "b": 0.4, "aa": 0.1, "ab": 0.2}
    envs = ScriptedEnvironments(ends=["b", "aa", "ab"])
    result = run(envs, scores(values), listing_policy("ab"), iterations=2, k=2)
    assert [word(c.state) for c in result.candidates] == ["b", "aa", "ab"]
    assert word(result.state) == "b"


def test_turns_are_drawn_once_for_every_state_that_is_expanded():
    meter, seeds = Meter(), []

    def choose(state, n, temperature, seed):
        seeds.append((word(state), seed))
        return list("abc")[:n]

    run(
        meter.environments(toy()), meter.reward_model(random_reward()), meter.policy(ScriptedPolicy(choose)),
        iterations=2, k=3, c=0.0,
    )  # fmt: skip
    assert len({at for at, _ in seeds}) == len({seed for _, seed in seeds}) == len(seeds)
    cost = meter.total()
    assert cost.policy_turns == cost.env_steps == cost.reward_states == 3 * len(seeds)
    assert cost.reward_calls == len(seeds)


def test_equal_commands_become_one_successor():
    policy = ScriptedPolicy(lambda state, n, temperature, seed: list("aab"))
    envs = ScriptedEnvironments(ends=["a", "b"])
    result = run(envs, constant_reward(), policy, iterations=1, k=3)
    assert envs.executed == ["a", "b"]
    assert result.counts["duplicates"] == 1


def test_a_score_is_read_after_the_turns_of_a_simulation():
    """The policy writes `b` by itself; only `cbb` is worth anything, and a score of the first letter would not tell."""
    policy = ScriptedPolicy(lambda state, n, t, seed: ["b"] * n if t == 0 else list("abc")[:n])
    values = {"abb": 0.2, "bbb": 0.3, "cbb": 0.9}
    task = make_task(3)
    result = run(toy(), scores(values), policy, task, iterations=1, k=3, depth=2)
    assert word(result.state) == "cbb"
    assert {word(c.state) for c in result.candidates} >= set(values)  # seen in simulations


def test_the_value_of_a_successor_is_the_mean_of_its_simulations():
    drawn = iter("xxyx")  # two simulations after `a`, two after `b`

    def choose(state, n, temperature, seed):
        return list("ab") if n == 2 else [next(drawn)]

    values = {"ax": 0.6, "bx": 0.0, "by": 1.0}
    envs = ScriptedEnvironments(ends=["ax", "by", "bx"])
    # fmt: off
    result = run(
        envs, scores(values), ScriptedPolicy(choose), make_task(2, max_steps=2),
        iterations=1, k=2, n=2, depth=1, rollout_temperature=1.0,
    )
    # fmt: on
    assert envs.executed[:6] == ["a", "b", "ax", "ax", "by", "bx"]
    assert envs.executed[6].startswith("a")  # 0.6 beats (0 + 1) / 2
    assert word(result.state) == "by"  # the episode itself was seen, and scored best


def test_bad_options_are_refused():
    with pytest.raises(UserError, match="no backup named 'median'; use one of mean, max"):
        run(toy(), constant_reward(), backup="median")


def test_simulations_that_would_be_copies_are_refused():
    for options in ({"depth": 2}, {"rollout_temperature": 1.0}):
        with pytest.raises(UserError, match="would be copies"):
            run(toy(), constant_reward(), n=2, **options)


def test_a_successor_without_a_score_is_not_explored():
    values = {"a": math.nan, "b": -3.0, "ba": None, "bb": -4.0}
    envs = ScriptedEnvironments(ends=["ba", "bb"])
    result = run(envs, scores(values), listing_policy("ab"), iterations=5, k=2)
    assert envs.executed == ["a", "b", "ba", "bb"]
    assert word(result.state) == "bb"
    assert result.counts["unscored"] == 2


def test_with_no_scores_at_all_the_policy_goes_on_alone():
    result = run(toy(), ScriptedRewardModel(lambda state: None), k=3)
    assert result.finished
    assert math.isnan(result.candidates[0].score)
    assert result.counts["unscored"] == 3


def test_what_cannot_be_executed_is_left_out():
    envs = ScriptedEnvironments(ends=["ba"], broken=["a", "bb"])
    result = run(envs, constant_reward(), listing_policy("ab"), iterations=3, k=2)
    assert word(result.state) == "ba"
    assert result.counts["faults"] == 2
    stuck = run(ScriptedEnvironments([], ["aa", "ab"]), constant_reward(), listing_policy("a"), k=1)
    assert word(stuck.state) == "a"
    assert not stuck.finished


def test_a_history_that_grew_too_long_is_left_out():
    def choose(state, n, temperature, seed):
        if word(state) == "a":
            raise TooLong("too long")
        return list("ab")

    values = {"a": 0.9, "b": 0.1}
    result = run(ScriptedEnvironments(["ba", "bb"]), scores(values), ScriptedPolicy(choose), iterations=2, k=2)
    assert word(result.state) in ("ba", "bb")
    assert result.counts["faults"] == 1


def test_a_task_that_is_over_at_reset_is_given_back():
    class Over(ScriptedEnvironments):
        async def reset(self, task):
            return State(task, "goal", outcome=Outcome("won", 1.0, 1.0, True, True))

    assert run(Over([]), constant_reward()).state.depth == 0
