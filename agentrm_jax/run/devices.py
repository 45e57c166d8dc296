"""The devices of a run."""

import os
from pathlib import Path


def accelerator(cpu_devices: int = 1, *, alone: bool = False) -> None:
    """Joins a distributed run if there is one, and turns on the cache of compiled programs.

    Args:
      cpu_devices: how many devices a CPU is shown as: with one a core, small products and element-wise work use all cores.
      alone: this process joins no other, whatever the environment says.
    """
    import jax

    from agentrm_jax.parallel import start_distributed

    if cpu_devices > 1 and "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        jax.config.update("jax_num_cpu_devices", min(cpu_devices, os.cpu_count() or 1))

    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # only its tokenizers are used; it warns about the rest
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if cache is None:
        home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
        jax.config.update("jax_compilation_cache_dir", str(home / "agentrm_jax" / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM away from `run.command`
    if not alone:
        start_distributed()
