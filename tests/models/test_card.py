"""A model's card: written and read back, older ones too, and what it says of the texts a model was told."""

import dataclasses
import json

import pytest

from agentrm_jax.models.card import Card, Texts, differences, read_card, reward_specs, texts_of
from agentrm_jax.models.lora import LoRA
from agentrm_jax.types import Task, UserError

TASKS = [Task("hall", "1", "train", 5), Task("hall", "2", "train", 5)]


@pytest.fixture
def card(tiny) -> Card:
    texts = {"hall": Texts("ours", ("An agent walks through a hall. Its goal: {goal}\n\n{observation}",))}
    return Card("explicit", "regression", tiny, lm_head=False, value_head=True, base="runs/sft", texts=texts)


def write(folder, row) -> None:
    (folder / "model.json").write_text(json.dumps(row))


def test_a_card_is_read_as_it_was_written(card, tmp_path):
    lora = dataclasses.replace(card, lora=LoRA(4, 8.0, ("q_proj",)), aggregate="min", date="2026-01-02")
    for one in (card, lora):
        write(tmp_path, one.to_json())
        assert read_card(tmp_path) == one


def test_cards_of_older_runs_are_read(card, tmp_path, tiny):
    write(
        tmp_path,
        {"kind": "policy", "loss": "imitation", "config": tiny.to_json(), "lm_head": True, "value_head": False},
    )
    assert read_card(tmp_path) == Card("policy", "imitation", tiny, lm_head=True, value_head=False)


def test_a_folder_without_a_card_has_none(tmp_path):
    assert read_card(tmp_path) is None


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"config": 1}', '{"schema_version": 9}', '{"config": {"vocab', "null"]
)
def test_what_is_no_card_is_named(tmp_path, text):
    (tmp_path / "model.json").write_text(text)
    with pytest.raises(UserError, match=r"model\.json"):
        read_card(tmp_path)


def test_a_reward_model_is_told_what_it_was_trained_with(card, hall):
    now = dataclasses.replace(hall, rm_instruction="Other words. {goal}")
    told = reward_specs(card, {"hall": now})
    assert told["hall"].rm_instruction == hall.rm_instruction
    assert reward_specs(None, {"hall": now})["hall"] is now
    assert reward_specs(card, {})["hall"].rm_instruction == hall.rm_instruction, "also without the environment's module"


def test_differences_between_training_and_a_run_are_one_line_each(card, hall):
    same = texts_of({"hall": hall}, TASKS, "", reader="reward")
    assert differences(card, same) == []
    other = texts_of({"hall": dataclasses.replace(hall, rm_instruction="x")}, TASKS, "their/prompts", reader="reward")
    (line,) = differences(card, other)
    assert line.startswith("hall: trained with the texts of ours (")
    assert "this run has those of their/prompts" in line
    assert differences(card, {"new": Texts("ours", ("y",))}) == []


def test_texts_that_differ_by_task_are_all_noted(hall):
    def told(task):
        return dataclasses.replace(hall, rm_instruction=f"room {task.id}", told=None)

    texts = texts_of({"hall": dataclasses.replace(hall, told=told)}, TASKS, "", reader="reward")
    assert [t.split("\n")[0] for t in texts["hall"].instructions] == ["room 1", "room 2"]
