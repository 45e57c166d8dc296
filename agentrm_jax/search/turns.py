"""What all search methods share about a single turn: its seed, its command, whether there is one to take, its score."""

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence

from agentrm_jax.replies import parse_action
from agentrm_jax.types import Environments, RewardModel, State

Command = Callable[[State], str]  # reads the command out of a state whose last action has been proposed


def derive(seed: int, *path: int | str) -> int:
    """A seed in [0, 2^31) for one use named by `path`; the same on every machine and in every process."""
    digest = hashlib.blake2b(repr((seed, *path)).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") >> 1


def turn_seed(state: State, seed: int, sample: int) -> int:
    """Seed of the turn after `state` in trajectory (or beam slot) `sample`.

    It depends on the task, the sample and the depth only: not on how many samples there are, nor on what else is in
    flight. Slot 0 of a beam, sample 0 of best-of-n and a plain rollout share it, so that width one is plain sampling
    in all of them.
    """
    return derive(seed, state.task.key, sample, state.depth)


def is_live(state: State) -> bool:
    """Whether another turn can be taken: the episode is not over and its step limit is not reached."""
    return not state.done and state.depth < state.task.max_steps


def command_of(state: State) -> str:
    """The command of the proposed last action, for recognising equal ones.

    It is read by the rule of `agentrm_jax.replies`, lines included, with white space collapsed; a turn without a command stands for
    itself. An environment may take less of a turn as its command (one line only): beam, lookahead and exploration take
    `command=`, the reader of the environments that are searched.
    """
    assert state.action is not None
    text = state.action.text
    return " ".join((parse_action(text, multiline=True).command or text).split())


def distinct(proposals: Iterable[State], command: Command) -> list[State]:
    """The first proposal of every command, in order.

    All proposals follow the same state: equal commands lead to equal environment states and would only take up width.
    """
    first: dict[str, State] = {}
    for state in proposals:
        first.setdefault(command(state), state)
    return list(first.values())


async def execute(envs: Environments, proposal: State) -> State:
    """The successor that `proposal` proposes, with its outcome. Raises EnvironmentFault."""
    assert proposal.parent is not None
    assert proposal.action is not None
    return await envs.step(proposal.parent, proposal.action)


async def scored(reward_model: RewardModel, states: Sequence[State]) -> list[float]:
    """One score for each state, from one call (a listwise judge sees all candidates); a missing score is NaN."""
    if not states:
        return []
    scores = await reward_model.score(states)
    if len(scores) != len(states):
        raise RuntimeError(f"the reward model gave {len(scores)} scores for {len(states)} states")
    return [math.nan if s is None else float(s) for s in scores]
