"""One pass over a frame: how many rows each group has, and whether the model can use them.

A survey has a bounded size, whatever the number of groups, apart from three numbers a partition.
Surveys of neighbouring partitions add up to the survey of both, so a tree reduces them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
from dask.delayed import delayed

from ..cluster.tasks import tree
from ..shard_data import Contents
from .arrays import Column, Layout, answered, encode_values, read_columns
from .contents import add_contents, contents_of
from .defects import (
    Found,
    count_defects,
    explain_defects,
    explain_keys,
    few,
    key_kinds,
    value_dtype,
)
from .key_kinds import read_keys
from .keys import Form, Keys, common_form, conflicts, hash_keys
from .resolution import Sample, cancelled, far_off, merge_samples, sample_rows, too_coarse
from .tallies import HEAVIEST, Heavy, add_up, coarsen, merge_first, merge_found, merge_heaviest
from .values import exact_numbers, missing

if TYPE_CHECKING:
    import dask.dataframe as dd
    from dask.delayed import Delayed


BUCKETS = 262_144
"""Most hashes of keys to tell apart.

Where there are more, between half and all of this number of buckets are counted. Some 16 a shard
balance shards to within 5%: this number serves 8,000 shards.
"""
SKETCH = 1024
"""Smallest hashes kept to estimate the number of groups, with an error of 1/sqrt(SKETCH)."""


class Survey(NamedTuple):
    """What one pass over the rows has counted; rows are int64, hashes uint64.

    Edges are hashes of the smallest and largest key of each partition, where the frame is divided
    by key; zeros elsewhere. Buckets are leading bits of the hashes of the outermost keys, sorted.
    """

    partition_rows: np.ndarray  # (partitions,)
    partition_groups: np.ndarray  # (partitions,) int64; distinct outermost groups
    edges: np.ndarray  # (partitions, 2)
    buckets: np.ndarray  # (buckets,)
    bucket_rows: np.ndarray  # (buckets,)
    shift: int  # low bits that a bucket leaves out; 0 where each group has a bucket of its own
    sketch: np.ndarray  # the smallest distinct hashes
    heaviest: tuple[Heavy, ...]  # groups with many rows, heaviest first
    defects: np.ndarray  # (columns, kinds) int64; values that the model cannot use
    first: np.ndarray  # (columns, kinds) int64; the first partition with one, else -1
    found: tuple[tuple[Found, ...], ...]  # of each column: kinds of keys, or dtypes of values
    contents: Contents  # what the columns hold; zeros where there are defects
    sample: Sample  # of the columns of values
    unanswered: int = 0  # rows without any response, which are left out and counted nowhere else

    @property
    def rows(self) -> int:
        """Number of rows of the frame."""
        return int(self.partition_rows.sum())

    def forms(self, layout: Layout) -> tuple[Form, ...]:
        """Return the form that the keys of each level have in common."""
        kinds = (tuple(one.what for one in found) for found in self.found)
        return tuple(common_form(next(kinds)) for _ in layout.by)

    @property
    def groups_exact(self) -> bool:
        """Whether the number of groups is exact, not an estimate."""
        return self.shift == 0

    @property
    def n_groups(self) -> int:
        """Number of outermost groups, from the smallest hashes where they are too many to count.

        The estimate is the unbiased one of Beyer et al. (2007), "On synopses for distinct-value
        estimation under multiset operations": about 3% off.
        """
        if self.groups_exact:
            return len(self.buckets)
        return round((len(self.sketch) - 1) * 2.0**64 / float(self.sketch[-1]))

    @property
    def largest(self) -> tuple[str, int]:
        """Label and rows of the largest group, ("", 0) without groups.

        The rows are a lower bound unless `groups_exact`: a partition names its heaviest groups
        only.
        """
        if not self.heaviest:
            return "", 0
        hashes = np.array([heavy.hash for heavy in self.heaviest], np.uint64)
        rows = np.array([heavy.rows for heavy in self.heaviest])
        if self.groups_exact:
            rows = self.bucket_rows[np.searchsorted(self.buckets, hashes)]
        return self.heaviest[rows.argmax()].label, int(rows.max())


def used(frame: dd.DataFrame, layout: Layout) -> dd.DataFrame:
    """Return the columns that `layout` uses, the index among them if it is one; computes nothing.

    Raises
    ------
    ValueError
        If a column is not in the frame.
    """
    names = list(dict.fromkeys([*layout.by, *(column.column for column in layout.columns)]))
    if frame.index.name in names and frame.index.name not in frame.columns:
        frame = frame.reset_index()
    missing = [name for name in names if name not in frame.columns]
    if missing:
        raise ValueError(f"no column {missing} in the frame; it has {list(frame.columns)}")
    return frame[names]


def divided_by_key(frame: dd.DataFrame, layout: Layout) -> bool:
    """Tell whether known divisions of the frame are those of the outermost key."""
    key = layout.by[0] if layout.by else None
    return bool(
        key is not None
        and frame.known_divisions
        and frame.index.name == key
        and key not in frame.columns
    )


def survey(
    frame: dd.DataFrame, layout: Layout, *, split_every: int = 8, buckets: int = BUCKETS
) -> Delayed:
    """Count rows, groups and unusable values in one pass over the frame, lazily: a `Survey`.

    One task of the tree merges `split_every` surveys. At most `buckets` hashes of keys are told
    apart; let there be at least 16 a shard, or the default.
    """
    if split_every < 2:
        raise ValueError(f"split_every must be at least 2, got {split_every}")
    if buckets < SKETCH:
        raise ValueError(f"buckets must be at least {SKETCH}, got {buckets}")
    rows = used(frame, layout)
    # A column of a dtype that no model takes fails here, before anything runs.
    layout = layout.typed(rows._meta)
    surveys = rows.map_partitions(
        survey_partition,
        layout,
        buckets,
        divided_by_key(frame, layout),
        meta=(None, "object"),
        enforce_metadata=False,
    ).to_delayed()
    merged = delayed(merge, pure=True)
    return tree(surveys, lambda parts: merged(parts, buckets), split_every)


def survey_partition(
    partition: pd.DataFrame, layout: Layout, buckets: int = BUCKETS, divided: bool = False
) -> Survey:
    """Return the survey of one partition; `divided` says that the frame is divided by key."""
    everything = len(partition)
    if layout.responses:
        partition = partition[answered(partition, layout)]
    defects = count_defects(partition, layout)
    # Only keys that are there can be read; a frame with others is refused.
    present = [_present(partition[name]) for name in layout.by]
    keys = [read_keys(key) for key in present]
    hashed = [hash_keys(key) for key in keys]
    outermost = hashed[0] if hashed else np.empty(0, np.uint64)
    hashes, position, rows = np.unique(outermost, return_index=True, return_counts=True)
    counted, counted_rows, shift = coarsen(hashes, rows, 0, buckets)
    top = np.argsort(-rows, kind="stable")[:HEAVIEST]
    sound = not defects.any() and not any(conflicts(key.kinds) for key in keys)
    found = [key_kinds(key, values) for key, values in zip(keys, present, strict=True)]
    found += [value_dtype(read.values, read.column) for read in read_columns(partition, layout)]
    return Survey(
        partition_rows=np.array([len(partition)]),
        partition_groups=np.array([len(hashes)]),
        edges=_edges(present[0], keys[0], outermost) if divided else np.zeros((1, 2), np.uint64),
        buckets=counted,
        bucket_rows=counted_rows,
        shift=shift,
        sketch=hashes[:SKETCH],
        heaviest=tuple(
            Heavy(int(hashes[i]), int(rows[i]), str(present[0].iloc[position[i]])) for i in top
        ),
        defects=defects,
        first=np.where(defects > 0, 0, -1),
        found=tuple(found),
        contents=_contents(partition if sound else partition.iloc[:0], layout, hashed),
        sample=_sample(partition if sound else partition.iloc[:0], layout, outermost, hashes),
        unanswered=everything - len(partition),
    )


def _present(key: pd.Series) -> pd.Series:
    """Return the keys that are not missing."""
    absent = np.logical_or(*missing(key))
    return key[~absent] if absent.any() else key


def _contents(partition: pd.DataFrame, layout: Layout, hashed: Sequence[np.ndarray]) -> Contents:
    """Sum up what the rows hold."""
    values = list(encode_values(partition, layout).values())
    return contents_of([hashes[: len(partition)] for hashes in hashed], values)


def _sample(
    partition: pd.DataFrame, layout: Layout, hashes: np.ndarray, groups: np.ndarray
) -> Sample:
    """Sample the rows, with the numbers of each column of values."""
    rows = len(partition)
    read = [one for one in read_columns(partition, layout) if one.column.kind == "value"]
    numbers = [exact_numbers(one.values) for one in read]
    present = [column for column in numbers if column is not None]
    return sample_rows(hashes[:rows] if layout.by else None, groups[:rows], present, rows)


def merge(surveys: Sequence[Survey], buckets: int = BUCKETS) -> Survey:
    """Return the survey of all partitions from the surveys of some, in their order."""
    partitions = [len(part.partition_rows) for part in surveys]
    shift = max(part.shift for part in surveys)
    counted, counted_rows = add_up(
        np.concatenate([part.buckets >> (shift - part.shift) for part in surveys]),
        np.concatenate([part.bucket_rows for part in surveys]),
    )
    counted, counted_rows, shift = coarsen(counted, counted_rows, shift, buckets)
    return Survey(
        partition_rows=np.concatenate([part.partition_rows for part in surveys]),
        partition_groups=np.concatenate([part.partition_groups for part in surveys]),
        edges=np.concatenate([part.edges for part in surveys]),
        buckets=counted,
        bucket_rows=counted_rows,
        shift=shift,
        sketch=np.unique(np.concatenate([part.sketch for part in surveys]))[:SKETCH],
        heaviest=merge_heaviest([part.heaviest for part in surveys]),
        defects=np.sum([part.defects for part in surveys], axis=0),
        first=merge_first([part.first for part in surveys], partitions),
        found=merge_found([part.found for part in surveys], partitions),
        contents=add_contents([part.contents for part in surveys]),
        sample=merge_samples([part.sample for part in surveys]),
        unanswered=sum(part.unanswered for part in surveys),
    )


def check(survey: Survey, layout: Layout) -> None:
    """Raise if the frame is empty or holds values that the model cannot use.

    Raises
    ------
    ValueError
        Naming each column and key concerned, the number of such values, the first partition with
        one, and what to do.
    """
    if not survey.rows:
        raise ValueError("the frame has no rows: check its filters, or the files it reads")
    complaints = [
        complaint
        for name, found in zip(layout.by, survey.found, strict=False)
        for complaint in explain_keys(found, name)
    ]
    complaints += explain_defects(survey.defects, survey.first, layout, survey.found)
    if not complaints:
        complaints = _coarse_columns(survey, layout)
    if complaints:
        raise ValueError(
            "the frame holds values that the model cannot use:\n- " + "\n- ".join(complaints)
        )


def far_columns(survey: Survey, layout: Layout) -> list[str]:
    """Say which columns lie so far from zero that searches may be led nowhere, and what to do."""
    told: dict[str, list[str]] = {}
    for i, column in enumerate(layout.values):
        what = far_off(survey.sample, i)
        if what:
            told.setdefault(column.argument, []).append(
                f"argument {column.argument!r} (column {column.label!r}) has {what}: densities of "
                "parameters that are not as far from zero differ by less than rounding, so that "
                "the mode may not be found, and importance weights tie. Centre the column"
                f"{_centred(column, ', as in `{}`')}"
            )
    return [line for argument, lines in told.items() for line in few(lines, argument)]


def _centred(column: Column, pattern: str) -> str:
    """Say how a column is centred; lists are where they are made."""
    name = column.column
    if column.item >= 0:
        return ""
    return pattern.format(f"ddf.assign(**{{{name!r}: ddf[{name!r}] - ddf[{name!r}].mean()}})")


def hash_key(key: pd.Series) -> np.ndarray:
    """Return 64-bit hashes of keys without missing values, alike in every partition."""
    return hash_keys(read_keys(key))


def _coarse_columns(survey: Survey, layout: Layout) -> list[str]:
    """Say which columns the working precision cannot tell the values of apart."""
    precision = np.dtype(np.float64 if layout.x64 else np.float32)
    told: dict[str, list[str]] = {}
    for i, column in enumerate(layout.values):
        problem = too_coarse(survey.sample, i, survey.rows, precision)
        if problem:
            told.setdefault(column.argument, []).append(
                f"argument {column.argument!r} (column {column.label!r}): "
                f"{precision.itemsize * 8}-bit floats are too coarse: {problem}; centre the column "
                f"in double precision{_centred(column, ' (`{}`)')}, or enable 64-bit numbers in "
                "JAX (`jax.config.update('jax_enable_x64', True)`)"
            )
    columns = layout.values
    for i, j, problem in cancelled(survey.sample, precision):
        one, other = columns[i], columns[j]
        told.setdefault(one.argument, []).append(
            f"arguments {one.argument!r} (column {one.label!r}) and {other.argument!r} (column "
            f"{other.label!r}): {precision.itemsize * 8}-bit floats are too coarse for what they "
            f"differ by: {problem}; give the model the difference as a column, or enable 64-bit "
            "numbers in JAX (`jax.config.update('jax_enable_x64', True)`)"
        )
    return [line for argument, lines in told.items() for line in few(lines, argument)]


def _edges(key: pd.Series, keys: Keys, hashes: np.ndarray) -> np.ndarray:
    """Return the hashes of the smallest and largest key as one row; zeros without keys."""
    if not len(key):
        return np.zeros((1, 2), np.uint64)
    # A categorical is divided by the order of its categories.
    categorical = isinstance(key.dtype, pd.CategoricalDtype)
    order = pd.Series(key.cat.codes.to_numpy() if categorical else keys.rows)
    return hashes[order.sort_values().index[[0, -1]]][np.newaxis]
