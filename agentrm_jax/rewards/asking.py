"""What a judge is asked: which of several attempts at a task, or of several next turns after one history, is best."""

import dataclasses
import re
from collections.abc import Sequence

from agentrm_jax import prompts
from agentrm_jax.envs.spec import EnvSpec
from agentrm_jax.types import Message, State

_HEADING = re.compile(r"^(===)", re.MULTILINE)  # what begins a part of a question; no attempt can begin one


@dataclasses.dataclass(frozen=True)
class Question:
    """Candidates of one task that are compared with each other.

    Attributes:
      spec: of the task's environment, whose words for a reward model are used.
      candidates: states whose last action counts as done; what came of it is not shown, as no reward model sees it.
      steps: they differ in their last action only, and it alone is compared.
    """

    spec: EnvSpec
    candidates: Sequence[State]
    steps: bool

    @property
    def turns(self) -> int:
        """Turns of the longest candidate; of a comparison of steps, those of the history."""
        return max(state.depth for state in self.candidates) - self.steps

    @property
    def least(self) -> int:
        """Turns without which there is nothing to compare: the last one of each candidate, none of a history."""
        return 0 if self.steps else min(1, self.turns)

    def messages(self, order: Sequence[int], last: int | None = None) -> list[Message]:
        """The question with the candidates in an order.

        Args:
          order: indices of all candidates.
          last: turns that are shown of each candidate (of the history, where steps are compared), the latest ones; None: all. The
            question says where turns are left out.
        """
        shown = [self.candidates[i] for i in order]
        task = shown[0].task
        root = shown[0].path()[0]
        assert root.outcome is not None
        [about] = prompts.opening(self.spec.texts(task), root.goal, root.outcome.observation, reader="reward")
        parts = [_about(self.steps, len(shown)), f"=== The task\n{_plain(about.content)}"]
        if self.steps:
            history = shown[0].parent
            assert history is not None
            parts.append(
                f"=== What the agent has done so far\n{_turns(history, last, answered=True) or '(nothing yet)'}"
            )
        for i, state in enumerate(shown, 1):
            text = _plain(state.action.text) if self.steps and state.action else _turns(state, last, answered=False)
            parts.append(f"=== {'Turn' if self.steps else 'Attempt'} {i}\n{text}")
        parts.append(_asked(self.steps, len(shown)))
        return [Message("user", "\n\n".join(parts))]

    def left_out(self, last: int) -> tuple[int, int]:
        """(turns, candidates) that are not shown, or not whole, when `last` turns are."""
        depths = [self.turns] if self.steps else [state.depth for state in self.candidates]
        gone = [max(0, depth - last) for depth in depths]
        return sum(gone), sum(turns > 0 for turns in gone)


def content(state: State, *, steps: bool) -> tuple[str, ...]:
    """What is compared of a candidate: candidates with equal contents are one."""
    if steps:
        return (state.action.text if state.action else "",)
    return tuple(text for turn in state.path()[1:] for text in _texts(turn, answered=turn is not state))


def history(state: State) -> tuple[str, ...]:
    """What was said before a candidate's last action."""
    return tuple(text for turn in state.path()[1:-1] for text in _texts(turn, answered=True))


def _texts(turn: State, *, answered: bool) -> tuple[str, ...]:
    action = turn.action.text if turn.action else ""
    return (action, turn.outcome.observation) if answered and turn.outcome else (action,)


def _turns(state: State, last: int | None, *, answered: bool) -> str:
    """The latest turns of a path; the last one with what came of it only where `answered`."""
    turns = state.path()[1:]
    kept = turns if last is None else turns[max(0, len(turns) - last) :]
    lines = [f"({len(turns) - len(kept)} earlier turns are left out)"] if len(kept) < len(turns) else []
    for turn in kept:
        said, *seen = _texts(turn, answered=answered or turn is not state)
        lines += [f"Agent: {_plain(said)}", *(f"Environment: {_plain(text)}" for text in seen)]
    return "\n".join(lines)


def _plain(text: str) -> str:
    """A text that cannot be taken for the beginning of a part."""
    return _HEADING.sub(r" \1", text.strip())


def _about(steps: bool, count: int) -> str:
    if steps:
        return (
            f"An agent works on a task in a text environment. Below are the task, what it has done so far, and {count} turns that it "
            "might take next. Decide which turn brings it closest to solving the task."
        )
    return (
        f"An agent worked on a task in a text environment, in {count} separate attempts. Below are the task and the attempts. Decide "
        "which attempt solved the task, or came closest to solving it."
    )


def _asked(steps: bool, count: int) -> str:
    return f"=== Answer\nWrite only the number of the best {'turn' if steps else 'attempt'}, from 1 to {count}."
