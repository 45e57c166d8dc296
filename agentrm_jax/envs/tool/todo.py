"""A to-do list in memory with the tools of AgentBoard's todo tasks (Todoist's REST resources); boards are immutable.

A task that was completed or deleted is gone from all answers, as in the REST interface. What an episode is worth compares
the final board with the wanted changes (`worth`).
"""

import dataclasses
import datetime
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any

from agentrm_jax.envs.tool.calls import CHECK, FINISH, Tool, ToolError, same_answer
from agentrm_jax.types import JSON


@dataclasses.dataclass(frozen=True, slots=True)
class Project:
    id: str
    order: int
    name: str
    is_favorite: bool = False
    color: str = "charcoal"

    def shown(self) -> dict[str, JSON]:
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True, slots=True)
class Item:
    """One task of a project; `status` is `active`, `completed` or `deleted`, `minutes` its expected duration."""

    id: str
    project_id: str
    order: int
    content: str
    description: str
    due_date: str
    minutes: int
    priority: int
    status: str = "active"

    def shown(self) -> dict[str, JSON]:
        return {
            "id": self.id,
            "order": self.order,
            "content": self.content,
            "is_completed": self.status == "completed",
            "priority": self.priority,
            "due_date": self.due_date,
        }


@dataclasses.dataclass(frozen=True, slots=True)
class Board:
    """Everything the tools see. Project and task ids are text."""

    date: str
    location: str
    projects: tuple[Project, ...]
    items: tuple[Item, ...]

    def project(self, key: str) -> Project:
        for project in self.projects:
            if project.id == key:
                return project
        raise ToolError(f"There is no project with id {key}.")

    def item(self, key: str) -> Item:
        for item in self.items:
            if item.id == key and item.status == "active":
                return item
        raise ToolError(f"There is no task with id {key}.")

    def of(self, project: Project) -> list[Item]:
        """Active tasks of `project`, in order."""
        return [item for item in self.items if item.project_id == project.id and item.status == "active"]

    def with_item(self, item: Item) -> "Board":
        return dataclasses.replace(self, items=tuple(item if i.id == item.id else i for i in self.items))


def board(projects: Sequence[Mapping[str, Any]], date: str, location: str, seed: str) -> Board:
    """A board from nested records as in AgentBoard's `todo_projects.json`; `seed` decides the ids."""
    random = Random(seed)
    ids = iter(random.sample(range(10**9, 10**10), 64))
    made: list[Project] = []
    items: list[Item] = []
    for order, record in enumerate(projects, 1):
        made.append(Project(str(next(ids)), order, record["name"], bool(record.get("is_favorite"))))
        for place, task in enumerate(record["tasks"], 1):
            scale = 60 * 24 if task.get("duration_unit") == "day" else 1
            items.append(
                Item(
                    str(next(ids)),
                    made[-1].id,
                    place,
                    task["content"],
                    task["description"],
                    task["due_date"],
                    int(task["duration"]) * scale,
                    int(task["priority"]),
                )
            )
    return Board(date, location, tuple(made), tuple(items))


def _date(text: str) -> str:
    try:
        return datetime.date.fromisoformat(text).isoformat()
    except ValueError:
        raise ToolError(f"{text} is no date; write it as YYYY-MM-DD.") from None


# (board, arguments) to (board afterwards, result)
Answer = tuple[Board, Any]


def _update_project(b: Board, a: Mapping[str, Any]) -> Answer:
    project = dataclasses.replace(b.project(a["project_id"]), is_favorite=a["is_favorite"])
    after = dataclasses.replace(b, projects=tuple(project if p.id == project.id else p for p in b.projects))
    return after, {"message": "Project updated.", "project": project.shown()}


def _get_tasks(b: Board, a: Mapping[str, Any]) -> Answer:
    return b, [item.shown() for item in b.of(b.project(a["project_id"]))]


def _description(b: Board, a: Mapping[str, Any]) -> Answer:
    item = b.item(a["task_id"])
    return b, {"id": item.id, "content": item.content, "description": item.description}


def _duration(b: Board, a: Mapping[str, Any]) -> Answer:
    item = b.item(a["task_id"])
    return b, {"id": item.id, "content": item.content, "duration": f"{item.minutes}(minute)"}


def _update_task(b: Board, a: Mapping[str, Any]) -> Answer:
    item = dataclasses.replace(b.item(a["task_id"]), due_date=_date(a["due_date"]))
    return b.with_item(item), {"message": "Task updated.", "task": item.shown()}


def _end_task(status: str) -> Callable[[Board, Mapping[str, Any]], Answer]:
    def end(b: Board, a: Mapping[str, Any]) -> Answer:
        item = dataclasses.replace(b.item(a["task_id"]), status=status)
        return b.with_item(item), {"message": f"Task {status}.", "task": item.shown()}

    return end


ACTIONS: dict[str, tuple[Tool, Callable[[Board, Mapping[str, Any]], Answer]]] = {
    tool.name: (tool, action)
    for tool, action in [
        (Tool("get_user_current_date", {}, "today's date."), lambda b, a: (b, b.date)),
        (Tool("get_user_current_location", {}, "where the user is."), lambda b, a: (b, b.location)),
        (Tool("get_projects", {}, "all projects."), lambda b, a: (b, [p.shown() for p in b.projects])),
        (
            Tool("update_project", {"project_id": "string", "is_favorite": "boolean"}, "makes it a favourite, or not."),
            _update_project,
        ),
        (Tool("get_tasks", {"project_id": "string"}, "open tasks of a project; priority 4 is urgent."), _get_tasks),
        (Tool("get_task_description", {"task_id": "string"}, "place, tips and other notes."), _description),
        (Tool("get_task_duration", {"task_id": "string"}, "expected duration, as number(unit)."), _duration),
        (Tool("complete_task", {"task_id": "string"}, "marks a task as completed."), _end_task("completed")),
        (Tool("update_task", {"task_id": "string", "due_date": "string"}, "sets a new due date."), _update_task),
        (Tool("delete_task", {"task_id": "string"}, "deletes a task."), _end_task("deleted")),
    ]
}
FINISHING = (
    Tool(FINISH, {"answer": "any?"}, "ends the episode, with the answer if the goal asks for one."),
    Tool(CHECK, {}, "names the tools."),
)


def changes(before: Board, after: Board) -> dict[tuple[str, str], JSON]:
    """(id, field) to new value for every field that differs between two boards with the same ids."""
    found: dict[tuple[str, str], JSON] = {}
    for p, q in zip(before.projects, after.projects, strict=True):
        if p.is_favorite != q.is_favorite:
            found[p.id, "is_favorite"] = q.is_favorite
    for i, j in zip(before.items, after.items, strict=True):
        if j.status != i.status:
            found[i.id, "status"] = j.status
        elif j.due_date != i.due_date:
            found[i.id, "due_date"] = j.due_date
    return found


def official_changes(before: Board, gold: Mapping[str, Any]) -> dict[tuple[str, str], JSON]:
    """The changes that lead from `before` to an official final state; a task missing there has the status `gone`."""
    wanted: dict[tuple[str, str], JSON] = {}
    for p, q in zip(before.projects, gold["projects"], strict=True):
        if p.is_favorite != q["is_favorite"]:
            wanted[p.id, "is_favorite"] = q["is_favorite"]
    left = {task["content"]: task for task in gold["tasks"]}
    for item in before.items:
        if item.content not in left:
            wanted[item.id, "status"] = "gone"
        elif left[item.content]["due_date"] != item.due_date:
            wanted[item.id, "due_date"] = left[item.content]["due_date"]
    return wanted


def worth(
    made: Mapping[tuple[str, str], JSON],
    wanted: Mapping[tuple[str, str], JSON],
    expected: JSON,
    finished: bool,
    answer: JSON,
) -> float:
    """Reward of a board: wanted changes that were made, and the right answer if one is expected, over all of these plus
    the changes nobody wanted. In [0, 1]; 1 exactly when everything is as it should be.

    Args:
      made, wanted: as from `changes`.
      expected: the answer to finish with; None if the goal asks for none.
      finished, answer: whether and with what the episode was finished.
    """
    hits = sum(
        key in made and (made[key] == value or (value == "gone" and made[key] in ("completed", "deleted")))
        for key, value in wanted.items()
    )
    total = len(wanted) + sum(key not in wanted for key in made)
    if expected is not None or not wanted:
        total += 1
        hits += finished and (expected is None or same_answer(answer, expected))
    return hits / total
