"""The shards, where they lie, how large they are, and which padded shape each gets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..shard_data import Size, padded_sizes, size_of
from . import mapreduce

if TYPE_CHECKING:
    from dask.delayed import Delayed


def persist(unkept: Sequence[Delayed]) -> Shards:
    """Compute the shards, and keep them where they lie: they are read many times."""
    parts = mapreduce.persist(unkept)
    sizes = mapreduce.compute([mapreduce.call(size_of, part) for part in parts])
    return Shards(parts, sizes, padded_sizes(sizes))


class Shards(NamedTuple):
    """Shards that lie in memory, on the cluster or here.

    Attributes
    ----------
    parts : sequence of Delayed
    sizes : sequence of Size
        What each holds.
    padded : sequence of Size
        The shape each is padded to.
    """

    parts: Sequence[Delayed]
    sizes: Sequence[Size]
    padded: Sequence[Size]

    @property
    def weights(self) -> list[float]:
        """Give each shard its power of the prior: its share of the rows."""
        total = sum(size.rows for size in self.sizes)
        return [size.rows / total for size in self.sizes]

    def median(self) -> int:
        """Find a shard of median size; return its number."""
        order = np.argsort([size.rows for size in self.sizes], kind="stable")
        return int(order[(len(order) - 1) // 2])
