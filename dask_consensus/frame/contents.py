"""What rows hold, in a few numbers that no order of rows changes.

Keys, integers, booleans and codes of categories are hashed and the hashes added up: one other value
makes another sum. Floats may differ in their last bits from one pass to the next, where sums were
made in another order; of them weighted sums are kept, which agree but for rounding. Each column is
tied to those before it, so that values that change places among rows show too.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..shard_data import Contents
from .keys import mix

_ROUNDING = 1e-13
"""Largest change of a sum, relative to that of absolute values, from the order of summation."""
_LAST_BITS = 1e-9
"""Largest change of a sum, relative to the spread of its values, from their own last bits.

A column of 10^8 values that are drawn anew moves it by 10^-4.
"""
_LAST_BITS_OF_PAIRS = 1e-10  # relative to absolute values
_NONE: tuple[float, ...] = (0.0,) * 6


def contents_of(hashes: Sequence[np.ndarray], values: Sequence[np.ndarray]) -> Contents:
    """Sum up hashes of the keys and the other columns, as the model receives them.

    Keys come first, outermost first, then the columns in the order given.
    """
    columns = [*hashes, *values]
    checksums = [0] * len(columns)
    sums = [_NONE] * len(columns)
    row = np.zeros(len(columns[0]) if columns else 0, np.uint64)
    floats = [i for i, column in enumerate(columns) if column.dtype.kind == "f"]
    for i, column in enumerate(columns):
        if i not in floats:
            row = mix(row + column.astype(np.uint64, copy=False))
            checksums[i] = int(row.sum())
    weight = (row >> np.uint64(11)) * 2.0**-53 + 0.5
    before = None
    for i in floats:
        wide = columns[i].astype(np.float64, copy=False)
        sums[i] = _sums(weight, wide, before)
        before = wide
    return Contents(tuple(checksums), tuple(sums))


def add_contents(parts: Sequence[Contents]) -> Contents:
    """Add up the contents of rows that lie in several places."""
    checksums = zip(*(part.checksums for part in parts), strict=True)
    sums = np.array([part.sums for part in parts]).sum(axis=0)
    return Contents(
        tuple(sum(column) % 2**64 for column in checksums),
        tuple(tuple(column) for column in sums.tolist()),
    )


def changed(one: Contents, other: Contents) -> list[bool]:
    """Return which columns do not hold the same, but for rounding."""
    exact = [then != now for then, now in zip(one.checksums, other.checksums, strict=True)]
    then, now = (np.reshape(contents.sums, (len(exact), len(_NONE))) for contents in (one, other))
    with np.errstate(all="ignore"):
        moved = np.abs(then - now)
        weight, values, squares, size, _, size_of_pairs = np.maximum(then, now).T
        spread = np.sqrt(np.maximum(weight * squares - values**2, 0.0))
        of_values = moved[:, 1] > _LAST_BITS * spread + _ROUNDING * size
        of_pairs = moved[:, 4] > _LAST_BITS_OF_PAIRS * size_of_pairs
    return np.logical_or.reduce([exact, of_values, of_pairs]).tolist()


def _sums(weight: np.ndarray, values: np.ndarray, before: np.ndarray | None) -> tuple[float, ...]:
    """Sum weights, values, squares and absolute values, products with a column and their size."""
    # Very large numbers overflow: their sums then say nothing.
    with np.errstate(all="ignore"):
        weighed = weight * values
        pairs = np.zeros(1) if before is None else weighed * before
        return (
            weight.sum(),
            weighed.sum(),
            (weighed * values).sum(),
            np.abs(weighed).sum(),
            pairs.sum(),
            np.abs(pairs).sum(),
        )
