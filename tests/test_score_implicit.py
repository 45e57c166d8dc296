"""Log-ratios of two workdirs: `score` and a search open the same pair, read the same words and give the same numbers."""

import asyncio
import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from agentrm_jax import score, tree
from agentrm_jax.data import conversations, formats
from agentrm_jax.data import datasets as pipeline
from agentrm_jax.envs.catalogue import find
from agentrm_jax.models.card import Card, texts_of
from agentrm_jax.rewards.loading import load_reward_model
from agentrm_jax.scoring import LogRatio
from agentrm_jax.testing.tiny import dense_logits, tiny_model
from agentrm_jax.tokenizer import train_tokenizer
from agentrm_jax.training.checkpoint import Checkpoints
from agentrm_jax.training.step import TrainState
from agentrm_jax.types import Action, Outcome, State, Task, UserError, trajectory_of
from tests.test_score import ONE_ROW, TALKS

TUNED, BASE = tiny_model(vocab_size=330, max_length=512), tiny_model(1, vocab_size=330, max_length=512)
ENGINE = {
    **{"cache_tokens": 4096, "rows": (4,), "batch_tokens": (512,), "new_tokens": (128,), "context": (512,)},
    **{"samples": 2, "max_new": 8, "tensor": 1, "dtype": "float32"},
}
SPECS = {"maze": find("maze")}
TASK = Task("maze", "m-1", "test", 9)


def workdir(folder: Path, model, tokenizer, **about) -> Path:
    """A finished training run."""
    folder.mkdir()
    head = hasattr(model, "value_d")
    card = Card(
        **{"kind": "policy", "loss": "imitation", "config": model.config, "lm_head": True, "value_head": head} | about
    )
    (folder / "model.json").write_text(json.dumps(card.to_json()))
    tokenizer.save_pretrained(folder / "tokenizer")
    flat = tree.flatten(tree.path_tree([tree.Segment(np.arange(4), "action")]))
    fields = ("tokens", "positions", "subtree_end", "previous", "loss_weight", "value", "value_weight")
    data = iter(pipeline.batches([{f: getattr(flat, f) for f in fields}] * 4, rows=1, row_length=32, seed=0))
    params = nnx.state(model, nnx.Param)
    tx = optax.adam(0.1)
    with Checkpoints(folder / "checkpoints") as checkpoints:
        checkpoints.save(TrainState(jax.numpy.int32(3), params, tx.init(params)), data, {"step": 3})
    return folder


def headless(model):
    """The model without its value head."""
    del model.value_d
    return model


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tokenizer) -> Path:
    """`base` and `tuned`, two policies, and `implicit`, which is `tuned` compared with `base`."""
    folder = tmp_path_factory.mktemp("runs")
    tuned, base = (
        headless(tiny_model(vocab_size=330, max_length=512)),
        headless(tiny_model(1, vocab_size=330, max_length=512)),
    )
    workdir(folder / "base", base, tokenizer)
    workdir(folder / "tuned", tuned, tokenizer)
    told = texts_of(SPECS, [TASK], "", reader="reward")
    about = {"kind": "implicit", "beta": 0.5, "reference": str(folder / "base"), "texts": told}
    workdir(folder / "implicit", tuned, tokenizer, **about)
    return folder


def ratios(conversation, chat) -> list[float]:
    """Every step's log-ratio from forward passes over the whole conversation."""
    segments = conversations.segments(conversation, chat)
    path = np.concatenate([s.tokens for s in segments]) if segments else np.zeros(0, np.int32)
    found, end = [], 0
    for s in segments:
        end += len(s.tokens)
        if s.loss:
            at = np.arange(end - len(s.tokens), end)
            tuned, base = (jax.nn.log_softmax(dense_logits(m, path))[at - 1, path[at]].sum() for m in (TUNED, BASE))
            found.append(float(tuned - base))
    return found


@pytest.fixture(scope="module")
def expected(chat) -> dict[int, list[float]]:
    return {c.id: ratios(c, chat) for c in TALKS}


@pytest.mark.parametrize(("rows", "row_length"), [(1, 256), (4, 512)])
def test_steps_have_their_log_ratios_however_they_are_packed(chat, expected, rows, row_length):
    how = {"rows": rows, "row_length": row_length}
    for s in score.score(TUNED, chat, TALKS, ratio=LogRatio(BASE, 0.5, accumulated=False), **how):
        np.testing.assert_allclose(s.step_scores, 0.5 * np.array(expected[s.id]), atol=1e-4)
    for s in score.score(TUNED, chat, TALKS, ratio=LogRatio(BASE, 0.5), **how):
        np.testing.assert_allclose(s.step_scores, 0.5 * np.cumsum(expected[s.id]), atol=1e-4)
        assert s.score == s.step_scores[-1] if s.step_scores else np.isnan(s.score)


def test_steps_beyond_the_longest_length_are_added_to_those_before_them(chat, expected):
    long = max(TALKS, key=lambda c: len(expected[c.id]))
    size = sum(len(s.tokens) for s in conversations.segments(long, chat))
    (cut,) = score.score(TUNED, chat, [long], **ONE_ROW, max_length=size - 1, ratio=LogRatio(BASE))
    assert cut.dropped_turns == 1
    np.testing.assert_allclose(cut.step_scores[:-1], np.cumsum(expected[long.id])[:-1], atol=1e-4)
    assert np.isfinite(cut.score)
    assert abs(cut.score - sum(expected[long.id])) > 1e-4


def episode() -> list[State]:
    state = State(TASK, "reach the goal", outcome=Outcome("You are at 1, 1."))
    states = []
    for text, seen in (("Action: move left", "A wall."), ("Thought: a\nAction: go", "2, 1."), ("Action: up", "Done.")):
        state = dataclasses.replace(state.propose(Action(text)), outcome=Outcome(seen))
        states.append(state)
    return states


@pytest.mark.parametrize("step", ["accumulated", "single"])
@pytest.mark.parametrize("place", ["implicit", "pair"])
def test_a_search_and_the_command_give_the_same_scores(runs, tmp_path, capsys, place, step):
    name = f"{runs}/implicit" if place == "implicit" else f"implicit:{runs}/tuned@{runs}/base"
    states = episode()
    searched = load_reward_model(name, SPECS, ENGINE, config={"step_reward": step})
    want = asyncio.run(searched.score(states))
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps(formats.trajectory_to_json(trajectory_of(states[-1]))) + "\n")
    assert score.main([name, str(path), f"--step-reward={step}", "--rows=1", "--row-length=256"]) == 0
    out, err = capsys.readouterr()
    np.testing.assert_allclose(json.loads(out)["step_scores"], want, atol=1e-4)
    assert max(map(abs, want)) > 0.01
    assert f"log-ratios are those of the tokens of every step, times {0.5 if place == 'implicit' else 1:g}" in err


def test_a_trained_one_reads_the_words_for_reward_models_and_a_pair_those_for_policies(runs):
    state = episode()[0]
    trained = load_reward_model(runs / "implicit", SPECS, ENGINE)
    pair = load_reward_model(f"implicit:{runs}/tuned@{runs}/base", SPECS, ENGINE)
    told = [m._encoder.chat.tokenizer.decode(m._encoder.turn(state)[0].tokens) for m in (trained, pair)]
    assert "Judge how well" in told[0]
    assert "Judge how well" not in told[1]
    assert "Your task: reach the goal" in told[1]


def refusal(place, **how) -> str:
    with pytest.raises(UserError) as error:
        load_reward_model(place, SPECS, ENGINE, **how)
    return str(error.value)


def test_what_is_no_pair_is_refused_by_name(runs, tmp_path, tokenizer):
    assert "holds a policy; train a reward model" in refusal(runs / "tuned")
    valued = workdir(tmp_path / "valued", tiny_model(2, vocab_size=330, max_length=512), tokenizer)
    assert f"{valued} holds a model with a value head, no policy" in refusal(f"implicit:{valued}@{runs}/base")
    other = train_tokenizer(["another alphabet of words altogether"] * 4, 290)
    strange = workdir(tmp_path / "strange", headless(tiny_model(3, vocab_size=330, max_length=512)), other)
    assert "have different tokens" in refusal(f"implicit:{runs}/tuned@{strange}")


def test_a_reference_that_has_moved_is_said_to_be_where_it_was(runs, tmp_path):
    moved = shutil.copytree(runs / "implicit", tmp_path / "implicit")
    card = json.loads((moved / "model.json").read_text())
    (moved / "model.json").write_text(json.dumps(card | {"reference": str(tmp_path / "gone")}))
    said = refusal(moved)
    assert f"is compared with the model {tmp_path / 'gone'}, which cannot be opened" in said
    assert f'write its new place as "reference" into {moved / "model.json"}' in said
