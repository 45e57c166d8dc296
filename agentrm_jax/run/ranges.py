"""What a value of a config may be: each range says in words what it allows, and whether a value is allowed."""

import dataclasses
import datetime
import itertools
import math
from collections.abc import Sequence
from typing import Any, Protocol


class Range(Protocol):
    """Which values a key may have."""

    def words(self) -> str:
        """What is allowed, to be read after "must be"."""
        ...

    def allows(self, value: Any) -> bool: ...


@dataclasses.dataclass(frozen=True)
class Number:
    """A finite number of [low, high], or of its inside where `above` or `below` say that an end is excluded.

    Attributes:
      whole: whole numbers only.
      also: further numbers that are allowed.
    """

    low: float = -math.inf
    high: float = math.inf
    whole: bool = False
    above: bool = False
    below: bool = False
    also: tuple[float, ...] = ()

    def words(self) -> str:
        bounds = []
        if self.low > -math.inf:
            bounds.append(f"above {self.low:g}" if self.above else f"at least {self.low:g}")
        if self.high < math.inf:
            high = f"{int(self.high):,}" if self.whole else f"{self.high:g}"
            bounds.append(f"below {high}" if self.below else f"at most {high}")
        kind = "a whole number" if self.whole else "a number"
        return " ".join([kind, " and ".join(bounds), *(f"or {n:g}" for n in self.also)]).replace("  ", " ").strip()

    def allows(self, value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, int if self.whole else int | float):
            return False
        if value in self.also:
            return True
        if not math.isfinite(value):
            return False
        return (self.low < value if self.above else self.low <= value) and (
            value < self.high if self.below else value <= self.high
        )


@dataclasses.dataclass(frozen=True)
class Sizes:
    """One or several whole numbers above 0, ascending."""

    def words(self) -> str:
        return "whole numbers above 0, each greater than the one before, such as 4,16"

    def allows(self, value: Any) -> bool:
        if not isinstance(value, tuple | list) or not value:
            return False
        if any(isinstance(v, bool) or not isinstance(v, int) or v < 1 for v in value):
            return False
        return all(a < b for a, b in itertools.pairwise(value))


@dataclasses.dataclass(frozen=True)
class Choice:
    """One of a few words; it may be empty where `optional` is set."""

    options: tuple[str, ...]
    optional: bool = False

    def words(self) -> str:
        options = (*self.options, "empty") if self.optional else self.options
        return " or ".join([", ".join(options[:-1]), options[-1]] if options[1:] else options)

    def allows(self, value: Any) -> bool:
        return isinstance(value, str) and (value in self.options or (self.optional and not value))


@dataclasses.dataclass(frozen=True)
class Names:
    """One or several different words, of a few if `options` are given."""

    options: tuple[str, ...] = ()

    def words(self) -> str:
        return f"some of {', '.join(self.options)}" if self.options else "one or several different names"

    def allows(self, value: Any) -> bool:
        if not isinstance(value, tuple | list) or not value or not all(isinstance(v, str) and v for v in value):
            return False
        return len(set(value)) == len(value) and (not self.options or set(value) <= set(self.options))


@dataclasses.dataclass(frozen=True)
class Text:
    """A text; it may be empty where `optional` is set."""

    what: str = "a text"
    optional: bool = False

    def words(self) -> str:
        return f"{self.what}, or empty" if self.optional else self.what

    def allows(self, value: Any) -> bool:
        return isinstance(value, str) and (self.optional or bool(value.strip())) and "\0" not in value


@dataclasses.dataclass(frozen=True)
class Date:
    """A day; it may be empty where `optional` is set."""

    optional: bool = False

    def words(self) -> str:
        return "a day like 2026-01-31" + (", or empty" if self.optional else "")

    def allows(self, value: Any) -> bool:
        try:
            return isinstance(value, str) and (
                (self.optional and not value) or bool(datetime.date.fromisoformat(value))
            )
        except ValueError:
            return False


@dataclasses.dataclass(frozen=True)
class Flag:
    """Yes or no."""

    def words(self) -> str:
        return "true or false"

    def allows(self, value: Any) -> bool:
        return isinstance(value, bool)


@dataclasses.dataclass(frozen=True)
class Free:
    """Whatever the part of the program that reads it takes; numbers must be finite."""

    def words(self) -> str:
        return "what the environment takes, numbers finite"

    def allows(self, value: Any) -> bool:
        if isinstance(value, float):
            return math.isfinite(value)
        if isinstance(value, dict):
            return all(map(self.allows, value.values()))
        if isinstance(value, Sequence) and not isinstance(value, str):
            return all(map(self.allows, value))
        return True


DTYPES = Choice(("float32", "bfloat16"))
COUNT, SOME = Number(1, whole=True), Number(0, whole=True)  # at least one; none or some
SEED = Number(0, 2**31 - 1, whole=True)
POSITIVE, NOT_NEGATIVE = Number(0, above=True), Number(0)
AXIS = Number(1, whole=True, also=(-1,))
