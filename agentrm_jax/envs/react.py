"""The text form of an assistant turn: a thought and an action.

    Thought: The ball is behind the door.
    Action: open red door

The rule: the last line that begins with `Action:` holds the command, and a command is one line. Environments whose commands
span lines (SQL, code) declare it; their command is the fenced block after the label, or all lines up to the next label.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping

from agentrm_jax.envs.spec import EnvSpec
from agentrm_jax.types import Environment, Expert, Message, State, Task

_LABEL = re.compile(r"[ \t]*(?P<emphasis>[*_]{0,3})action[ \t]*[*_]{0,3}[ \t]*:", re.I)
_NEXT = re.compile(r"[ \t]*[*_]{0,3}(?:observation|thought|action)[ \t]*[*_]{0,3}[ \t]*:", re.I)
_THOUGHT = re.compile(r"\s*[*_]{0,3}thought[ \t]*[*_]{0,3}[ \t]*:[ \t]*[*_]{0,3}\s*", re.I)
_FENCE = re.compile(r"[ \t]*```")


@dataclasses.dataclass(frozen=True, slots=True)
class Parsed:
    """What was read from a turn.

    Attributes:
      command: the bare command, or None if the turn holds none.
      thought: the text before the action, without its `Thought:` label; the whole turn if there is no action.
      lenient: the command was readable, but not written as `Action: command` on a line of its own.
    """

    command: str | None
    thought: str
    lenient: bool


def parse_action(text: str, *, multiline: bool = False) -> Parsed:
    """Reads thought and command from an assistant turn.

    The last line-initial `Action:` counts, so that the word inside a thought does no harm; whatever was written after the
    command (an imagined observation, for instance) is dropped. Other spellings (`action:`, `**Action:**`, indentation, the
    command on the line after the label) are read too, and flagged `lenient`.
    """
    lines = re.split(r"\r?\n", text)
    found = _last_label(lines, multiline)
    if found is None:
        return Parsed(None, _thought(text), False)
    index, match = found
    lenient = match[0] != "Action:"
    first = lines[index][match.end() :].strip()
    if match["emphasis"]:
        first = first.strip("*_ \t")  # of `**Action:** go` and `**Action: go**`
    rest = lines[index + 1 :]
    if multiline:
        command = _block(first, rest)
    else:
        command = first
        if not command:
            command = next((line.strip() for line in rest if line.strip()), "")
            command = "" if _NEXT.match(command) else command
            lenient = True
    thought = _thought("\n".join(lines[:index]))
    return Parsed(command, thought, lenient) if command else Parsed(None, thought, False)


def render_action(thought: str, command: str) -> str:
    """The assistant turn that `parse_action` reads back; no thought line if `thought` is empty, a fence around lines."""
    action = f"Action:\n```\n{command}\n```" if "\n" in command else f"Action: {command}"
    return f"Thought: {thought}\n{action}" if thought else action


def _last_label(lines: list[str], multiline: bool) -> tuple[int, re.Match[str]] | None:
    """Index and match of the last line that begins with the label; lines inside a fenced command are not looked at."""
    found, fenced = None, False
    for i, line in enumerate(lines):
        match = None if fenced else _LABEL.match(line)
        if match:
            found = i, match
        if multiline and found and line.count("```") % 2:
            fenced = not fenced
    return found


def _block(first: str, rest: list[str]) -> str:
    """The command that begins with `first` (the rest of the label's line) and goes on over the lines `rest`."""
    lines = [first, *rest] if first else rest
    start = next((i for i, line in enumerate(lines) if line.strip()), None)
    if start is None:
        return ""
    lines = lines[start:]
    if not _FENCE.match(lines[0]):
        end = next((i for i, line in enumerate(lines) if _NEXT.match(line)), len(lines))
        return "\n".join(lines[:end]).strip()
    opening = lines[0].strip()[3:]
    if "```" in opening:  # the whole block on one line
        return opening.split("```")[0].strip()
    end = next((i for i, line in enumerate(lines[1:], 1) if _FENCE.match(line)), len(lines))
    return "\n".join(lines[1:end]).strip()


def _thought(text: str) -> str:
    match = _THOUGHT.match(text)
    return (text[match.end() :] if match else text).strip()


def command_reader(specs: Mapping[str, EnvSpec]) -> Callable[[State], str]:
    """What search merges proposals by: the command the environment would read, or the whole turn if it reads none."""

    def command(state: State) -> str:
        assert state.action is not None
        parsed = parse_action(state.action.text, multiline=specs[state.task.env].multiline)
        return parsed.command or state.action.text

    return command


def reason(command: str, reasons: Iterable[tuple[str, str]]) -> str:
    """A thought for a command: that of the first (pattern, text) it matches as a whole, `{0}`, ... filled in; else none."""
    for pattern, text in reasons:
        if found := re.fullmatch(pattern, command):
            thought = text.format(*found.groups())
            return thought[0].upper() + thought[1:]
    return ""


def worked(
    goal: str, observation: str, turns: Iterable[tuple[str, str, str]], prefix: str = "Observation: "
) -> tuple[Message, ...]:
    """A worked example in the form in which a policy meets its task; `turns` are (thought, command, observation)."""
    messages = [Message("user", f"Your task: {goal}\n\n{observation}")]
    for thought, command, seen in turns:
        messages += [Message("assistant", render_action(thought, command)), Message("user", prefix + seen)]
    return tuple(messages)


def played(env: Environment, task: Task, expert: Expert, prefix: str = "Observation: ") -> tuple[Message, ...]:
    """The expert's episode as a worked example."""
    start = env.reset(task)
    turns = ((thought, command, env.step(command).observation) for thought, command in expert(env, task))
    return worked(start.goal, start.observation, turns, prefix)
