"""What a search costs is counted without changing it."""

import asyncio
import threading

import pytest

from agentrm_jax.search import Meter, beam, best_of_n, rollout
from agentrm_jax.testing.inline import InlineEnvironments
from agentrm_jax.testing.scripted import ScriptedRewardModel, listing_policy, random_reward, uniform_policy
from agentrm_jax.testing.toy_env import SPEC, make_task
from agentrm_jax.types import EnvironmentFault

TASK, OTHER = make_task(3), make_task(5)
POLICY = uniform_policy("abc")


def metered(meter, reward_model=None):
    return {
        "policy": meter.policy(POLICY),
        "envs": meter.environments(InlineEnvironments(SPEC)),
        "reward_model": meter.reward_model(reward_model or random_reward()),
    }


def test_best_of_n_costs_what_it_costs():
    meter = Meter()
    result = asyncio.run(best_of_n(TASK, **metered(meter), n=4))
    cost = meter.total()
    assert (cost.policy_calls, cost.policy_turns) == (12, 12)
    assert cost.policy_tokens == 12 * len("Action: a")
    assert (cost.reward_calls, cost.reward_states) == (1, 4)
    assert (cost.env_resets, cost.env_steps) == (1, 12)
    assert cost.seconds > 0
    plain = asyncio.run(best_of_n(TASK, POLICY, InlineEnvironments(SPEC), random_reward(), n=4))
    assert result.chosen == plain.chosen
    assert [c.score for c in result.candidates] == [c.score for c in plain.candidates]


def test_costs_are_kept_for_each_task_and_sum_up():
    meter = Meter()
    wrapped = metered(meter)

    async def main():
        await asyncio.gather(*(beam(t, **wrapped, width=2, branch=3) for t in (TASK, OTHER)))

    asyncio.run(main())
    first, second, total = meter.tasks[TASK.key], meter.tasks[OTHER.key], meter.total()
    assert (first.env_steps, second.env_steps) == (6, 10)
    assert (first.policy_turns, second.policy_turns) == (6 + 2 * 6, 6 + 4 * 6)
    for name in ("policy_calls", "policy_turns", "policy_tokens", "reward_states", "reward_calls", "env_steps"):
        assert getattr(total, name) == getattr(first, name) + getattr(second, name)
    assert max(first.seconds, second.seconds) <= total.seconds <= first.seconds + second.seconds


def test_tokens_of_a_reward_model_that_counts_them():
    class Counting(ScriptedRewardModel):
        tokens = 1000  # from before

        async def score(self, states):
            self.tokens += 7 * len(states)
            return await super().score(states)

    meter = Meter()
    asyncio.run(best_of_n(TASK, **metered(meter, Counting(lambda state: 0.0)), n=4))
    assert meter.total().reward_tokens == 28


def test_tokens_of_a_shared_batch_are_divided_by_states():
    """Two tasks wait for one batch of 4 states; what a third asks for later is its own."""

    class Batching:
        tokens = 1000

        def __init__(self):
            self.read = asyncio.Event()

        async def score(self, states):
            if len(states) == 2:
                await self.read.wait()  # until somebody's call has read the batch
            elif len(states) == 3:
                self.tokens += 101
                self.read.set()
            else:
                self.tokens += 7
            return [0.0] * len(states)

    def states(number, task):
        root = asyncio.run(InlineEnvironments(SPEC).reset(task))
        return [root] * number

    meter, third = Meter(), make_task(7)
    model = meter.reward_model(Batching())
    asked = [states(2, TASK), states(3, OTHER), states(1, third)]

    async def main():
        await asyncio.gather(model.score(asked[0]), model.score(asked[1]))
        await model.score(asked[2])

    asyncio.run(main())
    assert [meter.tasks[t.key].reward_tokens for t in (TASK, OTHER, third)] == [40, 61, 7]
    assert meter.total().reward_tokens == 108


def test_tokens_of_a_failed_request_are_charged_too():
    class Failing:
        tokens = 0

        async def score(self, states):
            self.tokens += 5
            raise EnvironmentFault("gone")

    meter = Meter()
    state = asyncio.run(InlineEnvironments(SPEC).reset(TASK))
    with pytest.raises(EnvironmentFault):
        asyncio.run(meter.reward_model(Failing()).score([state]))
    assert meter.tasks[TASK.key].reward_tokens == 5
    assert meter.tasks[TASK.key].reward_calls == 0


def test_what_failed_is_not_charged_and_the_error_comes_through():
    class Broken(InlineEnvironments):
        async def step(self, state, action):
            raise EnvironmentFault("it hung twice")

    meter = Meter()
    with pytest.raises(EnvironmentFault):
        asyncio.run(rollout(TASK, meter.policy(POLICY), meter.environments(Broken(SPEC))))
    assert meter.total().env_steps == 0
    assert meter.total().policy_turns == 1


def test_an_unused_meter_shows_nothing():
    assert Meter().total().seconds == 0.0


def test_threads_may_share_a_meter():
    meter = Meter()
    policy, envs = meter.policy(listing_policy("a")), InlineEnvironments(SPEC)
    state = asyncio.run(envs.reset(TASK))

    async def ask():
        for _ in range(200):
            await policy.propose(state, 1, temperature=0.0, seed=0)

    threads = [threading.Thread(target=lambda: asyncio.run(ask())) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert meter.total().policy_calls == 800


def test_turns_left_out_of_what_a_model_read_are_noted_by_task():
    class Forgetful:
        def __init__(self):
            self.dropped_turns = {TASK.key: 0}

        async def propose(self, state, n, *, temperature, seed):
            self.dropped_turns[state.task.key] += 2
            return await POLICY.propose(state, n, temperature=temperature, seed=seed)

    meter = Meter()
    asyncio.run(rollout(TASK, meter.policy(Forgetful()), InlineEnvironments(SPEC)))
    assert meter.tasks[TASK.key].policy_dropped_turns == 2 * 3
    assert meter.total().reward_dropped_turns == 0
