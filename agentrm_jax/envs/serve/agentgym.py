"""AgentGym's HTTP protocol, as its published servers speak it and its clients read it.

    POST /create                        the id of a new environment: {"id": 7}, or 7 alone
    POST /reset    {ID, INDEX}          task number INDEX: its first observation
    POST /step     {ID, "action"}       observation, reward, done
    GET  /observation?ID=7              what was last said
    POST /close    {ID}                 true
    GET  /list_envs                     ids in use

The servers differ in how they call ID and INDEX and in how they wrap an answer. Every name of theirs is understood for every
environment. Who says `id` gets an object with all the fields that clients read, and at a reset `goal` and `first_observation` apart,
for ours; who says `env_idx` gets what WebShop's and the tool servers' clients read. Errors are `{"error": ...}` with status 200, as
theirs are, but a full server answers 503.
"""

from collections.abc import Mapping

from agentrm_jax.envs.serve.sessions import Offer, Refused, Session, Sessions
from agentrm_jax.types import JSON, EnvironmentFault, State

PATHS = ("/create", "/reset", "/step", "/observation", "/close", "/list_envs")
_INDEX_FIELDS = ("data_idx", "game", "session_id", "seed", "idx", "item_id", "id")
_BARE = ("webshop", "tool_query", "tool_operation")  # environments whose servers answer /create with the id alone
_FULL_SCORE = {"sciworld": 100.0}  # what `score` counts to there


async def answer(sessions: Sessions, path: str, fields: Mapping[str, JSON]) -> JSON:
    """The answer to a request.

    Args:
      fields: of the body, or of the query of a GET.

    Raises:
      Full: no further environment can be made.
    """
    offer = sessions.offer
    if path == "/create":
        made = sessions.create().id
        return made if offer.spec.name in _BARE else {"id": made}
    if path == "/list_envs":
        return sessions.ids()
    try:
        return await _to_session(sessions, sessions.get(fields.get("env_idx", fields.get("id"))), path, fields)
    except (Refused, EnvironmentFault) as error:
        return {"error": " ".join(str(error).split())}


async def _to_session(sessions: Sessions, session: Session, path: str, fields: Mapping[str, JSON]) -> JSON:
    offer = sessions.offer
    bare = "env_idx" in fields
    if path == "/reset":
        names = [f for f in _INDEX_FIELDS if f in fields and not (f == "id" and not bare)]
        if not names:
            raise Refused(f"the request names no task; say which under one of {', '.join(_INDEX_FIELDS[:-1])}")
        state = await sessions.reset(session, offer.task(index=fields[names[0]]))
        if bare:
            text = _opening(sessions, state)
            return [text, None] if offer.spec.name == "webshop" else text
        told = _told(sessions, state)
        ours = {"goal": state.goal, "first_observation": told["observation"]}
        if offer.spec.name == "sciworld":  # whose client puts the description before the observation
            return {"id": session.id, "task_name": state.task.id, "task_description": state.goal, **told, **ours}
        return {"id": session.id, **told, "observation": _opening(sessions, state), **ours}
    if path == "/step":
        action = fields.get("action")
        if not isinstance(action, str):
            raise Refused(f"action must be a text, not {action!r:.100}")
        told = _told(sessions, await sessions.step(session, action))
        return {"state": told["observation"], "info": None, **told} if bare else told
    if path == "/observation":
        if session.state is None:
            raise Refused(f"environment {session.id} was not reset yet")
        return sessions.observation(session.state) if session.state.parent else _opening(sessions, session.state)
    sessions.close(session)
    return True


def _told(sessions: Sessions, state: State) -> dict[str, JSON]:
    """What clients read of a state: `score` is the reward in the units of the original server."""
    outcome, spec = state.outcome, sessions.offer.spec
    assert outcome is not None
    return {
        "observation": sessions.observation(state),
        "reward": outcome.reward,
        "score": round(outcome.reward * _FULL_SCORE[spec.name], 9) if spec.name in _FULL_SCORE else outcome.reward,
        "done": outcome.done,
        "success": outcome.success,
        "available_actions": [],  # ALFWorld's client prints them; our engine lists none
    }


def _opening(sessions: Sessions, state: State) -> str:
    """Goal and first observation in one text."""
    text = sessions.observation(state)
    return text if state.goal in text else f"Your task: {state.goal}\n\n{text}"


def description(offer: Offer) -> str:
    """What a GET of `/` answers."""
    counts = ", ".join(f"{len(tasks)} {split}" for split, tasks in offer.tasks.items())
    return f"This is environment {offer.spec.name}: {counts} tasks; tasks of {offer.default} are numbered from 0."
