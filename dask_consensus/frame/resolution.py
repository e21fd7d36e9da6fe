"""Does single precision tell the values of a column apart? A sample of whole groups says.

A float has 24 bits: 1.7e9 seconds are known to two minutes, 1e7 to a half. Where that is not small
against what the values differ by, the model sees noise of rounding; and where it is not small
against a posterior sd, which is smaller by the root of the number of rows, no parameter that lies
where the values lie can be written down. Neither shows in weights or chains. The sample is judged
in robust units, so that one outlier neither hides a column nor condemns it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .keys import mix

GROUPS, ROWS = 64, 1024
"""Groups in the sample, and rows of all of them."""

_CONSTANT = 1e-12  # relative spread up to which doubles differ by rounding alone
_LEVEL = 0.25
"""Largest half step of a float, in posterior sds of a mean: rounding moves it by 0.1 at most."""
_LEVEL_EXACT = 1.0  # the same where every value is a float already: no error adds up over rows
_WITHIN = 3e-3
"""Largest half step of a float, in sds of the values of one group.

Rounding widens an sd by half the square of (0.6 times) this, 1.6e-6 of itself: 0.002 of its
posterior sds with a million rows, and 0.2 where the noise is a tenth of what values differ by.
"""
_COINCIDE = 0.4
"""Share of distinct values in the sample that may coincide once rounded.

Of 1,024 normal values half do where a half step is `_WITHIN` sds; this finds the same in values
that lie in several clumps, whose spread as a whole is large.
"""
_FAR = 1 / np.sqrt(np.finfo(float).eps)
"""Largest distance from zero, in spreads: its square is lost in the rounding of a double."""
_CANCELLED = 0.05  # of the spread of either, that the spread of a difference is small against
_GLANCE = 64  # rows
_FEW = 8  # values that say nothing of a spread
_SHARE = 0.05  # of the sample, that values of like size must have to be looked at by themselves


class Sample(NamedTuple):
    """Rows of the groups of smallest hash, and of each those of smallest hash."""

    group: np.ndarray  # (rows,) uint64, hash of the outermost key; zeros without one
    row: np.ndarray  # (rows,) uint64, hash of key and values
    values: np.ndarray  # (rows, columns) float64, exactly


def sample_rows(
    hashes: np.ndarray | None, groups: np.ndarray, values: Sequence[np.ndarray], rows: int
) -> Sample:
    """Sample the rows of a partition, from exact values of each numeric column.

    `hashes` are those of the rows' outermost keys, None without any; `groups` the distinct ones,
    sorted.
    """
    if hashes is None:
        take = np.unique(np.linspace(0, rows - 1, 4 * ROWS).astype(int)) if rows else np.arange(0)
        group = np.zeros(len(take), np.uint64)
    else:
        last = groups[:GROUPS][-1:]
        take = np.flatnonzero(hashes <= last) if len(last) else np.arange(0)
        take = take[:: max(1, len(take) // (16 * ROWS))]
        group = hashes[take]
    row = group
    for column in values:
        row = mix(row + (_floats(column, take) + 0.0).view(np.uint64))
    # Of many columns the numbers of all rows looked at would be large.
    order = _order(group, row)
    table = np.empty((len(order), len(values)))
    for i, column in enumerate(values):
        table[:, i] = _floats(column, take[order])
    return Sample(group[order], row[order], table)


def _floats(column: np.ndarray, take: np.ndarray) -> np.ndarray:
    return column[take].astype(np.float64)


def merge_samples(parts: Sequence[Sample]) -> Sample:
    """Return the sample of all rows from the samples of some."""
    return _kept(Sample(*(np.concatenate(column) for column in zip(*parts, strict=True))))


def too_coarse(sample: Sample, column: int, rows: int, dtype: np.dtype) -> str:
    """Say how floats of a dtype fail a column of the sample; empty where they do not."""
    values = sample.values[:, column]
    values, group = values[np.isfinite(values)], sample.group[np.isfinite(values)]
    exact, half_step = np.sort(values), np.finfo(dtype).eps / 2
    rounded = exact.astype(dtype).astype(float)
    distinct, kept = len(_distinct(exact)), len(np.unique(rounded))
    if distinct >= _FEW and kept < (1 - _COINCIDE) * distinct:
        return f"of {distinct:,} values sampled only {kept:,} remain apart"
    # What is a float already loses nothing: only parameters are rounded, not data.
    lossless = bool((rounded == exact).all())
    level, within = (_LEVEL_EXACT, np.inf) if lossless else (_LEVEL, _WITHIN)
    for part in _of_like_size(exact):
        n, spread = rows * len(part) / len(exact), _spread(part)
        ratio = half_step * np.abs(part).max() / spread if spread else 0.0
        if ratio * np.sqrt(n) > level or ratio > within:
            return (
                f"values near {np.median(part):.6g} with a spread of {spread:.2g} are rounded by "
                f"up to {ratio * spread:.2g}"
            )
    spread = _within_groups(values, group)
    ratio = half_step * np.median(np.abs(values)) / spread if spread else 0.0
    if ratio > within:
        return f"values of a group, with a spread of {spread:.2g}, are rounded by {ratio:.2g} of it"
    return ""


def cancelled(sample: Sample, dtype: np.dtype) -> list[tuple[int, int, str]]:
    """Say which pairs of columns differ by what floats of a dtype do not hold: a begin and an end.

    Each by itself may be known well enough, its values being spread over years; of their difference
    little is left where it is some minutes.
    """
    values = sample.values[np.isfinite(sample.values).all(axis=1)]
    if len(values) < _FEW or values.shape[1] < 2:
        return []
    error = values.astype(dtype).astype(np.float64) - values
    rounded = (error != 0).any(axis=0)
    few = values[:: max(1, len(values) // _GLANCE)]
    spreads = np.array([_spread(np.sort(column)) for column in values.T])
    found = []
    for i in range(values.shape[1] - 1):
        # Most pairs are told apart at a glance.
        away = few[:, [i]] - few[:, i + 1 :]
        glance = np.median(np.abs(away - np.median(away, axis=0)), axis=0)
        least = np.minimum(spreads[i], spreads[i + 1 :])
        suspect = (glance < 2 * _CANCELLED * least) & (rounded[i] | rounded[i + 1 :])
        for j in (i + 1 + np.flatnonzero(suspect)).tolist():
            spread = _spread(np.sort(values[:, i] - values[:, j]))
            missed = float(np.abs(error[:, i] - error[:, j]).max())
            # What doubles round away is no difference.
            tiny = _CONSTANT * np.abs(values[:, i]).max()
            near = _CANCELLED * min(spreads[i], spreads[j])
            if tiny < spread < near and missed > _WITHIN * spread:
                problem = f"differences, with a spread of {spread:.2g}, are rounded by {missed:.2g}"
                found.append((i, j, problem))
    return found


def far_off(sample: Sample, column: int) -> str:
    """Say how far from zero the values of a column lie, if densities are rounded to ties there.

    A sum of squares about a place near zero is then the same number for places that are far apart:
    a search that begins there is led nowhere.
    """
    values = np.sort(sample.values[:, column])
    values = values[np.isfinite(values)]
    spread = _spread(values) if len(values) >= _FEW else 0.0
    if not spread or np.abs(values).min() <= _FAR * spread:
        return ""
    return f"values near {np.median(values):.6g} with a spread of {spread:.2g}"


def _kept(sample: Sample) -> Sample:
    """Keep the groups of smallest hash, and of each the rows of smallest hash."""
    order = _order(sample.group, sample.row)
    return Sample(sample.group[order], sample.row[order], sample.values[order])


def _order(groups: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return which rows are kept, in the order of their hashes."""
    order = np.lexsort([rows, groups])
    group = groups[order]
    first = np.flatnonzero(np.append(True, group[1:] != group[:-1])) if len(group) else order
    number = np.searchsorted(first, np.arange(len(group)), "right") - 1
    place = np.arange(len(group)) - first[number] if len(group) else order
    # There are more groups in the sample of more rows, and of each never more rows than before.
    limit = ROWS // min(GROUPS, max(1, len(first)))
    return order[(number < GROUPS) & (place < limit)]


def _of_like_size(values: np.ndarray) -> list[np.ndarray]:
    """Split sorted values where one is more than twice its neighbour, or has another sign."""
    small, large = np.sort(np.abs([values[:-1], values[1:]]), axis=0)
    apart = (large > 2 * small) | (np.sign(values[:-1]) != np.sign(values[1:]))
    parts = np.split(values, np.flatnonzero(apart) + 1) if len(values) else []
    return [part for part in parts if len(part) >= max(_FEW, _SHARE * len(values))]


def _spread(values: np.ndarray) -> float:
    """Return a robust sd of sorted values, 0 where they are constant."""
    quarter, three = np.quantile(values, [0.25, 0.75])
    spread = (three - quarter) / 1.349 or float(values.std())
    return float(spread) if spread > _CONSTANT * np.abs(values).max() else 0.0


def _within_groups(values: np.ndarray, group: np.ndarray) -> float:
    """Return the median sd of the values of a group, of those in which they differ."""
    spreads = []
    for number in np.unique(group):
        part = values[group == number]
        if len(part) > 1:
            spreads.append(_spread(np.sort(part)))
    differing = [spread for spread in spreads if spread]
    return float(np.median(differing)) if len(differing) >= _FEW else 0.0


def _distinct(values: np.ndarray) -> np.ndarray:
    """Return the distinct values; those that double precision rounds apart are one."""
    distinct = np.unique(values)
    gaps = np.diff(distinct, prepend=-np.inf)
    return distinct[gaps > _CONSTANT * np.abs(distinct)]
