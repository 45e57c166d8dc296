"""Episodes as segments: who is told what, and every turn tokenised once, whichever way one comes to it."""

import pytest

from agentrm_jax.prompts import Encoder, opening, represented, transcript
from agentrm_jax.testing.scripted import walk
from agentrm_jax.types import Action, Message, Outcome, State, Task, UserError, trajectory_of

TASK = Task("hall", "1", "train", 5)


def start() -> State:
    return State(TASK, "leave", outcome=Outcome("A door."))


def ids(segments) -> list[list[int]]:
    return [s.tokens.tolist() for s in segments]


def test_the_policy_is_told_how_to_reply_and_the_reward_model_what_the_task_is(hall):
    (told,) = opening(hall, "leave", "A door.", reader="policy")
    assert told == Message("user", f"{hall.instruction}\n\nYour task: leave\n\nA door.")
    (told,) = opening(hall, "leave", "A door.", reader="reward", examples=1)
    assert told == Message("user", "An agent walks through a hall. Its goal: leave\n\nA door.")
    assert "Action:" not in told.content


def test_an_example_is_shown_between_instruction_and_task_and_none_of_it_is_learned(hall):
    messages = opening(hall, "leave", "A door.", reader="policy", examples=1)
    assert [m.role for m in messages] == ["user", "assistant", "user", "assistant", "user"]
    assert (messages[0].content, messages[1].content) == (hall.instruction, "OK")
    assert tuple(messages[2:4]) == hall.example
    assert messages[4].content == "Your task: leave\n\nA door."
    assert not any(m.loss for m in messages)


@pytest.mark.parametrize("examples", [0, 1])
def test_a_state_a_trajectory_and_a_transcript_give_the_same_segments(chat, hall, examples):
    encoder = Encoder(chat, {"hall": hall}, examples=examples)
    state = walk(walk(start(), "Action: look", "Observation: a key"), "Action: leave", "Observation: done")
    turn = encoder.turn(state)
    assert [s.kind for s in turn] == ["prompt", "action", "observation", "action"]
    assert [s.loss for s in turn] == [False, True, False, True]
    assert ids(encoder.trajectory(trajectory_of(state))) == ids(turn)
    assert ids(encoder.history(state)) == [*ids(turn), chat.observation("Observation: done").tokens.tolist()]
    if not examples:
        assert ids(chat.conversation(transcript(hall, trajectory_of(state)))) == ids(turn)


def test_a_value_is_read_at_the_end_of_a_turn_before_its_outcome_is_known(chat, hall):
    encoder = Encoder(chat, {"hall": hall}, reader="reward")
    proposed = start().propose(Action("Action: leave"))
    turn = encoder.turn(proposed)
    assert turn[-1].tokens[-1] == chat.end_id
    assert ids(turn) == ids(encoder.turn(walk(start(), "Action: leave", "Observation: done")))


def test_the_past_of_siblings_is_the_same_object(chat, hall):
    encoder = Encoder(chat, {"hall": hall})
    root = start()
    one, two = (encoder.turn(root.propose(Action(f"Action: {a}"))) for a in ("look", "leave"))
    assert one[0] is two[0]
    assert encoder.history(root) is encoder.history(root)


def test_sampled_ids_are_used_as_they_are_unless_they_are_another_tokenizers(chat, hall):
    tokens = (*(i for letter in "Action: leave" for i in chat.encode(letter).tolist()), chat.end_id)
    encoder = Encoder(chat, {"hall": hall})
    read = [
        encoder.turn(walk(start(), "Action: leave", "Observation: done", ids))[-1].tokens.tolist()
        for ids in (tokens, tokens[::-1], (10**6, *tokens))
    ]
    text = chat.action("Action: leave").tokens.tolist()
    assert read == [list(tokens), text, text] != [text] * 3


def test_a_forgotten_state_is_forgotten_by_the_encoder_too(chat, hall):
    encoder = Encoder(chat, {"hall": hall})
    state = start()
    encoder.history(state)
    assert len(encoder._known) == 1
    del state
    assert len(encoder._known) == 0


# --- What is read of a state (paper 5.5) -----------------------------------------------------------------------------

READ = {
    "default": ["Thought: hm\nAction: look", "Observation: a key", "Thought: ok\nAction: leave"],
    "last_observation": [
        *("Thought: hm\nAction: look", "Observation: a key", "Thought: ok\nAction: leave", "Observation: done"),
    ],
    "no_observations": ["Thought: hm\nAction: look", "...", "Thought: ok\nAction: leave"],
    "no_thoughts": ["Action: look", "Observation: a key", "Action: leave"],
    "actions": ["Action: look", "...", "Action: leave"],
}


@pytest.mark.parametrize("state", READ)
def test_a_representation_leaves_out_what_it_says_of_searches_trajectories_and_conversations_alike(chat, hall, state):
    encoder = Encoder(chat, {"hall": hall}, state=state)
    end = walk(start(), "Thought: hm\nAction: look", "Observation: a key")
    end = walk(end, "Thought: ok\nAction: leave", "Observation: done")
    turn = encoder.turn(end)
    wanted = [
        chat.action(text) if text.startswith(("Thought", "Action")) else chat.observation(text) for text in READ[state]
    ]
    assert ids(turn[1:]) == ids(wanted)
    assert ids(turn[:1]) == ids(Encoder(chat, {"hall": hall}).turn(end)[:1]), "the task is always read"
    if state != "last_observation":
        trajectory = trajectory_of(end)
        assert ids(encoder.trajectory(trajectory)) == ids(turn)
        assert ids(chat.conversation(represented(transcript(hall, trajectory), state))) == ids(turn)


def test_what_was_observed_last_cannot_be_read_of_an_action_that_was_not_executed(chat, hall):
    encoder = Encoder(chat, {"hall": hall}, state="last_observation")
    with pytest.raises(
        UserError, match=r"reads what was observed after an action, but the search scores actions before"
    ):
        encoder.turn(start().propose(Action("Action: leave")))


def test_a_turn_without_a_command_is_read_whole(chat, hall):
    encoder = Encoder(chat, {"hall": hall}, state="actions")
    assert ids(encoder.turn(start().propose(Action("I give up."))))[1:] == ids([chat.action("I give up.")])


def test_sampled_ids_are_those_of_the_whole_turn(chat, hall):
    """A turn without its thought is cut anew; one that had no thought keeps its ids."""
    cut = (*(i for letter in "Action: leave" for i in chat.encode(letter).tolist()), chat.end_id)
    encoder = Encoder(chat, {"hall": hall}, state="no_thoughts")
    assert encoder.action(Action("Action: leave", cut)).tokens.tolist() == list(cut)
