"""llama.cpp: `python llama_worker.py '{"model": FILE, "threads": 2, "sequences": 64, "room": 576}'`.

Needs llama-cpp-python. Every path of a question has a sequence of its own, and what that sequence holds already is not read again (as in
llama-server's slots); one call of `llama_decode` brings all sequences a token further.
"""

import ctypes

import llama_cpp as ll
import numpy as np
import pipe

_BATCH = 2048


def main():
    job, say = pipe.job(), pipe.answers()
    ll.llama_log_set(_silent, ctypes.c_void_p(0))
    ll.llama_backend_init()
    model = ll.llama_model_load_from_file(job["model"].encode(), ll.llama_model_default_params())
    assert model, f"{job['model']} cannot be loaded"
    sizes = ll.llama_context_default_params()
    sizes.n_ctx = job["sequences"] * job["room"]
    sizes.n_seq_max = job["sequences"]
    sizes.n_batch = _BATCH
    sizes.n_threads = sizes.n_threads_batch = job["threads"]
    context = ll.llama_init_from_model(model, sizes)
    assert context, "no context of this size"
    memory = ll.llama_get_memory(context)
    words = ll.llama_vocab_n_tokens(ll.llama_model_get_vocab(model))
    batch = ll.llama_batch_init(_BATCH, 0, 1)
    held: list[list[int]] = [[] for _ in range(job["sequences"])]

    def read(entries):
        """Reads (sequence, position, token, whether its logits are wanted); the most likely next token of those, in order."""
        chosen = []
        for start in range(0, len(entries), _BATCH):
            part = entries[start : start + _BATCH]
            batch.n_tokens = len(part)
            for i, (sequence, position, token, wanted) in enumerate(part):
                batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, position, 1
                batch.seq_id[i][0], batch.logits[i] = sequence, wanted
            if code := ll.llama_decode(context, batch):
                raise RuntimeError(f"llama_decode answered {code}")
            for i, (_, _, _, wanted) in enumerate(part):
                if wanted:
                    chosen.append(int(np.ctypeslib.as_array(ll.llama_get_logits_ith(context, i), (words,)).argmax()))
        return chosen

    def generate(paths, new):
        entries = []
        for i, path in enumerate(paths):
            have = min(common(held[i], path), len(path) - 1)
            ll.llama_memory_seq_rm(memory, i, have, -1)
            entries += [(i, at, path[at], at + 1 == len(path)) for at in range(have, len(path))]
            held[i] = list(path)
        count, last, tokens = len(entries), read(entries), []
        for _ in range(new - 1):
            tokens.append(last)
            entries = [(i, len(held[i]), token, True) for i, token in enumerate(last)]
            for i, token in enumerate(last):
                held[i].append(token)
            last, count = read(entries), count + len(entries)
        tokens.append(last)
        return {"tokens": [list(row) for row in zip(*tokens, strict=True)], "computed": count}

    pipe.serve(say, {"generate": generate}, version=ll.__version__)


def common(a, b):
    """Length of the common beginning."""
    n = 0
    while n < min(len(a), len(b)) and a[n] == b[n]:
        n += 1
    return n


@ll.llama_log_callback
def _silent(level, text, user):
    pass


if __name__ == "__main__":
    main()
