"""A config is checked as a whole, before anything is made, opened or written."""

import importlib.util
import os
import re
from typing import Any

import ml_collections

from agentrm_jax import places
from agentrm_jax.evaluation import selection
from agentrm_jax.run import keys
from agentrm_jax.run.key import TREES, Key
from agentrm_jax.types import UserError


def check(config: ml_collections.ConfigDict) -> None:
    """Checks every value of a config against the table of keys, and values that belong together against each other.

    Raises:
      UserError: a value is out of its range, a key is missing, or two values do not fit; names the key and what it may be.
    """
    roles, values = keys.roles(config), keys.flatten(config)
    if not roles:
        raise UserError("this config names no method (for search.py), and neither experts nor trees (for train.py)")
    for key in keys.rows(roles):
        if key.name.endswith("*"):
            continue
        if key.name not in values:
            raise UserError(f"the config lacks {key.name} ({key.meaning}); it must be {key.range.words()}")
        _check_value(key, key.name, values[key.name])
    for name, value in values.items():
        if known := keys.find(name, roles):
            _check_value(known, name, value)
    for together in (_data, _places, _judge, _outcomes, _mesh, _model, _objective, _engine, _simulations, _ray):
        together(config)


def show(value: Any) -> str:
    """A value as it is written on the command line."""
    return ",".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def _check_value(key: Key, name: str, value: Any) -> None:
    if not key.range.allows(value):
        raise UserError(f"--config.{name}={show(value)}: must be {key.range.words()}")


def _data(config: ml_collections.ConfigDict) -> None:
    if config.get("data") and config.get("state") == "last_observation":
        raise UserError(
            "--config.state=last_observation: what was observed after the last action is no part of rows of your own"
        )
    if "trees" in config and not (config.get("data") or config.init):
        raise UserError(
            "--config.init is empty: a reward model starts from a model, or from nothing with --config.data"
        )


def _outcomes(config: ml_collections.ConfigDict) -> None:
    if "samples" in config and "trees" in config and not (config.samples or config.trees or config.data):
        raise UserError("--config.samples and --config.trees are both empty; name trajectories, search trees, or both")


def _places(config: ml_collections.ConfigDict) -> None:
    for key in ("policy", "reward_model"):
        if "method" in config and config[key]:
            try:
                place = places.read(config[key])
                if isinstance(place, places.Maker):
                    place.find()
                if key == "policy" and isinstance(place, places.Ensemble):
                    raise UserError("several places are an ensemble of reward models; a search has one policy")
            except UserError as error:
                raise UserError(f"--config.{key}: {error}") from error


def _judge(config: ml_collections.ConfigDict) -> None:
    """A judge compares; what it says of one candidate alone, or of candidates that it does not see together, means nothing."""
    if "judge" not in config or not isinstance(places.read(config.reward_model), places.Judge):
        return
    method, search, judge = config.method, config.search, f"--config.reward_model={config.reward_model}"
    if method in ("adaptive", "guided_mcts", "refine"):
        raise UserError(f"{judge}: a judge compares candidates, and {method} scores them one after the other")
    if method == "best_of_n" and (search.all_steps or search.aggregate != "last"):
        raise UserError(
            f"{judge}: a judge compares whole trajectories; set --config.search.all_steps=false and "
            "--config.search.aggregate=last, as configs/judge.py does"
        )
    whole = method in ("best_of_n", "particle") or (method == "lookahead" and search.depth > 0)
    if whole and config.judge.compare == "steps":
        raise UserError(f"{judge}: here candidates have different histories; set --config.judge.compare=trajectories")


def _mesh(config: ml_collections.ConfigDict) -> None:
    if "mesh" in config and sum(size == -1 for size in config.mesh.values()) > 1:
        raise UserError("--config.mesh: only one of data, fsdp and tensor can be -1, all devices that are left")


def _model(config: ml_collections.ConfigDict) -> None:
    if "model" not in config or config.init:  # a model that is there brings its own sizes
        return
    if config.chat_template not in ("", "chatml"):
        raise UserError(
            f"--config.chat_template={config.chat_template}: a policy that starts from nothing speaks chatml; "
            "leave it out, or name a model with init"
        )
    model = config.model
    if model.num_heads % model.num_kv_heads:
        raise UserError(
            f"--config.model.num_kv_heads={model.num_kv_heads}: must divide model.num_heads, {model.num_heads}"
        )
    if model.head_dim % 2:
        raise UserError(f"--config.model.head_dim={model.head_dim}: must be even, positions turn pairs of numbers")


def _objective(config: ml_collections.ConfigDict) -> None:
    if "eval_metric" not in config:
        return
    if config.get("heads", 1) > 1 and config.loss not in ("regression", "cross_entropy"):
        raise UserError(
            f"--config.heads={config.heads}: several value heads are trained with loss=regression or cross_entropy; for "
            f"{config.loss}, train several models (--config.seeds) and name them all as the reward model"
        )
    if config.get("freeze") == "trunk" and config.lora.rank:
        raise UserError(
            "--config.freeze=trunk: adapters are part of the trunk; leave lora.rank at 0, or freeze nothing"
        )
    if config.eval_metric != selection.NONE and config.heldout == 0:
        raise UserError(f"--config.eval_metric={config.eval_metric}: there is nothing to measure on; raise heldout")
    if config.eval_metric in ("mse", "ece") and config.loss in ("pairwise", "listwise"):
        raise UserError(
            f"--config.eval_metric={config.eval_metric}: scores learned by loss={config.loss} predict no outcome; "
            "choose sibling_accuracy"
        )
    if config.patience and config.eval_metric == selection.NONE:
        raise UserError(f"--config.patience={config.patience}: name the metric that it waits for with eval_metric")


def _engine(config: ml_collections.ConfigDict) -> None:
    if "engine" not in config:
        return
    engine = config.engine
    if engine.max_new >= engine.context[-1]:
        raise UserError(
            f"--config.engine.max_new={engine.max_new}: leaves no room for a history; "
            f"the last of engine.context is {engine.context[-1]}"
        )
    if engine.cache_tokens < engine.context[-1]:
        raise UserError(
            f"--config.engine.cache_tokens={engine.cache_tokens}: cannot hold a history as long as the last of "
            f"engine.context, {engine.context[-1]}"
        )
    if engine.new_tokens[-1] > engine.batch_tokens[-1]:
        raise UserError(
            f"--config.engine.new_tokens={show(engine.new_tokens)}: the last one must fit the last of "
            f"engine.batch_tokens, {engine.batch_tokens[-1]}"
        )


def _simulations(config: ml_collections.ConfigDict) -> None:
    if config.get("method") not in TREES or config.search.n == 1:
        return
    if config.search.rollout_temperature == 0:
        raise UserError(
            f"--config.search.n={config.search.n}: simulations of a greedy policy are all the same; "
            "set search.rollout_temperature above 0"
        )
    if config.search.get("depth") == 0:
        raise UserError(
            f"--config.search.n={config.search.n}: simulations that take no turn are all the same; "
            "set search.depth above 0"
        )


def _ray(config: ml_collections.ConfigDict) -> None:
    if not config.get("ray"):
        return
    if config.ray != "auto" and not re.fullmatch(r"([\w.-]+|\[[0-9A-Fa-f:]+\]):[0-9]{1,5}", config.ray):
        raise UserError(f"--config.ray={config.ray}: must be auto, or HOST:PORT of the head of a Ray cluster, or empty")
    if config.get("samples"):
        raise UserError(
            f"--config.ray={config.ray}: samples that are drawn already are ranked in one process; leave ray empty"
        )
    if importlib.util.find_spec("ray") is None:
        raise UserError(f"--config.ray={config.ray}: Ray is not installed; pip install 'agentrm-jax[ray]'")
    from agentrm_jax import parallel

    if parallel.launcher(os.environ) is not None:
        raise UserError(
            f"--config.ray={config.ray}: a search on Ray is started as one process, and this is one of several "
            "(jax.distributed); start it alone, or leave ray empty"
        )
