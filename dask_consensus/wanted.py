"""Whether what a thread computes is still wanted; asked between two pieces of long work.

A thread cannot be ended from outside. After Ctrl-C one that samples a large shard would go on for
minutes: it keeps a worker from other work, and a process from its end.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

_HERE = threading.local()
_FORGOTTEN: set[str] = set()  # scopes of work in this process that nobody waits for


class UnwantedError(RuntimeError):
    """What was computed is not wanted any more."""


@contextlib.contextmanager
def while_wanted(ask: Callable[[], bool]) -> Iterator[None]:
    """Have `check_wanted` ask, in this thread, until the end."""
    before = getattr(_HERE, "ask", None)
    _HERE.ask = ask
    try:
        yield
    finally:
        _HERE.ask = before


def forget(scope: str) -> None:
    """Say that nobody waits for the work of a scope any more, in this process."""
    _FORGOTTEN.add(scope)


def forgotten(scope: str) -> bool:
    """Tell whether that was said."""
    return scope in _FORGOTTEN


def check_wanted() -> None:
    """Stop here if what this thread computes is not wanted any more.

    Raises
    ------
    UnwantedError
    """
    ask = getattr(_HERE, "ask", None)
    if ask is not None and not ask():
        raise UnwantedError("the fit that asked for this was interrupted, or has failed")
