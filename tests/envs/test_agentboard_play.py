"""The setting `agentboard` of babyai and pddl plays as AgentBoard's own wrappers do: their episodes, recorded, are played again.

`record_agentboard.py` made the recordings; worlds, problems and sub-goals in them are ours.
"""

import json
from pathlib import Path

import pytest

from agentrm_jax.envs import catalogue
from agentrm_jax.types import Task

GOLDEN = Path(__file__).parent / "agentboard_golden"


def recorded(path):
    """The tasks of a recording, each with its `start`, and for every episode its `commands` and `answers`."""
    found = json.loads(path.read_text())
    for task in found["tasks"]:
        task["answers"] = [
            [[found["texts"][n], reward, over] for n, reward, over in episode] for episode in task["answers"]
        ]
    return found["tasks"]


def same_text(name, ours, theirs):
    """Whether two observations are equal; lists whose order is a set's there are compared sorted."""
    head = "Valid actions are: "
    if name == "pddl" and theirs.startswith(head) and ours.startswith(head):
        return sorted(ours[len(head) :].split(", ")) == sorted(theirs[len(head) :].split(", "))
    return ours == theirs


def differences(name, task):
    """(episode, turn, command, our answer, theirs) of the turns of a recorded task that are not equal."""
    env = catalogue.find(name).make({})
    found = []
    for n, (commands, answers) in enumerate(zip(task["commands"], task["answers"], strict=True)):
        start = env.reset(Task(name, task["id"], "test", 30, task["args"]))
        if [start.goal, start.observation] != task["start"]:
            found.append((n, -1, "", [start.goal, start.observation], task["start"]))
        for turn, (command, theirs) in enumerate(zip(commands, answers, strict=False)):
            answer = env.step(command)
            ours = [answer.observation, answer.reward, answer.over]
            if name == "pddl" and "look around" in command.lower() and "check" not in command.lower():
                # the original lists the facts in the order of a set
                ours[0], theirs = sorted(ours[0].split()), [sorted(theirs[0].split()), *theirs[1:]]
            elif same_text(name, ours[0], theirs[0]):
                ours[0] = theirs[0]
            if ours != theirs:
                found.append((n, turn, command, ours, theirs))
        if len(answers) < len(commands):
            found.append((n, len(answers), "", "goes on", "over"))
    env.close()
    return found


@pytest.mark.parametrize("name", ["babyai", "pddl"])
def test_recorded_episodes_of_the_original_are_played_alike(name):
    tasks = recorded(GOLDEN / f"{name}.json")
    answers = [answer for task in tasks for episode in task["answers"] for answer in episode]
    assert len(answers) > 500
    assert {over for *_, over in answers} == {True, False}
    for task in tasks:
        assert differences(name, task) == [], task["id"]
