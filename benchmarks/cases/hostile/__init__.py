"""Models built to break the verdict, their rows drawn anew with every seed."""

from __future__ import annotations

from . import effects, groups, modes, responses, shared, spreads  # noqa: F401  register their trials
from .trial import TRIALS, Trial

__all__ = ["TRIALS", "Trial"]
