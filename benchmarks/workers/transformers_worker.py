"""transformers as one would write it first: `python transformers_worker.py '{"policy": DIR, "reward": DIR, "threads": 2}'`.

Needs torch and transformers. Sequences of one length are generated together; paths that were asked for last time have their keys and
values kept. With `one_by_one` every sample and every score is a call of its own that reads its whole path.
"""

from typing import Any

import pipe
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, DynamicCache


def main():
    job, say = pipe.job(), pipe.answers()
    torch.set_num_threads(job["threads"])
    torch.manual_seed(0)
    policy = AutoModelForCausalLM.from_pretrained(job["policy"], dtype=torch.float32).eval()
    reward = AutoModelForSequenceClassification.from_pretrained(job["reward"], dtype=torch.float32).eval()
    kept: dict[str, Any] = {"paths": None, "cache": None}

    @torch.inference_mode()
    def generate(paths, new, n=1, temperature=0.0, one_by_one=False):
        paths = [path for path in paths for _ in range(n)]
        groups = [[path] for path in paths] if one_by_one else [paths]
        tokens: list[list[int]] = []
        read = 0
        for group in groups:
            found, computed = continued(group, new, temperature, keep=not one_by_one)
            tokens, read = tokens + found, read + computed
        return {"tokens": tokens, "computed": read}

    def continued(paths, new, temperature, keep):
        rows = torch.tensor(paths)
        before = rows.shape[1] - 1
        known = keep and kept["paths"] == paths
        cache = kept["cache"] if known else DynamicCache(config=policy.config)
        if known and cache.get_seq_length() > before:
            cache.crop(before - cache.get_seq_length())
        elif before and not known:
            policy(input_ids=rows[:, :-1], past_key_values=cache, logits_to_keep=1)
        if keep:
            kept.update(paths=paths, cache=cache)
        last, out = rows[:, -1:], []
        for _ in range(new):
            logits = policy(input_ids=last, past_key_values=cache).logits[:, -1]
            last = drawn(logits, temperature)
            out.append(last)
        return torch.cat(out, 1).tolist(), len(paths) * (new + (0 if known else before))

    @torch.inference_mode()
    def score(paths, one_by_one=False, at_once=5):
        size = 1 if one_by_one or len({len(path) for path in paths}) > 1 else at_once
        values = []
        for i in range(0, len(paths), size):
            hidden = reward.model(input_ids=torch.tensor(paths[i : i + size])).last_hidden_state
            values += reward.score(hidden[:, -1])[:, 0].tolist()
        return {"values": values, "computed": sum(map(len, paths))}

    pipe.serve(say, {"generate": generate, "score": score}, version=transformers.__version__)


def drawn(logits, temperature):
    """int64[b, 1]."""
    if temperature == 0:
        return logits.argmax(-1, keepdim=True)
    return torch.multinomial(torch.softmax(logits / temperature, -1), 1)


if __name__ == "__main__":
    main()
