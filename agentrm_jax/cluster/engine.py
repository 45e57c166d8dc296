"""An engine of a search on a cluster: an actor with policy, reward model and environments of its own, which searches task by task."""

import dataclasses
import functools
import socket
from collections.abc import Mapping
from typing import Any

import ml_collections
import ray

from agentrm_jax import search
from agentrm_jax.cluster import nodes
from agentrm_jax.cluster.environments import Pool, RemoteEnvironments
from agentrm_jax.cluster.records import Finished, FlatResult
from agentrm_jax.envs import catalogue
from agentrm_jax.envs.react import command_reader
from agentrm_jax.models.card import Card, card_of
from agentrm_jax.policies.loading import load_policy
from agentrm_jax.rewards.loading import load_reward_model
from agentrm_jax.run import journal
from agentrm_jax.run.devices import accelerator
from agentrm_jax.search import methods
from agentrm_jax.types import Task


@dataclasses.dataclass(frozen=True)
class Opened:
    """What an engine says once it is ready: the node it is on, and the cards of policy and reward model."""

    node: str
    cards: tuple[Card | None, Card | None]


class Engine:
    """The actor. Tasks that are handed to it together share its batches, as in `search.py`.

    Args:
      config: of the run, as a dictionary.
      folder: where the run was started.
    """

    def __init__(self, config: Mapping[str, Any], folder: str):
        self._config, self._folder = ml_collections.ConfigDict(config), folder

    async def open(self) -> Opened:
        """Opens everything, as `search.py` does for itself.

        Raises:
          NoRoom: no node has room for its environments.
          UserError: a model or an environment cannot be opened here.
        """
        nodes.enter(self._folder)
        accelerator(alone=True)
        config, method = self._config, methods.find(self._config.method)
        environments = catalogue.resolve(config.env)
        specs, how = environments.specs, {"template": config.chat_template, "date": config.date, "config": config}
        workers, options = config.env.workers, environments.pool_options
        pool = ray.remote(Pool).options(num_cpus=workers, scheduling_strategy="SPREAD")
        remote = RemoteEnvironments(
            functools.partial(pool.remote, self._folder, options, workers, config.env.step_timeout)
        )
        policy, self._reward_model = (
            load_policy(config.policy, specs, config.engine, examples=config.examples, **how),
            load_reward_model(config.reward_model, specs, config.engine, **how) if method.reward_model else None,
        )
        self._meter = search.Meter()
        parts: list[Any] = [self._meter.policy(policy), self._meter.environments(remote)]
        if self._reward_model is not None:
            parts.append(self._meter.reward_model(self._reward_model))
        bound = method.bind(config.search, seed=config.seed, command=command_reader(specs))
        self._run = lambda task: bound(task, *parts)
        await remote.ready()
        node = f"{socket.gethostname()} ({ray.get_runtime_context().get_node_id()})"
        return Opened(node, (card_of(policy), card_of(self._reward_model)))

    async def run(self, task: Task) -> Finished:
        """Searches one task.

        Raises:
          NoRoom: the node of its environments died, and no other has room for them.
          UserError: the environment cannot be built.
        """
        ended: list[search.Done[search.Result]] = []
        await search.run_tasks([task], self._run, concurrency=1, on_done=ended.append)
        (done,) = ended
        return Finished(
            task,
            FlatResult.of(done.result) if done.result else None,
            done.fault,
            done.seconds,
            self._meter.tasks[task.key],
            self._meter.total(),
            journal.notes_of(self._reward_model, task),
        )
