"""Any text environment of verifiers (its v1: tasksets and `Env`s), by the id of its taskset.

The environment runs in the worker, with the policy in one of its seats; commands go to it as the agent's replies. The reward is the
sum of verifiers' weighted rewards, judged when the episode ends, divided by `full_reward` and clipped to [0, 1]; before the end it is
0, and progress is the same. The last turn that the step limit allows ends the exchange, and is judged. There are no snapshots:
earlier states are reached by checked replay. Environments whose agents need tools, a sandbox or more than one model are refused.

Options:
  taskset: id of an installed taskset package, or of a module in the folder that the program was started in.
  env: id of an environment to pair it with; the taskset's own by default, or one turn that is judged.
  indices: tasks of each split by their place in the taskset, `{"test": "0-99", "train": "100-499"}`. Without split names: of the test
    split.
  config: fields of the taskset's config; env_config: of the environment's.
  max_steps (30), full_reward (1).
"""

import inspect
import itertools
from collections.abc import Sequence
from typing import Any

from agentrm_jax.envs import indices
from agentrm_jax.envs.catalogue import look_here
from agentrm_jax.envs.chance import Chance
from agentrm_jax.envs.spec import EnvSpec, Options, group, whole
from agentrm_jax.types import EngineStep, Environment, Start, Task, UserError

_OPTIONS = ("taskset", "env", "indices", "config", "env_config", "max_steps", "full_reward")

INSTRUCTION = """You work on a task, in one or several turns. First you are told what it is, then the answer to each of your replies.
Each turn, write one thought and one reply, in the form that the task asks for:
Thought: <why>
Action: <reply>"""
RM_INSTRUCTION = """An agent works on a task:
{goal}"""


class Verifiers:
    """One environment, reset to one task of its taskset after another."""

    def __init__(self, options: Options):
        try:
            from verifiers.v1.utils import loaders

            from agentrm_jax.envs.verifiers import seat
        except ImportError as error:
            raise UserError(f"verifiers: not installed ({error}); pip install 'agentrm-jax[verifiers]'") from error
        look_here()
        self._seats = seat
        full = options.get("full_reward", 1.0)
        if isinstance(full, bool) or not isinstance(full, int | float) or not full > 0:
            raise UserError(f"verifiers: option full_reward must be a number above 0, not {full!r}")
        self.full_reward = float(full)
        taskset = {"id": _taskset(options), **group(options, "config", env="verifiers")}
        fields = {
            "id": str(options.get("env") or ""),
            "taskset": taskset,
            **group(options, "env_config", env="verifiers"),
        }
        try:
            self.environment = loaders.load_environment(loaders.resolve_env_config(fields))
        except (Exception, SystemExit) as error:  # a package of others may raise anything
            raise UserError(f"verifiers: {taskset['id']} cannot be opened: {type(error).__name__}: {error}") from error
        self.seat = self._only_seat()
        self.tasks: dict[int, Any] = {}
        self.exchange: Any = None
        self.chance = Chance(0)

    def reset(self, task: Task) -> Start:
        self.close()
        index = int(task.args["index"])
        row = self._row(index)
        self.chance = Chance(index)
        with self.chance():
            self.exchange = self._seats.Exchange(self.environment, row, self.seat, task.max_steps)
        if self.exchange.question is None:
            raise UserError(f"verifiers: task {index} of {self.environment.config.taskset.id} asks the agent nothing")
        return Start(row.data.description or row.data.prompt_text or self.exchange.question, self.exchange.question)

    def step(self, command: str) -> EngineStep:
        with self.chance():
            self.exchange.tell(command)
        if self.exchange.question is not None:
            return EngineStep(self.exchange.question, 0.0, 0.0)
        worth = self.exchange.reward / self.full_reward
        if worth > 1 + 1e-6:
            raise UserError(
                f"verifiers: {self.environment.config.taskset.id} gave a reward of {self.exchange.reward:g}, above "
                f"{self.full_reward:g}; set option full_reward to its highest"
            )
        reward = min(1.0, max(0.0, worth))
        return EngineStep("The episode has ended.", reward, reward, over=True)

    def snapshot(self) -> Any:
        raise NotImplementedError("a running coroutine cannot be copied; replay the replies")

    def restore(self, snapshot: Any) -> None:
        raise NotImplementedError("a running coroutine cannot be copied; replay the replies")

    def close(self) -> None:
        if self.exchange is not None:
            self.exchange.close()
            self.exchange = None

    def _row(self, index: int) -> Any:
        """A task of the taskset. Raises UserError if there is none, or it needs what we do not have."""
        name = self.environment.config.taskset.id
        if index not in self.tasks:
            with Chance(0)():
                found = next(itertools.islice(self.environment.taskset, index, None), None)
            if found is None:
                raise UserError(f"verifiers: {name} has no task number {index}; correct option indices")
            kind = type(found)
            shared = type(self.environment.taskset).toolsets(self.environment.taskset.config)
            if kind.NEEDS_CONTAINER or found.data.image:
                raise UserError(f"verifiers: tasks of {name} need a container, which is not to be had here")
            if kind.toolsets(found.config) or shared:
                raise UserError(
                    f"verifiers: tasks of {name} are done with tools; only those done with text can be played"
                )
            if any(_wants_runtime(fn) for what in ("reward", "metric") for fn in found.hooks(what)):
                raise UserError(f"verifiers: tasks of {name} are judged in a sandbox, which is not to be had here")
            self.tasks[index] = found
        return self.tasks[index]

    def _only_seat(self) -> str:
        from verifiers.v1.configs.agent import agent_config_fields

        seats = list(agent_config_fields(self.environment.config))
        if len(seats) != 1:
            name = self.environment.config.env_id
            raise UserError(f"verifiers: {name} has the seats {', '.join(seats)}; only those with one can be played")
        return seats[0]


def _wants_runtime(fn: Any) -> bool:
    parameter = inspect.signature(fn).parameters.get("runtime")
    return parameter is not None and parameter.default is inspect.Parameter.empty


def _taskset(options: Options) -> str:
    name = options.get("taskset")
    if not name or not isinstance(name, str):
        raise UserError("verifiers: option taskset is missing; set it to the id of an installed taskset")
    return name


def make(options: Options) -> Environment:
    return Verifiers(options)


def tasks(split: str, options: Options) -> Sequence[Task]:
    """The tasks that option `indices` names."""
    name = _taskset(options)
    limit = whole(options, "max_steps", 30)
    chosen = indices.of_split(options.get("indices"), split, where="verifiers: option indices")
    return [Task("verifiers", f"{name}-{index}", split, limit, {"index": index}) for index in chosen]


SPEC = EnvSpec(
    name="verifiers",
    make=make,
    tasks=tasks,
    instruction=INSTRUCTION,
    rm_instruction=RM_INSTRUCTION,
    multiline=True,  # a reply may be anything
    options=_OPTIONS,
    engine="verifiers",
    licence="MIT",
    extra="verifiers",
)
