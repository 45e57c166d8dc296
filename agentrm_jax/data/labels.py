"""What rows of anybody's files say: conversations, what they were worth, how good their steps are, which of two is better.

Each row is told apart by its keys (`LAYOUTS`) and becomes one record, which keeps the row it came from: nothing of it is lost.
docs/data.md lists the layouts, and what each can train. Messages may call tools, in the spellings of `data.messages`; a row's `tools`
are their schemas.

    for row in labels.read("rollouts/,more.jsonl.xz"):
        row.task, row.conversations[0].reward, row.conversations[0].steps, row.pairs
"""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from agentrm_jax.data import fields, files
from agentrm_jax.data.conversations import Conversation, Form
from agentrm_jax.data.files import Bad, refuse
from agentrm_jax.data.formats import trajectory_from_json
from agentrm_jax.data.layouts import dialogues, preferences, reasoning
from agentrm_jax.data.layouts.parts import Found, Pair
from agentrm_jax.data.messages import read_tools
from agentrm_jax.envs import catalogue
from agentrm_jax.envs.spec import EnvSpec
from agentrm_jax.prompts import transcript
from agentrm_jax.text import clean
from agentrm_jax.types import JSON, Message, UserError

Specs = Mapping[str, EnvSpec]

_IDS = ("id", "item_id", "uuid", "task_id", "idx")
_EXPECTED = (
    "expected 'conversations' (ETO, AgentGym), 'messages', 'prompt' with 'completion', 'chosen' and 'rejected' (TRL), "
    "a record of kind 'trajectory' (ours), or another layout of docs/data.md"
)


@dataclasses.dataclass(frozen=True, eq=False)
class Labels:
    """One row.

    Attributes:
      id: the row's own, else its number in its file or the file's name.
      task: the same for all samples of one task: what the row says that it is about, its id, or a digest of what its conversations
        begin with.
      conversations: usually one; two of a preference, several of a row of samples. Each has its own `reward` and `steps`.
      pairs: which of them is better than which.
      layout: name of the layout, as in docs/data.md.
      split: the part of a data set that the row says it belongs to, e.g. `test`; empty if it says nothing.
      row: the row as it was read.
      origin: file and line, with which messages about it begin.
      file: its file.
    """

    id: str | int
    task: str
    conversations: tuple[Conversation, ...]
    pairs: tuple[Pair, ...]
    layout: str
    split: str
    row: Mapping[str, JSON]
    origin: str
    file: str


@dataclasses.dataclass(frozen=True)
class _Layout:
    """A layout: the keys that a row of it has (none of them null), what else must hold, and who reads it."""

    name: str
    keys: tuple[str, ...]
    read: Callable[[Mapping[str, JSON]], Found]
    holds: Callable[[Mapping[str, JSON]], bool] = lambda row: True


def _is(kind: type, *names: str) -> Callable[[Mapping[str, JSON]], bool]:
    """Whether all these keys of a row hold values of a type."""
    return lambda row: all(isinstance(row[name], kind) for name in names)


# In order: the first one that fits a row reads it.
LAYOUTS = (
    _Layout("ipr-exploration", ("agent_conversations",), dialogues.exploration),
    _Layout("ipr-values", ("gpt_conversations",), dialogues.expert_values),
    _Layout("plan-rewardbench", ("chosen", "reject"), preferences.sides),
    _Layout("preference", ("chosen",), preferences.sides),
    _Layout("preference", ("rejected",), preferences.sides),
    _Layout("preference", ("reject",), preferences.sides),
    _Layout(
        "prm800k",
        ("question", "label"),
        reasoning.prm800k,
        lambda row: _is(dict, "question", "label")(row) and "steps" in row["label"],
    ),
    _Layout("processbench", ("problem", "steps", "label"), reasoning.processbench),
    _Layout("math-shepherd", ("input", "label"), reasoning.math_shepherd, _is(str, "input", "label")),
    _Layout("ntp-prm", ("input", "output", "process_label"), reasoning.next_token),
    _Layout("stepwise", ("prompt", "completions", "labels"), reasoning.stepwise, _is(list, "completions", "labels")),
    _Layout("stepwise", ("prompt", "completions", "values"), reasoning.stepwise, _is(list, "completions", "values")),
    _Layout("samples", ("prompt", "completions", "correctness"), reasoning.samples, _is(list, "completions")),
    _Layout("sample", ("prompt", "response", "correctness"), reasoning.sampled, _is(str, "response")),
    _Layout("implicitprm", ("response", "label"), dialogues.cross_entropy, _is(list, "response")),
    _Layout("rest-mcts", ("content", "policy_samples"), reasoning.generation),
    _Layout("rest-mcts", ("content", "value_samples"), reasoning.generation),
    _Layout("rest-mcts-prefix", ("prompt_answer", "label"), reasoning.prefix_value),
    _Layout("agentboard", ("trajectory",), dialogues.board_log, _is(dict, "trajectory")),
    _Layout("agentprocessbench", ("messages", "step_labels"), dialogues.process_bench, _is(dict, "step_labels")),
    _Layout("agentprocessbench", ("messages", "step_labels", "query_index"), dialogues.process_bench),
    _Layout("knowagent", ("traj",), dialogues.game_log, _is(str, "traj")),
    _Layout("tau-bench", ("traj",), dialogues.messages),
    _Layout("conversations", ("conversations",), dialogues.messages),
    _Layout("messages", ("messages",), dialogues.messages),
    _Layout("completion", ("prompt", "completion"), dialogues.completion),
)


def read(places: str | Path, specs: Specs | None = None, bad: Bad = refuse) -> Iterator[Labels]:
    """The rows of files, folders and data sets (`files.rows`), in order, of any layouts.

    Args:
      specs: the environments whose own records can be read, by name; by default those that ship with the package. A module that a
        record names is never imported.
      bad: called with what is wrong with a row that is none (`files.Skipped` counts them); by default it ends the reading.

    Raises:
      UserError: there is nothing to read, or a row is in none of the layouts; names file and line.
    """
    for row in files.rows(places, bad):
        try:
            found = of_row(row, specs)
        except UserError as error:
            bad(error)
            continue
        yield from found


def conversations(places: str | Path, specs: Specs | None = None, bad: Bad = refuse) -> Iterator[Conversation]:
    """All conversations of `read`."""
    for row in read(places, specs, bad):
        yield from row.conversations


def of_row(row: files.Row, specs: Specs | None = None) -> list[Labels]:
    """What one row says: usually one record, several of a row that holds rows (a table of columns, or rows by name).

    Raises:
      UserError: it is in none of the layouts; begins with the row's origin.
    """
    if not isinstance(row.value, dict):
        raise UserError(f"{row.origin}: a row is a JSON object, not {type(row.value).__name__}")
    if fields.too_deep(row.value):
        raise UserError(f"{row.origin}: nested deeper than {fields.DEEPEST} levels")
    if "kind" in row.value and "task" in row.value:
        return [_native(row, _shipped() if specs is None else specs)]
    try:
        return [_labels(one) for one in _inner_rows(row)]
    except UserError as error:
        message = str(error)
        raise error if message.startswith(row.origin) else UserError(f"{row.origin}: {message}") from error


def _inner_rows(row: files.Row) -> Iterator[files.Row]:
    """The rows that a row consists of: itself, as a rule."""
    value = row.value
    columns = {name: value[name] for name in ("prompt", "chosen", "rejected") if isinstance(value.get(name), list)}
    if len(columns) == 3 and all(
        isinstance(v, str) for column in columns.values() for v in column
    ):  # ReST-MCTS's pairs
        if len({len(column) for column in columns.values()}) > 1:
            raise UserError("the lists 'prompt', 'chosen' and 'rejected' are not of one length")
        for i, cells in enumerate(zip(*columns.values(), strict=True), 1):
            inner = dict(zip(columns, cells, strict=True))
            yield dataclasses.replace(
                row, value=inner, origin=f"{row.origin}, pair {i}", fallback=f"{row.fallback}.{i}"
            )
    elif value and all(
        isinstance(v, dict) and "gpt_conversations" in v for v in value.values()
    ):  # IPR's values of experts
        for name, inner in value.items():
            known = {"id": name.rpartition("_")[0] or name, **inner}
            yield dataclasses.replace(row, value=known, origin=f"{row.origin}, {clean(name):.60}")
    else:
        yield row


def _labels(row: files.Row) -> Labels:
    present = {name: value for name, value in row.value.items() if value is not None}
    layout = next((one for one in LAYOUTS if set(one.keys) <= present.keys() and one.holds(present)), None)
    if layout is None:
        raise _unknown(row.value)
    found, tools, form = layout.read(present), read_tools(row.value), _form(row.value)
    known = next((name for key in _IDS if (name := _name(row.value.get(key))) is not None), None)
    name = row.fallback if known is None else known
    mark = "/" if found.pairs or layout.name == "preference" else "#"
    said = tuple(
        Conversation(
            f"{name}{mark}{one.name}" if one.name else name,
            one.messages,
            form,
            row.value,
            row.origin,
            tools,
            reward=one.reward,
            steps=one.steps,
        )
        for one in found.said
    )
    about = next((x for x in (found.task, known) if x is not None), None)
    task = digest(said) if about is None else clean(str(about))
    return Labels(name, task, said, found.pairs, layout.name, _split(row), row.value, row.origin, row.file)


def _native(row: files.Row, specs: Specs) -> Labels:
    value = row.value
    if value["kind"] != "trajectory":
        raise UserError(f"{row.origin}: a record of kind {value['kind']!r:.40}, not 'trajectory'")
    trajectory = trajectory_from_json(value, row.origin)
    task = trajectory.task
    if (spec := specs.get(task.env)) is None:
        known = ", ".join(sorted(specs))
        raise UserError(f"{row.origin}: no environment named {task.env!r} is known here; known: {known}")
    sample = trajectory.meta.get("sample")
    name = clean(task.key if sample is None else f"{task.key}#{sample!s:.40}")
    said = tuple(transcript(spec, trajectory))
    worth = trajectory.last.reward if trajectory.steps else None
    one = Conversation(name, said, "native", value, row.origin, (), trajectory, spec, worth)
    return Labels(name, clean(task.key), (one,), (), "native", clean(task.split), value, row.origin, row.file)


def _unknown(row: Mapping[str, JSON]) -> UserError:
    for name in ("conversations", "messages", "traj"):
        if name in row:
            return UserError(f"{name!r} is empty: an item to be solved, not a trajectory")
    found = ", ".join(f"{key!r:.40}" for key in list(row)[:8]) or "none"
    return UserError(f"in none of the known formats: its keys are {found}; {_EXPECTED}")


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


def _split(row: files.Row) -> str:
    named = next((row.value[k] for k in ("split", "_lcp_bucket") if isinstance(row.value.get(k), str)), row.split)
    return clean(named)


def digest(said: tuple[Conversation, ...]) -> str:
    """What stands for a task without a name: what its first conversation says before the first trained turn."""

    def before(messages: tuple[Message, ...]) -> str:
        first = next((i for i, m in enumerate(messages) if m.loss), len(messages))
        return "\0".join(f"{m.role}:{m.content}" for m in messages[:first])

    text = before(said[0].messages) if said else ""
    return hashlib.blake2b(text.encode(errors="replace"), digest_size=8).hexdigest()


@functools.cache
def _shipped() -> dict[str, EnvSpec]:
    return {name: catalogue.find(name) for name in catalogue.names()}
