"""Step scoring in beam search: our engine against a full forward pass for every candidate state."""

from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np
from flax import nnx

from agentrm_jax.engine.engine import Engine
from agentrm_jax.engine.requests import EngineConfig
from agentrm_jax.models.transformer import Transformer
from benchmarks import naive
from benchmarks.measure import Row, Size, compare, tokens

_CANDIDATES, _ACTION, _OBSERVATION = 5, 14, 36


def run(size: Size, seconds: float) -> Iterator[Row]:
    model = Transformer(size.model, rngs=nnx.Rngs(0), value_head=True)
    prompt = size.context // 2
    room = -(-(prompt + size.turns * (_ACTION + _OBSERVATION)) // 64) * 64
    tasks = max(size.histories // 8, 1)
    config = EngineConfig(
        cache_tokens=4 * tasks * room * _CANDIDATES, batch_tokens=(256, 1024), new_tokens=(64, 256), context=(room,)
    )
    mine = Engine(model, config, end_id=-1)

    def episodes(repeat: int) -> Iterator[list[np.ndarray]]:
        """Turn by turn, the candidate states of all tasks; the first candidate is always the one that is executed."""
        histories = [tokens(prompt, size, i, repeat) for i in range(tasks)]
        for turn in range(size.turns):
            states: list[np.ndarray] = []
            for i, history in enumerate(histories):
                actions = [tokens(_ACTION, size, i, repeat, turn, c) for c in range(_CANDIDATES)]
                states += [np.concatenate([history, action]) for action in actions]
                histories[i] = np.concatenate([history, actions[0], tokens(_OBSERVATION, size, i, repeat, turn, 99)])
            yield states

    def ours(repeat: int) -> float:
        return sum(len(mine.score(states)) for states in episodes(repeat))

    def theirs(repeat: int) -> float:
        count = 0
        for states in episodes(repeat):
            for at in range(0, len(states), _CANDIDATES):
                batch = np.zeros((_CANDIDATES, room), np.int32)
                length = np.zeros(_CANDIDATES, np.int32)
                for row, path in enumerate(states[at : at + _CANDIDATES]):
                    batch[row, : len(path)], length[row] = path, len(path)
                count += len(np.asarray(naive.last_values(model, jnp.asarray(batch), jnp.asarray(length))))
        return count

    yield compare(
        "scoring",
        f"{tasks} tasks, {size.turns} turns, {_CANDIDATES} candidates, prompts of {prompt}",
        "states/s",
        ours,
        "full pass per state",
        theirs,
        size=size,
        seconds=seconds,
    )
