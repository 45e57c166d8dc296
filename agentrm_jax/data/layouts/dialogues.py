"""Rows that are one trajectory as messages, with what it was worth and labels of its steps where they are known."""

from collections.abc import Sequence

from agentrm_jax.data import fields
from agentrm_jax.data.layouts import parts
from agentrm_jax.data.layouts.parts import Found, Row, Said
from agentrm_jax.data.messages import read_messages
from agentrm_jax.types import JSON, Message, UserError

_LABELS = ("step_labels", "step_rewards", "values", "labels")  # columns with a number for every turn


def messages(row: Row) -> Found:
    """`conversations`, `messages` or `traj`: ETO, IPR, AgentGym, tau-bench, TRL, chat completions; `step_labels` as in `steps`."""
    name = next(key for key in ("conversations", "messages", "traj") if key in row)
    if not row[name]:
        raise UserError(f"{name!r} is empty: an item to be solved, not a trajectory")
    said = parts.acknowledged(read_messages(row[name], name), row[name])
    return Found((Said(said, reward=parts.reward(row), steps=steps(row, said)),))


def steps(row: Row, said: Sequence[Message]) -> tuple[float | None, ...]:
    """Labels of the trained turns, from a list with one for each of them, or for each assistant turn."""
    name = next((n for n in _LABELS if isinstance(row.get(n), list)), None)
    if name is None:
        return ()
    turns = [m.loss for m in said if m.role == "assistant"]
    if len(row[name]) == len(turns) > sum(turns):
        found = parts.numbers(row[name], name, len(turns), "assistant turns")
        return tuple(label for label, trained in zip(found, turns, strict=True) if trained)
    return parts.numbers(row[name], name, sum(turns), "trained turns")


def process_bench(row: Row) -> Found:
    """AgentProcessBench: `step_labels` are +1, 0 (neutral) and -1, by the index of a message or one for each assistant turn.

    They become 1, 0.5 and 0; a `final_label` above 0 is a success.
    """
    rows, labels = parts.listed(row["messages"], "messages"), row["step_labels"]
    said = read_messages(rows, "messages")
    by_turn: list[float | None] = []
    if isinstance(labels, dict):
        found = {_index(key, rows): _graded(value, f"step_labels.{key}") for key, value in labels.items()}
        for i, m in enumerate(rows):
            if m.get("role") == "assistant":
                by_turn.append(found.pop(i, None))
        if found:
            raise UserError(f"step_labels has a label for message {min(found)}, which is no assistant turn")
    else:
        by_turn = [_graded(v, f"step_labels[{i}]") for i, v in enumerate(parts.listed(labels, "step_labels"))]
    turns = sum(m.role == "assistant" for m in said)
    if len(by_turn) != turns:
        raise UserError(f"'messages' has {turns} assistant turns and 'step_labels' says {len(by_turn)}")
    kept = tuple(v for v, m in zip(by_turn, (m for m in said if m.role == "assistant"), strict=True) if m.loss)
    final = parts.number(row.get("final_label"), "final_label")
    worth = parts.reward(row) if final is None else float(final > 0)
    task = f"{row['data_source']}/{row['query_index']}" if {"data_source", "query_index"} <= row.keys() else None
    return Found((Said(said, reward=worth, steps=kept),), task=task)


def exploration(row: Row) -> Found:
    """IPR's rollouts: the whole trajectory with its reward, and its beginning up to a step with that step's Monte-Carlo value."""
    return _explored(row, "agent", "agent_final_reward")


def expert_values(row: Row) -> Found:
    """IPR's values of expert steps, as `exploration`."""
    return _explored(row, "gpt", "gpt_reward")


def _explored(row: Row, who: str, outcome: str) -> Found:
    name, prefix = f"{who}_conversations", f"{who}_step_conversations"
    whole = parts.acknowledged(read_messages(row[name], name), row[name])
    found = [Said(whole, reward=parts.number(row.get(outcome), outcome))]
    value = parts.number(row.get("monte_carlo_step_reward"), "monte_carlo_step_reward")
    if value is not None and row.get(prefix):
        begun = parts.acknowledged(read_messages(row[prefix], prefix), row[prefix])
        trained = sum(m.loss for m in begun)
        if not trained:
            raise UserError(f"{prefix!r} has no assistant turn that monte_carlo_step_reward could be of")
        found.append(Said(begun, "step", steps=(*[None] * (trained - 1), value)))
    return Found(tuple(found))


def completion(row: Row) -> Found:
    """`prompt` and `completion`, with a `label` of true or false in unpaired preferences (TRL)."""
    said = (*parts.prompt(row), *parts.side(row["completion"], "completion", "assistant"))
    return Found((Said(said, reward=parts.reward(row), steps=steps(row, said)),))


def cross_entropy(row: Row) -> Found:
    """ImplicitPRM: `response` is a conversation, `label` whether it is right, and `id` ends in the sample's number."""
    said = read_messages(row["response"], "response")
    name = row.get("id")
    task = name.rpartition("-")[0] if isinstance(name, str) and "-" in name else None
    if task and isinstance(row.get("dataset"), str):
        task = f"{row['dataset']}/{task}"
    return Found((Said(said, reward=parts.reward(row)),), task=task)


def game_log(row: Row) -> Found:
    """KnowAgent: `traj` is a text of `> command` lines, each with what was observed after it; thoughts and notes are commands that
    nothing follows, and belong to the next one. A `result` that is not true is a loss."""
    begin, *blocks = parts.text(row["traj"], "traj").split("\n> ")
    out = [Message("user", begin.strip())]
    turn: list[str] = []
    for block in blocks:
        command, _, seen = block.partition("\n")
        turn.append(command.strip())
        if seen.strip():
            out += [Message("assistant", "\n".join(turn), loss=True), Message("user", seen.strip())]
            turn = []
    if turn:
        out.append(Message("assistant", "\n".join(turn), loss=True))
    won = row.get("result")
    worth = parts.reward(row) if won is None else float(won is True or won == 1)
    name = row.get("name")
    return Found((Said(tuple(out), reward=worth),), task=name if isinstance(name, str) else None)


def board_log(row: Row) -> Found:
    """AgentBoard: `trajectory` holds what happened in "Interaction Turn 0", 1, ...; the progress rate is the reward."""
    out: list[Message] = []
    before: list[str] = []
    for name in sorted(row["trajectory"], key=_turn):
        entry = row["trajectory"][name]
        if not isinstance(entry, dict):
            raise UserError(f"trajectory.{name} is {fields.shown(entry)}; expected an object")
        if "Goal" in entry:
            before.append(f"Goal: {parts.text(entry['Goal'], f'trajectory.{name}.Goal')}")
        if "Action" in entry:
            if not before and not out:
                before.append(f"Goal: {parts.text(row.get('goal'), 'goal')}")
            if before:
                out.append(Message("user", "\n\n".join(before)))
                before = []
            out.append(Message("assistant", parts.text(entry["Action"], f"trajectory.{name}.Action"), loss=True))
        if "Observation" in entry:
            before.append(parts.text(entry["Observation"], f"trajectory.{name}.Observation"))
    if before:
        out.append(Message("user", "\n\n".join(before)))
    if not any(m.role == "assistant" for m in out):
        raise UserError("'trajectory' holds no action")
    worth = parts.number(row.get("progress_rate"), "progress_rate")
    task = f"{row['task_name']}/{row['id']}" if {"task_name", "id"} <= row.keys() else None
    return Found((Said(tuple(out), reward=worth),), task=task)


def _graded(value: JSON, name: str) -> float | None:
    """+1, 0 or -1 as 1, 0.5 or 0."""
    label = parts.number(value, name)
    if label not in (None, -1, 0, 1):
        raise UserError(f"{name} is {fields.shown(value)}; expected 1, 0 or -1")
    return None if label is None else (label + 1) / 2


def _index(key: str, rows: list[JSON]) -> int:
    if not key.isascii() or not key.isdigit() or len(key) > 9 or int(key) >= len(rows):
        raise UserError(
            f"step_labels has the key {fields.shown(key)}; expected the index of one of {len(rows)} messages"
        )
    return int(key)


def _turn(name: str) -> int:
    digits = name.rpartition(" ")[2]
    if not digits.isascii() or not digits.isdigit() or len(digits) > 9:
        raise UserError(f"trajectory has the entry {fields.shown(name)}; expected 'Interaction Turn' and a number")
    return int(digits)
