"""Generated tables, requests to change them, the tables that should result, and the calls that get there.

The resulting table is computed on plain lists, apart from the tools, so that tools and requests check each other.
"""

import dataclasses
import functools
from collections.abc import Callable
from random import Random
from typing import NamedTuple

from agentrm_jax.envs.tool.calls import FINISH, render_call
from agentrm_jax.envs.tool.sheet import Cell, Sheet, Value, address, display

Plan = list[tuple[str, str]]  # (thought, command)

_NAMES = ["Ada", "Bruno", "Chidi", "Dana", "Emil", "Farah", "Gita", "Hugo", "Ines", "Jonas", "Keiko", "Lars", "Mina"]
_GOODS = {
    "Fruit": ["apple", "pear", "plum", "cherry", "fig"],
    "Bakery": ["rye bread", "bagel", "scone", "pretzel"],
    "Dairy": ["butter", "yoghurt", "gouda", "cream"],
    "Drinks": ["lemonade", "oat milk", "cider", "tea"],
}
_JOBS = ["Fix login page", "Order laptops", "Write release notes", "Audit backups", "Plan offsite", "Train newcomers"]
_JOBS += [
    "Update price list",
    "Renew licences",
    "Survey customers",
    "Migrate database",
    "Design badge",
    "Clean archive",
]


@dataclasses.dataclass(frozen=True)
class Table:
    """A header, a number format for every column, rows, and what role columns play in requests."""

    header: list[str]
    formats: list[str]
    rows: list[list[Value]]
    group: int  # a column with few different values
    numbers: list[int]  # columns of numbers, all values of a column different
    subject: str

    def sheet(self, notes: dict[str, str] | None = None) -> Sheet:
        lines: list[list[Cell]] = [[(name, "General") for name in self.header]]
        lines += [list(zip(row, self.formats, strict=True)) for row in self.rows]
        return Sheet(tuple(map(tuple, lines)), notes=tuple(sorted((notes or {}).items())))

    def shown(self) -> list[list[str]]:
        return [self.header] + [[display(v, f) for v, f in zip(r, self.formats, strict=True)] for r in self.rows]

    def column(self, index: int) -> str:
        return f'"{self.header[index]}"'

    def sorted(self, index: int, order: str) -> "Table":
        rows = sorted(self.rows, key=lambda row: row[index], reverse=order == "des")  # type: ignore[arg-type,return-value]
        return dataclasses.replace(self, rows=rows)


class Request(NamedTuple):
    """A goal in words, the sheet it is about and its name, the table it should become, and calls that get there."""

    goal: str
    name: str
    sheet: Sheet
    gold: list[list[str]]
    plan: Plan


def _products(random: Random) -> Table:
    goods = random.sample([(g, kind) for kind, names in _GOODS.items() for g in names], random.randint(6, 9))
    prices = random.sample(range(40, 900), len(goods))
    stock = random.sample(range(3, 120), len(goods))
    rows: list[list[Value]] = [
        [good, kind, price / 100, float(n), f"Store {random.choice('ABC')}"]
        for (good, kind), price, n in zip(goods, prices, stock, strict=True)
    ]
    header = ["Product", "Category", "Price", "Quantity", "Location"]
    return Table(header, ["General", "General", "0.00", "General", "General"], rows, 1, [2, 3], "product")


def _grades(random: Random) -> Table:
    names = random.sample(_NAMES, random.randint(6, 8))
    marks = [random.sample(range(45, 100), len(names)) for _ in range(3)]
    rows: list[list[Value]] = [
        [name, random.choice(["red", "blue"]), *(float(m[i]) for m in marks)] for i, name in enumerate(names)
    ]
    header = ["Name", "Group", "Math", "English", "Physics"]
    return Table(header, ["General"] * 5, rows, 1, [2, 3, 4], "student")


def _jobs(random: Random) -> Table:
    jobs = random.sample(_JOBS, random.randint(6, 9))
    hours = random.sample(range(2, 60), len(jobs))
    rows: list[list[Value]] = [
        [job, random.choice(_NAMES), random.choice(["Done", "Open", "Blocked"]), float(n)]
        for job, n in zip(jobs, hours, strict=True)
    ]
    return Table(["Task", "Person", "Status", "Hours"], ["General"] * 4, rows, 2, [3], "task")


def _sorting(random: Random, table: Table, index: int) -> tuple[str, Table, Plan]:
    """(words, sorted table, calls) for sorting by column `index`."""
    order, word = random.choice([("asc", "ascending"), ("des", "descending")])
    words = f" Then sort the table by {table.column(index)} in {word} order."
    plan = [
        (
            "The header must stay on top, so I freeze the first row.",
            render_call("freeze_data", dimension="rows", num=1),
        ),
        (
            f"Column {index + 1} is {table.column(index)}; I sort by it.",
            render_call("sort_sheet_by_col", col_num=index + 1, order=order),
        ),
    ]
    return words, table.sorted(index, order), plan


def _remove(table: Table, unwanted: list[int], why: str) -> tuple[Table, Plan]:
    rows = [row for i, row in enumerate(table.rows) if i not in unwanted]
    call = render_call("delete_batch_data", dimension="row", index_list=[i + 2 for i in unwanted])
    return dataclasses.replace(table, rows=rows), [(why, call)]


_Parts = tuple[str, Sheet, Table, Plan]


def _remove_group(random: Random, table: Table) -> _Parts:
    value = random.choice(table.rows)[table.group]
    unwanted = [i for i, row in enumerate(table.rows) if row[table.group] == value]
    if len(unwanted) > len(table.rows) - 2:
        return _remove_below(random, table)
    goal = f'delete every {table.subject} whose {table.column(table.group)} is "{value}".'
    look = render_call("filter_cells", query=f"^{value}$", in_column=table.group + 1)
    after, plan = _remove(table, unwanted, f"These rows hold {value}; they have to go.")
    return goal, table.sheet(), after, [(f"I look for {value} in column {table.group + 1}.", look), *plan]


def _remove_below(random: Random, table: Table) -> _Parts:
    index = random.choice(table.numbers)
    values = sorted(float(row[index] or 0) for row in table.rows)
    limit = values[random.randint(1, len(values) - 3)]
    unwanted = [i for i, row in enumerate(table.rows) if float(row[index] or 0) < limit]
    goal = f"delete every {table.subject} whose {table.column(index)} is less than {display(limit, 'General')}."
    after, plan = _remove(table, unwanted, f"I delete the rows with too small a value of {table.column(index)}.")
    return goal, table.sheet(), after, plan


def _replacements(random: Random, table: Table) -> tuple[list[tuple[int, int, float]], Table]:
    """(row, column, new value) for a few cells, and the table with them; values of a column stay different."""
    index = random.choice(table.numbers)
    free = [n for n in range(5, 130) if float(n) not in {row[index] for row in table.rows}]
    chosen = sorted(random.sample(range(len(table.rows)), random.randint(2, 4)))
    edits = [(i, index, float(n)) for i, n in zip(chosen, random.sample(free, len(chosen)), strict=True)]
    rows = [list(row) for row in table.rows]
    for i, c, value in edits:
        rows[i][c] = value
    return edits, dataclasses.replace(table, rows=rows)


def _update(random: Random, table: Table) -> _Parts:
    edits, after = _replacements(random, table)
    news = ", ".join(f"{table.rows[i][0]}: {display(v, 'General')}" for i, _, v in edits)
    goal = f"change {table.column(edits[0][1])} to these values: {news}."
    plan = [
        (f"{table.rows[i][0]} is in row {i + 2}.", render_call("update_cell", position=address(i + 2, c + 1), value=v))
        for i, c, v in edits
    ]
    return goal, table.sheet(), after, plan


def _update_from_notes(random: Random, table: Table) -> _Parts:
    edits, after = _replacements(random, table)
    notes = {address(i + 2, 1): f"{table.header[c]}: {display(v, 'General')}" for i, c, v in edits}
    names = ", ".join(str(table.rows[i][0]) for i, _, _ in edits)
    goal = f"bring these rows up to date with the notes on their first cells: {names}."
    plan: Plan = []
    for i, c, v in edits:
        where, what = address(i + 2, 1), table.rows[i][0]
        plan.append((f"What does the note on {what} say?", render_call("get_note", position=where)))
        write = render_call("update_cell", position=address(i + 2, c + 1), value=v)
        plan.append((f"I enter it in {table.column(c)}.", write))
    return goal, table.sheet(notes), after, plan


def _append(random: Random, table: Table) -> _Parts:
    """The last one or two rows are missing at first; the request brings them."""
    missing = table.rows[-random.randint(1, 2) :]
    before = dataclasses.replace(table, rows=table.rows[: -len(missing)])
    shown = [[display(v, f) for v, f in zip(row, table.formats, strict=True)] for row in missing]
    goal = f"add these rows: {'; '.join(' | '.join(row) for row in shown)}."
    call = render_call("insert_rows", values_list=missing, row_idx=len(before.rows) + 2)
    return goal, before.sheet(), table, [("I add the new rows at the end.", call)]


def _new_column(random: Random, table: Table) -> _Parts:
    """A sum, average or product of the number columns; needs at least two of them."""
    first, last = table.numbers[0], table.numbers[-1]
    if table.subject == "product":
        title, operator, words = "Value", "PRODUCT", "the product"
        values = [round(float(row[2] or 0) * float(row[3] or 0), 10) for row in table.rows]
    else:
        title, operator, words = random.choice([("Total", "SUM", "the sum"), ("Mean", "AVERAGE", "the average")])
        values = [sum(float(row[c] or 0) for c in table.numbers) for row in table.rows]
        values = [v / len(table.numbers) for v in values] if operator == "AVERAGE" else values
    at = len(table.header)
    goal = f'add a column "{title}" behind the last one with {words} of {table.column(first)} to {table.column(last)}.'
    plan = [
        (
            f"The new column gets the title {title}.",
            render_call("update_cell", position=address(1, at + 1), value=title),
        )
    ]
    for r in range(2, len(table.rows) + 2):
        area = {"start_position": address(r, first + 1), "end_position": address(r, last + 1)}
        call = render_call("update_cell_by_formula", **area, result_position=address(r, at + 1), operator=operator)
        plan.append((f"Row {r}: {words} of its numbers.", call))
    rows: list[list[Value]] = [[*row, value] for row, value in zip(table.rows, values, strict=True)]
    header, formats = [*table.header, title], [*table.formats, "General"]
    return goal, table.sheet(), dataclasses.replace(table, header=header, formats=formats, rows=rows), plan


_EDITS: tuple[Callable[[Random, Table], _Parts], ...] = (
    _remove_group,
    _remove_below,
    _update,
    _update_from_notes,
    _append,
)


@functools.lru_cache(maxsize=64)
def request(seed: int) -> Request:
    """The request of that seed; its plan has at most 30 calls."""
    random = Random(f"sheet/{seed}")
    table = random.choice([_products, _grades, _jobs])(random)
    computed = len(table.numbers) > 1 and random.random() < 0.25
    goal, sheet, after, plan = (_new_column if computed else random.choice(_EDITS))(random, table)
    if random.random() < 0.8:
        words, after, more = _sorting(random, after, random.choice([0, *table.numbers]))
        goal, plan = goal + words, plan + more
    name = f"Sheet{random.randint(1, 40)}"
    plan = [*plan, ("The table is as it should be.", render_call(FINISH))]
    return Request(f'In "{name}", {goal}', name, sheet, after.shown(), plan)
