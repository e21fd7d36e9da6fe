"""Leave-one-out densities of many rows at once, by importance sampling with smoothed weights.

Without a row the posterior is as before, divided by the row's likelihood. The largest of these
weights are replaced by quantiles of a generalised Pareto distribution fitted to them, whose shape
says whether the estimate can be trusted (PSIS: Vehtari, Simpson, Gelman, Yao, Gabry 2024, JMLR 25;
fit by Zhang and Stephens 2009, Technometrics 51). ArviZ does this one row at a time.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy.special

_PRIOR_SHAPE, _PRIOR_DRAWS = 0.5, 10  # that the fitted shape is drawn to, and by how many draws
_AT_ONCE = 2**18  # numbers of an array that is gone through many times
_FACTORS, _MOST_UNEVEN = 10, 1e25  # that are multiplied before a logarithm is taken


class Left(NamedTuple):
    """What is said of R rows, each left out."""

    elpd: np.ndarray  # (R,) expected log predictive density
    lpd: np.ndarray  # (R,) log predictive density with the row left in
    pareto_k: np.ndarray  # (R,)


def leave_out(log_likelihood: np.ndarray) -> Left:
    """Leave out each row, given its log likelihood ``(S, R)`` at S draws of the posterior."""
    n, rows = log_likelihood.shape
    step = max(1, _AT_ONCE // n)
    parts = [_leave_out(log_likelihood[:, i : i + step]) for i in range(0, rows, step)]
    if not parts:
        return Left(*np.zeros((3, 0)))
    return Left(*map(np.concatenate, zip(*parts, strict=True)))


def good_k(draws: int) -> float:
    """Shape up to which an estimate from so many draws can be trusted."""
    return min(1 - 1 / np.log10(draws), 0.7)


def log_mean_exp(log_likelihood: np.ndarray) -> np.ndarray:
    """Log of the mean over draws, along the first axis."""
    highest = log_likelihood.max(axis=0)
    return np.asarray(np.log(np.exp(log_likelihood - highest).mean(axis=0)) + highest)


def _tail_length(n: int) -> int:
    return int(np.ceil(min(n / 5, 3 * np.sqrt(n))))


def _leave_out(log_likelihood: np.ndarray) -> Left:
    bad = ~np.isfinite(log_likelihood).all(axis=0)
    if bad.any():
        return _with_impossible(log_likelihood, bad)
    n, m = len(log_likelihood), _tail_length(len(log_likelihood))
    lpd = log_mean_exp(log_likelihood)
    most = -log_likelihood.min(axis=0)
    ratio = -log_likelihood - most
    parted = np.partition(ratio, n - m - 1, axis=0)
    body, cut = parted[: n - m], parted[n - m - 1]
    tail = np.sort(parted[n - m :], axis=0)
    beyond = np.exp(tail) - np.exp(cut)
    shape, scale = _fit(np.maximum(beyond, 1e-300))
    share = (np.arange(m) + 0.5)[:, None] / m
    with np.errstate(divide="ignore", invalid="ignore"):
        smooth = scale * np.where(
            np.abs(shape) < 1e-12, -np.log1p(-share), np.expm1(-shape * np.log1p(-share)) / shape
        )
        smoothed = np.minimum(np.log(smooth + np.exp(cut)), 0.0)
    # Weights that are all alike have no tail to fit, and need none.
    flat = ~np.isfinite(shape) | (tail[-1] - cut < 1e-12)
    smoothed = np.where(flat, tail, smoothed)
    # Of what is not in the tail, weight times likelihood is one number.
    above = np.log(n - m + np.exp(smoothed - tail).sum(axis=0)) - most
    below = np.log(np.exp(body).sum(axis=0) + np.exp(smoothed).sum(axis=0))
    return Left(above - below, lpd, np.where(flat, -np.inf, shape))


def _with_impossible(log_likelihood: np.ndarray, bad: np.ndarray) -> Left:
    """Leave out rows some of which are impossible at some draws: no draws speak for these."""
    left = _leave_out(np.where(bad, 0.0, log_likelihood))
    nan = np.isnan(log_likelihood).any(axis=0)
    lpd = left.lpd.copy()
    highest = np.maximum(np.nan_to_num(log_likelihood[:, bad], nan=-np.inf), -1e300)
    lpd[bad] = log_mean_exp(highest)
    lpd[bad & (lpd <= -1e299)] = -np.inf
    lpd[nan] = np.nan
    elpd = np.where(nan, np.nan, np.where(bad, -np.inf, left.elpd))
    return Left(elpd, lpd, np.where(bad, np.inf, left.pareto_k))


def _fit(tail: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Shape and scale of generalised Pareto distributions, from rising values ``(M, R)``."""
    m = len(tail)
    n_grid = 30 + int(np.sqrt(m))
    quarter = tail[int(m / 4 + 0.5) - 1]
    with np.errstate(all="ignore"):
        grid = 1 - np.sqrt(n_grid / (np.arange(1, n_grid + 1) - 0.5))
        theta = grid[:, None] / (3 * quarter) + 1 / tail[-1]
        k = _log_sums(theta, tail, quarter) / m
        height = m * (np.log(-theta / k) - k - 1)
        weights = scipy.special.softmax(height, axis=0)
        best = (theta * weights).sum(axis=0)
        shape = np.log1p(-best * tail).mean(axis=0)
        scale = -shape / best
        shape = (m * shape + _PRIOR_DRAWS * _PRIOR_SHAPE) / (m + _PRIOR_DRAWS)
    return shape, scale


def _log_sums(theta: np.ndarray, tail: np.ndarray, quarter: np.ndarray) -> np.ndarray:
    """Sum ``log(1 - theta x)`` over values ``(M, R)`` at places ``(n, R)``: ``(n, R)``.

    The logarithm of a product of few factors is taken, where these cannot overflow.
    """
    total, product, factor = np.zeros_like(theta), np.ones_like(theta), np.empty_like(theta)
    for i, values in enumerate(tail, 1):
        np.multiply(theta, values, out=factor)
        product *= np.subtract(1, factor, out=factor)
        if i % _FACTORS == 0 or i == len(tail):
            total += np.log(product)
            product[:] = 1
    uneven = ~(tail[-1] < _MOST_UNEVEN * quarter)
    if uneven.any():
        total[:, uneven] = np.log1p(-theta[:, None, uneven] * tail[:, uneven]).sum(axis=1)
    return total
