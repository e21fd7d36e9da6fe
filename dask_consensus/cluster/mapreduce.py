"""Map over shards, add results up in a tree, show progress; on whatever scheduler is there.

A *map* gives, for each shard, a contribution (large, added up where it lies), a report (small,
brought to the client) and a state (large, kept where it lies for the next map). Under a
distributed client tasks are futures and are reported as they come; elsewhere Dask's own local
scheduler runs one graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

import dask
from dask.base import get_scheduler
from dask.callbacks import Callback
from dask.delayed import Delayed, delayed
from tqdm.auto import tqdm


def current_client() -> Any | None:
    """Return the distributed client that Dask would compute with now, if any."""
    owner = getattr(get_scheduler(), "__self__", None)
    return owner if hasattr(owner, "submit") and hasattr(owner, "scheduler_info") else None


def persist(parts: Sequence[Delayed]) -> list[Delayed]:
    """Compute each part and keep it where it is: on the cluster, or here without one."""
    return list(dask.persist(*parts))


def broadcast(value: Any) -> Delayed:
    """Make a value one task of its own, so that it travels to a worker once."""
    return delayed(value, traverse=False)


def call(function: Callable[..., Any], *arguments: Any) -> Delayed:
    """Make one task of a function call; arguments may be tasks."""
    return delayed(function, pure=False, traverse=False)(*arguments)


def compute(tasks: Sequence[Delayed], progress: Progress | None = None) -> list[Any]:
    """Bring the results of tasks to the client, all of them."""
    if progress is None:
        return list(dask.compute(*tasks))
    reports = [call(_report_only, task) for task in tasks]
    with progress:
        return map_reduce(reports, _nothing, split_every=len(tasks) + 1, progress=progress).reports


def _report_only(result: Any) -> tuple[None, Any, None]:
    return None, result, None


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
        Likewise; they lie where they were made.
    """

    total: Any
    reports: list[Any]
    states: list[Delayed]


def map_reduce(
    mapped: Sequence[Delayed],
    add: Callable[[list[Any]], Any],
    *,
    split_every: int,
    progress: Progress,
    retries: int = 0,
) -> Mapped:
    """Run mapped tasks, each giving ``(contribution, report, state)``; add contributions in a tree.

    Parameters
    ----------
    mapped : sequence of Delayed
        One task for each shard, in the order of shards.
    add : callable
        Adds a list of contributions.
    split_every : int
        Contributions added by one task.
    progress : Progress
        Told of every report as it comes.
    retries : int
        Times that a failed task is run again, under a distributed client.
    """
    client = current_client()
    if client is None:
        return _run_locally(mapped, add, split_every, progress)
    return _run_distributed(client, mapped, add, split_every, progress, retries)


def tree(parts: list[Any], call: Callable[[list[Any]], Any], split_every: int) -> Any:
    """Reduce parts by ``call`` on up to `split_every` neighbours at a time, level by level."""
    while len(parts) > 1:
        parts = [call(parts[i : i + split_every]) for i in range(0, len(parts), split_every)]
    return parts[0]


def _run_locally(
    mapped: Sequence[Delayed], add: Callable[[list[Any]], Any], split_every: int, progress: Progress
) -> Mapped:
    contributions, reports, states = ([call(itemgetter(i), t) for t in mapped] for i in range(3))
    total = tree(contributions, lambda parts: call(add, parts), split_every)
    keys = {report.key for report in reports}

    def done(key: Any, result: Any, *_: Any) -> None:
        if key in keys:
            progress.tell(result)

    # The reports are roots of the graph: no optimisation renames them.
    with Callback(posttask=done):
        total, reports, states = dask.compute(total, reports, states)
    return Mapped(total, reports, [broadcast(state) for state in states])


def _run_distributed(
    client: Any,
    mapped: Sequence[Delayed],
    add: Callable[[list[Any]], Any],
    split_every: int,
    progress: Progress,
    retries: int,
) -> Mapped:
    from distributed import as_completed

    def submit(function: Callable[..., Any], argument: Any) -> Any:
        return client.submit(function, argument, pure=False, retries=retries)

    triples = client.compute(list(mapped), retries=retries)
    contributions, reports, states = (
        [submit(itemgetter(i), triple) for triple in triples] for i in range(3)
    )
    total = tree(contributions, lambda parts: submit(add, parts), split_every)
    # Only the root is held: a contribution is forgotten as soon as it has been added.
    del triples, contributions
    position = {future.key: number for number, future in enumerate(reports)}
    gathered: list[Any] = [None] * len(reports)
    for future, report in as_completed(reports, with_results=True):
        gathered[position[future.key]] = report
        progress.tell(report)
    kept = [Delayed(future.key, {future.key: future}) for future in states]
    return Mapped(total.result(), gathered, kept)


class Progress:
    """One line that tells how many shards are done and what they reported.

    Parameters
    ----------
    title : str
    total : int
        Number of shards.
    show : bool or None
        None shows it only where there is a terminal or a notebook.
    note : callable
        Turns the reports so far into the end of the line.
    unit : str
        What is counted.
    """

    def __init__(
        self,
        title: str,
        total: int,
        show: bool | None,
        note: Callable[[list[Any]], str],
        unit: str = "shard",
    ) -> None:
        self._reports: list[Any] = []
        self._note = note
        self._bar = tqdm(
            desc=title, total=total, unit=unit, disable=None if show is None else not show
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def tell(self, report: Any) -> None:
        """Count one more shard."""
        self._reports.append(report)
        self._bar.set_postfix_str(self._note(self._reports), refresh=False)
        self._bar.update()
