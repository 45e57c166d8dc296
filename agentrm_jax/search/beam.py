"""Step-level beam search steered by the reward model (paper 1.6, algorithms 7)."""

import dataclasses
import math
from collections import Counter

from agentrm_jax.search import aggregate as agg
from agentrm_jax.search.concurrency import attempt, together
from agentrm_jax.search.result import Candidate, Result
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
    - A proposal that cannot be executed is dropped and the next best takes its place.
    - A slot's score is the `aggregate` of its step scores; missing scores rank last; ties go to the lowest slot and
      sample.
    """
    agg.check(aggregate)
    counts: Counter[str] = Counter(faults=0, duplicates=0, unscored=0)
    root = Candidate(await envs.reset(task), math.nan)
    finished = [root] if root.state.done else []
    live = [] if root.state.done else [root]
    for _ in range(task.max_steps if max_steps is None else min(max_steps, task.max_steps)):
        free = width - len(finished)
        if not live or not free:
            break
        proposals = await _propose(live, policy, width, branch, temperature, seed)
        if merge_duplicates:
            proposals, drawn = [_distinct(siblings, command) for siblings in proposals], proposals
            counts["duplicates"] += sum(map(len, drawn)) - sum(map(len, proposals))
        candidates = [c for siblings in proposals for c in siblings]
        if execute_first:
            candidates = await _execute(candidates, len(candidates), envs, counts)
        scores = await scored(reward_model, [c.state for c in candidates])
        counts["unscored"] += agg.missing(scores)
        candidates = [_with_score(c, s, aggregate) for c, s in zip(candidates, scores, strict=True)]
        ranked = [candidates[i] for i in agg.rank([c.score for c in candidates])]
        kept = ranked[:free] if execute_first else await _execute(ranked, free, envs, counts)
        if not kept:  # every proposal was lost to a fault: what is live stays as it is, unfinished
            break
        finished += [c for c in kept if c.state.done]
        live = [c for c in kept if not c.state.done]
    pool = tuple(dataclasses.replace(c, sample=i) for i, c in enumerate([*finished, *live]))
    eligible = pool[: len(finished)] or pool
    return Result(pool, agg.rank([c.score for c in eligible])[0], dict(counts))


async def _propose(
    live: list[Candidate], policy: Policy, width: int, branch: int, temperature: float, seed: int
) -> list[list[Candidate]]:
    """For every live slot its proposals; W1 x W2 of them at the root."""

    async def after(slot: int, candidate: Candidate) -> list[Candidate]:
        state = candidate.state
        n = width * branch if state.parent is None else branch
        turn = turn_seed(state, seed, slot)
        actions = await policy.propose(state, n, temperature=temperature, seed=turn)
        return [dataclasses.replace(candidate, state=state.propose(a)) for a in actions]

    return await together(after(slot, c) for slot, c in enumerate(live))


def _distinct(siblings: list[Candidate], command: Command) -> list[Candidate]:
    firsts = {id(state) for state in distinct((c.state for c in siblings), command)}
    return [c for c in siblings if id(c.state) in firsts]


def _with_score(candidate: Candidate, score: float, aggregate: str) -> Candidate:
    step_scores = (*candidate.step_scores, score)
    return dataclasses.replace(candidate, score=agg.aggregate(step_scores, aggregate), step_scores=step_scores)


async def _execute(ranked: list[Candidate], free: int, envs: Environments, counts: Counter[str]) -> list[Candidate]:
    """The first `free` proposals that can be executed, in the order given."""
    done: list[Candidate] = []
    while ranked and len(done) < free:
        batch, ranked = ranked[: free - len(done)], ranked[free - len(done) :]
        states = await together(attempt(execute(envs, c.state)) for c in batch)
        counts["faults"] += sum(s is None for s in states)
        done += [dataclasses.replace(c, state=s) for c, s in zip(batch, states, strict=True) if s is not None]
    return done
