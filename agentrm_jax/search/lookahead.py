"""Lookahead: at every turn the proposal that the reward model likes best."""

from collections import Counter

from agentrm_jax.search import aggregate as agg
from agentrm_jax.search.concurrency import attempt, together
from agentrm_jax.search.greedy import rollout
from agentrm_jax.search.result import Candidate, Result
from agentrm_jax.search.turns import Command, command_of, distinct, execute, is_live, scored, turn_seed
from agentrm_jax.types import Environments, Policy, RewardModel, State, Task


async def lookahead(
    task: Task,
    policy: Policy,
    envs: Environments,
    reward_model: RewardModel,
    *,
    samples: int = 5,
    depth: int = 0,
    temperature: float = 0.7,
    seed: int = 0,
    command: Command = command_of,
) -> Result:
    """Draws `samples` proposals at every turn, scores them and executes the best; equal commands are merged.

    With `depth` 0 proposals are scored before they are executed, which is beam search with W1 = 1. With `depth` d
    each proposal is executed, the greedy policy goes on for up to d turns, and the score is read there. Proposals
    that cannot be executed are dropped; if none can, or the history grew too long, the trajectory ends unfinished. Its
    score is that of the last turn.
    """
    counts: Counter[str] = Counter(faults=0, duplicates=0, unscored=0)
    state = await envs.reset(task)
    step_scores: list[float] = []

    async def look(proposal: State) -> tuple[State, State]:
        executed = await execute(envs, proposal)
        return executed, await rollout(executed, policy, envs, max_turns=depth)

    while is_live(state):
        turn = turn_seed(state, seed, 0)
        actions = await attempt(policy.propose(state, samples, temperature=temperature, seed=turn))
        if actions is None:
            counts["faults"] += 1
            break
        options = distinct([state.propose(a) for a in actions], command)
        counts["duplicates"] += len(actions) - len(options)
        seen = options
        if depth:
            looked = await together(attempt(look(option)) for option in options)
            counts["faults"] += sum(pair is None for pair in looked)
            options = [pair[0] for pair in looked if pair is not None]
            seen = [pair[1] for pair in looked if pair is not None]
        scores = await scored(reward_model, seen)
        counts["unscored"] += agg.missing(scores)
        for i in agg.rank(scores):
            successor = options[i] if depth else await attempt(execute(envs, options[i]))
            if successor is not None:
                break
            counts["faults"] += 1
        else:
            break
        state = successor
        step_scores.append(scores[i])
    return Result((Candidate(state, agg.aggregate(step_scores), tuple(step_scores)),), 0, dict(counts))
