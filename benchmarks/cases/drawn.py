"""Models and data drawn at random."""

from __future__ import annotations

from .hostile import Trial


def drawn_trial(number: int) -> Trial:
    raise NotImplementedError
