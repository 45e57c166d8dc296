"""Generated to-do lists, requests about them, and the calls that answer them, all from one seed."""

import dataclasses
import datetime
import functools
from collections.abc import Callable, Mapping
from random import Random
from typing import NamedTuple

from agentrm_jax.envs.tool.calls import FINISH, render_call
from agentrm_jax.envs.tool.todo import Board, Item, Project, board, changes
from agentrm_jax.types import JSON

Plan = list[tuple[str, str]]  # (thought, command)

_PROJECTS: dict[str, list[str]] = {
    "Garden Renewal": ["Prune the apple tree", "Order seed potatoes", "Repair the greenhouse door", "Turn the compost"],
    "Kitchen Refit": ["Measure the worktop", "Choose the tiles", "Book the electrician", "Paint the ceiling"],
    "Marathon Training": ["Run fifteen kilometres", "Buy new running shoes", "Stretch and rest", "Plan the long run"],
    "Night School": ["Finish the algebra sheet", "Read the poem aloud", "Draft the essay", "Revise irregular verbs"],
    "Charity Concert": ["Rent the hall", "Print the posters", "Call the string quartet", "Sell tickets at the market"],
    "House Move": ["Pack the bookshelf", "Cancel the gas contract", "Label the boxes", "Hire a van"],
    "Thesis": ["Clean the survey data", "Write the methods chapter", "Plot the residuals", "Meet the supervisor"],
    "Bakery Launch": ["Test the sourdough", "Register the business", "Design the logo", "Compare flour suppliers"],
    "Bicycle Workshop": ["True the rear wheel", "Replace the brake pads", "Grease the chain", "Sort the spare parts"],
    "Family Visit": ["Book the train", "Buy a birthday present", "Cook the lentil stew", "Make up the guest bed"],
}
_PLACES = ["the town library", "the community hall", "home", "the workshop", "the park", "the office", "the old mill"]
_TIPS = ["begin early", "bring a friend", "take notes", "check the weather", "keep the receipt", "do not hurry"]
_CITIES = ["Lisbon", "Oslo", "Nairobi", "Toronto", "Kyoto", "Lima"]


class Request(NamedTuple):
    """A goal in words, the board it is about, the board and answer it should end with, and calls that get there."""

    goal: str
    board: Board
    wanted: dict[tuple[str, str], JSON]
    answer: JSON
    plan: Plan


def _random_board(random: Random, seed: int) -> Board:
    today = datetime.date(2024, 1, 1) + datetime.timedelta(days=random.randrange(700))
    records = []
    for name in random.sample(sorted(_PROJECTS), random.randint(3, 5)):
        tasks = [
            {
                "content": content,
                "description": f"- Place: {random.choice(_PLACES)}\n- Tip: {random.choice(_TIPS)}",
                "due_date": (today + datetime.timedelta(days=random.randint(-4, 14))).isoformat(),
                "duration": random.choice([15, 20, 30, 45, 60, 75, 90, 120, 150]),
                "priority": random.randint(1, 4),
            }
            for content in random.sample(_PROJECTS[name], random.randint(2, 4))
        ]
        records.append({"name": name, "is_favorite": random.random() < 0.2, "tasks": tasks})
    return board(records, today.isoformat(), random.choice(_CITIES), f"todo/{seed}")


def _look(project: Project) -> tuple[str, str]:
    return f"Let me see the tasks of {project.name}.", render_call("get_tasks", project_id=project.id)


def _projects() -> tuple[str, str]:
    return "First I need the projects and their ids.", render_call("get_projects")


def _today() -> tuple[str, str]:
    return "I need to know what day it is.", render_call("get_user_current_date")


def _survey(b: Board, until: Project | None = None) -> Plan:
    """Look at one project after another, up to `until`."""
    plan = [_projects()]
    for project in b.projects:
        plan.append(_look(project))
        if project is until:
            break
    return plan


def _edits(before: Board, after: Board) -> Plan:
    """One call for every field that differs."""
    plan: Plan = []
    names = {i.id: i.content for i in before.items} | {p.id: p.name for p in before.projects}
    for (key, field), value in changes(before, after).items():
        if field == "is_favorite":
            plan.append(
                (f"Now I change {names[key]}.", render_call("update_project", project_id=key, is_favorite=value))
            )
        elif field == "due_date":
            plan.append((f"I set {names[key]} to {value}.", render_call("update_task", task_id=key, due_date=value)))
        else:
            tool = "complete_task" if value == "completed" else "delete_task"
            plan.append((f"{names[key]} is to be {value}.", render_call(tool, task_id=key)))
    return plan


def _finish(answer: JSON) -> tuple[str, str]:
    if answer is None:
        return "Everything is done.", render_call(FINISH, answer="done")
    return f"The answer is {answer}.", render_call(FINISH, answer=answer)


def _shift(day: str, days: int) -> str:
    return (datetime.date.fromisoformat(day) + datetime.timedelta(days=days)).isoformat()


def _changed(b: Board, items: list[Item], **fields: str) -> Board:
    for item in items:
        b = b.with_item(dataclasses.replace(item, **fields))  # type: ignore[arg-type]
    return b


def hindsight(b: Board, wanted: Mapping[tuple[str, str], JSON], answer: JSON) -> Plan:
    """Calls for a request of which only the outcome is known: look at everything, make the changes, answer."""
    after = b
    for (key, field), value in wanted.items():
        if field == "is_favorite":
            new = dataclasses.replace(after.project(key), is_favorite=bool(value))
            after = dataclasses.replace(after, projects=tuple(new if p.id == key else p for p in after.projects))
        else:
            status = "completed" if value == "gone" else value
            after = _changed(after, [after.item(key)], **{field: str(status)})
    return [*_survey(b), *_edits(b, after), _finish(answer)]


def _field_question(random: Random, b: Board) -> Request:
    project = random.choice(b.projects)
    item = random.choice(b.of(project))
    field = random.choice(["due date", "priority", "duration", "place", "project"])
    plan = _survey(b, project)
    answer: JSON
    where = f'the task "{item.content}"' + (f' in "{project.name}"' if random.random() < 0.5 else "")
    if field == "due date":
        goal, answer = f"When is {where} due? Answer as YYYY-MM-DD.", item.due_date
    elif field == "priority":
        goal, answer = f"What priority does {where} have? Answer with a number.", item.priority
    elif field == "duration":
        goal, answer = f"How long should {where} take? Answer as number(unit).", f"{item.minutes}(minute)"
        plan.append(("The duration is asked for.", render_call("get_task_duration", task_id=item.id)))
    elif field == "place":
        goal = f"Where is {where} to be done? Answer with the place as it is written in its description."
        answer = item.description.split("\n")[0].removeprefix("- Place: ")
        plan.append(("The place is in the description.", render_call("get_task_description", task_id=item.id)))
    else:
        goal, answer = f'Which project holds the task "{item.content}"? Answer with its name.', project.name
    return Request(goal, b, {}, answer, [*plan, _finish(answer)])


def _count_question(random: Random, b: Board) -> Request:
    kind = random.choice(["overdue", "priority", "before", "minutes", "most"])
    if kind == "overdue":
        answer: JSON = sum(i.due_date < b.date for i in b.items)
        goal = "How many tasks are overdue today, over all projects? A task due today is not. Answer with a number."
        return Request(goal, b, {}, answer, [_today(), *_survey(b), _finish(answer)])
    if kind == "priority":
        level = random.randint(1, 4)
        answer = sum(i.priority == level for i in b.items)
        goal = f"How many tasks have priority {level}, over all projects? Answer with a number."
        return Request(goal, b, {}, answer, [*_survey(b), _finish(answer)])
    if kind == "most":
        answer = max(b.projects, key=lambda p: len(b.of(p))).name
        if sum(len(b.of(p)) == max(len(b.of(q)) for q in b.projects) for p in b.projects) > 1:
            return _field_question(random, b)  # a tie has no single answer
        return Request("Which project has the most tasks?", b, {}, answer, [*_survey(b), _finish(answer)])
    project = random.choice(b.projects)
    plan = [_projects(), _look(project)]
    if kind == "before":
        day = _shift(b.date, random.randint(2, 9))
        answer = [i.content for i in b.of(project) if i.due_date < day]
        goal = f'Which tasks of "{project.name}" are due before {day}? Answer with a list of their names.'
        return Request(goal, b, {}, answer, [*plan, _finish(answer)])
    answer = sum(i.minutes for i in b.of(project))
    goal = f'How many minutes do all tasks of "{project.name}" take together? Answer with a number.'
    looks = [(f"How long is {i.content}?", render_call("get_task_duration", task_id=i.id)) for i in b.of(project)]
    return Request(goal, b, {}, answer, [*plan, *looks, _finish(answer)])


def _single_edit(random: Random, b: Board) -> Request:
    project = random.choice(b.projects)
    item = random.choice(b.of(project))
    kind = random.choice(["complete", "delete", "move", "postpone", "favourite"])
    if kind == "complete":
        goal, after = (
            f'I have done "{item.content}"; please mark it as completed.',
            _changed(b, [item], status="completed"),
        )
    elif kind == "delete":
        goal, after = f'Please delete the task "{item.content}".', _changed(b, [item], status="deleted")
    elif kind == "move":
        day = _shift(item.due_date, random.choice([-2, -1, 3, 5, 10]))
        goal, after = f'Please set the due date of "{item.content}" to {day}.', _changed(b, [item], due_date=day)
    elif kind == "postpone":
        days = random.randint(2, 7)
        goal = f'Please move the due date of "{item.content}" {days} days later.'
        after = _changed(b, [item], due_date=_shift(item.due_date, days))
    else:
        project = random.choice([p for p in b.projects if not p.is_favorite] or list(b.projects))
        flag = not project.is_favorite
        item = random.choice(b.of(project))
        verb = "Make" if flag else "Do not keep"
        goal = f'{verb} the project that holds "{item.content}" {"a" if flag else "as a"} favourite, please.'
        new = dataclasses.replace(project, is_favorite=flag)
        after = dataclasses.replace(b, projects=tuple(new if p.id == project.id else p for p in b.projects))
    return Request(goal, b, changes(b, after), None, [*_survey(b, project), *_edits(b, after), _finish(None)])


def _batch_edit(random: Random, b: Board) -> Request:
    project = random.choice(b.projects)
    kind = random.choice(["overdue", "priority", "shift"])
    if kind == "overdue":
        late = [i for i in b.items if i.due_date < b.date]
        if random.random() < 0.5:
            goal, after = "Please delete every overdue task, in all projects.", _changed(b, late, status="deleted")
        else:
            goal = "Please move every overdue task, in all projects, to tomorrow."
            after = _changed(b, late, due_date=_shift(b.date, 1))
        goal += " A task due today is not overdue."
        plan: Plan = [_today(), *_survey(b)]
    elif kind == "priority":
        level = random.choice([i.priority for i in b.of(project)])
        chosen = [i for i in b.of(project) if i.priority == level]
        goal = f'Please mark all tasks of "{project.name}" with priority {level} as completed.'
        after, plan = _changed(b, chosen, status="completed"), [_projects(), _look(project)]
    else:
        days = random.choice([-1, 1, 2, 7])
        goal = f'Please move all tasks of "{project.name}" {abs(days)} day(s) {"later" if days > 0 else "earlier"}.'
        after, plan = b, [_projects(), _look(project)]
        for item in b.of(project):
            after = _changed(after, [item], due_date=_shift(item.due_date, days))
    if not changes(b, after):
        return _single_edit(random, b)
    answer: JSON = None
    if random.random() < 0.4:
        goal += f' Then tell me how many open tasks "{project.name}" has left. Answer with a number.'
        answer = len(after.of(project))
    plan = [*plan, *_edits(b, after)]
    if answer is not None:
        plan.append(_look(project))
    return Request(goal, b, changes(b, after), answer, [*plan, _finish(answer)])


_KINDS: tuple[Callable[[Random, Board], Request], ...] = (_field_question, _count_question, _single_edit, _batch_edit)


@functools.lru_cache(maxsize=64)
def request(seed: int) -> Request:
    """The request of that seed; its plan has at most 30 calls."""
    for attempt in range(100):
        random = Random(f"todo/{seed}/{attempt}")
        made = random.choice(_KINDS)(random, _random_board(random, seed))
        if len(made.plan) <= 30:
            return made
    raise AssertionError("every list fits well within 30 calls")
