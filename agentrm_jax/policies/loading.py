"""The one place where a policy is opened, whatever it is: on our engine, behind a server, or a user's own."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agentrm_jax import places
from agentrm_jax.envs.spec import EnvSpec
from agentrm_jax.types import Policy, UserError


def load_policy(
    place: Path | str,
    specs: Mapping[str, EnvSpec],
    engine: Any,
    *,
    examples: int = 0,
    template: str = "",
    date: str = "",
    config: Any = None,
) -> Policy:
    """The policy at a place (`agentrm_jax.places`).

    Args:
      place: a workdir, a model folder or a preset, which run on our engine; `openai:MODEL@URL`; or `MODULE:FUNCTION`, a function
        that is called with `specs` and `config` and returns an object with `propose` (`types.Policy`).
      specs: environment name -> spec, whose texts the policy is told.
      engine: the sizes of a config's `engine` group; of a server, `max_new` counts.
      examples: worked examples in the prompt.
      template, date: of the chat template; see `models.opening`.
      config: the whole config of the run, for a user's function; of a server, its `server` group counts.

    Raises:
      UserError: there is no such policy, or it cannot be used.
    """
    match places.read(place):
        case places.Maker() as maker:
            return maker.make("propose", specs, config if config is not None else {})
        case places.Server() as server:
            from agentrm_jax.policies.served import load_served_policy

            return load_served_policy(
                server,
                specs,
                (config or {}).get("server"),
                max_new=engine["max_new"],
                examples=examples,
                template=template,
                date=date,
            )
        case places.Judge():
            raise UserError(f"{place} is a judge, which scores; a policy is named without judge:")
        case places.Ensemble():
            raise UserError(f"{place}: several places are an ensemble of reward models; a search has one policy")
        case places.Pair(tuned, _):
            raise UserError(f"{place} scores by two policies; the policy itself is {tuned}")
        case places.Model():
            from agentrm_jax.policies.native import load_native_policy

            return load_native_policy(place, specs, engine, examples=examples, template=template, date=date)
