"""What the pool promises: functional stepping, the same answers whatever breaks, and no process left behind."""

import asyncio
import dataclasses

import pytest

from agentrm_jax.envs.pool.faults import faulty
from agentrm_jax.envs.pool.pool import EnvironmentPool
from agentrm_jax.testing import toy_env
from agentrm_jax.types import Action, EnvironmentFault, State, Task, UserError
from tests.envs.pooled import TASK, TASKS, TOY, alive, explore, explore_all, outcomes, play, run, truth, turn

# Stepping


def test_an_episode_through_the_pool():
    async def go(pool):
        state = await play(pool, "bbb")
        assert [s.depth for s in state.path()] == [0, 1, 2, 3]
        assert state.path()[0].outcome.observation == 'The word is "".'
        assert state.goal == "Write the best word of 3 letters."
        assert (state.outcome.reward, state.done, state.outcome.success) == (0.965, True, True)

    run(go)


def test_any_earlier_state_can_be_stepped_at_any_time():
    async def go(pool):
        b = await play(pool, "b")
        bb, ba = await play(pool, "b", b), await play(pool, "a", b)
        assert (await play(pool, "b", bb)).outcome.reward == 0.965
        assert (await play(pool, "b", ba)).outcome.reward == 0.846
        assert (await play(pool, "a", bb)).outcome.reward == 0.391
        assert (await play(pool, "aa", b.parent)).outcome.observation == 'Observation: The word is "aa".'
        again = await asyncio.gather(*(play(pool, letters, b) for letters in ("ba", "ab", "ba")))
        assert [s.outcome.reward for s in again] == [0.391, 0.846, 0.391]
        assert pool.stats.replays == 0  # all from snapshots

    run(go)


def test_random_trees_of_many_tasks_at_once_are_what_single_episodes_say():
    assert outcomes(run(explore_all, workers=2)) == truth()


def test_keys_depend_on_task_and_turns_only():
    async def keys(pool):
        states = [await play(pool, word) for word in ("", "a", "b", "ab")]
        other = await pool.reset(toy_env.make_task(4))
        return [s.key for s in [*states, other]]

    one, two = run(keys), run(keys, {"snapshot": False}, workers=2)
    assert one == two
    assert len(set(one)) == 5


def test_a_turn_without_action_costs_a_step_only():
    async def go(pool):
        state = await play(pool, "bb")
        wasted = await pool.step(state, Action("let me think"))
        assert (wasted.outcome.valid, wasted.outcome.parsed, wasted.done) == (False, None, False)
        assert (await play(pool, "b", wasted)).outcome.reward == 0.965

    run(go)


def test_an_ended_or_proposed_state_cannot_be_stepped():
    async def go(pool):
        end = await play(pool, "aaa")
        with pytest.raises(ValueError, match="has ended"):
            await pool.step(end, turn("a"))
        with pytest.raises(ValueError, match="was not executed"):
            await pool.step(end.parent.propose(turn("a")), turn("a"))

    run(go)


# Replay


def test_without_snapshots_the_past_is_replayed():
    async def go(pool):
        first = await explore_all(pool)
        assert pool.stats.replays > 0
        assert pool.stats.divergences == 0
        return first

    assert outcomes(run(go, {"snapshot": False}, live=2)) == truth()


def test_snapshots_that_fell_out_are_replaced_by_replay():
    async def go(pool):
        first = await explore_all(pool)
        assert pool.stats.replays > 0
        return first

    assert outcomes(run(go, snapshots=2, live=1)) == truth()


def test_a_state_of_another_pool_is_reached_by_replay():
    old = run(lambda pool: play(pool, "bb"))
    assert run(lambda pool: play(pool, "b", old)).outcome.reward == 0.965


def test_a_past_that_is_not_reproduced_is_a_fault():
    async def go(pool):
        root = await pool.reset(TASK)
        ab = await play(pool, "ab", root)
        with pytest.raises(EnvironmentFault, match="toy/h3: step after 1 steps: a replay diverged: step 1"):
            await play(pool, "c", await leave(pool, ab.parent))
        assert (pool.stats.divergences, pool.stats.failed) == (3, 1)
        assert (await play(pool, "a", root)).depth == 1  # only that step failed

    async def leave(pool, state):
        await play(pool, "c", state.parent)  # the one engine is elsewhere now
        return state

    run(go, {"snapshot": False}, live=1, specs={"toy": faulty(toy_env.SPEC, drift=1.0)})


def test_a_changed_reward_or_end_is_noticed_too():
    old = run(lambda pool: play(pool, "bb"))
    for changed in ({"reward": 0.5}, {"done": True}):
        past = State(
            TASK, old.goal, old.parent.parent, turn("b"), dataclasses.replace(old.parent.outcome, **changed), 1
        )
        forged = State(TASK, old.goal, past, turn("b"), old.outcome, 2, old.key)
        with pytest.raises(EnvironmentFault, match="diverged: step 1"):
            run(lambda pool, state=forged: play(pool, "b", state))


# Users' mistakes


def test_an_engine_that_cannot_be_built_names_the_remedy():
    async def go(pool):
        with pytest.raises(UserError, match="no environment named 'babyia'"):
            await pool.reset(Task("babyia", "1", "test", 3))
        assert (await pool.reset(TASK)).depth == 0

    run(go)


def test_impossible_settings_are_refused():
    with pytest.raises(UserError, match="workers"):
        EnvironmentPool({TOY: {}}, workers=0)


# Determinism


def test_answers_do_not_depend_on_workers_or_company(tmp_path):
    def keys_and_outcomes(explored):
        return [[(s.key, s.outcome) for s in states] for states in explored]

    alone = keys_and_outcomes(run(lambda pool, t=task: explore(pool, t)) for task in TASKS[:2])
    spec = faulty(toy_env.SPEC, crash=0.03, error=0.03, seed=3, once_in=str(tmp_path))
    for arguments in ({"workers": 1}, {"workers": 3, "snapshots": 3, "live": 1, "specs": {"toy": spec}, "retries": 9}):
        together = run(explore_all, **arguments)
        assert keys_and_outcomes(together[:2]) == alone


# Processes


def test_processes_start_when_they_are_needed():
    async def go(pool):
        before = len(pool.pids)
        await play(pool, "ab")
        return before, len(pool.pids)

    assert run(go, workers=4) == (0, 1)


def test_no_process_is_left_after_the_block():
    async def go(pool):
        await explore_all(pool)
        return pool.pids

    pids = run(go, workers=2)
    assert len(pids) == 2
    assert not any(alive(pid) for pid in pids)


def test_no_process_is_left_after_an_error_in_the_block_with_a_step_in_flight():
    pids = []

    async def go(pool):
        root = await pool.reset(TASK)
        pids.extend(pool.pids)
        step = asyncio.create_task(pool.step(root, turn("a")))
        await asyncio.sleep(0.05)
        try:
            raise LookupError
        finally:
            await pool.close()
            with pytest.raises(EnvironmentFault, match="closed"):
                await step

    with pytest.raises(LookupError):
        run(go, specs={"toy": faulty(toy_env.SPEC, hang=1.0)})
    assert not alive(pids[0])
