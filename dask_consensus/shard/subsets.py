"""Some groups of real shards, apart and together: data on which a model shows what it looks at.

Groups are *units* here, and so are rows where the model sees no groups. A statistic over all rows
is often driven by few of them, so parts are chosen with and without what is largest, smallest or
rare, beside parts at random; and small ones, since a threshold may be passed by all large ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..shard_data import ROWS, Shard, ShardData, Size, pad

PIECE = 1024
"""Rows of a shard whose units are looked at more closely."""
_MOST_ROWS = 50_000  # of units put together: more take longer, and show no more
_FEW_ROWS = 12  # of a small part, at most
_SHORT = 3  # rows that are taken of some units, so that there are small parts of large groups too
_MOST_SHORT = 4  # such units of a piece
_LARGEST_UNIT = 1 / 8  # of the rows of a piece: of a larger unit some rows are left out
_SELDOM = 0.1  # share of the rows up to which a value is rare
_MOST_PARTS = 2  # without what is largest in some column; and likewise for what is smallest, rare


class Part(NamedTuple):
    """Some units of a shard by themselves."""

    data: ShardData  # codes renumbered, padded
    entries: dict[int, np.ndarray]  # level -> positions of its rows or groups in the whole


def piece(data: ShardData, codes: Mapping[str, int], room: Size, place: int) -> Shard:
    """Take some units of a shard, as many as there is room for; runs on a worker.

    Parameters
    ----------
    data : ShardData
    codes : mapping
        Argument -> level of the group codes that it receives.
    room : Size
        At most so many rows, and groups at each level; one unit in any case.
    place : int
        Among the pieces that are put together: of a single unit, those at odd places have few rows.
    """
    shard = _unpadded(data, codes)
    real = shard.rows
    rng = np.random.default_rng([place, real])
    units = units_of(shard)
    # Rows of a unit may be sorted: the first ones would be alike.
    order = np.lexsort([rng.permutation(real), ~_rare_rows(shard), units])
    rank = np.empty(real, int)
    rank[order] = np.arange(real) - np.searchsorted(units[order], units[order])
    largest = max(1, int(room.rows * _LARGEST_UNIT))
    kept = _fitting(_taken(shard, np.flatnonzero(rank < largest))[0], _shuffled(shard, rng), room)
    most = np.full(units.max() + 1, largest)
    n_short = min(_MOST_SHORT, len(kept) // 2) if len(kept) > 1 else place % 2
    most[kept[len(kept) - n_short :]] = _SHORT
    return _taken(shard, np.flatnonzero(np.isin(units, kept) & (rank < most[units])))[0]


def some_units(
    data: ShardData, codes: Mapping[str, int], room: Size, seed: int, *, rare_first: bool = False
) -> ShardData:
    """Take whole units of a shard at random, as many as there is room for, padded to it.

    Those with rare values come by turns with the others if they are wanted.
    """
    shard = _unpadded(data, codes)
    if shard.rows <= room.rows:
        return data
    rng = np.random.default_rng([seed, shard.rows])
    order = _shuffled(shard, rng) if rare_first else rng.permutation(_n_units(shard))
    return _padded_part(shard, order, room)[0]


def pieces_of(
    data: ShardData, codes: Mapping[str, int], seed: int, rows: int
) -> Iterator[ShardData]:
    """Take so many rows, at least, of whole units at random, all if it has no more; in pieces.

    They have the shape of :func:`few_units`, so that its code serves them.
    """
    room, shard = _few(data), _unpadded(data, codes)
    if shard.rows <= room.rows:
        yield data
        return
    order = np.random.default_rng([seed, shard.rows]).permutation(_n_units(shard))
    while rows > 0 and len(order):
        piece, taken = _padded_part(shard, order, room)
        order, rows = order[taken:], rows - int(np.sum(piece.rows))
        yield piece


def _padded_part(shard: Shard, order: np.ndarray, room: Size) -> tuple[ShardData, int]:
    """Take the first units that there is room for, padded to it; and say how many."""
    # Padding needs a group to belong to.
    kept = _fitting(shard, order, Size(room.rows, tuple(count - 1 for count in room.groups)))
    chosen = _taken(shard, _rows_of(shard, kept))[0]
    rows = max(room.rows, chosen.rows)
    groups = np.maximum(room.groups, np.array(chosen.groups, int) + 1)
    return pad(chosen, Size(rows, tuple(groups.tolist()))), len(kept)


def few_units(data: ShardData, codes: Mapping[str, int]) -> ShardData:
    """Take those units of a shard whose effects are looked at more closely."""
    return some_units(data, codes, _few(data), 0)


def _few(data: ShardData) -> Size:
    return Size(PIECE, tuple(min(count, PIECE) for count in data.size.groups))


def some_groups(
    data: ShardData, codes: Mapping[str, int], argument: str, groups: np.ndarray
) -> ShardData:
    """Take all rows of some groups, coded by an argument, padded to one of a few shapes."""
    shard = _unpadded(data, codes)
    chosen = _taken(shard, np.flatnonzero(np.isin(shard.arguments[argument], groups)))[0]
    # Padding needs a group to belong to, and each of these a row.
    counts = [_rounded(count + 1) for count in chosen.groups]
    return pad(chosen, Size(_rounded(chosen.rows + max(counts, default=0)), tuple(counts)))


def in_shape(part: ShardData, codes: Mapping[str, int], size: Size) -> ShardData:
    """Pad some units to the shape of a shard, whose code then serves them, where they fit."""
    if part.size == size:
        return part
    shard = _unpadded(part, codes)
    return pad(shard, size) if _fits(shard, size) else part


def together(pieces: Sequence[Shard], room: Size) -> tuple[Shard, np.ndarray]:
    """Join pieces of shards to one that can be padded to `room`; and tell whose each unit is.

    Codes of groups are renumbered, so that no two pieces share a group.
    """
    levels = pieces[0].levels
    before = np.cumsum([(0,) * len(pieces[0].groups), *(p.groups for p in pieces[:-1])], axis=0)
    arguments = {
        name: np.concatenate(
            [
                part.arguments[name] + (before[i, levels[name]] if name in levels else 0)
                for i, part in enumerate(pieces)
            ]
        ).astype(pieces[0].arguments[name].dtype)
        for name in pieces[0].arguments
    }
    groups = tuple(np.sum([part.groups for part in pieces], axis=0).tolist())
    joined = Shard(arguments, sum(part.rows for part in pieces), groups, levels)
    origin = np.repeat(np.arange(len(pieces)), [len(np.unique(units_of(p))) for p in pieces])
    # Units of all pieces by turns, so that each keeps some where there is no room for all.
    turn = np.concatenate([np.arange(np.sum(origin == i)) for i in range(len(pieces))])
    # Padding needs a group to belong to.
    room = Size(room.rows, tuple(count - 1 for count in room.groups))
    kept = _fitting(joined, np.lexsort([origin, turn]), room)
    return _taken(joined, _rows_of(joined, kept))[0], origin[np.sort(kept)]


def units_of(shard: Shard) -> np.ndarray:
    """Give the number of each row's unit: its group at the outermost level that the model sees."""
    if not shard.levels:
        return np.arange(shard.rows)
    outermost = min(shard.levels, key=lambda name: shard.levels[name])
    return np.asarray(shard.arguments[outermost])


def _n_units(shard: Shard) -> int:
    return int(units_of(shard).max()) + 1


def parts(whole: Shard, origin: np.ndarray, seed: int, size: Size, small: Size) -> list[Part]:
    """Choose parts of a whole: at random, of one shard, and without what is special.

    Parameters
    ----------
    whole : Shard
    origin : (U,) array
        The shard that each unit is from.
    seed : int
    size, small : Size
        Shapes of parts. Those of the whole's own size have half of its rows, so that its code
        serves them too; small ones show what changes with the length.
    """
    rng = np.random.default_rng([seed, whole.rows])
    order = _shuffled(whole, rng)
    plain = rng.permutation(len(order))
    chosen = [plain, plain[::-1]]
    chosen += [order[origin[order] == k] for k in sorted({int(origin[0]), int(origin[-1])})]
    chosen += [order[without[order]] for without in _without_special(whole)]
    found: list[Part] = []
    sizes = np.bincount(units_of(whole))
    for shape, rows in ((size, whole.rows // 2), (small, _FEW_ROWS)):
        room = Size(rows, tuple(count - 1 for count in shape.groups))
        for units in chosen:
            units = units[sizes[units] <= rows]
            if not len(units):
                continue
            part = _taken(whole, _rows_of(whole, _fitting(whole, units, room)))
            if 0 < part[0].rows < whole.rows and _fits(part[0], shape):
                found.append(Part(pad(part[0], shape), part[1]))
    return found


def shapes(padded: Sequence[Size], n_pieces: int) -> tuple[Size, Size]:
    """Give the shapes of a whole, and of its small parts, far apart in length."""
    rows = max(size.rows for size in padded)
    levels = [max(counts) for counts in zip(*(size.groups for size in padded), strict=True)]
    if rows > _MOST_ROWS:
        levels = [max(1, round(count * _MOST_ROWS / rows)) for count in levels]
        rows = _MOST_ROWS
    return (
        Size(max(rows, 3 * _FEW_ROWS), tuple(count + n_pieces + 1 for count in levels)),
        Size(_FEW_ROWS + 5, (_FEW_ROWS + 3,) * len(levels)),
    )


# Which units


def _shuffled(shard: Shard, rng: np.random.Generator) -> np.ndarray:
    """Order units at random, those with rare values by turns with the others."""
    units = units_of(shard)
    rare = np.bincount(units, _rare_rows(shard)) > 0
    place = np.empty(len(rare))
    for held in (rare, ~rare):
        place[held] = rng.permutation(int(held.sum()))
    return np.lexsort([~rare, place])


def _rare_rows(shard: Shard) -> np.ndarray:
    """Tell which rows hold a value that is special, and few others do."""
    rare = np.zeros(shard.rows, bool)
    for masks in _special_rows(shard).values():
        for mask in masks:
            rare |= mask & (mask.sum() <= _SELDOM * shard.rows)
    return rare


def _special_rows(shard: Shard) -> dict[str, list[np.ndarray]]:
    """Tell which rows hold what is largest, smallest, or not the usual, in each column."""
    special: dict[str, list[np.ndarray]] = {"largest": [], "smallest": [], "unusual": []}
    for name, values in shard.arguments.items():
        if name in shard.levels:
            continue
        for column in values.reshape(len(values), -1).T:
            special["largest"].append(column == column.max())
            special["smallest"].append(column == column.min())
            # A value that most rows have is their median.
            usual = np.partition(column, len(column) // 2)[len(column) // 2]
            if 2 * np.sum(column == usual) > len(column):
                special["unusual"].append(column != usual)
    return special


def _without_special(shard: Shard) -> list[np.ndarray]:
    """Masks of units without what is largest, smallest or unusual, in columns that leave some.

    What few units hold is left out first; columns that leave none go to another mask.
    """
    found = []
    units = units_of(shard)
    for by_row in _special_rows(shard).values():
        masks = [np.bincount(units, mask) > 0 for mask in by_row]
        left = sorted((mask for mask in masks if 0 < mask.sum() < len(mask)), key=np.sum)
        for _ in range(_MOST_PARTS):
            if not left:
                break
            kept, rest = np.ones(len(left[0]), bool), []
            for mask in left:
                if (kept & ~mask).any():
                    kept &= ~mask
                else:
                    rest.append(mask)
            found.append(kept)
            left = rest
    return found


def _fitting(shard: Shard, order: np.ndarray, room: Size) -> np.ndarray:
    """Take units in this order while there is room for them, the first in any case."""
    units = units_of(shard)
    n_units = int(units.max()) + 1
    sizes = [np.bincount(units, minlength=n_units)]
    limits = [room.rows]
    for name, level in shard.levels.items():
        owner = np.zeros(shard.groups[level], int)
        owner[shard.arguments[name]] = units
        sizes.append(np.bincount(owner, minlength=n_units))
        limits.append(room.groups[level])
    fits = np.ones(len(order), bool)
    for size, limit in zip(sizes, limits, strict=True):
        fits &= np.cumsum(size[order]) <= limit
    return order[: max(int(fits.sum()), 1)]


# Their data


def _unpadded(data: ShardData, codes: Mapping[str, int]) -> Shard:
    real = int(np.sum(data.rows))
    arguments = {name: np.asarray(values)[:real] for name, values in data.arguments.items()}
    return Shard(arguments, real, tuple(int(np.sum(mask)) for mask in data.groups), dict(codes))


def _taken(shard: Shard, rows: np.ndarray) -> tuple[Shard, dict[int, np.ndarray]]:
    """Take some rows, and renumber their groups; a level that the model does not see has one."""
    entries = {ROWS: rows}
    groups = [1] * len(shard.groups)
    arguments: dict[str, Any] = {}
    for name, values in shard.arguments.items():
        arguments[name] = values[rows]
        if name in shard.levels:
            level = shard.levels[name]
            entries[level], renumbered = np.unique(values[rows], return_inverse=True)
            arguments[name] = renumbered.astype(values.dtype)
            groups[level] = len(entries[level])
    return Shard(arguments, len(rows), tuple(groups), shard.levels), entries


def _rounded(count: int) -> int:
    """Round up to a power of two: each shape costs a compilation."""
    return 1 << max(count - 1, 1).bit_length()


def _rows_of(shard: Shard, units: np.ndarray) -> np.ndarray:
    return np.flatnonzero(np.isin(units_of(shard), units))


def _fits(shard: Shard, shape: Size) -> bool:
    """Tell whether a shard can be padded to a shape."""
    less = (count < most for count, most in zip(shard.groups, shape.groups, strict=True))
    return shard.rows < shape.rows and all(less)
