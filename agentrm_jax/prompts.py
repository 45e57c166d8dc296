"""Episodes as token segments: what the policy is told, what the reward model is told, and the turns that follow."""

import dataclasses
import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from agentrm_jax.chat import Chat
from agentrm_jax.envs.spec import EnvSpec
from agentrm_jax.replies import parse_action, render_action
from agentrm_jax.tree import Segment
from agentrm_jax.types import Action, Message, State, Step, Task, Trajectory, UserError

Reader = Literal["policy", "reward"]
# What a reward model reads of a state (paper 5.5): all up to its last action; with what was observed then; or without earlier
# observations, without thoughts, without both. The task's own first observation belongs to the prompt and is always read.
Representation = Literal["default", "last_observation", "no_observations", "no_thoughts", "actions"]
LEFT_OUT = "..."  # stands for an observation that is not read: turns keep their order, and templates their alternation
GOAL, OBSERVATION = "{goal}", "{observation}"  # where a task's own words go, in `instructions`


def opening(spec: EnvSpec, goal: str, observation: str, *, reader: Reader, examples: int = 0) -> list[Message]:
    """The messages before the first turn.

    The policy reads the environment's instruction (and up to `examples` worked examples, here 0 or 1); the reward model reads
    what the task is, without reply format and examples (paper 4).
    """
    if reader == "reward":
        return [Message("user", spec.rm_instruction.replace("{goal}", goal) + "\n\n" + observation)]
    task = f"Your task: {goal}\n\n{observation}"
    if not examples or not spec.example:
        return [Message("user", f"{spec.instruction}\n\n{task}" if spec.instruction else task)]
    return [Message("user", spec.instruction), Message("assistant", "OK"), *spec.example, Message("user", task)]


def told_as_policy(spec: EnvSpec) -> EnvSpec:
    """A spec of which a reward model reads what a policy does (without examples): for log-ratios of two policies."""
    told = spec.told
    return dataclasses.replace(
        spec,
        rm_instruction=f"{spec.instruction}\n\nYour task: {GOAL}",
        told=None if told is None else lambda task: told_as_policy(told(task)),
    )


def messages(
    state: State, spec: EnvSpec, *, reader: Reader = "policy", examples: int = 0, last: int | None = None
) -> list[Message]:
    """The conversation up to where the agent's next turn begins, as chat messages: what an agent of your own is asked to continue.

    Args:
      state: an executed state (its `outcome` is there).
      spec: of the state's environment.
      reader: whose instruction it opens with.
      examples: worked examples in the opening, 0 or 1.
      last: turns to keep, the latest ones; None for all. The opening stays.
    """
    root, *turns = state.path()
    assert root.outcome is not None
    found = opening(spec.texts(state.task), state.goal, root.outcome.observation, reader=reader, examples=examples)
    for turn in turns if last is None else turns[len(turns) - min(last, len(turns)) :]:
        assert turn.action is not None
        assert turn.outcome is not None
        found += [Message("assistant", turn.action.text, loss=True), Message("user", turn.outcome.observation)]
    return found


def instructions(spec: EnvSpec, tasks: Iterable[Task], *, reader: Reader, examples: int = 0) -> tuple[str, ...]:
    """What a reader is told about an environment, apart from goal and observation: every different text that `tasks` meet.

    A worked example is part of its text.
    """
    found: dict[str, None] = {}
    for task in tasks:
        messages = opening(spec.texts(task), GOAL, OBSERVATION, reader=reader, examples=examples)
        found["\n\n".join(m.content for m in messages)] = None
    return tuple(found)


def observation_text(text: str, state: Representation) -> str:
    """What is read of an observation between two turns."""
    return LEFT_OUT if state in ("no_observations", "actions") else text


def turn_text(text: str, state: Representation) -> str:
    """What is read of an assistant turn: without thoughts it is its command, where one can be read from it."""
    if state not in ("no_thoughts", "actions"):
        return text
    command = parse_action(text, multiline=True).command
    return text if command is None else render_action("", command)


def represented(messages: Sequence[Message], state: Representation) -> list[Message]:
    """A conversation as a reward model of this representation reads it: its trained turns, and what lies between them."""
    first = next((i for i, m in enumerate(messages) if m.role == "assistant" and m.loss), len(messages))
    out = list(messages)
    for i, m in enumerate(messages[first:], first):
        text = turn_text(m.content, state) if m.role == "assistant" else observation_text(m.content, state)
        out[i] = dataclasses.replace(m, content=text)
    return out


@dataclasses.dataclass(eq=False)
class Encoder:
    """Turns states and trajectories into segments, each tokenised once.

    Attributes:
      chat: tokenizer and template.
      specs: environment name -> its texts.
      reader: who will read the segments.
      examples: worked examples shown to the policy.
      state: what is read of a state.
    """

    chat: Chat
    specs: Mapping[str, EnvSpec]
    reader: Reader = "policy"
    examples: int = 0
    state: Representation = "default"

    def __post_init__(self) -> None:
        self._known: weakref.WeakKeyDictionary[State, tuple[Segment, ...]] = weakref.WeakKeyDictionary()

    def history(self, state: State) -> tuple[Segment, ...]:
        """Segments up to where the next turn begins: what a policy continues. The state must have been executed."""
        if state not in self._known:
            assert state.outcome is not None
            if state.parent is None:
                self._known[state] = (self.prompt(state.task, state.goal, state.outcome.observation),)
            else:
                self._known[state] = (*self._acted(state), self.observation(state.outcome.observation))
        return self._known[state]

    def turn(self, state: State) -> tuple[Segment, ...]:
        """Segments up to the end of the state's last action, or of what was observed then: what a value is read from.

        Raises:
          UserError: the observation is to be read, and the action was not executed yet.
        """
        if self.state != "last_observation":
            return self._acted(state)
        if state.outcome is None:
            raise UserError(
                "this reward model reads what was observed after an action, but the search scores actions before it executes them; "
                "train one without --config.state=last_observation"
            )
        return self.history(state)

    def _acted(self, state: State) -> tuple[Segment, ...]:
        assert state.parent is not None
        assert state.action is not None
        return (*self.history(state.parent), self.action(state.action))

    def trajectory(self, trajectory: Trajectory) -> list[Segment]:
        """All segments of a trajectory up to its last action."""
        segments = [self.prompt(trajectory.task, trajectory.goal, trajectory.observation)]
        for i, step in enumerate(trajectory.steps):
            if i:
                segments.append(self.observation(trajectory.steps[i - 1].outcome.observation))
            segments.append(self.action(step.action))
        return segments

    def prompt(self, task: Task, goal: str, observation: str) -> Segment:
        """Everything before the first turn.

        Raises:
          UserError: nothing says what the reader is told about the task's environment.
        """
        if task.env not in self.specs:
            known = ", ".join(self.specs) or "none"
            raise UserError(f"nothing is known of environment {task.env!r} (task {task.id}); known here: {known}")
        spec = self.specs[task.env].texts(task)
        return self.chat.prompt(opening(spec, goal, observation, reader=self.reader, examples=self.examples))

    def observation(self, text: str) -> Segment:
        """What lies between two turns."""
        return self.chat.observation(observation_text(text, self.state))

    def action(self, action: Action) -> Segment:
        """The very ids that were sampled, if they are ids of this tokenizer (a policy may have another); else the text.

        Of a turn without its thought there are no such ids.
        """
        if (text := turn_text(action.text, self.state)) != action.text:
            return self.chat.action(text)
        ids = action.tokens
        if ids and max(ids) < len(self.chat.tokenizer) and self.chat.decode(ids) == action.text:
            return self.chat.sampled(ids)
        return self.chat.action(action.text)


def transcript(spec: EnvSpec, trajectory: Trajectory) -> list[Message]:
    """A trajectory as chat messages, as the policy saw it."""
    messages = opening(spec.texts(trajectory.task), trajectory.goal, trajectory.observation, reader="policy")
    for step in _all_but_last_observation(trajectory.steps):
        messages += step
    return messages


def _all_but_last_observation(steps: Sequence[Step]) -> list[list[Message]]:
    out = []
    for i, step in enumerate(steps):
        turn = [Message("assistant", step.action.text, loss=True)]
        if i + 1 < len(steps):
            turn.append(Message("user", step.outcome.observation))
        out.append(turn)
    return out
