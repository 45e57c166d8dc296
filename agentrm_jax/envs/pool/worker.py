"""What runs in an environment worker process: a loop that reads requests from a socket and answers them in order.

A frame is a big-endian 32-bit length and as many bytes. The first request is the settings, pickled; further requests are
pickled tuples `(id, operation, *arguments)`; replies are JSON arrays `[id, kind, payload, replayed]`:

    ok        the result: [goal, observation] of a reset, the fields of an Outcome of a step, both of an expert's episode
    slow      an engine is being built: the longer time limit applies from now on
    tick      it is built, or one turn of a replay is done: the limit of a single step starts again
    need      the state is not held here: ask again with its history
    diverged  a replay did not reproduce the recorded past (payload: where and how)
    fault     the environment raised or answered nonsense (payload: what)
    transient the environment raised a TransientError (payload: what)
    user      a UserError (payload: its line)

Only workers import engines. This module must not import JAX, neither must anything it imports.
"""

import contextlib
import dataclasses
import faulthandler
import functools
import json
import os
import pickle
import select
import shutil
import signal
import socket
import struct
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO

from agentrm_jax.envs.catalogue import SHIPPED, find
from agentrm_jax.envs.pool.episode import Episode, Snapshot, TransientError, next_key, observation_limit, start_key
from agentrm_jax.envs.spec import EnvSpec, Options, whole
from agentrm_jax.replies import render_action
from agentrm_jax.text import clean
from agentrm_jax.types import JSON, Outcome, Start, Task, UserError

FRAME = struct.Struct("!I")
_GRACE = 2.0  # seconds to close engines in once the parent is gone
_GUARD_PERIOD = 2.0


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a worker is told first.

    Attributes:
      options: environment name or module path -> its options.
      specs: environment name -> spec that replaces what the name stands for; must pickle.
      live: engines held per environment at most, unless its options say how many; its spec may say less.
      snapshots: snapshots held, over all environments.
      frozen_after: seconds after which a process in which no Python code can run any more ends itself.
    """

    options: Mapping[str, Options]
    specs: Mapping[str, EnvSpec]
    live: int
    snapshots: int
    frozen_after: float


@dataclasses.dataclass(frozen=True, slots=True)
class History:
    """How a state came about: the task, its first observation, and (turn, outcome) of every step so far."""

    task: Task
    start: Start
    past: tuple[tuple[str, Outcome], ...]


class Diverged(Exception):
    """A replay did not reproduce the recorded past."""


class NotHeld(Exception):
    """The state is neither live nor in a snapshot, and no history was given."""


class Episodes:
    """The live episodes and snapshots of one worker, by state key.

    An episode moves on with its steps, so `live` holds every engine under the key of the state it is in right now. Before a
    state is left, it is kept as a snapshot for the siblings to come; snapshots fall out in order of last use.
    """

    def __init__(self, settings: Settings, notify: Callable[[str], None]):
        self.settings = settings
        self.notify = notify
        self.live: OrderedDict[str, Episode] = OrderedDict()
        self.free: dict[str, list[Episode]] = {}
        self.snapshots: OrderedDict[str, Snapshot] = OrderedDict()
        self.uncopyable: set[str] = set()
        self.specs: dict[str, tuple[EnvSpec, Options]] = {}
        self.replayed = 0

    def reset(self, task: Task) -> Start:
        episode = self._engine(task.env)
        with self._owned(episode):
            start = episode.reset(task)
        self._keep(start_key(task), episode)
        return start

    def step(self, key: str, turn: str, history: History | None, fresh: bool) -> Outcome:
        """Executes `turn` in the state `key`; with `fresh` after a replay from the very start.

        Raises:
          NotHeld: the state is not here and there is no `history` to replay.
          Diverged: the replay came out differently.
        """
        episode = self._reach(key, history, fresh)
        with self._owned(episode):
            self._remember(key, episode)
            outcome = episode.step(turn)
        self._keep(next_key(key, turn), episode)
        return outcome

    def expert(self, task: Task) -> tuple[Start, list[tuple[str, Outcome]]]:
        """Lets the environment's expert play the task: its start, then (turn, outcome) of every step."""
        spec, _ = self._spec(task.env)
        if spec.expert is None:
            raise UserError(f"environment {spec.name!r} has no expert; use one of its trajectory files instead")
        episode = self._engine(task.env)
        steps: list[tuple[str, Outcome]] = []
        with self._owned(episode):
            start = episode.reset(task)
            for thought, command in spec.expert(episode.environment, task):
                turn = render_action(thought, command)
                steps.append((turn, episode.step(turn)))
                if steps[-1][1].done:
                    break
        self.free.setdefault(task.env, []).append(episode)
        return start, steps

    def close(self) -> None:
        for episode in [*self.live.values(), *(e for free in self.free.values() for e in free)]:
            with contextlib.suppress(Exception):
                episode.close()

    def _reach(self, key: str, history: History | None, fresh: bool) -> Episode:
        """An episode in the state `key`, taken out of `live`."""
        if fresh:
            assert history is not None
            return self._replay(history, True)
        if key in self.live:
            return self.live.pop(key)
        if key in self.snapshots:
            return self._restored(key)
        if history is None:
            raise NotHeld
        return self._replay(history, False)

    def _replay(self, history: History, fresh: bool) -> Episode:
        """Plays the recorded turns from the nearest snapshot on (from the start if `fresh`), comparing every answer."""
        keys = [start_key(history.task)]
        for turn, _ in history.past:
            keys.append(next_key(keys[-1], turn))
        if fresh:  # what is held of this path may be what went wrong
            for key in keys:
                self.snapshots.pop(key, None)
                if key in self.live:
                    self.free.setdefault(history.task.env, []).append(self.live.pop(key))
        begin = next((i for i in reversed(range(len(keys))) if keys[i] in self.snapshots), None)
        if begin is None:
            begin, episode = 0, self._engine(history.task.env)
            with self._owned(episode):
                _compare(history, 0, history.start.observation, episode.reset(history.task).observation)
        else:
            episode = self._restored(keys[begin])
        for i, (turn, recorded) in enumerate(history.past[begin:], begin + 1):
            self.notify("tick")
            with self._owned(episode):
                _compare(history, i, recorded, episode.step(turn))
            self.replayed += 1
        return episode

    def _restored(self, key: str) -> Episode:
        self.snapshots.move_to_end(key)
        snapshot = self.snapshots[key]
        episode = self._engine(snapshot.task.env)
        with self._owned(episode):
            episode.restore(snapshot)
        return episode

    def _remember(self, key: str, episode: Episode) -> None:
        """Keeps a snapshot of the state `key`, which `episode` is in."""
        if key in self.snapshots or episode.spec.name in self.uncopyable:
            return
        try:
            self.snapshots[key] = episode.snapshot()
        except NotImplementedError:
            self.uncopyable.add(episode.spec.name)
            return
        while len(self.snapshots) > self.settings.snapshots:
            self.snapshots.popitem(last=False)

    def _keep(self, key: str, episode: Episode) -> None:
        """Holds `episode` under its new state, or as a free engine once it is done."""
        assert episode.task is not None
        free = self.free.setdefault(episode.task.env, [])
        if episode.progress.done:
            free.append(episode)
            return
        if key in self.live:
            free.append(self.live.pop(key))
        self.live[key] = episode

    def _engine(self, env: str) -> Episode:
        """An engine to reset or restore: a free one, a new one, or the one whose episode was not touched for longest."""
        if self.free.get(env):
            return self.free[env].pop()
        mine = [key for key, episode in self.live.items() if episode.task is not None and episode.task.env == env]
        spec, options = self._spec(env)
        most = min(spec.live or self.settings.live, self.settings.live)
        if len(mine) >= whole(options, "live", most):
            episode = self.live.pop(mine[0])
            with self._owned(episode):
                self._remember(mine[0], episode)
            return episode
        self.notify("slow")
        episode = Episode(spec.make(options), spec, observation_limit(options))
        self.notify("tick")
        return episode

    def _spec(self, env: str) -> tuple[EnvSpec, Options]:
        """Spec and options of the environment that tasks call `env`."""
        if env not in self.specs:
            options = self.settings.options
            # tasks name a user's environment by its spec's name, the settings may name it by its module path
            path = (
                env if env in options else next((p for p in options if p not in SHIPPED and find(p).name == env), env)
            )
            spec, own = self.settings.specs.get(env) or find(path), options.get(path, {})
            spec.check(own)
            self.specs[env] = spec.at_threshold(own), own
        return self.specs[env]

    @contextlib.contextmanager
    def _owned(self, episode: Episode) -> Iterator[None]:
        """Gives up on an engine in which anything went wrong."""
        try:
            yield
        except BaseException:
            with contextlib.suppress(Exception):
                episode.close()
            raise


def _compare(history: History, step: int, recorded: Any, answered: Any) -> None:
    """Raises Diverged unless a replayed answer equals the recorded one; outcomes by text, reward and end."""
    if isinstance(recorded, Outcome):
        fields = ("observation", "reward", "done")
        recorded, answered = ([getattr(o, f) for f in fields] for o in (recorded, answered))
    if recorded != answered:
        raise Diverged(f"step {step} answered {answered!r:.200} where {recorded!r:.200} is on record")


def main(fd: int, folder: str) -> None:
    """Serves requests from the socket `fd` until it is closed, then removes `folder`, the process's own. Never returns.

    What is unpickled here was pickled by the process that started this one: the socket is one end of a pair that no other process
    holds. Answers, which carry what engines and servers wrote, go back as JSON.
    """
    sock = socket.socket(fileno=fd)
    parent = os.getppid()
    reader: BinaryIO = sock.makefile("rb")
    try:
        settings: Settings = pickle.loads(_read(reader))
    except Exception as e:
        _send(sock, [0, "user", f"a worker process cannot load the environment spec: {e}; make it importable", 0])
        os._exit(0)
    rearm = functools.partial(
        faulthandler.dump_traceback_later,
        settings.frozen_after,
        exit=True,
        file=os.open(os.devnull, os.O_WRONLY),
    )
    rearm()
    threading.Thread(target=_guard, args=(sock.fileno(), parent, rearm, folder), daemon=True).start()
    _send(sock, [0, "ok", os.getpid(), 0])
    current = 0
    episodes = Episodes(settings, lambda kind: _send(sock, [current, kind, None, 0]))
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        while frame := _read(reader):
            request = pickle.loads(frame)
            if request[1] == "close":
                break
            current = request[0]
            episodes.replayed = 0
            kind, payload = _answer(episodes, request)
            _send(sock, [current, kind, payload, episodes.replayed])
    episodes.close()
    shutil.rmtree(folder, ignore_errors=True)
    # an engine's own threads and exit handlers must not keep the process
    os._exit(0)


def _answer(episodes: Episodes, request: tuple) -> tuple[str, JSON]:
    _, operation, *arguments = request
    try:
        match operation:
            case "step":
                return "ok", _fields(episodes.step(*arguments))
            case "reset":
                return "ok", _fields(episodes.reset(*arguments))
            case "expert":
                start, steps = episodes.expert(*arguments)
                return "ok", [_fields(start), [[turn, _fields(outcome)] for turn, outcome in steps]]
            case "ping":
                return "ok", None
        raise ValueError(f"unknown operation {operation!r}")
    except NotHeld:
        return "need", None
    except Diverged as e:
        return "diverged", str(e)
    except UserError as e:
        return "user", str(e)
    except (Exception, SystemExit) as e:
        kind = "transient" if isinstance(e, TransientError) else "fault"
        return kind, clean(f"{type(e).__name__}: {e}", 2000) + _place(e)


def _place(error: BaseException) -> str:
    """Where in the environment's code it happened."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f" ({trace.tb_frame.f_code.co_filename}:{trace.tb_lineno})" if trace else ""


def _fields(record: Start | Outcome) -> list[JSON]:
    return [getattr(record, name) for name in record.__slots__]


def _read(reader: BinaryIO) -> bytes:
    """The next frame; empty at the end of the stream."""
    head = reader.read(FRAME.size)
    return reader.read(FRAME.unpack(head)[0]) if len(head) == FRAME.size else b""


def _send(sock: socket.socket, reply: list[JSON]) -> None:
    data = json.dumps(reply).encode()
    sock.sendall(FRAME.pack(len(data)) + data)


def _guard(fd: int, parent: int, rearm: Callable[[], None], folder: str) -> None:
    """Ends this process and what it started when the parent is gone, also if the main thread hangs in an engine.

    Native code that never releases the interpreter lock stops this thread too; then the C timer that `rearm` winds up runs out.
    """
    poll = select.poll()
    poll.register(fd, select.POLLHUP)
    while os.getppid() == parent and not poll.poll(_GUARD_PERIOD * 1000):
        rearm()
    threading.Event().wait(_GRACE)
    shutil.rmtree(folder, ignore_errors=True)
    if os.getpgrp() == os.getpid():  # started as its own group, as the pool does
        os.killpg(0, signal.SIGKILL)
    os._exit(1)
