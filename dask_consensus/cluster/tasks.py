"""What a Dask task is made of: a call, a value sent once, a result brought here.

Work on shards is laid out by :mod:`.mapreduce`. Tasks that read and shuffle rows are pure, and made
where the rows are: `frame/survey.py` and `frame/shuffle.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import dask
from dask.callbacks import Callback
from dask.delayed import Delayed, delayed
from distributed import as_completed

from .client import current_client
from .journal import Asked, recalled
from .stopping import stopped_by_errors
from .used import count
from .waiting import watched


def call(function: Callable[..., Any], *arguments: Any) -> Delayed:
    """Make one task of a function call; arguments may be tasks."""
    task = delayed(function, pure=False, traverse=False)(*arguments)
    return Asked.of(task, "call", function, list(arguments))


def broadcast(value: Any) -> Delayed:
    """Make a value one task of its own, so that it travels to a worker once."""
    return Asked.of(delayed(value, traverse=False), "value", value)


def persist_tasks(tasks: Sequence[Delayed]) -> list[Delayed]:
    """Compute each task and keep its result where it is: on the cluster, or here without one."""
    count(tasks)
    return list(dask.persist(*tasks))


def compute(
    tasks: Sequence[Delayed],
    tell: Callable[[Sequence[Any]], None] = lambda _: None,
    *,
    recorded: bool = True,
) -> list[Any]:
    """Bring the results of tasks, or of collections, to the client; `tell` of each one's end.

    A fit that keeps a journal reads there what was answered before, unless it is not `recorded`.
    """
    if not recorded:
        return _compute(tasks, tell)
    results: list[Any] = recalled("", tasks, lambda: _compute(tasks, tell))
    return results


def _compute(tasks: Sequence[Delayed], tell: Callable[[Sequence[Any]], None]) -> list[Any]:
    count(tasks)
    client = current_client()
    if client is None:
        keys = {getattr(task, "key", None) for task in tasks}

        def done(key: Any, *_: Any) -> None:
            if key in keys:
                tell([key])

        with Callback(posttask=done), stopped_by_errors():
            return list(dask.compute(*tasks))
    futures = client.compute(list(tasks))
    with watched(client, futures, tasks):
        # What is gathered, and interrupted, complains of it later.
        for future in as_completed(futures):
            if future.status != "finished":
                future.result()  # raises
            tell([future.key])
        return list(client.gather(futures))


def tree(parts: list[Any], combine: Callable[[list[Any]], Any], split_every: int) -> Any:
    """Reduce parts by `combine` on up to `split_every` neighbours at a time, level by level."""
    while len(parts) > 1:
        parts = [combine(parts[i : i + split_every]) for i in range(0, len(parts), split_every)]
    return parts[0]
