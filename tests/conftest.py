"""What tests share: a CPU with a compilation cache, a tiny tokenizer, a tiny model, an environment that exists on paper only."""

import gc
import os
from pathlib import Path
from typing import Any

# Before anything imports JAX, and for the processes that tests start: small programs are compiled fast, and once only.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")
_home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_home / "agentrm_jax" / "tests"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import hypothesis  # noqa: E402
import jaxtyping  # noqa: E402
import pytest  # noqa: E402

# In tests every call of these modules' functions is checked against the shapes and types in its annotations.
CHECKED = (
    *("agentrm_jax.models.attention", "agentrm_jax.models.attention_fused", "agentrm_jax.models.attention_gpu"),
    *("agentrm_jax.models.attention_tpu", "agentrm_jax.models.attention_xla", "agentrm_jax.models.tiles"),
    *("agentrm_jax.models.layers", "agentrm_jax.models.lora", "agentrm_jax.models.transformer"),
    *("agentrm_jax.models.vocabulary", "agentrm_jax.training.losses"),
)
jaxtyping.install_import_hook(CHECKED, "beartype.beartype")

hypothesis.settings.register_profile("repeatable", deadline=None, max_examples=60, derandomize=True, database=None)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture(autouse=True, scope="module")
def _few_programs() -> Any:
    """Compiled programs are forgotten after a file that leaves many: each maps memory, of which a process may have 65,530 pieces."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > 20_000:
        import jax

        jax.clear_caches()
        gc.collect()


@pytest.fixture(scope="session")
def checked_modules() -> tuple[str, ...]:
    """The modules whose annotations are checked."""
    return CHECKED


SENTENCES = (
    "Your task: go to the red ball.\n\nYou see a red ball 3 steps ahead, and a locked door to your left.",
    "Thought: The red ball is ahead of me.\nAction: go to red ball 1",
    "Thought: I should turn.\nAction: turn left",
    "Observation: You are in front of a door. It is locked.",
)


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """A byte-level BPE tokenizer of fewer than 330 tokens with the ChatML template."""
    from agentrm_jax.tokenizer import train_tokenizer

    return train_tokenizer(SENTENCES * 4, 320)


@pytest.fixture(scope="session")
def chat(tokenizer: Any) -> Any:
    from agentrm_jax.chat import load_chat

    return load_chat(tokenizer)


@pytest.fixture(scope="session")
def tiny() -> Any:
    """A model config whose programs compile in a second or two: 2 layers, d_model 16, the ids of `tokenizer`."""
    from agentrm_jax.models.config import ModelConfig

    return ModelConfig(vocab_size=320, num_layers=2, d_model=16, num_heads=2, num_kv_heads=1, head_dim=8, d_ff=32)


@pytest.fixture(scope="session")
def hall() -> Any:
    """The spec of an environment that only has texts."""
    from agentrm_jax.envs.spec import EnvSpec
    from agentrm_jax.types import Message

    def make(options: Any) -> Any:
        raise NotImplementedError

    return EnvSpec(
        name="hall",
        make=make,
        tasks=lambda split, options: (),
        instruction="You walk through a hall. Reply with a line that starts with Action:",
        rm_instruction="An agent walks through a hall. Its goal: {goal}",
        example=(
            Message("user", "Your task: leave\n\nA door."),
            Message("assistant", "Thought: There is a door.\nAction: leave"),
        ),
    )
