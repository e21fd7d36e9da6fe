"""Where the shards lie, how large they are, and how work is sent to them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..shard_data import Shard, ShardData, Size, Summary, pad, padded_sizes, summary_of
from .client import current_work, passing
from .journal import absent, recalled
from .placement import Execution
from .tasks import call, compute, persist_tasks

if TYPE_CHECKING:
    from dask.delayed import Delayed


class Shards(NamedTuple):
    """Shards that lie in memory, on the cluster or here."""

    data: Sequence[Delayed]  # each computes to a ShardData
    sizes: Sequence[Size]  # what each holds, padding left out
    padded: Sequence[Size]  # the shape each is padded to
    execution: Execution  # how work is sent to them
    # The keys of each shard's groups, as `Shard.labels`; none where they were not asked for.
    labels: Sequence[Delayed] = ()
    hashes: Sequence[np.ndarray] = ()  # of the keys of outermost groups, likewise

    @property
    def n(self) -> int:
        """Number of shards."""
        return len(self.data)

    @property
    def n_groups(self) -> list[int]:
        """Number of groups of each level."""
        return [sum(groups) for groups in zip(*(size.groups for size in self.sizes), strict=True)]

    @property
    def weights(self) -> list[float]:
        """Each shard's power of the prior: its share of the rows."""
        total = sum(size.rows for size in self.sizes)
        return [size.rows / total for size in self.sizes]

    def some(self, chosen: Sequence[int]) -> Shards:
        """Take these shards alone, in this order."""
        return Shards(
            [self.data[k] for k in chosen],
            [self.sizes[k] for k in chosen],
            [self.padded[k] for k in chosen],
            self.execution,
            [self.labels[k] for k in chosen] if self.labels else (),
            [self.hashes[k] for k in chosen] if self.hashes else (),
        )

    def median(self) -> int:
        """Return the number of a shard of median size."""
        order = np.argsort([size.rows for size in self.sizes], kind="stable")
        return int(order[(len(order) - 1) // 2])


def persist(
    unpadded: Sequence[Delayed],
    execution: Execution,
    check: Callable[[Sequence[Summary]], None] = lambda _: None,
    *,
    keep_labels: bool = False,
    hashes_of: Callable[[Shard], np.ndarray] | None = None,
    shapes: Callable[[Sequence[Size]], list[Size]] = padded_sizes,
    whose: str = "",
) -> Shards:
    """Compute the shards, pad them to common shapes, and keep them: they are read many times.

    `check` is given what the shards hold, and may raise. The keys of groups are kept beside the
    rows where they are asked for; what `hashes_of` says of each shard's is brought to the client.
    `whose` tells these shards from others of the same work, to a journal.
    """
    shards = persist_tasks(unpadded)
    known, names = current_work().shards, current_work().names
    known.update((task.key, (k, None)) for k, task in enumerate(shards))
    with passing("rows to shards", len(shards), execution.progress) as progress:
        summaries = compute([call(summary_of, shard) for shard in shards], progress.tell)
    check(summaries)
    sizes = [summary.size for summary in summaries]
    padded = shapes(sizes)
    data = persist_tasks(
        [call(_pad, *task) for task in zip(shards, padded, summaries, strict=True)]
    )
    known.update((task.key, (k, sizes[k])) for k, task in enumerate(data))
    rows = _rows(whose)
    names.update((task.key, (*rows, k)) for k, task in enumerate(data))
    labels = persist_tasks([call(_labels, shard) for shard in shards]) if keep_labels else ()
    names.update((task.key, (*rows, "labels", k)) for k, task in enumerate(labels))
    hashes = _hashes(hashes_of, data, shards) if hashes_of else ()
    return Shards(data, sizes, padded, execution, labels, hashes)


def not_sent(
    summaries: Sequence[Summary],
    execution: Execution,
    *,
    keep_labels: bool = False,
    hashes_of: Callable[[Shard], np.ndarray] | None = None,
    shapes: Callable[[Sequence[Size]], list[Size]] = padded_sizes,
    whose: str = "",
) -> Shards:
    """Make shards of which everything is known that will be asked: they hold no rows."""
    sizes, n = [summary.size for summary in summaries], len(summaries)
    rows = _rows(whose)
    data = absent(n, *rows)
    labels = absent(n, *rows, "labels") if keep_labels else ()
    hashes = _hashes(hashes_of, data, absent(n, *rows, "unpadded")) if hashes_of else ()
    return Shards(data, sizes, shapes(sizes), execution, labels, hashes)


def _rows(whose: str) -> tuple[str, ...]:
    """Begin the name by which a journal knows the rows of a shard."""
    return ("rows", whose) if whose else ("rows",)


def _hashes(
    hashes_of: Callable[[Shard], np.ndarray],
    data: Sequence[Delayed],
    unpadded: Sequence[Delayed],
) -> list[np.ndarray]:
    """Bring what is said of each shard's groups; a journal knows shards by their padded data."""
    hashes: list[np.ndarray] = recalled(
        "hashes of groups",
        [hashes_of, list(data)],
        lambda: compute([call(hashes_of, shard) for shard in unpadded], recorded=False),
    )
    return hashes


def _labels(shard: Shard) -> tuple[tuple[np.ndarray, ...], ...]:
    return shard.labels


def _pad(shard: Shard, size: Size, summary: Summary) -> ShardData:
    """Pad a shard; one that was lost with its worker and made again must be what it was."""
    if shard.rows != summary.size.rows or shard.contents.checksums != summary.contents.checksums:
        raise RuntimeError(
            "a shard that was lost with its worker has other rows now that it was made again: the "
            "frame gives other rows each time it is computed. Persist it first"
        )
    return pad(shard, size)
