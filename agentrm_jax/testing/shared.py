"""Official files that tests compare with: they are no part of the repository, and tests that need them are skipped without."""

import os
from pathlib import Path
from typing import Any

VARIABLE = "AGENTRM_SHARED"


def shared_data() -> Path:
    """The folder of official data that the environment variable AGENTRM_SHARED names; `../shared/data` beside the repository otherwise."""
    named = os.environ.get(VARIABLE)
    return Path(named).expanduser().resolve() if named else Path(__file__).resolve().parents[3] / "shared" / "data"


def needs_shared(*names: str) -> Any:
    """A mark for tests that need these files or folders below `shared_data()`, as paths relative to it."""
    import pytest

    missing = [name for name in names if not (shared_data() / name).exists()]
    reason = (
        f"{shared_data() / missing[0]} is missing; set {VARIABLE} to the folder of official data" if missing else ""
    )
    return pytest.mark.skipif(bool(missing), reason=reason)
