"""Rows in layouts of others, made from what any row says (`data.labels`), and what of it a layout has no place for.

A row that was written is read again: whatever does not come back as it was is named, so nothing is dropped without a word.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence

from agentrm_jax.data import files, labels
from agentrm_jax.data.conversations import Conversation
from agentrm_jax.data.labels import Labels
from agentrm_jax.types import JSON, Message, UserError

Writer = Callable[[Labels], list[dict[str, JSON]]]

_SPEAKERS = {"user": "human", "assistant": "gpt"}  # of ShareGPT's layouts; other roles keep their names


@dataclasses.dataclass(frozen=True)
class Written:
    """The rows that one row became.

    Attributes:
      lost: what of it they do not say: names such as `tools` or `labels of steps`.
    """

    rows: tuple[dict[str, JSON], ...]
    lost: tuple[str, ...] = ()


def write(row: Labels, layout: str) -> Written:
    """A row in another layout: one row, or one for each of its conversations.

    Raises:
      UserError: no such layout, or the row is none that the layout could hold; begins with its origin.
    """
    if layout not in WRITERS:
        raise UserError(f"--to={layout}: no layout that is written; known: {', '.join(WRITERS)}")
    try:
        made = WRITERS[layout](row)
    except UserError as error:
        raise UserError(f"{row.origin}: {error}") from error
    again = [
        one
        for i, value in enumerate(made)
        for one in labels.of_row(
            files.Row(value, f"{row.origin} as {layout}", row.file, row.id if len(made) == 1 else i)
        )
    ]
    return Written(tuple(made), tuple(_lost(row, again)))


def _lost(row: Labels, again: Sequence[Labels]) -> Iterator[str]:
    """What differs between a row and what was read back."""
    before, after = row.conversations, [c for one in again for c in one.conversations]
    if len(before) != len(after):
        yield f"{len(before) - len(after)} of {len(before)} conversations"
        return
    both = list(zip(before, after, strict=True))
    if any([(m.role, m.content) for m in a.messages] != [(m.role, m.content) for m in b.messages] for a, b in both):
        yield "messages"
    elif any([dict(m.more) for m in a.messages] != [dict(m.more) for m in b.messages] for a, b in both):
        yield "calls of tools or thoughts"
    elif any([m.loss for m in a.messages] != [m.loss for m in b.messages] for a, b in both):
        yield "which turns are trained"
    if any(a.tools != b.tools for a, b in both):
        yield "tools"
    if any(a.reward != b.reward for a, b in both):
        yield "rewards"
    if any(_known(a) != _known(b) for a, b in both):
        yield "labels of steps"
    if row.pairs != tuple(pair for one in again for pair in one.pairs):
        yield "which one is better, or by how much"
    if any(one.task != row.task for one in again):
        yield "tasks"
    if [c.id for c in before] != [c.id for c in after]:
        yield "ids"
    if any(one.split != row.split for one in again):
        yield "splits"


def _known(one: Conversation) -> tuple[float | None, ...]:
    return one.steps if any(label is not None for label in one.steps) else ()


# --- Layouts ---------------------------------------------------------------------------------------------------------


def _messages(row: Labels) -> list[dict[str, JSON]]:
    """`messages`, as chat completions and TRL have them; two sides of a pair become a `preference`."""
    if row.pairs:
        return _preference(row)
    return [
        _about(row, "id") | {"messages": [_message(m) for m in c.messages]} | _tools(c) | _reward(c) | _steps(c)
        for c in row.conversations
    ]


def _eto(row: Labels) -> list[dict[str, JSON]]:
    """`conversations` of `from` and `value`, as ETO and IPR have them."""
    return [
        _about(row, "id") | {"conversations": [_turn(m) for m in c.messages]} | _tools(c) | _reward(c) | _steps(c)
        for c in row.conversations
    ]


def _agentgym(row: Labels) -> list[dict[str, JSON]]:
    """`conversations` with a `loss` a message, as AgentGym has them."""

    def turn(m: Message) -> dict[str, JSON]:
        return {
            "from": _SPEAKERS.get(m.role, m.role),
            "loss": m.loss if m.role == "assistant" else None,
            "value": m.content,
        }

    return [
        {"conversations": [turn(m) | _more(m) for m in c.messages]}
        | _about(row, "item_id")
        | _tools(c)
        | _reward(c)
        | _steps(c)
        for c in row.conversations
    ]


def _preference(row: Labels) -> list[dict[str, JSON]]:
    """`prompt`, `chosen` and `rejected`, as TRL has them: a row for each pair."""
    if not row.pairs:
        raise UserError("a preference needs two sides, and this row is no pair")
    out = []
    for pair in row.pairs:
        chosen, rejected = row.conversations[pair.chosen], row.conversations[pair.rejected]
        both = {"chosen": chosen.messages, "rejected": rejected.messages}
        begin = _before(chosen.messages)
        sides: dict[str, JSON] = {}
        if chosen.messages[:begin] == rejected.messages[: _before(rejected.messages)]:
            sides["prompt"] = [_message(m) for m in chosen.messages[:begin]]
            both = {name: messages[begin:] for name, messages in both.items()}
        sides |= {
            name: [_message(m) for m in messages] for name, messages in both.items()
        }  # or each is a whole conversation
        out.append(_about(row, "id") | sides | _tools(chosen) | ({"margin": pair.margin} if pair.margin else {}))
    return out


def _completion(row: Labels) -> list[dict[str, JSON]]:
    """`prompt` and `completion`, with a `label` where a reward is 1 or 0, as TRL has them."""
    out = []
    for c in row.conversations:
        begin = _before(c.messages)
        parts: dict[str, JSON] = {
            "prompt": [_message(m) for m in c.messages[:begin]],
            "completion": [_message(m) for m in c.messages[begin:]],
        }
        worth: dict[str, JSON] = {"label": bool(c.reward)} if c.reward in (0.0, 1.0) else _reward(c)
        out.append(_about(row, "id") | parts | _tools(c) | worth | _steps(c))
    return out


def _stepwise(row: Labels) -> list[dict[str, JSON]]:
    """`prompt`, `completions` and `labels` (`values` where these are no truth values), as TRL's process reward models have them."""
    out = []
    for c in row.conversations:
        begin = _before(c.messages)
        turns = c.messages[begin:]
        if not all(m.role == "assistant" for m in turns) or len(c.steps) != len(turns):
            raise UserError(
                "stepwise rows are assistant turns one after another with a label each, and nothing in between"
            )
        plain = all(label in (0.0, 1.0) for label in c.steps)
        worth: dict[str, JSON] = {"labels": [bool(v) for v in c.steps]} if plain else {"values": list(c.steps)}
        sides: dict[str, JSON] = {
            "prompt": [_message(m) for m in c.messages[:begin]],
            "completions": [m.content for m in turns],
        }
        out.append(_about(row, "id") | sides | worth | _tools(c) | _reward(c))
    return out


WRITERS: Mapping[str, Writer] = {
    "messages": _messages,
    "eto": _eto,
    "agentgym": _agentgym,
    "preference": _preference,
    "completion": _completion,
    "stepwise": _stepwise,
}


def _about(row: Labels, name: str) -> dict[str, JSON]:
    """Which task a row is of, which is what belongs together, and its split. Rows that begin alike are of one task without a name."""
    split: dict[str, JSON] = {"split": row.split} if row.split else {}
    if row.task == labels.digest(row.conversations):
        return split
    return {name: row.task if len(row.conversations) > 1 or str(row.id) != row.task else row.id} | split


def _message(m: Message) -> dict[str, JSON]:
    return {"role": m.role, "content": m.content} | _silent(m) | _more(m)


def _turn(m: Message) -> dict[str, JSON]:
    return {"from": _SPEAKERS.get(m.role, m.role), "value": m.content} | _silent(m) | _more(m)


def _silent(m: Message) -> dict[str, JSON]:
    """Assistant turns are trained unless they say otherwise."""
    return {"loss": False} if m.role == "assistant" and not m.loss else {}


def _more(m: Message) -> dict[str, JSON]:
    return {name: value for name, value in m.more.items()}


def _tools(c: Conversation) -> dict[str, JSON]:
    return {"tools": list(c.tools)} if c.tools else {}


def _reward(c: Conversation) -> dict[str, JSON]:
    return {} if c.reward is None else {"reward": c.reward}


def _steps(c: Conversation) -> dict[str, JSON]:
    return {"step_labels": list(c.steps)} if _known(c) else {}


def _before(messages: Sequence[Message]) -> int:
    """How many messages come before the first trained turn."""
    return next((i for i, m in enumerate(messages) if m.loss), len(messages))
