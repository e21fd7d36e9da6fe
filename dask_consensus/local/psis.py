"""Leave-one-out densities of many rows at once, by importance sampling with smoothed weights.

Without a row the posterior is as before, divided by the row's likelihood. The largest of these
weights are replaced by quantiles of a generalised Pareto distribution fitted to them, whose shape
says whether the estimate can be trusted (PSIS: Vehtari, Simpson, Gelman, Yao, Gabry 2024, JMLR 25;
fit by Zhang and Stephens 2009, Technometrics 51). ArviZ does this one row at a time.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..model.model import precision

_PRIOR_SHAPE, _PRIOR_DRAWS = 0.5, 10  # that the fitted shape is drawn to, and by how many draws
_AT_ONCE, _LEAST = 2**11, 2**8  # rows that are gone through together
_LEAST_WEIGHT = 1e-300
_FACTORS, _MOST_UNEVEN = 10, 1e25  # that are multiplied before a logarithm is taken


class Left(NamedTuple):
    """What is said of R rows, each left out."""

    elpd: np.ndarray  # (R,) expected log predictive density
    lpd: np.ndarray  # (R,) log predictive density with the row left in
    pareto_k: np.ndarray  # (R,)


def leave_out(log_likelihood: np.ndarray) -> Left:
    """Leave out each row, given its log likelihood ``(S, R)`` at S draws of the posterior."""
    rows = log_likelihood.shape[1]
    starts = range(0, rows, _AT_ONCE)
    parts = [_leave_out(log_likelihood[:, i : i + _AT_ONCE]) for i in starts]
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
    n, rows = log_likelihood.shape
    m = _tail_length(n)
    # Draws of a row side by side are parted several times as fast.
    parted = np.negative(log_likelihood.T, order="C")
    parted.partition(n - m - 1, axis=1)
    tail = np.sort(parted[:, n - m :], axis=1).T
    # Of few shapes, each of which is compiled.
    more = max(_LEAST, 1 << (rows - 1).bit_length()) - rows
    body = np.pad(parted[:, : n - m], [(0, more), (0, 0)], mode="edge")
    tail = np.pad(tail.astype(np.float64), [(0, 0), (0, more)], mode="edge")
    with precision(True):
        told = jax.device_get(_compiled()(body, tail))
    return Left(*(np.asarray(value[:rows]) for value in told))


@lru_cache(maxsize=1)
def _compiled() -> Any:
    return jax.jit(_smoothed)


def _smoothed(body: jax.Array, tail: jax.Array) -> tuple[jax.Array, ...]:
    """Leave out rows, given minus their log likelihoods: ``(R, S - M)``, and M rising largest."""
    body = body.astype(tail.dtype)
    n_body, m = body.shape[1], len(tail)
    lowest, most, cut = jnp.min(body, axis=1), tail[-1], jnp.max(body, axis=1)
    inside = jnp.exp(lowest[:, None] - body).sum(axis=1) + jnp.exp(lowest - tail).sum(axis=0)
    lpd = jnp.log(inside / (n_body + m)) - lowest
    weight, at_cut = jnp.maximum(jnp.exp(tail - most), _LEAST_WEIGHT), jnp.exp(cut - most)
    shape, scale = _fit(jnp.maximum(weight - at_cut, _LEAST_WEIGHT))
    # Quantiles of an exponential distribution, and of the one that its shape bends it to.
    straight = -np.log1p(-(np.arange(m) + 0.5)[:, None] / m)
    bent = jnp.where(
        jnp.abs(shape) < 1e-6,
        straight * (1 + shape * straight / 2),
        (jnp.exp(shape * straight) - 1) / shape,
    )
    # Weights that are all alike have no tail to fit, and need none.
    flat = ~jnp.isfinite(shape) | (most - cut < 1e-12)
    smoothed = jnp.where(flat, weight, jnp.minimum(scale * bent + at_cut, 1.0))
    # Of what is not in the tail, weight times likelihood is one number.
    above = jnp.log(n_body + (smoothed / weight).sum(axis=0)) - most
    below = jnp.log(jnp.exp(body - most[:, None]).sum(axis=1) + smoothed.sum(axis=0))
    return above - below, lpd, jnp.where(flat, -jnp.inf, shape)


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


def _fit(tail: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Shape and scale of generalised Pareto distributions, from rising values ``(M, R)``."""
    m = len(tail)
    n_grid = 30 + int(np.sqrt(m))
    quarter = tail[int(m / 4 + 0.5) - 1]
    grid = jnp.asarray(1 - np.sqrt(n_grid / (np.arange(1, n_grid + 1) - 0.5)))
    theta = grid[:, None] / (3 * quarter) + 1 / tail[-1]
    k = _log_sums(theta, tail, quarter) / m
    height = m * (jnp.log(-theta / k) - k - 1)
    weights = jax.nn.softmax(height, axis=0)
    best = (theta * weights).sum(axis=0)
    shape = _log_sums(best[None], tail, quarter)[0] / m
    scale = -shape / best
    shape = (m * shape + _PRIOR_DRAWS * _PRIOR_SHAPE) / (m + _PRIOR_DRAWS)
    return shape, scale


def _log_sums(theta: jax.Array, tail: jax.Array, quarter: jax.Array) -> jax.Array:
    """Sum ``log(1 - theta x)`` over values ``(M, R)`` at places ``(n, R)``: ``(n, R)``.

    The logarithm of a product of few factors is taken, where these cannot overflow.
    """

    def of_products(_: None) -> jax.Array:
        total = jnp.zeros_like(theta)
        for first in range(0, len(tail), _FACTORS):
            product = jnp.ones_like(theta)
            for values in tail[first : first + _FACTORS]:
                product *= 1 - theta * values
            total += jnp.log(product)
        return total

    def one_by_one(_: None) -> jax.Array:
        def add(total: jax.Array, values: jax.Array) -> tuple[jax.Array, None]:
            return total + jnp.log1p(-theta * values), None

        return jax.lax.scan(add, jnp.zeros_like(theta), tail)[0]

    uneven = ~(tail[-1] < _MOST_UNEVEN * quarter)
    return jax.lax.cond(jnp.any(uneven), one_by_one, of_products, None)
