"""Step-level beam search steered by the reward model (paper 1.6, algorithms 7)."""

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Sequence

from agentrm_jax.search import aggregate as agg
from agentrm_jax.search.concurrency import attempt, together
from agentrm_jax.search.result import Candidate, Result, settle
from agentrm_jax.search.turns import Command, command_of, distinct, execute, scored, turn_seed
from agentrm_jax.types import Environments, Policy, RewardModel, Task


async def beam(
    task: Task,
    policy: Policy,
    envs: Environments,
    reward_model: RewardModel,
    *,
    width: int = 5,
    branch: int = 5,
    temperature: float = 0.7,
    seed: int = 0,
    aggregate: str = "last",
    merge_duplicates: bool = True,
    execute_first: bool = False,
    max_steps: int | None = None,
    command: Command = command_of,
) -> Result:
    """Beam search with `width` (W1) kept trajectories and `branch` (W2) proposals for each.

    Round 1 draws W1 x W2 turns at the root. Every round scores all proposals in one call, keeps the best and draws W2
    turns after each. What the paper leaves open is decided so (algorithms 7.3):

    - Proposals are scored before they are executed, since the score does not see the last outcome: only kept ones
      cost an environment step. `execute_first` is for reward models that read the last observation.
    - Equal commands after the same state are merged into the first of them (`merge_duplicates`): they lead to the same
      environment state and would crowd out others. Equal commands after different states are not.
    - A finished trajectory keeps its slot, and live ones compete for the rest. The search ends when every slot is
      finished, or after `max_steps` rounds. The final pick is the best score among the finished; an unfinished one is
      picked only if there is none (`Result.finished`).
    - A proposal that cannot be executed is dropped and the next best takes its place; so is a slot whose history grew
      too long to draw a turn after it.
    - A slot's score is the `aggregate` of its step scores; missing scores rank last; ties go to the lowest slot and
      sample.
    """
    agg.check(aggregate)
    counts: Counter[str] = Counter(faults=0, duplicates=0, unscored=0)
    rounds = Rounds(
        policy,
        envs,
        reward_model,
        branch,
        temperature,
        seed,
        aggregate,
        merge_duplicates,
        execute_first,
        command,
        counts,
    )
    root = Candidate(await envs.reset(task), math.nan)
    most = task.max_steps if max_steps is None else min(max_steps, task.max_steps)
    return settle(await rounds.run([root], width, most), counts)


def by_score(candidates: Sequence[Candidate]) -> list[int]:
    """Indices of candidates from best to worst."""
    return agg.rank([c.score for c in candidates])


@dataclasses.dataclass(frozen=True)
class Rounds:
    """The rounds of a beam search, and what stays the same in all of them.

    Attributes:
      counts: is added to: `faults`, `duplicates`, `unscored`.
      order: indices of the proposals of a round in the order in which they are kept.

    The others are settings of `beam`.
    """

    policy: Policy
    envs: Environments
    reward_model: RewardModel
    branch: int
    temperature: float
    seed: int
    aggregate: str
    merge_duplicates: bool
    execute_first: bool
    command: Command
    counts: Counter[str]
    order: Callable[[Sequence[Candidate]], list[int]] = by_score

    async def run(self, start: Sequence[Candidate], width: int, most: int, *, slot: int = 0) -> list[Candidate]:
        """Up to `most` rounds with `width` slots, from trajectories that hold slots already.

        Args:
          slot: names the draws of the first slot; further ones count up from it.

        Returns: the finished trajectories in order of finishing, then those that are not.
        """
        finished = [c for c in start if c.state.done]
        live = [c for c in start if not c.state.done]
        for _ in range(most):
            free = width - len(finished)
            if not live or not free:
                break
            draws = self.branch * (width if live[0].state.parent is None else 1)
            kept = await self.best(live, draws, free, slot=slot)
            if not kept:  # every proposal was lost to a fault: what is live stays as it is, unfinished
                break
            finished += [c for c in kept if c.state.done]
            live = [c for c in kept if not c.state.done]
        return [*finished, *live]

    async def best(self, live: Sequence[Candidate], draws: int, free: int, *, slot: int = 0) -> list[Candidate]:
        """One round: `draws` turns after each of `live`, and the first `free` of them all in `order`, executed.

        Fewer are returned where there are fewer that differ and can be executed.
        """
        proposals = await together(self._propose(c, draws, slot + i) for i, c in enumerate(live))
        if self.merge_duplicates:
            proposals, drawn = [self._distinct(siblings) for siblings in proposals], proposals
            self.counts["duplicates"] += sum(map(len, drawn)) - sum(map(len, proposals))
        candidates = [c for siblings in proposals for c in siblings]
        if self.execute_first:
            candidates = await self._execute(candidates, len(candidates))
        scores = await scored(self.reward_model, [c.state for c in candidates])
        self.counts["unscored"] += agg.missing(scores)
        candidates = [c.scored(s, self.aggregate) for c, s in zip(candidates, scores, strict=True)]
        ranked = [candidates[i] for i in self.order(candidates)]
        return ranked[:free] if self.execute_first else await self._execute(ranked, free)

    async def _propose(self, candidate: Candidate, draws: int, slot: int) -> list[Candidate]:
        state = candidate.state
        turn = turn_seed(state, self.seed, slot)
        actions = await attempt(self.policy.propose(state, draws, temperature=self.temperature, seed=turn))
        self.counts["faults"] += actions is None
        return [dataclasses.replace(candidate, state=state.propose(a)) for a in actions or []]

    def _distinct(self, siblings: list[Candidate]) -> list[Candidate]:
        firsts = {id(state) for state in distinct((c.state for c in siblings), self.command)}
        return [c for c in siblings if id(c.state) in firsts]

    async def _execute(self, ranked: list[Candidate], free: int) -> list[Candidate]:
        """The first `free` proposals that can be executed, in the order given."""
        done: list[Candidate] = []
        while ranked and len(done) < free:
            batch, ranked = ranked[: free - len(done)], ranked[free - len(done) :]
            states = await together(attempt(execute(self.envs, c.state)) for c in batch)
            self.counts["faults"] += sum(s is None for s in states)
            done += [dataclasses.replace(c, state=s) for c, s in zip(batch, states, strict=True) if s is not None]
        return done
