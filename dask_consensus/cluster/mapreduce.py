"""How answers of shards are added up: a map, a tree of sums, on whatever scheduler is there.

A *map* gives, for each shard, an :class:`Answer`: a contribution (large, added up where it lies), a
report (small, brought to the client) and a state (large, kept where it lies for the next map).
Under a distributed client tasks are futures and are reported as they come; elsewhere Dask's own
local scheduler runs one graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from operator import itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple

import dask
from dask.callbacks import Callback
from dask.delayed import Delayed

from .client import current_client, current_work, passing
from .journal import Asked, Journal, Share, recalled
from .placement import Execution, requiring
from .progress import Pass
from .stopping import stoppable, stopped_by_errors
from .store import Missing
from .tasks import broadcast, call, tree
from .used import count
from .waiting import watched

if TYPE_CHECKING:
    from .shards import Shards


_MOST_TASKS = 256  # of a map over shards that are not worked on at once


class Answer(NamedTuple):
    """What a function on one shard returns."""

    contribution: Any  # added to those of the other shards, where they lie
    report: Any  # brought to the client
    state: Any = None  # kept where it was made, for the next map


class Mapped(NamedTuple):
    """What a map over shards gave; reports and states are in the order of shards."""

    total: Any  # the sum of all contributions
    reports: list[Any]
    states: list[Delayed]  # they lie where they were made; empty where they were not kept


def map_reduce(
    function: Callable[..., list[Answer]],
    shards: Shards,
    per_shard: Sequence[tuple[Any, ...]],
    shared: Sequence[Delayed],
    add: Callable[[list[Any]], Any],
    *,
    title: str,
    note: Callable[[list[Any]], str] = lambda _: "",
    keep_states: bool = False,
    recorded: bool = True,
) -> Mapped:
    """Run ``function(data, per_shard, *shared)`` on a few shards a task; add up in a tree.

    The function takes a list of shards' data and the list of what else each is given, tasks among
    it or not; it returns an `Answer` for each. See :func:`each` for functions of a single shard.
    `add` adds a list of contributions; `title` and `note` are those of the progress line, which is
    told of every report as it comes. A fit that keeps a journal reads there what was answered
    before, unless the pass is not to be `recorded`.
    """
    execution, n = shards.execution, shards.n
    size = execution.shards_per_task
    if isinstance(function, partial) and function.func is _each:
        # Where shards come one after another a task may take many: thousands of tasks take long
        # to schedule. Not as many as workers ask, since sums would depend on their number.
        size = max(size, -(-n // _MOST_TASKS))
    stopping = stoppable(function)
    starts = range(0, n, size)
    question = (function, add, list(shards.data), list(per_shard), list(shared))
    kept = _Pass(title, question, size, keep_states, recorded)
    with requiring(execution.resources):
        batches = [
            call(
                _answers,
                kept.share(i // size),
                stopping,
                add,
                list(shards.data[i : i + size]),
                list(per_shard[i : i + size]),
                *shared,
            )
            for i in starts
        ]
    n_states = [min(size, n - i) if keep_states else 0 for i in starts]
    with passing(title, n, execution.progress, note) as progress:
        total, reports, states = kept.answered()
        if total is Missing:
            total, reports, states = _run(batches, n_states, add, execution, progress)
            total, reports = kept.put(total, reports)
        else:
            states = _states(batches, n_states)
            progress.tell(reports)
    return Mapped(total, reports, kept.named(states))


def each(function: Callable[..., Answer]) -> Callable[..., list[Answer]]:
    """Make ``function(data, *per_shard, *shared)`` one of several shards, one after another."""
    return partial(_each, function)


def on_worker(execution: Execution, function: Callable[..., Any], *arguments: Any) -> Delayed:
    """Make a task of a call that needs what mapped tasks need, such as a GPU."""
    with requiring(execution.resources):
        return call(stoppable(function), *arguments)


def compute_with_progress(
    tasks: Sequence[Delayed], execution: Execution, title: str, unit: str
) -> list[Any]:
    """Bring the results of tasks to the client, and show each as it comes."""
    batches = [call(_report_only, task) for task in tasks]
    flat = execution._replace(split_every=len(tasks) + 1)

    def run() -> list[Any]:
        with passing(title, len(tasks), execution.progress, unit=unit) as progress:
            return _run(batches, [0] * len(tasks), _nothing, flat, progress).reports

    results: list[Any] = recalled(title, tasks, run)
    return results


class _Pass:
    """What a fit's journal holds of one pass; nothing without a journal."""

    def __init__(
        self, title: str, question: Any, size: int, keep_states: bool, recorded: bool
    ) -> None:
        self._journal: Journal | None = current_work().journal
        self._size, self._keep_states, self._name = size, keep_states, ""
        if self._journal is not None and recorded:
            self._name = self._journal.name_of(title, question)

    def answered(self) -> tuple[Any, list[Any], list[Delayed]]:
        """Read the sum and the reports; `Missing` if they are not there."""
        kept: Any = Missing
        if self._journal is not None:
            kept = self._journal.get(self._name) if self._name else Missing
            if kept is Missing:
                self._journal.check_rows()
        total, reports = (Missing, []) if kept is Missing else kept
        return total, reports, []

    def put(self, total: Any, reports: list[Any]) -> tuple[Any, list[Any]]:
        """Keep the sum and the reports, and return them as they will be read again."""
        answered = total, reports
        if self._journal is not None and self._name:
            answered = self._journal.put(self._name, answered)
        return answered

    def share(self, number: int) -> Share | None:
        """Say where the share of a task is kept."""
        if self._journal is None or not self._name:
            return None
        # With another number of shards a task it is another share.
        name = f"{self._name}-{self._size}/{number}"
        files = tuple(self._journal.files.get(name, ()))
        return Share(self._journal.store, name, files, always=self._keep_states)

    def named(self, states: Sequence[Delayed]) -> list[Delayed]:
        """Have states tell what they are: whose of which pass."""
        if not self._name:
            return list(states)
        return [Asked.of(state, "state", self._name, k) for k, state in enumerate(states)]


# Functions of tasks


def _each(
    function: Callable[..., Answer],
    data: list[Any],
    per_shard: list[tuple[Any, ...]],
    *shared: Any,
) -> list[Answer]:
    return [function(d, *given, *shared) for d, given in zip(data, per_shard, strict=True)]


def _answers(
    share: Share | None,
    function: Callable[..., list[Answer]],
    add: Callable[[list[Any]], Any],
    data: list[Any],
    per_shard: list[tuple[Any, ...]],
    *shared: Any,
) -> tuple[Any, list[Any], list[Any]]:
    """One task: contributions of its shards added up, reports, states; runs on a worker."""

    def answer() -> tuple[Any, list[Any], list[Any]]:
        answers = function(data, per_shard, *shared)
        contributions = [answer.contribution for answer in answers]
        total = contributions[0] if len(answers) == 1 else add(contributions)
        return total, [answer.report for answer in answers], [answer.state for answer in answers]

    given: tuple[Any, list[Any], list[Any]] = answer() if share is None else share.given_by(answer)
    return given


def _report_only(result: Any) -> tuple[None, list[Any], list[Any]]:
    return None, [result], []


def _nothing(_: list[None]) -> None:
    return None


def _state(batch: tuple[Any, list[Any], list[Any]], i: int) -> Any:
    return batch[2][i]


def _states(batches: Sequence[Delayed], n_states: Sequence[int]) -> list[Delayed]:
    """Take apart the states that each batch leaves behind."""
    return [
        call(_state, batch, i)
        for batch, count in zip(batches, n_states, strict=True)
        for i in range(count)
    ]


# The graph, and how it runs


class _Graph(NamedTuple):
    """Everything that a map is asked for, as tasks."""

    total: Delayed
    reports: list[Delayed]
    states: list[Delayed]


def _run(
    batches: Sequence[Delayed],
    n_states: Sequence[int],
    add: Callable[[list[Any]], Any],
    execution: Execution,
    progress: Pass,
) -> Mapped:
    """Run sums, reports and states; `n_states` says how many each batch leaves behind."""
    contributions, reports = ([call(itemgetter(i), batch) for batch in batches] for i in range(2))
    states = _states(batches, n_states)
    graph = _Graph(tree(contributions, partial(call, add), execution.split_every), reports, states)
    count([graph.total, *graph.reports, *graph.states])
    client = current_client()
    if client is None:
        return _run_locally(graph, progress)
    return _run_distributed(client, graph, execution.retries, progress)


def _run_locally(graph: _Graph, progress: Pass) -> Mapped:
    keys = {report.key for report in graph.reports}

    def done(key: Any, result: Any, *_: Any) -> None:
        if key in keys:
            progress.tell(result)

    # The reports are roots of the graph: no optimisation renames them.
    with Callback(posttask=done), stopped_by_errors():
        total, reports, kept = dask.compute(*graph)
    return Mapped(total, list(chain.from_iterable(reports)), [broadcast(state) for state in kept])


def _run_distributed(client: Any, graph: _Graph, retries: int, progress: Pass) -> Mapped:
    from distributed import as_completed

    # One graph, so that contributions are added, and forgotten, as soon as they are there.
    tasks = [graph.total, *graph.reports, *graph.states]
    total, *futures = client.compute(tasks, retries=retries)
    reports, kept = futures[: len(graph.reports)], futures[len(graph.reports) :]
    position = {future.key: i for i, future in enumerate(reports)}
    gathered: list[list[Any]] = [[]] * len(reports)
    with watched(client, [total, *futures], tasks):
        for future, batch in as_completed(reports, with_results=True):
            gathered[position[future.key]] = batch
            progress.tell(batch)
        summed = total.result()
    states = [Delayed(future.key, {future.key: future}) for future in kept]
    return Mapped(summed, list(chain.from_iterable(gathered)), states)
