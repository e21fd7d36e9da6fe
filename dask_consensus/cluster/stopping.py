"""Ends what runs on threads and workers once nobody waits for it: after an error, after Ctrl-C."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from dask.utils import funcname
from distributed import get_worker

from ..wanted import forget, forgotten, while_wanted
from .client import current_work, new_scope


@contextlib.contextmanager
def stopped_by_errors() -> Iterator[None]:
    """Have what this fit runs on threads of this process stop, if there is an error within."""
    work = current_work()
    try:
        yield
    except BaseException:
        forget(work.scope)
        # The fit may go on without what has failed.
        work.scope = new_scope()
        raise


def stoppable(function: Callable[..., Any]) -> Callable[..., Any]:
    """Make a function that stops where it checks, once this fit does not wait for its task."""
    return _Stoppable(function, current_work().scope)


class _Stoppable:
    """Runs a function; tasks are named after it."""

    def __init__(self, function: Callable[..., Any], scope: str) -> None:
        self.function, self.scope, self.__name__ = function, scope, funcname(function)

    def __call__(self, *arguments: Any) -> Any:
        """Run the function; runs on a worker."""
        with while_wanted(_on_worker() or (lambda: not forgotten(self.scope))):
            return self.function(*arguments)


def _on_worker() -> Callable[[], bool] | None:
    """Return what asks this task's worker whether it was cancelled; None where there is none."""
    try:
        worker = get_worker()
        key = worker.get_current_task()
    except (ValueError, AttributeError):
        return None

    def wanted() -> bool:
        task = worker.state.tasks.get(key)
        return task is not None and task.state != "cancelled"

    return wanted
