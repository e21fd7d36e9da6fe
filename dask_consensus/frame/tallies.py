"""How do counts of partitions add up? Any tree of sums gives the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .defects import Found

HEAVIEST = 32
"""Groups whose label is kept, so that a message can name the largest."""
DTYPES = 32
"""Kinds of keys and dtypes of values that are kept of a column."""


class Heavy(NamedTuple):
    """A group with many rows: the hash of its key, rows seen, and the key as text."""

    hash: int
    rows: int
    label: str


def add_up(ids: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the distinct ids, sorted, and the sum of the rows of each."""
    distinct, position = np.unique(ids, return_inverse=True)
    total = np.zeros(len(distinct), np.int64)
    np.add.at(total, position, rows)
    return distinct, total


def coarsen(
    ids: np.ndarray, rows: np.ndarray, shift: int, limit: int
) -> tuple[np.ndarray, np.ndarray, int]:
    """Drop as few low bits of sorted, distinct ids as leave at most `limit` of them.

    How many bits go depends on the set of ids alone, not on the order in which it was gathered:
    this makes merging associative.
    """
    differ, drop = ids[1:] ^ ids[:-1], 0
    while np.count_nonzero(differ >> drop) >= limit:
        drop += 1
    return (*add_up(ids >> drop, rows), shift + drop)


def merge_heaviest(tallies: Sequence[tuple[Heavy, ...]]) -> tuple[Heavy, ...]:
    """Add up the rows of heavy groups and keep the heaviest."""
    by_hash: dict[int, Heavy] = {}
    for heavy in (heavy for tally in tallies for heavy in tally):
        seen = by_hash.get(heavy.hash, heavy._replace(rows=0))
        by_hash[heavy.hash] = seen._replace(rows=seen.rows + heavy.rows)
    return tuple(sorted(by_hash.values(), key=lambda heavy: (-heavy.rows, heavy.hash))[:HEAVIEST])


def merge_first(firsts: Sequence[np.ndarray], partitions: Sequence[int]) -> np.ndarray:
    """Return the first partition with a defect, numbered through all."""
    first, start = np.full_like(firsts[0], -1), 0
    for part, count in zip(firsts, partitions, strict=True):
        first = np.where((first < 0) & (part >= 0), part + start, first)
        start += count
    return first


def merge_found(
    tallies: Sequence[tuple[tuple[Found, ...], ...]], partitions: Sequence[int]
) -> tuple[tuple[Found, ...], ...]:
    """Return what is first found in which partition, numbered through all."""
    columns: list[dict[str, Found]] = [{} for _ in tallies[0]]
    start = 0
    for part, count in zip(tallies, partitions, strict=True):
        for seen, found in zip(columns, part, strict=True):
            for one in found:
                if len(seen) < DTYPES:
                    seen.setdefault(one.what, one._replace(partition=one.partition + start))
        start += count
    return tuple(tuple(seen.values()) for seen in columns)
