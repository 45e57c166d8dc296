"""What the pool promises: functional stepping, the same answers whatever breaks, and no process left behind."""

import asyncio
import dataclasses
import functools
import importlib
import os
import random
import signal
import tempfile
import time
from pathlib import Path

import pytest

from agentrm_jax.envs.pool.episode import Episode
from agentrm_jax.envs.pool.faults import faulty
from agentrm_jax.envs.pool.pool import EnvironmentPool
from agentrm_jax.envs.pool.process import WorkerProcess
from agentrm_jax.testing import toy_env
from agentrm_jax.types import Action, EnvironmentFault, Outcome, State, Task, UserError

TOY = "agentrm_jax.testing.toy_env"
TASK = toy_env.make_task()
TASKS = toy_env.tasks("train", {})[:6]


def turn(letter):
    return Action(f"Thought: hm\nAction: {letter}")


async def play(pool, word, state=None):
    """The state after the letters of `word`, from `state` or a reset of TASK."""
    state = state or await pool.reset(TASK)
    for letter in word:
        state = await pool.step(state, turn(letter))
    return state


async def explore(pool, task, turns=12):
    """Steps random earlier states of a task; all states in order. The choices depend on the task only."""
    rng = random.Random(task.id)
    states = [await pool.reset(task)]
    for _ in range(turns):
        parent = rng.choice([s for s in states if not s.done])
        states.append(await pool.step(parent, turn(rng.choice("abcx"))))
    return states


class InProcess:
    """The truth: every step is a fresh episode in this process, played from its start."""

    async def reset(self, task):
        start = Episode(toy_env.ToyEnv({}), toy_env.SPEC).reset(task)
        return State(task, start.goal, outcome=Outcome(start.observation))

    async def step(self, state, action):
        episode = Episode(toy_env.ToyEnv({}), toy_env.SPEC)
        episode.reset(state.task)
        for past in state.path()[1:]:
            episode.step(past.action.text)
        return State(state.task, state.goal, state, action, episode.step(action.text))


async def explore_all(pool, tasks=TASKS):
    return await asyncio.gather(*(explore(pool, task) for task in tasks))


def outcomes(explored):
    return [[state.outcome for state in states] for states in explored]


@functools.cache
def truth():
    return outcomes(asyncio.run(explore_all(InProcess())))


def run(coroutine_of_pool, options=None, **arguments):
    async def go():
        async with EnvironmentPool({TOY: options or {}}, **{"workers": 1, **arguments}) as pool:
            return await coroutine_of_pool(pool)

    return asyncio.run(go())


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


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


# Faults


@pytest.mark.parametrize("kind", ["hang", "crash", "error", "garbage"])
def test_a_passing_fault_loses_no_episode(kind, tmp_path):
    async def go(pool):
        explored = await explore_all(pool)
        count = {"hang": pool.stats.timeouts, "crash": pool.stats.crashes}.get(kind, pool.stats.faults)
        assert count == len(list(tmp_path.iterdir())) > 0
        assert pool.stats.failed == 0
        return explored

    spec = faulty(toy_env.SPEC, **{kind: 0.05}, seed=5, once_in=str(tmp_path))
    explored = run(go, workers=2, step_timeout=0.4, retries=10, specs={"toy": spec})
    assert outcomes(explored) == truth()


@pytest.mark.parametrize(
    ("kind", "message", "tries"),
    [
        ("hang", "no step within 0.4 s", 3),
        ("crash", "the worker process ended with status 3", 3),
        ("error", "DeliberateError: told to fail", 2),
        ("garbage", "GarbageError", 2),
    ],
)
def test_a_lasting_fault_is_raised_for_its_step_alone(kind, message, tries):
    async def go(pool):
        root = await pool.reset(TASK)
        with pytest.raises(EnvironmentFault, match=f"task toy/h3: step after 0 steps: .*{message}"):
            await pool.step(root, turn("a"))
        assert (await pool.reset(TASK)).outcome == root.outcome
        stats = pool.stats
        assert stats.faults + stats.restarts == tries
        assert (await pool.step(root, Action("no command"))).depth == 1  # the engine is not touched

    run(go, step_timeout=0.4, specs={"toy": faulty(toy_env.SPEC, **{kind: 1.0})})


def test_requests_waiting_behind_a_hung_one_are_served():
    async def go(pool):
        roots = [await pool.reset(task) for task in TASKS]
        answers = await asyncio.gather(*(pool.step(r, turn("a")) for r in roots), return_exceptions=True)
        broken = sum(isinstance(answer, EnvironmentFault) for answer in answers)
        assert broken == pool.stats.failed == pool.stats.timeouts
        assert 0 < broken < len(TASKS)

    run(go, step_timeout=0.4, retries=0, specs={"toy": faulty(toy_env.SPEC, hang=0.3, seed=2)})


def test_building_an_engine_has_a_limit_of_its_own():
    slow = {"toy": faulty(toy_env.SPEC, slow_start=0.8)}
    assert run(lambda pool: play(pool, "b"), step_timeout=0.3, specs=slow).depth == 1
    with pytest.raises(EnvironmentFault, match=r"no (start|reset) within"):
        run(lambda pool: play(pool, "b"), step_timeout=0.3, start_timeout=0.5, retries=0, specs=slow)


class AdvancedLoop(asyncio.SelectorEventLoop):
    """An event loop on whose clock more time passes than really does."""

    ahead = 0.0

    def time(self):
        return super().time() + self.ahead


def test_a_long_replay_is_not_a_hang(monkeypatch):
    """On the pool's clock, each turn of the replay takes two thirds of the limit, and all of them together several times as long."""
    task, limit, ticks = toy_env.make_task(8), 600.0, []
    received = WorkerProcess._received

    def late(worker, number, kind, payload, replayed, now):
        loop = asyncio.get_running_loop()
        if kind == "tick":
            ticks.append(number)
            loop.ahead += 2 / 3 * limit
            worker.check(loop.time())
            worker.check(loop.time())  # overdue is what is overdue twice
        if number in worker.pending or number == 0:
            received(worker, number, kind, payload, replayed, loop.time())

    async def begin(pool):
        return await play(pool, "abcabca", await pool.reset(task))

    async def replay():
        async with EnvironmentPool({TOY: {}}, workers=1, step_timeout=limit, start_timeout=limit) as pool:
            end = await play(pool, "b", old)
            return end.done, pool.stats.timeouts, pool.stats.replayed_steps

    old = run(begin)
    monkeypatch.setattr(WorkerProcess, "_received", late)
    with asyncio.Runner(loop_factory=AdvancedLoop) as runner:
        assert runner.run(replay()) == (True, 0, 7)
    assert len(ticks) == 1 + 7  # the engine is built, and seven turns


def test_a_held_up_event_loop_is_not_a_hung_environment():
    async def go(pool):
        root = await pool.reset(TASK)
        step = asyncio.create_task(pool.step(root, turn("b")))
        await asyncio.sleep(0)
        time.sleep(0.9)  # as a compilation would
        await step
        assert pool.stats.restarts == 0

    run(go, step_timeout=0.3)


def test_every_process_has_a_folder_that_goes_with_it(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    async def go(pool):
        state = await pool.reset(TASK)
        (first,) = tmp_path.iterdir()
        (first / "left by an engine").touch()
        os.kill(pool.pids[0], signal.SIGKILL)
        await pool.step(state, turn("a"))
        while first.exists():
            await asyncio.sleep(0.02)
        assert len(list(tmp_path.iterdir())) == 1

    run(go, step_timeout=1.0)
    assert list(tmp_path.iterdir()) == []


def test_a_worker_killed_from_outside_is_replaced():
    async def go(pool):
        state = await play(pool, "bb")
        os.kill(pool.pids[0], signal.SIGKILL)
        assert (await play(pool, "b", state)).outcome.reward == 0.965
        assert (pool.stats.crashes, pool.stats.replays) == (1, 1)

    run(go)


def test_a_frozen_idle_worker_is_found_by_the_heartbeat():
    async def go(pool):
        await play(pool, "b")
        os.kill(pool.pids[0], signal.SIGSTOP)
        end = time.monotonic() + 5
        while pool.stats.timeouts == 0 and time.monotonic() < end:
            await asyncio.sleep(0.02)
        assert pool.stats.timeouts == 1

    run(go, heartbeat=0.1, step_timeout=0.4)


def test_a_worker_that_grew_too_large_is_replaced_between_requests():
    async def go(pool):
        state = await play(pool, "bb")
        await asyncio.sleep(1.2)
        assert (await play(pool, "b", state)).outcome.reward == 0.965
        assert pool.stats.recycled >= 1
        assert pool.stats.failed == 0

    if not Path("/proc/self/statm").exists():
        pytest.skip("this system does not tell the memory of a process")
    run(go, memory_limit=1)


def test_the_memory_of_a_worker_is_that_of_all_it_started(tmp_path, monkeypatch):
    (tmp_path / "hungry_env.py").write_text(
        "import dataclasses, subprocess, sys\n"
        "from agentrm_jax.testing import toy_env\n"
        "CODE = 'import sys; kept = bytearray(200_000_000); print(flush=True); sys.stdin.read()'\n"
        "class Hungry(toy_env.ToyEnv):\n"
        "    def __init__(self, options):\n"
        "        super().__init__(options)\n"
        "        pipes = {'stdin': subprocess.PIPE, 'stdout': subprocess.PIPE}\n"
        "        self.child = subprocess.Popen([sys.executable, '-c', CODE], **pipes)\n"
        "        self.child.stdout.readline()\n"
        "SPEC = dataclasses.replace(toy_env.SPEC, make=Hungry)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)

    async def go(pool):
        state = await play(pool, "b")
        end = time.monotonic() + 10
        while pool.stats.recycled == 0 and time.monotonic() < end:
            await asyncio.sleep(0.05)
        assert pool.stats.recycled == 1
        assert (await play(pool, "bb", state)).outcome.reward == 0.965

    if not Path("/proc/self/stat").exists():
        pytest.skip("this system does not tell the memory of a process")
    run(go, memory_limit=200_000_000, specs={"toy": importlib.import_module("hungry_env").SPEC})


@pytest.mark.parametrize(("spec_live", "option"), [(1, None), (0, 1), (5, 1)])
def test_a_spec_or_an_option_bounds_the_engines_a_worker_holds(spec_live, option, tmp_path):
    async def go(pool):
        return await explore_all(pool)

    spec = faulty(dataclasses.replace(toy_env.SPEC, live=spec_live), slow_starts=0.0, once_in=str(tmp_path))
    explored = run(go, workers=1, specs={"toy": spec}, options={"live": option} if option else {})
    assert len(list(tmp_path.iterdir())) == 1
    assert outcomes(explored) == truth()


def test_noise_in_the_socket_is_a_crash(tmp_path, monkeypatch):
    (tmp_path / "noisy_env.py").write_text(
        "import dataclasses, os\n"
        "from agentrm_jax.testing import toy_env\n"
        "class Noisy(toy_env.ToyEnv):\n"
        "    def step(self, command):\n"
        "        for fd in os.listdir('/proc/self/fd'):\n"
        "            try:\n"
        "                if 'socket' in os.readlink(f'/proc/self/fd/{fd}'): os.write(int(fd), b'\\xff' * 64)\n"
        "            except OSError: pass\n"
        "        return super().step(command)\n"
        "SPEC = dataclasses.replace(toy_env.SPEC, make=Noisy)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(EnvironmentFault, match="wrote nonsense"):
        run(lambda pool: play(pool, "b"), specs={"toy": importlib.import_module("noisy_env").SPEC})


def test_a_cancelled_step_does_no_harm():
    async def go(pool):
        root = await pool.reset(TASK)
        step = asyncio.create_task(pool.step(root, turn("b")))
        await asyncio.sleep(0.05)
        step.cancel()
        assert (await play(pool, "bbb", root)).outcome.reward == 0.965

    run(go, {"delay": 0.1})


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
