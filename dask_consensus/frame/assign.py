"""Rows reach balanced shards, and no group is ever split.

A hash shuffle leaves shards empty and uneven. Here the rows of each hash bucket of the outermost
key are counted first (:mod:`dask_consensus.cluster.survey`), many more buckets than shards;
:func:`assign` packs buckets into shards of nearly equal size; :func:`shards` sends each row to the
shard of its bucket. Frames already divided by key are packed partition by partition instead, and
rows without a key are dealt out one by one.
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from .arrays import Layout
from .keys import Form
from .shuffle import BucketMap, gather_partitions, place_by_key, place_in_turn, shuffle
from .survey import Survey, divided_by_key, used

if TYPE_CHECKING:
    import dask.dataframe as dd
    from dask.delayed import Delayed


BALANCE = 0.10
"""How far a shard's rows may be from the mean before whole partitions are not good enough."""


class Assignment(NamedTuple):
    """Which rows belong to which shard.

    Kinds are: all rows in one shard ("whole"), partitions kept whole ("divisions"), groups by the
    hash of their key ("hash"), rows dealt out ("rows"). The first two need no shuffle.
    """

    n_shards: int
    rows: np.ndarray  # (n_shards,) int64, exactly
    groups: np.ndarray  # (n_shards,) int64; outermost groups
    kind: Literal["whole", "divisions", "hash", "rows"]
    largest: tuple[str, int] | None  # label and rows of a group larger than a shard should be
    # Of each hash bucket the shard (kind "hash").
    table: BucketMap = BucketMap(np.empty(0, np.uint64), np.empty(0, np.int32), 0)
    # Of each partition the shard (kinds "whole" and "divisions").
    members: np.ndarray = np.empty(0, np.int32)
    # Of each partition the number of its first row in the frame (kind "rows").
    offsets: np.ndarray = np.empty(0, np.int64)
    # Of the keys of each level the form they have in common.
    forms: tuple[Form, ...] = ()


def assign(
    survey: Survey,
    frame: dd.DataFrame,
    layout: Layout,
    *,
    n_shards: int | None = None,
    rows_per_shard: int = 50_000,
) -> Assignment:
    """Assign groups to shards of nearly equal size; computes nothing.

    `survey` is the computed survey of `frame`. By default there are rows / `rows_per_shard` shards,
    at least 1 and at most the number of groups.

    Raises
    ------
    ValueError
        If a number of shards is asked for that would leave some empty.
    """
    wanted = _shard_count(survey, layout, n_shards, rows_per_shard)
    by_default = None if n_shards else _as_divided(survey, rows_per_shard, wanted)
    assignment = _assign(survey, frame, layout, wanted, by_default)
    return assignment._replace(forms=survey.forms(layout))


def pack(rows: np.ndarray, n_shards: int) -> tuple[np.ndarray, np.ndarray]:
    """Pack items into shards of nearly equal size, largest item first into the smallest shard.

    Graham (1969), "Bounds on multiprocessing timing anomalies": the fullest shard is at most a
    third fuller than it need be, and far closer where items are many. Ties go to the shard of
    lowest number, so that the result depends on the sizes alone. Returned are the shard of each
    item (int32) and the size of each shard (int64).

    Examples
    --------
    >>> pack(np.array([5, 3, 3, 2, 1]), 2)
    (array([0, 1, 1, 0, 1], dtype=int32), array([7, 7]))
    """
    members = np.empty(len(rows), np.int32)
    filled = [(0, shard) for shard in range(n_shards)]
    for item in np.argsort(-rows, kind="stable"):
        total, shard = filled[0]
        members[item] = shard
        heapq.heapreplace(filled, (total + int(rows[item]), shard))
    return members, np.array([total for _, total in sorted((s, t) for t, s in filled)])


def shards(
    frame: dd.DataFrame,
    layout: Layout,
    assignment: Assignment,
    *,
    shuffle_method: str | None = None,
) -> list[Delayed]:
    """Send every row of the frame surveyed to its shard and turn shards into arrays, lazily.

    Each result computes to a :class:`~dask_consensus.shard_data.Shard`. `shuffle_method` is that
    of :func:`.shuffle.shuffle`; kinds "whole" and "divisions" need none.
    """
    rows = used(frame, layout)
    layout = layout.typed(rows._meta)._replace(forms=assignment.forms)
    if assignment.kind in ("whole", "divisions"):
        return gather_partitions(rows, layout, assignment.members)
    if assignment.kind == "hash":
        placed = place_by_key(rows, layout, assignment.table)
    else:
        placed = place_in_turn(rows, layout, assignment.offsets, assignment.n_shards)
    return shuffle(placed, layout, assignment.rows, shuffle_method)


def _assign(
    survey: Survey, frame: dd.DataFrame, layout: Layout, wanted: int, divided: int | None
) -> Assignment:
    """Assign groups to a number of shards, or to another if the frame is divided so."""
    if wanted == 1:
        return _whole(survey)
    if not layout.by:
        return _by_rows(survey, wanted)
    if divided_by_key(frame, layout) and _groups_are_whole(survey):
        for candidate in [wanted] if divided is None else [wanted, divided]:
            members, rows = pack(survey.partition_rows, candidate)
            if _balanced(rows):
                return _by_divisions(survey, members, rows)
    return _by_hash(survey, wanted)


def _shard_count(survey: Survey, layout: Layout, n_shards: int | None, rows_per_shard: int) -> int:
    """Return the number of shards, as asked for or by default."""
    most = len(survey.buckets) if layout.by else survey.rows
    if n_shards is None:
        if rows_per_shard < 1:
            raise ValueError(f"rows_per_shard must be at least 1, got {rows_per_shard}")
        return max(1, min(round(survey.rows / rows_per_shard), most))
    if n_shards < 1:
        raise ValueError(f"n_shards must be at least 1, got {n_shards}")
    if n_shards > most:
        what = f"groups of {layout.by[0]!r}" if layout.by else "rows"
        if layout.by and not survey.groups_exact:
            what = "buckets of groups: survey more of them"
        raise ValueError(
            f"n_shards={n_shards} would leave shards empty: there are {most:,} {what}; "
            f"ask for at most {most:,} shards, or leave n_shards out"
        )
    return n_shards


def _whole(survey: Survey) -> Assignment:
    """Put all rows in one shard."""
    return Assignment(
        n_shards=1,
        rows=np.array([survey.rows]),
        groups=np.array([survey.n_groups]),
        kind="whole",
        largest=None,
        members=np.zeros(len(survey.partition_rows), np.int32),
    )


def _by_rows(survey: Survey, n_shards: int) -> Assignment:
    """Deal rows out one by one."""
    return Assignment(
        n_shards=n_shards,
        rows=survey.rows // n_shards + (np.arange(n_shards) < survey.rows % n_shards),
        groups=np.zeros(n_shards, np.int64),
        kind="rows",
        largest=None,
        offsets=np.cumsum(survey.partition_rows) - survey.partition_rows,
    )


def _by_divisions(survey: Survey, members: np.ndarray, rows: np.ndarray) -> Assignment:
    """Keep partitions whole, since groups are whole in them."""
    groups = np.zeros(len(rows), np.int64)
    np.add.at(groups, members, survey.partition_groups)
    return Assignment(
        n_shards=len(rows),
        rows=rows,
        groups=groups,
        kind="divisions",
        largest=_too_large(survey, len(rows)),
        members=members,
    )


def _by_hash(survey: Survey, n_shards: int) -> Assignment:
    """Keep the groups of a hash bucket together."""
    shard, rows = pack(survey.bucket_rows, n_shards)
    # Exact where every bucket is one group; else buckets hold about equally many.
    groups = np.bincount(shard, minlength=n_shards) * (survey.n_groups / len(survey.buckets))
    return Assignment(
        n_shards=n_shards,
        rows=rows,
        groups=groups.round().astype(np.int64),
        kind="hash",
        largest=_too_large(survey, n_shards),
        table=BucketMap(survey.buckets, shard, survey.shift),
    )


def _too_large(survey: Survey, n_shards: int) -> tuple[str, int] | None:
    """Return label and rows of the largest group if it has more rows than a shard should."""
    label, rows = survey.largest
    return (label, rows) if rows > (1 + BALANCE) * survey.rows / n_shards else None


def _groups_are_whole(survey: Survey) -> bool:
    """Tell whether no group of a frame divided by key lies in two partitions.

    Divisions alone do not say so: those read from the statistics of files allow the last key of a
    file to be the first of the next.
    """
    edges = survey.edges[survey.partition_rows > 0]
    split = (edges[1:, 0] == edges[:-1, 1]).any()
    return not split and (
        not survey.groups_exact or survey.partition_groups.sum() == survey.n_groups
    )


def _as_divided(survey: Survey, rows_per_shard: int, default: int) -> int:
    """Return how many partitions have rows if each would make a fair shard, else `default`."""
    rows = survey.partition_rows[survey.partition_rows > 0]
    fair = _balanced(rows) and rows_per_shard / 2 <= rows.mean() <= rows_per_shard * 2
    return len(rows) if fair else default


def _balanced(rows: np.ndarray) -> bool:
    """Tell whether all shards are about as large as the mean."""
    return bool(np.abs(rows / rows.mean() - 1).max() <= BALANCE)
