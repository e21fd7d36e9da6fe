"""Models built to break the verdict, their rows drawn anew with every seed."""

from __future__ import annotations

from . import (  # noqa: F401  register their trials
    effects,
    groups,
    images,
    levels,
    modes,
    rare,
    responses,
    shared,
    spreads,
    tails,
)
from .trial import TRIALS, Trial

__all__ = ["TRIALS", "Trial"]
