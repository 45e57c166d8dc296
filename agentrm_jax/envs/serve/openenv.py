"""OpenEnv's protocol, as its own server speaks it: a WebSocket at `/ws` is a session, and a few pages say what it takes.

    {"type": "reset", "data": {"task": ID} | {"index": 7} | {"seed": 7}, also "split", "episode_id"}
    {"type": "step", "data": {"message": "Thought: ..\\nAction: .."}}          a whole turn, or a bare command
    {"type": "state"}                                                       episode_id, step_count, task, split, max_steps
    {"type": "close"}

Rewards are OpenEnv's: what a step gained, so that their sum over an episode is its worth, which also stands in the observation as
`worth`. A seed is the number of a task, modulo how many there are; who names no task is given the next one.
"""

import json
import secrets
from collections.abc import Mapping
from typing import Any

from agentrm_jax.envs.serve.sessions import Full, Offer, Refused, Session, Sessions
from agentrm_jax.types import JSON, EnvironmentFault, State, Task

PAGES = ("/health", "/metadata", "/schema")


async def answer(sessions: Sessions, session: Session, ids: dict[int, str], message: str) -> dict[str, JSON] | None:
    """The answer to a message; None where there is none and the session ends.

    Args:
      ids: of the sessions' episodes, as the clients named them.
    """
    try:
        request = json.loads(message)
    except (ValueError, RecursionError):
        return failure("INVALID_JSON", "the message is not JSON")
    kind = request.get("type") if isinstance(request, dict) else None
    data = request.get("data", {}) if isinstance(request, dict) else {}
    if not isinstance(data, dict):
        return failure("VALIDATION_ERROR", "data must be an object")
    try:
        if kind == "reset":
            ids[session.id] = str(data.get("episode_id") or secrets.token_hex(8))[:255]
            return _observed(sessions, session, await sessions.reset(session, _task(sessions, data)))
        if kind == "step":
            text = data.get("message")
            if not isinstance(text, str):
                return failure("VALIDATION_ERROR", 'an action is {"message": TEXT}')
            return _observed(sessions, session, await sessions.step(session, text))
        if kind == "state":
            return {"type": "state", "data": _state(session, ids)}
        if kind == "close":
            return None
    except (Refused, EnvironmentFault) as error:
        return failure("EXECUTION_ERROR", str(error))
    return failure(
        "UNKNOWN_TYPE", f"there are messages of type reset, step, state and close, none of type {kind!r:.100}"
    )


def failure(code: str, message: str) -> dict[str, JSON]:
    """An error as OpenEnv's client reads it."""
    return {"type": "error", "data": {"message": " ".join(message.split()), "code": code}}


def full(error: Full) -> dict[str, JSON]:
    """What a client is told whose connection makes no session."""
    return failure("CAPACITY_REACHED", str(error))


def _task(sessions: Sessions, data: Mapping[str, JSON]) -> Task:
    offer, split = sessions.offer, data.get("split")
    index: Any = data.get("index")
    if data.get("task") is None and index is None:
        name = offer.default if split is None else split
        seed = data.get("seed")
        if isinstance(name, str) and name in offer.tasks:
            whole = isinstance(seed, int) and not isinstance(seed, bool)
            if seed is not None and not whole:
                raise Refused(f"seed must be a whole number, not {seed!r:.100}")
            index = sessions.next_index(name) if seed is None else seed % len(offer.tasks[name])
    return offer.task(id=data.get("task"), index=index, split=split)


def _observed(sessions: Sessions, session: Session, state: State) -> dict[str, JSON]:
    outcome = state.outcome
    assert outcome is not None
    observation = {
        "text": sessions.observation(state),
        "goal": state.goal,
        "worth": outcome.reward,
        "progress": outcome.progress,
        "success": outcome.success,
        "valid": outcome.valid,
        "metadata": {},
    }
    reward = session.gained if state.parent else None
    return {"type": "observation", "data": {"observation": observation, "reward": reward, "done": outcome.done}}


def _state(session: Session, ids: Mapping[int, str]) -> dict[str, JSON]:
    state = session.state
    if state is None:
        return {"episode_id": None, "step_count": 0}
    task = {"task": state.task.id, "split": state.task.split, "max_steps": state.task.max_steps}
    return {"episode_id": ids.get(session.id), "step_count": state.depth, **task}


def page(offer: Offer, path: str) -> dict[str, JSON]:
    """What a GET of one of `PAGES` answers."""
    if path == "/health":
        return {"status": "healthy"}
    if path == "/metadata":
        spec = offer.spec
        return {"name": spec.name, "description": spec.instruction, "author": spec.engine or None}
    text, number, truth = {"type": "string"}, {"type": "number"}, {"type": "boolean"}
    observed = {"text": text, "goal": text, "worth": number, "progress": number, "success": truth, "valid": truth}
    state = {"episode_id": text, "step_count": {"type": "integer"}, "task": text, "split": text}
    return {
        "action": {"title": "Turn", "type": "object", "properties": {"message": text}, "required": ["message"]},
        "observation": {"title": "Observed", "type": "object", "properties": observed},
        "state": {"title": "State", "type": "object", "properties": state},
    }
