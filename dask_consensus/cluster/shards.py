"""Where the shards lie, how large they are, and how work is sent to them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..shard_data import Size, pad, padded_sizes, size_of
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

    @property
    def n(self) -> int:
        """Number of shards."""
        return len(self.data)

    @property
    def weights(self) -> list[float]:
        """Each shard's power of the prior: its share of the rows."""
        total = sum(size.rows for size in self.sizes)
        return [size.rows / total for size in self.sizes]

    def median(self) -> int:
        """Return the number of a shard of median size."""
        order = np.argsort([size.rows for size in self.sizes], kind="stable")
        return int(order[(len(order) - 1) // 2])


def persist(unpadded: Sequence[Delayed], execution: Execution) -> Shards:
    """Compute the shards, pad them to common shapes, and keep them: they are read many times."""
    shards = persist_tasks(unpadded)
    sizes = compute([call(size_of, shard) for shard in shards])
    padded = padded_sizes(sizes)
    data = persist_tasks(
        [call(pad, shard, size) for shard, size in zip(shards, padded, strict=True)]
    )
    return Shards(data, sizes, padded, execution)
