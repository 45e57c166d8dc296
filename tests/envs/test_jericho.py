"""Text adventures: generated stories are won by their walkthrough, the same everywhere, and forked exactly; user games likewise."""

import importlib.util
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

from agentrm_jax.envs.jericho import environment as jericho
from agentrm_jax.envs.jericho.interpreter import about_session, offers_to_restart
from agentrm_jax.text import clean
from agentrm_jax.types import Task, UserError

engine = pytest.mark.skipif(
    importlib.util.find_spec("jericho") is None or importlib.util.find_spec("textworld") is None,
    reason="jericho or textworld is not installed (extra: jericho)",
)
STORY = Task("jericho", "cooking-train-1", "train", 30, {"kind": "cooking", "seed": 1})


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    """One cache for the whole module: a story takes seconds to compile."""
    return {"cache": str(tmp_path_factory.mktemp("stories"))}


def solve(env, task):
    start = env.reset(task)
    commands = []
    for thought, command in jericho.SPEC.expert(env, task):
        assert thought
        commands.append(command)
    return start, commands, [env.step(c) for c in commands]


@engine
def test_a_story_is_won_by_its_walkthrough_sub_goal_by_sub_goal(options):
    env = jericho.make(options)
    start, commands, answers = solve(env, STORY)
    assert start.goal
    assert start.observation.startswith("-= ")
    assert len(commands) <= STORY.max_steps
    progress = [a.progress for a in answers]
    assert progress == sorted(progress)
    assert len(set(progress)) > 3
    assert (answers[-1].reward, answers[-1].over) == (1.0, True)
    assert not any(a.over for a in answers[:-1])
    assert not any("<score>" in a.observation or "\n>" in a.observation for a in answers)


@engine
def test_compiling_a_story_is_said_once(options, capsys):
    task = Task("jericho", "cooking-train-2", "train", 30, {"kind": "cooking", "seed": 2})
    env = jericho.make(options)
    env.reset(task)
    said = capsys.readouterr().err
    assert said.startswith("jericho: compiling the story cooking-train-2, some seconds, once (")
    assert said.count("\n") == 1
    jericho.make(options).reset(task)
    assert capsys.readouterr().err == ""


@engine
def test_a_story_whose_things_the_parser_confuses_is_replaced_by_one_that_can_be_won(options):
    env = jericho.make(options)
    confused = Task("jericho", "errands-test-0", "test", 30, {"kind": "errands", "seed": 0})
    _, commands, answers = solve(env, confused)
    assert answers[-1].reward == 1.0
    assert len(commands) <= confused.max_steps


@engine
def test_replay_and_forks_give_the_same_answers(options):
    env, other = jericho.make(options), jericho.make(options)
    start, commands, answers = solve(env, STORY)
    assert solve(env, STORY) == (start, commands, answers)
    env.reset(STORY)
    half = len(commands) // 2
    for command in commands[:half]:
        env.step(command)
    kept = env.snapshot()
    for again in (env, env, other):
        again.restore(kept)
        assert [again.step(c) for c in commands[half:]] == answers[half:]


@engine
def test_a_story_is_the_same_in_another_process(options, tmp_path):
    code = (
        "import sys; from agentrm_jax.envs.jericho import environment as jericho; from agentrm_jax.types import Task\n"
        f"e = jericho.make({{'cache': {str(tmp_path)!r}}}); s = e.reset(Task('jericho', 'x', 'train', 30, {dict(STORY.args)!r}))\n"
        "print(repr((s.observation, [c for _, c in jericho.expert(e, None)])))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONHASHSEED": "17"},
        capture_output=True,
        text=True,
        check=True,
    )
    start, commands, _ = solve(jericho.make(options), STORY)
    assert run.stdout.strip() == repr((start.observation, commands))


@engine
def test_commands_that_cannot_be_read_or_are_not_play_are_invalid(options):
    env = jericho.make(options)
    env.reset(STORY)
    assert env.step("inventory").valid
    for command in ("dance wildly", "take the moon", "quit", "restore", "tw-print state"):
        answer = env.step(command)
        assert not answer.valid, command
        assert not answer.over


@engine
def test_games_of_the_users_are_found_and_played(options, tmp_path):
    """A compiled story stands for a game that Jericho does not know: its score is asked for."""
    env = jericho.make(options)
    _, commands, _ = solve(env, STORY)
    (tmp_path / "deep" / "in").mkdir(parents=True)
    (tmp_path / "deep" / "in" / "Zork9.z8").write_bytes(Path(env.game.path).read_bytes())
    mine = {"data": str(tmp_path)}
    (task,) = jericho.tasks("test", mine)
    assert task.id == "zork9"
    assert list(jericho.tasks("train", mine)) == []
    env = jericho.make(mine)
    env.reset(task)
    assert env.game.max_score > 1
    scores = [env.step(c).reward for c in commands[:-1]]
    assert scores == sorted(scores)
    assert 0.0 < scores[-1] < 1.0


SESSION = [
    "quit",
    "Q",
    "restart",
    "look. save",
    "look. restore",
    "look. quit",
    "look.quit",
    "look then save",
    "save, look",
    "me, save",
    "oops save",
    "script",
    "look; transcript on",
    "undo",
    "n. undo",
    "superbriefly",
    "tw-print state",
    "look. tw-extra-infos moves",
    "enable print state option",
    "restrict commands",
    "#record",
]


@engine
def test_every_sentence_of_a_line_is_checked_for_commands_about_the_session(options, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    env = jericho.make(options)
    env.reset(STORY)
    env.step("take all")
    before = env.snapshot()
    for command in SESSION:
        answer = env.step(command)
        assert (answer.observation, answer.valid, answer.over) == (jericho._NOT_PLAYED, False, False), command
    assert [list(a) if hasattr(a, "__len__") else a for a in env.snapshot().memory] == [
        list(a) if hasattr(a, "__len__") else a for a in before.memory
    ]
    assert list(tmp_path.iterdir()) == []


def test_words_of_play_are_not_taken_for_the_session():
    for line in (
        "look up wilhelm in record",
        "say hello. take lamp",
        "examine save button",
        "record",
        "turn dial to 3",
    ):
        assert not about_session(line, 6, False), line
    assert about_session("restor", 6, False)
    assert not about_session("restrict commands", 9, False)


@engine
def test_what_a_game_saves_under_another_name_reaches_neither_the_users_folder_nor_another_episode(
    options, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(jericho, "about_session", lambda *_: False)
    env = jericho.make(options)
    _, commands, _ = solve(env, STORY)
    env.reset(STORY)
    fresh = env.step("look").observation
    for command in commands[:-1]:
        env.step(command)
    env.step("save")
    env.step("script")
    assert list(tmp_path.iterdir()) == []
    env.reset(STORY)
    restored = env.step("restore")
    assert restored.reward == 0.0
    assert env.step("look").observation == fresh
    folder = env.interpreter._folder.path
    assert list(folder.iterdir()) == []
    env.close()
    assert not folder.exists()


@engine
def test_a_game_that_asks_whether_to_quit_hears_no(options, monkeypatch):
    monkeypatch.setattr(jericho, "about_session", lambda *_: False)
    env = jericho.make(options)
    env.reset(STORY)
    looked = env.step("look").observation
    asked = env.step("look. quit")
    assert not asked.over
    assert env.step("look").observation == looked


def test_the_end_of_a_game_that_jericho_does_not_know_is_what_it_offers():
    assert offers_to_restart(
        "You have died.\n\nWould you like to RESTART, RESTORE a saved game, give the FULL score\nor QUIT?\n>"
    )
    assert offers_to_restart(
        "Do you want to restart the game, restore a saved position, or end this session?\n(Type RESTART, ...):\n\n>"
    )
    assert not offers_to_restart("Would you like to buy a carpet, sir? Would you like to rest?")


@engine
def test_text_that_is_none_is_an_ordinary_turn(options):
    """NUL, surrogates, controls, other scripts and lines that are too long, as a policy may write them."""
    env = jericho.make(options)
    env.reset(STORY)
    for command in (
        "look\x00",
        "\x00",
        "\ud83d",
        "x \u044f\u4f60\U0001f600",
        "\x1b[2J",
        "x" * 100_000,
        "é" * 500,
        "\u0301",
    ):
        answer = env.step(command)
        assert not answer.over
        assert answer.observation == clean(answer.observation)
    assert env.step("look").valid


class Cellar:
    """An interpreter of a game that Jericho knows: a brass lamp that can be taken or dropped, and lit in two words for the same."""

    is_fully_supported = True
    word_length = 9

    def __init__(self):
        self.state, self.act_gen = (False, False), self

    def get_state(self):
        return self.state

    def set_state(self, state):
        self.state = state

    def step(self, command):
        held, lit = self.state
        lamp = command.endswith((" lamp", " brass"))
        text = {"look": "A cellar.", "inventory": "A brass lamp." if held else "You have it all at home."}.get(command)
        if lamp and command.startswith("examine"):
            text = "It shines." if lit else "It is made of brass."
        elif command == "take lamp":
            self.state = (True, lit)
        elif command == "drop lamp":
            self.state = (False, lit)
        elif command in ("light lamp", "kindle lamp"):
            self.state = (held, True)
        return text or ("Done." if lamp else "You can't see any such thing."), 0, False, {}

    def get_dictionary(self):
        return [types.SimpleNamespace(word=word) for word in ("lamp", "brass", "cellar", "take", "have", "all")]

    def get_player_location(self):
        return types.SimpleNamespace(child=1)

    def get_player_object(self):
        return None

    def get_world_objects(self):
        things = [
            types.SimpleNamespace(num=n, child=0, sibling=0, name=name) for n, name in enumerate(["", "Brass Lamp"])
        ]
        return things

    def generate_actions(self, things):
        return [f"{verb} {thing}" for verb in ("take", "drop", "light", "kindle", "examine") for thing in things]

    def _filter_candidate_actions(self, candidates, use_ctypes, use_parallel):
        groups, before = {}, self.state
        for command in candidates:
            self.state = before
            self.step(command)
            if self.state != before:
                groups.setdefault(self.state, []).append(command)
        return groups


@engine
def test_check_valid_actions_lists_what_changes_the_world_without_changing_it(options):
    env = jericho.make(options)
    env.game, env.interpreter = (
        jericho.Game("cellar.z5", "Light the lamp.", 1, (), False, labels=("It shines",)),
        Cellar(),
    )
    start = env.interpreter.state
    answer = env.step("Check valid actions")
    assert answer.observation == "You can take the following actions: light lamp, take lamp, check valid actions"
    assert (answer.valid, answer.over, answer.reward) == (True, False, 0.0)
    assert env.interpreter.state == start
    env.step("take lamp")
    assert "drop lamp, light lamp, check" in env.step("check valid actions").observation


@engine
def test_stories_read_check_valid_actions_as_an_unknown_command(options):
    env = jericho.make(options)
    env.reset(STORY)
    assert not env.step("check valid actions").valid


def test_splits_are_disjoint_and_of_both_kinds():
    tasks = {split: jericho.tasks(split, {}) for split in ("train", "dev", "test")}
    ids = [t.id for found in tasks.values() for t in found]
    assert len(ids) == len(set(ids))
    for found in tasks.values():
        assert {t.args["kind"] for t in found} == {"cooking", "errands"}


def test_agentboards_games_are_the_test_split_in_its_order(tmp_path):
    for name in ("zork1.z5", "huntdark.z5", "aaa.z3", "bbb.z3"):
        (tmp_path / name).write_bytes(b"")
    goals = '{"order": ["zork1", "absent", "huntdark"], "goals": {"zork1": "Find the lamp.", "darkhunt": "Leave."}}'
    (tmp_path / "agentboard_goals.json").write_text(goals)
    options = {"data": str(tmp_path)}
    assert [(t.id, t.args["goal"]) for t in jericho.tasks("test", options)] == [
        ("zork1", "Find the lamp."),
        ("huntdark", "Leave."),
    ]
    assert [t.id for t in jericho.tasks("dev", options)] == ["aaa"]
    assert [t.id for t in jericho.tasks("train", options)] == ["bbb"]


def test_wrong_options_are_named(tmp_path):
    with pytest.raises(UserError, match="there is no game"):
        jericho.tasks("test", {"data": str(tmp_path)})
    with pytest.raises(UserError, match="no progress 'guess'"):
        jericho.tasks("test", {"progress": "guess"})


def test_a_missing_package_is_reported_in_one_line(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'agentrm-jax\[jericho\]'.*apt install build-essential"):
        jericho.make({})


def test_importing_the_module_loads_no_engine():
    code = "import sys, agentrm_jax.envs.jericho.environment; assert not {'jericho', 'textworld', 'spacy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
