"""What an environment declares: its options are checked, whoever passes them on."""

import asyncio
import dataclasses

import ml_collections
import pytest

from agentrm_jax.envs import catalogue
from agentrm_jax.envs.__main__ import main
from agentrm_jax.envs.catalogue import find, names
from agentrm_jax.envs.pool.pool import EnvironmentPool
from agentrm_jax.envs.spec import named, several, whole
from agentrm_jax.testing import toy_env
from agentrm_jax.types import UserError


def test_a_misspelt_option_is_named_by_the_program_the_commands_and_the_workers(capsys):
    env = ml_collections.ConfigDict({"names": ("maze",), "data": "", "options": {"maze": {"sises": (3,)}}})
    with pytest.raises(UserError, match="maze has no option 'sises'; did you mean sizes"):
        catalogue.resolve(env)
    assert main(["check", "maze", "--option", "sises=3"]) == 2
    assert "maze has no option 'sises'" in capsys.readouterr().err

    async def go():
        async with EnvironmentPool({"maze": {"sises": 3}}, workers=1) as pool:
            await pool.reset(find("maze").tasks("test", {})[0])

    with pytest.raises(UserError, match="maze has no option 'sises'"):
        asyncio.run(go())


def test_an_environment_that_declares_no_options_takes_any():
    toy_env.SPEC.check({"whatever": 1})
    strict = dataclasses.replace(toy_env.SPEC, options=("delay",))
    strict.check({"delay": 1, "data": "", "live": 2, "success_threshold": 0.5})
    with pytest.raises(UserError, match="known: data, live, success_threshold, observation_limit, delay"):
        strict.check({"whatever": 1})


def test_the_data_of_one_environment_counts_more_than_that_of_all(tmp_path):
    env = {"names": ("maze", "pddl"), "data": str(tmp_path), "options": {"maze": {"data": ""}, "pddl": {"count": 3}}}
    found = catalogue.resolve(ml_collections.ConfigDict(env))
    assert found["maze"].options == {"data": ""}
    assert found["pddl"].options == {"data": str(tmp_path), "count": 3}


@pytest.mark.parametrize("value", [None, "", 0, 7, "7"])
def test_a_whole_number(value):
    assert whole({"n": value}, "n", 7) == whole({}, "n", 7) == 7


@pytest.mark.parametrize("value", [-1, 2.5, "many", True, [3]])
def test_what_is_no_whole_number_is_named(value):
    with pytest.raises(UserError, match="option n must be a whole number above 0, not"):
        whole({"n": value}, "n", 7)


@pytest.mark.parametrize("value", ["a, b", ["a", "b"], ("a", "b")])
def test_several_values_are_a_list_or_a_text_with_commas(value):
    assert several({"n": value}, "n", ()) == ["a", "b"]


def test_one_value_needs_no_list_and_none_is_the_default():
    assert (several({"n": "a"}, "n", ()), several({"n": 3}, "n", ()), several({}, "n", ("x", "y"))) == (
        ["a"],
        [3],
        ["x", "y"],
    )


@pytest.mark.parametrize("name", [n for n in names() if find(n).expert is not None])
def test_every_environment_has_a_worked_example_in_the_form_of_its_tasks(name):
    spec = find(name)
    first, *turns = spec.example
    assert first.role == "user"
    assert first.content.startswith("Your task: ")
    assert [m.role for m in turns] == ["assistant", "user"] * (len(turns) // 2)
    assert all(m.content.startswith("Thought: ") and "\nAction: " in m.content for m in turns[::2])
    assert all(m.content.startswith(spec.observation_prefix) for m in turns[1::2])
    assert not any(m.loss for m in spec.example)


def test_one_environment_under_several_names_with_options_of_their_own():
    slow = named(toy_env.SPEC, "slow", snapshot=False)
    assert {t.key for t in slow.tasks("test", {})} == {f"slow/{t.id}" for t in toy_env.tasks("test", {})}
    for options, copies in (({}, False), ({"snapshot": True}, True)):
        env = slow.make(options)
        env.reset(toy_env.make_task())
        if copies:
            env.snapshot()
        else:
            with pytest.raises(NotImplementedError):
                env.snapshot()

    async def go():
        async with EnvironmentPool({"slow": {}}, 1, specs={"slow": slow}) as pool:  # it reaches workers as it is
            return await pool.reset(slow.tasks("test", {})[0])

    assert asyncio.run(go()).task.env == "slow"
