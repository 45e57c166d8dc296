"""Records what transformers gives at every step's end of turn, for `test_score.py`. Run where torch is, in an environment of its own:

    pip install torch 'transformers>=5,<6' tokenizers safetensors
    python tests/record_score_golden.py

Every folder is a small random one-label classifier of one architecture, written by transformers (weights, configuration,
tokenizer with a chat template of its family's style), with `expected.json`: conversations and transformers' value of every step, read
at its end of turn (`values`) and pooled from the whole rendered conversation up to it (`pooled`).
"""

import json
import shutil
from pathlib import Path

import numpy as np
import tokenizers
import torch
import transformers

GOLDEN = Path(__file__).parent / "score_golden"
SHAPE = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 256,
    "num_labels": 1,
}
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
HEADERS = (
    "{{ bos_token }}{% for m in messages %}<|start|>{{ m.role }}<|sep|>\n\n{{ m.content | trim }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant<|sep|>\n\n{% endif %}"
)
BRACKETS = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %} {{ m.content }}</s>{% endif %}{% endfor %}"
)
# Architecture -> its switches, its template, the token that ends a turn.
CASES = {
    "llama": ({"attention_bias": True, "rope_theta": 500.0}, HEADERS, "<|eot|>"),
    "mistral": ({"sliding_window": 24, "head_dim": 8}, BRACKETS, "</s>"),
    "qwen2": ({"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}, CHATML, "<|im_end|>"),
    "qwen3": ({"head_dim": 16}, CHATML, "<|im_end|>"),
    "smollm3": ({"no_rope_layers": [1, 0]}, CHATML, "<|im_end|>"),
}
SPECIAL = ("<pad>", "<s>", "</s>", "<|start|>", "<|sep|>", "<|eot|>", "<|im_start|>", "<|im_end|>", "[INST]", "[/INST]")
STEPS = (
    ("You are in a hall. Your task: take the red key.", "Thought: It is near.\nAction: take key"),
    ("Observation: It is locked away.", "Action: open chest"),
    ("Observation: Open.\n\nThe red key is in it.", "Thought: Now I can.\nAction: take key"),
    ("Observation: You have it.", "Action: go north"),
)


def conversations() -> list[list[dict[str, str]]]:
    """Of one to four turns and several lengths, two with an opening acknowledgement."""
    rows = []
    for count in (1, 2, 3, 4):
        for filler in (0, 3):
            told = [("Here is how to play." + " Be brief." * filler, "OK")] if filler and count > 1 else []
            chosen = [STEPS[(i + count) % len(STEPS)] for i in range(count)]
            turns = told + [(asked + " So it goes." * filler, did) for asked, did in chosen]
            pairs = [(("user", asked), ("assistant", did)) for asked, did in turns]
            rows.append([{"role": role, "content": text} for pair in pairs for role, text in pair])
    return rows


def make_tokenizer(template: str, end: str) -> transformers.PreTrainedTokenizerFast:
    core = tokenizers.Tokenizer(tokenizers.models.BPE())
    core.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted({c for c in map(chr, range(0x21, 0x7F))} | {"Ġ", "Ċ"}),
        show_progress=False,
    )
    core.train_from_iterator([m["content"] for row in conversations() for m in row], trainer)
    extra = [s for s in SPECIAL if s not in ("<pad>", "<s>", end)]
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token=end, additional_special_tokens=extra
    )
    tokenizer.chat_template = template
    return tokenizer


def make_folder(architecture: str, folder: Path) -> None:
    """A random classifier and its tokenizer, as transformers saves them; in bfloat16, to be small."""
    switches, template, end = CASES[architecture]
    tokenizer = make_tokenizer(template, end)
    config = transformers.AutoConfig.for_model(
        architecture, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **(SHAPE | switches)
    )
    torch.manual_seed(sorted(CASES).index(architecture))
    model = transformers.AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_((1.0 if "norm" in name else 0.0) + 0.3 * torch.randn(p.shape))
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@torch.no_grad()
def step_values(folder: Path, row: list[dict[str, str]], pooled: bool) -> list[float]:
    """The classifier's own answer for every beginning of a conversation that ends with an assistant turn (but "OK").

    `pooled`: at its very end; otherwise at the end-of-turn token, after which some templates write a line break.
    """
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    values = []
    for i, m in enumerate(row):
        if m["role"] == "assistant" and m["content"] != "OK":
            ids = tokenizer.apply_chat_template(row[: i + 1], tokenize=True, return_dict=False)
            last = max(at for at, token in enumerate(ids) if token == tokenizer.eos_token_id)
            read = ids if pooled else ids[: last + 1]
            values.append(float(model(input_ids=torch.tensor([read])).logits[0, 0]))
    return values


def record(architecture: str) -> None:
    folder = GOLDEN / architecture
    shutil.rmtree(folder, ignore_errors=True)
    make_folder(architecture, folder)
    rows = [
        {"messages": row, "values": step_values(folder, row, False), "pooled": step_values(folder, row, True)}
        for row in conversations()
    ]
    assert len({np.round(v, 4) for row in rows for v in row["values"]}) > 10
    (folder / "expected.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    for case in CASES:
        record(case)
