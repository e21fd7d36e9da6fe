"""The shards, where they lie, how large they are, and which padded shape each gets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from .arrays import Shard

if TYPE_CHECKING:
    from dask.delayed import Delayed

_ONE_SHAPE = 1.25  # shards up to this many times the median share one padded shape
_FEW = 16  # and so do those with up to this many rows or groups more


class Size(NamedTuple):
    """Rows of a shard, and groups at each level."""

    rows: int
    groups: tuple[int, ...]


class Sharded(NamedTuple):
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


def size_of(shard: Shard) -> Size:
    """Rows and groups of a shard."""
    return Size(shard.rows, shard.groups)


def padded_sizes(sizes: Sequence[Size]) -> list[Size]:
    """Give every shard the shape it is padded to: one for all but the exceptionally large.

    A shape costs a compilation, padding costs its share of every gradient: shards up to 1.25
    times the median in rows and in groups, or a few more, get one shape, larger ones another.
    Where anything is padded there is a padding group for rows to belong to, and a row for each
    padding group: what a model computes from the rows of a group is not defined without one.
    """
    if len(sizes) == 1:
        return list(sizes)
    table = np.array([(size.rows, *size.groups) for size in sizes])
    median = np.median(table, axis=0)
    usual = (table <= np.maximum(_ONE_SHAPE * median, median + _FEW)).all(axis=1)
    padded: list[Size] = list(sizes)
    for members in (np.flatnonzero(usual), np.flatnonzero(~usual)):
        if len(members):
            rows, groups = table[members, 0], table[members, 1:]
            most = groups.max(axis=0)
            if (table[members] < table[members].max(axis=0)).any():
                most = most + 1
            rows = rows + (most - groups).max(axis=1, initial=0)
            for k in members:
                padded[k] = Size(int(rows.max()), tuple(most.tolist()))
    return padded
