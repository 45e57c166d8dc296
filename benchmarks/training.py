"""Training steps: packed token trees against one padded sequence for every state, and all against PyTorch.

All are whole update steps of `agentrm_jax.training.step`. PyTorch runs beside them where there is one (`torch_steps`): plain
imitation on full rows, the same with adapters, and the states of a tree one sequence each, for several shares of shared tokens.
"""

import dataclasses
import sys
from collections.abc import Iterator, Sequence

import jax.numpy as jnp
import numpy as np
from flax import nnx

from agentrm_jax import parallel, tree
from agentrm_jax.models.config import PRESETS, ModelConfig
from agentrm_jax.models.lora import LoRA
from agentrm_jax.models.transformer import Transformer
from agentrm_jax.training import objectives
from agentrm_jax.training.optimizer import make_optimizer
from agentrm_jax.training.step import init_state, make_train_step
from benchmarks import torch_steps
from benchmarks.measure import Pass, Row, Size, compare, tokens

_CHILDREN, _ACTION, _OBSERVATION = 3, 14, 36
_RANK = 8
_PROMPTS = (16, 128, 640)  # lengths of a tree's shared prompt: the curve over the share of shared tokens


def run(size: Size, seconds: float) -> Iterator[Row]:
    depth = min(size.turns, 3)
    yield _trees(size, size.context // 2, depth, seconds, None)
    if why := torch_steps.missing():
        print(f"training: nothing is compared with PyTorch: {why}", file=sys.stderr)
        return
    for prompt in _PROMPTS if size.name != "toy" else (8,):
        yield _trees(size, prompt, depth, seconds, "torch")
    for rank in (0, _RANK):
        yield _rows_of_text(size, rank, seconds)


def _trees(size: Size, prompt: int, depth: int, seconds: float, against: str | None) -> Row:
    """A tree whose states share their prompt, in packed rows, against a sequence for every state."""
    nodes = search_tree(size, prompt, depth)
    targets = [i for i, n in enumerate(nodes) if n.value_weight > 0]
    length = -(-(prompt + depth * (_ACTION + _OBSERVATION)) // 64) * 64
    packed = _rows([tree.flatten(part) for part in tree.split(nodes, 4 * length)], 4 * length)
    paths = [tree.flatten(_state(nodes, i)) for i in targets]
    single = _rows(paths, length, share=False)
    ours = _Step(size.model, packed, "regression", len(targets))
    shared = 1 - sum(len(n.segment.tokens) for n in nodes) / sum(len(p.tokens) for p in paths)
    case = f"a tree of {len(targets)} states, prompt of {prompt}, {shared:.0%} of tokens shared, {_padding(packed)}"
    if against is None:
        theirs = _Step(size.model, single, "regression", len(targets)).run
        name = f"a row of {length} tokens per state"
        row = compare("training", case, "states/s", ours.run, name, theirs, size=size, seconds=seconds)
        return _described(row, ours, size.model, len(targets))
    ends = [len(p.tokens) - 1 for p in paths]
    with torch_steps.started(
        size.model,
        kind="values",
        tokens=single["tokens"].tolist(),
        ends=ends,
        targets=[float(nodes[i].value) for i in targets],
        rows_at_a_time=8,
    ) as other:
        row = compare(
            "training",
            case,
            "states/s",
            ours.run,
            "PyTorch, a sequence per state",
            _asking(other, len(targets)),
            size=size,
            seconds=seconds,
        )
        return _described(row, ours, size.model, len(targets), other.peak)


def _rows_of_text(size: Size, rank: int, seconds: float) -> Row:
    """Imitation on two full rows; with a rank, of adapters alone."""
    model, length = (PRESETS["smollm2"], 1024) if size.name != "toy" else (size.model, 64)
    at = np.tile(np.arange(length, dtype=np.int32), (2, 1))
    ids = np.random.default_rng(0).integers(4, model.vocab_size, at.shape).astype(np.int32)
    ones = np.ones(at.shape, np.float32)
    ends = np.full_like(at, length)
    batch = {"tokens": ids, "positions": at, "subtree_end": ends, "previous": at - 1, "loss_weight": ones}
    lora = LoRA(rank, 2.0 * rank, ("all-linear",)) if rank else None
    ours = _Step(model, batch, "imitation", ids.size, lora)
    kind, named = ("adapters", f"adapters of rank {rank}") if rank else ("imitation", "all parameters")
    with torch_steps.started(model, kind=kind, rank=rank, tokens=ids.tolist()) as other:
        row = compare(
            "training",
            f"imitation, {model.num_layers} layers, 2 rows of {length}, {named}, no padding",
            "tokens/s",
            ours.run,
            "PEFT" if rank else "PyTorch",
            _asking(other, ids.size),
            size=size,
            seconds=seconds,
        )
        return _described(row, ours, model, ids.size, other.peak)


def _asking(other: torch_steps.Steps, amount: int) -> Pass:
    def run(repeat: int) -> float:
        other.step()
        return amount

    return run


def _padding(batch: dict[str, np.ndarray]) -> str:
    alone = (batch["subtree_end"] == np.arange(batch["tokens"].shape[1]) + 1) & (batch["positions"] == 0)
    return f"{alone.mean():.0%} padding"


def _described(row: Row, ours: "_Step", model: ModelConfig, amount: int, other_peak: int = 0) -> Row:
    """The row with the share of the matrix rate that our step uses, and memory of both.

    FLOP of a step: 6 a parameter and token, 4 where weights are frozen, those of attention not counted.
    """
    rate = ours.flop / amount * row.ours.median / 1e9
    case = f"{row.case}; {rate / row.gflops.median:.0%} of the matrix rate, {ours.peak / 2**30:.1f} GiB"
    if other_peak:
        case += f" against {other_peak / 2**30:.1f}"
    return dataclasses.replace(row, case=case)


def search_tree(size: Size, prompt: int, depth: int) -> list[tree.Node]:
    """A full tree: every executed state has three children, each with a value; random tokens."""
    nodes = [tree.Node(tree.Segment(tokens(prompt, size, 0), "prompt"), -1)]
    level = [0]
    for turn in range(depth):
        below = []
        for parent in level:
            for _ in range(_CHILDREN):
                seed = len(nodes)
                action = tree.Segment(tokens(_ACTION, size, seed), "action")
                nodes.append(tree.Node(action, parent, value=(seed % 10) / 10, value_weight=1.0))
                if turn + 1 < depth:
                    observation = tree.Segment(tokens(_OBSERVATION, size, seed, 1), "observation")
                    nodes.append(tree.Node(observation, len(nodes) - 1))
                    below.append(len(nodes) - 1)
        level = below
    return nodes


def _state(nodes: Sequence[tree.Node], at: int) -> list[tree.Node]:
    """The path to one state, with its target alone."""
    path = []
    while at >= 0:
        path.append(nodes[at])
        at = nodes[at].parent
    path.reverse()
    silent = [tree.Node(n.segment, i - 1) for i, n in enumerate(path[:-1])]
    last = path[-1]
    return [*silent, tree.Node(last.segment, len(path) - 2, value=last.value, value_weight=last.value_weight)]


def _rows(trees: Sequence[tree.FlatTree], length: int, share: bool = True) -> dict[str, np.ndarray]:
    """A batch of rows, several trees in one if `share`."""
    groups = tree.pack(trees, length) if share else [[i] for i in range(len(trees))]
    rows = [tree.to_row([trees[i] for i in group], length) for group in groups]
    names = ("tokens", "positions", "subtree_end", "previous", "loss_weight", "value", "value_weight")
    return {name: np.stack([getattr(row, name) for row in rows]) for name in names}


class _Step:
    """Update steps on one batch, each of which counts as `amount` of work.

    Attributes:
      flop: floating-point operations that the matrices ask for.
      peak: bytes of the compiled program, its state and its batch.
    """

    def __init__(
        self, model: ModelConfig, batch: dict[str, np.ndarray], loss: str, amount: int, lora: LoRA | None = None
    ):
        mesh = parallel.make_mesh()
        tx = make_optimizer(learning_rate=1e-5, warmup=0.1, total_steps=10**6, weight_decay=0.0, clip=1.0)
        objective = objectives.find(loss)
        deep = model.num_layers > 8  # one program a layer would take minutes to compile

        def make(rngs: nnx.Rngs) -> Transformer:
            return Transformer(
                model, rngs=rngs, scan=deep, lora=lora, lm_head=objective.lm_head, value_head=objective.value_head
            )

        graphdef, self._state, placed = init_state(make, tx, mesh, 0)
        self._update = make_train_step(graphdef, tx, objective.loss(jnp.float32), placed, mesh)
        self._batch = {k: jnp.asarray(v) for k, v in batch.items()}
        self._amount = amount
        needed = self._update.lower(self._state, self._batch).compile().memory_analysis()  # type: ignore[attr-defined]
        self.peak = needed.argument_size_in_bytes + needed.temp_size_in_bytes
        layer = model.d_model * model.head_dim * 2 * (model.num_heads + model.num_kv_heads)
        layer += 3 * model.d_model * model.d_ff
        weights = model.num_layers * layer + (model.vocab_size * model.d_model if objective.lm_head else 0)
        used = int((batch["previous"] >= 0).sum())
        self.flop = (4 if lora else 6) * weights * used

    def run(self, repeat: int) -> float:
        self._state, metrics = self._update(self._state, self._batch)
        assert np.isfinite(float(metrics["loss"]))
        return self._amount
