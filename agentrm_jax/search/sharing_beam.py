"""Beam search that prefers trajectories which share their past (after ETS, arXiv 2502.13575)."""

import functools
import math
from collections import Counter
from collections.abc import Sequence

from agentrm_jax.search import aggregate as agg
from agentrm_jax.search.beam import Rounds
from agentrm_jax.search.result import Candidate, Result, settle
from agentrm_jax.search.turns import Command, command_of
from agentrm_jax.types import Environments, Policy, RewardModel, State, Task


async def sharing_beam(
    task: Task,
    policy: Policy,
    envs: Environments,
    reward_model: RewardModel,
    *,
    width: int = 5,
    branch: int = 5,
    unique_weight: float = 0.2,
    temperature: float = 0.7,
    seed: int = 0,
    aggregate: str = "last",
    command: Command = command_of,
) -> Result:
    """Beam search that counts, beside scores, what the kept trajectories do not share.

    Models cache what trajectories have in common once, so a beam whose trajectories parted late needs less memory and
    leaves room for more tasks at once. It is `beam`, apart from which proposals of a round are kept. Decisions:

    - They are taken one by one, each time the one with the highest score - `unique_weight` x (text it would add) /
      (text of all proposals of the round, each turn and observation once). So the weight is a difference of scores: what
      a trajectory must be better by if keeping it meant keeping everything. At 0 this is beam search.
    - Text a proposal would add is that of turns and observations on its path which no taken proposal has; the task's
      prompt is shared by all. It is counted in characters, since a search knows no tokenizer.
    - Published: a linear program over the same two terms and one that keeps groups of similar texts represented, and
      fewer trajectories with more draws each. Here equal commands are merged, which leaves no copies to keep apart,
      the number of trajectories stays, and taking them one by one is near enough to the best set.
    - A missing score ranks last, whatever its trajectory shares.
    """
    agg.check(aggregate)
    counts: Counter[str] = Counter(faults=0, duplicates=0, unscored=0)
    order = functools.partial(by_score_and_text, weight=unique_weight)
    rounds = Rounds(
        policy, envs, reward_model, branch, temperature, seed, aggregate, True, False, command, counts, order
    )
    root = Candidate(await envs.reset(task), math.nan)
    return settle(await rounds.run([root], width, task.max_steps), counts)


def by_score_and_text(candidates: Sequence[Candidate], weight: float) -> list[int]:
    """Indices of candidates in the order in which `sharing_beam` takes them; ties go to the better score, then the first."""
    paths = [c.state.path()[1:] for c in candidates]
    sizes = {state: _size(state) for path in paths for state in path}
    total = max(sum(sizes.values()), 1)
    taken: list[int] = []
    present: set[State] = set()
    left = agg.rank([c.score for c in candidates])

    def worth(i: int) -> float:
        added = sum(sizes[state] for state in paths[i] if state not in present)
        return -math.inf if math.isnan(candidates[i].score) else candidates[i].score - weight * added / total

    while left:
        best = max(left, key=worth)
        left.remove(best)
        taken.append(best)
        present.update(paths[best])
    return taken


def _size(state: State) -> int:
    """Characters of a turn and of what it was answered, if it was."""
    assert state.action is not None
    return len(state.action.text) + (len(state.outcome.observation) if state.outcome else 0)
