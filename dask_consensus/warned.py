"""Warnings about a line of the user's, whatever lies between."""

from __future__ import annotations

import sys
import warnings
from types import FrameType


def warn(message: str) -> None:
    """Warn as from the line that called this package, however deep inside of it this is."""
    package = __name__.partition(".")[0]
    level, frame = 1, _caller()
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] == package:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, UserWarning, stacklevel=level + 1)


def _caller() -> FrameType | None:
    """Give the frame that calls :func:`warn`."""
    return sys._getframe(2)
