"""One seat of a verifiers environment, taken by whoever steps our engine; needs the package `verifiers`.

There an environment is a coroutine that asks its agents for turns. Here an agent is asked by `step`. So the coroutine runs up to
the next time it asks, and waits there for the command: `Exchange` drives its event loop in the thread of the caller, from question
to question. No harness, model or sandbox is started; what the model would have said is what the policy said.
"""

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

from verifiers.v1 import graph
from verifiers.v1.agent import Agents, Segment
from verifiers.v1.env import Env
from verifiers.v1.episode import EnvInfo, Episode
from verifiers.v1.state import state_cls
from verifiers.v1.trace import AgentInfo, Trace, TraceTask
from verifiers.v1.types import AssistantMessage, Response, SystemMessage, UserMessage, content_text
from verifiers.v1.utils.decorators import invoke_all


class Exchange:
    """One episode of an environment, from question to question.

    Attributes:
      question: what the seat is asked; None once the episode has ended.
      episode: verifiers' record of it.
    """

    def __init__(self, environment: Env, task: Any, seat: str, turns: int):
        self.environment, self.seat, self.turns = environment, seat, turns
        self.question: str | None = None
        self.episode = Episode(env=EnvInfo(id=environment.config.env_id), task=_row(task))
        self._loop = asyncio.new_event_loop()
        self._answer: asyncio.Future[str] | None = None
        self._asked = asyncio.Event()
        self._played = self._loop.create_task(self._play(task))
        self._until_asked()

    def tell(self, reply: str) -> None:
        """Answers the question, and runs to the next or to the end. Raises what the environment raises."""
        assert self._answer is not None
        answer, self._answer, self.question = self._answer, None, None
        self._asked.clear()
        answer.set_result(reply)
        self._until_asked()

    @property
    def reward(self) -> float:
        """Sum of the weighted rewards of the seat's traces, once the episode has ended."""
        return float(sum(trace.reward for trace in self.episode.traces))

    def close(self) -> None:
        """Ends the coroutine where it waits."""
        if not self._loop.is_closed():
            self._played.cancel()
            with contextlib.suppress(BaseException):
                self._loop.run_until_complete(self._played)
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.close()

    async def ask(self, question: str) -> str:
        """The seat's reply; called by the environment's coroutine."""
        self.question = question
        self._answer = self._loop.create_future()
        self._asked.set()
        return await self._answer

    def _until_asked(self) -> None:
        self._loop.run_until_complete(self._next())
        if self._answer is None:
            self._played.result()  # raises what ended it
            self.close()

    async def _next(self) -> None:
        waiting = asyncio.ensure_future(self._asked.wait())
        await asyncio.wait({self._played, waiting}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()

    async def _play(self, task: Any) -> None:
        agents = Agents(self.environment.config, lambda name, config: _Seat(self, name, config))
        await self.environment.setup(agents)
        await self.environment.run(task, agents)
        await self.environment.finalize(task, self.episode)


class _Seat:
    """What the environment takes for its agent."""

    def __init__(self, exchange: Exchange, name: str, config: Any):
        self.name, self.config, self.trainable = name, config, True
        self._exchange = exchange

    async def run(self, task: Any, **_: Any) -> Trace:
        """A whole run of the agent: one turn on the task's prompt."""
        async with self.interaction(task) as interaction:
            await interaction.turn()
        return interaction.trace

    @contextlib.asynccontextmanager
    async def interaction(self, task: Any, **_: Any) -> AsyncIterator["_Interaction"]:
        """A run in which the environment is the user. Its end scores the task."""
        opened = _Interaction(self._exchange, task, self.name, self.config)
        await task.setup(opened.trace, None)
        yield opened
        trace = opened.trace
        trace.stop("user_closed")
        await task.finalize(trace, None)
        await task.score(trace, None)
        trace.is_completed = trace.ok = True
        self._exchange.episode.traces.append(trace)


class _Interaction:
    def __init__(self, exchange: Exchange, task: Any, name: str, config: Any):
        self._exchange, self._task = exchange, task
        info = AgentInfo(config=config, name=name)
        self.trace = Trace(task=_row(task), state=state_cls(type(task))(), agent=info)
        self._messages: list[Any] = []
        if task.data.system_prompt:
            self._messages.append(SystemMessage(content=task.data.system_prompt))
        prompt = task.data.prompt
        self._prompt = [UserMessage(content=prompt)] if isinstance(prompt, str) else list(prompt or [])
        self._over = False

    async def turn(self, message: Any = None) -> Segment:
        """The seat's reply to a message of the environment's, or to the task's prompt."""
        said = self._prompt if message is None else _messages(message)
        self._prompt = []
        if self._over or self._exchange.turns <= 0:
            self._over = True
            return Segment(messages=[], terminated=True)
        shown = [*self._messages, *said] if not self.trace.nodes else said  # at first also what the system says
        self._exchange.turns -= 1
        reply = AssistantMessage(content=await self._exchange.ask("\n\n".join(content_text(m.content) for m in shown)))
        self._messages += said
        response = Response(
            id=uuid.uuid4().hex, created=int(time.time()), model="policy", message=reply, finish_reason="stop"
        )
        graph.prepare_turn(self.trace, self._messages).commit(response)
        self._messages.append(reply)
        stops = self._task.hooks("stop")
        ended = await invoke_all(stops, {"task": self._task.data, "trace": self.trace})
        self._over = any(ended)
        return Segment(messages=[reply])


def _messages(message: Any) -> list[Any]:
    if isinstance(message, str):
        return [UserMessage(content=message)]
    return [UserMessage(content=m["content"]) if isinstance(m, dict) else m for m in message]


def _row(task: Any) -> TraceTask:
    return TraceTask(type=type(task).__name__, data=task.data, key=task.key, hash=task.hash)
