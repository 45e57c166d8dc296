"""Every layout is told apart and says what its makers meant: what trajectories were worth, how good steps are, what is better."""

import json
import os
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrm_jax.data import conversations, files, labels
from agentrm_jax.types import UserError
from benchmarks import malformed
from tests.data.layout_rows import ASK, NO, PROBLEM, ROWS, YES

DATA = Path(os.environ.get("AGENTRM_DATA", "../shared/data")) / "external"


def parsed(value, fallback=1):
    return labels.of_row(files.Row(value, "t.jsonl, line 1", "t.jsonl", fallback))


def one(value):
    (found,) = parsed(value)
    return found


def said(name, index=0):
    """(trained texts, reward, steps) of every conversation of a layout's row."""
    return [(trained(c), c.reward, c.steps) for c in one(ROWS[name][index]).conversations]


def trained(conversation):
    return [m.content for m in conversation.messages if m.loss]


@pytest.mark.parametrize("name", ROWS)
def test_every_layout_is_told_apart(name):
    for row in ROWS[name]:
        for found in parsed(row):
            assert found.layout == name
            assert found.conversations
            for c in found.conversations:
                assert c.steps == () or len(c.steps) == len(trained(c))
                assert c.origin.startswith("t.jsonl, line 1")


def test_every_layout_has_an_example_here():
    assert {one.name for one in labels.LAYOUTS} | {"native"} == ROWS.keys()


def test_rewards_of_whole_trajectories():
    assert said("native", 1) == [(["Action: move down", "Action: move up"], 0.25, ())]
    assert said("conversations") == [(["Action: look", "Action: buy"], 1.0, ())]
    assert said("conversations", 1)[0][1:] == (0.0, ())  # reward null: whether it succeeded
    assert said("conversations", 2) == [(["Action: buy"], 0.0, ())]
    assert said("tau-bench")[0][1] == 1.0
    assert said("agentboard") == [(["pick up", "wait"], 0.5, ())]
    assert [said("completion", i)[0][1] for i in (0, 1)] == [1.0, 0.0]
    assert [said("implicitprm", i)[0][1] for i in (0, 1)] == [1.0, 0.0]
    assert said("samples") == [(["5."], 1.0, ()), (["6."], 0.0, ()), (["5!"], 1.0, ())]
    assert said("sample", 1) == [(["6."], 0.0, ())]
    assert said("messages")[0][1:] == (None, ())


def test_labels_of_steps():
    assert said("stepwise") == [(["Count on.", "It is 6."], None, (1.0, 0.0))]
    assert said("stepwise", 1) == [(["Count on."], None, (0.7,))]  # `values` are what labels would round
    assert said("processbench") == [(["Two.", "Six.", "So 6."], None, (1.0, 0.0, None))]
    assert said("processbench", 1) == [(["Five."], None, (1.0,))]
    assert said("math-shepherd") == [(["Step 1: 2 + 3 = 5", "Step 2: So -5."], None, (1.0, 0.0))]
    assert said("ntp-prm") == [(["Count on.", "It is 6."], 1.0, (1.0, 0.0))]
    assert said("rest-mcts-prefix") == [(["Count on."], None, (0.25,))]
    assert said("rest-mcts") == [(["5."], 1.0, ()), (["Count"], None, (0.4,))]
    assert said("messages", 2) == [(["No.", "Yes."], None, (0.0, 1.0))]
    assert said("ipr-exploration") == [(["No.", "Yes."], 0.5, ()), (["No."], None, (0.25,))]
    assert said("ipr-values") == [(["Yes."], 1.0, ()), (["Yes."], None, (0.75,))]


def test_prm800k_is_the_chosen_path_and_what_stood_beside_it():
    assert said("prm800k") == [
        (["Count on.", "It is 5."], None, (1.0, 1.0)),
        (["2 + 3 is 6."], None, (0.0,)),
        (["Count on.", "So 5."], None, (None, 0.5)),
    ]
    assert [c.id for c in one(ROWS["prm800k"][0]).conversations] == ["1#chosen", "1#0.0", "1#1.0"]


def test_agent_process_bench_labels_messages_by_index_or_turns_in_order():
    first, second = (one(row) for row in ROWS["agentprocessbench"])
    assert (first.conversations[0].steps, first.conversations[0].reward, first.task) == ((1.0, 0.0), 0.0, "tau/3")
    assert (second.conversations[0].steps, second.conversations[0].reward, second.task) == ((0.5, 1.0), 1.0, "tau/3")
    row = ROWS["agentprocessbench"][0]
    with pytest.raises(UserError, match="line 1: step_labels has a label for message 2, which is no assistant turn"):
        parsed(row | {"step_labels": {"2": 1}})
    with pytest.raises(UserError, match=r"line 1: step_labels\.1 is 3; expected 1, 0 or -1"):
        parsed(row | {"step_labels": {"1": 3}})


def test_logs_of_commands_have_a_turn_for_every_command_that_was_answered():
    [found] = one(ROWS["knowagent"][0]).conversations
    assert [(m.role, m.content) for m in found.messages] == [
        ("user", "You are in a room.\nYour task is to: put a mug."),
        ("assistant", "Think: where?\ngo to desk 1"),
        ("user", "On the desk 1, you see a mug 1."),
        ("assistant", "take mug 1"),
        ("user", "You pick up the mug 1."),
    ]
    assert found.reward == 1.0
    assert one(ROWS["knowagent"][0] | {"result": 0}).conversations[0].reward == 0.0


def test_pairs():
    for name in ("preference", "plan-rewardbench"):
        for row in ROWS[name]:
            found = one(row)
            assert [(p.chosen, p.rejected) for p in found.pairs] == [(0, 1)]
            assert [str(c.id).rpartition("/")[2] for c in found.conversations] == ["chosen", "rejected"]
    assert one(ROWS["preference"][2]).pairs[0].margin == 0.5
    assert one(ROWS["plan-rewardbench"][0]).split == "single_easy"
    lone = one({"id": 4, "chosen": [ASK, YES]})
    assert (lone.pairs, lone.conversations[0].id) == ((), "4/chosen")


def test_a_table_of_columns_is_a_pair_a_row():
    table = {"prompt": ["Is 7 prime?", "Is 8?"], "chosen": ["Yes.", "No."], "rejected": ["No.", "Yes."]}
    found = parsed(table)
    assert [trained(c) for row in found for c in row.conversations] == [["Yes."], ["No."], ["No."], ["Yes."]]
    assert [row.origin for row in found] == ["t.jsonl, line 1, pair 1", "t.jsonl, line 1, pair 2"]
    with pytest.raises(UserError, match="line 1: the lists 'prompt', 'chosen' and 'rejected' are not of one length"):
        parsed(table | {"chosen": ["Yes."]})


def test_samples_of_a_task_know_it():
    """By the id, or the part of it that names the task; without one, by what the conversation begins with."""
    assert [one(row).task for row in ROWS["implicitprm"]] == ["m/17", "m/17"]
    assert [one(row).task for row in ROWS["sample"]] == ["4", "4"]
    assert one(ROWS["knowagent"][0]).task == "put-1/trial"
    assert one(ROWS["agentboard"][0]).task == "pddl/3"
    assert one(ROWS["native"][0]).task == "maze/m-1"
    asked, again, other = (
        one({"messages": m}).task for m in ([ASK, YES], [ASK, NO, ASK, YES], [{**ASK, "content": "?"}, NO])
    )
    assert asked == again != other


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": [ASK, YES], "reward": "good"}, 'reward is "good"; expected a number, true or false'),
        ({"messages": [ASK, YES], "reward": float("nan")}, "reward is NaN; expected a finite number"),
        ({"messages": [ASK, YES], "step_rewards": [1, 0]}, "'trained turns' has 1 entries and 'step_rewards' 2"),
        ({"messages": None, "chosen": None}, "'messages' is empty: an item to be solved"),
        ({"prompt": PROBLEM, "completions": ["a"], "correctness": [1, 0]}, "'completions' has 1 entries and 'correctness' 2"),
        ({"input": "No steps", "label": "No steps"}, "no step that ends in 'ки'"),
        ({"input": "Q? Step 1: a ки", "label": "Q? Step 1: a x"}, 'label\' has "x" after step 1; expected + or -'),
        ({"problem": "Q", "steps": ["a"], "label": 2}, "label is 2; expected the index of one of 1 steps, or -1"),
        ({"trajectory": {"Turn x": {}}, "goal": "g"}, "expected 'Interaction Turn' and a number"),
        ({"goal": "g", "subgoals": ["s"]}, "in none of the known formats: its keys are 'goal', 'subgoals'"),
    ],
)  # fmt: skip
def test_what_a_row_lacks_is_named(row, message):
    with pytest.raises(UserError) as error:
        parsed(row)
    assert str(error.value).startswith("t.jsonl, line 1: ")
    assert message in str(error.value)


def test_a_bad_row_ends_the_reading_or_is_counted(tmp_path):
    path = tmp_path / "t.jsonl"
    rows = [
        {"messages": [ASK, YES]},
        {"text": "plain"},
        3,
        {"messages": [ASK, NO], "reward": []},
        {"messages": [ASK, NO]},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "{")
    with pytest.raises(UserError, match=r"t\.jsonl, line 2: in none of the known formats"):
        list(labels.read(path))
    skipped = files.Skipped()
    assert [row.id for row in labels.read(path, bad=skipped)] == [1, 5]
    assert (skipped.count, skipped.first[: len(str(path)) + 8]) == (4, f"{path}, line 2")


@pytest.mark.parametrize("name", ROWS)
def test_whatever_is_wrong_with_a_row_it_is_read_or_one_line_names_its_place(name, chat):
    rng = random.Random(name)
    read = refused = 0
    for _ in range(150):
        line = malformed.mutated(rng.choice(ROWS[name]), rng)
        try:
            value = json.loads(line.decode())
        except (ValueError, RecursionError):
            continue
        row = files.Row(value, "t.jsonl, line 1", "t.jsonl", 1)
        try:
            for found in labels.of_row(row):
                for c in found.conversations:
                    json.dumps([c.id, found.task, c.reward, c.steps], allow_nan=False).encode()
                    conversations.segments(c, chat)
            read += 1
        except UserError as error:
            assert str(error).startswith("t.jsonl, line 1"), error  # noqa: PT017
            refused += 1
    assert read > 10
    assert refused > 10


_keys = sorted(
    {key for one in labels.LAYOUTS for key in one.keys} | {"tools", "reward", "meta", "id", "role", "content", "text"}
)
_scalars = (
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.sampled_from(["user", "assistant", "Step 1: a ки", "a + b", "\n> look", 0.5])
)
_values = st.recursive(
    _scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(_keys), inner, max_size=4),
    max_leaves=10,
)


@given(st.dictionaries(st.sampled_from(_keys), _values, min_size=1, max_size=4))
@settings(max_examples=600)
def test_whatever_the_known_keys_hold_it_is_read_or_one_line_names_the_place(row):
    try:
        found = parsed(row)
    except UserError as error:
        refusal = str(error)
    else:
        refusal = "t.jsonl, line 1"
        assert all(one.conversations for one in found)
    assert refusal.startswith("t.jsonl, line 1")


@pytest.mark.skipif(not DATA.is_dir(), reason=f"no recorded data at {DATA} (AGENTRM_DATA)")
def test_no_recorded_row_of_others_is_lost():
    found = {name: list(labels.read(DATA / name)) for name in ("knowagent", "plan_rewardbench", "tau_bench")}
    assert {name: len(rows) for name, rows in found.items()} == {
        "knowagent": 1020,
        "plan_rewardbench": 484,
        "tau_bench": 200,
    }
    assert {name: len({row.task for row in rows}) for name, rows in found.items()}["knowagent"] == 510
    assert all(len(row.pairs) == 1 for row in found["plan_rewardbench"])
    for name, won in (
        ("knowagent", 316),
        ("tau_bench", 84),
    ):  # published: best of 4 of tau-bench's airline has mean 42.0
        assert sum(row.conversations[0].reward for row in found[name]) == won
    assert all(trained(c) for rows in found.values() for row in rows for c in row.conversations)
