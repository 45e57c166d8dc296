"""How a turn is read: the parser table, one case a line."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrm_jax.envs.react import Parsed, parse_action, render_action

HALLUCINATED = "Thought: I could use Action: go to desk 1 maybe.\nAction: go to bed 1\nObservation: hi"

SINGLE = {
    # turn: (command, thought, lenient)
    HALLUCINATED: ("go to bed 1", "I could use Action: go to desk 1 maybe.", False),
    "Action:go": ("go", "", False),
    "Action: go": ("go", "", False),
    "action: go": ("go", "", True),
    "ACTION: go": ("go", "", True),
    "**Action:** go": ("go", "", True),
    "**Action**: go": ("go", "", True),
    "**Action: go**": ("go", "", True),
    "  Action: go": ("go", "", True),
    "Thought: a\nb\n\nAction: go  \n": ("go", "a\nb", False),
    "Thought:\na\n\nAction:\nsearch[x]": ("search[x]", "a", True),
    "**Thought:** a\nAction: go": ("go", "a", False),
    "Action: first\nAction: second": ("second", "Action: first", False),
    "Action: go\nleft": ("go", "", False),
    "Action: *hi* you": ("*hi* you", "", False),
    "Action: say *hi*": ("say *hi*", "", False),
    "Action: look\r\nObservation: hi": ("look", "", False),
    "no thought label\nAction: go": ("go", "no thought label", False),
    # nothing to execute
    "": (None, "", False),
    "Thought: I do not know": (None, "I do not know", False),
    "I take Action: go": (None, "I take Action: go", False),
    "Action:": (None, "", False),
    "Action:\nObservation: hi": (None, "", False),
    "Actions: go": (None, "Actions: go", False),
    "Thought: a\nAction:   ": (None, "a", False),
}


@pytest.mark.parametrize("turn", SINGLE, ids=repr)
def test_single_line_commands(turn):
    assert parse_action(turn) == Parsed(*SINGLE[turn])


MULTI = {
    "Action: ```sql\nSELECT a\nFROM b\n```": "SELECT a\nFROM b",
    "Action:\n```sql\nSELECT a\nFROM b\n```\nObservation: hi": "SELECT a\nFROM b",
    "Action: ```SELECT 1```": "SELECT 1",
    "Action: SELECT a\nFROM b\nObservation: hi": "SELECT a\nFROM b",
    "Action: submit": "submit",
    "Action: ```sql\nSELECT a": "SELECT a",
    "Action: old\nThought: no\nAction: ```\nprint('''\nAction: x''')\n```": "print('''\nAction: x''')",
    "Action: ```sql\n```": None,
}


@pytest.mark.parametrize("turn", MULTI, ids=repr)
def test_commands_that_may_span_lines(turn):
    assert parse_action(turn, multiline=True).command == MULTI[turn]


def test_without_multiline_only_the_first_line_of_a_command_counts():
    assert parse_action("Action: SELECT a\nFROM b").command == "SELECT a"


def test_rendered_turn():
    assert render_action("why", "go") == "Thought: why\nAction: go"
    assert render_action("", "go") == "Action: go"


line = st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), min_size=1).map(str.strip).filter(bool)


@given(thought=line, command=line)
def test_rendered_turns_are_read_back(thought, command):
    assert parse_action(render_action(thought, command)).command == command


def test_rendered_block_is_read_back():
    command = "SELECT a\n\nAction: b\nFROM c"
    assert parse_action(render_action("why", command), multiline=True) == Parsed(command, "why", False)
