"""Every format of other people's trajectories becomes messages with the trained turns marked; everything else is refused."""

import dataclasses
import json

import pytest

from agentrm_jax.data import conversations, files, formats, labels
from agentrm_jax.types import Action, Outcome, Step, Task, Trajectory, UserError

TASK = {"from": "human", "value": "You are web shopping."}, {"from": "human", "value": "WebShop [SEP] find a mug"}
TURN = {"from": "gpt", "value": "Thought: look.\nAction: search[mug]"}
SEEN = {"from": "human", "value": "Observation:\na mug"}
BUY = {"from": "gpt", "value": "Thought: buy.\nAction: click[buy]"}
OK = {"from": "gpt", "value": "OK"}
ASK, ANSWER = {"role": "user", "content": "Is 7 prime?"}, {"role": "assistant", "content": "Yes."}
MORE, WRONG = {"role": "user", "content": "And 8?"}, {"role": "assistant", "content": "Also."}


def parsed(row, fallback=1):
    (found,) = labels.of_row(files.Row(row, "file, line 1", "file", fallback))
    return found.conversations


def only(row, **options):
    (one,) = parsed(row, **options)
    return one


def trained(conversation):
    return [m.content for m in conversation.messages if m.loss]


def written(tmp_path, text, name="t.jsonl"):
    path = tmp_path / name
    path.write_text(text)
    return path


def test_eto_whose_opening_ok_is_no_step():
    row = {"id": "webshop_12", "conversations": [TASK[0], OK, TASK[1], TURN, SEEN, BUY, SEEN], "reward": 1.0}
    one = only(row)
    assert (one.id, one.form) == ("webshop_12", "eto")
    assert trained(one) == [TURN["value"], BUY["value"]]
    assert [m.role for m in one.messages] == ["user", "assistant", "user", "assistant", "user", "assistant", "user"]
    assert one.row is row


def test_eto_evaluation_output_which_has_no_id():
    row = {"meta": {"steps": 1, "reward": None}, "conversations": [TASK[1], TURN]}
    assert only(row, fallback="77").id == "77"


@pytest.mark.parametrize(
    "text", ["OK", "Ok.", "okay", "OK. I'll follow your instructions and do my best.", "Understood."]
)
def test_what_counts_as_an_acknowledgement(text):
    rows = [TASK[0], {"from": "gpt", "value": text}, TASK[1], TURN]
    assert trained(only({"id": 3, "conversations": rows})) == [TURN["value"]]


@pytest.mark.parametrize("text", ["OK\nAction: search[mug]", "OK, I take the mug.", "Sure, here is how.", "Action: ok"])
def test_what_is_a_turn_like_any_other(text):
    rows = [TASK[0], {"from": "gpt", "value": text}, TASK[1], TURN]
    assert trained(only({"id": 3, "conversations": rows})) == [text, TURN["value"]]


def test_the_only_turn_is_an_answer_whatever_it_says_and_a_row_may_insist():
    assert trained(only({"id": 1, "conversations": [TASK[0], OK]})) == ["OK"]
    rows = [TASK[0], OK | {"loss": True}, TASK[1], TURN]
    assert trained(only({"id": 1, "conversations": rows})) == ["OK", TURN["value"]]


def test_agentgym_says_itself_which_turns_are_trained():
    rows = [
        {"from": "human", "loss": None, "value": "You are an agent."},
        {"from": "gpt", "loss": False, "value": "Ready when you are, captain."},
        {"from": "human", "loss": None, "value": "Go."},
        {"from": "gpt", "loss": True, "value": "Action:\ngo"},
        {"from": "human", "loss": None, "value": "A wall."},
        {"from": "gpt", "loss": None, "value": "Action:\nturn"},
    ]
    one = only({"conversations": rows, "item_id": "maze_6", "reward": 0.0, "success": 0})
    assert (one.id, one.form) == ("maze_6", "agentgym")
    assert trained(one) == ["Action:\ngo", "Action:\nturn"]


def test_agentgym_rl_logs_in_the_other_spelling():
    one = only({"item_id": "textcraft_1", "conversations": [ASK, ANSWER], "reward": 1})
    assert (one.form, trained(one)) == ("agentgym", ["Yes."])


@pytest.mark.parametrize("empty", [None, []])
def test_an_item_without_a_trajectory_is_refused(empty):
    with pytest.raises(UserError, match="line 1: 'conversations' is empty"):
        parsed({"conversations": empty, "item_id": "maze_7"})


def test_trl_messages_and_prompt_with_completion():
    one = only({"messages": [{"role": "system", "content": "Be brief."}, ASK, ANSWER, MORE, WRONG]}, fallback=5)
    assert (one.id, one.form, trained(one)) == (5, "trl", ["Yes.", "Also."])
    assert one.messages[0].role == "system"
    one = only({"prompt": [ASK, ANSWER, MORE], "completion": [WRONG]})
    assert (len(one.messages), trained(one)) == (4, ["Also."])
    one = only({"prompt": "Is 7 prime?", "completion": " Yes.", "label": True})
    assert [(m.role, m.content) for m in one.messages] == [("user", "Is 7 prime?"), ("assistant", " Yes.")]
    assert trained(one) == [" Yes."]


def test_trl_stepwise_has_a_turn_a_step():
    one = only({"prompt": "Which is larger?", "completions": ["Step 1", "Step 2"], "labels": [True, False]})
    assert trained(one) == ["Step 1", "Step 2"]
    with pytest.raises(UserError, match="none of the known formats"):  # samples of one prompt are no steps
        parsed({"prompt": "Which is larger?", "completions": ["Sample 1", "Sample 2"]})


@pytest.mark.parametrize(
    "row",
    [
        {"chosen": [ASK, ANSWER, MORE, ANSWER], "rejected": [ASK, ANSWER, MORE, WRONG]},
        {"prompt": [ASK, ANSWER, MORE], "chosen": [ANSWER], "rejected": [WRONG]},
        {"prompt": "Is 7 prime?", "chosen": [ASK, ANSWER, MORE, ANSWER], "rejected": [ASK, ANSWER, MORE, WRONG]},
    ],
)
def test_preferences_have_two_sides_behind_their_common_prompt(row):
    chosen, rejected = parsed(row | {"id": 4})
    assert (chosen.id, rejected.id, chosen.form) == ("4/chosen", "4/rejected", "trl")
    assert (trained(chosen), trained(rejected)) == (["Yes."], ["Also."])
    assert [m.content for m in chosen.messages[:3]] == ["Is 7 prime?", "Yes.", "And 8?"]


def test_preferences_of_eto_and_of_texts():
    row = {"id": "webshop_12", "prompt": [TASK[0], OK, TASK[1]], "chosen": [TURN, SEEN, BUY], "rejected": [BUY]}
    chosen, rejected = parsed(row)
    assert chosen.form == "eto"
    assert (trained(chosen), trained(rejected)) == ([TURN["value"], BUY["value"]], [BUY["value"]])
    chosen, rejected = parsed({"prompt": "Is 7 prime?", "chosen": " Yes.", "rejected": " No.", "margin": 0.5})
    assert (chosen.id, trained(chosen), trained(rejected)) == ("1/chosen", [" Yes."], [" No."])
    with pytest.raises(UserError, match="without 'prompt'"):
        parsed({"chosen": "Human: hi Assistant: hello", "rejected": "Human: hi Assistant: no"})


def test_equal_sides_keep_their_last_message():
    for one in parsed({"chosen": [ASK, ANSWER, MORE, WRONG], "rejected": [ASK, ANSWER, MORE, WRONG]}):
        assert trained(one) == ["Also."]


def own(tokens=(), env="maze", **meta):
    outcome = Outcome("A wall.", 0.0, 0.0, parsed="move left")
    step = Step(Action("Thought: left.\nAction: move left", tokens), outcome)
    return Trajectory(Task(env, "m-1", "test", 9), "reach the goal", "You are at 1, 1.", (step, step), meta)


def test_our_own_records():
    row = formats.trajectory_to_json(own(sample=2))
    one = only(row)
    assert (one.id, one.form) == ("maze/m-1#2", "native")
    assert trained(one) == ["Thought: left.\nAction: move left"] * 2
    assert one.trajectory == own(sample=2)
    assert only(formats.trajectory_to_json(own())).id == "maze/m-1"
    with pytest.raises(UserError, match=r"line 1: no environment named 'mase'.*maze"):
        parsed(formats.trajectory_to_json(own(env="mase")))
    with pytest.raises(UserError, match=r"not a complete trajectory record .*goal"):
        parsed({k: v for k, v in row.items() if k != "goal"})
    with pytest.raises(UserError, match="kind 'tree', not 'trajectory'"):
        parsed(row | {"kind": "tree"})


def test_sampled_ids_are_read_if_they_are_ids_of_this_tokenizer(chat):
    ids = [*map(int, chat.encode("Thought: left.\nAction: move")), *map(int, chat.encode(" left")), chat.end_id]
    whole = chat.action("Thought: left.\nAction: move left").tokens.tolist()
    for tokens, wanted in ((ids, ids), ([5, 6, 7, chat.end_id], whole), ([10**6], whole), ((), whole)):
        one = only(formats.trajectory_to_json(own(tuple(tokens))))
        assert [s.tokens.tolist() for s in conversations.segments(one, chat) if s.loss] == [wanted] * 2


def test_segments_of_foreign_rows_are_those_of_the_chat(chat):
    one = only({"id": 1, "conversations": [TASK[0], OK, TASK[1], TURN, SEEN, BUY, SEEN]})
    found = conversations.segments(one, chat)
    assert [s.kind for s in found] == ["prompt", "action", "observation", "action"]
    assert [chat.decode(s.tokens) for s in found if s.loss] == [TURN["value"], BUY["value"]]
    assert chat.decode(found[0].tokens).count("OK") == 1
    assert conversations.segments(only({"messages": [ASK]}), chat) == []


def test_a_template_that_would_join_steps_is_refused(chat):
    one = only({"prompt": "Which?", "completions": ["Step 1", "Step 2"], "labels": [True, False]})
    assert sum(s.loss for s in conversations.segments(one, chat)) == 2
    with pytest.raises(UserError, match=r"line 1: the chat template joins assistant turns .* 2 would become 1"):
        conversations.segments(one, dataclasses.replace(chat, alternates=True))


# --- Files -----------------------------------------------------------------------------------------------------------


def test_lines_arrays_and_single_objects_hold_the_same(tmp_path):
    rows = [{"id": i, "conversations": [TASK[1], TURN]} for i in (7, 8)]
    lines = "\n\n".join(map(json.dumps, rows))  # blank lines, and no end of the last line
    for text in (lines, json.dumps(rows), json.dumps(rows, indent=2), "\ufeff" + lines):
        assert [c.id for c in labels.conversations(written(tmp_path, text))] == [7, 8]
    for name, text in (("one.json", json.dumps(rows[0], indent=2)), ("two.json", json.dumps(rows[0]))):
        assert [c.id for c in labels.conversations(written(tmp_path, text, name))] == [7]


def test_rows_without_id_are_numbered_and_files_of_one_row_named_after_the_file(tmp_path):
    row = {"conversations": [TASK[1], TURN]}
    path = written(tmp_path, f"{json.dumps(row)}\n{json.dumps(row)}\n")
    assert [(c.id, c.origin) for c in labels.conversations(path)] == [(1, f"{path}, line 1"), (2, f"{path}, line 2")]
    folder = tmp_path / "outputs"
    folder.mkdir()
    written(folder, json.dumps(row), "31.json")
    written(folder, json.dumps(row, indent=4), "5.json")
    assert [c.id for c in labels.conversations(folder)] == ["31", "5"]


def test_formats_may_be_mixed_and_a_workdir_is_its_trajectories(tmp_path):
    rows = [{"messages": [ASK, ANSWER]}, formats.trajectory_to_json(own()), {"id": 1, "conversations": [TASK[1], TURN]}]
    written(tmp_path, "".join(json.dumps(r) + "\n" for r in rows), "trajectories.jsonl")
    written(tmp_path, '{"size": "nano"}', "config.json")
    assert [c.form for c in labels.conversations(tmp_path)] == ["trl", "native", "eto"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '{"messages": [{"role": "user", "content": "x"}]}\n{"text": "plain"}\n',
            "line 2: .*its keys are 'text'; expected",
        ),
        ('{"messages": [{"role": "user", "content": "x"}]}\n{"messa', "line 2: not JSON"),
        ('{"broken\n{"messages": []}\n', "line 1: not JSON"),
        ('[{"messages": [{"role": "user", "content": "x"}]}, 3]', "entry 2: a row is a JSON object, not int"),
        ('{"messages": [{"role": "narrator", "content": "x"}]}', r"messages\[0\] has the role 'narrator'"),
        ('{"messages": [{"role": "assistant", "content": null}]}', r"messages\[0\] has no text.*NoneType"),
        ('{"messages": ["hello"]}', r"messages\[0\] is no message"),
        ('{"messages": "hello"}', "'messages' is a str, not a list"),
        ('{"messages": [{"role": ["user"], "content": "x"}]}', r"messages\[0\] has the role \['user'\]"),
        ('{"messages": [{"role": "assistant", "content": "x", "loss": 0}]}', r"messages\[0\].loss is 0; expected true"),
        ('{"messages": [{"from": "gpt", "role": "user"}]}', r"messages\[0\] is no message"),
        ('{"messages": [{"role": "user", "content": [{"type": "text"}]}]}', r"messages\[0\] has no text.*list"),
        ('{"prompt": "x", "completions": ["a", "b"], "labels": [true]}', "'completions' has 2 entries and 'labels' 1"),
        ("[" * 100_000, "line 1: not JSON that can be read .it is nested too deeply"),
        ('{"messages": [{"role": "user", "content": ' + "[" * 70 + "]" * 70 + "}]}", "line 1: nested deeper than 64"),
        ("\n\n", "holds no trajectories"),
    ],
)
def test_what_cannot_be_read_names_file_line_and_reason(tmp_path, text, message):
    path = written(tmp_path, text)
    with pytest.raises(UserError, match=message) as error:
        list(labels.conversations(path))
    assert str(path) in str(error.value)


def test_text_is_made_clean_and_ids_too():
    one = only({"id": "a\ud800", "messages": [ASK, ANSWER | {"content": "Y\x00es\r\nor no\udcff"}]})
    assert (one.id, trained(one)) == ("a\ufffd", ["Y\ufffdes\nor no\ufffd"])
    assert only({"id": True, "messages": [ASK, ANSWER]}, fallback=7).id == 7


def test_bytes_that_are_no_text_are_named_by_line(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_bytes(json.dumps({"messages": [ASK, ANSWER]}).encode() + b'\n{"id": "\xff"}\n')
    with pytest.raises(UserError, match=r"t\.jsonl, line 2 cannot be read: 'utf-8' codec"):
        list(labels.conversations(path))


def test_a_long_reply_is_no_acknowledgement_and_costs_no_time():
    """Looking for the words of an acknowledgement takes quadratic time in a text that is full of them."""
    rows = [TASK[0], {"from": "gpt", "value": "OK I " + "ready " * 100_000 + "\n"}, TASK[1], TURN]
    assert len(trained(only({"id": 3, "conversations": rows}))) == 2


def test_nothing_there(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        list(labels.conversations(tmp_path / "missing.jsonl"))
    with pytest.raises(UserError, match=r"no \.json or \.jsonl file"):
        list(labels.conversations(tmp_path))
    path = tmp_path / "binary.jsonl"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot be read"):
        list(labels.conversations(path))
