"""ALFWorld: the same texts as the stock engine, solvable games, forks that are identities, disjoint splits."""

import copy
import functools
import importlib.util
import random
import subprocess
import sys
import warnings

import pytest

from agentrm_jax.envs.alfworld import engine, games, generate
from agentrm_jax.envs.alfworld import environment as alfworld
from agentrm_jax.testing.shared import needs_shared, shared_data
from agentrm_jax.types import UserError

DATA = shared_data()
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("alfworld") is None, reason="alfworld is not installed (extra: alfworld)"
)
official = needs_shared("alfworld")


def solve(options, task, limit=100):
    """The expert's answers to a whole episode."""
    env = alfworld.make(options)
    env.reset(task)
    answers = []
    for thought, command in alfworld.SPEC.expert(env, task):
        assert thought
        answers.append(env.step(command))
        if answers[-1].over or len(answers) >= limit:
            break
    return answers


def stock_engine(game, wording, monkeypatch):
    """TextWorld's own engine on the same texts. It parses each template anew for each command; here each is parsed once."""
    monkeypatch.setattr(sys, "argv", sys.argv[:1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        textworld = pytest.importorskip("textworld")
        from alfworld.agents.environment.alfred_tw_env import AlfredDemangler
        from textworld.envs import PddlEnv
        from textworld.envs.pddl import textgen

        parse = functools.lru_cache(None)(textgen._parse_and_convert)
        monkeypatch.setattr(
            textgen, "_parse_and_convert", lambda text, rule_name, **_: copy.deepcopy(parse(text, rule_name=rule_name))
        )
        env = AlfredDemangler(PddlEnv(textworld.EnvInfos(admissible_commands=True, won=True)))
        grammar = games.reword(game.grammar, wording)
        env.load(
            {
                "pddl_domain": game.domain,
                "grammar": grammar,
                "pddl_problem": game.problem,
                "walkthrough": list(game.walkthrough),
            }
        )
    return env


def agree(game, wording, plan, monkeypatch):
    """Plays `plan` on both engines and compares everything that an agent can see or be judged by."""
    stock = stock_engine(game, wording, monkeypatch)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        state = stock.reset()
        world = engine.build_world(game, wording)
        position = engine.start(world)
        assert engine.introduction(world) == state.feedback
        for choose in plan:
            possible = engine.commands(world, position.facts)
            assert sorted(possible) == state["admissible_commands"]
            command = choose(sorted(possible))
            said = engine.NOTHING
            if command in possible:
                position, said = engine.play(world, position, *possible[command])
            state, _, _ = stock.step(command)
            assert (said, position.won) == (state.feedback, state["won"])
    return position


def test_generated_household_reads_like_the_stock_engine(monkeypatch):
    rng = random.Random(3)
    game = min((generate.household(n, "train") for n in range(12)), key=lambda g: len(g.problem))
    agree(game, "put", [lambda possible: rng.choice(possible)] * 6 + [lambda _: "dance", lambda _: "help"], monkeypatch)


@official
def test_official_game_reads_like_the_stock_engine_and_is_won_by_its_walkthrough(monkeypatch):
    tasks = alfworld.tasks("dev", {"data": str(DATA)})
    game = min((games.load_official(str(DATA), task.args) for task in tasks), key=lambda g: len(g.problem))
    walk = [engine.canonical(c, "move") for c in game.walkthrough]
    assert agree(game, "move", [lambda _, c=c: c for c in walk], monkeypatch).won


@official
def test_official_games_are_won():
    options = {"data": str(DATA)}
    tasks = alfworld.tasks("dev", options)
    assert len(tasks) == 140
    for task in tasks[::7]:
        last = solve(options, task)[-1]
        assert (last.reward, last.progress, last.over) == (1.0, 1.0, True), task.id


@official
def test_planner_solves_official_games_without_their_walkthrough():
    from agentrm_jax.envs.alfworld import experts

    for task in alfworld.tasks("dev", {"data": str(DATA)})[::14]:
        world = engine.build_world(games.load_official(str(DATA), task.args), "put")
        position = engine.start(world)
        for _, command in experts.planner(world, lambda: position):  # noqa: B023 (read in this round only)
            position, _ = engine.play(world, position, *engine.commands(world, position.facts)[command])
        assert position.won, task.id


@official
def test_missing_split_is_named(tmp_path):
    with pytest.raises(UserError, match=r"valid_unseen.jsonl.xz.*split 'test'"):
        alfworld.tasks("test", {"data": str(tmp_path)})


@official
def test_a_folder_of_the_official_release_is_read_too(tmp_path):
    import json

    task = alfworld.tasks("dev", {"data": str(DATA)})[5]
    game = games.load_official(str(DATA), task.args)
    folder = tmp_path / "json_2.1.1" / "valid_unseen" / "some-task" / "trial_1"
    folder.mkdir(parents=True)
    row = {
        "pddl_domain": game.domain,
        "grammar": game.grammar,
        "pddl_problem": game.problem,
        "walkthrough": game.walkthrough,
    }
    (folder / "game.tw-pddl").write_text(json.dumps(row))
    options = {"data": str(tmp_path)}
    (task,) = alfworld.tasks("test", options)
    assert task.id == "some-task/trial_1"
    assert games.load_official(str(tmp_path), task.args).goal == game.goal
    assert solve(options, task)[-1].reward == 1.0


@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_generated_households_of_all_task_types_are_solvable(split):
    for task in alfworld.tasks(split, {})[:12]:
        answers = solve({}, task)
        assert answers[-1].reward == 1.0, task.id
        assert len(answers) <= task.max_steps
        assert all(a.valid for a in answers)


def test_explorer_finds_things_without_being_told_where():
    options = {"expert": "explorer"}
    tasks = alfworld.tasks("train", options)[:12]
    solved = [solve(options, task) for task in tasks]
    assert all(answers[-1].reward == 1.0 for answers in solved)
    assert sum(map(len, solved)) > sum(len(solve({}, task)) for task in tasks)


def test_households_do_not_depend_on_the_process():
    code = "from agentrm_jax.envs.alfworld.generate import household; print(hash_(household(7, 'test').problem))"
    code = "import zlib; hash_ = lambda s: zlib.crc32(s.encode()); " + code
    runs = [
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        )
        for seed in "12"
    ]
    assert runs[0].stdout == runs[1].stdout != ""


def test_splits_are_disjoint_in_rooms_and_in_combinations():
    combination = {
        s: {generate.household(n, s).name.split("/")[0] for n in range(60)} for s in ("train", "dev", "test")
    }
    rooms = {s: {int(c.rsplit("-", 1)[1]) for c in found} for s, found in combination.items()}
    assert not combination["train"] & combination["dev"]
    assert rooms["test"] <= generate.UNSEEN_ROOMS
    assert not (rooms["train"] | rooms["dev"]) & generate.UNSEEN_ROOMS


def test_snapshots_can_be_restored_again_and_again_and_elsewhere():
    task = alfworld.tasks("train", {})[2]
    env, other = alfworld.make({}), alfworld.make({})
    env.reset(task)
    plan = [c for _, c in alfworld.SPEC.expert(env, task) if env.step(c)]
    env.reset(task)
    first = [env.step(c) for c in plan[:3]]
    kept = env.snapshot()
    rest = [env.step(c) for c in plan[3:]]
    for again in (env, other, env):
        again.restore(kept)
        assert [again.step(c) for c in plan[3:]] == rest
    assert first[-1].reward == 0.0
    assert rest[-1].reward == 1.0


def test_progress_counts_goal_conditions_and_never_falls():
    task = next(t for t in alfworld.tasks("train", {}) if alfworld.task_type(t).startswith("pick_heat"))
    answers = solve({}, task)
    progress = [a.progress for a in answers]
    assert progress == sorted(progress)
    assert progress[0] == 0.0
    heated = next(i for i, a in enumerate(answers) if "heat" in a.observation)
    assert progress[heated] == 0.5
    assert progress[-1] == 1.0


def test_agentboard_counts_sub_goals_and_lists_valid_actions():
    options = {"setting": "agentboard"}
    task = next(t for t in alfworld.tasks("train", options) if alfworld.task_type(t).startswith("pick_clean"))
    assert task.max_steps == 30
    env = alfworld.make(options)
    env.reset(task)
    assert "inventory" in env.step("check valid actions").observation
    assert alfworld.make({}).reset(task) == env.reset(task)
    assert sorted({a.progress for a in solve(options, task)}) == [0.0, pytest.approx(1 / 3), pytest.approx(2 / 3), 1.0]


@pytest.mark.parametrize(("wording", "verb"), [("put", "put"), ("move", "move")])
def test_both_wordings_are_understood_and_one_is_spoken(wording, verb):
    options = {"wording": wording}
    task = alfworld.tasks("train", options)[0]
    env = alfworld.make(options)
    env.reset(task)
    *rest, (_, last) = [pair for pair in alfworld.SPEC.expert(env, task) if env.step(pair[1])]
    assert last.startswith(verb + " ")
    other = {
        "put": last.replace("put", "move").replace(" in/on ", " to "),
        "move": last.replace("move", "put").replace(" to ", " on "),
    }
    env.reset(task)
    for _, command in rest:
        env.step(command)
    answer = env.step(other[wording])
    assert answer.reward == 1.0
    assert answer.observation.startswith(f"You {verb} ")


def test_an_impossible_command_is_invalid_and_changes_nothing():
    task = alfworld.tasks("train", {})[0]
    env = alfworld.make({})
    env.reset(task)
    before = env.snapshot()
    answer = env.step("go to the moon")
    assert (answer.observation, answer.valid, answer.over) == ("Nothing happens.", False, False)
    assert env.snapshot() == before


def test_unknown_setting_is_refused_by_name():
    with pytest.raises(UserError, match=r"no setting 'hard'.*eto, agentboard"):
        alfworld.tasks("train", {"setting": "hard"})


def test_importing_the_module_loads_no_engine():
    code = "import sys, agentrm_jax.envs.alfworld.environment; assert not {'alfworld', 'textworld', 'fast_downward'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_missing_package_is_reported_in_one_line(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    games.wheel.cache_clear()
    with pytest.raises(
        UserError,
        match=r"pip install --no-deps 'alfworld.* 'agentrm-jax\[alfworld\]' .*apt install build-essential cmake",
    ):
        alfworld.make({})
    games.wheel.cache_clear()
