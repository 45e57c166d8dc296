"""Rows about a problem and texts that solve it: steps with labels, and several samples with their outcomes.

Every step, and every whole solution, is an assistant turn after the problem.
"""

from collections.abc import Sequence

from agentrm_jax.data import fields
from agentrm_jax.data.layouts import parts
from agentrm_jax.data.layouts.parts import Found, Messages, Row, Said
from agentrm_jax.text import clean
from agentrm_jax.types import JSON, Message, UserError

_TAG = "ки"  # Math-Shepherd's mark for the end of a step
_RATINGS = {-1: 0.0, 0: 0.5, 1: 1.0}


def stepwise(row: Row) -> Found:
    """`prompt`, `completions` and a label for each (TRL); of numbers in `values`, these, which TRL's own labels would round."""
    said = parts.turns(row["completions"], "completions")
    count = len(parts.listed(row["completions"], "completions"))
    name = "values" if isinstance(row.get("values"), list) else "labels"
    labels = parts.numbers(row[name], name, count, "completions")
    if len(said) != count or not all(m.loss for m in said):
        raise UserError(
            "'completions' holds a list of messages that is not one assistant turn, which a label could be of"
        )
    return Found((Said((*parts.prompt(row), *said), reward=parts.reward(row), steps=labels),))


def prm800k(row: Row) -> Found:
    """PRM800K: the chosen completions one after another, and beside each the others, with their ratings.

    Ratings 1, 0 and -1 become 1, 0.5 and 0; what a person wrote instead counts as 1.
    """
    problem = (Message("user", parts.text(row["question"].get("problem"), "question.problem")),)
    path: list[Message] = []
    labels: list[float | None] = []
    others: list[Said] = []
    for i, step in enumerate(parts.listed(row["label"]["steps"], "label.steps")):
        place = f"label.steps[{i}]"
        if not isinstance(step, dict):
            raise UserError(f"{place} is {fields.shown(step)}; expected an object")
        completions = parts.listed(step.get("completions") or [], f"{place}.completions")
        drawn = [_rated(c, f"{place}.completions[{k}]") for k, c in enumerate(completions)]
        chosen = step.get("chosen_completion")
        if chosen is not None and (type(chosen) is not int or not 0 <= chosen < len(drawn)):
            raise UserError(f"{place}.chosen_completion is {fields.shown(chosen)}; expected one of {len(drawn)}")
        for k, (said, label) in enumerate(drawn):
            if k != chosen and label is not None:
                others.append(Said((*problem, *path, said), f"{i}.{k}", steps=(*[None] * len(path), label)))
        if chosen is not None:
            said, label = drawn[chosen]
        elif isinstance(human := step.get("human_completion"), dict):
            said, label = _written(human, place), 1.0
        else:
            break
        path.append(said)
        labels.append(label)
    whole = [Said((*problem, *path), "chosen" if others else "", steps=tuple(labels))] if path else []
    if not whole and not others:
        raise UserError("no step of 'label' was chosen or rated")
    return Found((*whole, *others), task=problem[0].content)


def math_shepherd(row: Row) -> Found:
    """Math-Shepherd: `input` with a tag after every step, and `label`, the same text with + or - in the tag's place."""
    text, label = parts.text(row["input"], "input"), parts.text(row["label"], "label")
    pieces = text.split(_TAG)
    if len(pieces) < 2:
        raise UserError(f"'input' has no step that ends in {_TAG!r}")
    labels, at = [], 0
    for i, piece in enumerate(pieces[:-1]):
        at += len(piece)
        if (sign := label[at : at + 1]) not in ("+", "-"):
            raise UserError(f"'label' has {fields.shown(sign)} after step {i + 1}; expected + or -")
        labels.append(float(sign == "+"))
        at += 1
    begin = next((found for word in ("Step 1:", "step 1:") if (found := pieces[0].find(word)) >= 0), None)
    if begin is None:
        begin = pieces[0].find("?") + 1
    question, first = pieces[0][:begin].strip(), pieces[0][begin:].strip()
    if not question or not first:
        raise UserError("'input' does not say where its first step begins: no 'Step 1:' and no question mark")
    steps = (first, *(piece.strip() for piece in pieces[1:-1]))
    return Found((Said((Message("user", question), *_turns(steps)), steps=tuple(labels)),))


def processbench(row: Row) -> Found:
    """ProcessBench: `label` is the index of the first wrong step, -1 if all are right. What follows a wrong step has no label."""
    steps = [parts.text(s, f"steps[{i}]") for i, s in enumerate(parts.listed(row["steps"], "steps"))]
    wrong = row["label"]
    if type(wrong) is not int or not -1 <= wrong < len(steps):
        raise UserError(f"label is {fields.shown(wrong)}; expected the index of one of {len(steps)} steps, or -1")
    count = len(steps)
    labels = [1.0] * count if wrong < 0 else [*[1.0] * wrong, 0.0, *[None] * (count - wrong - 1)]
    return Found((Said((_problem(row, "problem"), *_turns(steps)), steps=tuple(labels)),))


def next_token(row: Row) -> Found:
    """ImplicitPRM's rows for a next-token process model: `output` is a list of steps or a text with blank lines between them."""
    steps = row["output"].split("\n\n") if isinstance(row["output"], str) else row["output"]
    texts = [parts.text(s, f"output[{i}]") for i, s in enumerate(parts.listed(steps, "output"))]
    labels = parts.numbers(row["process_label"], "process_label", len(texts), "output")
    return Found((Said((_problem(row, "input"), *_turns(texts)), reward=parts.reward(row), steps=labels),))


def samples(row: Row) -> Found:
    """ImplicitPRM: `completions` of one prompt, each a whole solution, and whether each is right (`correctness`)."""
    texts = [parts.text(s, f"completions[{i}]") for i, s in enumerate(parts.listed(row["completions"], "completions"))]
    right = parts.numbers(row["correctness"], "correctness", len(texts), "completions")
    before = parts.prompt(row)
    return Found(tuple(Said((*before, *_turns([t])), str(i), reward=right[i]) for i, t in enumerate(texts)))


def sampled(row: Row) -> Found:
    """ImplicitPRM's best of n: one `response` to a prompt, and whether it is right; rows of one `idx` belong together."""
    return Found(
        (Said((*parts.prompt(row), *_turns([parts.text(row["response"], "response")])), reward=parts.reward(row)),)
    )


def generation(row: Row) -> Found:
    """ReST-MCTS: solutions of a problem (`policy_samples`) and beginnings of one with their values (`value_samples`)."""
    problem, found = _problem(row, "content"), []
    for name, text, number in (("policy_samples", "solution", "correct"), ("value_samples", "steps", "value")):
        for i, one in enumerate(parts.listed(row.get(name) or [], name)):
            place = f"{name}[{i}]"
            if not isinstance(one, dict):
                raise UserError(f"{place} is {fields.shown(one)}; expected an object")
            said = (problem, *_turns([parts.text(one.get(text), f"{place}.{text}")]))
            known = parts.number(one.get(number), f"{place}.{number}")
            whole = name == "policy_samples"
            found.append(Said(said, place, reward=known if whole else None, steps=() if whole else (known,)))
    if not found:
        raise UserError("'policy_samples' and 'value_samples' are empty: an item to be solved, not a trajectory")
    return Found(tuple(found), task=problem.content)


def prefix_value(row: Row) -> Found:
    """ReST-MCTS: `prompt_answer` is a problem and the beginning of its solution, `label` its value."""
    text = parts.text(row["prompt_answer"], "prompt_answer")
    problem, found, begun = text.partition("\nSolution:")
    if not found or not begun.strip():
        raise UserError("'prompt_answer' holds no 'Solution:' after its problem")
    said = (Message("user", problem.removeprefix("Problem:").strip()), *_turns([begun.strip()]))
    return Found((Said(said, steps=(parts.number(row["label"], "label"),)),))


def _problem(row: Row, name: str) -> Message:
    return Message("user", parts.text(row[name], name))


def _turns(texts: Sequence[str]) -> Messages:
    return tuple(Message("assistant", clean(text), loss=True) for text in texts)


def _rated(value: JSON, place: str) -> tuple[Message, float | None]:
    rating = value.get("rating") if isinstance(value, dict) else None
    if rating is not None and (type(rating) is not int or rating not in _RATINGS):
        raise UserError(f"{place}.rating is {fields.shown(rating)}; expected 1, 0, -1 or null")
    return _written(value, place), None if rating is None else _RATINGS[rating]


def _written(value: JSON, place: str) -> Message:
    if not isinstance(value, dict):
        raise UserError(f"{place} is {fields.shown(value)}; expected an object with text")
    return Message("assistant", parts.text(value.get("text"), f"{place}.text"), loss=True)
