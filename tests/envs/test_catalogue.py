"""The catalogue: shipped environments and users' modules, keyed by SPEC.name, with their options and texts."""

import sys

import ml_collections
import pytest

from agentrm_jax.envs import catalogue
from agentrm_jax.envs.catalogue import SHIPPED, find, names, resolve
from agentrm_jax.run.flags import override
from agentrm_jax.types import UserError

MODULE = """
from agentrm_jax.envs.spec import EnvSpec
from agentrm_jax.types import Task

def make(options): ...
def tasks(split, options):
    return [Task({env!r}, str(i), split, 3) for i in range(4)]

SPEC = EnvSpec(name="hall", make=make, tasks=tasks, instruction="i", rm_instruction="r", options=("flag", "size"))
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The folder the program is started in, with a module of the user's own, not on Python's path."""
    (tmp_path / "my").mkdir()
    (tmp_path / "my" / "module.py").write_text(MODULE.format(env="hall"))
    (tmp_path / "single.py").write_text(MODULE.format(env="hall"))
    (tmp_path / "misnamed.py").write_text(MODULE.format(env="misnamed"))
    (tmp_path / "broken.py").write_text("SPEC = 1 / 0\n")
    (tmp_path / "textless.py").write_text(MODULE.format(env="hall").replace('instruction="i"', "instruction=None", 1))
    (tmp_path / "leaves.py").write_text("raise SystemExit(3)\n")
    (tmp_path / "other.py").write_text("SPEC = 'text'\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    yield tmp_path
    for name in ("my", "my.module", "single", "misnamed", "broken", "other", "textless"):
        sys.modules.pop(name, None)


def env(*places: str, **settings) -> ml_collections.ConfigDict:
    config = {"names": places, "split": "test", "start": 0, "count": 9, "data": "", "prompts": ""}
    return ml_collections.ConfigDict(config | {"options": ml_collections.ConfigDict()} | settings)


def test_every_shipped_name_is_its_specs_name():
    assert names() == sorted(SHIPPED)
    assert all(find(name).name == name for name in SHIPPED)


@pytest.mark.parametrize("place", ["my.module", "single"])
def test_a_users_module_is_found_from_the_folder_and_keyed_by_its_specs_name(folder, place):
    found = resolve(env(place))
    assert list(found) == ["hall"]
    assert (found["hall"].place, found["hall"].spec.name) == (place, "hall")
    assert list(found.pool_options) == [place]
    assert {t.env for t in catalogue.tasks(env(place), found["hall"])} == {"hall"}


def test_a_module_may_hold_several_and_make_them(folder):
    more = "from agentrm_jax.envs.spec import named\nsmall = named(SPEC, 'small')\n"
    more += "def make_large():\n    return named(SPEC, 'large', size=7)\n"
    (folder / "single.py").write_text(MODULE.format(env="hall") + more)
    settings = ml_collections.ConfigDict({"single": {"flag": True}, "large": {"size": 3}})
    found = resolve(env("single:small", "single:make_large", "single", options=settings))
    assert list(found) == ["small", "large", "hall"]
    assert [entry.options for entry in found.values()] == [{"flag": True}, {"flag": True, "size": 3}, {"flag": True}]
    assert list(found.pool_options) == ["single:small", "single:make_large", "single"]
    assert {t.env for t in catalogue.tasks(env("single:small"), found["small"])} == {"small"}


@pytest.mark.parametrize("key", ["env.options.my.module.flag", "env.options.hall.flag"])
def test_options_of_a_users_module_are_typed_and_reachable_under_both_names(folder, key):
    config = ml_collections.ConfigDict({"env": env("my.module")})
    override(config, key, "false")
    override(config, key.replace("flag", "size"), "3")
    assert resolve(config.env)["hall"].options == {"flag": False, "size": 3}


def test_groups_below_an_option_reach_an_environment_as_dicts():
    config = ml_collections.ConfigDict({"env": env("openenv")})
    for key, text in (("seeds", "{'test': '0-1'}"), ("reset.where.row", "3"), ("base_url", "http://127.0.0.1:9")):
        override(config, f"env.options.openenv.{key}", text)
    entry = resolve(config.env)["openenv"]
    assert entry.options == {"seeds": {"test": "0-1"}, "reset": {"where": {"row": 3}}, "base_url": "http://127.0.0.1:9"}
    assert type(entry.options["reset"]["where"]) is dict
    assert sorted(t.id for t in catalogue.tasks(config.env, entry)) == ["seed-0", "seed-1"]


def test_options_of_all_count_less_than_an_environments_own(folder):
    options = ml_collections.ConfigDict({"maze": {"data": "mine"}})
    (folder / "theirs").mkdir()
    found = resolve(env("maze", "babyai", data="theirs", options=options))
    assert found["maze"].options["data"] == "mine"
    assert found["babyai"].options["data"] == "theirs"


def test_a_folder_of_data_that_is_not_there_is_named(folder):
    with pytest.raises(UserError, match=r"config\.env\.data=nowhere: there is no such folder"):
        resolve(env("maze", data="nowhere"))


def test_options_that_name_no_environment_are_named(folder):
    with pytest.raises(
        UserError, match=r"config\.env\.options\.mazes: this run has no environment 'mazes'; it has maze, hall"
    ):
        resolve(env("maze", "my.module", options=ml_collections.ConfigDict({"mazes": {"sizes": (3,)}})))
    resolve(env("maze", options=ml_collections.ConfigDict({"babyai": {"seeds": 1}})))  # configs have them for all


@pytest.mark.parametrize(
    ("places", "message"),
    [
        (("maez",), "no environment named 'maez'.*did you mean maze"),
        (("no.such.module",), "environment module 'no.such.module' cannot be imported.*ModuleNotFoundError"),
        (("broken",), "environment module 'broken' cannot be imported.*ZeroDivisionError"),
        (("leaves",), "environment module 'leaves' cannot be imported.*SystemExit"),
        (("single:sample",), "environment module 'single:sample' cannot be imported or has no sample: AttributeError"),
        (("single:tasks",), "environment module 'single:tasks' cannot be imported or has no tasks: TypeError"),
        (("os:getcwd",), "getcwd of environment module 'os:getcwd' is a str, not an EnvSpec"),
        (("other",), "SPEC of environment module 'other' is a str, not an EnvSpec"),
        (("textless",), "instruction of environment module 'textless' is a NoneType, not a text"),
        (("single", "my.module"), "hall twice .single and my.module."),
    ],
)
def test_what_is_wrong_with_a_place_is_named(folder, places, message):
    with pytest.raises(UserError, match=message):
        resolve(env(*places))


def test_an_unknown_option_and_a_threshold_out_of_range_are_named(folder):
    with pytest.raises(UserError, match="hall has no option 'flog'; did you mean flag"):
        resolve(env("single", options=ml_collections.ConfigDict({"hall": {"flog": 1}})))
    with pytest.raises(UserError, match="success_threshold must be a number"):
        resolve(env("single", options=ml_collections.ConfigDict({"hall": {"success_threshold": 2}})))


def test_tasks_carry_the_specs_name(folder):
    found = resolve(env("misnamed"))
    with pytest.raises(UserError, match="task 0 of misnamed says env='misnamed'; it must be the SPEC's name, 'hall'"):
        catalogue.tasks(env("misnamed"), found["hall"])


def test_the_choice_of_tasks_is_the_same_for_everyone_and_says_when_there_are_none(folder):
    found = resolve(env("single"))
    some = catalogue.tasks(env("single", count=2), found["hall"])
    assert catalogue.tasks(env("single"), found["hall"])[:2] == some
    with pytest.raises(UserError, match="hall has 4 tasks in split 'test', none from number 4 on"):
        catalogue.tasks(env("single", start=4), found["hall"])


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ("1 / 0", r"hall could not list its tasks: ZeroDivisionError: division by zero \(.*hall.py, line 7\)"),
        ("None", "hall could not list its tasks: TypeError"),
        ("['a']", "hall lists a str among its tasks; each must be a Task"),
        ("[Task('hall', 'a', split, 0)]", "task a of hall has max_steps=0; it must be at least 1"),
        ("[Task('hall', 'a', split, 3)] * 2", "two tasks of hall have the id 'a' in split 'test'; give each its own"),
    ],
)
def test_what_is_wrong_with_a_users_tasks_is_named_before_anything_runs(folder, tasks, message):
    listed = "[Task({env!r}, str(i), split, 3) for i in range(4)]"
    (folder / "hall.py").write_text(MODULE.replace(listed, tasks))
    sys.modules.pop("hall", None)
    try:
        found = resolve(env("hall"))
        with pytest.raises(UserError, match=message):
            catalogue.tasks(env("hall"), found["hall"])
    finally:
        sys.modules.pop("hall", None)
