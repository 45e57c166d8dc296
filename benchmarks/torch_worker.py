"""Update steps in PyTorch, run by the Python of another environment: `python torch_worker.py JOB.json` (see `torch_steps`).

Needs torch, transformers and, for adapters, peft; imports nothing of this project. Says `ready` when its model is there, then
does one step for every line that it reads, and answers with the highest memory (bytes) that it has needed so far.
"""

import json
import resource
import sys

import torch
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel


def main() -> None:
    with open(sys.argv[1]) as f:
        job = json.load(f)
    torch.set_num_threads(job["threads"])
    config = LlamaConfig(use_cache=False, **job["model"])
    model = (LlamaModel if job["kind"] == "values" else LlamaForCausalLM)(config).train()
    if job["kind"] == "adapters":
        from peft import LoraConfig, get_peft_model

        adapters = LoraConfig(r=job["rank"], lora_alpha=2 * job["rank"], target_modules="all-linear")
        model = get_peft_model(model, adapters)
    head = torch.nn.Linear(config.hidden_size, 1, bias=False)
    trained = [p for p in model.parameters() if p.requires_grad] + list(head.parameters())
    optimizer = torch.optim.AdamW(trained, lr=1e-5)
    tokens = torch.tensor(job["tokens"])
    say("ready")
    for _ in sys.stdin:
        for rows, ends, targets in batches(job, tokens):
            if job["kind"] == "values":
                hidden = model(input_ids=rows).last_hidden_state[torch.arange(len(rows)), ends]
                loss = torch.square(head(hidden)[:, 0] - targets).sum() / len(tokens)
            else:
                loss = model(input_ids=rows, labels=rows).loss
            loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        say(str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024))


def batches(job, tokens):
    """(rows, index of each row's last token, target) of every backward pass of one step."""
    if job["kind"] != "values":
        return [(tokens, None, None)]
    ends, targets = torch.tensor(job["ends"]), torch.tensor(job["targets"])
    size = job["rows_at_a_time"]
    return [(tokens[i : i + size], ends[i : i + size], targets[i : i + size]) for i in range(0, len(tokens), size)]


def say(line):
    print(line, flush=True)


if __name__ == "__main__":
    main()
