"""Exploration trees for explicit reward-model data (paper 1.2, algorithms 2.0).

One iteration selects a leaf by UCB, draws k turns after it, merges equal commands into children, runs n simulations
from each child to the end of the episode, and adds their returns to the child and everything above it. Three repairs
of the published description, without which its statistics are not what they seem (algorithms 2.0):

1. A child starts with N = n, its own simulations. Then V is the plain mean, and N the number, of the returns of all
   simulations that were started at the node or below it; the root has none of its own. (Starting at 0 loses them at
   the first expansion.)
2. Terminal nodes and nodes all of whose children are closed are closed and never selected, so the search cannot stall
   on a terminal leaf; it ends early when the root is closed.
3. A simulation is counted once, where it was started and above: selecting a leaf again never adds its return again.

Simulations of the greedy policy are cached: their states stay in the tree below the child they started from, with
N = 0 as long as nothing was started there. If an expansion proposes a command whose successor is on a cached rollout,
that node becomes the child, with its greedy wording: no environment step is taken, and its simulation is the rest of the
cached rollout, read but not run. It still counts as the child's own simulation (N = 1), as any other child has one.
"""

import dataclasses
import math
import operator
from collections import Counter
from collections.abc import Callable, Collection
from typing import Literal

from agentrm_jax.search.concurrency import attempt, together
from agentrm_jax.search.greedy import rollout
from agentrm_jax.search.result import Candidate, Result
from agentrm_jax.search.turns import Command, command_of, derive, is_live, turn_seed
from agentrm_jax.types import Action, Environments, Policy, SearchTree, State, Task, TreeNode, UserError


@dataclasses.dataclass(eq=False, slots=True)
class Node:
    """A state under exploration.

    Attributes:
      returns: of the simulations started here; empty at the root and at nodes that only lie on a cached rollout.
      visits, total, squares, low, high: count, sum, sum of squares, least and greatest of all returns at or below.
      multiplicity: sampled proposals that were this command.
      children: in order of proposal. known: all executed successors by command, cached rollouts included.
      greedy: successor by the greedy policy, once it is known.
    """

    state: State
    parent: "Node | None" = None
    returns: list[float] = dataclasses.field(default_factory=list)
    visits: int = 0
    total: float = 0.0
    squares: float = 0.0
    low: float = 0.0
    high: float = 0.0
    multiplicity: int = 1
    expanded: bool = False
    closed: bool = False
    children: "list[Node]" = dataclasses.field(default_factory=list)
    known: "dict[str, Node]" = dataclasses.field(default_factory=dict)
    greedy: "Node | None" = None

    @property
    def value(self) -> float:
        return self.total / self.visits if self.visits else 0.0


def ucb(value: float, visits: int, parent_visits: int, c: float) -> float:
    """V + c sqrt(ln N_parent / (1 + N)); the second term is 0 while the parent has at most one visit."""
    return value + c * math.sqrt(math.log(max(parent_visits, 1)) / (1 + visits))


def select(
    root: Node, c: float, blocked: Collection[Node] = (), value: Callable[[Node], float] = operator.attrgetter("value")
) -> Node:
    """The leaf reached by taking the best open child from `root` on; ties go to the child proposed first.

    `root` must be neither closed nor blocked; then there is an open leaf below it. `value` is the V of UCB.
    """
    node = root
    while node.expanded:
        open_children = [x for x in node.children if not x.closed and x not in blocked]
        parent = node.visits
        node = max(open_children, key=lambda x: ucb(value(x), x.visits, parent, c))
    return node


def select_many(root: Node, c: float, count: int) -> list[Node]:
    """Up to `count` different leaves: the best, then the best without it, and so on; empty if `root` is closed."""
    leaves: list[Node] = []
    blocked: set[Node] = {root} if root.closed else set()
    while len(leaves) < count and root not in blocked:
        node: Node | None = select(root, c, blocked)
        assert node is not None
        leaves.append(node)
        while node is not None and all(x.closed or x in blocked for x in node.children):
            blocked.add(node)
            node = node.parent
    return leaves


def backup(leaf: Node, children: list[Node]) -> None:
    """Makes `children`, which hold their own returns, the children of `leaf`: statistics, and what is now closed.

    A child that is given closed, as one without returns should be, stays so.
    """
    leaf.expanded = True
    leaf.children = children
    for child in children:
        child.closed = child.closed or not is_live(child.state)
        node: Node | None = child
        while node is not None:
            _add(node, child.returns)
            node = node.parent
    node = leaf
    while node is not None and all(x.closed for x in node.children):
        node.closed = True
        node = node.parent


def _add(node: Node, returns: list[float]) -> None:
    if not returns:
        return
    node.low = min(returns) if node.visits == 0 else min(node.low, *returns)
    node.high = max(returns) if node.visits == 0 else max(node.high, *returns)
    node.visits += len(returns)
    node.total += sum(returns)
    node.squares += sum(g * g for g in returns)


async def explore(
    task: Task,
    policy: Policy,
    envs: Environments,
    *,
    iterations: int = 40,
    k: int = 5,
    n: int = 1,
    c: float = 0.5,
    temperature: float = 0.7,
    rollout_temperature: float = 0.0,
    outcome: Literal["reward", "progress", "success"] = "reward",
    leaves_per_iteration: int = 1,
    seed: int = 0,
    command: Command = command_of,
) -> Result:
    """Explores one task; the module's docstring says what is counted. The result holds the tree and the best episode in it.

    Defaults are the paper's, which gives no temperature.

    Args:
      iterations: omega. The search ends sooner if nothing is left to explore.
      k: proposals in an expansion.
      n: simulations from a new child. More than one needs `rollout_temperature` > 0 (greedy ones are all the same);
        such simulations are not cached.
      c: weight of exploration.
      outcome: which field of the last outcome is the return.
      leaves_per_iteration: leaves expanded at once with the statistics before any of them; 1 is the paper's search.
      command: reads the command by which proposals are merged.

    Proposals that cannot be executed or simulated (`TaskFailure`) are left out and counted, and a leaf whose history is
    too long for a proposal is closed; a fault at reset is raised. The tree also holds the states of cached rollouts
    (`visits` 0). The result depends on the seed only, not on timing.
    """
    if n > 1 and rollout_temperature == 0:
        raise UserError(f"{n} simulations of a greedy policy are copies: set n to 1 or rollout_temperature above 0")
    root = Node(await envs.reset(task))
    root.closed = not is_live(root.state)
    search = _Search(policy, envs, k, n, temperature, rollout_temperature, outcome, seed, command, Counter())
    done = 0
    while done < iterations and (leaves := select_many(root, c, leaves_per_iteration)):
        grown = await together(search.children(leaf) for leaf in leaves)
        for leaf, children in zip(leaves, grown, strict=True):
            backup(leaf, children)
        done += 1
    meta = {
        "method": "mcts",
        "iterations": done,
        "exhausted": root.closed,
        "duplicates": search.counts["duplicates"],
        "faults": search.counts["faults"],
        "options": {
            "iterations": iterations,
            "k": k,
            "n": n,
            "c": c,
            "temperature": temperature,
            "rollout_temperature": rollout_temperature,
            "outcome": outcome,
            "leaves_per_iteration": leaves_per_iteration,
            "seed": seed,
        },
    }
    best = max(_ends(root), key=_reward)
    tree = SearchTree(task, root.state.goal, _records(root), meta)
    counts = {name: search.counts[name] for name in ("duplicates", "faults")}
    return Result((Candidate(best, math.nan),), 0, counts, tree)


@dataclasses.dataclass(frozen=True)
class _Search:
    """What stays the same during one search."""

    policy: Policy
    envs: Environments
    k: int
    n: int
    temperature: float
    rollout_temperature: float
    outcome: str
    seed: int
    command: Command
    counts: Counter[str]

    async def children(self, leaf: Node) -> list[Node]:
        """Expansion and simulation: new children with their returns, as proposed. Changes nothing above `leaf`."""
        seed = derive(self.seed, "expand", leaf.state.task.key, *commands(leaf, self.command))
        actions = await attempt(self.policy.propose(leaf.state, self.k, temperature=self.temperature, seed=seed))
        if actions is None:
            self.counts["faults"] += 1
            return []
        merged: dict[str, list[Action]] = {}
        for action in actions:
            merged.setdefault(self.command(leaf.state.propose(action)), []).append(action)
        grown = await together(attempt(self._child(leaf, same[0])) for same in merged.values())
        children = []
        for child, same in zip(grown, merged.values(), strict=True):
            if child is not None:
                child.multiplicity = len(same)
                children.append(child)
        self.counts["duplicates"] += len(actions) - len(merged)
        self.counts["faults"] += len(merged) - len(children)
        return children

    async def _child(self, leaf: Node, action: Action) -> Node:
        child = await self._successor(leaf, action)
        returns = await self._simulate(child)
        child.returns = returns  # only now: a child whose simulation failed must not look like one
        return child

    async def _successor(self, node: Node, action: Action) -> Node:
        """The node after `action`; steps the environment if that command was never executed here."""
        key = self.command(node.state.propose(action))
        if key not in node.known:
            node.known[key] = Node(await self.envs.step(node.state, action), node)
        return node.known[key]

    async def _simulate(self, child: Node) -> list[float]:
        """Returns of the simulations from `child`; a terminal child's is its own outcome."""
        if self.rollout_temperature == 0:
            return [self._return((await self._greedy_end(child)).state)]
        seed = derive(self.seed, "simulate", *commands(child, self.command))
        ends = await together(
            rollout(child.state, self.policy, self.envs, temperature=self.rollout_temperature, seed=seed, sample=i)
            for i in range(self.n)
        )
        return [self._return(end) for end in ends]

    async def _greedy_end(self, node: Node) -> Node:
        """The end of the greedy rollout from `node`, running what is not cached yet."""
        while is_live(node.state):
            if node.greedy is None:
                seed = turn_seed(node.state, self.seed, 0)
                [action] = await self.policy.propose(node.state, 1, temperature=0.0, seed=seed)
                node.greedy = await self._successor(node, action)
            node = node.greedy
        return node

    def _return(self, end: State) -> float:
        return float(getattr(end.outcome, self.outcome))


def _reward(state: State) -> float:
    return state.outcome.reward if state.outcome else 0.0


def _ends(root: Node) -> list[State]:
    """The ended episodes below a node, depth first; the root's own state if there are none."""
    ends: list[State] = []
    stack = [root]
    while stack:
        node = stack.pop()
        if node.state.done:
            ends.append(node.state)
        cached = [x for _, x in sorted(node.known.items()) if x not in node.children]
        stack += reversed(node.children + cached)
    return ends or [root.state]


def commands(node: Node, command: Command) -> list[str]:
    """The path to a node in words: names its seeds, so that they do not depend on the order of expansions."""
    return [command(state) for state in node.state.path()[1:]]


def _records(root: Node) -> tuple[TreeNode, ...]:
    """All nodes in depth-first order: children in order of proposal, then cached rollouts."""
    records: list[TreeNode] = []
    stack = [(root, -1)]
    while stack:
        node, parent = stack.pop()
        assert node.state.outcome is not None
        records.append(
            TreeNode(
                parent=parent,
                action=node.state.action,
                outcome=node.state.outcome,
                visits=node.visits,
                return_sum=node.total,
                return_sq_sum=node.squares,
                return_min=node.low,
                return_max=node.high,
                multiplicity=node.multiplicity,
                expanded=node.expanded,
                closed=node.closed or not is_live(node.state),
            )
        )
        cached = [x for _, x in sorted(node.known.items()) if x not in node.children]
        index = len(records) - 1
        stack += [(x, index) for x in reversed(node.children + cached)]
    return tuple(records)
