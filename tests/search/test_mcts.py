"""Exploration trees: statistics, selection, repairs, caching."""

import asyncio
import dataclasses
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrm_jax.search.mcts import Node, backup, explore, select, select_many, ucb
from agentrm_jax.testing.inline import InlineEnvironments
from agentrm_jax.testing.scripted import ScriptedPolicy, commands_of, listing_policy, turn, uniform_policy
from agentrm_jax.testing.toy_env import SPEC, make_task, word_reward
from agentrm_jax.types import Action, EnvironmentFault, Outcome, State, Task, TooLong, UserError

TASK = make_task(3)


class RandomTree:
    """An environment that is a random tree: where episodes end, what they pay and what cannot be reached is drawn by seed."""

    def __init__(self, seed, ends=0.3, faults=0.0):
        self.seed, self.ends, self.faults, self.steps = seed, ends, faults, 0

    def draw(self, what, word):
        return random.Random(f"{self.seed}{what}{word}").random()

    async def reset(self, task):
        return State(task, "goal", outcome=Outcome(""))

    async def step(self, state, action):
        new = state.propose(action)
        word = "".join(commands_of(new))
        await asyncio.sleep(0)
        if self.draw("fault", word) < self.faults:
            raise EnvironmentFault(word)
        self.steps += 1
        done = new.depth >= state.task.max_steps or self.draw("end", word) < self.ends
        return State(state.task, "goal", state, action, self.outcome(word, done), new.depth)

    def outcome(self, word, done):
        reward = self.draw("reward", word) if done else 0.123  # which must never get into a return
        return Outcome(word, reward, self.draw("progress", word), done, reward > 0.5)

    def greedy_return(self, policy, task, word):
        """The independent truth: what the greedy policy gets after `word`."""
        while not (len(word) >= task.max_steps or self.draw("end", word) < self.ends):
            state = State(task, "goal")
            for letter in word:
                state = state.propose(Action(f"Action: {letter}"))
            word += policy.choose(state, 1, 0.0, 0)[0]
        return self.draw("reward", word)


def grow(envs, policy, task=TASK, **options):
    return asyncio.run(explore(task, policy, envs, **options)).tree


def words(tree):
    """The nodes by the letters on their path."""
    names = []
    for node in tree.nodes:
        names.append("" if node.parent < 0 else names[node.parent] + node.action.text[-1])
    return dict(zip(names, tree.nodes, strict=True))


def golden(iterations):
    return words(grow(InlineEnvironments(SPEC), listing_policy("abc"), iterations=iterations, k=2))


def test_golden_tree_after_three_iterations():
    """Strings over a, b, c with horizon 3; two children (a, b); greedy writes a. N and V of the paper's formulas."""
    expected = {
        "": (6, 0.5730),
        "a": (1, 0.0770),
        "b": (5, 0.6722),
        "ba": (3, 0.7540),
        "baa": (1, 0.7080),
        "bab": (1, 0.8460),
        "bb": (1, 0.3910),
    }
    nodes = golden(3)
    found = {word: (node.visits, round(node.value, 4)) for word, node in nodes.items() if node.visits}
    assert found == expected


def test_golden_order_of_expansion():
    for i, order in enumerate([["", "b", "ba"][:n] for n in range(4)]):
        assert [word for word, node in golden(i).items() if node.expanded] == order


def test_after_the_terminal_leaf_that_stalls_the_published_search_ours_goes_on():
    """Iterations 4 to 6 of the golden vector select the terminal `bab` and change nothing; here it is closed."""
    assert (
        [word for word, node in golden(6).items() if node.expanded]
        == ["", "a", "ab", "b", "ba", "bb"]
        != [word for word, node in golden(3).items() if node.expanded]
    )
    assert golden(3)["ba"].closed
    assert not golden(3)["b"].closed


def test_an_exhausted_tree_ends_the_search():
    tree = grow(InlineEnvironments(SPEC), listing_policy("abc"), iterations=10_000, k=3)
    nodes = words(tree)
    assert tree.meta["iterations"] == 1 + 3 + 9
    assert tree.meta["exhausted"]
    assert all(node.closed for node in tree.nodes)
    assert len(nodes) == 1 + 3 + 9 + 27
    complete = [word_reward(TASK, word) for word in nodes if len(word) == 3]
    assert nodes[""].return_max == max(complete)


def test_ucb_golden():
    assert ucb(0.5, 2, 4, 0.5) == pytest.approx(0.8398889967, abs=1e-10)
    assert ucb(0.5, 0, 1, 0.5) == 0.5  # ln 1: a parent with one visit explores nothing
    assert ucb(0.5, 0, 0, 0.5) == 0.5
    assert ucb(0.5, 2, 4, 0.0) == 0.5


def node(word, value=0.0, visits=1, parent=None, done=False):
    state = State(TASK, "goal", outcome=Outcome(word, done=done))
    return Node(state, parent, visits=visits, total=value * visits, closed=done)


def family(*children, visits=10):
    root = node("", visits=visits)
    root.expanded = True
    root.children = list(children)
    for child in children:
        child.parent = root
    return root


def test_selection_takes_the_highest_ucb_and_the_first_of_equals():
    a, b, c = node("a", 0.5), node("b", 0.6), node("c", 0.6)
    assert select(family(a, b, c), c=0.5) is b
    rarely, often = node("r", 0.5, visits=1), node("o", 0.6, visits=9)
    assert select(family(often, rarely), c=0.5) is rarely
    assert select(family(rarely, often), c=0.0) is often  # greedy on V


def test_selection_never_takes_a_closed_subtree():
    closed, open_ = node("a", 1.0, done=True), node("b", 0.0)
    root = family(closed, open_)
    assert select(root, c=0.5) is open_
    open_.closed = root.closed = True
    assert select_many(root, 0.5, 3) == []


def test_several_leaves_are_the_best_then_the_best_without_it():
    a, b = node("a", 0.9), node("b", 0.2)
    root = family(a, b)
    a.expanded = True
    a.children = [node("aa", 0.1, parent=a), node("ab", 0.9, parent=a)]
    assert select_many(root, 0.0, 1) == [a.children[1]]
    assert select_many(root, 0.0, 9) == [a.children[1], a.children[0], b]


def test_a_leaf_without_children_is_closed_by_its_expansion():
    root = family(node("a", 0.5), node("b", 0.2))
    backup(root.children[0], [])
    assert root.children[0].closed
    assert not root.closed
    backup(root.children[1], [])
    assert root.closed


SHAPES = {
    "seed": st.integers(0, 2**32),
    "ends": st.sampled_from([0.0, 0.2, 0.6]),
    "faults": st.sampled_from([0.0, 0.15]),
    "k": st.integers(1, 4),
    "c": st.sampled_from([0.0, 0.5, 2.0]),
    "leaves": st.integers(1, 3),
    "depth": st.integers(1, 5),
}


@given(**SHAPES)
@settings(max_examples=40, deadline=None)
def test_value_is_the_mean_and_visits_the_number_of_returns_below_after_every_iteration(
    seed, ends, faults, k, c, leaves, depth
):
    task = make_task(depth, max_steps=depth)
    policy = uniform_policy("abcd")
    truth = RandomTree(seed, ends)
    for iterations in range(8):
        envs = RandomTree(seed, ends, faults)
        tree = grow(envs, policy, task, iterations=iterations, k=k, c=c, seed=seed, leaves_per_iteration=leaves)
        nodes = words(tree)
        explored = [word for word, node in nodes.items() if word and node.visits]
        started = {word: truth.greedy_return(policy, task, word) for word in explored}
        for word, found in nodes.items():
            returns = [g for start, g in started.items() if start.startswith(word)]
            assert found.visits == len(returns)
            assert found.value == pytest.approx(sum(returns) / len(returns) if returns else 0.0)
            assert found.return_sq_sum == pytest.approx(sum(g * g for g in returns))
            assert found.return_min == pytest.approx(min(returns, default=0.0))
            assert found.return_max == pytest.approx(max(returns, default=0.0))


@given(**{**SHAPES, "leaves": st.just(1)})
@settings(max_examples=40, deadline=None)
def test_every_iteration_expands_the_leaf_that_ucb_selects_and_closes_what_is_exhausted(
    seed, ends, faults, k, c, leaves, depth
):
    task = make_task(depth, max_steps=depth)
    before = None
    for iterations in range(7):
        envs = RandomTree(seed, ends, faults)
        tree = grow(envs, uniform_policy("abcd"), task, iterations=iterations, k=k, c=c, seed=seed)
        nodes = words(tree)

        def children(word, nodes):
            return [x for x in nodes if x[:-1] == word and x and nodes[x].visits]

        for word, found in nodes.items():
            exhausted = found.expanded and all(nodes[x].closed for x in children(word, nodes))
            assert found.closed == (found.outcome.done or exhausted)
            assert not found.outcome.done or not found.expanded
        if before is not None and not before[""].closed:
            word = ""
            while before[word].expanded:
                parent = before[word].visits
                open_ = [x for x in children(word, before) if not before[x].closed]
                word = max(open_, key=lambda x: ucb(before[x].value, before[x].visits, parent, c))
            assert [x for x in nodes if nodes[x].expanded and not (x in before and before[x].expanded)] == [word]
        elif before is not None:
            assert nodes == before
        before = nodes


@given(seed=st.integers(0, 2**32), ends=st.sampled_from([0.1, 0.5]), faults=st.sampled_from([0.1, 0.9]))
@settings(max_examples=30, deadline=None)
def test_omega_iterations_never_hang(seed, ends, faults):
    task = make_task(4, max_steps=4)
    tree = grow(RandomTree(seed, ends, faults), uniform_policy("ab"), task, iterations=1000, k=3, seed=seed)
    assert tree.meta["exhausted"]
    assert tree.meta["iterations"] <= 1 + 2 + 4 + 8


class Thinking(ScriptedPolicy):
    """Gives another thought to every sample; the greedy thought is empty."""

    async def propose(self, state, n, *, temperature, seed):
        commands = self.choose(state, n, temperature, seed)
        return [turn(c, f"idea {i}" if temperature else "") for i, c in enumerate(commands)]


def test_equal_commands_become_one_child_with_a_multiplicity_whatever_was_thought():
    policy = Thinking(lambda state, n, t, seed: list("babb") if t else ["a"])
    tree = grow(InlineEnvironments(SPEC), policy, iterations=1, k=4)
    nodes = words(tree)
    assert {w: n.multiplicity for w, n in nodes.items() if len(w) == 1} == {"b": 3, "a": 1}
    assert [w for w in nodes if len(w) == 1] == ["b", "a"]  # in order of proposal
    assert nodes["b"].action.text == "Thought: idea 0\nAction: b"
    assert nodes[""].visits == 2
    assert tree.meta["duplicates"] == 2


def test_a_proposal_with_the_command_of_the_cached_rollout_becomes_that_node():
    """Its text is the greedy one, because what follows in the cache was written after that text."""
    policy = Thinking(lambda state, n, t, seed: list("ab")[:n])
    nodes = words(grow(InlineEnvironments(SPEC), policy, iterations=2, k=2))
    [expanded] = [w for w, n in nodes.items() if n.expanded and w]
    assert nodes[expanded + "a"].action.text == "Action: a"
    assert nodes[expanded + "b"].action.text == "Thought: idea 1\nAction: b"
    assert nodes[expanded + "a"].visits == nodes[expanded + "b"].visits == 1


def test_a_cached_rollout_saves_environment_steps_and_is_counted_once():
    envs, proposals = InlineEnvironments(SPEC), []

    def choose(state, n, temperature, seed):
        proposals.append(temperature)
        return list("abc"[:n])

    nodes = words(grow(envs, ScriptedPolicy(choose), iterations=1, k=1))
    assert envs.steps == 3  # a, aa, aaa
    assert {w: (n.visits, n.expanded) for w, n in nodes.items()} == {
        "": (1, True),
        "a": (1, False),
        "aa": (0, False),  # on the cached rollout: nothing was started here
        "aaa": (0, False),
    }
    assert nodes["aaa"].closed  # an end is an end
    envs, proposals = InlineEnvironments(SPEC), []
    nodes = words(grow(envs, ScriptedPolicy(choose), iterations=3, k=1))
    assert envs.steps == 3
    assert proposals == [0.7, 0.0, 0.0, 0.7, 0.7]
    assert {w: n.visits for w, n in nodes.items()} == {"": 3, "a": 3, "aa": 2, "aaa": 1}
    assert nodes["a"].value == pytest.approx(word_reward(TASK, "aaa"))


def test_no_environment_step_is_taken_twice():
    seen = []

    class Watching(InlineEnvironments):
        async def step(self, state, action):
            seen.append("".join(commands_of(state.propose(action))))
            return await super().step(state, action)

    tree = grow(Watching(SPEC), listing_policy("abc"), iterations=20, k=3, task=make_task(4))
    assert len(seen) == len(set(seen)) == len(tree.nodes) - 1


def test_several_sampled_simulations_from_each_child():
    envs = InlineEnvironments(SPEC)
    tree = grow(envs, uniform_policy("abc"), iterations=4, k=3, n=3, rollout_temperature=1.0)
    for found in tree.nodes:
        own = found.visits - sum(x.visits for x in tree.nodes if x.parent >= 0 and tree.nodes[x.parent] is found)
        assert own == (0 if found.parent < 0 else 3)
    assert any(x.return_min < x.return_max for x in tree.nodes)
    with pytest.raises(UserError, match="copies"):
        grow(envs, uniform_policy("abc"), n=3)


@pytest.mark.parametrize("outcome", ["reward", "progress", "success"])
def test_the_return_is_the_chosen_field_of_the_last_outcome(outcome):
    envs, task = RandomTree(5, ends=0.3), make_task(4, max_steps=4)
    tree = grow(envs, uniform_policy("abc"), task, iterations=50, k=3, outcome=outcome)
    ends = [float(getattr(n.outcome, outcome)) for n in tree.nodes if n.outcome.done and n.visits]
    assert ends
    for found in tree.nodes:
        if found.outcome.done and found.visits:
            assert found.value == float(getattr(found.outcome, outcome))
    assert tree.nodes[0].return_max == max(ends)


def test_proposals_lost_to_faults_are_left_out_and_counted():
    class NoB(InlineEnvironments):
        async def step(self, state, action):
            if commands_of(state.propose(action))[-1] == "b":
                raise EnvironmentFault("it hung twice")
            return await super().step(state, action)

    tree = grow(NoB(SPEC), listing_policy("abc"), iterations=100, k=3)
    assert len(tree.nodes) == 1 + 2 + 4 + 8
    assert tree.meta["faults"] == 1 + 2 + 4
    with pytest.raises(EnvironmentFault):
        grow(Unresettable(SPEC), listing_policy("abc"))


def test_a_leaf_whose_history_grew_too_long_is_closed_and_the_tree_is_kept():
    def choose(state, n, temperature, seed):
        if temperature and commands_of(state) == ["a"]:
            raise TooLong("too long to draw five turns after it")
        return list("abc")[:n]

    tree = grow(InlineEnvironments(SPEC), ScriptedPolicy(choose), iterations=100, k=3)
    assert words(tree)["a"].closed
    assert {w for w, n in words(tree).items() if w.startswith("a") and n.visits} == {"a"}
    assert sum(len(w) == 3 and n.visits > 0 for w, n in words(tree).items()) == 2 * 9
    assert tree.meta["faults"] == 1


class Unresettable(InlineEnvironments):
    async def reset(self, task):
        raise EnvironmentFault("it died twice")


def test_a_stochastic_environment_is_a_fault_not_a_wrong_tree():
    """The engine has no snapshots and never says the same twice, so no state can be come back to."""

    class Drifting:
        def __init__(self, options):
            self.engine, self.said = SPEC.make({"snapshot": False}), 0

        def __getattr__(self, name):
            return getattr(self.engine, name)

        def step(self, command):
            self.said += 1
            return dataclasses.replace(self.engine.step(command), observation=f"{self.said}")

    envs = InlineEnvironments(dataclasses.replace(SPEC, make=Drifting))
    tree = grow(envs, listing_policy("abc"), iterations=5, k=3)
    assert tree.meta["faults"] == 3
    assert len(tree.nodes) == 1 + 3 + 0  # first letters are reached by reset; nothing after them can be


class Jitter:
    """Answers after a random number of turns of the event loop."""

    def __init__(self, inner, seed):
        self.inner, self.random = inner, random.Random(seed)

    def __getattr__(self, name):
        method = getattr(self.inner, name)

        async def late(*args, **kwargs):
            for _ in range(self.random.randrange(6)):
                await asyncio.sleep(0)
            return await method(*args, **kwargs)

        return late


@pytest.mark.parametrize("options", [{}, {"leaves_per_iteration": 3}, {"n": 2, "rollout_temperature": 0.5}])
def test_same_seed_same_tree_whatever_the_timing(options):
    task, policy = make_task(5), uniform_policy("abc")

    def tree(seed, timing):
        envs, late = Jitter(InlineEnvironments(SPEC), timing), Jitter(policy, timing + 1)
        return grow(envs, late, task, iterations=12, k=4, seed=seed, **options)

    first = tree(0, 0)
    assert all(tree(0, timing) == first for timing in range(1, 6))
    assert tree(1, 0).nodes != first.nodes


def test_a_task_that_is_over_at_reset_has_a_tree_of_one_node():
    class Over(RandomTree):
        async def reset(self, task):
            return State(task, "goal", outcome=Outcome("won", 1.0, 1.0, True, True))

    tree = grow(Over(0), listing_policy("abc"))
    assert len(tree.nodes) == 1
    assert tree.nodes[0].closed
    assert tree.meta["iterations"] == 0


def test_tree_records_come_parents_first_and_say_how_they_were_made():
    tree = grow(InlineEnvironments(SPEC), listing_policy("abc"), iterations=5, k=3, seed=7)
    assert all(found.parent < i for i, found in enumerate(tree.nodes))
    assert tree.nodes[0].action is None
    assert tree.nodes[0].outcome.observation == 'The word is "".'
    assert isinstance(tree.task, Task)
    assert tree.meta["options"]["k"] == 3
    assert tree.meta["options"]["seed"] == 7
    assert not math.isnan(tree.nodes[0].value)


def test_every_expansion_draws_with_a_seed_of_its_own():
    seeds = []

    def choose(state, n, temperature, seed):
        if temperature:
            seeds.append(seed)
        return list("abc"[:n])

    grow(InlineEnvironments(SPEC), ScriptedPolicy(choose), iterations=13, k=3)
    assert len(seeds) == len(set(seeds)) == 13
