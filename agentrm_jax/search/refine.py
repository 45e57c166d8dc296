"""Refine: attempts one after another, each told the reward model's verdict on the best one so far (after Reflexion, arXiv 2303.11366)."""

import dataclasses
import itertools
import math
from collections.abc import Sequence

from agentrm_jax.search import aggregate as agg
from agentrm_jax.search.best_of_n import best_of, judge
from agentrm_jax.search.concurrency import attempt
from agentrm_jax.search.result import Candidate, Result
from agentrm_jax.search.turns import Command, command_of, is_live, turn_seed
from agentrm_jax.types import Environments, Outcome, Policy, RewardModel, State, Task, UserError

COMMANDS, CHARACTERS = 40, 200  # told of an attempt, and of a command


async def refine(
    task: Task,
    policy: Policy,
    envs: Environments,
    reward_model: RewardModel,
    *,
    attempts: int = 3,
    temperature: float = 0.7,
    seed: int = 0,
    aggregate: str = "last",
    command: Command = command_of,
) -> Result:
    """Makes `attempts` whole trajectories in turn and picks the one with the highest score.

    From the second on, the policy's prompt ends with a note (`note`): the commands of the best attempt so far, what the reward
    model expected after each, and its score. Decisions:

    - Published reflection writes the note with a language model after seeing the outcome. Here the verdict is the reward model's
      and the note is made from it by rule: nothing is known of the outcome, and a policy that cannot reflect need not.
    - Every attempt starts from the reset environment. The note stands in what the policy reads only: the reward model scores the
      attempt as if there had been none, and so it is recorded.
    - The best attempt is told, not the last: a worse one teaches less and would make the history of attempts matter. So each
      attempt depends on the best score before it, and attempts of a task cannot run side by side.
    - Attempt i draws as sample i of best-of-n does; one attempt is plain sampling. If attempts are lost, the next is told of the
      best of the others, or of none.
    - Every step is scored, since steps are told. A missing score is told as unknown, and never wins.

    Its counts also hold `told`, the attempts that read a note.

    Attempts that are lost are left out and counted; raises TaskFailure if all are.
    """
    agg.check(aggregate)
    if attempts < 1:
        raise UserError(f"refine needs at least 1 attempt, got {attempts}")
    root = await envs.reset(task)
    candidates: list[Candidate] = []
    told = 0
    for i in range(attempts):
        best = candidates[agg.rank([c.score for c in candidates])[0]] if candidates else None
        text = note(best, command) if best else ""
        told += bool(text)
        end = await attempt(_attempt(root, text, policy, envs, temperature=temperature, seed=seed, sample=i))
        if end is not None:
            candidates += await judge({i: end}, reward_model, aggregate, all_steps=True)
    result = best_of(candidates, attempts, task)
    return dataclasses.replace(result, counts={**result.counts, "told": told})


async def _attempt(
    root: State, text: str, policy: Policy, envs: Environments, *, temperature: float, seed: int, sample: int
) -> State:
    """A trajectory from `root` by a policy that reads `text` at the end of its prompt; its states know nothing of it."""
    assert root.outcome is not None
    state, read = root, root
    if text:
        told = Outcome(f"{root.outcome.observation}\n\n{text}")
        read = dataclasses.replace(root, outcome=told)
    while is_live(state):
        turn = turn_seed(state, seed, sample)
        [action] = await policy.propose(read, 1, temperature=temperature, seed=turn)
        state = await envs.step(state, action)
        read = dataclasses.replace(state, parent=read)
    return state


def note(best: Candidate, command: Command = command_of) -> str:
    """What the next attempt is told of the best one so far: its first `COMMANDS` commands, scores, and what to do about it."""
    steps = list(zip(best.state.path()[1:], best.step_scores, strict=True))
    lines = [f"{i}. {_short(command(state))} ({_said(score)})" for i, (state, score) in enumerate(steps, 1)]
    left_out = [f"and {len(lines) - COMMANDS} more"] if len(lines) > COMMANDS else []
    return "\n".join(
        [
            "You have tried this task before. These were your actions, and in brackets what a judge expected of the task after each, "
            "between 0 and 1:",
            *lines[:COMMANDS],
            *left_out,
            f"The judge gave this attempt {_said(best.score)}.{_drop([score for _, score in steps])} "
            "The task starts again now. Do it better.",
        ]
    )


def _drop(scores: Sequence[float]) -> str:
    """Names the step after which expectations fell most, if they fell."""
    falls = [(before - after, i) for i, (before, after) in enumerate(itertools.pairwise(scores), 2)]
    worst = max((fall for fall in falls if fall[0] > 0), default=None)  # no comparison with a missing score is true
    return f" Action {worst[1]} lowered it most." if worst else ""


def _short(text: str) -> str:
    return text if len(text) <= CHARACTERS else text[:CHARACTERS] + "..."


def _said(score: float) -> str:
    return "unknown" if math.isnan(score) else f"{score:.2f}"
