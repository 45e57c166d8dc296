"""Reward-model training on search trees: packed token trees against one padded sequence for every state.

Both are whole update steps of `agentrm_jax.training.step` on the same states and targets; the losses agree.
"""

from collections.abc import Iterator, Sequence

import jax.numpy as jnp
import numpy as np
from flax import nnx

from agentrm_jax import parallel, tree
from agentrm_jax.models.transformer import Transformer
from agentrm_jax.training import objectives
from agentrm_jax.training.optimizer import make_optimizer
from agentrm_jax.training.step import init_state, make_train_step
from benchmarks.measure import Pass, Row, Size, compare, tokens

_CHILDREN, _ACTION, _OBSERVATION = 3, 14, 36


def run(size: Size, seconds: float) -> Iterator[Row]:
    depth = min(size.turns, 3)
    nodes = search_tree(size, size.context // 2, depth)
    targets = [i for i, n in enumerate(nodes) if n.value_weight > 0]
    length = -(-(size.context // 2 + depth * (_ACTION + _OBSERVATION)) // 64) * 64
    packed = _rows([tree.flatten(part) for part in tree.split(nodes, 4 * length)], 4 * length)
    single = _rows([tree.flatten(_state(nodes, i)) for i in targets], length, share=False)
    yield compare(
        "training",
        f"a tree of {len(targets)} states, prompt of {size.context // 2}",
        "states/s",
        _step(size, packed, len(targets)),
        f"a row of {length} tokens per state",
        _step(size, single, len(targets)),
        size=size,
        seconds=seconds,
    )


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


def _step(size: Size, batch: dict[str, np.ndarray], states: int) -> Pass:
    mesh = parallel.make_mesh()
    tx = make_optimizer(learning_rate=1e-5, warmup=0.1, total_steps=10**6, weight_decay=0.0, clip=1.0)

    def make(rngs: nnx.Rngs) -> Transformer:
        return Transformer(size.model, rngs=rngs, lm_head=False, value_head=True)

    graphdef, current, placed = init_state(make, tx, mesh, 0)
    update = make_train_step(graphdef, tx, objectives.find("regression").loss(jnp.float32), placed, mesh)
    arrays = {k: jnp.asarray(v) for k, v in batch.items()}

    def run(repeat: int) -> float:
        nonlocal current
        current, metrics = update(current, arrays)
        assert int(metrics["states"]) == states
        return states

    return run
