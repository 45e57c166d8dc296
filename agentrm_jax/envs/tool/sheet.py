"""A spreadsheet in memory with the tools of AgentBoard's sheet tasks; sheets are immutable, so a fork is a reference.

Behaviour follows a Google sheet where the tasks depend on it: values are typed, a cell shows its value through its number
format, sorting puts numbers before text and blank cells last, frozen rows stay in place, and a merged range shows its first
cell everywhere.
"""

import dataclasses
import math
import re
import re._parser as sre_parse
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from agentrm_jax.envs.tool.calls import Tool, ToolError

Value = str | float | int | bool | None
Cell = tuple[Value, str]  # value and number format
BLANK: Cell = (None, "General")
OPERATORS: Mapping[str, Callable[[list[float]], float]] = {
    "SUM": sum,
    "AVERAGE": lambda xs: sum(xs) / len(xs),
    "COUNT": len,
    "MAX": max,
    "MIN": min,
    "MINUS": lambda xs: xs[0] - xs[1],
    "PRODUCT": math.prod,
}
_LARGEST = 1e100  # of a number in a cell
_MAX_REPEATS, _SEARCHED = 14, 200  # of a pattern (see `_repeats`), and characters of a cell that it is looked for in
_ADDRESS = re.compile(r"([A-Za-z]{1,3})([1-9]\d{0,5})")
_MAX_CELLS = 100_000


@dataclasses.dataclass(frozen=True, slots=True)
class Sheet:
    """One table. Rows may differ in length; what is not stored is blank. Row and column numbers begin at 1.

    Attributes:
      rows: cells.
      merged: ranges as (first row, first column, last row, last column).
      notes: address to text.
      frozen: rows at the top that sorting leaves alone.
    """

    rows: tuple[tuple[Cell, ...], ...]
    merged: tuple[tuple[int, int, int, int], ...] = ()
    notes: tuple[tuple[str, str], ...] = ()
    frozen: int = 0

    def cell(self, row: int, column: int) -> Cell:
        """The stored cell; a merged range answers with its first one."""
        for r1, c1, r2, c2 in self.merged:
            if r1 <= row <= r2 and c1 <= column <= c2:
                row, column = r1, c1
        if row <= len(self.rows) and column <= len(self.rows[row - 1]):
            return self.rows[row - 1][column - 1]
        return BLANK

    def size(self) -> tuple[int, int]:
        """(rows, columns) up to the last cell that is not blank."""
        filled = [
            (r, c) for r, row in enumerate(self.rows, 1) for c, cell in enumerate(row, 1) if cell[0] not in (None, "")
        ]
        return max((r for r, _ in filled), default=0), max((c for _, c in filled), default=0)

    def values(self, area: tuple[int, int, int, int] | None = None) -> list[list[str]]:
        """What the cells show: all up to the last filled one, or those of `area`."""
        r1, c1, r2, c2 = area or (1, 1, *self.size())
        return [[display(*self.cell(r, c)) for c in range(c1, c2 + 1)] for r in range(r1, r2 + 1)]

    def put(self, row: int, column: int, values: list[list[Value]]) -> "Sheet":
        """A copy with values changed from one cell on; cells keep their number formats. Raises ToolError if it grows too large."""
        rows = [list(r) for r in self.rows]
        rows += [[] for _ in range(row - 1 + len(values) - len(rows))]
        for r, line in enumerate(values, row - 1):
            rows[r] += [BLANK] * (column - 1 + len(line) - len(rows[r]))
            for c, value in enumerate(line, column - 1):
                rows[r][c] = (value, rows[r][c][1])
        return self.with_rows(tuple(map(tuple, rows)))

    def with_rows(self, rows: tuple[tuple[Cell, ...], ...]) -> "Sheet":
        """A copy with other cells. Raises ToolError if they are too many."""
        if len(rows) * max(map(len, rows), default=0) > _MAX_CELLS:
            raise ToolError(f"The table would have more than {_MAX_CELLS} cells.")
        return dataclasses.replace(self, rows=rows)


def display(value: Value, form: str) -> str:
    """The text a cell shows."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).upper()
    if isinstance(value, str):
        return value
    match = re.search(r"0(?:\.(0+))?", form)
    if match is None:
        number = round(float(value), 10)
        return str(int(number)) if number == int(number) else repr(number)
    digits = len(match[1] or "")
    if "%" in form:
        return f"{value * 100:.{digits}f}%"
    return ("$" if "$" in form else "") + (f"{value:,.{digits}f}" if "#,##" in form else f"{value:.{digits}f}")


def address(row: int, column: int) -> str:
    """(2, 28) is `AB2`."""
    letters = ""
    while column > 0:
        column, rest = divmod(column - 1, 26)
        letters = chr(65 + rest) + letters
    return f"{letters}{row}"


def position(text: str) -> tuple[int, int]:
    """`AB2` is (2, 28). Raises ToolError for anything else."""
    match = _ADDRESS.fullmatch(text.strip())
    if match is None:
        raise ToolError(f"{text} is no cell position; write it like B2.")
    column = 0
    for letter in match[1].upper():
        column = column * 26 + ord(letter) - 64
    if int(match[2]) * column > _MAX_CELLS:
        raise ToolError(f"{text} lies outside the sheet.")
    return int(match[2]), column


def _area(first: str, last: str) -> tuple[int, int, int, int]:
    (r1, c1), (r2, c2) = position(first), position(last)
    if (abs(r2 - r1) + 1) * (abs(c2 - c1) + 1) > _MAX_CELLS:
        raise ToolError(f"A range has at most {_MAX_CELLS} cells.")
    return min(r1, r2), min(c1, c2), max(r1, r2), max(c1, c2)


def _typed(value: Any) -> Value:
    """Text that is a number becomes one."""
    if isinstance(value, str):
        try:
            number = float(value)
        except ValueError:
            return value
        return number if abs(number) <= _LARGEST else value
    if value is None or isinstance(value, int | float):
        return value
    raise ToolError("A cell holds text or a number.")


def _table(values: Any) -> list[list[Value]]:
    if not values or not all(isinstance(line, list | tuple) for line in values):
        raise ToolError("values_list must be a list of lists.")
    return [[_typed(v) for v in line] for line in values]


def _result(sheet: Sheet, a: Mapping[str, Any]) -> float:
    """The formula's value over a range or a list of positions; cells without a number do not count."""
    if a["operator"] not in OPERATORS:
        raise ToolError(f"operator must be one of {', '.join(OPERATORS)}.")
    if "position_list" in a:
        cells = [sheet.cell(*position(str(p))) for p in a["position_list"]]
    elif "start_position" in a and "end_position" in a:
        r1, c1, r2, c2 = _area(a["start_position"], a["end_position"])
        cells = [sheet.cell(r, c) for r in range(r1, r2 + 1) for c in range(c1, c2 + 1)]
    else:
        raise ToolError("Give start_position and end_position, or position_list.")
    numbers = [float(v) for v, _ in cells if isinstance(v, int | float) and not isinstance(v, bool)]
    try:
        result = OPERATORS[a["operator"]](numbers)
    except (ValueError, IndexError, ZeroDivisionError):
        raise ToolError(f"{a['operator']} needs more numbers than these cells hold.") from None
    if not abs(result) <= _LARGEST:
        raise ToolError(f"The {a['operator']} of these cells is too large for a cell.")
    return result


def _pattern(query: str) -> re.Pattern[str]:
    """A regular expression, also where it is written as the text of a Python call.

    Raises:
      ToolError: it is none, or one that could take for ever: with a repeat inside a repeat, or with many of them.
    """
    match = re.fullmatch(r"re\.compile\(r?(['\"])(.*)\1\)", query.strip(), re.S)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pattern = re.compile(match[2] if match else query)
            repeats = _repeats(sre_parse.parse(pattern.pattern), False)
    except (re.error, OverflowError, RecursionError, MemoryError) as e:
        raise ToolError(f"query is no valid pattern: {e}.") from None
    if repeats > _MAX_REPEATS:
        raise ToolError("query repeats too much; write a simpler pattern.")
    return pattern


def _repeats(parsed: Any, inside: bool) -> int:
    """How much a parsed pattern has to try: 4 for a repeat, 1 for what may be there or not, too much for one inside a repeat."""
    too_much = _MAX_REPEATS + 1
    found = 0
    for operation, argument in parsed:
        name, bodies = str(operation), []
        if name in ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"):
            low, high, body = argument
            if inside and high > 1:
                found += too_much
            elif low != high:
                found += too_much if inside else 1 if high <= 1 else 4
            found += _repeats(body, inside or high > 1)
        elif name == "BRANCH":
            found += too_much * inside
            bodies = list(argument[1])
        elif name == "GROUPREF":
            found += too_much if inside else 4
        else:
            bodies = list(argument) if isinstance(argument, tuple) else [argument]
        found += sum(_repeats(body, inside) for body in bodies if isinstance(body, sre_parse.SubPattern))
    return found


# The tools: (sheet, arguments) to (sheet afterwards, result). The result None stands for all values.
Answer = tuple[Sheet, Any]


def _insert_rows(sheet: Sheet, a: Mapping[str, Any]) -> Answer:
    at = a["row_idx"]
    if at < 1 or at > sheet.size()[0] + 1:
        raise ToolError("row_idx lies outside the table.")
    new = tuple(tuple((v, "General") for v in line) for line in _table(a["values_list"]))
    return sheet.with_rows(sheet.rows[: at - 1] + new + sheet.rows[at - 1 :]), None


def _insert_cols(sheet: Sheet, a: Mapping[str, Any]) -> Answer:
    at, new = a["col_idx"], _table(a["values_list"])
    if at < 1 or at > sheet.size()[1] + 1:
        raise ToolError("col_idx lies outside the table.")
    rows = [list(r) for r in sheet.rows]
    rows += [[] for _ in range(max(map(len, new)) - len(rows))]
    for i, row in enumerate(rows):
        row += [BLANK] * (at - 1 - len(row))
        row[at - 1 : at - 1] = [(line[i] if i < len(line) else None, "General") for line in new]
    return sheet.with_rows(tuple(map(tuple, rows))), None


def _delete(sheet: Sheet, a: Mapping[str, Any]) -> Answer:
    try:
        chosen = {int(i) for i in a["index_list"]}
    except (TypeError, ValueError, OverflowError):
        raise ToolError("index_list must hold row or column numbers.") from None
    if a["dimension"] not in ("row", "col"):
        raise ToolError("dimension must be row or col.")
    stored = (len(sheet.rows), max(map(len, sheet.rows), default=0))  # may go on with blanks behind the table
    height, width = sheet.size()
    if not chosen or min(chosen) < 1 or max(chosen) > stored[a["dimension"] == "col"]:
        raise ToolError("index_list names rows or columns that the table does not have.")
    if chosen.issuperset(range(2, height + 1) if a["dimension"] == "row" else range(1, width + 1)):
        raise ToolError("This would delete the whole table.")
    if a["dimension"] == "row":
        rows = tuple(row for i, row in enumerate(sheet.rows, 1) if i not in chosen)
    else:
        rows = tuple(tuple(cell for i, cell in enumerate(row, 1) if i not in chosen) for row in sheet.rows)
    return dataclasses.replace(sheet, rows=rows), None


def _update_range(sheet: Sheet, a: Mapping[str, Any]) -> Answer:
    values = _table(a["values_list"])
    r1, c1, r2, c2 = _area(a["start_position"], a["end_position"])
    if len(values) > r2 - r1 + 1 or max(map(len, values)) > c2 - c1 + 1:
        raise ToolError("values_list is larger than the range.")
    if (r1, c1) == (1, 1) and (r2, c2) == sheet.size():
        raise ToolError("The whole table cannot be overwritten at once.")
    return sheet.put(r1, c1, values), None


def _sort(sheet: Sheet, a: Mapping[str, Any]) -> Answer:
    column, order = a["col_num"], a["order"]
    height, width = sheet.size()
    if order not in ("asc", "des") or not 1 <= column <= width:
        raise ToolError("order must be asc or des, and col_num a column of the table.")
    head, body = sheet.rows[: sheet.frozen], sheet.rows[sheet.frozen : height]

    def value(row: tuple[Cell, ...]) -> Value:
        return row[column - 1][0] if column <= len(row) else None

    def key(row: tuple[Cell, ...]) -> tuple[int, float, str]:
        v = value(row)
        return (0, float(v), "") if isinstance(v, int | float) else (1, 0.0, str(v).casefold())

    filled = sorted((r for r in body if value(r) not in (None, "")), key=key, reverse=order == "des")
    blank = tuple(r for r in body if value(r) in (None, ""))
    return dataclasses.replace(sheet, rows=head + tuple(filled) + blank + sheet.rows[height:]), None


def _filter(sheet: Sheet, a: Mapping[str, Any]) -> Answer:
    pattern = _pattern(a["query"])
    found = [
        address(r, c)
        for r, row in enumerate(sheet.values(), 1)
        for c, text in enumerate(row, 1)
        if a.get("in_row", r) == r and a.get("in_column", c) == c and pattern.search(text[:_SEARCHED])
    ]
    return sheet, found


def _freeze(sheet: Sheet, a: Mapping[str, Any]) -> Answer:
    if a["dimension"] not in ("rows", "columns") or a["num"] < 0:
        raise ToolError("dimension must be rows or columns, and num not negative.")
    after = dataclasses.replace(sheet, frozen=a["num"]) if a["dimension"] == "rows" else sheet
    return after, f"{a['num']} {a['dimension']} frozen."


def _merge(sheet: Sheet, a: Mapping[str, Any]) -> Answer:
    return dataclasses.replace(sheet, merged=(*sheet.merged, _area(a["start_position"], a["end_position"]))), None


def _note(sheet: Sheet, a: Mapping[str, Any]) -> Answer:
    where = address(*position(a["position"]))
    notes = {**dict(sheet.notes), where: a["content"]}
    return dataclasses.replace(sheet, notes=tuple(sorted(notes.items()))), f"Note of {where}: {a['content']}"


_RANGE = {"start_position": "string?", "end_position": "string?", "position_list": "array?", "operator": "string"}
_AREA = {"start_position": "string", "end_position": "string"}

# name -> (signature, what it does)
ACTIONS: dict[str, tuple[Tool, Callable[[Sheet, Mapping[str, Any]], Answer]]] = {
    tool.name: (tool, action)
    for tool, action in [
        (Tool("get_all_values", {}, "shows the whole table."), lambda s, a: (s, None)),
        (
            Tool("get_range_values", _AREA, "shows a part of it."),
            lambda s, a: (s, s.values(_area(a["start_position"], a["end_position"]))),
        ),
        (
            Tool("get_cell_value", {"position": "string"}, "shows one cell."),
            lambda s, a: (s, display(*s.cell(*position(a["position"])))),
        ),
        (
            Tool("get_value_by_formula", _RANGE, f"computes over a range or a list of cells: {', '.join(OPERATORS)}."),
            lambda s, a: (s, display(_result(s, a), "General")),
        ),
        (
            Tool(
                "filter_cells",
                {"query": "string", "in_row": "integer?", "in_column": "integer?"},
                "positions of cells whose text matches a regular expression.",
            ),
            _filter,
        ),
        (
            Tool("get_note", {"position": "string"}, "shows the note on a cell."),
            lambda s, a: (s, dict(s.notes).get(address(*position(a["position"])), "")),
        ),
        (Tool("get_A1_annotation", {"row": "integer", "col": "integer"}, "name of a cell."), lambda s, a: (s, _a1(a))),
        (
            Tool("update_cell", {"position": "string", "value": "any"}, "writes one cell."),
            lambda s, a: (s.put(*position(a["position"]), [[_typed(a["value"])]]), None),
        ),
        (
            Tool("update_cell_by_formula", {**_RANGE, "result_position": "string"}, "writes a computed value."),
            lambda s, a: (s.put(*position(a["result_position"]), [[_result(s, a)]]), None),
        ),
        (Tool("update_range", {**_AREA, "values_list": "array"}, "writes rows of values into a range."), _update_range),
        (
            Tool("insert_rows", {"values_list": "array", "row_idx": "integer"}, "inserts rows before row_idx."),
            _insert_rows,
        ),
        (
            Tool("insert_cols", {"values_list": "array", "col_idx": "integer"}, "inserts columns before col_idx."),
            _insert_cols,
        ),
        (
            Tool(
                "delete_batch_data",
                {"dimension": "string", "index_list": "array"},
                "deletes rows (dimension row) or columns (col) by number.",
            ),
            _delete,
        ),
        (
            Tool("sort_sheet_by_col", {"col_num": "integer", "order": "string"}, "sorts rows, asc or des."),
            _sort,
        ),
        (
            Tool(
                "freeze_data", {"dimension": "string", "num": "integer"}, "keeps the first rows in place when sorting."
            ),
            _freeze,
        ),
        (Tool("merge_cells", _AREA, "merges a range into its first cell."), _merge),
        (Tool("update_note", {"position": "string", "content": "string"}, "writes the note on a cell."), _note),
    ]
}


def _a1(a: Mapping[str, Any]) -> str:
    if a["row"] < 1 or a["col"] < 1:
        raise ToolError("Rows and columns are counted from 1.")
    return address(a["row"], a["col"])


def match(ours: list[list[str]], gold: list[list[str]], *, whole: bool) -> float:
    """Share of equal cells, in [0, 1]: over the rectangle both have in common, or (`whole`) over the larger one.

    Equal is the same text or the same number: `1` and `1.0` differ in format only. AgentBoard compares the common
    rectangle, which a table cut down to its header satisfies; `whole` does not allow that.
    """
    pick = max if whole else min
    height = pick(len(ours), len(gold))
    width = pick(len(ours[0]) if ours else 0, len(gold[0]) if gold else 0)

    def at(table: list[list[str]], r: int, c: int) -> str | None:
        return table[r][c] if r < len(table) and c < len(table[r]) else None

    equal = sum(_same(at(ours, r, c), at(gold, r, c)) for r in range(height) for c in range(width))
    return equal / (height * width) if height * width else 0.0


def _same(a: str | None, b: str | None) -> bool:
    if a == b:
        return True
    try:
        return a is not None and b is not None and float(a.replace(",", "")) == float(b.replace(",", ""))
    except ValueError:
        return False
