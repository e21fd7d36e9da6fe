"""Whether what a thread computes is still wanted; asked between two pieces of long work.

A thread cannot be ended from outside. After Ctrl-C one that samples a large shard would go on for
minutes: it keeps a worker from other work, and a process from its end.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

_HERE = threading.local()
_FORGOTTEN = [0]  # times that what ran in this process was forgotten


class UnwantedError(RuntimeError):
    """What was computed is not wanted any more."""


@contextlib.contextmanager
def while_wanted(ask: Callable[[], bool] | None = None) -> Iterator[None]:
    """Have `check_wanted` ask, in this thread, until the end; by default, of :func:`forget_all`."""
    before, begun = getattr(_HERE, "ask", None), _FORGOTTEN[0]
    _HERE.ask = ask or (lambda: _FORGOTTEN[0] == begun)
    try:
        yield
    finally:
        _HERE.ask = before


def forget_all() -> None:
    """Say that nothing that runs in this process by now is wanted."""
    _FORGOTTEN[0] += 1


def check_wanted() -> None:
    """Stop here if what this thread computes is not wanted any more.

    Raises
    ------
    UnwantedError
    """
    ask = getattr(_HERE, "ask", None)
    if ask is not None and not ask():
        raise UnwantedError("the fit that asked for this was interrupted, or has failed")
