"""AgentGym's servers, one by one: fields, limits, and the rules a player is told (the servers tell none).

Fields as in AgentGym's server and client code; step limits as in its multi-task evaluation (algorithms.md 8.3), except SearchQA's,
which is ours. Where client and server disagree on the reward we take the one that ends in [0, full_reward]: BabyAI's `score` adds up
the rewards of all steps, its `reward` is the share of the goal reached.
"""

import dataclasses

from agentrm_jax.envs.agentgym.http import Dialect
from agentrm_jax.envs.tool.calls import ToolError, read_call


@dataclasses.dataclass(frozen=True, slots=True)
class Kind:
    """One kind of server.

    Attributes:
      max_steps: turns of an episode.
      rules: what can be done, for the player.
      goal: what to achieve where the first observation does not say it.
      action: how a command is sent: `{}` stands for it; `call` rewrites a tool call.
      multiline: a command may span lines; otherwise its first line counts.
      keeps_best: a later reward cannot fall below an earlier one (a score that ends at its minimum on failure).
    """

    dialect: Dialect
    max_steps: int
    rules: str
    goal: str = ""
    action: str = "{}"
    multiline: bool = False
    keeps_best: bool = False


def sent(kind: Kind, command: str) -> str:
    """`command` as the server of this kind wants it."""
    text = command if kind.multiline else command.partition("\n")[0]
    if kind.action != "call":
        return kind.action.format(text)
    try:  # the tool servers evaluate the arguments as Python: `true` would be an unknown name there
        name, arguments = read_call(text)
    except ToolError:
        return f"Action: {text}"
    return f"Action: {name} with Action Input: {arguments!r}"


def _tools(what: str, max_steps: int) -> Kind:
    rules = (
        f'You work with tools for {what}. Write a call as NAME with Action Input: {{"argument": value}}, for instance\n'
        "check_valid_actions with Action Input: {}\nwhich names the tools. When you are done, or know the answer, call\n"
        'finish with Action Input: {"answer": value}'
    )
    return Kind(Dialect("env_idx", "id"), max_steps, rules, action="call")


KINDS: dict[str, Kind] = {
    "webshop": Kind(
        Dialect("env_idx", "session_id"),
        10,
        "You shop on a web page. Commands: search[WORDS] where there is a search field, and click[TEXT] for anything that can be "
        "clicked: products, options, pages, Buy Now (which ends the episode).",
    ),
    "alfworld": Kind(
        Dialect("id", "game", {"world_type": "Text"}),
        30,
        "You are in a household. Commands: go to RECEPTACLE, open RECEPTACLE, close RECEPTACLE, take OBJECT from RECEPTACLE, put OBJECT "
        "in/on RECEPTACLE, use OBJECT, clean OBJECT with RECEPTACLE, heat OBJECT with RECEPTACLE, cool OBJECT with RECEPTACLE, "
        "examine OBJECT, look, inventory.",
    ),
    "sciworld": Kind(
        Dialect(reward_field="score", full_reward=100.0),
        30,
        "You do a science experiment in a house. Commands: look around, look at OBJ, look in OBJ, inventory, task, go to LOC, open OBJ, "
        "close OBJ, pick up OBJ, put down OBJ, move OBJ to OBJ, pour OBJ into OBJ, dunk OBJ into OBJ, mix OBJ, activate OBJ, deactivate "
        "OBJ, use OBJ on OBJ, connect OBJ to OBJ, disconnect OBJ, read OBJ, eat OBJ, flush OBJ, wait, wait1, and focus on OBJ for the "
        "thing the task asks for (a wrong one ends the episode). A numbered list is answered with the number.",
        keeps_best=True,
    ),
    "babyai": Kind(
        Dialect(),
        20,
        "You move through rooms. Commands: turn left, turn right, move forward, go to OBJ ID, pick up OBJ ID, go through DOOR ID, "
        "toggle and go through DOOR ID, toggle, drop; the observation lists those that are possible.",
    ),
    "textcraft": Kind(
        Dialect(),
        20,
        "You craft items from a list of recipes. Commands: craft N ITEM using N ITEM, N ITEM; get N ITEM for what no recipe makes; "
        "inventory.",
    ),
    "maze": Kind(
        Dialect("id", "game"),
        15,
        "You walk through a maze. Commands: move up, move down, move left, move right.",
        "Reach the goal position.",
    ),
    "wordle": Kind(
        Dialect("id", "seed"),
        8,
        "You guess a hidden word of five letters. Write five letters with spaces between them. Each is answered with g (right place), "
        "y (elsewhere in the word) or b (not in it).",
        "Find the hidden word.",
    ),
    "sqlgym": Kind(
        Dialect("env_idx", "item_id"),
        1,
        "You answer a question about a database. Your command is one SQLite query; its result is the answer and ends the episode.",
        multiline=True,
    ),
    "weather": _tools("weather", 10),
    "movie": _tools("films", 12),
    "academia": _tools("papers and authors", 12),
    "todo": _tools("a to-do list", 15),
    "sheet": _tools("spreadsheets", 15),
    "searchqa": Kind(
        Dialect("env_idx", "id"),
        10,
        "You answer a question with a search engine. Commands: <search>WORDS</search> and, to end the episode, <answer>ANSWER</answer>.",
    ),
    "webarena": Kind(
        Dialect("env_idx", "idx", {"seed": 0}),
        25,
        "You use web sites. Commands: click [ID], type [ID] [TEXT] [1 to press enter, else 0], hover [ID], press [KEYS], "
        "scroll [up or down], new_tab, tab_focus [NUMBER], close_tab, goto [URL], go_back, go_forward, and stop [ANSWER] to end.",
        action="```{}```",
    ),
    "custom": Kind(Dialect(), 30, ""),
}
