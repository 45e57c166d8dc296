"""BabyAI in words: AgentBoard's texts to the letter, exact forks, checkable commands, engine-verified success."""

import itertools
import json
import random
import re

import pytest

from agentrm_jax.envs.babyai import environment as babyai
from agentrm_jax.envs.babyai import goals, levels, text
from agentrm_jax.envs.react import played
from agentrm_jax.testing.shared import needs_shared, shared_data
from agentrm_jax.types import Task, UserError

DATA = shared_data()
needs_data = needs_shared("agentboard/babyai/test.jsonl")


@pytest.fixture(scope="module")
def env():
    pytest.importorskip("minigrid")
    return babyai.make({})


def one(level, seed=100_000, **args):
    (level_id,) = levels.level_ids([level])
    return Task("babyai", f"{level}-{seed}", "train", 30, {"level": level_id, "seed": seed, **args})


def play(env, commands):
    return [env.step(c) for c in commands]


def solution(env, task, limit=60):
    """Commands of the expert; leaves `env` at the end of the episode."""
    env.reset(task)
    commands = []
    for thought, command in itertools.islice(babyai._expert(env, task), limit):
        assert thought
        assert env.step(command).valid, command
        commands.append(command)
    return commands


@needs_data
def test_all_official_first_observations_and_goals_are_reproduced(env):
    records = [json.loads(line) for line in (DATA / "agentboard/babyai/test.jsonl").read_text().splitlines()]
    tasks = babyai.tasks("test", {"data": str(DATA)})
    assert len(tasks) == 56
    for task, record in zip(tasks, records, strict=True):
        start = env.reset(task)
        assert (start.goal, start.observation) == (record["goal"], record["additional_info"]["init_obs"]), task.id


@needs_data
def test_official_tasks_end_at_full_reward_for_the_expert(env):
    tasks = [t for t in babyai.tasks("test", {"data": str(DATA), "levels": [1, 4, 7, 13, 16, 20, 25, 28]})]
    for task in tasks:
        assert len(solution(env, task)) <= task.max_steps
        last = env.step("turn left")
        assert (last.reward, last.over) == (1.0, True), task.id


@needs_data
def test_the_one_official_task_the_expert_does_not_get_full_reward_for_asks_for_a_view_it_has_no_reason_to_take(env):
    (task,) = (t for t in babyai.tasks("test", {"data": str(DATA), "levels": [32]}) if t.id == "agentboard-108")
    assert len(solution(env, task)) <= task.max_steps
    assert env.verified  # the ball is picked up, which ends the episode
    ((label,),) = env._ledger.remaining
    assert label == "There is a green locked door ** 4 steps in front of you and 3 steps to your right."
    assert env._progress == 0.75


@pytest.mark.parametrize(("level", "turns"), [("KeyCorridorS6R3", 20), ("GoToImpUnlock", 22), ("UnlockToUnlock", 14)])
def test_expert_fetches_a_key_when_it_knows_of_the_lock(env, level, turns):
    spent = [len(solution(env, one(level, seed), limit=60)) for seed in range(100_000, 100_008)]
    assert sum(spent) / len(spent) < turns


def test_view_equals_minigrids_own_observation(env):
    from minigrid.core.constants import IDX_TO_COLOR, IDX_TO_OBJECT

    rng = random.Random(0)
    for level in ("KeyCorridorS6R3", "GoToLocalS8N7", "GoToImpUnlock"):
        env.reset(one(level))
        for _ in range(150):
            env.level.step(rng.randrange(6))
            x, y, d = pose = int(env.level.agent_pos[0]), int(env.level.agent_pos[1]), int(env.level.agent_dir)
            view = text.look(env.level.grid.grid, env.level.grid.width, pose)
            image = type(env.level).gen_obs(env.level)["image"]
            (fx, fy), seen = text.VECTORS[d], {}
            for col, row in itertools.product(range(7), range(7)):
                kind, color = IDX_TO_OBJECT[image[col, row, 0]], IDX_TO_COLOR[image[col, row, 1]]
                if kind != "unseen" and (col, row) != (3, 6):
                    pos = (x + fx * (6 - row) - fy * (col - 3), y + fy * (6 - row) + fx * (col - 3))
                    seen[pos] = None if kind == "empty" else (kind, color)
            assert {pos: o and (o.type, o.color) for pos, o in view.cells.items()} == seen


@pytest.mark.parametrize("level", [5, 7, 16, 28, "PutNextS5N2Carrying"])
def test_reset_is_reproducible(env, level):
    first = env.reset(one(level))
    play(env, ["turn left", "move forward", "turn left"])
    assert env.reset(one(level)) == first


@pytest.mark.parametrize("level", [8, 16, 18, 28, 29, "PutNextLocalS6N4"])
def test_snapshots_restore_any_number_of_times_to_identical_futures(env, level):
    task = one(level)
    commands = solution(env, task)
    middle = len(commands) // 2
    env.reset(task)
    play(env, commands[:middle])
    here = env.snapshot()
    future = play(env, commands[middle:])
    assert future[-1].reward == 1.0
    for _ in range(2):
        env.restore(here)
        play(env, ["turn right", "move forward", "drop", "toggle"])
        env.restore(here)
        assert play(env, commands[middle:]) == future
    other = babyai.make({})
    other.restore(here)
    env.reset(one(1))
    assert play(other, commands[middle:]) == future
    env.restore(here)
    assert play(env, commands[middle:]) == future


@pytest.mark.parametrize(
    "command",
    ["fly to the moon", "", "go to red ball 9", "pickup red closed door 1", "drop", "go through red ball 1", "toggle"],
)
def test_invalid_commands_change_nothing_and_say_so(env, command):
    start = env.reset(one(5, 100_003))
    before = babyai._changing(env.level)
    answer = env.step(command)
    assert not answer.valid
    assert answer.observation != start.observation
    assert (answer.reward, answer.progress, answer.over) == (0.0, 0.0, False)
    assert babyai._changing(env.level) == before


def test_agentboards_other_commands_are_known_too(env):
    env.reset(one(25, seed=100_003))  # the worked example's world
    assert env.step("check valid actions") == env.step("check available actions")
    assert env.step("inventory").observation == "You are not carrying anything."
    for command in ("turn left", "go to red box 1", "turn right", "pick up red key 1"):
        assert env.step(command).valid
    assert env.step("Inventory").observation == "You are carrying a red key."


def test_the_worked_example_is_the_experts_episode(env):
    task = one(25, seed=100_003)
    assert babyai.SPEC.example == played(env, task, babyai.SPEC.expert)
    assert babyai.SPEC.texts(task) is babyai.SPEC
    theirs = one(25, seed=100_003, setting="agentboard")
    assert babyai.SPEC.texts(theirs).example == played(env, theirs, babyai.SPEC.expert)


def test_every_available_command_is_accepted_and_does_something(env):
    for level in (5, 18, 24):
        env.reset(one(level))
        listing = env.step("check available actions")
        assert listing.valid
        here, before = env.snapshot(), babyai._changing(env.level)[1]
        for command in text.available(env.view, env.level.carrying)[:-1]:
            assert command in listing.observation
            assert env.step(command).valid
            assert babyai._changing(env.level)[1] != before, command
            env.restore(here)


def test_commands_mean_what_they_say(env):
    env.reset(one(5, 100_003))
    item = next(i for i in text.listed(env.view) if i.obj.type != "door")
    answer = env.step(f"Go to {item.label}.")
    assert f"There is a {item.name} 1 right in front of you 1 steps away." in answer.observation
    assert env.step(f"pick up {item.name} 1").observation.endswith(f"You are carrying a {item.name}.")
    assert env.step("drop").observation.endswith("You are not carrying anything.")


@pytest.mark.parametrize("level", [*levels.LEVELS, "PutNextLocalS6N4", "KeyInBox", "MiniBossLevel", "SynthSeq"])
def test_expert_solves_a_task_of_every_level(env, level):
    task = one(level, 100_002)
    env.reset(task)
    progress = [0.0]
    for _, command in babyai._expert(env, task):
        answer = env.step(command)
        progress.append(answer.progress)
        assert answer.reward == answer.progress
        assert (answer.progress == 1.0) == env.verified
    assert env.verified
    assert env.over
    assert progress == sorted(progress)


def test_a_wrong_door_in_a_strict_level_ends_the_episode_without_success(env):
    for seed in range(100_000, 100_020):
        env.reset(one(16, seed))
        (first, _), *_ = goals.atoms(env.level.instrs)
        wrong = [
            i for i in text.listed(env.view) if i.obj.type == "door" and all(i.obj is not o for o in first.desc.obj_set)
        ]
        if wrong:
            answer = env.step(f"toggle and go through {wrong[0].label}")
            assert answer.over
            assert answer.reward < 1
            return
    raise AssertionError("no such task in range")


def test_patterns_match_as_agentboard_reads_them():
    observation = (
        "You see: There is a red ball 1 2 steps in front of you and 1 steps to your left.  You are carrying a red key."
    )
    assert goals.matches(observation, "There is a red ball **")
    assert goals.matches(observation, " There is a red ball ** 1 steps to your left.")
    assert goals.matches(observation, "You are carrying a red key.")
    assert not goals.matches(observation, "There is a red ball ** red key")  # pieces must share a sentence
    ledger = goals.official_ledger([["a red ball", "a red key"], ["a blue ball", "a blue key"]])
    once = goals.consume_first(ledger, observation)
    assert (once.matched, once.remaining) == (1, (("a red key", "a blue key"),))
    assert goals.consume_first(once, "I see a blue key.").matched == 2
    assert goals.consume_all(ledger, observation).matched == 2


def test_derived_subgoals_name_keys_and_objects(env):
    env.reset(one("UnlockToUnlock", 1236))
    patterns = [p for subgoal in env._ledger.remaining for p in subgoal]
    assert [p for p in patterns if "carrying" in p] == [
        "You are carrying a yellow key.",
        "You are carrying a green key.",
    ]
    assert any("ball" in p for p in patterns)


def test_splits_are_disjoint_and_the_first_test_seeds_are_agentboards():
    splits = {s: babyai.tasks(s, {"levels": list(levels.LEVELS)}) for s in ("train", "dev", "test")}
    for a, b in itertools.combinations(splits.values(), 2):
        assert not {(t.args["level"], t.args["seed"]) for t in a} & {(t.args["level"], t.args["seed"]) for t in b}
        assert not {t.id for t in a} & {t.id for t in b}
    assert len(splits["test"]) == 112
    assert {t.args["seed"] for t in splits["test"]} == {1234, 1235, 1236, 1237}
    assert len(levels.LEVELS) == 28


def test_wrong_options_are_named(env):
    with pytest.raises(UserError, match="level number 22"):
        babyai.tasks("train", {"levels": [22]})
    with pytest.raises(UserError, match="no split 'val'"):
        babyai.tasks("val", {})
    with pytest.raises(UserError, match="holds no"):
        babyai.tasks("test", {"data": "/nowhere"})
    with pytest.raises(UserError, match="too many"):
        babyai.tasks("test", {"seeds_per_level": 9000})
    with pytest.raises(UserError, match="BabyAI-Nonsense-v0"):
        env.reset(one("Nonsense"))


def labelled(level, seed, *lists, setting="ours"):
    return one(level, seed, subgoals=[list(patterns) for patterns in lists], setting=setting)


@pytest.mark.parametrize("setting", levels.SETTINGS)
def test_the_expert_stops_soon_after_a_mission_whose_sub_goals_cannot_all_be_seen(env, setting):
    for level in ("OpenRedDoor", "GoToLocalS8N7"):
        task = labelled(level, 100_000, ["no such view", "nor such a one"], setting=setting)
        env.reset(task)
        after = []
        for _, command in babyai._expert(env, task):
            if env.verified:
                after.append(command)
            env.step(command)
        assert env.verified
        assert after.count("toggle") == (2 if (level, setting) == ("OpenRedDoor", "ours") else 0)
        assert after[-4:] == ["turn left"] * 4
        assert len(after) <= 6


def test_the_expert_goes_on_after_the_mission_while_that_reaches_sub_goals(env):
    task = labelled("OpenRedDoor", 100_000, [*["red ** door **"] * 5, *["no such view"] * 6])
    assert solution(env, task) == ["go to red closed door 1", *["toggle"] * 6, *["turn left"] * 4]


def test_alternative_lists_lose_the_pattern_that_was_reached_and_the_first_that_reads_as_its_counterpart():
    ledger = goals.official_ledger([["a", "b", "c"], ["x", "y", "x"]])
    assert goals.consume_first(ledger, "I see c") == goals.Ledger((("a", "y"), ("b", "x")), 3, 1)


def test_as_agentboard_the_goal_names_no_order_and_the_first_observation_is_the_same(env):
    found = {}
    for setting in levels.SETTINGS:
        for task in babyai.tasks("train", {"levels": [8], "seeds_per_level": 20, "setting": setting}):
            start = env.reset(task)
            found.setdefault(setting, []).append(start)
    assert [s.observation for s in found["ours"]] == [s.observation for s in found["agentboard"]]
    assert any("then" in s.goal for s in found["ours"])
    assert any("after you" in s.goal for s in found["ours"])
    assert not any("then" in s.goal or "after you" in s.goal for s in found["agentboard"])


@pytest.mark.parametrize(("kind", "valid"), [("ball", True), ("box", False)])
def test_as_agentboard_a_blocked_way_is_an_executed_command_unless_a_wall_or_box_blocks_it(env, kind, valid):
    def facing_one(seed):
        env.reset(one(5, seed, setting="agentboard"))
        near = [c for c, route in env.commands().routes.items() if re.fullmatch(rf"go to \w+ {kind} 1", c) and route]
        if near:
            env.step(near[0])
        ahead = env.view.cells.get(text.front(env.view.pose))
        return ahead is not None and ahead.type == kind

    assert any(facing_one(seed) for seed in range(100_000, 100_050))
    before, item = env.view.pose, text.listed(env.view)[0]
    assert env.step("move forward").valid is valid
    assert env.view.pose == before
    assert env.step(f"go to {item.name} 1").observation == "No change in state."


def test_as_agentboard_commands_are_read_to_the_letter_and_check_lists_them(env):
    env.reset(one(5, 100_003, setting="agentboard"))
    listing = env.step("please check").observation
    assert listing == env.step("check valid actions").observation
    assert listing.startswith("You can take the following actions: turn left, turn right, ")
    assert listing.endswith(", check available actions")
    for command in ("inventory", "turn left.", "the turn left", "go to the red ball"):
        answer = env.step(command)
        assert (answer.valid, answer.observation) == (
            False,
            "The action is not recognized. Please check valid actions.",
        )
    assert env.step("  TURN LEFT ").valid


@pytest.mark.parametrize("level", [*levels.LEVELS, "PutNextLocalS6N4", "SynthSeq"])
def test_expert_solves_a_task_of_every_level_as_agentboard_plays_it(env, level):
    task = one(level, 100_002, setting="agentboard")
    start = env.reset(task)
    here = env.snapshot()
    steps = [env.step(command) for _, command in babyai._expert(env, task)]
    assert all(s.valid for s in steps)
    assert (steps[-1].over, steps[-1].reward) == (True, 1.0)
    env.restore(here)
    assert [env.step(command) for _, command in babyai._expert(env, task)] == steps
    assert env.reset(task) == start


@needs_data
def test_as_agentboard_the_official_tasks_give_the_expert_what_the_original_gives(env):
    rewards = {}
    for task in babyai.tasks("test", {"data": str(DATA), "setting": "agentboard"}):
        assert len(solution(env, task)) <= task.max_steps
        rewards[task.id] = env._progress
    assert {id_: r for id_, r in rewards.items() if r < 1} == {"agentboard-108": 0.75}


def test_wrong_settings_and_broken_files_are_named(tmp_path):
    with pytest.raises(UserError, match="no setting 'eto'; known: ours, agentboard"):
        babyai.tasks("train", {"setting": "eto"})
    for line in ("[]", '{"id": 0, "additional_info": {"subtask": "x"}}', '{"id": 0, "subgoals": ["a"]', "\x00"):
        (tmp_path / "test.jsonl").write_text("\n" + line)
        with pytest.raises(UserError, match=r"test\.jsonl:2 is no task of AgentBoard's"):
            babyai.tasks("test", {"data": str(tmp_path)})
