"""Reward models that steer language-model agents at test time.

    from agentrm_jax import beam, load_policy, load_reward_model, EnvironmentPool

Importing this package costs nothing: what is named here is loaded when it is first used.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    # words
    "Action": "types",
    "Environment": "types",
    "Environments": "types",
    "Outcome": "types",
    "Policy": "types",
    "RewardModel": "types",
    "State": "types",
    "Task": "types",
    "Trajectory": "types",
    "UserError": "types",
    # conversations and trees
    "Encoder": "prompts",
    "load_chat": "chat",
    "flatten": "tree",
    # environments
    "EnvSpec": "envs.spec",
    "EnvironmentPool": "envs.pool.pool",
    "find_environment": "envs.catalogue:find",
    # search
    "beam": "search",
    "best_of_n": "search",
    "explore": "search",
    "lookahead": "search",
    "rollout": "search",
    "run_tasks": "search",
    # models
    "Engine": "engine.engine",
    "load_policy": "policies.loading",
    "load_reward_model": "rewards.loading",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home, _, other = _HOMES[name].partition(":")
    value = getattr(importlib.import_module(f"{__name__}.{home}"), other or name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
