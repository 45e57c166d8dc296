"""Sessions on a server: each is one episode after another on the shared worker pool, whoever asks for it and however.

A session holds the present `State` and nothing else. The pool can bring a worker to any state, so a worker that dies or hangs costs
a replay and no session, and any number of sessions share the engines.
"""

import asyncio
import dataclasses
import itertools
import secrets
import time
from collections.abc import Mapping, Sequence

from agentrm_jax.envs.spec import EnvSpec
from agentrm_jax.replies import parse_action, render_action
from agentrm_jax.types import Action, Environments, State, Task

_LARGEST_ID = 1 << 48  # ids are drawn: nobody guesses another's, and a server that was restarted hands out none twice


class Refused(Exception):
    """A request that cannot be answered, for the reason given; the session stays as it was."""


class Full(Refused):
    """As many sessions are open as the server allows."""


@dataclasses.dataclass(frozen=True)
class Offer:
    """What is served: the environment, and its tasks by split.

    Attributes:
      default: the split of requests that name none.
    """

    spec: EnvSpec
    tasks: Mapping[str, Sequence[Task]]
    default: str

    def task(self, *, id: object = None, index: object = None, split: object = None) -> Task:
        """The task with an id (also ENV/ID) or a number within its split. Raises Refused if there is none."""
        name = self.default if split is None else split
        if not isinstance(name, str) or name not in self.tasks:
            raise Refused(f"split must be one of {', '.join(self.tasks)}, not {name!r:.100}")
        tasks = self.tasks[name]
        if id is not None:
            found = next((t for t in tasks if id in (t.id, t.key)), None)
            if found is None:
                raise Refused(f"split {name} has no task {id!r:.100}; it has {len(tasks)}, such as {tasks[0].id}")
            return found
        if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < len(tasks):
            raise Refused(f"the number of a task in split {name} goes from 0 to {len(tasks) - 1}; it is {index!r:.100}")
        return tasks[index]


@dataclasses.dataclass
class Session:
    """One client's episode.

    Attributes:
      state: where it is; None before the first reset.
      gained: what the last step added to the episode's worth.
    """

    id: int
    state: State | None = None
    gained: float = 0.0
    used: float = dataclasses.field(default_factory=time.monotonic)
    lock: asyncio.Lock = dataclasses.field(default_factory=asyncio.Lock)


class Sessions:
    """All sessions of a server; used within one event loop.

    Args:
      environments: the pool.
      most: sessions that may be open at once.
      timeout: seconds after which a session that nobody uses is closed.
    """

    def __init__(self, environments: Environments, offer: Offer, *, most: int, timeout: float):
        self.offer, self.most, self.timeout = offer, most, timeout
        self._environments = environments
        self._open: dict[int, Session] = {}
        self._turns = itertools.count()

    def __len__(self) -> int:
        return len(self._open)

    def ids(self) -> list[int]:
        """Of all that are open."""
        return list(self._open)

    def create(self) -> Session:
        """A new session. Raises Full."""
        self.expire()
        if len(self._open) >= self.most:
            raise Full(f"{self.most} sessions are open, which is all that this server allows; close one, or come again")
        session = Session(secrets.randbelow(_LARGEST_ID))
        self._open[session.id] = session
        return session

    def get(self, id: object) -> Session:
        """The session with an id. Raises Refused if there is none (any more)."""
        session = self._open.get(id) if isinstance(id, int) and not isinstance(id, bool) else None
        if session is None:
            raise Refused(
                f"there is no environment {id!r:.100}: it was never made, was closed, or not used for {self.timeout:g} s"
            )
        session.used = time.monotonic()
        return session

    async def reset(self, session: Session, task: Task) -> State:
        """Starts `task` afresh. Raises EnvironmentFault."""
        async with session.lock:
            session.state = await self._environments.reset(task)
            session.gained = 0.0
            session.used = time.monotonic()
            return session.state

    async def step(self, session: Session, text: str) -> State:
        """Executes a whole turn (thought and action) or a bare command.

        Raises:
          Refused: the session was never reset, or its episode is over.
          EnvironmentFault: the environment did not answer, also after replays; the session can be stepped again.
        """
        async with session.lock:
            state = session.state
            if state is None or state.outcome is None:
                raise Refused(f"environment {session.id} was not reset yet")
            if state.done:
                raise Refused(f"the episode of environment {session.id} has finished; reset it")
            before = state.outcome.reward
            state = await self._environments.step(state, Action(self._turn(text)))
            assert state.outcome is not None
            session.state, session.gained = state, state.outcome.reward - before
            session.used = time.monotonic()
            return state

    def close(self, session: Session) -> None:
        self._open.pop(session.id, None)

    def expire(self) -> None:
        """Closes sessions that were not used for too long."""
        now = time.monotonic()
        for session in [s for s in self._open.values() if now - s.used > self.timeout and not s.lock.locked()]:
            self.close(session)

    def next_index(self, split: str) -> int:
        """Numbers of tasks for those who name none: one after the other, over all sessions."""
        return next(self._turns) % len(self.offer.tasks[split])

    def observation(self, state: State) -> str:
        """What the environment said last, without the words that this project puts before it."""
        assert state.outcome is not None
        text = state.outcome.observation
        return text.removeprefix(self.offer.spec.observation_prefix) if state.parent else text

    def _turn(self, text: str) -> str:
        multiline = self.offer.spec.multiline
        return text if parse_action(text, multiline=multiline).command is not None else render_action("", text)
