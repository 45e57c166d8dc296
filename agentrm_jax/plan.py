"""Memory that a run needs on every device, computed from shapes and compiled programs before anything is allocated.

    python -m agentrm_jax.plan --config=configs/explicit.py:llama3_70b --devices=64 --memory-gb=80
    python -m agentrm_jax.plan --config=configs/beam.py:llama3_8b --memory-gb=80 --target=h100:1

Weights, optimizer state, gradients and KV cache are exact. What a program needs beside them (activations, gathered weights,
workspace) is what XLA's compiler plans for it. With --target that is the compiler of those devices, which this machine need not
have. Without, it is the CPU's for as many simulated devices: an estimate, since other platforms fuse and schedule otherwise, and
a high one for bfloat16, which that compiler computes in float32.
"""

import dataclasses
import functools
import json
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from flax import nnx

from agentrm_jax import parallel, places
from agentrm_jax.compilers import bytes_accessed, target_devices
from agentrm_jax.engine import programs
from agentrm_jax.models.card import Card, read_card
from agentrm_jax.models.config import PRESETS, ModelConfig
from agentrm_jax.models.lora import LoRA
from agentrm_jax.models.opening import build_model
from agentrm_jax.models.pretrained import open_pretrained
from agentrm_jax.models.transformer import Transformer
from agentrm_jax.run import checks, command, flags
from agentrm_jax.training import objectives
from agentrm_jax.training.optimizer import optimizer_of
from agentrm_jax.training.step import TrainState, abstract_state, make_train_step
from agentrm_jax.tree import POINTERS
from agentrm_jax.types import JSON, UserError

_USAGE = (
    "usage: python -m agentrm_jax.plan --config=configs/NAME.py[:SIZE] [--devices=N | --target=v5e:4x4|h100:8] "
    "[--memory-gb=GB] [--json] [--config.KEY=VALUE ...]"
)
_STEP = ("moved", "at least")  # by a decode step
_SHALLOW = (2, 4)  # layers that are compiled where layers are unrolled: every further one adds what the last ones did


@dataclasses.dataclass(frozen=True)
class Plan:
    """Memory of one device.

    Attributes:
      facts: what is planned, by name: model, mesh, batch.
      parameters: of each model, by name.
      bytes: by what they are for; they are needed at the same time.
      decode_step: bytes that a step of the largest decode batch moves by the compiler's account, and the least it could; empty
        where nothing is decoded or the target is no GPU.
      notes: what the reader should know about these figures.
    """

    facts: dict[str, JSON]
    parameters: dict[str, int]
    bytes: dict[str, int]
    notes: tuple[str, ...]
    decode_step: dict[str, int] = dataclasses.field(default_factory=dict)

    @property
    def total(self) -> int:
        return sum(self.bytes.values())


def model_shape(place: str, size: str) -> tuple[ModelConfig, str]:
    """The shape of the model at `place` (a training workdir, or a model from elsewhere), and where it is known from.

    Where nothing is there yet, it is the preset of `size`.

    Raises:
      UserError: there is neither.
    """
    if place and (card := read_card(Path(place))):
        return card.config, place
    if place and Path(place).expanduser().exists():
        return open_pretrained(place).config, place
    if size in PRESETS:
        return PRESETS[size], f"preset {size}"
    raise UserError(f"no model at {place}, and no preset of size {size!r}; presets are {', '.join(PRESETS)}")


def plan_training(config: ml_collections.ConfigDict, devices: Sequence[jax.Device]) -> Plan:
    """What train.py needs on one device of the mesh made of all `devices`.

    Raises:
      UserError: the mesh or the batch does not fit the devices, or a setting is wrong.
    """
    mesh = parallel.make_mesh(**config.mesh, devices=devices)
    rows = parallel.batch_rows(config.batch_rows, mesh)
    if config.init:
        model, origin = model_shape(config.init, config.size)
    else:
        model, origin = ModelConfig(**config.model), "--config.model"
    lora = LoRA.requested(config.init, **config.lora)
    state = _abstract_state(config, model, mesh, lora)[2]
    counts = [sum(x.size for x in jax.tree.leaves(p)) for p in (state.params, state.frozen)]
    weights, frozen, optimizer = (_shards(x) for x in (state.params, state.frozen, state.opt_state))
    temporary = _by_depth(lambda m: {"step": _step_memory(config, m, mesh, lora)}, model, scanned=config.scan)
    held = {"weights": weights + frozen, "optimizer": optimizer, "gradients": weights}
    held["activations"] = max(temporary - weights, 0)
    facts: dict[str, JSON] = {
        "run": f"{objectives.find(config.loss).kind}, {config.loss}"
        + (f", adapters of rank {lora.rank}" if lora else ""),
        "model": origin,
        "mesh": dict(mesh.shape),
        "batch": f"{config.batch_rows} rows of {config.row_length} tokens, {rows * jax.process_count() // _ways(mesh)} a device",
        "computed in": config.dtype,
    }
    notes = ["activations: saved layer inputs, gathered weights and workspace"]
    return Plan(
        facts,
        {"trained": counts[0], "frozen": counts[1]},
        held,
        _notes(notes, devices[0], config.dtype, config.scan, model),
    )


def plan_search(config: ml_collections.ConfigDict, devices: Sequence[jax.Device]) -> Plan:
    """What search.py needs on a device of one process: an engine for the policy, and those of a reward model if there is one.

    Raises:
      UserError: there are fewer devices than the engine is to be spread over.
    """
    if config.engine.tensor > len(devices):
        raise UserError(f"--config.engine.tensor={config.engine.tensor} needs --devices of as many")
    mesh = parallel.make_mesh(1, 1, config.engine.tensor, devices=devices[: config.engine.tensor])
    held: dict[str, int] = {}
    facts: dict[str, JSON] = {"run": config.method}
    parameters = {}
    batch = loading = 0
    step: dict[str, int] = {}
    for name, (place, head) in _engines(config).items():
        model, origin = model_shape(place, config.size)
        facts[name] = origin
        sizes = {**config.engine} if name == "policy" else {**config.engine, "weights": ""}
        shapes = _engine_shapes(model, sizes, head, mesh)
        parameters[name] = sum(x.size for x in jax.tree.leaves(shapes[0]))
        held |= {f"{name} weights": _shards(shapes[0]), f"{name} KV cache": _shards(shapes[1])}
        memory = functools.partial(
            _engine_memory, sizes=sizes, head=head, decodes=name in ("policy", "judge"), mesh=mesh
        )
        needs = _to_depth(memory, model, scanned=False)
        step |= {what: needs.pop(what) for what in _STEP if what in needs}
        batch = max(batch, *needs.values())
        stacked = programs.planned_memory(model, sizes, head, mesh)[0].passing
        loading = max(loading, sum(held.values()) + _shards(stacked))
    held["batch"] = batch
    held["loading"] = max(loading - sum(held.values()), 0)
    e = config.engine
    facts |= {
        "engine": f"{e.cache_tokens} cached tokens, {e.rows[-1]} rows of {e.context[-1]} tokens, {e.samples} samples a row",
        "computed in": e.dtype,
    }
    if e.tensor > 1:
        facts["engine"] = f"{facts['engine']}, over {e.tensor} devices"
    notes = [
        "every process searches with engines of its own; they take turns",
        "batch: the largest batch of new or sampled tokens with its caches",
    ]
    if held["loading"]:
        notes.insert(0, "loading: what is needed more while a model's stacked layers are laid out for its engine")
    if step:
        notes.insert(-1, "decode step: of full rows; what stays in the GPU's caches is counted as well")
    return Plan(facts, parameters, held, _notes(notes, devices[0], e.dtype, False, model), step)


# --- training ------------------------------------------------------------------------------------------------------------


def _abstract_state(
    config: ml_collections.ConfigDict, model: ModelConfig, mesh: jax.sharding.Mesh, lora: LoRA | None
) -> tuple[Any, nnx.GraphDef, TrainState, TrainState]:
    """Optimizer, graph definition, shapes and shardings, as train.py makes them."""
    objective = objectives.of(config)
    heads = config.get("heads", 1)
    card = Card(objective.kind, config.loss, model, objective.lm_head, objective.value_head, lora, heads=heads)
    held = jnp.dtype(config.dtype) if lora else jnp.float32
    tx = optimizer_of(config)

    def make_model(rngs: nnx.Rngs) -> Transformer:
        return build_model(card, rngs, scan=config.scan, remat=config.remat, dtype=held)

    return tx, *abstract_state(make_model, tx, mesh)


def _compiled_step(
    config: ml_collections.ConfigDict, model: ModelConfig, mesh: jax.sharding.Mesh, lora: LoRA | None
) -> jax.stages.Compiled:
    """The training step, made from shapes alone."""
    tx, graphdef, shape, placed = _abstract_state(config, model, mesh, lora)
    objective = objectives.of(config)
    loss = objective.loss(jnp.dtype(config.dtype), head_only=config.get("freeze") == "trunk")
    parts = {"accumulate": config.accumulate, "weight": objective.weight}
    step = make_train_step(graphdef, tx, loss, placed, mesh, **parts)
    return step.lower(shape, _batch(config, mesh)).compile()  # type: ignore[attr-defined]


def _batch(config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    rows = jax.sharding.NamedSharding(mesh, parallel.BATCH)
    kinds = dict.fromkeys(("tokens", "positions", "subtree_end", *POINTERS), jnp.int32)
    kinds |= dict.fromkeys(("loss_weight", "value", "value_weight", "count"), jnp.float32)
    if objectives.find(config.loss).reference:
        kinds |= {"action": jnp.int32, "reference": jnp.float32}
    size = (config.batch_rows, config.row_length)
    shapes = {k: jax.ShapeDtypeStruct(size, kind, sharding=rows) for k, kind in kinds.items()}
    if (heads := config.get("heads", 1)) > 1:
        shapes["head_weight"] = jax.ShapeDtypeStruct((*size, heads), jnp.float32, sharding=rows)
    return shapes


def _step_memory(
    config: ml_collections.ConfigDict, model: ModelConfig, mesh: jax.sharding.Mesh, lora: LoRA | None
) -> int:
    """Bytes of a device that one training step needs beside the state it updates in place: batch, temporaries, metrics."""
    batch = _batch(config, mesh)
    try:
        return _needs(_compiled_step(config, model, mesh, lora), batch)
    except jax.errors.JaxRuntimeError as error:
        # Some compilers refuse what does not fit, and say how much it would be.
        needed = re.search(r"RESOURCE_EXHAUSTED.*?\((\d+\.\d+)([MG])\)", str(error))
        if not needed:
            raise
        return _shards(batch) + int(float(needed[1]) * {"M": 2**20, "G": 2**30}[needed[2]])


def _shards(tree: Any) -> int:
    """Bytes of one device's shards."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _ways(mesh: jax.sharding.Mesh) -> int:
    return mesh.shape["data"] * mesh.shape["fsdp"]


def _engines(config: ml_collections.ConfigDict) -> dict[str, tuple[str, bool]]:
    """The engines of a search: name -> (place of the model, whether it has a language-model head instead of a value head)."""
    found = {"policy": (config.policy, True)}
    match places.read(config.reward_model) if config.reward_model else None:
        case places.Pair(tuned, base):
            found |= {"reward model": (tuned, True), "reference": (base, True)}
        case places.Judge(places.Model(place)):
            found |= {"judge": (place, True)}
        case places.Model(place):
            card = read_card(Path(place))
            if card and card.kind == "implicit":
                found |= {"reward model": (place, True), "reference": (card.reference, True)}
            else:
                found |= {"reward model": (place, False)}
    return found


# --- engines -------------------------------------------------------------------------------------------------------------


def _engine_shapes(
    model: ModelConfig, sizes: Mapping[str, Any], head: bool, mesh: jax.sharding.Mesh
) -> tuple[Any, Any]:
    """Shapes of the engine's weights and of its pool, placed as the engine places them."""
    weights, pool = programs.planned_memory(model, sizes, head, mesh)
    return _results(_lowered(weights, mesh)), _results(_lowered(pool, mesh))


def _engine_memory(
    model: ModelConfig, sizes: Mapping[str, Any], head: bool, decodes: bool, mesh: jax.sharding.Mesh
) -> dict[str, int]:
    """Bytes that each of the engine's larger programs needs beside weights and pool: its batch, temporaries and results.

    An engine with a language-model `head` that never decodes reads log-probabilities.

    For GPUs there are also the bytes that a decode step moves, by the names in `_STEP`.
    """
    weights, pool = _engine_shapes(model, sizes, head, mesh)
    planned = programs.planned_prefill(model, sizes, weights, pool, mesh, logprobs=head and not decodes)
    if decodes:
        state = _results(_lowered(programs.planned_state(model, sizes, mesh), mesh))
        planned |= programs.planned_decode(model, sizes, weights, pool, state, mesh)
    compiled = {name: _lowered(each, mesh) for name, each in planned.items()}
    found = {name: _needs(compiled[name], each.passing) for name, each in planned.items()}
    if decodes and mesh.devices.flat[0].platform == "gpu":
        itemsize = jnp.dtype(sizes["dtype"]).itemsize
        least, kernels, embeddings = programs.decode_traffic(model, sizes, weights, itemsize, mesh)
        moved = bytes_accessed(compiled["decode"]) - embeddings + kernels
        found |= dict(zip(_STEP, (moved, least), strict=True))
    return found


def _lowered(planned: programs.Planned, mesh: jax.sharding.Mesh) -> jax.stages.Compiled:
    return _compiled(planned.program, planned.args, mesh, **planned.options)


def _compiled(program: Any, args: tuple[Any, ...], mesh: jax.sharding.Mesh, **static: Any) -> jax.stages.Compiled:
    options = {}
    if mesh.devices.flat[0].platform == "cpu":
        # Unrolled layers take long to optimise for speed, which changes little about their memory.
        options["xla_backend_optimization_level"] = 0
    with jax.set_mesh(mesh):
        return program.lower(*args, **static).compile(compiler_options=options)


def _results(program: jax.stages.Compiled) -> Any:
    """Shapes of what a program returns, with their shardings."""

    def shape(x: Any, where: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)

    return jax.tree.map(shape, program.out_info, program.output_shardings)


def _needs(program: jax.stages.Compiled, passing: Any) -> int:
    """Bytes a program needs for `passing` (those of its arguments that do not stay), its temporaries and what it returns."""
    memory: Any = program.memory_analysis()
    new = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return _shards(passing) + memory.temp_size_in_bytes + new


# --- both ----------------------------------------------------------------------------------------------------------------


def _by_depth(memory: Callable[[ModelConfig], dict[str, int]], model: ModelConfig, *, scanned: bool) -> int:
    """The most of `memory(model)`, see `_to_depth`."""
    return max(_to_depth(memory, model, scanned=scanned).values())


def _to_depth(memory: Callable[[ModelConfig], dict[str, int]], model: ModelConfig, *, scanned: bool) -> dict[str, int]:
    """All of `memory(model)`; of a deep model with unrolled layers, each is the line through two shallow ones."""
    if scanned or model.num_layers <= _SHALLOW[1]:
        return memory(model)
    low, high = (memory(_with_layers(model, n)) for n in _SHALLOW)
    more = (model.num_layers - _SHALLOW[0]) / (_SHALLOW[1] - _SHALLOW[0])
    return {name: int(low[name] + (high[name] - low[name]) * more) for name in low}


def _with_layers(model: ModelConfig, n: int) -> ModelConfig:
    windows, rotates = model.window_layers[:n], model.rope_layers[:n]
    return dataclasses.replace(model, num_layers=n, window_layers=windows, rope_layers=rotates)


def _notes(notes: list[str], device: jax.Device, dtype: str, scanned: bool, model: ModelConfig) -> tuple[str, ...]:
    where = "CPUs" if device.platform == "cpu" else device.device_kind
    notes[-1] += f", as planned by XLA's compiler for {where}"
    if device.platform == "cpu" and dtype == "bfloat16":
        notes.append(
            "that compiler computes bfloat16 in float32, so its part is rather high for accelerators; see --target"
        )
    if not scanned and model.num_layers > _SHALLOW[1]:
        shallow = " and ".join(map(str, _SHALLOW))
        notes.append(f"its part is the line through models of {shallow} layers, to {model.num_layers}")
    return tuple(notes)


def table(plan: Plan, memory_gb: float | None) -> str:
    """The plan for people; GB are 10^9 bytes."""
    lines = [f"{name:<24} {_show(value)}" for name, value in plan.facts.items()]
    for name, count in plan.parameters.items():
        if count:
            lines.append(f"{name + ' parameters':<24} {count:,}")
    lines += ["", f"{'per device':<24} {'GB':>9}"]
    lines += [f"{name:<24} {size / 1e9:>9.3f}" for name, size in plan.bytes.items() if size]
    lines.append(f"{'total':<24} {plan.total / 1e9:>9.3f}")
    if memory_gb is not None:
        verdict = "fits" if plan.total <= memory_gb * 1e9 else "does not fit"
        lines.append(f"{verdict} in {memory_gb:g} GB a device ({plan.total / memory_gb / 1e7:.0f}%)")
    if plan.decode_step:
        lines += ["", f"{'a decode step':<24} {'GB':>9}"]
        lines += [f"{name:<24} {size / 1e9:>9.3f}" for name, size in plan.decode_step.items()]
    return "\n".join([*lines, "", *plan.notes])


def _show(value: JSON) -> str:
    return " ".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else str(value)


def as_json(plan: Plan, memory_gb: float | None) -> dict[str, JSON]:
    """The plan for programs, in bytes."""
    fits = None if memory_gb is None else plan.total <= memory_gb * 1e9
    return {
        **plan.facts,
        "parameters": plan.parameters,
        "bytes_per_device": plan.bytes,
        "total_bytes_per_device": plan.total,
        "decode_step_bytes": plan.decode_step,
        "memory_gb": memory_gb,
        "fits": fits,
        "notes": list(plan.notes),
    }


def _own_flags(argv: Sequence[str]) -> tuple[int | None, str, float | None, bool, list[str]]:
    """Devices, target, memory, whether JSON is wanted, and what is left for the config."""
    devices, target, memory, as_dict, rest = None, "", None, False, []
    for arg in flags.joined(argv, switches=("--json",)):
        name, _, value = arg.partition("=")
        try:
            if name == "--devices":
                devices = int(value)
            elif name == "--target":
                target = value
            elif name == "--memory-gb":
                memory = float(value)
            elif arg == "--json":
                as_dict = True
            elif name == "--config" or name.startswith("--config."):
                rest.append(arg)
            else:
                raise UserError(f"cannot read {arg!r}; {_USAGE}")
        except ValueError:
            raise UserError(f"{arg}: must be a number; {_USAGE}") from None
    if not any(arg.startswith("--config=") for arg in rest):
        raise UserError(f"--config is missing; {_USAGE}")
    if devices is not None and target:
        raise UserError("--devices counts simulated devices, --target names real ones: give one of them")
    if (devices is not None and devices < 1) or (memory is not None and not memory > 0):
        raise UserError(f"--devices and --memory-gb must be more than 0; {_USAGE}")
    return devices, target, memory, as_dict, rest


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code: 0 also if the run does not fit, 2 for what the user can mend."""
    return command.exit_code(lambda: _run(sys.argv[1:] if argv is None else argv))


def _run(argv: Sequence[str]) -> None:
    if {"-h", "--help"} & set(argv):
        print(f"{(__doc__ or '').strip()}\n\n{_USAGE}")
        return
    count, target, memory_gb, as_dict, rest = _own_flags(argv)
    config, _ = flags.parse(rest)
    checks.check(config)
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", count or 1)
    jax.config.update("jax_enable_compilation_cache", False)  # a program from the cache does not say what it needs
    devices = target_devices(target) if target else jax.devices()
    plan = plan_search(config, devices) if "engine" in config else plan_training(config, devices)
    print(json.dumps(as_json(plan, memory_gb)) if as_dict else table(plan, memory_gb))


if __name__ == "__main__":
    sys.exit(main())
