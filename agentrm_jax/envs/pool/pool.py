"""Many episodes at once, in worker processes: `EnvironmentPool`.

Stepping is functional. The pool remembers which worker holds a state, and sends its next turn there; a worker that does not hold
it any more (dropped, died, busy elsewhere) is given the recorded past and replays it, comparing every answer. So what a step
returns depends on the task and the turns alone: not on the number of workers, nor on what else is in flight, nor on what
broke on the way.
"""

import asyncio
import dataclasses
import logging
import pickle
import random
import time
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

from agentrm_jax.envs.pool.episode import next_key, start_key
from agentrm_jax.envs.pool.process import Call, WorkerProcess, resident_by_session
from agentrm_jax.envs.pool.worker import History, Settings
from agentrm_jax.envs.spec import EnvSpec, Options
from agentrm_jax.types import JSON, Action, EnvironmentFault, Outcome, Start, State, Step, Task, Trajectory, UserError

_log = logging.getLogger(__name__)
_RETRIES_AFTER_EXCEPTION = 1  # code that raises mostly raises again
_RETRIES_AFTER_TRANSIENT = 10  # some 12 s in all
_PAUSE, _LONGEST_PAUSE = (
    0.1,
    2.0,
)  # seconds before the first of these; twice as long before each further one, up to the longest
_MEMORY_PERIOD = 1.0
_WORTH_MOVING = 1e-3  # seconds a step must gain before it leaves the worker that holds its state


@dataclasses.dataclass
class PoolStats:
    """What a pool did since it was made.

    Attributes:
      resets, steps: answered requests.
      replays, replayed_steps: requests that needed a replay, and the turns replayed for them.
      divergences: replays that did not reproduce the recorded past.
      faults: exceptions and nonsense from environment code.
      timeouts, crashes, recycled: workers replaced because they hung, because they died or wrote nonsense, because they grew.
      failed: requests that raised EnvironmentFault in the end.
      wait_seconds: from request to answer, summed over requests.
      work_seconds: what workers spent on requests; at most workers * seconds.
      seconds: since the pool was made.
    """

    resets: int = 0
    steps: int = 0
    replays: int = 0
    replayed_steps: int = 0
    divergences: int = 0
    faults: int = 0
    timeouts: int = 0
    crashes: int = 0
    recycled: int = 0
    failed: int = 0
    wait_seconds: float = 0.0
    work_seconds: float = 0.0
    made: float = dataclasses.field(default_factory=time.monotonic, repr=False)

    @property
    def restarts(self) -> int:
        return self.timeouts + self.crashes + self.recycled

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.made

    @property
    def steps_per_second(self) -> float:
        return self.steps / max(self.seconds, 1e-9)


class EnvironmentPool:
    """Implements `agentrm_jax.types.Environments` over worker processes; use it as `async with`, within one event loop.

    Args:
      specs_options: environment name (or module path) -> options, for every environment that tasks will name.
      workers: processes; each is started when it is first needed, and again when it hung, died or grew too large.
      step_timeout: seconds one engine step or reset may take.
      start_timeout: seconds a process or an engine may take to start.
      retries: how often a request is tried again, by checked replay, after a worker hung, died or diverged (at most once after
        an exception, and up to ten times with growing pauses after a TransientError), before it raises EnvironmentFault.
      live: engines a worker holds per environment at most, unless its option `live` says how many; its spec may say less. An
        environment without snapshots wants one for each episode in flight.
      snapshots: states a worker can go back to without replay.
      memory_limit: bytes of resident memory, with that of processes it started, at which a worker is replaced; not enforced where
        there is no /proc.
      heartbeat: seconds after which a silent idle worker is asked whether it is alive.
      specs: environment name -> spec to use instead of the one its name stands for; must pickle.
    """

    def __init__(
        self,
        specs_options: Mapping[str, Options],
        workers: int = 2,
        step_timeout: float = 30.0,
        *,
        start_timeout: float = 120.0,
        retries: int = 2,
        live: int = 8,
        snapshots: int = 256,
        memory_limit: int | None = 4 * 2**30,
        heartbeat: float = 30.0,
        specs: Mapping[str, EnvSpec] | None = None,
    ):
        if workers < 1 or live < 1 or step_timeout <= 0:
            raise UserError(
                f"workers, live and step_timeout must be above 0, but are {workers}, {live}, {step_timeout}"
            )
        frozen_after = 2 * max(step_timeout, start_timeout)
        try:
            settings = pickle.dumps(Settings(dict(specs_options), dict(specs or {}), live, snapshots, frozen_after), 5)
        except (pickle.PicklingError, AttributeError, TypeError) as e:
            raise UserError(f"environment specs must be made of module-level functions: {e}") from e
        self.stats = PoolStats()
        self._step_timeout, self._retries = step_timeout, retries
        self._memory_limit, self._heartbeat = memory_limit, heartbeat
        self._workers = [WorkerProcess(settings, self, start_timeout) for _ in range(workers)]
        self._homes: weakref.WeakKeyDictionary[State, WorkerProcess] = weakref.WeakKeyDictionary()
        self._seconds = {"reset": 0.0, "step": 0.0}  # what one takes, moving average
        self._timer: asyncio.TimerHandle | None = None
        self._memory_checked = 0.0
        self._waiting: set[Call] = set()  # to be sent again after a pause
        self._closed = False

    async def __aenter__(self) -> "EnvironmentPool":
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    @property
    def pids(self) -> list[int]:
        """Process ids of the running workers."""
        return [worker.pid for worker in self._workers if worker.pid is not None]

    async def reset(self, task: Task) -> State:
        """The root state of `task`. Raises EnvironmentFault, or UserError if the environment cannot be built."""
        call = self._call("reset", (task,), task)
        start = Start(*await self._run(call, self._least_busy()))
        state = State(task, start.goal, None, None, Outcome(start.observation), 0, start_key(task))
        return self._at_home(state, call)

    async def step(self, state: State, action: Action) -> State:
        """Executes `action` after `state`, which may have been stepped before.

        Raises:
          EnvironmentFault: the environment could not be brought to `state` or did not answer, also after `retries`.
          ValueError: `state` has ended or was never executed.
        """
        if state.outcome is None or state.done:
            raise ValueError(
                f"a state of {state.task.key} was stepped that {'has ended' if state.done else 'was not executed'}"
            )
        key = state.key or _key(state)
        call = self._call("step", (key, action.text), state.task, state)
        outcome = Outcome(*await self._run(call, self._home(state)))
        key = next_key(key, action.text)
        return self._at_home(State(state.task, state.goal, state, action, outcome, state.depth + 1, key), call)

    async def demonstrate(self, task: Task, *, time_limit: float) -> Trajectory:
        """The episode that the environment's expert plays on `task`, solved or not.

        Raises:
          EnvironmentFault: it was not over after `time_limit` seconds, or raised. There is no second try.
        """
        call = self._call("expert", (task,), task, limit=time_limit)
        call.attempts, call.passing = self._retries, _RETRIES_AFTER_TRANSIENT
        start, steps = await self._run(call, self._least_busy())
        executed = tuple(Step(Action(turn), Outcome(*outcome)) for turn, outcome in steps)
        goal, observation = start
        return Trajectory(task, goal, observation, executed, {"policy": "expert"})

    async def close(self) -> None:
        """Ends all workers. Requests still in flight raise EnvironmentFault."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        for call in [*self._waiting, *(c for worker in self._workers for c in worker.pending.values())]:
            self._fail(call, "the pool was closed")
        await asyncio.gather(*(worker.close() for worker in self._workers))

    # Routing

    def _call(
        self, operation: str, arguments: tuple[Any, ...], task: Task, state: State | None = None, limit: float = 0.0
    ) -> Call:
        if self._closed:
            raise RuntimeError("the environment pool is closed")
        loop = asyncio.get_running_loop()
        if self._timer is None:
            self._watch()
        return Call(operation, arguments, loop.create_future(), limit or self._step_timeout, loop.time(), task, state)

    async def _run(self, call: Call, worker: WorkerProcess) -> JSON:
        worker.send(call)
        try:
            return await call.future
        finally:
            self.stats.wait_seconds += asyncio.get_running_loop().time() - call.began

    def _least_busy(self) -> WorkerProcess:
        return min(self._workers, key=lambda worker: (len(worker.pending), worker.sent))

    def _home(self, state: State) -> WorkerProcess:
        """The worker that holds `state`, unless replaying it on an idle one is likely to be faster than waiting."""
        home = self._homes.get(state)
        if home is None or len(home.pending) < 2:
            return home or self._least_busy()
        other = self._least_busy()
        gained = (len(home.pending) - len(other.pending)) * self._seconds["step"]
        cost = self._seconds["reset"] + state.depth * self._seconds["step"]
        return other if gained > cost + _WORTH_MOVING else home

    def _at_home(self, state: State, call: Call) -> State:
        assert call.worker is not None
        self._homes[state] = call.worker
        return state

    # What workers report

    def message(self, call: Call) -> tuple[Any, ...]:
        """The request as `worker._answer` reads it, without its id."""
        if call.state is None:
            return call.operation, *call.arguments
        history = _history(call.state) if call.history or call.fresh else None
        return call.operation, *call.arguments, history, call.fresh

    def answered(self, call: Call, kind: str, payload: JSON, replayed: int, seconds: float) -> None:
        """A worker's reply to `call`, which it worked on for `seconds`."""
        stats = self.stats
        stats.work_seconds += seconds
        stats.replayed_steps += replayed
        if kind == "ok":
            stats.resets += call.operation == "reset"
            stats.steps += call.operation == "step"
            stats.replays += replayed > 0
            if call.operation in self._seconds and not replayed:
                self._seconds[call.operation] += 0.1 * (seconds - self._seconds[call.operation])
            if not call.future.done():
                call.future.set_result(payload)
        elif kind == "need":
            assert call.worker is not None
            call.history = True
            call.worker.send(call)
        elif kind == "user":
            if not call.future.done():
                call.future.set_exception(UserError(payload))
        elif kind == "diverged":
            stats.divergences += 1
            self._again(call, f"a replay diverged: {payload}", self._retries)
        elif kind == "transient":
            stats.faults += 1
            self._later(call, f"the environment failed: {payload}")
        else:
            stats.faults += 1
            self._again(call, f"the environment failed: {payload}", min(_RETRIES_AFTER_EXCEPTION, self._retries))

    def lost(self, worker: WorkerProcess, calls: Sequence[Call], kind: str, reason: str) -> None:
        """A worker was replaced. The first of its `calls` is to blame; the others did nothing and are sent again."""
        setattr(self.stats, kind, getattr(self.stats, kind) + 1)
        if self._closed:
            return
        for call in calls:
            call.history = call.state is not None
        blamed = calls[:1] if kind != "recycled" else []
        for call in calls[len(blamed) :]:
            if not call.future.done():
                worker.send(call)
        for call in blamed:
            self._again(call, reason, self._retries)

    def _again(self, call: Call, reason: str, retries: int) -> None:
        call.attempts += 1
        call.fresh = call.state is not None
        task = call.task.key if call.task else "-"
        if call.future.done():
            return
        if call.attempts > retries:
            self._fail(call, reason)
            return
        _log.warning("%s of %s is tried again: %s", call.operation, task, reason)
        (call.worker or self._least_busy()).send(call)

    def _later(self, call: Call, reason: str) -> None:
        """Tries again after a pause, which grows and is drawn at random, so that many do not come back at once."""
        if call.future.done():
            return
        if call.passing >= (_RETRIES_AFTER_TRANSIENT if self._retries else 0):
            self._fail(call, f"{reason} (tried {call.passing + 1} times)")
            return
        pause = min(_LONGEST_PAUSE, _PAUSE * 2**call.passing) * random.uniform(0.5, 1.0)
        call.passing += 1
        call.fresh = call.state is not None
        self._waiting.add(call)
        asyncio.get_running_loop().call_later(pause, self._resend, call, reason)

    def _resend(self, call: Call, reason: str) -> None:
        self._waiting.discard(call)
        if not (self._closed or call.future.done()):
            _log.warning("%s of %s is tried again: %s", call.operation, call.task.key if call.task else "-", reason)
            (call.worker or self._least_busy()).send(call)

    def _fail(self, call: Call, reason: str) -> None:
        if not call.future.done():
            self.stats.failed += 1
            depth = f" after {call.state.depth} steps" if call.state else ""
            task = f"task {call.task.key}" if call.task else "ping"
            call.future.set_exception(EnvironmentFault(f"{task}: {call.operation}{depth}: {reason}"))

    # Watching

    def _watch(self) -> None:
        """Looks after the workers, now and again and again until the pool is closed."""
        if self._closed:
            return
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(min(0.5, max(0.02, self._step_timeout / 10)), self._watch)
        now = loop.time()
        measure = self._memory_limit is not None and now - self._memory_checked >= _MEMORY_PERIOD
        self._memory_checked = now if measure else self._memory_checked
        resident = resident_by_session() if measure else {}
        for worker in self._workers:
            worker.check(now)
            if worker.pid is None or not worker.ready:
                continue
            if resident.get(worker.pid, 0) > (self._memory_limit or 0) and worker.answered:
                worker.lose("recycled", "it grew too large")
            elif not worker.pending and now - worker.heard > self._heartbeat:
                future: asyncio.Future[JSON] = loop.create_future()
                future.add_done_callback(lambda f: f.cancelled() or f.exception())
                worker.send(Call("ping", (), future, self._step_timeout, now))


def _key(state: State) -> str:
    """Key of a state that came without one, for instance from a file."""
    key = start_key(state.task)
    for past in state.path()[1:]:
        key = next_key(key, past.action.text if past.action else "")
    return key


def _history(state: State) -> History:
    root, *rest = state.path()
    assert root.outcome is not None
    past = tuple((s.action.text, s.outcome) for s in rest if s.action is not None and s.outcome is not None)
    return History(state.task, Start(root.goal, root.outcome.observation), past)
