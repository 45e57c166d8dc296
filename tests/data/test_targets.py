"""Step values from search trees: which states are targets, what their value is, and what is left out."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrm_jax import tree
from agentrm_jax.data import targets
from agentrm_jax.prompts import Encoder
from agentrm_jax.types import Action, Outcome, SearchTree, Step, Task, Trajectory, TreeNode, UserError

TASK = Task("hall", "1", "train", 5)


@pytest.fixture(scope="module")
def encoder(chat, hall) -> Encoder:
    return Encoder(chat, {"hall": hall}, reader="reward")


def node(
    parent: int, name: str, returns: tuple[float, ...] = (), reward: float | None = None, progress: float = 0.0
) -> TreeNode:
    """A node with the returns of the simulations at or below it; with a reward, the episode ended there."""
    outcome = Outcome(f"Observation: {name}", reward or 0.0, progress, reward is not None, reward == 1.0)
    action = Action(f"Action: {name}") if parent >= 0 else None
    squares = sum(g * g for g in returns)
    low, high = (min(returns), max(returns)) if returns else (0.0, 0.0)
    return TreeNode(parent, action, outcome, len(returns), sum(returns), squares, low, high)


def golden() -> SearchTree:
    """The tree of algorithms 13.4, terminals not backed up again: aaa .077, baa .708 (three times), bab .846, bba .391."""
    aaa, baa, bab, bba = 0.077, 0.708, 0.846, 0.391
    nodes = (
        node(-1, "", (aaa, baa, baa, bba, baa, bab)),
        node(0, "a", (aaa,)),
        node(0, "b", (baa, baa, bba, baa, bab)),
        node(2, "ba", (baa, baa, bab)),
        node(2, "bb", (bba,)),
        node(3, "baa", (baa,), reward=baa),
        node(3, "bab", (bab,), reward=bab, progress=0.5),
    )
    return SearchTree(TASK, "leave", nodes)


def values(nodes: list[tree.Node], encoder: Encoder) -> dict[str, float]:
    """Target of every state that has one, by the command of its last action."""
    text = {i: encoder.chat.decode(n.segment.tokens) for i, n in enumerate(nodes) if n.segment.kind == "action"}
    return {text[i].removeprefix("Action: "): n.value for i, n in enumerate(nodes) if n.value_weight}


def commands(nodes: list[tree.Node], encoder: Encoder) -> list[str]:
    return [encoder.chat.decode(n.segment.tokens).removeprefix("Action: ") for n in nodes if n.segment.kind == "action"]


def test_golden_tree(encoder):
    nodes = targets.value_tree(encoder, golden())
    assert values(nodes, encoder) == pytest.approx({"b": 0.6722, "ba": 0.754, "baa": 0.708, "bab": 0.846})
    assert commands(nodes, encoder) == ["b", "ba", "baa", "bab"], "a and bb rest on one return and lead to no target"
    every = targets.value_tree(encoder, golden(), min_visits=1)
    assert values(every, encoder) == pytest.approx(
        {"a": 0.077, "b": 0.6722, "ba": 0.754, "bb": 0.391, "baa": 0.708, "bab": 0.846}
    )


def test_the_best_that_was_reached_is_another_target(encoder):
    nodes = targets.value_tree(encoder, golden(), target="max")
    assert values(nodes, encoder) == pytest.approx({"b": 0.846, "ba": 0.846, "baa": 0.708, "bab": 0.846})


def test_the_outcome_of_an_ended_episode_is_the_configured_one(encoder):
    nodes = targets.value_tree(encoder, golden(), outcome="progress")
    assert values(nodes, encoder)["bab"] == 0.5


@pytest.mark.parametrize("wrong", [{"target": "median"}, {"outcome": "luck"}])
def test_a_target_that_does_not_exist_is_refused(encoder, wrong):
    with pytest.raises(UserError, match="must be mean, max, soft, hard or distance, and outcome="):
        targets.value_tree(encoder, golden(), **wrong)


def test_a_value_is_the_mean_of_rollouts_after_the_step(encoder):
    """With one level and n rollouts a step this is the soft Monte-Carlo step reward of IPR."""
    rollouts = (0.2, 0.9, 0.5, 0.1, 0.8)
    nodes = targets.value_tree(encoder, SearchTree(TASK, "", (node(-1, "", rollouts), node(0, "a", rollouts))))
    assert values(nodes, encoder) == pytest.approx({"a": 0.5})


def rollout():
    """One simulation from `a` that was cached (x, y, z), and one that was given up (w)."""
    nodes = (
        node(-1, "", (1.0,)),
        node(0, "a", (0.7,)),
        node(1, "x"),
        node(2, "y"),
        node(3, "z", reward=0.7),
        node(1, "w"),
    )
    return SearchTree(TASK, "", nodes)


def test_states_a_rollout_passed_rest_on_its_return(encoder):
    found = targets.value_tree(encoder, rollout(), min_visits=1)
    assert values(found, encoder) == {"a": 0.7, "x": 0.7, "y": 0.7, "z": 0.7}
    assert commands(found, encoder) == ["a", "x", "y", "z"]


def test_with_a_higher_bar_only_its_end_is_a_target(encoder):
    found = targets.value_tree(encoder, rollout(), min_visits=2)
    assert values(found, encoder) == {"z": 0.7}


def test_a_tree_without_targets_is_its_prompt(encoder):
    found = targets.value_tree(encoder, SearchTree(TASK, "", (node(-1, ""), node(0, "a", (1.0,)))))
    assert [n.segment.kind for n in found] == ["prompt"]
    assert targets.target_histogram([found]) == [0] * 10


@st.composite
def searched(draw: st.DrawFn) -> SearchTree:
    """Any tree: some nodes simulated, some not, some ended. Ended nodes have no children."""
    parents, ended = [-1], [False]
    for _ in range(draw(st.integers(0, 10))):
        parents.append(draw(st.sampled_from([i for i, e in enumerate(ended) if not e])))
        ended.append(draw(st.booleans()))
        if all(ended):
            break
    returns = [tuple(draw(st.lists(st.sampled_from([0.0, 0.5, 1.0]), max_size=4))) for _ in parents]
    nodes = [node(p, f"n{i}", returns[i], 0.5 if ended[i] else None) for i, p in enumerate(parents)]
    return SearchTree(TASK, "", tuple(nodes))


def rolls_to_an_end(search_tree, i):
    while not search_tree.nodes[i].visits:
        following = [j for j, n in enumerate(search_tree.nodes) if n.parent == i]
        if not following:
            return search_tree.nodes[i].outcome.done
        i = following[0]
    return search_tree.nodes[i].outcome.done


@given(searched(), st.integers(0, 4))
def test_a_higher_bar_never_adds_a_target_and_ended_episodes_always_are(encoder, search_tree, bar):
    low, high = (values(targets.value_tree(encoder, search_tree, min_visits=n), encoder) for n in (bar, bar + 1))
    assert high.items() <= low.items()
    ended = {f"n{i}" for i, n in enumerate(search_tree.nodes) if n.outcome.done}
    assert ended <= high.keys()
    earned = {f"n{i}" for i, n in enumerate(search_tree.nodes) if i and n.visits >= max(bar, 1)}
    passed = {f"n{i}" for i in range(1, len(search_tree.nodes)) if bar <= 1 and rolls_to_an_end(search_tree, i)}
    assert low.keys() == ended | earned | passed


@given(searched())
def test_each_target_lies_at_an_end_of_turn_and_its_path_is_the_states_history(encoder, search_tree):
    nodes = targets.value_tree(encoder, search_tree, min_visits=1)
    flat = tree.flatten(nodes)
    at = np.flatnonzero(flat.value_weight)
    assert (flat.tokens[at] == encoder.chat.end_id).all()
    assert set(flat.value_weight[at]) <= {1.0}
    assert not flat.loss_weight.any(), "values are learned, not words"
    for i, n in enumerate(search_tree.nodes):
        if i and (n.outcome.done or n.visits):
            turns: list[Step] = []
            walk = i
            while walk:
                turns.insert(0, Step(search_tree.nodes[walk].action, search_tree.nodes[walk].outcome))
                walk = search_tree.nodes[walk].parent
            start = search_tree.nodes[0].outcome.observation
            path = [int(t) for s in encoder.trajectory(Trajectory(TASK, "", start, tuple(turns))) for t in s.tokens]
            reads = [j for j in at if flat.tokens[tree.visible(flat.subtree_end)[j]].tolist() == path]
            assert len(reads) == 1


def test_a_trajectory_to_imitate_is_a_path_that_learns_every_action(encoder):
    steps = tuple(Step(Action(f"Action: {c}"), Outcome(f"Observation: {c}")) for c in "abc")
    nodes = targets.imitation_trees(encoder, [Trajectory(TASK, "leave", "A door.", steps)], 10**6)[0][0]
    assert [n.parent for n in nodes] == list(range(-1, 5))
    assert [n.segment.loss for n in nodes] == [False, True] * 3
    assert not any(n.value_weight for n in nodes)


def test_histogram_counts_targets_in_equal_bins():
    segment = tree.Segment(np.array([1], np.int32), "action")
    made = [dataclasses.replace(tree.Node(segment, -1), value=v, value_weight=1.0) for v in (0.0, 0.05, 0.5, 1.0)]
    assert targets.target_histogram([made, [tree.Node(segment, -1)]]) == [2, 0, 0, 0, 0, 1, 0, 0, 0, 1]


def test_a_model_that_starts_from_nothing_may_learn_to_read_too(encoder):
    steps = tuple(Step(Action(f"Action: {c}"), Outcome(f"Observation: {c}")) for c in "ab")
    trajectory = Trajectory(TASK, "leave", "A door.", steps)
    plain, reading = (targets.imitation_trees(encoder, [trajectory], 10**6, context_weight=w)[0][0] for w in (0.0, 0.1))
    assert [(n.segment.loss, n.weight) for n in reading] == [(True, 0.1), (True, 1.0)] * 2
    assert [n.segment.tokens.tolist() for n in reading] == [n.segment.tokens.tolist() for n in plain]


def test_trajectories_of_one_task_share_their_beginning_and_weigh_as_they_did_alone(encoder):
    def episode(commands: str, task: Task = TASK) -> Trajectory:
        steps = tuple(Step(Action(f"Action: {c}"), Outcome(f"Observation: {c}")) for c in commands)
        return Trajectory(task, "leave", "A door.", steps)

    other = dataclasses.replace(TASK, id="2")
    given = [episode("ab"), episode("x", other), episode("acc"), episode("ab")]
    (shared, single), left_out = targets.imitation_trees(encoder, given, 10**6, context_weight=0.5)
    assert left_out == 0
    text = [encoder.chat.decode(n.segment.tokens) for n in shared]
    learned = {
        t.removeprefix("Action: "): n.weight for t, n in zip(text, shared, strict=True) if t.startswith("Action")
    }
    assert learned == {"a": 3.0, "b": 2.0, "c": 1.0}
    assert shared[0].weight == 1.5, "the prompt of three trajectories"
    total = sum(n.weight * len(n.segment.tokens) for n in shared)
    alone = [targets.imitation_trees(encoder, [t], 10**6, context_weight=0.5)[0][0] for t in given if t.task == TASK]
    assert total == pytest.approx(sum(n.weight * len(n.segment.tokens) for nodes in alone for n in nodes))
    assert [n.segment.tokens.tolist() for n in single] == [s.tokens.tolist() for s in encoder.trajectory(given[1])]


def test_a_trajectory_that_is_too_long_is_left_out_and_counted(encoder):
    steps = tuple(Step(Action(f"Action: {c}"), Outcome(f"Observation: {c}")) for c in "ab")
    given = [Trajectory(TASK, "leave", "A door.", steps[:n]) for n in (1, 2)]
    length = sum(len(s.tokens) for s in encoder.trajectory(given[0]))
    (nodes,), left_out = targets.imitation_trees(encoder, given, length)
    assert left_out == 1
    assert sum(len(n.segment.tokens) for n in nodes) == length


# --- Other targets ---------------------------------------------------------------------------------------------------


def won(parent: int, name: str, returns: tuple[float, ...], ended: bool | None = None) -> TreeNode:
    """A node below which these returns were; `ended`: the episode ended there, with or without success."""
    return node(parent, name, returns, None if ended is None else float(ended))


def rest() -> SearchTree:
    """The tree of algorithms 13.2: root -> a -> {a1 solved, a2 failed}, root -> b -> b1 -> b1x failed, root -> c unfinished."""
    nodes = (
        won(-1, "", (1.0, 0.0, 0.0)),
        won(0, "a", (1.0, 0.0)),
        won(1, "a1", (1.0,), True),
        won(1, "a2", (0.0,), False),
        won(0, "b", (0.0,)),
        won(4, "b1", (0.0,)),
        won(5, "b1x", (0.0,), False),
        won(0, "c", ()),
    )
    return SearchTree(TASK, "", nodes)


def test_distance_and_hard_targets_are_the_golden_ones(encoder):
    how = {"min_visits": 1}
    distance = {"a": 0.5, "a1": 1.0, "a2": 0.25, "b": 0.0, "b1": 0.0, "b1x": 0.0}
    assert values(targets.value_tree(encoder, rest(), target="distance", **how), encoder) == pytest.approx(distance)
    hard = {"a": 1.0, "a1": 1.0, "a2": 0.0, "b": 0.0, "b1": 0.0, "b1x": 0.0}
    assert values(targets.value_tree(encoder, rest(), target="hard", **how), encoder) == hard
    lost = dataclasses.replace(rest(), nodes=rest().nodes[:1] + rest().nodes[4:5])
    assert values(targets.value_tree(encoder, lost, target="distance", **how), encoder) == {}, "nothing was solved"


def test_soft_is_the_mean_of_a_states_own_rollouts(encoder):
    """A search that prefers `good` draws more below it; the mean of all returns rises with that, the soft estimate does not."""
    own, good, bad = (0.0, 1.0, 0.5), (1.0,) * 7, (0.0,)
    nodes = (node(-1, "", own + good + bad), node(0, "a", own + good + bad), node(1, "good", good), node(1, "bad", bad))
    found = {
        t: values(targets.value_tree(encoder, SearchTree(TASK, "", nodes), min_visits=1, target=t), encoder)
        for t in ("mean", "soft")
    }
    assert found["soft"] == pytest.approx({"a": 0.5, "good": 1.0, "bad": 0.0})
    assert found["mean"]["a"] == pytest.approx(8.5 / 11)


@given(searched(), st.sampled_from(["max", "soft", "hard", "distance"]), st.integers(0, 4))
def test_of_every_target_a_higher_bar_never_adds_one_and_all_lie_in_the_unit_interval(
    encoder, search_tree, target, bar
):
    low, high = (
        values(targets.value_tree(encoder, search_tree, min_visits=n, target=target), encoder) for n in (bar, bar + 1)
    )
    assert high.items() <= low.items()
    assert all(-1e-9 <= v <= 1 + 1e-9 for v in low.values() if target != "soft")  # drawn returns need not add up


def test_states_may_weigh_by_what_they_rest_on(encoder):
    nodes = targets.value_tree(encoder, golden(), min_visits=1, weight_visits=2.0)
    text = {n.origin: n.value_weight for n in nodes if n.value_weight}
    assert text == pytest.approx({1: 1 / 3, 2: 5 / 7, 3: 3 / 5, 4: 1 / 3, 5: 1.0, 6: 1.0}), "what ended is certain"


def test_actions_of_one_state_are_a_group_and_stay_together_when_a_tree_is_cut(encoder):
    nodes = targets.value_tree(encoder, golden(), min_visits=1)
    groups: dict[int, set[int]] = {}
    for n in nodes:
        if n.value_weight:
            groups.setdefault(n.group, set()).add(n.origin)
    assert groups == {0: {1, 2}, 2: {3, 4}, 3: {5, 6}}
    assert targets.ordered_pairs(nodes) == 3
    gathered = targets.together(nodes)
    assert sorted(n.origin for n in gathered if n.value_weight) == [1, 2, 3, 4, 5, 6]
    length = max(sum(len(gathered[i].segment.tokens) for i in (*path(gathered, at), at)) for at in range(len(gathered)))
    parts = tree.split(gathered, length + 2 * max(len(n.segment.tokens) for n in nodes if n.segment.kind == "action"))
    assert len(parts) > 1
    assert sum(map(targets.ordered_pairs, parts)) == 3
    for part in (gathered, *parts):
        flat = tree.flatten(part)
        for at in np.flatnonzero(flat.value_weight):
            assert encoder.chat.decode(flat.tokens[flat.node == flat.node[at]]).startswith("Action: ")
    whole = [n if n.origin in (5, 6) else dataclasses.replace(n, value_weight=0.0) for n in nodes]
    assert len(targets.together(whole)) == len(whole), "nothing is below them: nothing is repeated"


def path(nodes: list[tree.Node], at: int) -> list[int]:
    """Indices of the nodes above one."""
    found = []
    while (at := nodes[at].parent) >= 0:
        found.append(at)
    return found


def test_a_flat_tree_knows_siblings_the_state_before_and_how_often_it_was_left_so(encoder):
    several = dataclasses.replace(golden().nodes[4], multiplicity=3)
    one = dataclasses.replace(golden(), nodes=(*golden().nodes[:4], several, *golden().nodes[5:]))
    nodes = targets.value_tree(encoder, one, min_visits=1)
    flat = tree.flatten(nodes)
    at = {nodes[flat.node[i]].origin: i for i in np.flatnonzero(flat.value_weight)}
    assert {o: flat.before[i] for o, i in at.items()} == {
        1: -1, 2: -1, 3: at[2], 4: at[2], 5: at[3], 6: at[3],
    }  # fmt: skip
    assert {o: flat.group[i] for o, i in at.items()} == {
        1: at[1], 2: at[1], 3: at[3], 4: at[3], 5: at[5], 6: at[5],
    }  # fmt: skip
    assert [flat.count[at[o]] for o in (1, 4)] == [1, 3]
    elsewhere = flat.value_weight == 0
    assert (flat.group[elsewhere] == -1).all()
    assert (flat.before[elsewhere] == -1).all()


def test_where_the_last_observation_is_read_the_value_is_read_after_it(chat, hall):
    encoder = Encoder(chat, {"hall": hall}, reader="reward", state="last_observation")
    plain = targets.value_tree(Encoder(chat, {"hall": hall}, reader="reward"), golden(), min_visits=1)
    nodes = targets.value_tree(encoder, golden(), min_visits=1)
    valued = {n.origin: n for n in nodes if n.value_weight}
    assert {at: n.value for at, n in valued.items()} == {n.origin: n.value for n in plain if n.value_weight}
    for origin, n in valued.items():
        assert n.segment.kind == "observation"
        assert (
            n.segment.tokens.tolist() == encoder.observation(golden().nodes[origin].outcome.observation).tokens.tolist()
        )
        assert nodes[n.parent].segment.kind == "action"
