"""What is left out of a conversation that is too long: the oldest turns, counted; never the prompt."""

import numpy as np
import pytest

from agentrm_jax.tree import Segment
from agentrm_jax.types import TooLong
from agentrm_jax.window import Window


def conversation(turns: int) -> list[Segment]:
    """A prompt of 4 tokens, then actions of 2 with observations of 3 between them."""
    segments = [Segment(np.arange(4, dtype=np.int32), "prompt")]
    for i in range(turns):
        if i:
            segments.append(Segment(np.full(3, 100 + i, np.int32), "observation"))
        segments.append(Segment(np.full(2, 200 + i, np.int32), "action", loss=True))
    return segments


def test_a_path_that_fits_is_whole():
    window = Window(100)
    assert len(window.path(conversation(3), "a")) == 4 + 3 * 2 + 2 * 3
    assert not window.dropped_turns


def test_the_oldest_turns_are_left_out_and_counted_by_name():
    window = Window(11)
    path = window.path(conversation(3), "a")
    assert path.tolist() == [0, 1, 2, 3, 201, 201, 102, 102, 102, 202, 202]
    window.path(conversation(4), "a")
    window.path(conversation(3), "b")
    assert window.dropped_turns == {"a": 3, "b": 1}


def test_prompt_and_last_turn_must_fit():
    with pytest.raises(TooLong, match="prompt and last turn alone take 6 tokens, more than 5"):
        Window(5).path(conversation(2))


def test_steps_within_the_limit_share_a_reading_and_later_ones_have_their_own():
    readings = Window(11).steps(conversation(4))
    assert [r.ends.tolist() for r in readings] == [[5, 10], [10], [10]]
    assert [r.dropped_turns for r in readings] == [0, 1, 2]
    assert readings[2].tokens.tolist() == [0, 1, 2, 3, 202, 202, 103, 103, 103, 203, 203]


def test_a_conversation_without_steps_has_no_reading():
    assert Window(10).steps(conversation(0)) == []


def test_a_step_that_is_read_behind_its_turn_is_read_where_it_would_end_the_conversation():
    closing = Segment(np.array([7], np.int32), "observation")
    same = [
        Segment(np.concatenate([closing.tokens, s.tokens]), s.kind) if s.kind == "observation" else s
        for s in conversation(3)
    ]
    (together,) = Window(100).steps(same, closing)
    assert together.tokens[together.ends].tolist() == [7, 7, 7]
    assert together.ends[-1] == len(together.tokens) - 1
    apart = Window(100).steps(conversation(3), closing)  # between turns something else is written
    assert [r.tokens[r.ends].tolist() for r in apart] == [[7], [7], [7]]
    assert [len(r.tokens) for r in apart] == [7, 12, 17]
    path = Window(12).path(conversation(3), closing=closing)
    assert path.tolist() == [0, 1, 2, 3, 201, 201, 102, 102, 102, 202, 202, 7]
