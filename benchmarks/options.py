"""What the command line says about comparisons with other programs."""

import dataclasses
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True)
class SystemOptions:
    """Which work, which systems, how often.

    Attributes:
      workload: from `workloads.json`.
      repeats: repetitions of a case; None for the workload's.
      case_seconds: a third and further repetitions must end within this time.
      systems: names (or beginnings of names) of peers; empty for all.
      cases: beginnings of the names of cases; empty for all.
      done: names of cases that are not to be measured again.
      models, logs: folders for weights in other formats, and for what peers print.
    """

    workload: dict[str, Any]
    repeats: int | None = None
    case_seconds: float = 45.0
    systems: tuple[str, ...] = ()
    cases: tuple[str, ...] = ()
    done: frozenset[str] = frozenset()
    models: Path = Path("runs/benchmarks/smollm2")
    logs: Path = Path("runs/benchmarks/logs")

    def wants(self, case: str) -> bool:
        """Whether a case is to be measured."""
        return case not in self.done and (not self.cases or case.startswith(self.cases))

    def wants_system(self, name: str) -> bool:
        """Whether a peer is to be compared with."""
        return not self.systems or name.lower().startswith(tuple(s.lower() for s in self.systems))
