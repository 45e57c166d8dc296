"""How a turn is read: the parser table, one case a line."""

import re
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agentrm_jax.replies import Parsed, parse_action, render_action

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
    "Action: first\nAction: second": ("first", "", False),
    "Action: go\nAction:": ("go", "", False),
    "Action:\nAction: go": ("go", "Action:", False),
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


ROUNDS = {
    # imagined rounds: the first action after the last thought before an imagined observation
    "Thought: a\nAction: open drawer\nObservation: a key\nThought: b\nAction: take key": ("open drawer", "a"),
    "Thought: a\nAction: open drawer\nObservation 1: a key\nAction 2: take key": ("open drawer", "a"),
    "Thought: a\nAction: one\nThought: b\nAction: two\nAction: three": ("two", "a\nAction: one\nThought: b"),
    "Thought: a\nAction: one\nThought: b\n**Observation:** x\nAction: two": ("one", "a"),
    "Thought: a\nAction: one\n> Observation: x\n> Action: two": ("one", "a"),
    "Observation: a key\nThought: a\nAction: take key": ("take key", "Observation: a key\nThought: a"),
    "Thought: a. Action: one\nObservation: x\nThought: b\nAction: two": ("one", "a."),
    "Thought: a\nAction:\nObservation: x\nAction: two": ("two", "a\nAction:\nObservation: x"),
    "Thought: a\nAction: one<|im_end|>\n<|im_start|>user\nb<|im_end|>\n<|im_start|>assistant\nAction: two": (
        "one",
        "a",
    ),
    "<|im_start|>assistant\nAction: one<|eot_id|>": ("one", "assistant"),
    # thinking is never executed
    "<think>\nAction: south\n</think>\nThought: a\nAction: north": ("north", "a"),
    "<think>Action: south</think>Action: north": ("north", ""),
    "<think>\nAction: south\nbut that is risky, so rather": (None, ""),
    "Action: north\n<think>\nAction: south?\n</think>": ("north", ""),
    "Action: north<think>or\nAction: south": ("north", ""),
    "Action: south\n</think>\nAction: north": ("north", ""),
    "[THINK]Action: south[/THINK]\nAction: north": ("north", ""),
    "<THINKING>\nAction: south\n</THINKING>\nAction: north\nThought: <think>b": ("north", ""),
    "<think>a <think> b</think>\nAction: north": ("north", ""),
    "<think>\nAction: south\n</think>": (None, ""),
}


@pytest.mark.parametrize("turn", ROUNDS, ids=repr)
def test_of_several_rounds_and_of_thinking(turn):
    parsed = parse_action(turn)
    assert (parsed.command, parsed.thought) == ROUNDS[turn]


SPELLINGS = {
    "Thought: It is open. Action: go north": "It is open.",
    "Thought: It is open! **Action:** go north": "It is open!",
    "Thought: It is open.\nI see. Action: go north": "It is open.\nI see.",
    "Thought: It is “open.” Action 1: go north": "It is “open.”",
    "Action 1: go north": "",
    "Action #2: go north": "",
    "Thought 1: a\nAction 1: go north": "a",
    "- Thought: a\n- Action: go north": "a",
    "* Action: go north": "",
    "1. Action: go north": "",
    "## Action: go north": "",
    "## Thought\na\n## Action\ngo north": "a",
    "**Thought**\na\n\n**Action**\ngo north": "a",
    "Thought：a\nAction：go north": "a",
    "> Thought: a\n> Action: go north": "a",
    "\u00a0Action: go north": "",
    "\ufeffAction: go north": "",
    "Action: `go north`": "",
    "Action: ``go north``": "",
    'Action: "go north"': "",
    "Action: 'go north'": "",
    "Action: “go north”": "",
    'Action: `"go north"`': "",
    "**Action:** `go north`": "",
    "Action:\n```\ngo north\n```": "",
    "Action:\n```text\ngo north\n```": "",
    "Action:\n~~~\n\ngo north\n~~~": "",
    "Action: ```go north```": "",
    "Action: ```go north\n```": "",
    "Action: ```\ngo north": "",
    "Action: ```\ngo north\nand more\n```": "",
    "Action:\n\n```\ngo north\n```\nObservation: x\nAction: go south": "",
    "Action: go north```": "",
    "Action: <|im_start|>": None,
}


@pytest.mark.parametrize("turn", SPELLINGS, ids=repr)
def test_other_spellings_are_read_and_flagged(turn):
    thought = SPELLINGS[turn]
    assert parse_action(turn) == (Parsed("go north", thought, True) if thought is not None else Parsed(None, "", False))


WELL_FORMED = (
    "Thought: a\rAction: go north",
    "Thought: a\u2028Action: go north",
    "```\nThought: a\nAction: go north\n```",
    "Thought: a\nAction: go north<|im_end|>",
    "Thought: a\nAction: go north</s>",
    "Thought: a\nAction: go north<|end|>",
    "Thought: a\nAction: go north<｜end▁of▁sentence｜>",
    "Thought: a\nAction: go north<end_of_turn>\n",
)


@pytest.mark.parametrize("turn", WELL_FORMED, ids=repr)
def test_what_does_not_belong_to_the_command_is_left_out(turn):
    assert parse_action(turn).command == "go north"
    assert not parse_action(turn).lenient


KEPT = (
    'say "hi"',
    '"a" or "b"',
    "'a' or 'b'",
    "echo `date`",
    "`a` and `b`",
    "it's",
    "'",
    "say 'hi.' Action: x",
    "a. Action: b",
)


@pytest.mark.parametrize("command", KEPT, ids=repr)
def test_quotes_and_labels_within_a_command_belong_to_it(command):
    assert parse_action(f"Thought: a\nAction: {command}") == Parsed(command, "a", False)


NOTHING = (
    "Action: ```",
    "Action:\n```\n```",
    "Action:\n```text",
    'Action: ""',
    "Action: <|im_end|>",
    "Action:\n\nThought: a",
    "Action taken.",
    "Thought: I could use Action: go maybe.",
    '{"thought": "x", "action": "go north"}',
)


@pytest.mark.parametrize("turn", NOTHING, ids=repr)
def test_turns_without_a_command(turn):
    assert parse_action(turn).command is None


MULTI = {
    "Action: ```sql\nSELECT a\nFROM b\n```": "SELECT a\nFROM b",
    "Action:\n```sql\nSELECT a\nFROM b\n```\nObservation: hi": "SELECT a\nFROM b",
    "Action: ```SELECT 1```": "SELECT 1",
    "Action: SELECT a\nFROM b\nObservation: hi": "SELECT a\nFROM b",
    "Action: submit": "submit",
    "Action: ```sql\nSELECT a": "SELECT a",
    "Action: old\nThought: no\nAction: ```\nprint('''\nAction: x''')\n```": "print('''\nAction: x''')",
    "Action: ```sql\n```": None,
    "Action: ```sql\nSELECT a\nObservation: hi": "SELECT a",
    "Action: ```\nprint('Observation: x')\n# Action: no\nObservation: y\n```\nObservation: hi": (
        "print('Observation: x')\n# Action: no\nObservation: y"
    ),
    "Action: a = 1\n# Action: no\n- Action: no": "a = 1\n# Action: no\n- Action: no",
    "```\nThought: a\nAction: a = 1\nb = 2\n```": "a = 1\nb = 2",
    "Action: `submit`": "submit",
    "Action: a\nObservation: x\nAction: b": "a",
    "Action: a\n\nb<|im_end|>\nAction: c": "a\n\nb",
    "Thought: I know. Action: SELECT a\nFROM b": "SELECT a\nFROM b",
    "Action: ````\n```\na\n```\n````": "```\na\n```",
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


# Never a command, whatever surrounds it: thinking, and the tokens of a turn.
reserved = re.compile(r"think|<\||<[/a-z]*>|INST", re.IGNORECASE)
commands = line.filter(lambda text: not reserved.search(text))


@given(thought=line, command=commands)
@example(thought="a", command='"go"')
@example(thought="a", command="```")
@example(thought="Observation: x", command="`a``")
@example(thought="a. Action: b", command="Action: go")
def test_rendered_turns_are_read_back(thought, command):
    for multiline in (False, True):
        assert parse_action(render_action(thought, command), multiline=multiline).command == command


@given(st.lists(commands, min_size=2).map("\n".join))
def test_rendered_blocks_are_read_back(command):
    assert parse_action(render_action("why", command), multiline=True) == Parsed(command, "why", False)


def test_a_rendered_block_may_hold_labels():
    command = "SELECT a\n\nAction: b\nFROM c"
    assert parse_action(render_action("why", command), multiline=True) == Parsed(command, "why", False)


labels = st.sampled_from(("Action:", "Thought: a", "Observation: ", "<think>", "</think>", "</s>"))
pieces = labels | st.sampled_from(("```", "\n", " ", "#", "> ", "- ", "`", '"', "*", "go", ". ", "\0", "\udc80"))


@given(st.lists(pieces).map("".join), st.booleans())
def test_any_text_is_read_and_a_command_is_never_empty_or_a_fence(text, multiline):
    command = parse_action(text, multiline=multiline).command
    assert command is None or (command.strip() == command != "")
    if not multiline:
        assert command is None or ("\n" not in command and not command.startswith("```"))
        assert command is None or "think>" not in command


@pytest.mark.parametrize(
    "piece", ["#", "Action:\n", "Action: ```a\n", "action ", "> ", "`", '"', "Thought: a. Action:", "<think>"]
)
def test_long_replies_are_read_in_no_time(piece):
    start = time.perf_counter()
    for multiline in (False, True):
        parse_action(piece * 5_000 + "x", multiline=multiline)
    assert time.perf_counter() - start < 60, "exponential time would be for ever"
