"""Tree search at test time: the reward model's value at the leaves, moves by visits, the best finished episode wins.

It shares its nodes, its selection (UCB) and its statistics with exploration (`mcts.py`). Where exploration reads the
environment's outcome at the end of a simulation, this search reads the reward model's score and nothing else: what an
episode was worth is not known at test time.
"""

import dataclasses
import math
import operator
from collections import Counter
from typing import Literal, get_args

from agentrm_jax.search import mcts
from agentrm_jax.search.concurrency import attempt, together
from agentrm_jax.search.greedy import rollout
from agentrm_jax.search.mcts import Node
from agentrm_jax.search.result import Candidate, Result, settle
from agentrm_jax.search.turns import Command, command_of, derive, distinct, execute, is_live, scored
from agentrm_jax.types import Environments, Policy, RewardModel, State, Task, UserError

Backup = Literal["mean", "max"]


async def guided_mcts(
    task: Task,
    policy: Policy,
    envs: Environments,
    reward_model: RewardModel,
    *,
    iterations: int = 5,
    k: int = 5,
    c: float = 0.5,
    n: int = 1,
    depth: int = 0,
    rollout_temperature: float = 0.0,
    backup: str = "mean",
    temperature: float = 0.7,
    seed: int = 0,
    command: Command = command_of,
) -> Result:
    """Monte-Carlo tree search before every turn, with the reward model's value in the place of simulated outcomes.

    Before every turn it makes `iterations` expansions below the current state: it selects a leaf by UCB, draws `k`
    turns after it, merges equal commands, executes them, and adds their scores to all states above. Then it moves to
    the successor with the most visits and goes on there with what is known below it. Decisions:

    - A score is read at the new state itself (`depth` 0), or where `n` simulations are after up to `depth` turns more;
      a simulation that ends before is scored at its end. Several simulations need a `depth` and a
      `rollout_temperature` above 0: without them they are copies.
    - The value of a state is the `mean` of all scores read at or below it, or their `max` (`backup`). A reward model
      that predicts what the policy will make of a state is averaged over the policy's turns by the mean, which evens
      out its errors; one that predicts what can be made of it needs the maximum, which collects errors upwards.
    - Of several successors with the most visits the one with the best value is taken, then the one proposed first;
      with one iteration a turn this is lookahead that executes what it scores.
    - It does not move to where every way on was lost, while there is another successor.
    - It moves, so it ends: a tree that is only grown from the start need not contain a finished episode. The search
      stops at the end of an episode, or where nothing is left to explore.
    - The final pick is the best score among all finished episodes that were seen, on the way and in simulations too.
      If there are none, the policy goes on alone from where the search stopped.
    - A successor with no score is not explored further. Turns that cannot be executed or simulated are left out.

    Raises UserError for settings that do not fit.
    """
    if backup not in get_args(Backup):
        raise UserError(f"no backup named {backup!r}; use one of {', '.join(get_args(Backup))}")
    if n > 1 and not (depth and rollout_temperature):
        raise UserError(f"{n} simulations would be copies: set n to 1, or depth and rollout_temperature above 0")
    counts: Counter[str] = Counter(faults=0, duplicates=0, unscored=0)
    search = _Search(
        policy, envs, reward_model, k, n, depth, rollout_temperature, temperature, seed, command, counts, []
    )
    value = operator.attrgetter("high" if backup == "max" else "value")
    here = Node(await envs.reset(task))
    while is_live(here.state):
        for _ in range(iterations):
            if here.closed:
                break
            leaf = mcts.select(here, c, value=value)
            mcts.backup(leaf, await search.children(leaf))
        if not here.children:
            break
        ways = [child for child in here.children if not _dead(child)]
        here = max(ways or here.children, key=lambda child: (child.visits, value(child)))
    return settle(search.ends or [await search.alone(here.state)], counts)


def _dead(node: Node) -> bool:
    """Whether nothing below a node can be gone on with, and no episode ended there."""
    return node.closed and not node.state.done and all(map(_dead, node.children))


@dataclasses.dataclass(frozen=True)
class _Search:
    """What stays the same during one search, and the finished episodes it has seen (`ends`)."""

    policy: Policy
    envs: Environments
    reward_model: RewardModel
    k: int
    n: int
    depth: int
    rollout_temperature: float
    temperature: float
    seed: int
    command: Command
    counts: Counter[str]
    ends: list[Candidate]

    async def children(self, leaf: Node) -> list[Node]:
        """The leaf's successors with their scores as returns; those without a score are closed."""
        seed = derive(self.seed, "expand", leaf.state.task.key, *mcts.commands(leaf, self.command))
        actions = await attempt(self.policy.propose(leaf.state, self.k, temperature=self.temperature, seed=seed))
        options = distinct([leaf.state.propose(a) for a in actions or []], self.command)
        grown = [x for x in await together(attempt(self._grow(leaf, option)) for option in options) if x is not None]
        self.counts["duplicates"] += len(actions or []) - len(options)
        self.counts["faults"] += (actions is None) + len(options) - len(grown)
        flat = [end for _, ends in grown for end in ends]
        scores = await scored(self.reward_model, flat)
        self.counts["unscored"] += sum(map(math.isnan, scores))
        self.ends.extend(Candidate(s, score, (score,)) for s, score in zip(flat, scores, strict=True) if s.done)
        rest = iter(scores)
        for child, ends in grown:
            child.returns = [score for score in (next(rest) for _ in ends) if not math.isnan(score)]
            child.closed = not child.returns
        return [child for child, _ in grown]

    async def _grow(self, leaf: Node, proposal: State) -> tuple[Node, list[State]]:
        """The executed successor, and the states to score for it."""
        child = Node(await execute(self.envs, proposal), leaf)
        if not (self.depth and is_live(child.state)):
            return child, [child.state]
        seed = derive(self.seed, "simulate", leaf.state.task.key, *mcts.commands(child, self.command))
        ends = await together(
            rollout(
                child.state,
                self.policy,
                self.envs,
                temperature=self.rollout_temperature,
                seed=seed,
                sample=i,
                max_turns=self.depth,
            )
            for i in range(self.n)
        )
        return child, ends

    async def alone(self, state: State) -> Candidate:
        """What the policy makes of a state by itself; the state, if that cannot be had."""
        end = await attempt(rollout(state, self.policy, self.envs, temperature=self.temperature, seed=self.seed))
        return Candidate(end or state, math.nan)
