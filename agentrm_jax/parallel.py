"""One program, any size: the mesh, the table that places every array, and the start of many processes."""

import atexit
import collections
import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from agentrm_jax.types import UserError

AXES = ("data", "fsdp", "tensor")

# Logical axis of a parameter -> mesh axis. Everything not named here is replicated.
RULES: Mapping[str, str] = {
    "embed": "fsdp",
    "vocab": "tensor",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "experts": "tensor",
}

BATCH = PartitionSpec(("data", "fsdp"))


def launcher(env: Mapping[str, str]) -> dict[str, Any] | None:
    """What `jax.distributed.initialize` is told, or None for a process that runs alone.

    JAX's own variables say it (JAX_COORDINATOR_ADDRESS=HOST:PORT, JAX_NUM_PROCESSES, JAX_PROCESS_ID); with
    JAX_COORDINATOR_ADDRESS=auto JAX finds out itself (TPU virtual machines, Kubernetes, MPI). So it does, unasked, in a step of
    several tasks under Slurm and on a TPU slice of several hosts under Kubernetes. A batch script or shell under Slurm that does
    not use `srun` is one process.

    Raises:
      UserError: a variable is missing or no number.
    """
    address = env.get("JAX_COORDINATOR_ADDRESS", "")
    if address == "auto":
        return {}
    if address:
        numbers = {}
        for name, key in (("JAX_NUM_PROCESSES", "num_processes"), ("JAX_PROCESS_ID", "process_id")):
            text = env.get(name, "")
            if not text.isdecimal():
                raise UserError(f"JAX_COORDINATOR_ADDRESS={address} needs {name} as a number; it is {text!r}")
            numbers[key] = int(text)
        return {"coordinator_address": address, **numbers}
    step = "SLURM_STEP_NODELIST" in env and env.get("SLURM_NTASKS", "1") != "1"
    slice_of_hosts = "," in env.get("TPU_WORKER_HOSTNAMES", "")
    return {} if step or slice_of_hosts else None


def start_distributed() -> None:
    """Joins the other processes of a distributed run (`launcher`).

    Raises:
      UserError: JAX's environment variables are incomplete, or the others are not found.
    """
    if (found := launcher(os.environ)) is not None:
        try:
            jax.distributed.initialize(**found)
        except (ValueError, RuntimeError) as error:
            raise UserError(f"cannot join the other processes of this run: {error}") from error
    if (service := _service()) is not None:
        over = threading.Event()
        watch = threading.Thread(target=_end_with_the_others, args=(service, over), daemon=True)
        watch.start()
        atexit.register(watch.join)
        atexit.register(over.set)  # runs first, and before JAX leaves the service


_MOST_WAITING = 24 * 3600  # seconds: the first process may have to make whole runs
_ENDED = "agentrm_jax/ended"  # key of the coordination service: [process, why] of the first that ended with an error
_ending = threading.Lock()  # taken by whatever ends this process, its own error or another's


def _service() -> Any:
    """The client of JAX's coordination service, which JAX itself and Orbax reach the same way; None for a single process."""
    return jax._src.distributed.global_state.client


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Decorates a main: if one process of a run ends with an error, the others say so in one line and exit with code 2.

    They do so wherever they are, also while they wait for that process at a barrier or in a collective.
    """
    try:
        yield
    except Exception as error:
        service = _service()
        if (_ending.locked() or service is not None) and not _ending.acquire(blocking=False):
            time.sleep(_MOST_WAITING)  # this process is being ended for another's error, which may have caused this one
        if service is not None:
            why = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            with contextlib.suppress(jax.errors.JaxRuntimeError):  # another process was first
                service.key_value_set(_ENDED, json.dumps([jax.process_index(), why]))
            with contextlib.suppress(jax.errors.JaxRuntimeError):
                jax.distributed.shutdown()  # returns when the others have heard it
        raise


def _end_with_the_others(service: Any, over: threading.Event) -> None:
    """Waits until a process ends with an error, and then ends this one; or until the run is over."""
    told = None
    while told is None:
        if over.wait(1.0):
            return
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # nobody has told anything
            told = service.key_value_try_get(_ENDED)
    process, why = json.loads(told)
    if _ending.acquire(blocking=False):
        print(f"error: process {process} ended: {' '.join(why.split())}", file=sys.stderr, flush=True)
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            jax.distributed.shutdown()
        os._exit(2)  # the main thread may wait for the other process for ever


_barriers: collections.Counter[str] = collections.Counter()  # how often each was passed, the same in all processes


def barrier(name: str) -> None:
    """Waits until all processes are here; all must pass the barriers of one name equally often."""
    from orbax.checkpoint import multihost

    _barriers[name] += 1
    name = f"{name}, time {_barriers[name]}"
    everyone = set(range(jax.process_count()))  # named, it is a barrier of processes, which may wait for long
    multihost.sync_global_processes(name, timeout=_MOST_WAITING, processes=everyone)


def all_agree(name: str, here: bool) -> bool:
    """Whether `here` is true on every process; all must ask."""
    if jax.process_count() == 1:
        return here
    from jax.experimental import multihost_utils

    barrier(name)  # the collective itself does not wait for long
    return bool(multihost_utils.process_allgather(np.array(here)).all())


@contextlib.contextmanager
def first_process_first(name: str) -> Iterator[None]:
    """Other processes enter the block when the first has left it: what it makes on a shared disk, they find.

    They never enter it if the first leaves it with an error (see `together`).
    """
    if jax.process_index():
        barrier(name)
    yield
    if not jax.process_index() and jax.process_count() > 1:
        barrier(name)


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1, devices: Any = None) -> Mesh:
    """The device mesh; one size may be -1, "all that is left".

    Raises:
      UserError: the sizes do not multiply to the number of devices.
    """
    sizes = [data, fsdp, tensor]
    count = len(devices) if devices is not None else jax.device_count()
    known = int(np.prod([s for s in sizes if s != -1]))
    if sizes.count(-1) == 1 and known > 0:
        sizes[sizes.index(-1)] = max(count // known, 1)
    if min(sizes) < 1 or int(np.prod(sizes)) != count:
        named = ", ".join(f"{a}={s}" for a, s in zip(AXES, (data, fsdp, tensor), strict=True))
        raise UserError(f"mesh {named} does not fit {count} devices; set --config.mesh.data=-1 or other sizes")
    return jax.make_mesh(tuple(sizes), AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def platform() -> str:
    """What the program that is being made is for, "cpu", "gpu" or "tpu": the mesh's devices, or those JAX uses by default."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device else jax.default_backend()


def partition(shape: Sequence[int], axes: Sequence[str], mesh: Mesh | AbstractMesh) -> PartitionSpec:
    """Where an array of named axes lies: by RULES, an axis that the mesh does not divide evenly being replicated.

    A leading axis that `axes` does not name is the stack of layers.
    """
    names = (None,) * (len(shape) - len(axes)) + tuple(axes)
    spec = []
    for size, name in zip(shape, names, strict=True):
        axis = RULES.get(name) if name else None
        spec.append(axis if axis and size % mesh.shape[axis] == 0 else None)
    return PartitionSpec(*spec)


def shardings(tree: Any, mesh: Mesh) -> Any:
    """A NamedSharding for every array of a pytree of NNX variables, by the `axes` they declare.

    Every array without a declaration (step counters) is replicated.
    """

    def place(x: Any) -> Any:
        if not isinstance(x, nnx.Variable):
            return NamedSharding(mesh, PartitionSpec())
        axes = x.get_metadata().get("axes", ())
        return x.replace(NamedSharding(mesh, partition(x.get_value().shape, axes, mesh)))

    return jax.tree.map(place, tree, is_leaf=lambda x: isinstance(x, nnx.Variable))


def constrain(x: jax.Array, spec: PartitionSpec) -> jax.Array:
    """`x` laid out as `spec` on the mesh that is set (`jax.set_mesh`); as it was where none is, or where sizes do not divide.

    Left alone, the compiler may move the activations of all rows to the weights instead of a layer's weights to the rows.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    fits = []
    for size, axes in zip(x.shape, spec, strict=False):
        names = (axes,) if isinstance(axes, str) else axes or ()
        fits.append(axes if size % int(np.prod([mesh.shape[a] for a in names])) == 0 else None)
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*fits))


def put_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's rows as part of the global batch, sharded over `data` and `fsdp`."""
    sharding = NamedSharding(mesh, BATCH)
    return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}


def batch_rows(rows: int, mesh: Mesh, *, parts: int = 1) -> int:
    """Rows of this process for a global batch of `rows`, which is read in `parts`.

    Raises:
      UserError: the batch does not divide over the mesh, or into parts.
    """
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    if rows % (ways * parts) and parts > 1:
        raise UserError(
            f"--config.accumulate={parts}: batch_rows={rows} rows do not divide into {parts} parts for {ways} devices"
        )
    processes = jax.process_count()
    if rows % ways or rows % processes:
        raise UserError(f"batch of {rows} rows does not divide over {ways} devices and {processes} processes")
    if ways % processes:  # processes that share a row would have to read the same data
        raise UserError(
            f"a mesh with data x fsdp = {ways} gives {processes} processes no rows of their own; lower tensor"
        )
    return rows // processes
