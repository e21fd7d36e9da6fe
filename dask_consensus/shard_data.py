"""What one shard is: NumPy arrays, masks that tell what is real, and the shapes shards share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

ROWS = -1  # the level of what has one entry a row; groups are numbered 0, 1, ... outermost first

_ONE_SHAPE = 1.25  # shards up to this many times the median share one padded shape
_FEW = 16  # and so do those with up to this many rows or groups more


class Contents(NamedTuple):
    """What rows hold, summed up without regard to their order: keys, then the other columns."""

    checksums: tuple[int, ...] = ()  # 64 bits of each column; 0 for floats
    sums: tuple[tuple[float, ...], ...] = ()  # six of each, 0 unless floats: `frame/contents.py`


class Shard(NamedTuple):
    """The rows of one shard as the model receives them, before padding.

    `levels` says which level of ``by`` an argument of kind "group" holds the codes of.
    """

    arguments: dict[str, np.ndarray]  # (rows,) or (rows, columns) for each argument of the model
    rows: int
    groups: tuple[int, ...]  # number of groups at each level of ``by``
    levels: dict[str, int]
    contents: Contents = Contents()  # by which the rows are known again
    # For each level, the keys of its groups in the order of their codes: an array of each of the
    # key columns from the outermost to the level's own.
    labels: tuple[tuple[Any, ...], ...] = ()


class ShardData(NamedTuple):
    """A shard brought to a common shape, with masks that tell what is real.

    Padding comes last. The masks of rows and groups are True for what is real.
    """

    arguments: dict[str, Any]  # (R,) or (R, columns) for each argument of the model
    rows: Any  # (R,) bool
    groups: tuple[Any, ...]  # (G_l,) bool for each level of ``by``

    @property
    def size(self) -> Size:
        """Rows, and groups at each level, padding included."""
        return Size(len(self.rows), tuple(len(mask) for mask in self.groups))

    def mask(self, level: int) -> Any:
        """Return the mask of a level."""
        return self.rows if level == ROWS else self.groups[level]


class Size(NamedTuple):
    """Rows of a shard, and groups at each level."""

    rows: int
    groups: tuple[int, ...]


def size_of(shard: Shard) -> Size:
    """Rows and groups of a shard."""
    return Size(shard.rows, shard.groups)


class Summary(NamedTuple):
    """What a shard holds: how much, and by what it is known again."""

    size: Size
    contents: Contents


def summary_of(shard: Shard) -> Summary:
    """Sum up a shard."""
    return Summary(size_of(shard), shard.contents)


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


def rounded_sizes(sizes: Sequence[Size]) -> list[Size]:
    """Give shards shapes likewise, of few that shards of another day will have as well.

    Rows and groups are one of 4, 5, 6, 7 times a power of two.

    Examples
    --------
    >>> rounded_sizes([Size(100, (9,))]), rounded_sizes([Size(103, (8,))])
    ([Size(rows=112, groups=(10,))], [Size(rows=112, groups=(10,))])
    """
    rounded = []
    for rows, groups in padded_sizes(sizes):
        roomy = tuple(_round_up(count + 1) for count in groups)
        more = max((a - b for a, b in zip(roomy, groups, strict=True)), default=0)
        rounded.append(Size(_round_up(rows + more), roomy))
    return rounded


def _round_up(number: int) -> int:
    step = 1 << max(number.bit_length() - 3, 0)
    return -(-number // step) * step


def pad(shard: Shard, size: Size) -> ShardData:
    """Bring a shard to a common shape.

    Padding rows repeat a real row, since another value might lie outside a support and a gradient
    that is not finite poisons the sum even where a mask hides it. They belong to padding groups,
    so that no aggregate over a real group sees them, one row to each group as long as there are
    rows: the mean of a group without rows is NaN, whose gradient poisons the sum just so.

    Raises
    ------
    ValueError
        If the shard does not fit, or padding rows would have no padding group to belong to.
    """
    _check_room(shard, size)
    rows, groups = size
    added = np.arange(rows - shard.rows)
    arguments = {}
    for name, values in shard.arguments.items():
        filler = np.repeat(values[-1:], len(added), axis=0)
        if name in shard.levels:
            level = shard.levels[name]
            real = shard.groups[level]
            filler = real + np.minimum(added, groups[level] - real - 1)
        arguments[name] = np.concatenate([values, filler.astype(values.dtype)])
    masks = (np.arange(count) < real for count, real in zip(groups, shard.groups, strict=True))
    return ShardData(arguments, np.arange(rows) < shard.rows, tuple(masks))


def _check_room(shard: Shard, size: Size) -> None:
    """Raise unless `shard` can be padded to `size`."""
    rows, groups = size
    if len(groups) != len(shard.groups):
        raise ValueError(f"expected {len(shard.groups)} numbers of groups, got {len(groups)}")
    pairs = list(zip(groups, shard.groups, strict=True))
    if rows < shard.rows or any(count < real for count, real in pairs):
        raise ValueError(
            f"a shard of {shard.rows} rows and {shard.groups} groups does not fit "
            f"in {rows} rows and {groups} groups"
        )
    if rows == shard.rows:
        return
    if not shard.rows:
        raise ValueError("a shard without rows has none to repeat as padding")
    if any(count == real for count, real in pairs):
        raise ValueError(
            f"{rows - shard.rows} padding rows need a padding group at every level: "
            f"ask for more than {shard.groups} groups, got {groups}"
        )
