"""Prompts as AgentRM publishes them, instead of ours: a folder laid out as its `eval_agent/prompt`.

    instructions/NAME_inst.txt                   what the policy is told
    icl_examples/NAME_icl.json                   worked examples: a list of conversations of {"role", "content"}; the first is used
    prm_instruction/NAME_wo_turninfo.txt         what the reward model is told, with a slot {task_goal}

NAME is the environment's; `alfworld_ab` and `sciworld_ab` in the setting `agentboard`; `pddl_DOMAIN`; and `tool_KIND` for the
policy, `tool_query` and `tool_operation` for the reward model. Goal and first observation follow as they do after our own texts.
"""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Literal

from agentrm_jax.envs.spec import EnvSpec, Options
from agentrm_jax.types import JSON, Message, Task, UserError

NONE = "none"  # instead of a folder
_ENVIRONMENTS = {"alfworld", "babyai", "jericho", "maze", "pddl", "sciworld", "tool_operation", "tool_query", "webshop"}
_BY_SETTING = {"alfworld", "sciworld"}
# The argument of a task that names its text.
_BY_TASK = {"pddl": "domain", "tool_query": "kind", "tool_operation": "kind"}
_ROLES: dict[str, Literal["user", "assistant"]] = {
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
}


def with_prompts(spec: EnvSpec, folder: str, options: Options) -> EnvSpec:
    """`spec` with the texts of `folder`, read when they are first needed; as it is where the layout knows no such environment.

    With `NONE` nobody is told anything but goal and observation: for models that are trained from nothing, which learn what to do from
    the episodes alone, and would read the same words before each of them.

    Raises:
      UserError: there is no such folder, now; a text is missing or no text of this layout, when it is needed or now.
    """
    if folder == NONE:
        return dataclasses.replace(spec, instruction="", rm_instruction="{goal}", example=(), told=None)
    if not folder or spec.name not in _ENVIRONMENTS:
        return spec
    root = Path(folder).expanduser()
    if not (root / "instructions").is_dir():
        raise UserError(f"config.env.prompts={folder}: there is no folder {root / 'instructions'}")
    if spec.name in _BY_TASK:
        return dataclasses.replace(spec, told=functools.partial(_of_task, spec, str(root)))
    both = spec.name in _BY_SETTING and options.get("setting") == "agentboard"
    name = f"{spec.name}_ab" if both else spec.name
    return _read(spec, str(root), name, name)


def _of_task(spec: EnvSpec, root: str, task: Task) -> EnvSpec:
    kind = task.args[_BY_TASK[spec.name]]
    if spec.name == "pddl":
        return _read(spec, root, f"pddl_{kind}", f"pddl_{kind}")
    return _read(spec, root, f"tool_{kind}", spec.name)


@functools.lru_cache(32)
def _read(spec: EnvSpec, root: str, name: str, reward_name: str) -> EnvSpec:
    """`spec` with the policy's texts of `name` and the reward model's of `reward_name`."""
    about = _text(Path(root) / "prm_instruction" / f"{reward_name}_wo_turninfo.txt")
    return dataclasses.replace(
        spec,
        instruction=_text(Path(root) / "instructions" / f"{name}_inst.txt"),
        rm_instruction=about.replace("{task_goal}", "{goal}"),
        example=_example(Path(root) / "icl_examples" / f"{name}_icl.json"),
        told=None,
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"config.env.prompts: {path} cannot be read: {error}") from error


def _example(path: Path) -> tuple[Message, ...]:
    """The first worked example of a file."""
    try:
        conversations: JSON = json.loads(_text(path))
        return tuple(Message(_ROLES[m["role"]], m["content"]) for m in conversations[0])
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise UserError(
            f'config.env.prompts: {path} is no list of conversations of {{"role": ..., "content": ...}} ({error!r})'
        ) from error
