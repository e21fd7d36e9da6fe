"""All rows left out, estimated from some of them.

Of every row there is a rough number, of few draws; of some rows, chosen at random, how far it is
off. The sum of the former and the mean of the latter are the difference estimator of Magnusson,
Andersen, Jonasson, Vehtari (2019, "Bayesian leave-one-out cross-validation for large data", PMLR
97), whose error shrinks with the spread of what the rough numbers leave. These are those of the
widely applicable information criterion: the log predictive density less the variance of the log
likelihood (Watanabe 2010, Journal of Machine Learning Research 11). `arviz_stats.loo_subsample` is
the same of rows that lie in one array, and tests hold the two together; here a partition says no
more of its rows than their sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .psis import Left, log_mean_exp

LEAST = 100  # rows from which the error can be estimated


class Rough(NamedTuple):
    """What few draws say of R rows."""

    elpd: np.ndarray  # (R,)
    effective: np.ndarray  # (R,) effective parameters: elpd with the row left in, less that without


class Part(NamedTuple):
    """What is known of the rows of a partition."""

    rows: int
    elpd: float  # sum of the rough numbers
    squares: float  # of their squares
    effective: float
    chosen: np.ndarray  # (m,) which rows were left out
    rough: Rough  # of these
    left: Left


class Estimate(NamedTuple):
    """What is estimated of all rows."""

    elpd: float
    se: float  # over data of the same kind
    subsampling_se: float  # as not all of these rows were left out
    p: float
    rows: np.ndarray  # (m,) which rows were
    left: Left


def rough(log_likelihood: np.ndarray) -> Rough:
    """Say roughly what rows are left out to, from ``(S, R)`` log likelihoods at few draws."""
    log_likelihood = log_likelihood.astype(np.float64)
    variance = log_likelihood.var(axis=0, ddof=1)
    return Rough(log_mean_exp(log_likelihood) - variance, variance)


def part(roughly: Rough, chosen: np.ndarray, left: Left) -> Part:
    """Sum up a partition."""
    elpd, effective = roughly
    sums = float(elpd.sum()), float((elpd**2).sum()), float(effective.sum())
    return Part(len(elpd), *sums, chosen, Rough(elpd[chosen], effective[chosen]), left)


def estimate(parts: Sequence[Part]) -> Estimate:
    """Estimate the sums over all rows; partitions are in their order."""
    n = sum(one.rows for one in parts)
    before = np.cumsum([0, *(one.rows for one in parts[:-1])])
    chosen = np.concatenate([one.chosen + first for one, first in zip(parts, before, strict=True)])
    left = Left(*map(np.concatenate, zip(*(one.left for one in parts), strict=True)))
    roughly = Rough(*map(np.concatenate, zip(*(one.rough for one in parts), strict=True)))
    m = len(chosen)
    off = left.elpd - roughly.elpd
    elpd = sum(one.elpd for one in parts) + n * off.mean()
    variance = n**2 * (1 - m / n) * off.var(ddof=1) / m
    squares = sum(one.squares for one in parts) + n * np.mean(left.elpd**2 - roughly.elpd**2)
    p = sum(one.effective for one in parts) + n * np.mean(left.lpd - left.elpd - roughly.effective)
    spread = max(squares - (elpd**2 - variance) / n, 0.0)
    return Estimate(elpd, float(np.sqrt(spread)), float(np.sqrt(variance)), float(p), chosen, left)
