"""Two small data sets, one inside the other, on which a model shows the roles of its sites.

The *small* example has few rows and groups; the *large* one holds the same rows and groups among
others, renumbered. No two kinds of axis have the same pair of lengths, so an axis is known by how
it grows; and since a shard is nothing but the full data with groups left out and renumbered,
whatever the small example's rows and groups contribute must not change in the large one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from ..shard_data import ROWS

_ROWS_A_GROUP = 4


class Example(NamedTuple):
    """Arguments by name, each ``(rows,)``, and the number of groups at each level."""

    arguments: dict[str, np.ndarray]
    rows: int
    groups: tuple[int, ...]

    def size_of(self, level: int) -> int:
        """Entries along the axis of a level."""
        return self.rows if level == ROWS else self.groups[level]


def _codes(rows: int, groups: tuple[int, ...]) -> list[np.ndarray]:
    """Nested codes in rising order, every group with some rows, innermost level finest."""
    fine = np.arange(rows)
    size = rows
    codes: list[np.ndarray] = []
    for count in reversed(groups):
        fine = fine * count // size
        size = count
        codes.insert(0, fine)
    return codes


def examples(
    values: Mapping[str, np.ndarray], codes: Mapping[str, int], n_levels: int
) -> tuple[Example, Example, Example]:
    """Build the small example, the same renumbered, and the large one.

    Each argument is given real `values` ``(n,)``, n >= 1 rows, repeated where more are needed, or
    the codes of one of the nested levels.
    """
    small_groups = tuple(3 + 2 * level for level in range(n_levels))
    more_groups = tuple(count + 1 for count in small_groups)
    large_groups = tuple(a + b for a, b in zip(small_groups, more_groups, strict=True))
    small_rows = 1 + _ROWS_A_GROUP * max((*small_groups, 3))
    more_rows = 3 + _ROWS_A_GROUP * max((*more_groups, 4))

    few = _codes(small_rows, small_groups)
    reversed_codes = [count - 1 - code[::-1] for count, code in zip(small_groups, few, strict=True)]
    more = _codes(more_rows, more_groups)
    joined = [
        np.concatenate([new, count + old])
        for count, new, old in zip(more_groups, more, reversed_codes, strict=True)
    ]

    take_small = np.arange(small_rows)
    take_large = np.concatenate([small_rows + np.arange(more_rows), take_small[::-1]])

    def example(
        take: np.ndarray, level_codes: list[np.ndarray], groups: tuple[int, ...]
    ) -> Example:
        arguments = {name: column[take % len(column)] for name, column in values.items()}
        arguments |= {name: level_codes[level].astype(np.int32) for name, level in codes.items()}
        return Example(arguments, len(take), groups)

    return (
        example(take_small, few, small_groups),
        example(take_small[::-1], reversed_codes, small_groups),
        example(take_large, joined, large_groups),
    )


def embed(small: np.ndarray, large: np.ndarray, axis: int) -> np.ndarray:
    """Put the entries of the small example where the large (or renumbered) one has them."""
    large = np.array(large)
    where = [slice(None)] * large.ndim
    where[axis] = slice(large.shape[axis] - small.shape[axis], None)
    large[tuple(where)] = np.flip(small, axis)
    return large


def extract(large: np.ndarray, length: int, axis: int) -> np.ndarray:
    """Take the entries of the small example out of the large (or renumbered) one."""
    size = large.shape[axis]
    return np.flip(np.take(large, np.arange(size - length, size), axis), axis)
