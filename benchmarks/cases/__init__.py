"""What is fitted: models, rows, and references to hold the fits against."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from . import failing, sound  # noqa: F401  register their cases
from .case import CASES, Case, DataAbsent, Problem

__all__ = ["CASES", "REFERENCES", "Case", "DataAbsent", "Problem", "read_reference"]

REFERENCES = Path(__file__).parents[1] / "references"


def read_reference(case: str, folder: Path = REFERENCES) -> dict[str, Any] | None:
    """Posterior of all rows of a case, as ``reference.py`` wrote it; None where there is none."""
    path = folder / f"{case}.json"
    return json.loads(path.read_text()) if path.is_file() else None
