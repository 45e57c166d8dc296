"""The flag that reads AgentRM's prompt folder; the folder here has its layout, and texts of our own."""

import json

import ml_collections
import pytest

from agentrm_jax.envs import catalogue
from agentrm_jax.prompts import opening
from agentrm_jax.types import Message, Task, UserError

EXAMPLE = [
    {"role": "user", "content": "An example. You see a lamp."},
    {"role": "assistant", "content": "Thought: Light helps.\nAction: use lamp 1"},
    {"role": "user", "content": "Observation: It is on. End of the example."},
]


def write(root, name, reward_name="", examples=(EXAMPLE, EXAMPLE[:1])):
    for folder in ("instructions", "icl_examples", "prm_instruction"):
        (root / folder).mkdir(exist_ok=True)
    (root / "instructions" / f"{name}_inst.txt").write_text(f"Play {name}.\n")
    (root / "icl_examples" / f"{name}_icl.json").write_text(json.dumps(examples))
    about = f"Watch {reward_name or name}.\n{{task_goal}}\nIt acts."
    (root / "prm_instruction" / f"{reward_name or name}_wo_turninfo.txt").write_text(about)


def specs(root, *names, **options):
    env = {"names": names, "data": "", "prompts": str(root), "options": options}
    return catalogue.resolve(ml_collections.ConfigDict(env)).specs


def test_policy_and_reward_model_are_told_the_texts_of_the_folder(tmp_path):
    write(tmp_path, "maze")
    spec = specs(tmp_path, "maze")["maze"]
    instruction, ok, *example, task = opening(spec, "get out", "A wall.", reader="policy", examples=1)
    assert (instruction.content, ok.content) == ("Play maze.", "OK")
    assert example == [Message(m["role"], m["content"]) for m in EXAMPLE]
    assert task == Message("user", "Your task: get out\n\nA wall.")
    (told,) = opening(spec, "get out", "A wall.", reader="reward")
    assert told.content == "Watch maze.\nget out\nIt acts.\n\nA wall."


@pytest.mark.parametrize("name", ["alfworld", "sciworld"])
def test_agentboards_setting_has_texts_of_its_own(tmp_path, name):
    write(tmp_path, name)
    write(tmp_path, f"{name}_ab")
    both = {setting: specs(tmp_path, name, **{name: {"setting": setting}})[name] for setting in ("eto", "agentboard")}
    assert (both["eto"].instruction, both["agentboard"].instruction) == (f"Play {name}.", f"Play {name}_ab.")
    assert both["agentboard"].rm_instruction.startswith(f"Watch {name}_ab.")


@pytest.mark.parametrize(
    ("env", "argument", "kinds", "reward_names"),
    [
        ("pddl", "domain", ("gripper", "barman"), ("pddl_gripper", "pddl_barman")),
        ("tool_query", "kind", ("weather", "movie"), ("tool_query", "tool_query")),
        ("tool_operation", "kind", ("sheet", "todo"), ("tool_operation", "tool_operation")),
    ],
)
def test_some_texts_depend_on_the_task(tmp_path, env, argument, kinds, reward_names):
    for kind, reward_name in zip(kinds, reward_names, strict=True):
        name = f"{'pddl' if env == 'pddl' else 'tool'}_{kind}"
        write(tmp_path, name, reward_name)
        spec = specs(tmp_path, env)[env].texts(Task(env, kind, "test", 5, {argument: kind}))
        assert spec.instruction == f"Play {name}."
        assert spec.rm_instruction == f"Watch {reward_name}.\n{{goal}}\nIt acts."


def test_without_the_flag_and_for_other_environments_the_texts_stay_ours(tmp_path):
    write(tmp_path, "maze")
    ours = specs("", "maze", "agentgym")
    assert ours["maze"].instruction != "Play maze."
    assert specs(tmp_path, "agentgym")["agentgym"] == ours["agentgym"]


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(UserError, match=r"config\.env\.prompts=.*nowhere.*instructions"):
        specs(tmp_path / "nowhere", "maze")
    write(tmp_path, "maze")
    with pytest.raises(UserError, match=r"prm_instruction/babyai_wo_turninfo\.txt"):
        specs(tmp_path, "babyai")
    write(tmp_path, "maze", examples=[["not a message"]])
    with pytest.raises(UserError, match=r"maze_icl\.json is no list of conversations"):
        specs(tmp_path, "maze")
