"""What an environment module declares about itself.

An environment is a module that defines `SPEC = EnvSpec(...)` and imports cheaply: engines (minigrid, textworld, a JVM, ...) are imported
inside `make`, because the main process only needs texts and task lists while engines live in worker processes.
"""

import dataclasses
import difflib
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence

from agentrm_jax.types import JSON, Environment, Expert, Message, Outcome, Task, UserError

# config.env.options: `data` (folder of official files), `live` (engines a worker holds), and what the environment knows
Options = Mapping[str, JSON]


_EVERYWHERE = ("data", "live", "success_threshold", "observation_limit")


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
      success_threshold: `reward` at or above this is success, unless the option of that name says otherwise.
      multiline: a command may span lines (SQL, code).
      invalid_format: observation for a turn from which no command could be read; costs a step.
      observation_prefix: put before every observation after the first.
      exhausted_reward: reward of an episode that ran out of steps: `keep` the engine's latest, or `zero`.
      options: names of the options it knows besides those that all have (`_EVERYWHERE`); None: any.
      answer: what an episode came to, read from its last outcome, as votes among samples are counted; None where that was no answer.
        Without it samples of this environment have no `majority`.
      told: the spec whose texts (instruction, rm_instruction, example) are for a task, where they differ from task to task.
      live: engines of this environment that a worker holds at most (option `live` counts more); 0: as many as the pool says.
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
    options: tuple[str, ...] | None = None
    answer: Callable[[Outcome], str | None] | None = None
    told: "Callable[[Task], EnvSpec] | None" = None
    live: int = 0
    engine: str = ""
    licence: str = ""
    extra: str = ""

    def texts(self, task: Task) -> "EnvSpec":
        """The spec whose texts are for this task: mostly this one."""
        return self.told(task) if self.told else self

    def check(self, options: Options) -> None:
        """Raises UserError if there is an option that the environment does not know, or one of all environments is out of range."""
        for name in ("live", "observation_limit"):
            whole(options, name, 1)
        if self.options is None:
            return
        known = (*_EVERYWHERE, *self.options)
        for name in options:
            if name not in known:
                close = difflib.get_close_matches(name, known, 1, 0.5)
                hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}"
                raise UserError(f"{self.name} has no option {name!r}; {hint}")

    def at_threshold(self, options: Options) -> "EnvSpec":
        """The spec with the threshold of success that the options name. Raises UserError unless it is a number in (0, 1]."""
        value = options.get("success_threshold")
        if value is None:
            return self
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
            raise UserError(f"option success_threshold must be a number above 0 and up to 1, not {value!r}")
        return dataclasses.replace(self, success_threshold=float(value))


def named(spec: EnvSpec, name: str, **defaults: JSON) -> EnvSpec:
    """The same environment under a name of its own, with options of its own; what a config says counts more.

    So one run can have several games of TextArena, or several servers: `sudoku = named(textarena.SPEC, "sudoku", game="Sudoku-v0")`
    in a module of yours is the environment `my.module:sudoku`.
    """
    make = functools.partial(_make_with, spec.make, defaults)
    return dataclasses.replace(
        spec, name=name, make=make, tasks=functools.partial(_tasks_with, spec.tasks, defaults, name)
    )


def _make_with(make: Callable[[Options], Environment], defaults: Options, options: Options) -> Environment:
    return make({**defaults, **options})


def _tasks_with(
    tasks: Callable[[str, Options], Sequence[Task]], defaults: Options, name: str, split: str, options: Options
) -> Sequence[Task]:
    return [dataclasses.replace(task, env=name) for task in tasks(split, {**defaults, **options})]


def whole(options: Options, name: str, default: int) -> int:
    """An option that is a whole number above 0; `default` where it is absent, empty or 0. Raises UserError for anything else."""
    value = options.get(name) or default
    if isinstance(value, str) and value.isdecimal():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise UserError(f"option {name} must be a whole number above 0, not {value!r}")
    return value


def group(options: Options, name: str, *, env: str) -> dict[str, JSON]:
    """An option that is an object of values; empty where it is absent. Raises UserError for anything else, naming `env`."""
    value = options.get(name) or {}
    if not isinstance(value, Mapping):
        raise UserError(f"{env}: option {name} must be an object, not {value!r:.100}")
    return dict(value)


def several(options: Options, name: str, default: Iterable[JSON]) -> list[JSON]:
    """An option that is a list, one value, or text with commas between values; `default` where it is absent or empty."""
    value = options.get(name) or default
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return list(value) if isinstance(value, Iterable) else [value]
