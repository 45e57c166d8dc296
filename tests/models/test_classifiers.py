"""Classifiers from elsewhere are read as their makers read them: labels, biases, softmax; as files say, and as transformers does."""

import json

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from agentrm_jax.engine.engine import make_engine
from agentrm_jax.export import write_hf
from agentrm_jax.models.classifiers import good_label
from agentrm_jax.models.families import head_from_hf
from agentrm_jax.models.opening import load_model, open_model
from agentrm_jax.testing.tiny import dense_values, tiny_model
from agentrm_jax.types import UserError

ENGINE = {"cache_tokens": 128, "rows": (2,), "batch_tokens": (24,), "new_tokens": (24,), "context": (32,)}
ENGINE |= {"samples": 1, "max_new": 4, "dtype": "float32"}


@pytest.fixture
def folder(tmp_path, chat):
    """A classifier with one label at every token and no bias, as a Hugging Face folder."""
    model = tiny_model(vocab_size=len(chat.tokenizer))
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    params["value_d"] = jax.random.normal(jax.random.key(5), params["value_d"].shape)
    write_hf(params, model.config, chat, tmp_path / "one", "TokenClassification")
    return tmp_path / "one"


def classifier(folder, names: dict[str, str], weight: np.ndarray, bias: np.ndarray):
    """The folder with other labels."""
    path = folder / "config.json"
    fields = {"id2label": names, "label2id": {v: int(k) for k, v in names.items()}, "num_labels": len(names)}
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    tensors = load_file(folder / "model.safetensors") | {"score.weight": weight, "score.bias": bias}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "example_scores.json").unlink(missing_ok=True)
    return folder


def labels_of(folder, count: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    size = load_file(folder / "model.safetensors")["score.weight"].shape[1]
    return rng.normal(size=(count, size)).astype(np.float32), rng.normal(size=count).astype(np.float32)


IDS = np.arange(4, 21, dtype=np.int32)


def raw(folder, weight: np.ndarray) -> np.ndarray:
    """What one linear map gives at every token."""
    loaded = load_model(classifier(folder, {"0": "LABEL_0"}, weight[None], np.zeros(1, np.float32)))
    return dense_values(loaded.model, IDS)


@pytest.mark.parametrize("names", [("LABEL_0", "LABEL_1"), ("good", "bad"), ("incorrect", "Correct"), ("-", "+")])
def test_of_two_labels_the_probability_of_the_good_one_is_read(folder, names):
    weight, bias = labels_of(folder, 2)
    scores = np.stack([raw(folder, weight[i]) + bias[i] for i in range(2)])
    want = np.exp(scores[0 if names[0] == "good" else 1]) / np.exp(scores).sum(0)
    loaded = load_model(classifier(folder, dict(zip("01", names, strict=True)), weight, bias))
    assert loaded.read_at == "last_token"
    np.testing.assert_allclose(dense_values(loaded.model, IDS), want, atol=1e-5)
    engine = make_engine(loaded.model, ENGINE, end_id=loaded.chat.end_id)
    np.testing.assert_allclose(engine.score([IDS, IDS[:9]]), [want[-1], want[8]], atol=1e-5)


def test_one_label_may_have_a_bias(folder):
    weight, bias = labels_of(folder, 1)
    before = raw(folder, weight[0])
    loaded = load_model(classifier(folder, {"0": "LABEL_0"}, weight, bias))
    np.testing.assert_allclose(dense_values(loaded.model, IDS), before + bias[0], atol=1e-5)


def test_training_starts_from_the_value_head_itself(folder):
    weight, bias = labels_of(folder, 2)
    opened = open_model(classifier(folder, {"0": "bad", "1": "good"}, weight, bias))
    assert (opened.config.value_bias, opened.config.value_probability) == (0.0, False)
    wanted = {k: jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), v) for k, v in opened.has.items()}
    np.testing.assert_allclose(opened.read(wanted)["value_d"], weight[1] - weight[0], atol=1e-6)


def test_labels_that_say_nothing_are_refused_by_name(folder):
    with pytest.raises(UserError, match=r"of the labels red, blue means good .* name them good and bad in id2label"):
        good_label({"id2label": {"0": "red", "1": "blue"}})
    with pytest.raises(UserError, match="has 2"):
        head_from_hf({"architectures": ["LlamaForSequenceClassification"], "id2label": {"0": "a", "1": "b"}})
    with pytest.raises(UserError, match="has 3"):
        head_from_hf({"architectures": ["LlamaForTokenClassification"], "num_labels": 3})
    weight, bias = labels_of(folder, 3)
    open_three = classifier(folder, {"0": "bad", "1": "good"}, weight, bias)
    with pytest.raises(UserError, match=r"score.weight has shape \(3, 32\), its configuration says 2 labels"):
        open_model(open_three)


def test_transformers_gives_the_probabilities_of_a_process_reward_model(folder):
    torch = pytest.importorskip("torch", reason="needs torch; labels are compared without it", exc_type=ImportError)
    import transformers

    place = classifier(folder, {"0": "LABEL_0", "1": "LABEL_1"}, *labels_of(folder, 2))
    theirs = transformers.AutoModelForTokenClassification.from_pretrained(place).eval()
    with torch.no_grad():
        want = theirs(input_ids=torch.tensor(IDS[None].astype(np.int64))).logits[0].softmax(-1)[:, 1].numpy()
    np.testing.assert_allclose(dense_values(load_model(place).model, IDS), want, atol=1e-4)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("task", ["SEQ_CLS", "TOKEN_CLS"])
def test_reward_adapters_that_peft_writes_are_read(folder, tmp_path, task):
    reason = "needs torch and peft; folders of their form are read in test_pretrained.py"
    torch = pytest.importorskip("torch", reason=reason, exc_type=ImportError)
    peft = pytest.importorskip("peft", reason=reason, exc_type=ImportError)
    import transformers

    if task == "SEQ_CLS":
        base = transformers.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1)
    else:
        base = transformers.AutoModelForTokenClassification.from_pretrained(
            folder, num_labels=2, ignore_mismatched_sizes=True
        )
    settings = peft.LoraConfig(
        task_type=task, r=2, lora_alpha=4, target_modules=["q_proj", "up_proj"], init_lora_weights=False
    )
    theirs = peft.get_peft_model(base, settings).eval()
    for name, parameter in theirs.named_parameters():
        if "modules_to_save" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    theirs.save_pretrained(tmp_path / "adapter")
    ids = torch.tensor(IDS[None].astype(np.int64))
    theirs.base_model.model.config.pad_token_id = 0
    with torch.no_grad():
        logits = theirs(input_ids=ids).logits[0]
    loaded = load_model(tmp_path / "adapter")
    got = dense_values(loaded.model, IDS)
    if task == "SEQ_CLS":
        np.testing.assert_allclose(got[-1], logits.numpy()[0], atol=1e-4)
    else:
        np.testing.assert_allclose(got, logits.softmax(-1)[:, 1].numpy(), atol=1e-4)
