"""Map over shards, add results up in a tree, show progress; on whatever scheduler is there.

A *map* gives, for each shard, a contribution (large, added up where it lies), a report (small,
brought to the client) and a state (large, kept where it lies for the next map). Under a
distributed client tasks are futures and are reported as they come; elsewhere Dask's own local
scheduler runs one graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from operator import itemgetter
from typing import Any, NamedTuple

import dask
from dask.callbacks import Callback
from dask.delayed import Delayed, delayed

from .placement import Execution, _where, current_client
from .progress import Progress


def persist(parts: Sequence[Delayed]) -> list[Delayed]:
    """Compute each part and keep it where it is: on the cluster, or here without one."""
    return list(dask.persist(*parts))


def broadcast(value: Any) -> Delayed:
    """Make a value one task of its own, so that it travels to a worker once."""
    return delayed(value, traverse=False)


def call(function: Callable[..., Any], *arguments: Any) -> Delayed:
    """Make one task of a function call; arguments may be tasks."""
    return delayed(function, pure=False, traverse=False)(*arguments)


def placed(execution: Execution, function: Callable[..., Any], *arguments: Any) -> Delayed:
    """Make a task of a call that needs what mapped tasks need, such as a GPU."""
    with _where(execution):
        return call(function, *arguments)


def compute(
    tasks: Sequence[Delayed], progress: Progress | None = None, execution: Execution | None = None
) -> list[Any]:
    """Bring the results of tasks to the client, all of them; tell `progress` as they come."""
    if progress is None:
        return list(dask.compute(*tasks))
    batches = [call(_report_only, task) for task in tasks]
    execution = (execution or Execution())._replace(split_every=len(tasks) + 1)
    with progress:
        return _run(batches, [0] * len(tasks), _nothing, execution, progress).reports


def _report_only(result: Any) -> tuple[None, list[Any], list[Any]]:
    return None, [result], []


def _nothing(_: list[None]) -> None:
    return None


class Mapped(NamedTuple):
    """What a map over shards gave.

    Attributes
    ----------
    total
        The sum of all contributions.
    reports : list
        In the order of shards.
    states : list of Delayed
        Likewise; they lie where they were made. Empty where they were not kept.
    """

    total: Any
    reports: list[Any]
    states: list[Delayed]


def map_reduce(
    function: Callable[..., list[tuple[Any, Any, Any]]],
    shards: Sequence[Delayed],
    own: Sequence[tuple[Any, ...]],
    shared: Sequence[Delayed],
    add: Callable[[list[Any]], Any],
    *,
    execution: Execution,
    title: str,
    note: Callable[[list[Any]], str] = lambda _: "",
    states: bool = False,
) -> Mapped:
    """Run ``function(shards, own, *shared)`` on a few shards a task; add contributions in a tree.

    Parameters
    ----------
    function : callable
        Takes a list of shards and the list of what is their own; returns ``(contribution, report,
        state)`` for each. See :func:`each` for functions of a single shard.
    shards : sequence of Delayed
    own : sequence of tuple
        What else each shard is given, tasks among it or not.
    shared : sequence of Delayed
        What all are given.
    add : callable
        Adds a list of contributions.
    execution : Execution
    title, note
        Of the progress line, which is told of every report as it comes.
    states : bool
        Whether states are kept for the next map.
    """
    size = execution.shards_per_task
    starts = range(0, len(shards), size)
    with _where(execution):
        batches = [
            call(
                _batch, function, add, list(shards[i : i + size]), list(own[i : i + size]), *shared
            )
            for i in starts
        ]
    sizes = [min(size, len(shards) - i) if states else 0 for i in starts]
    with Progress(title, len(shards), execution.progress, note) as progress:
        return _run(batches, sizes, add, execution, progress)


def each(
    function: Callable[..., tuple[Any, Any, Any]],
) -> Callable[..., list[tuple[Any, Any, Any]]]:
    """Make ``function(shard, *own, *shared)`` one of several shards, one after another."""
    return partial(_each, function)


def _each(
    function: Callable[..., Any], shards: list[Any], own: list[tuple[Any, ...]], *shared: Any
) -> list[Any]:
    return [function(shard, *mine, *shared) for shard, mine in zip(shards, own, strict=True)]


def _batch(
    function: Callable[..., list[tuple[Any, Any, Any]]],
    add: Callable[[list[Any]], Any],
    shards: list[Any],
    own: list[tuple[Any, ...]],
    *shared: Any,
) -> tuple[Any, list[Any], list[Any]]:
    """One task: contributions of its shards added up; runs on a worker."""
    contributions, reports, states = zip(*function(shards, own, *shared), strict=True)
    total = contributions[0] if len(contributions) == 1 else add(list(contributions))
    return total, list(reports), list(states)


class _Graph(NamedTuple):
    """Everything that a map is asked for, as tasks."""

    total: Delayed
    reports: list[Delayed]
    states: list[Delayed]


def _run(
    batches: Sequence[Delayed],
    sizes: Sequence[int],
    add: Callable[[list[Any]], Any],
    execution: Execution,
    progress: Progress,
) -> Mapped:
    """Run batches of shards; `sizes` says how many states each leaves behind."""
    contributions, reports = ([call(itemgetter(i), batch) for batch in batches] for i in range(2))
    states = [
        call(_state, batch, i)
        for batch, size in zip(batches, sizes, strict=True)
        for i in range(size)
    ]
    total = tree(contributions, lambda parts: call(add, parts), execution.split_every)
    graph, client = _Graph(total, reports, states), current_client()
    if client is None:
        return _run_locally(graph, progress)
    return _run_distributed(client, graph, execution.retries, progress)


def tree(parts: list[Any], call: Callable[[list[Any]], Any], split_every: int) -> Any:
    """Reduce parts by ``call`` on up to `split_every` neighbours at a time, level by level."""
    while len(parts) > 1:
        parts = [call(parts[i : i + split_every]) for i in range(0, len(parts), split_every)]
    return parts[0]


def _run_locally(graph: _Graph, progress: Progress) -> Mapped:
    keys = {report.key for report in graph.reports}

    def done(key: Any, result: Any, *_: Any) -> None:
        if key in keys:
            progress.tell(result)

    # The reports are roots of the graph: no optimisation renames them.
    with Callback(posttask=done):
        total, reports, kept = dask.compute(*graph)
    return Mapped(total, _flat(reports), [broadcast(state) for state in kept])


def _run_distributed(client: Any, graph: _Graph, retries: int, progress: Progress) -> Mapped:
    from distributed import as_completed

    # One graph, so that contributions are added, and forgotten, as soon as they are there.
    total, *futures = client.compute([graph.total, *graph.reports, *graph.states], retries=retries)
    reports, kept = futures[: len(graph.reports)], futures[len(graph.reports) :]
    position = {future.key: number for number, future in enumerate(reports)}
    gathered: list[list[Any]] = [[]] * len(reports)
    for future, several in as_completed(reports, with_results=True):
        gathered[position[future.key]] = several
        progress.tell(several)
    return Mapped(
        total.result(),
        _flat(gathered),
        [Delayed(future.key, {future.key: future}) for future in kept],
    )


def _state(triple: tuple[Any, list[Any], list[Any]], i: int) -> Any:
    return triple[2][i]


def _flat(lists: Sequence[Sequence[Any]]) -> list[Any]:
    return [entry for several in lists for entry in several]
