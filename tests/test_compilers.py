"""Targets to compile for: known by name, and compiled for by their own compilers where those are installed."""

import dataclasses
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from agentrm_jax.compilers import target_devices
from agentrm_jax.types import UserError

ROOT = Path(__file__).parents[1]
COMPILERS = {"v5e:2x2": ("libtpu",), "h100:4": ("jax_cuda13_plugin", "jax_cuda12_plugin")}


def installed(name: str) -> bool:
    return any(importlib.util.find_spec(package) for package in COMPILERS[name])


@pytest.mark.parametrize("name", ["v5e", "tpu:2x2", "h100:0", "h100:2x2", "rtx:1", "v5e:2x2x2x2"])
def test_an_unknown_device_is_refused_with_examples(name):
    with pytest.raises(UserError, match=rf"--target={name}: known are .*v5e:4x4.*h100:8"):
        target_devices(name)


@pytest.mark.parametrize("name", COMPILERS)
def test_a_missing_compiler_is_named(name):
    if installed(name):
        pytest.skip("the compiler is installed")
    with pytest.raises(UserError, match=r"its compiler is missing; pip install 'agentrm-jax.(tpu|cuda).'"):
        target_devices(name)


@dataclasses.dataclass
class Compiled:
    """Optimised programs of a small model for one kind of device, as text."""

    step: str
    prefill: str
    decode: str


def compile_all(name: str) -> None:
    """Prints the programs; run in a process of its own, which shows JAX no other devices."""

    from agentrm_jax import parallel, plan
    from agentrm_jax.models.config import ModelConfig
    from agentrm_jax.run import flags

    model = ModelConfig(vocab_size=1024, num_layers=2, d_model=256, num_heads=4, num_kv_heads=2, head_dim=128, d_ff=512)
    devices = target_devices(name)
    programs = {}
    original = plan._compiled

    def keep(program, args, mesh, **static):
        programs[program.__name__] = compiled = original(program, args, mesh, **static)
        return compiled

    plan._compiled = keep
    config, _ = flags.parse([f"--config={ROOT}/configs/best_of_n.py"])
    plan._engine_memory(model, config.engine, True, True, parallel.make_mesh(1, 1, 2, devices=devices[:2]))

    config, _ = flags.parse([f"--config={ROOT}/configs/explicit.py", "--config.dtype=bfloat16", "--config.scan=True"])
    mesh = parallel.make_mesh(1, 2, 2, devices=devices)
    step = plan._compiled_step(config, model, mesh, None)
    print("\f".join([step.as_text(), programs["prefill"].as_text(), programs["decode"].as_text()]))


@pytest.fixture(scope="module", params=COMPILERS)
def compiled(request) -> Compiled:
    if not installed(request.param):
        pytest.skip(f"{COMPILERS[request.param][0]} is not installed")
    env = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, __file__, request.param]
    run = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=600)
    assert run.returncode == 0, run.stderr[-3000:]
    return Compiled(*run.stdout.split("\f"))


def test_training_runs_the_platforms_own_kernels(compiled):
    for kernel in ("tree_attention_forward", "tree_attention_dq", "tree_attention_dkv"):
        assert kernel in compiled.step


def test_engines_read_histories_in_the_pool_where_they_lie(compiled):
    """Both programs call the kernel for every layer (but the last in prefill, where only its keys and values are wanted).

    Neither gathers rows of the pool, of which it has 262,144.
    """
    for program, layers in ((compiled.prefill, 1), (compiled.decode, 2)):
        calls = [line for line in program.splitlines() if "custom-call(" in line and "paged_attention" in line]
        assert len(calls) == layers
        gathers = [line for line in program.splitlines() if " gather(" in line and "[262144,128]" in line]
        assert gathers == []


def test_engines_are_compiled_without_gathering_the_cache(compiled):
    for program in (compiled.prefill, compiled.decode):
        gathered = [m for m in re.findall(r"= \S*?\[([\d,]+)\]\S* all-gather", program) if m.count(",") > 2]
        assert gathered == []


if __name__ == "__main__":
    compile_all(sys.argv[1])
