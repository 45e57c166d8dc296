"""What an environment module declares about itself, and how one is found by name.

A module `agentrm_jax/envs/NAME.py` defines `SPEC = EnvSpec(...)` and must import cheaply: engines (minigrid, textworld, a JVM, ...) are
imported inside `make`, because the main process only needs texts and task lists while engines live in worker processes.
"""

import dataclasses
import difflib
import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence

from agentrm_jax.types import JSON, Environment, Expert, Message, Task, UserError

Options = Mapping[str, JSON]  # config.env.options: `data` (folder of official files), `setting`, level lists, ...


@dataclasses.dataclass(frozen=True)
class EnvSpec:
    """One environment.

    Attributes:
      name: module name.
      make: builds one engine instance (called in a worker process); raises UserError naming the extra to install if the
        engine is missing.
      tasks: (split, options) -> every task of that split, in a fixed order; must not start the engine if it can be avoided.
      instruction: what the policy is told before goal and first observation: rules, commands, reply format.
      rm_instruction: what the reward model is told instead; may hold `{goal}`; no reply format, no examples.
      expert: solves a freshly reset episode; None if there is none.
      example: one worked example as messages (user, assistant, user, ...), made by the expert.
      success_threshold: `reward` at or above this is success.
      multiline: a command may span lines (SQL, code).
      invalid_format: observation for a turn from which no command could be read; costs a step.
      observation_prefix: put before every observation after the first.
      exhausted_reward: reward of an episode that ran out of steps: `keep` the engine's latest, or `zero`.
      engine, licence, extra: for `python -m agentrm_jax.envs` and error texts.
    """

    name: str
    make: Callable[[Options], Environment]
    tasks: Callable[[str, Options], Sequence[Task]]
    instruction: str
    rm_instruction: str
    expert: Expert | None = None
    example: tuple[Message, ...] = ()
    success_threshold: float = 1.0
    multiline: bool = False
    invalid_format: str = "The reply holds no action. Write one line that starts with 'Action:'."
    observation_prefix: str = "Observation: "
    exhausted_reward: str = "keep"
    engine: str = ""
    licence: str = ""
    extra: str = ""


_NOT_ENVIRONMENTS = {"spec", "react", "episode", "pool", "worker", "experts", "faults"}


def names() -> list[str]:
    """Environment names, sorted; those that ship with the package."""
    import agentrm_jax.envs as package

    return sorted(
        m.name
        for m in pkgutil.iter_modules(package.__path__)
        if m.name not in _NOT_ENVIRONMENTS and not m.name.startswith("_")
    )


def find(name: str) -> EnvSpec:
    """The spec of environment `name`; `package.module` paths load an environment of the user's own.

    Raises:
      UserError: no such environment; names the closest ones.
    """
    if "." in name:
        try:
            return importlib.import_module(name).SPEC
        except (ImportError, AttributeError) as e:
            raise UserError(f"environment module {name!r} cannot be imported or has no SPEC: {e}") from e
    if name not in names():
        close = difflib.get_close_matches(name, names(), 3, 0.4)
        hint = f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(names())}"
        raise UserError(f"no environment named {name!r}; {hint}")
    return importlib.import_module(f"agentrm_jax.envs.{name}").SPEC
