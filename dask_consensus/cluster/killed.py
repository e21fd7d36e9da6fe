"""A task that ends the process of each worker that tries it: on which rows, what to change."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dask._task_spec import GraphNode
from dask.core import get_dependencies
from dask.utils import format_bytes, key_split
from distributed import KilledWorker

if TYPE_CHECKING:
    from ..shard_data import Size

_NAMED = 4  # suspects that are named
_TOGETHER = 0.2  # seconds in which all of them are told to the client


class WorkersKilled(RuntimeError):
    """A task has ended the process of each worker that tried it."""


def killed_by(
    error: BaseException,
    futures: Sequence[Any],
    tasks: Sequence[Any],
    shards: Mapping[Any, tuple[int, Size | None]],
) -> WorkersKilled | None:
    """Say which rows ended the workers' processes; None where no worker was killed.

    `shards` are the tasks that make shards: key -> number, and size if that is known. Those that
    the tasks in question depend on are named: Dask suspects all that a dead worker had received.
    """
    if not isinstance(error, KilledWorker):
        return None
    what, behind = _named(_suspects(error, futures), tasks, shards)
    worker = error.last_worker
    equipped = _equipped(getattr(worker, "memory_limit", 0), getattr(worker, "nthreads", 1))
    return WorkersKilled(
        f"{what}: {error.allowed_failures + 1} workers died one after another while they worked on "
        f"it, the last at {worker.address} ({equipped}). Most "
        "likely their memory is too small for it; the workers' logs tell, or show a crash. "
        f"{_remedy(behind)}"
    )


def died_with(
    client: Any,
    tasks: Sequence[Any],
    shards: Mapping[Any, tuple[int, Size | None]],
    equipped: Mapping[str, Any] | None,
) -> str:
    """Say what workers died of, where none are left; empty where none of them died at work.

    A scheduler gives a task up, and tells the client, once so many workers have died that it tries
    (``distributed.scheduler.allowed-failures``). Where fewer were there it waits for others, and
    nobody hears of it. `equipped` is what it said of one of them.
    """
    times = client.run_on_scheduler(_times_suspected, client.id)
    most = max(times.values(), default=0)
    if not most:
        return ""
    what, behind = _named([key for key, n in times.items() if n == most], tasks, shards)
    told = equipped or {}
    with_what = f" ({_equipped(told['memory_limit'], told['nthreads'])})" if told else ""
    died = (
        f"{most} workers{with_what} died one after another while they"
        if most > 1
        else f"The last worker died{with_what} while it"
    )
    return (
        f"{died} worked on {what}. If nobody took workers away, their memory is most likely too "
        f"small for it; their logs tell, or show a crash. {_remedy(behind)}"
    )


def _times_suspected(client: str, dask_scheduler: Any) -> dict[Any, int]:
    """Return how many workers died with each task that a client needs; runs on the scheduler."""
    waiting = list(dask_scheduler.clients[client].wants_what)
    seen = set(waiting)
    while waiting:
        fresh = waiting.pop().dependencies - seen
        seen |= fresh
        waiting.extend(fresh)
    return {task.key: task.suspicious for task in seen if task.suspicious and not task.who_has}


def _named(
    suspects: Sequence[Any], tasks: Sequence[Any], shards: Mapping[Any, tuple[int, Size | None]]
) -> tuple[str, list[tuple[int, Size | None]]]:
    """Name suspects by the shards that they are made of, and return these."""
    behind = sorted(
        {shard for key in suspects for shard in shards_behind(key, tasks, shards)},
        key=lambda shard: shard[0],
    )
    named = [_shard(*shard) for shard in behind] or [_task(key) for key in suspects]
    several = "one of " if len(suspects) > 1 else ""
    more = f" and {len(named) - _NAMED} more" if len(named) > _NAMED else ""
    return several + ", ".join(named[:_NAMED]) + more, behind


def _equipped(limit: float, threads: int) -> str:
    memory = f"{format_bytes(int(limit))} of memory" if limit else "no limit of memory"
    return f"{memory}, {threads} thread{'s' * (threads > 1)}"


def _suspects(error: KilledWorker, futures: Sequence[Any]) -> list[Any]:
    """Return the keys of the tasks that may have done it, each once."""
    time.sleep(_TOGETHER)
    failed = (future.exception(timeout=1) for future in futures if future.status == "error")
    killed = [each for each in failed if isinstance(each, KilledWorker)]
    return list(dict.fromkeys(each.task for each in [error, *killed]))


def shards_behind(
    key: Any, tasks: Sequence[Any], shards: Mapping[Any, tuple[int, Size | None]]
) -> list[tuple[int, Size | None]]:
    """Return the shards that a task, known by its key, is made of."""
    graph: dict[Any, Any] = {}
    for task in tasks:
        graph.update(task.__dask_graph__())
    found, seen, waiting = set(), {key}, [key]
    while waiting:
        key = waiting.pop()
        if key in shards:
            found.add(shards[key])
            continue
        fresh = _dependencies(graph, key) - seen
        seen |= fresh
        waiting.extend(fresh)
    return sorted(found, key=lambda shard: shard[0])


def _dependencies(graph: Mapping[Any, Any], key: Any) -> set[Any]:
    """Return what a task takes, futures among it, which are no tasks of the graph."""
    task = graph.get(key)
    if isinstance(task, GraphNode):
        return set(task.dependencies)
    return set(get_dependencies(graph, key)) if key in graph else set()


def _shard(number: int, size: Size | None) -> str:
    if size is None:
        return f"shard {number}"
    groups = f", {size.groups[0]:,} groups" if size.groups else ""
    return f"shard {number} ({size.rows:,} rows{groups})"


def _task(key: Any) -> str:
    """Name a task that reads or sends rows: one for each partition of the frame, often."""
    if isinstance(key, tuple) and len(key) > 1 and isinstance(key[-1], int):
        return f"partition {key[-1]} of the frame ({key_split(key)})"
    return f"task {key_split(key)}"


def _remedy(shards: Sequence[tuple[int, Size | None]]) -> str:
    more = (
        "Give workers more memory, or fewer threads, which share it "
        "(LocalCluster(threads_per_worker=1, memory_limit=...))"
    )
    if not shards:
        return f"{more}, or cut the frame into smaller partitions (ddf.repartition)."
    sizes = [size for _, size in shards if size is not None]
    if sizes and all(size.groups and size.groups[0] == 1 for size in sizes):
        return f"{more}: the rows are those of one group, which is never cut."
    rows = max((size.rows for size in sizes), default=0)
    below = f" below {rows:,}" if rows else ""
    return f"{more}, or make shards smaller (rows_per_shard={below}, or more n_shards)."
