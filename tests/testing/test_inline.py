"""The in-process environments and the scripted policies that the other tests stand on."""

import asyncio

import pytest

from agentrm_jax.testing.inline import InlineEnvironments
from agentrm_jax.testing.scripted import commands_of, listing_policy, optimum_reward, turn, uniform_policy
from agentrm_jax.testing.toy_env import SPEC, make_task, optimum, word_reward
from agentrm_jax.types import EnvironmentFault

TASK = make_task(3)


@pytest.mark.parametrize("options", [{}, {"snapshot": False}])
def test_any_earlier_state_can_be_stepped_again(options):
    async def main():
        envs = InlineEnvironments(SPEC, options)
        root = await envs.reset(TASK)
        a = await envs.step(root, turn("a"))
        ab = await envs.step(a, turn("b"))
        b = await envs.step(root, turn("b"))
        abc, aba, baa = [
            await envs.step(ab, turn("c")),
            await envs.step(ab, turn("a")),
            await envs.step(await envs.step(b, turn("a")), turn("a")),
        ]
        for state, word in [(abc, "abc"), (aba, "aba"), (baa, "baa")]:
            assert "".join(commands_of(state)) == word
            assert state.done
            assert state.outcome.reward == word_reward(TASK, word)
            assert state.depth == 3
        assert len({s.key for s in (root, a, ab, b, abc, aba, baa)}) == 7
        assert envs.steps == 7
        assert (envs.replayed > 0) == (options == {"snapshot": False})

    asyncio.run(main())


def test_what_the_engine_raises_is_a_fault():
    async def main():
        envs = InlineEnvironments(SPEC, {"delay": "soon"})
        with pytest.raises(EnvironmentFault, match="h3 cannot be stepped"):
            await envs.step(await envs.reset(TASK), turn("a"))

    asyncio.run(main())


def test_only_executed_states_of_running_episodes_can_be_stepped():
    async def main():
        envs = InlineEnvironments(SPEC)
        root = await envs.reset(make_task(1))
        with pytest.raises(ValueError, match="executed"):
            await envs.step(root.propose(turn("a")), turn("a"))
        with pytest.raises(ValueError, match="over"):
            await envs.step(await envs.step(root, turn("a")), turn("a"))

    asyncio.run(main())


def propose(policy, n, seed=0, temperature=1.0):
    async def main():
        root = await InlineEnvironments(SPEC).reset(TASK)
        return [a.text[-1] for a in await policy.propose(root, n, temperature=temperature, seed=seed)]

    return asyncio.run(main())


def test_scripted_policies():
    assert propose(listing_policy("abc"), 5) == list("abcab")
    assert propose(listing_policy("bc"), 3, temperature=0) == list("bbb")
    policy = uniform_policy("abc")
    samples = propose(policy, 300)
    assert samples[:10] == propose(policy, 10) != propose(policy, 10, seed=1)
    assert all(70 < samples.count(x) < 130 for x in "abc")
    assert len(set(propose(policy, 20, temperature=0))) == 1
    assert propose(policy, 1, seed=1, temperature=0) == propose(policy, 1, seed=2, temperature=0)


def test_the_optimum_reward_knows_what_can_still_be_reached():
    async def main():
        root = await InlineEnvironments(SPEC).reset(TASK)
        states = [root.propose(turn(x)) for x in "abc"]
        return await optimum_reward().score(states)

    values = asyncio.run(main())
    assert values == [optimum(TASK, x)[1] for x in "abc"]
    assert max(values) == optimum(TASK)[1]
