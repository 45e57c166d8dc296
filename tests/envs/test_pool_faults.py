"""What the pool makes of engines and processes that hang, die, grow or lie."""

import asyncio
import dataclasses
import importlib
import os
import signal
import tempfile
import time
from pathlib import Path

import pytest

from agentrm_jax.envs.pool.faults import faulty
from agentrm_jax.envs.pool.pool import EnvironmentPool
from agentrm_jax.envs.pool.process import WorkerProcess
from agentrm_jax.testing import toy_env
from agentrm_jax.types import Action, EnvironmentFault
from tests.envs.pooled import TASK, TASKS, TOY, explore_all, outcomes, play, run, truth, turn


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
