"""Conversations as files hold them: messages with the trained turns marked, and what is known of them; and as token segments."""

import dataclasses
from collections.abc import Mapping
from typing import Literal

from agentrm_jax.chat import Chat
from agentrm_jax.envs.spec import EnvSpec
from agentrm_jax.prompts import Encoder, Reader, Representation, represented
from agentrm_jax.tree import Segment
from agentrm_jax.types import JSON, Message, Trajectory, UserError

Form = Literal["eto", "agentgym", "trl", "native"]


@dataclasses.dataclass(frozen=True, eq=False)
class Conversation:
    """One trajectory of a file.

    Attributes:
      id: the row's own (a whole number stays one); the file's name or the row's number, from 1, where it has none. The two sides of a
        preference row are `ID/chosen` and `ID/rejected`, a sample of a search `ENV/TASK#SAMPLE`, one of a row's samples `ID#NAME`.
      messages: all of them in order; `loss` marks the trained assistant turns.
      form: which family of formats the row belongs to.
      row: the row as it was read.
      origin: file and line, for messages.
      tools: schemas of the functions that the assistant may call.
      trajectory: our own record, if it is one.
      spec: what a reader of that record is told about its environment.
      reward: what the whole trajectory was worth, any finite number; None if the row does not say.
      steps: the label of every trained turn, None where a turn has none; empty if no turn has one.
    """

    id: str | int
    messages: tuple[Message, ...]
    form: Form
    row: Mapping[str, JSON]
    origin: str
    tools: tuple[JSON, ...] = ()
    trajectory: Trajectory | None = None
    spec: EnvSpec | None = None
    reward: float | None = None
    steps: tuple[float | None, ...] = ()


def segments(
    conversation: Conversation, chat: Chat, state: Representation = "default", reader: Reader = "reward"
) -> list[Segment]:
    """What a model reads, as token segments; the trained turns are the `action` segments with loss.

    Our own records are read as in a search: with the environment's instruction for the reader, and with the very ids that
    were sampled if they are ids of this tokenizer. A conversation without an assistant turn has no segments.

    Args:
      state: what a reward model reads of it.
      reader: whose instruction our own records begin with.

    Raises:
      UserError: the chat template cannot render the conversation; begins with its origin.
    """
    trajectory = conversation.trajectory
    try:
        if trajectory is not None:
            assert conversation.spec is not None
            specs = {trajectory.task.env: conversation.spec}
            return Encoder(chat, specs, reader, state=state).trajectory(trajectory)
        if not any(m.role == "assistant" for m in conversation.messages):
            return []
        out = chat.conversation(represented(conversation.messages, state), conversation.tools)
        turns = sum(m.loss for m in conversation.messages)
        if (kept := sum(s.loss for s in out)) != turns:
            raise UserError(
                f"the chat template joins assistant turns that follow one another: {turns} would become {kept}"
            )
    except UserError as error:
        raise UserError(f"{conversation.origin}: {error}") from error
    return out
