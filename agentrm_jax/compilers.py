"""Compilers for TPUs and GPUs that this machine need not have: they tell what a program needs before devices are rented.

Targets have names. `v5e:4x4` is a slice of a TPU pod (JAX's name of its topology; needs JAX's TPU plugin, libtpu), `h100:8` are
eight GPUs of one machine (needs JAX's CUDA plugin). Programs are compiled for a target, never run on it.
"""

import os
import re
from typing import Any

import jax

from agentrm_jax.types import UserError

# The properties of a GPU that XLA's compiler reads, from the vendor's data sheets and the compute capability.
_GPUS: dict[str, dict[str, Any]] = {
    "a100": {"name": "NVIDIA A100-SXM4-80GB", "major": 8, "minor": 0, "cores": 108, "fp32": 64, "shared": 163 * 1024}
    | {"bandwidth": 2_039, "l2": 40, "clock": 1.41, "memory": 80},
    "h100": {"name": "NVIDIA H100 80GB HBM3", "major": 9, "minor": 0, "cores": 132, "fp32": 128, "shared": 227 * 1024}
    | {"bandwidth": 3_352, "l2": 50, "clock": 1.98, "memory": 80},
    "l4": {"name": "NVIDIA L4", "major": 8, "minor": 9, "cores": 58, "fp32": 128, "shared": 99 * 1024}
    | {"bandwidth": 300, "l2": 48, "clock": 2.04, "memory": 24},
}
_EXAMPLES = "TPUs like v5e:4x4, v5p:2x2x2, v6e:2x4, or GPUs like " + ", ".join(f"{name}:8" for name in _GPUS)


def target_devices(name: str) -> list[jax.Device]:
    """The devices of a target, as arguments of shardings and meshes to compile for.

    Raises:
      UserError: there is no target of this name, or the package with its compiler is missing.
    """
    kind, _, size = name.partition(":")
    if kind in _GPUS and re.fullmatch(r"[1-9]\d*", size):
        return _topology("cuda", name, "agentrm-jax[cuda]", target_config=_gpu(**_GPUS[kind]), topology=f"1x1x{size}")
    if re.fullmatch(r"v\d\w*", kind) and re.fullmatch(r"\d+(x\d+){1,2}", size):
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # there is no metadata server without a TPU
        os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # no device is opened, so processes cannot collide
        os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
        os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-8")  # of no consequence; unset, libtpu warns
        return _topology("tpu", name, "agentrm-jax[tpu]")
    raise UserError(f"--target={name}: known are {_EXAMPLES}")


def bytes_accessed(program: jax.stages.Compiled) -> int:
    """Bytes that a program compiled for a GPU moves by XLA's own account: a loop is counted once, a kernel of ours not at all.

    There is no such account for TPUs: theirs counts a weight again for every piece of it that is copied to vector memory.
    """
    from jaxlib import _jax  # compiled for a target, a program has no `cost_analysis` of its own

    executable: Any = program.runtime_executable()
    modules = executable.hlo_modules()
    return int(_jax.hlo_module_cost_analysis(jax.devices("cpu")[0].client, modules[0])["bytes accessed"])


def _topology(platform: str, name: str, package: str, **options: str) -> list[jax.Device]:
    from jax.experimental import topologies

    try:
        return list(topologies.get_topology_desc(platform=platform, topology_name=name, **options).devices)
    except (ImportError, NotImplementedError, RuntimeError, ValueError) as error:
        why = str(error).partition("\n")[0]
        if "not" in why and any(word in why for word in ("installed", "implemented", "register", "found", "known")):
            why = f"its compiler is missing; pip install '{package}'"
        raise UserError(f"--target={name}: {why}") from None


def _gpu(
    *,
    name: str,
    major: int,
    minor: int,
    cores: int,
    fp32: int,
    shared: int,
    bandwidth: int,
    l2: int,
    clock: float,
    memory: int,
) -> str:
    """XLA's description of a GPU (GpuTargetConfigProto) as text.

    Units: `shared` bytes, `bandwidth` GB/s, `l2` MiB, `clock` GHz, `memory` GiB.
    """
    device = {
        "threads_per_block_limit": 1024,
        "threads_per_warp": 32,
        "shared_memory_per_block": 48 * 1024,
        "shared_memory_per_core": shared + 1024,
        "shared_memory_per_block_optin": shared,
        "threads_per_core_limit": 1536 if (major, minor) == (8, 9) else 2048,
        "core_count": cores,
        "fpus_per_core": fp32,
        "block_dim_limit_x": 2**31 - 1,
        "block_dim_limit_y": 65535,
        "block_dim_limit_z": 65535,
        "registers_per_core_limit": 65536,
        "registers_per_block_limit": 65536,
        "memory_bandwidth": bandwidth * 10**9,
        "l2_cache_size": l2 * 2**20,
        "clock_rate_ghz": clock,
        "device_memory_size": memory * 2**30,
    }
    lines = "\n".join(f"  {key}: {value}" for key, value in device.items())
    capability = f"cuda_compute_capability {{ major: {major} minor: {minor} }}"
    return (
        f'gpu_device_info {{\n{lines}\n  {capability}\n}}\nplatform_name: "CUDA"\n'
        f'runtime_version {{ major: 12 minor: 8 }}\ndnn_version_info {{ major: 9 minor: 8 }}\ndevice_description_str: "{name}"\n'
    )
