"""Trajectories as other people write them: ETO, AgentGym, TRL, and our own records, told apart row by row.

Every row becomes one `Conversation` (a preference row two), which keeps the row it came from: nothing of it is lost. Messages may
call tools, in the spellings of `data.messages`; a row's `tools` are their schemas.

    {"id", "conversations": [{"from": "human" | "gpt", "value", "loss"?}]}                  ETO, IPR; AgentGym with `item_id`
    {"item_id", "conversations": [{"role", "content"}]}                                     AgentGym-RL
    {"messages": [{"role", "content"}]}   {"prompt", "completion"}                          TRL
    {"prompt", "completions": [...], "labels": [...]}                                       TRL, stepwise supervision
    {"prompt"?, "chosen", "rejected"}                                                       preferences of all of them
    {"query", "tools", "chosen": {"messages"}, "reject": {"messages"}}                      Plan-RewardBench
    {"task_id", "traj": [{"role", "content", "tool_calls"?}], "reward"}                     tau-bench
    {"kind": "trajectory", "task", "goal", "observation", "steps"}                          ours
"""

import dataclasses
import functools
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

from agentrm_jax.chat import Chat
from agentrm_jax.data import fields
from agentrm_jax.data.formats import trajectory_from_json
from agentrm_jax.data.messages import context, read_messages, read_tools
from agentrm_jax.envs import catalogue
from agentrm_jax.envs.spec import EnvSpec
from agentrm_jax.prompts import Encoder, Representation, represented, transcript
from agentrm_jax.text import clean
from agentrm_jax.tree import Segment
from agentrm_jax.types import JSON, Message, Trajectory, UserError

Form = Literal["eto", "agentgym", "trl", "native"]

_IDS = ("id", "item_id", "uuid", "task_id")
# One line that agrees and does nothing: "OK", "Ok.", "OK. I'll follow your instructions and try my best."
_AGREES = re.compile(
    r"(ok|okay|sure|understood|got it|alright|i understand)[.!]?"
    r"|(ok|okay)[.,!]? I\b[^\n]*\b(instructions?|understand|ready|my best)\b[^\n]*",
    re.IGNORECASE,
)
_LONGEST_OK = 200  # characters: what is longer is no mere acknowledgement
_EXPECTED = (
    "expected 'conversations' (ETO, AgentGym), 'messages', 'prompt' with 'completion', 'chosen' and 'rejected' (TRL), "
    "or a record of kind 'trajectory' (ours)"
)


@dataclasses.dataclass(frozen=True, eq=False)
class Conversation:
    """One trajectory of a file.

    Attributes:
      id: the row's own (a whole number stays one); the file's name or the row's number, from 1, where it has none. The two sides of a
        preference row are `ID/chosen` and `ID/rejected`, a sample of a search `ENV/TASK#SAMPLE`.
      messages: all of them in order; `loss` marks the trained assistant turns.
      form: which family of formats the row belongs to.
      row: the row as it was read.
      origin: file and line, for messages.
      tools: schemas of the functions that the assistant may call.
      trajectory: our own record, if it is one.
      spec: what a reader of that record is told about its environment.
    """

    id: str | int
    messages: tuple[Message, ...]
    form: Form
    row: Mapping[str, JSON]
    origin: str
    tools: tuple[JSON, ...] = ()
    trajectory: Trajectory | None = None
    spec: EnvSpec | None = None


def read(path: Path, specs: Mapping[str, EnvSpec] | None = None) -> Iterator[Conversation]:
    """The conversations of a file (JSON lines, an array, or one object), or of a folder of `.json` and `.jsonl` files.

    Of one of our workdirs it is the file `trajectories.jsonl`. `specs` are the environments whose own records can be read, by
    name; by default those that ship with the package. A module that a record names is never imported.

    Raises:
      UserError: there is nothing, or a row is in none of the formats; names file and line.
    """
    path = path / "trajectories.jsonl" if (path / "trajectories.jsonl").exists() else path
    if (path / "trees" / "trees.jsonl").exists():
        raise UserError(f"{path} holds search trees, no trajectories; name the workdir of another search, or a file")
    files = sorted(p for p in path.iterdir() if p.suffix in (".json", ".jsonl")) if path.is_dir() else [path]
    if not files or not files[0].exists():
        raise UserError(
            f"no trajectories at {path}: " + ("no .json or .jsonl file in it" if not files else "no such file")
        )
    empty = True
    for file in files:
        for origin, fallback, row in _rows(file):
            empty = False
            yield from conversations_of(row, origin=origin, fallback=fallback, specs=specs)
    if empty:
        raise UserError(f"{path} holds no trajectories, it is empty")


def conversations_of(
    row: JSON, *, origin: str, fallback: str | int, specs: Mapping[str, EnvSpec] | None = None
) -> list[Conversation]:
    """What one row holds: a conversation, or the two sides of a preference.

    Args:
      origin: file and line.
      fallback: id of a row without one.
      specs: as in `read`.

    Raises:
      UserError: it is in none of the formats; begins with `origin`.
    """
    if not isinstance(row, dict):
        raise UserError(f"{origin}: a row is a JSON object, not {type(row).__name__}")
    if fields.too_deep(row):
        raise UserError(f"{origin}: nested deeper than {fields.DEEPEST} levels")
    known = next((name for key in _IDS if (name := _name(row.get(key))) is not None), fallback)
    if "kind" in row and "task" in row:
        return [_native(row, origin, _shipped() if specs is None else specs)]
    try:
        tools = read_tools(row)
        if not {"chosen", "rejected", "reject"}.isdisjoint(row):
            return [
                Conversation(f"{known}/{side}", messages, _form(row), row, origin, tools)
                for side, messages in _preference(row).items()
            ]
        return [Conversation(known, _single(row), _form(row), row, origin, tools)]
    except UserError as error:
        raise UserError(f"{origin}: {error}") from error


def segments(conversation: Conversation, chat: Chat, state: Representation = "default") -> list[Segment]:
    """What a reward model reads, as token segments; the trained turns are the `action` segments with loss.

    Our own records are read as in a search: with the environment's instruction for reward models, and with the very ids that
    were sampled if they are ids of this tokenizer. A conversation without an assistant turn has no segments.

    Args:
      state: what the model reads of it.

    Raises:
      UserError: the chat template cannot render the conversation; begins with its origin.
    """
    trajectory = conversation.trajectory
    try:
        if trajectory is not None:
            assert conversation.spec is not None
            specs = {trajectory.task.env: conversation.spec}
            return Encoder(chat, specs, "reward", state=state).trajectory(trajectory)
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


# --- Files -----------------------------------------------------------------------------------------------------------


def _rows(path: Path) -> Iterator[tuple[str, str | int, JSON]]:
    """(origin, id of a row without one, row). The file is read once, so it may be a pipe."""
    try:
        with path.open("rb") as file:
            lines = ((n, text) for n, line in enumerate(file, 1) if (text := _decoded(line, path, n)).strip())
            head = list(itertools.islice(lines, 2))
            if not head:
                return
            if head[0][1].lstrip().startswith("[") or (len(head) > 1 and not _is_json(head[0][1])):
                yield from _whole(path, "".join(text for _, text in itertools.chain(head, lines)))
                return
            for number, text in itertools.chain(head, lines):
                fallback = path.stem if len(head) == 1 and path.suffix == ".json" else number
                yield f"{path}, line {number}", fallback, fields.parse(text, f"{path}, line {number}")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error


def _decoded(line: bytes, path: Path, number: int) -> str:
    try:
        return line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}, line {number} cannot be read: {error}") from error


def _whole(path: Path, text: str) -> Iterator[tuple[str, str | int, JSON]]:
    """The rows of a file that is one JSON value. A file of lines whose first is broken says so of that line."""
    try:
        value = fields.parse(text, str(path))
    except UserError:
        fields.parse(text.splitlines()[0], f"{path}, line 1")
        raise
    if isinstance(value, list):
        yield from ((f"{path}, entry {n}", n, row) for n, row in enumerate(value, 1))
    else:
        yield str(path), path.stem, value


def _is_json(text: str) -> bool:
    try:
        fields.parse(text, "")
    except UserError:
        return False
    return True


# --- Rows ------------------------------------------------------------------------------------------------------------


def _form(row: Mapping[str, JSON]) -> Form:
    rows: list[JSON] = next((row[k] for k in ("conversations", "prompt", "chosen") if isinstance(row.get(k), list)), [])
    turns = [m for m in rows if isinstance(m, dict)]
    if "item_id" in row or any("loss" in m for m in turns):
        return "agentgym"
    return "eto" if "conversations" in row or any("from" in m for m in turns) else "trl"


def _name(value: JSON) -> str | int | None:
    """An id, if the value can be one."""
    if isinstance(value, str):
        return clean(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


@functools.cache
def _shipped() -> dict[str, EnvSpec]:
    return {name: catalogue.find(name) for name in catalogue.names()}


def _native(row: Mapping[str, JSON], origin: str, specs: Mapping[str, EnvSpec]) -> Conversation:
    if row["kind"] != "trajectory":
        raise UserError(f"{origin}: a record of kind {row['kind']!r:.40}, not 'trajectory'")
    trajectory = trajectory_from_json(row, origin)
    task = trajectory.task
    if (spec := specs.get(task.env)) is None:
        raise UserError(f"{origin}: no environment named {task.env!r} is known here; known: {', '.join(sorted(specs))}")
    sample = trajectory.meta.get("sample")
    name = task.key if sample is None else f"{task.key}#{sample!s:.40}"
    return Conversation(clean(name), tuple(transcript(spec, trajectory)), "native", row, origin, (), trajectory, spec)


def _single(row: Mapping[str, JSON]) -> tuple[Message, ...]:
    for key in ("conversations", "messages", "traj"):
        if key in row:
            if not row[key]:
                raise UserError(f"{key!r} is empty: an item to be solved, not a trajectory")
            return _acknowledged(read_messages(row[key], key), row[key])
    if "prompt" in row and "completion" in row:
        return (*context(_side(row["prompt"], "prompt", "user")), *_side(row["completion"], "completion", "assistant"))
    steps = row.get("completions")
    labels = row.get("labels")
    if "prompt" in row and isinstance(steps, list) and isinstance(labels, list):
        if len(steps) != len(labels):
            raise UserError(f"'completions' has {len(steps)} entries and 'labels' {len(labels)}")
        prompt = context(_side(row["prompt"], "prompt", "user"))
        return (*prompt, *(m for step in steps for m in _side(step, "completions", "assistant")))
    found = ", ".join(f"{key!r:.40}" for key in list(row)[:8]) or "none"
    raise UserError(f"in none of the known formats: its keys are {found}; {_EXPECTED}")


def _preference(row: Mapping[str, JSON]) -> dict[str, tuple[Message, ...]]:
    """`chosen` and `rejected`, each behind the prompt; without one, what both begin with is the prompt, as in TRL."""
    row = {"rejected" if name == "reject" else name: _inner(value) for name, value in row.items()}
    names = [n for n in ("chosen", "rejected") if n in row]
    sides = {n: _side(row[n], n, "assistant") for n in names}
    if all(side and side[0].role != "assistant" for side in sides.values()):  # each is a whole conversation
        shared = _shared(list(sides.values())) if len(sides) > 1 else 0
        return {n: _acknowledged((*context(side[:shared]), *side[shared:]), row[n]) for n, side in sides.items()}
    if "prompt" not in row:
        raise UserError("a preference of texts without 'prompt': nothing says where the assistant's turn begins")
    prompt = context(_side(row["prompt"], "prompt", "user"))
    return {n: (*prompt, *side) for n, side in sides.items()}


def _inner(value: JSON) -> JSON:
    """The messages of a side that is a row of its own."""
    return value["messages"] if isinstance(value, dict) and "messages" in value else value


def _shared(sides: Sequence[Sequence[Message]]) -> int:
    """How many messages the sides begin with in common, leaving each at least one."""
    shortest = min(len(s) for s in sides)
    return next((i for i in range(shortest - 1) if len({s[i] for s in sides}) > 1), shortest - 1)


def _side(value: JSON, name: str, role: Literal["user", "assistant"]) -> tuple[Message, ...]:
    """A list of messages, or a text as one message of `role`."""
    if isinstance(value, str):
        return (Message(role, clean(value), loss=role == "assistant"),)
    return read_messages(value, name)


def _acknowledged(messages: Sequence[Message], rows: Sequence[Mapping[str, JSON]]) -> tuple[Message, ...]:
    """An opening "OK" is no step: the first assistant turn, if it only agrees, more turns follow, and its row does not insist."""
    turns = [i for i, m in enumerate(messages) if m.role == "assistant"]
    if (
        len(turns) < 2
        or rows[turns[0]].get("loss") is True
        or len(messages[turns[0]].content) > _LONGEST_OK
        or not _AGREES.fullmatch(messages[turns[0]].content.strip())
    ):
        return tuple(messages)
    return (*context(messages[: turns[0] + 1]), *messages[turns[0] + 1 :])
