"""`python -m agentrm_jax.envs check | experts | speed`: what the expert makes of an environment."""

import asyncio
import itertools
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence, Set

from agentrm_jax.envs.experts import ExpertCounts, expert_trajectories
from agentrm_jax.envs.pool.episode import Episode, observation_limit
from agentrm_jax.envs.pool.pool import EnvironmentPool
from agentrm_jax.envs.spec import EnvSpec, Options
from agentrm_jax.replies import render_action
from agentrm_jax.types import EnvironmentFault, Outcome, Task, Trajectory, UserError

_MAX_TRIED = 20


def check(spec: EnvSpec, path: str, options: Options, tasks: Sequence[Task], time_limit: float) -> int:
    """Lets the expert play each task, and plays the same turns in another process. 1 if any answer differs, or
    no task could be played at all.

    `path` is the name or module path that workers find the environment by.
    """
    if spec.expert is None:
        raise UserError(f"environment {spec.name!r} has no expert to check it with")
    counts, earned = asyncio.run(_check(path, options, tasks, time_limit))
    print(
        f"{len(tasks)} tasks: {counts['solved']} solved, {counts['unsolved']} not solved, {counts['broken']} without an expert's "
        f"episode, {counts['diverged']} diverged; mean reward {earned / max(1, len(tasks)):.4f}"
    )
    return 1 if counts["diverged"] or counts["broken"] == len(tasks) else 0


async def _check(path: str, options: Options, tasks: Sequence[Task], time_limit: float) -> tuple[Counter[str], float]:
    """(how many tasks ended how, sum of their rewards; 0 for a task without an expert's episode)."""
    counts: Counter[str] = Counter()
    earned = 0.0
    limit = max(time_limit, 30.0)
    async with (
        EnvironmentPool({path: options}, 1, limit, live=1, retries=0) as playing,
        EnvironmentPool({path: options}, 1, limit, live=1, retries=0) as replaying,
    ):
        for task in tasks:
            try:
                trajectory = await playing.demonstrate(task, time_limit=time_limit)
            except EnvironmentFault as error:
                counts["broken"] += 1
                print(f"broken    {error}", flush=True)
                continue
            last = trajectory.last
            earned += last.reward
            counts["solved" if last.success else "unsolved"] += 1
            difference = await _replay(replaying, trajectory)
            counts["diverged"] += bool(difference)
            solved = "solved" if last.success else "not solved"
            summary = f"{solved} in {len(trajectory.steps)} steps, reward {last.reward:.3g}"
            print(f"{'DIVERGED' if difference else 'equal':8}  {task.key}: {difference or summary}", flush=True)
    return counts, earned


async def _replay(pool: EnvironmentPool, trajectory: Trajectory) -> str:
    """Where a replay of the trajectory differs from it; empty if nowhere."""
    try:
        state = await pool.reset(trajectory.task)
        assert state.outcome is not None
        if (state.goal, state.outcome.observation) != (trajectory.goal, trajectory.observation):
            return f"the start is {state.outcome.observation!r:.200}, was {trajectory.observation!r:.200}"
        for i, step in enumerate(trajectory.steps, 1):
            state = await pool.step(state, step.action)
            if state.outcome != step.outcome:
                return f"step {i} answers {_differing(step.outcome, state.outcome)}"
    except EnvironmentFault as error:
        return str(error)
    return ""


def _differing(recorded: Outcome, answered: Outcome | None) -> str:
    fields = [f for f in recorded.__slots__ if getattr(recorded, f) != getattr(answered, f)]
    return ", ".join(f"{f} {getattr(answered, f)!r:.200} where it was {getattr(recorded, f)!r:.200}" for f in fields)


def experts(
    spec: EnvSpec,
    options: Options,
    tasks: Sequence[Task],
    done: Set[str],
    write: Callable[[Trajectory], None],
    time_limit: float,
    workers: int,
) -> int:
    """Hands the solved episodes of `tasks` to `write`, in their order, without those whose keys are `done`."""
    missing = [task for task in tasks if task.key not in done]
    counts = ExpertCounts(len(missing))

    def progress(now: ExpertCounts) -> None:
        nonlocal counts
        counts = now
        if now.finished % 100 == 0:
            print(f"{now.finished} of {now.total} tasks, {now.solved} solved", file=sys.stderr)

    for trajectory in expert_trajectories(
        spec, missing, options, time_limit=time_limit, workers=workers, progress=progress
    ):
        write(trajectory)
    for key, error in counts.errors.items():
        print(f"broken: {key}: {error}", file=sys.stderr)
    kept = len(tasks) - len(missing)
    print(f"{kept + counts.solved} of {len(tasks)} tasks solved ({kept} of them before)")
    return 0


def steps_per_second(spec: EnvSpec, seconds: float) -> float:
    """Steps of an expert's episode in this process, played again and again for `seconds`; 0 where there is no expert or no task."""
    episode = Episode(spec.make({}), spec)
    try:
        tasks = spec.tasks("test", {})
        if spec.expert is None or not tasks:
            return 0.0
        (plan,) = _plans(spec, episode, tasks, 1)
        spent: Counter[str] = Counter()
        counts: Counter[str] = Counter()
        end = time.perf_counter() + seconds
        while not counts or time.perf_counter() < end:
            _timed_episode(episode, *plan, spent, counts)
    finally:
        episode.close()
    return counts["steps"] / max(float(spent["steps"]), 1e-9)


def speed(spec: EnvSpec, options: Options, split: str, seconds: float) -> int:
    """Prints how long making, resetting, stepping and forking take in this process, over expert episodes."""
    begin = time.perf_counter()
    episode = Episode(spec.make(options), spec.at_threshold(options), observation_limit(options))
    made = time.perf_counter() - begin
    try:
        plans = _plans(spec, episode, spec.tasks(split, options), 3)
        spent: Counter[str] = Counter()
        counts: Counter[str] = Counter()
        end = time.perf_counter() + seconds
        for task, turns in itertools.cycle(plans):
            if time.perf_counter() >= end:
                break
            _timed_episode(episode, task, turns, spent, counts)
    finally:
        episode.close()
    print(f"{spec.name}: engine made in {made:.2f} s; {counts['steps']} steps in {counts['resets']} episodes")
    for what, name in (("resets", "reset"), ("steps", "step"), ("snapshots", "snapshot"), ("restores", "restore")):
        if counts[what]:
            each = spent[what] / counts[what]
            print(f"{name:8} {1e3 * each:10.3f} ms {1 / max(each, 1e-9):12.1f} /s")
    if not counts["snapshots"]:
        print("no snapshots: an earlier state costs a reset and all steps up to it")
    return 0


def _plans(spec: EnvSpec, episode: Episode, tasks: Sequence[Task], wanted: int) -> list[tuple[Task, list[str]]]:
    """The expert's turns on up to `wanted` tasks; without an expert, five times a nonsense command on each."""
    found: list[tuple[Task, list[str]]] = []
    for task in tasks[:: max(1, len(tasks) // _MAX_TRIED)]:
        episode.reset(task)
        turns = [render_action("", "look")] * 5
        if spec.expert is not None:
            turns = []
            for thought, command in spec.expert(episode.environment, task):
                turns.append(render_action(thought, command))
                if episode.step(turns[-1]).done:
                    break
        if turns:
            found.append((task, turns))
        if len(found) == wanted:
            break
    if not found:
        raise UserError(f"the expert of {spec.name} did nothing on any of {_MAX_TRIED} tasks")
    return found


def _timed_episode(
    episode: Episode, task: Task, turns: Sequence[str], spent: Counter[str], counts: Counter[str]
) -> None:
    def timed(what: str, begin: float) -> None:
        spent[what] += time.perf_counter() - begin  # type: ignore[assignment]
        counts[what] += 1

    begin = time.perf_counter()
    episode.reset(task)
    timed("resets", begin)
    for turn in turns:
        if episode.progress.done:
            break
        begin = time.perf_counter()
        episode.step(turn)
        timed("steps", begin)
    try:
        begin = time.perf_counter()
        snapshot = episode.snapshot()
        timed("snapshots", begin)
        begin = time.perf_counter()
        episode.restore(snapshot)
        timed("restores", begin)
    except NotImplementedError:
        pass
