"""Diverse verifier tree search: a budget that is split into subtrees which do not compete."""

import math
from collections import Counter

from agentrm_jax.search import aggregate as agg
from agentrm_jax.search.beam import Rounds
from agentrm_jax.search.concurrency import together
from agentrm_jax.search.result import Candidate, Result, settle
from agentrm_jax.search.turns import Command, command_of
from agentrm_jax.types import Environments, Policy, RewardModel, Task, UserError


async def dvts(
    task: Task,
    policy: Policy,
    envs: Environments,
    reward_model: RewardModel,
    *,
    trees: int = 5,
    width: int = 1,
    branch: int = 5,
    temperature: float = 0.7,
    seed: int = 0,
    aggregate: str = "last",
    command: Command = command_of,
) -> Result:
    """Diverse verifier tree search: `trees` beam searches of `width` slots, which part at their first turn for good.

    It draws, scores and executes as many turns as a beam with `trees` x `width` slots. There one subtree that the
    reward model overrates can take all slots; here it takes its own. Decisions:

    - The first round is that of the wide beam: its proposals are scored together, equal commands are merged, and the
      best of them are dealt out, the best one to the first subtree, the next to the second, and so on. So no two
      subtrees begin with the same command. (Published searches draw every subtree's first turn by itself. That keeps
      texts apart, but where few commands are sensible most subtrees would begin with the same one.)
    - If there are fewer commands than subtrees, the rest begin with those again, from the best one, and draw other
      turns after them; with a command that ends the episode they do not.
    - From then on every subtree is a beam search (`beam`) with scoring calls of its own. Its decisions hold: finished
      trajectories keep their slots, what cannot be executed is replaced by the next best, missing scores rank last.
    - The final pick is the best score among the finished of all subtrees. It compares scores of different calls, so
      they must not depend on what else is in a call.
    - One subtree is a beam search.
    """
    agg.check(aggregate)
    if min(trees, width, branch) < 1:
        raise UserError(f"dvts needs trees, width and branch of at least 1, got {trees}, {width} and {branch}")
    counts: Counter[str] = Counter(faults=0, duplicates=0, unscored=0)
    rounds = Rounds(policy, envs, reward_model, branch, temperature, seed, aggregate, True, False, command, counts)
    root = Candidate(await envs.reset(task), math.nan)
    first = [] if root.state.done else await rounds.best([root], trees * width * branch, trees * width)
    if not first:  # over before it began, or every proposal was lost to a fault
        return settle([root], counts)
    grown = await together(
        rounds.run(hand, width, task.max_steps - 1, slot=tree * width) for tree, hand in enumerate(_deal(first, trees))
    )
    return settle([c for found in grown for c in found], counts)


def _deal(first: list[Candidate], trees: int) -> list[list[Candidate]]:
    """What every subtree begins with: in turns, and again what is not over where there is too little for all."""
    again = [c for c in first if not c.state.done]
    hands = [first[tree::trees] for tree in range(trees)]
    return [hand or ([again[tree % len(again)]] if again else []) for tree, hand in enumerate(hands)]
