"""What rows teach: in the arrays that a training step reads, exactly the trained turns are learned, and exactly the labels are targets."""

import dataclasses
import functools
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from agentrm_jax.chat import load_chat
from agentrm_jax.data import conversations, files, heldout, labels, lessons, own
from agentrm_jax.tokenizer import train_tokenizer
from agentrm_jax.training import objectives
from agentrm_jax.types import UserError
from tests.data.layout_rows import ASK, NO, ROWS, YES

PAGE = Path(__file__).parents[2] / "docs/data.md"
END = "<|im_end|>"


def records(rows, first=1):
    return [one for i, row in enumerate(rows, first) for one in labels.of_row(files.Row(row, f"t, line {i}", "t", i))]


def told(*texts, **about):
    """A row of messages: user and assistant in turns."""
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)], **about}


@pytest.fixture(scope="session")
def chat():
    every = own.Rows("all", [one for rows in ROWS.values() for one in records(rows)], files.refuse)
    return load_chat(train_tokenizer(every.texts(), 900))


@pytest.fixture
def build(chat):
    """The token trees of a lesson, each as a dict of its arrays."""

    def build(rows, lesson, *, bad=files.refuse, row_length=400, reader="reward", **how):
        encode = functools.partial(conversations.segments, chat=chat, reader=reader)
        build.made = own.made(
            own.Rows("t", records(rows), bad), lesson, encode, row_length=row_length, loss="it", **how
        )
        return [{f.name: getattr(flat, f.name) for f in dataclasses.fields(flat)} for flat in build.made.flat]

    return build


def paths(tree):
    """Token indices of the path that ends with each token."""
    found = []
    for i, before in enumerate(tree["previous"]):
        found.append([*(found[before] if before >= 0 else []), i])
    return found


def learned(chat, tree, name="loss_weight"):
    """Counter of the texts whose tokens are learned, with their weights; each is one turn with its end."""
    found: Counter = Counter()
    weights, begin = tree[name], None
    for i, weight in enumerate(weights):
        if weight > 0 and begin is None:
            begin = i
        if begin is not None and (i + 1 == len(weights) or tree["tokens"][i] == chat.end_id):
            assert len(set(weights[begin : i + 1])) == 1
            text = chat.tokenizer.decode(tree["tokens"][begin : i + 1].tolist())
            assert text.endswith(END)
            assert text.count(END) == 1
            found[text.removesuffix(END)] += float(weights[begin])
            begin = None
    return found


def turn_texts(chat, conversation, reader="reward"):
    """What the trained turns of a conversation say, told by reading it alone."""
    segments = conversations.segments(conversation, chat, reader=reader)
    return [chat.tokenizer.decode(s.tokens.tolist()).removesuffix(END) for s in segments if s.loss]


def targets(chat, tree):
    """(the turn that ends there, value, weight) of every target."""
    found = []
    for i in np.flatnonzero(tree["value_weight"] > 0):
        assert tree["tokens"][i] == chat.end_id
        text = chat.tokenizer.decode(tree["tokens"][paths(tree)[i]].tolist())
        turn = text.split("<|im_start|>assistant\n")[-1].removesuffix(END)
        found.append((turn, round(float(tree["value"][i]), 4), float(tree["value_weight"][i])))
    return found


# --- All layouts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ROWS)
def test_imitation_learns_the_trained_turns_and_nothing_else(name, build, chat):
    trees = build(ROWS[name], "imitation", reader="policy")
    wanted: Counter = Counter()
    for row in records(ROWS[name]):
        sides = [row.conversations[p.chosen] for p in row.pairs] or [
            c for i, c in enumerate(row.conversations) if not i or c.reward is not None or not c.steps
        ]
        for c in sides:
            wanted.update(turn_texts(chat, c, "policy"))
    assert sum((learned(chat, tree) for tree in trees), Counter()) == wanted


@pytest.mark.parametrize("name", ROWS)
def test_values_are_labels_of_steps_or_else_the_reward_at_the_last_turn(name, build, chat):
    """Where several fall on one turn they are their mean, with their weight together: sums and counts are the same."""
    counts: Counter = Counter()
    sums: Counter = Counter()
    for row in records(ROWS[name]):
        for c in row.conversations:
            said = turn_texts(chat, c)
            labelled = any(v is not None for v in c.steps)
            for text, v in zip(said, c.steps, strict=True) if labelled else ((said[-1], c.reward),):
                if v is not None:
                    counts[text] += 1
                    sums[text] += v
    if not counts:
        with pytest.raises(UserError, match="line 1: loss=it learns from a reward or labels of steps, and this row"):
            build(ROWS[name], "values")
        return
    found = [t for tree in build(ROWS[name], "values", bad=files.Skipped()) for t in targets(chat, tree)]
    weights: Counter = Counter()
    values: Counter = Counter()
    for turn, value, weight in found:
        weights[turn] += weight
        values[turn] += value * weight
    assert weights == counts
    assert values == pytest.approx(sums, abs=1e-3)


@pytest.mark.parametrize("name", ROWS)
def test_outcomes_are_read_at_the_end_of_whole_trajectories_whose_turns_are_marked(name, build, chat):
    rated = [c for row in records(ROWS[name]) for c in row.conversations if c.reward is not None]
    if not rated:
        with pytest.raises(UserError, match="learns from a reward, and this row has messages"):
            build(ROWS[name], "outcomes")
        return
    trees = build(ROWS[name], "outcomes", bad=files.Skipped())
    assert sum(w for tree in trees for *_, w in targets(chat, tree)) == len(rated)
    marked = sum((learned(chat, tree, "action") for tree in trees), Counter())
    assert set(marked) == {text for c in rated for text in turn_texts(chat, c)}


def test_the_table_of_the_page_is_what_happens(chat):
    """A cell is empty exactly where no row of the layout teaches the lesson."""
    columns = ("imitation", "values", "progress", "returns", "comparisons", "outcomes")
    page = dict(re.findall(r"^\| `([\w-]+)` \|[^|]*\|(.*)\|$", PAGE.read_text(), re.MULTILINE))
    assert page.keys() == ROWS.keys()
    encode = functools.partial(conversations.segments, chat=chat)
    for name, cells in page.items():
        for lesson, cell in zip(columns, cells.split("|"), strict=True):
            taught = 0
            for row in records(ROWS[name]):
                try:
                    taught += len(lessons.taught(row, lesson, encode, loss="it"))
                except UserError:
                    continue
            assert bool(cell.strip()) == bool(taught), (name, lesson)


def test_every_objective_has_a_lesson():
    found = {name: one.lesson for name, one in objectives.OBJECTIVES.items()}
    assert found | {
        "imitation": "imitation", "regression": "values", "cross_entropy": "values", "promise": "progress",
        "temporal_difference": "returns", "pairwise": "comparisons", "listwise": "comparisons", "implicit_regression": "outcomes",
    } == found  # fmt: skip
    assert set(found.values()) <= lessons.NEEDS.keys()


# --- Samples of one task ---------------------------------------------------------------------------------------------

SAMPLES = [
    told("Box?", "look", "A key.", "use key", id="b", reward=1.0),
    told("Box?", "look", "A key.", "wait", id="b", reward=0.0),
    told("Box?", "look", "A key.", "wait", id="b", reward=0.5),
    told("Door?", "push", id="d", reward=0.25),
]


def test_samples_of_a_task_share_what_they_begin_with(build, chat):
    box, door = build(SAMPLES, "values")
    text = chat.tokenizer.decode(box["tokens"].tolist())
    assert text.count("A key.") == 1
    assert targets(chat, box) == [("use key", 1.0, 1.0), ("wait", 0.25, 2.0)]  # a mean weighs what it is the mean of
    assert targets(chat, door) == [("push", 0.25, 1.0)]


def test_progress_and_returns_are_of_every_turn(build, chat):
    box, _ = build(SAMPLES, "progress")
    assert targets(chat, box) == [("look", 0.5, 3.0), ("use key", 1.0, 1.0), ("wait", 0.25, 2.0)]
    box, _ = build([*SAMPLES, told("Box?", "look", id="b", reward=0.1)], "returns")
    found = targets(chat, box)  # a trajectory's last turn stays its own, also where another one goes on
    assert Counter(turn for turn, *_ in found) == {"look": 2, "use key": 1, "wait": 2}
    ends = [
        (turn, value)
        for (turn, value, _), at in zip(found, np.flatnonzero(box["value_weight"]), strict=True)
        if at not in box["before"]
    ]
    assert sorted(ends) == [("look", 0.1), ("use key", 1.0), ("wait", 0.0), ("wait", 0.5)]


def test_samples_are_compared_within_their_task_and_those_alone_are_counted(build, chat, capsys):
    (box,) = build(SAMPLES, "comparisons")
    assert sorted(v for _, v, _ in targets(chat, box)) == [
        0.25,
        1.0,
    ]  # the two that say the same are one, with their mean
    assert len(set(box["group"][box["value_weight"] > 0])) == 1
    out = capsys.readouterr().out
    assert "1 trajectories are left out: no other of their task has another reward" in out
    assert "1 pairs to learn" in out
    with pytest.raises(
        UserError, match="no task has two trajectories that differ in their reward; give samples of one task one id"
    ):
        build([SAMPLES[0], SAMPLES[3]], "comparisons")


def test_pairs_are_groups_of_their_own_with_the_chosen_side_above(build, chat):
    rows = [
        {"id": "q", "chosen": [ASK, YES], "rejected": [ASK, NO]},
        {"id": "q", "chosen": [ASK, YES], "rejected": [ASK, {**NO, "content": "Never."}]},
    ]
    (tree,) = build(rows, "comparisons")
    at = np.flatnonzero(tree["value_weight"] > 0)
    found = {}
    for i, (turn, value, _) in zip(at, targets(chat, tree), strict=True):
        found.setdefault(int(tree["group"][i]), []).append((turn, value))
    assert sorted(found.values()) == [[("Yes.", 1.0), ("Never.", 0.0)], [("Yes.", 1.0), ("No.", 0.0)]]
    assert chat.tokenizer.decode(tree["tokens"].tolist()).count("Is 7 prime?") == 1


def test_labels_compare_turns_that_follow_one_history(build, chat):
    (tree,) = build(ROWS["prm800k"], "comparisons")
    at = np.flatnonzero(tree["value_weight"] > 0)
    groups = [int(g) for g in tree["group"][at]]
    said = dict(zip([t for t, *_ in targets(chat, tree)], groups, strict=True))
    assert said["Count on."] == said["2 + 3 is 6."] != said["It is 5."] == said["So 5."]


def test_a_long_group_is_compared_in_parts_that_hold_high_and_low(build, chat, capsys):
    rows = [told("Box?", f"turn {i} " * 6, id="b", reward=i / 7) for i in range(8)]
    trees = build(rows, "comparisons", row_length=130)
    assert len(trees) > 1
    for tree in trees:
        values = [v for _, v, _ in targets(chat, tree)]
        assert len(values) > 1
        assert max(values) > 0.5 > min(values)
    assert sum(len(targets(chat, tree)) for tree in trees) == 8


def test_what_is_too_long_is_left_out_and_counted(build, capsys):
    long = told("Box?", "word " * 200, id="l", reward=1.0)
    build([*SAMPLES, long], "values", row_length=150)
    assert (
        "1 trajectories are longer than 150 tokens and are left out; --config.row_length raises it"
        in capsys.readouterr().out
    )
    with pytest.raises(UserError, match="nothing fits a row of 150 tokens; raise"):
        build([long], "values", row_length=150)


# --- What is left out ------------------------------------------------------------------------------------------------


def test_a_row_without_what_is_learned_ends_it_or_is_counted(build, capsys):
    rows = [told("a", "b", reward=1.0), told("c", "d"), told("e", "f", reward=0.0)]
    with pytest.raises(
        UserError, match="t, line 2: loss=it learns from a reward or labels of steps, and this row has messages"
    ):
        build(rows, "values")
    with pytest.raises(
        UserError, match=r"has messages and a chosen and a rejected side; .* --config\.loss=pairwise learns from it"
    ):
        build(ROWS["preference"], "values")
    assert len(build(rows, "values", bad=files.Skipped())) == 2
    assert "1 bad rows are left out; the first: t, line 2: loss=it learns from" in capsys.readouterr().out
    with pytest.raises(UserError, match="t: all rows are bad; the first: t, line 1"):
        build(rows[1:2], "values", bad=files.Skipped())


def test_probabilities_lie_between_0_and_1(build, capsys):
    row = told("a", "b", reward=75)
    with pytest.raises(UserError, match="line 1: loss=it learns probabilities, from 0 to 1, and this row says 75"):
        build([row], "values", bounded=True)
    build([row], "values")
    assert "targets run from 75 to 75: the model learns them on that scale" in capsys.readouterr().out


def test_what_is_rated_low_is_not_imitated(build, chat):
    rows = [
        told("a", "good", reward=1.0),
        told("b", "bad", reward=0.2),
        told("c", "unknown"),
        told("d", "yes", "e", "no", step_rewards=[1, 0]),
    ]
    assert sum((learned(chat, t) for t in build(rows, "imitation")), Counter()).total() == 5
    found = sum((learned(chat, t) for t in build(rows, "imitation", least=0.5)), Counter())
    assert set(found) == {"good", "unknown", "yes"}
    with pytest.raises(UserError, match="no row is left that loss=it learns from; it needs an assistant turn"):
        build(rows[1:2], "imitation", least=0.5)


def test_context_is_learned_with_its_own_weight(build, chat):
    (tree,) = build([told("a", "b")], "imitation", context_weight=0.25)
    assert set(tree["loss_weight"].tolist()) == {0.25, 1.0}


def test_whole_tasks_are_held_out_of_every_layout(build, chat):
    rows = [told(f"Task {i}", f"way {k}", id=i, reward=float(k)) for i in range(10) for k in range(2)]
    trees = build(rows, "values", heldout_fraction=0.2)
    held = build.made.held
    assert len(set(held.task)) == 2
    assert len(held.target) == 4
    assert sorted(set(held.success.tolist())) == [0.0, 1.0]
    assert held.length.tolist() == [1] * 4
    assert len(set(held.sibling.tolist())) == 2
    said = "".join(chat.tokenizer.decode(t["tokens"].tolist()) for t in trees)
    assert not [task for task in set(held.task) if f"Task {task}{END}" in said]
    assert len(trees) == 8


def test_pairs_are_held_out_too(build):
    rows = [{"id": i, "chosen": [ASK, YES], "rejected": [ASK, NO]} for i in range(10)]
    build(rows, "comparisons", heldout_fraction=0.2)
    held = build.made.held
    assert sorted(held.target.tolist()) == [0, 0, 1, 1]
    assert len(set(held.sibling.tolist())) == 2
    assert np.isnan(held.success).all()


def test_a_dataset_holds_what_was_made_and_what_is_held_out(chat, tmp_path):
    rows = own.Rows("t", records([told(f"Task {i}", "a", id=i, reward=1.0) for i in range(10)]), files.refuse)
    how = {"row_length": 100, "loss": "it", "heldout_fraction": 0.2, "extra": ("action",)}
    encode = functools.partial(conversations.segments, chat=chat)
    trees = own.dataset(rows, "outcomes", encode, tmp_path, **how)
    made = own.made(rows, "outcomes", encode, **how)
    assert sorted(t["tokens"].tolist() for t in trees) == sorted(flat.tokens.tolist() for flat in made.flat)
    assert all(t["action"].sum() == 2 for t in trees)
    held = heldout.read(tmp_path)
    assert held.task.tolist() == made.held.task.tolist()
    assert (held.rows["action"] == made.held.rows["action"]).all()
