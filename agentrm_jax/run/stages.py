"""Beginnings and ends of runs: the platform, what a run needs from earlier ones, and the mark of a finished one."""

import json
import os
import subprocess
import sys
from pathlib import Path

from agentrm_jax.types import JSON, UserError

DISTRIBUTED = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")

_MAINS = {"sft": "train.py", "mcts": "search.py", "explicit": "train.py", "greedy": "search.py"}


def accelerator(cpu_devices: int = 1) -> None:
    """Joins a distributed run if there is one, and turns on the cache of compiled programs.

    `cpu_devices` is how many devices a CPU is shown as: with one a core, small products and element-wise work use all cores.
    """
    import jax

    from agentrm_jax.parallel import start_distributed

    if cpu_devices > 1 and "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        jax.config.update("jax_num_cpu_devices", min(cpu_devices, os.cpu_count() or 1))

    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # we use its tokenizers only; it warns about the rest
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if cache is None:
        home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
        jax.config.update("jax_compilation_cache_dir", str(home / "agentrm_jax" / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    start_distributed()


def is_finished(workdir: Path) -> bool:
    return (workdir / "done.json").exists()


def finish(workdir: Path, **facts: JSON) -> None:
    """Marks a run as complete; what needs it later looks for this file."""
    (workdir / "done.json").write_text(json.dumps(facts) + "\n")


def require(place: str, name: str, size: str) -> None:
    """Makes sure that what a run builds on is there: a finished workdir, or a model from elsewhere.

    The default place, `runs/SIZE/NAME`, is filled by running `configs/NAME.py:SIZE` first; any other must be complete.

    Raises:
      UserError: it is not there and is not ours to make, or making it failed.
    """
    workdir = Path(place)
    if is_finished(workdir) or _elsewhere(place):
        return
    if workdir != Path("runs") / size / name:
        state = "is not finished; run its command again" if workdir.exists() else "does not exist"
        raise UserError(f"{place} (needed as {name}) {state}")
    command = [sys.executable, _MAINS[name], f"--config=configs/{name}.py:{size}", f"--workdir={workdir}"]
    print(f"{workdir} is missing or unfinished; making it first: python {' '.join(command[1:])}", flush=True)
    workdir.parent.mkdir(parents=True, exist_ok=True)
    alone = {k: v for k, v in os.environ.items() if k not in DISTRIBUTED}  # this process alone makes it
    if code := subprocess.run(command, env=alone, check=False).returncode:
        raise UserError(f"making {workdir} failed with exit code {code}; see the lines above")


def _elsewhere(place: str) -> bool:
    """Whether this names a model that no run of ours made: `smollm2`, a GGUF file, a Hugging Face folder."""
    folder = Path(place)
    return place == "smollm2" or folder.suffix == ".gguf" or any(folder.glob("*.safetensors"))
