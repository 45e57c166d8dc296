"""Our engine under the questions of `benchmarks.side_by_side`."""

import asyncio
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from agentrm_jax.engine.engine import Engine
from agentrm_jax.engine.requests import EngineConfig, GenerateRequest, SamplingParams
from agentrm_jax.engine.service import EngineService
from agentrm_jax.models.transformer import Transformer
from benchmarks.side_by_side import OURS


class Ours:
    """An engine in this process; lengths are as asked for, since no token ends a sample."""

    def __init__(self, model: Transformer, config: EngineConfig, *, name: str = OURS, dtype: Any = jnp.float32):
        self.name = name
        self.engine = Engine(model, config, end_id=-1, dtype=dtype)
        self._service = EngineService(self.engine)

    def ask(self, **question: Any) -> dict[str, Any]:
        do: Any = {"generate": self._generate, "score": self._score, "episodes": self._episodes}[question.pop("do")]
        before, programs = self._computed(), self.engine.compilations
        answer: dict[str, Any] = do(**question)
        computed = self._computed() - before - answer.pop("last", 0)
        return answer | {"computed": computed, "compiled": self.engine.compilations - programs}

    def _computed(self) -> int:
        return self.engine.stats.read_tokens + self.engine.stats.sampled_tokens

    def _generate(
        self, paths: Sequence[Sequence[int]], new: int, n: int = 1, temperature: float = 0.0
    ) -> dict[str, Any]:
        params = SamplingParams(temperature=temperature, n=n, max_tokens=new)
        found = self.engine.generate([GenerateRequest(np.array(path, np.int32), params) for path in paths])
        tokens = [sample.tokens.tolist() for samples in found for sample in samples]
        return {"tokens": tokens, "last": len(tokens)}  # a sample's last token is never read

    def _score(self, paths: Sequence[Sequence[int]]) -> dict[str, Any]:
        return {"values": self.engine.score([np.array(path, np.int32) for path in paths]).tolist()}

    def _episodes(
        self,
        paths: Sequence[Sequence[int]],
        observations: Sequence[Sequence[Sequence[int]]],
        new: int,
        temperature: float = 1.0,
    ) -> dict[str, Any]:
        """Every path goes on by itself: new tokens, an observation, new tokens, ... until its observations are over."""

        async def episode(index: int) -> int:
            path, count = np.array(paths[index], np.int32), 0
            for turn in range(len(observations[index]) + 1):
                if turn:
                    path = np.concatenate([path, np.array(observations[index][turn - 1], np.int32)])
                params = SamplingParams(temperature=temperature, seed=index, max_tokens=new)
                [sample] = await self._service.generate(GenerateRequest(path, params))
                path, count = np.concatenate([path, sample.tokens]), count + len(sample.tokens)
            return count

        async def all_episodes() -> int:
            return sum(await asyncio.gather(*map(episode, range(len(paths)))))

        samples = sum(len(seen) + 1 for seen in observations)
        return {"count": asyncio.run(all_episodes()), "last": samples}
