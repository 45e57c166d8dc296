"""What environments need of replies: the reader that search merges proposals by, thoughts for experts, worked examples."""

import re
from collections.abc import Callable, Iterable, Mapping

from agentrm_jax.envs.spec import EnvSpec
from agentrm_jax.replies import parse_action, render_action
from agentrm_jax.text import clean
from agentrm_jax.types import Environment, Expert, Message, State, Task


def command_reader(specs: Mapping[str, EnvSpec]) -> Callable[[State], str]:
    """The function search merges proposals by: it gives the command the environment would read, or the whole turn if there is none."""

    def command(state: State) -> str:
        assert state.action is not None
        text = clean(state.action.text)  # as the environment will read it
        return parse_action(text, multiline=specs[state.task.env].multiline).command or text

    return command


def answer_reader(specs: Mapping[str, EnvSpec]) -> Callable[[State], str | None]:
    """The function votes among samples are counted by: what an episode came to, None where its environment names no answer."""

    def answer(state: State) -> str | None:
        read = specs[state.task.env].texts(state.task).answer
        return read(state.outcome) if read and state.outcome else None

    return answer


def reason(command: str, reasons: Iterable[tuple[str, str]]) -> str:
    """A thought for a command: the text of the first (pattern, text) that matches the whole command, with `{0}`, ... filled in; else ""."""
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
