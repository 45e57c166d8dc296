"""vLLM's real server on the weights of our engine: greedy search finds the same, tokens and log-probabilities are the same.

AGENTRM_VLLM names the python of an environment in which vLLM is installed (it has no place in ours); without it these are skipped.
"""

import asyncio
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request

import numpy as np
import pytest

from agentrm_jax import export
from agentrm_jax.generators.http import Client, Settings
from agentrm_jax.generators.native import load_engine_generator
from agentrm_jax.generators.openai import ServerGenerator
from agentrm_jax.policies.loading import load_policy
from agentrm_jax.search import greedy
from agentrm_jax.testing.inline import InlineEnvironments
from agentrm_jax.testing.tiny import tiny_model
from agentrm_jax.testing.toy_env import SPEC, make_task
from agentrm_jax.text import clean
from agentrm_jax.types import Message

PYTHON = os.environ.get("AGENTRM_VLLM", "")
SIZES = {
    "cache_tokens": 2048,
    "rows": (4,),
    "batch_tokens": (512,),
    "new_tokens": (512,),
    "context": (512,),
    "max_new": 8,
    "dtype": "float32",
}
SPECS = {"toy": SPEC}

pytestmark = pytest.mark.skipif(not PYTHON, reason="AGENTRM_VLLM does not name a python with vLLM")


@pytest.fixture(scope="module")
def folder(tokenizer, chat, tmp_path_factory):
    """A small model as a Hugging Face folder."""
    from flax import nnx

    out = tmp_path_factory.mktemp("vllm") / "tiny"
    sizes = {"d_model": 64, "num_heads": 2, "num_kv_heads": 1, "head_dim": 32, "d_ff": 64, "max_length": 512}
    model = tiny_model(vocab_size=330, **sizes)
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    export.write_hf(params, model.config, chat, out, "CausalLM")
    return out


@pytest.fixture(scope="module")
def url(folder):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    command = [
        PYTHON,
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        str(folder),
        "--served-model-name",
        "tiny",
    ]
    command += ["--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--max-model-len", "512"]
    command += ["--enforce-eager", "--max-num-seqs", "8"]
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    env = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"} | env
    log = folder.parent / "log.txt"
    with log.open("w") as out:
        process = subprocess.Popen(command, env=env, cwd=folder.parent, stdout=out, stderr=out, start_new_session=True)
    try:
        begin = time.monotonic()
        while True:
            assert process.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() - begin < 400, log.read_text()[-3000:]
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except (urllib.error.URLError, OSError):
                time.sleep(1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(60)


def served(url, **settings):
    given = {"retries": 1, "timeout": 60.0} | settings
    return load_policy(f"openai:tiny@{url}", SPECS, SIZES, config={"server": given})


def play(policy, task):
    async def search():
        try:
            return await greedy(task, policy, InlineEnvironments(SPEC))
        finally:
            if hasattr(policy, "aclose"):
                await policy.aclose()

    return [state.action for state in asyncio.run(search()).state.path()[1:]]


def test_greedy_search_over_token_ids_is_that_of_our_engine(folder, url):
    task = make_task(3)
    ours = play(load_policy(folder, SPECS, SIZES), task)
    theirs = play(served(url, tokenizer=str(folder)), task)
    assert len(ours) > 1
    assert [a.tokens for a in theirs] == [a.tokens for a in ours]
    assert [a.text for a in theirs] == [a.text for a in ours]
    assert [a.finish for a in theirs] == [a.finish for a in ours]
    np.testing.assert_allclose([a.logprob for a in theirs], [a.logprob for a in ours], atol=1e-2)


def test_a_turn_over_chat_messages_is_that_of_our_engine(folder, url):
    task = make_task(3)
    [ours, *_] = play(load_policy(folder, SPECS, SIZES), task)
    policy = served(url)
    assert policy.generator.context == 512  # as the server says
    [theirs, *_] = play(policy, task)
    assert (theirs.text, theirs.finish) == (clean(ours.text), ours.finish)
    np.testing.assert_allclose(theirs.logprob, ours.logprob, atol=1e-2)
    assert policy.usage[task.key].completion > 0


def run(generator, coroutine):
    async def closing():
        try:
            return await coroutine
        finally:
            await generator.aclose()

    return asyncio.run(closing())


def test_several_samples_differ_and_come_again_with_their_seed(url):
    generator = ServerGenerator("tiny", Client(url, Settings(retries=1)), max_tokens=8, note=pytest.fail)
    drawn = [
        run(generator, generator.generate([Message("user", "go")], 4, temperature=1.0, seed=seed)) for seed in (1, 1, 2)
    ]
    texts = [[action.text for action in actions] for actions in drawn]
    assert len(set(texts[0])) > 1
    assert texts[0] == texts[1] != texts[2]


def test_a_judge_is_as_sure_as_on_our_engine(folder, url):
    """Of random weights no number need be among the likely first tokens: the first question for which some are is compared."""
    ours, generator = (
        load_engine_generator(folder, SIZES),
        ServerGenerator("tiny", Client(url, Settings(retries=1)), max_tokens=8),
    )
    options = [str(i) for i in range(1, 10)]

    async def compare():
        try:
            for i in range(40):
                question = [Message("user", f"Which is best, {i} or {i + 1}?")]
                theirs = await generator.choose(question, options)
                if theirs is not None and theirs.how == "logprobs":
                    return (await ours.choose(question, options)).logprobs, theirs.logprobs
        finally:
            await generator.aclose()

    here, there = asyncio.run(compare())
    listed = [i for i, p in enumerate(there) if p > min(there)]
    assert listed
    np.testing.assert_allclose([there[i] for i in listed], [here[i] for i in listed], atol=1e-2)
    assert (np.array(there) - here > -1e-2).all()  # the others are bounds
