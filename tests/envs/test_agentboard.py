"""AgentBoard's labels where the user has them; the files here have their form, and content of our own."""

import importlib.util
import json

import pytest

from agentrm_jax.envs import agentboard
from agentrm_jax.envs.alfworld import environment as alfworld
from agentrm_jax.envs.jericho import environment as jericho
from agentrm_jax.envs.sciworld import environment as sciworld
from agentrm_jax.types import EngineStep, Task, UserError


def engine(module):
    return pytest.mark.skipif(importlib.util.find_spec(module) is None, reason=f"{module} is not installed")


def write(root, task, *rows):
    (root / "agentboard" / task).mkdir(parents=True)
    (root / "agentboard" / task / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_patterns_count_together_and_texts_one_at_a_time():
    seen = "A red key, and\n a  lamp (lit)."
    assert agentboard.matched(frozenset({2}), ["red \\w+", "blue", "x", "lamp"], seen) == {0, 2, 3}
    texts = ["a lamp, lit", "red key!", "blue"]
    first = agentboard.matched_first(frozenset(), texts, seen)
    assert first == {0}
    assert agentboard.matched_first(first, texts, seen) == {0, 1}
    assert agentboard.matched_first(frozenset({0, 1}), texts, seen) == {0, 1}


def test_a_file_of_another_form_is_named(tmp_path):
    write(tmp_path, "alfworld", {"goal": "no labels"})
    with pytest.raises(UserError, match=r"alfworld.test\.jsonl does not hold AgentBoard's labels"):
        agentboard.rows(str(tmp_path), "alfworld")
    assert agentboard.rows(str(tmp_path), "scienceworld") == ()


def test_scienceworld_plays_the_labelled_tasks(tmp_path):
    info = {"env_name": "task-1-boil", "var": 3}
    write(tmp_path, "scienceworld", {"goal": "Boil it.", "subgoals": ["boil", "steam"], "additional_info": info})
    (task,) = sciworld.tasks("test", {"data": str(tmp_path), "setting": "agentboard"})
    assert (task.id, task.max_steps) == ("agentboard-boil-3", 30)
    assert (task.args["goal"], task.args["subgoals"]) == ("Boil it.", ["boil", "steam"])
    with pytest.raises(UserError, match=r"test_indices\.json"):  # the other setting needs ETO's files
        sciworld.tasks("test", {"data": str(tmp_path)})


@engine("scienceworld")
def test_scienceworld_counts_labels_and_ends_when_all_are_seen():
    env = sciworld.make({})
    args = {
        "task": "boil",
        "variation": 0,
        "goal": "Find the thermometer.",
        "subgoals": ["thermometer", "move to the kitchen"],
    }
    args["simplifications"] = sciworld._AGENTBOARD_WORLD
    try:
        start = env.reset(Task("sciworld", "x", "test", 30, args))
        assert start.goal == "Find the thermometer."
        assert "inventory" in start.observation
        steps = [env.step(command) for command in ("look around", "inventory", "teleport to kitchen")]
        assert [(s.reward, s.progress, s.over) for s in steps[:2]] == [(0, 0, False)] * 2
        assert not steps[2].valid  # no teleport in that world
        env.step("go to hallway")
        looked = [env.step(command) for command in ("go to kitchen", "look around")]
        assert [(s.reward, s.over) for s in looked] == [(0.5, False), (1.0, True)]
    finally:
        env.close()


@engine("alfworld")
def test_alfworld_counts_labels_of_its_game(tmp_path):
    name = "pick_and_place-Mug-None-Shelf-1/trial"
    write(
        tmp_path,
        "alfworld",
        {"goal": "", "subgoals": ["You arrive at", "mug"], "additional_info": {"description": name}},
    )
    assert alfworld._labels(str(tmp_path)) == {name: {"subgoals": ["You arrive at", "mug"]}}
    env = alfworld.make({"setting": "agentboard"})
    household = alfworld.tasks("train", {"games": 1})[0]
    task = Task("alfworld", "x", "test", 30, {**household.args, "subgoals": ["You arrive at", "no such thing"]})
    start = env.reset(Task("alfworld", "x", "train", 30, task.args))
    place = start.observation.split("you see a ")[1].split(",")[0]
    before = env.snapshot()
    answer = env.step(f"go to {place}")
    assert (answer.reward, answer.progress) == (0.0, 1 / 3)
    assert env.step("look") == answer  # as AgentBoard's wrapper, what the last `go to` or `open` showed
    env.restore(before)
    assert env.step("look") == EngineStep(start.observation, 0.0, 0.0)


@engine("alfworld")
def test_alfworld_reads_commands_as_agentboards_task_does():
    env = alfworld.make({"setting": "agentboard"})
    env.reset(alfworld.tasks("train", {"games": 1})[0])
    listed = env.step("check valid actions.").observation
    names = listed.removeprefix("Choose an action from these valid actions: ").split(", ")
    assert names[-1] == "check valid actions"
    assert names[:-1] == sorted(names[:-1])
    assert {"look", "inventory"} < set(names)
    here = env.snapshot()
    for command, valid in ((names[0], True), (f" {names[0]}. ", True), (names[0].upper(), False), ("check", False)):
        assert env.step(command).valid is valid
        env.restore(here)
    reads = alfworld._as_agentboard_reads
    assert reads("put mug 1 in shelf 1.") == reads("put mug 1 on shelf 1") == "put mug 1 in/on shelf 1"
    assert reads("toggle desklamp 1") == "toggle desklamp 1"


def test_jericho_labels_go_by_the_order_of_the_games(tmp_path):
    (tmp_path / "jericho").mkdir()
    goals = {"order": ["two", "one"], "goals": {"one": "First.", "two": "Second."}}
    (tmp_path / "jericho/agentboard_goals.json").write_text(json.dumps(goals))
    for game in ("one", "two"):
        (tmp_path / f"{game}.z5").write_bytes(b"")
    write(tmp_path, "jericho", {"subgoals": ["a"]}, {"subgoals": ["b", "c"]})
    data = {"data": str(tmp_path)}
    found = {t.id: t.args.get("subgoals") for t in jericho.tasks("test", data)}
    assert found == {"two": ["a"], "one": ["b", "c"]}
    assert not any("subgoals" in t.args for t in jericho.tasks("test", {**data, "progress": "score"}))
    with pytest.raises(UserError, match="choose labels, checkpoints or score"):
        jericho.tasks("test", {**data, "progress": "points"})
