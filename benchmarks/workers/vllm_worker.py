"""vLLM in this process: `python vllm_worker.py '{"model": DIR, "dtype": "float32", "runner": "generate", "max_model_len": 2048}'`.

Needs vllm. Prefix caching is on, requests are batched as vLLM likes it, ends of turns are ignored so that lengths are as asked for.
"""

import pipe
from vllm import LLM, PoolingParams, SamplingParams, __version__
from vllm.sampling_params import RequestOutputKind


def main():
    job, say = pipe.job(), pipe.answers()
    llm = LLM(
        job["model"],
        dtype=job["dtype"],
        runner=job["runner"],
        max_model_len=job["max_model_len"],
        enforce_eager=job.get("eager", False),
        enable_prefix_caching=True,
        disable_log_stats=True,
    )

    def params(new, temperature, n=1):
        return SamplingParams(
            n=n,
            temperature=temperature,
            max_tokens=new,
            min_tokens=new,
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    def generate(paths, new, n=1, temperature=0.0):
        found = llm.generate(prompts(paths), params(new, temperature, n), use_tqdm=False)
        tokens = [list(out.token_ids) for answer in found for out in answer.outputs]
        return {"tokens": tokens, "computed": computed(found) + sum(len(t) - 1 for t in tokens)}

    def score(paths):
        raw = PoolingParams(use_activation=False)
        found = llm.classify(prompts(paths), pooling_params=raw, use_tqdm=False)
        return {"values": [answer.outputs.probs[0] for answer in found], "computed": computed(found)}

    def episodes(paths, observations, new, temperature=1.0):
        """Every path goes on by itself: new tokens, an observation, new tokens, ... until its observations are over."""
        engine, count, read, running = llm.llm_engine, 0, 0, {}
        asks = 0

        def ask(i, turn, path):
            nonlocal asks
            asks += 1
            running[str(asks)] = i, turn, path
            engine.add_request(str(asks), {"prompt_token_ids": path}, params(new, temperature))

        for i, path in enumerate(paths):
            ask(i, 0, path)
        while running:
            for answer in engine.step():
                if not answer.finished:
                    continue
                i, turn, path = running.pop(answer.request_id)
                [out] = answer.outputs
                count += len(out.token_ids)
                read += len(path) - (answer.num_cached_tokens or 0) + len(out.token_ids) - 1
                if turn < len(observations[i]):
                    ask(i, turn + 1, path + list(out.token_ids) + observations[i][turn])
        return {"count": count, "computed": read}

    pipe.serve(say, {"generate": generate, "score": score, "episodes": episodes}, version=__version__)


def prompts(paths):
    return [{"prompt_token_ids": path} for path in paths]


def computed(found):
    """Tokens of prompts that the prefix cache did not have."""
    return sum(len(answer.prompt_token_ids) - (answer.num_cached_tokens or 0) for answer in found)


if __name__ == "__main__":
    main()
