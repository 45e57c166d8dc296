"""What the three question-answering worlds share: answers of tools with the facts they reveal, and questions.

A fact is a short key such as `rain/Oslo/2024-05-01`. Sub-goals of a question are facts, not recorded results, so any route
that shows the agent what it needs to know counts.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, Generic, NamedTuple, TypeVar

from agentrm_jax.envs.tool.calls import FINISH, Tool, checked, render_call
from agentrm_jax.types import JSON

W = TypeVar("W")


class Answered(NamedTuple, Generic[W]):
    """A tool's answer: the world afterwards (most tools leave it alone), the result, and the facts it shows."""

    world: W
    result: Any
    facts: AbstractSet[str] = frozenset()


class Question(NamedTuple, Generic[W]):
    """A goal in words, the world it is about, facts one has to see, the answer, and (thought, command) pairs."""

    goal: str
    world: W
    needed: frozenset[str]
    answer: JSON
    plan: list[tuple[str, str]]


Action = Callable[[W, Mapping[str, Any]], Answered[W]]


def looked_up(world: W, arguments: Mapping[str, Any]) -> Answered[W]:
    """Stands for the tools that the environment itself answers."""
    raise AssertionError("finish and check_valid_actions are answered by the environment")


def ask(
    actions: Mapping[str, tuple[Tool, Action[W]]],
    world: W,
    goal: str,
    answer: JSON,
    calls: Sequence[tuple[str, str, Mapping[str, Any]]],
) -> Question[W]:
    """The question whose sub-goals are the facts that `calls` (thought, tool, arguments) reveal in turn."""
    needed: set[str] = set()
    now = world
    tools = {name: tool for name, (tool, _) in actions.items()}
    for _, name, arguments in calls:
        now, _, facts = actions[name][1](now, checked(tools, name, arguments))
        needed |= facts
    plan = [(thought, render_call(name, **arguments)) for thought, name, arguments in calls]
    plan.append((f"The answer is {answer}.", render_call(FINISH, answer=answer)))
    return Question(goal, world, frozenset(needed), answer, plan)


def progress(needed: AbstractSet[str], seen: Iterable[str], answered: bool) -> float:
    """Share of sub-goals found, the right answer being one of them and making up for all others. In [0, 1]."""
    return 1.0 if answered else len(needed & set(seen)) / (len(needed) + 1)
