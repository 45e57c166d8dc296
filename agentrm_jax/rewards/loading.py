"""The one place where a reward model is opened, whatever it is: of our own kinds, a judge, or a user's own."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agentrm_jax import places
from agentrm_jax.envs.spec import EnvSpec
from agentrm_jax.models.card import read_card
from agentrm_jax.types import RewardModel, UserError


def load_reward_model(
    place: Path | str,
    specs: Mapping[str, EnvSpec],
    engine: Any,
    *,
    template: str = "",
    date: str = "",
    config: Any = None,
) -> RewardModel:
    """The reward model at a place (`agentrm_jax.places`).

    Its weights stay in the engine's type, whatever `engine.weights` says: rankings of close candidates hang on small differences.

    Args:
      place: a workdir, of whatever kind its card says, or a model folder or preset with a value head, which run on our engine;
        `implicit:TUNED@BASE`; several places with commas between them, an ensemble; `judge:PLACE`; or `MODULE:FUNCTION`, a function
        that is called with `specs` and `config` and returns an object with `score` (`types.RewardModel`).
      specs: environment name -> spec, whose texts the reward model is told where its card has none.
      engine: the sizes of a config's `engine` group.
      template, date: of the chat template; see `models.opening`.
      config: the whole config of the run, for a user's function; of a judge, its groups `judge` and `server` count.

    Raises:
      UserError: there is no such reward model, or it cannot be used.
    """
    engine = {**engine, "weights": ""}
    match places.read(place):
        case places.Maker() as maker:
            return maker.make("score", specs, config if config is not None else {})
        case places.Server():
            raise UserError(f"{place} is a policy; to have it judge trajectories, write judge:{place}")
        case places.Ensemble(members):
            from agentrm_jax.rewards.ensemble import EnsembleRewardModel

            how = {"template": template, "date": date, "config": config}
            return EnsembleRewardModel(
                [load_reward_model(m, specs, engine, **how) for m in members], _pessimism(config)
            )
        case places.Pair(tuned, base):
            from agentrm_jax.rewards.implicit import load_policies

            how = {"template": template, "date": date, "step": _step(config)}
            return load_policies(tuned, base, specs, engine, **how)
        case places.Judge() as judge:
            from agentrm_jax.generators.loading import load_generator
            from agentrm_jax.rewards.judge import Judge

            given = config or {}
            generator = load_generator(judge.policy, engine, given.get("server"), template=template, date=date)
            settings = given.get("judge") or {}
            compare, orders = settings.get("compare", "trajectories"), settings.get("orders", 5)
            return Judge(generator, specs, compare=compare, orders=orders)
        case places.Model():
            return _of_card(place, specs, engine, config, template=template, date=date)


def _of_card(place: Path | str, specs: Mapping[str, EnvSpec], engine: Any, config: Any, **how: Any) -> RewardModel:
    """The reward model of a workdir, by the kind on its card; what has no card is a classifier with one label."""
    card = read_card(Path(place))
    match card.kind if card else "explicit":
        case "explicit":
            from agentrm_jax.rewards.explicit import load_explicit

            if (Path(place) / "seeds.json").exists():
                runs = sorted(str(run) for run in Path(place).glob("seed-*"))
                raise UserError(f"{place} holds runs of several seeds; name one, {runs[0]}, or all: {','.join(runs)}")
            method = config.get("method", "") if config is not None else ""
            return load_explicit(place, specs, engine, pessimism=_pessimism(config), method=method, **how)
        case "implicit":
            from agentrm_jax.rewards.implicit import load_implicit

            return load_implicit(place, specs, engine, step=_step(config), **how)
        case "policy":
            raise UserError(
                f"{place} holds a policy; train a reward model with configs/explicit.py, or write judge:{place} or implicit:{place}@BASE"
            )
        case kind:
            raise UserError(f"{place} holds a model of kind {kind!r}, which this program does not know; update it")


def _step(config: Any) -> Any:
    """How an implicit reward model scores a state, where the config says."""
    return config.get("step_reward", "accumulated") if config is not None else "accumulated"


def _pessimism(config: Any) -> float:
    """How many standard deviations an ensemble's score lies below its mean, where the config says."""
    return config.get("pessimism", 0.0) if config is not None else 0.0
