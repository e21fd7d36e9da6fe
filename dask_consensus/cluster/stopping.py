"""Ends what runs on threads and workers once nobody waits for it: after an error, after Ctrl-C."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from dask.utils import funcname
from distributed import get_worker

from ..wanted import forget_all, while_wanted


@contextlib.contextmanager
def stopped_by_errors() -> Iterator[None]:
    """Have what runs on threads of this process stop, if there is an error within."""
    try:
        yield
    except BaseException:
        forget_all()
        raise


def stoppable(function: Callable[..., Any]) -> Callable[..., Any]:
    """Make a function that stops where it checks, once nobody waits for its task."""
    return _Stoppable(function)


class _Stoppable:
    """Runs a function; tasks are named after it."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.__name__ = function, funcname(function)

    def __call__(self, *arguments: Any) -> Any:
        """Run the function; runs on a worker."""
        with while_wanted(_asking()):
            return self.function(*arguments)


def _asking() -> Callable[[], bool] | None:
    """Ask the worker of this task whether it was cancelled; None where there is no worker."""
    try:
        worker = get_worker()
        key = worker.get_current_task()
    except (ValueError, AttributeError):
        return None

    def wanted() -> bool:
        task = worker.state.tasks.get(key)
        return task is not None and task.state != "cancelled"

    return wanted
