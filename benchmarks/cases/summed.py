"""What is the posterior of shared parameters, where effects of groups are integrated out by hand?

Adaptive Gauss-Hermite quadrature around every group's mode, in double precision, and importance
sampling of the few parameters that are left: no chain, and nothing of this package.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import product
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import random
from jax.flatten_util import ravel_pytree
from numpyro.infer.util import initialize_model
from scipy.optimize import minimize
from scipy.special import gammaln

NODES = {0: 1, 1: 15, 2: 9}  # of each effect; fewer show what the rule may be off by
FEWER = {0: 1, 1: 11, 2: 7}
STEPS, LENGTHS = 8, (1.0, 0.3, 0.0)  # Newton's steps to a group's mode, parts of each tried
ROUNDS, POINTS, AT_ONCE = 4, 500, 50  # of importance sampling
DEGREES = 4.0  # of freedom of a proposal: tails that a posterior's do not exceed
LEAST_ESS, MOST_OFF = 1_500, 0.02  # of a reference that is complete; the rule's error in nats


class Parts(NamedTuple):
    """A model in the parts that the sum needs.

    Attributes
    ----------
    shared : callable
        A NumPyro model of the shared sites alone.
    rows : callable
        From the shared sites' values, the rows' predictors without effects and, of every row, what
        each effect is multiplied by where effects are standard normal, ``(rows, effects)``.
    density : callable
        From the shared sites' values and predictors, the log density of every row.
    group : array
        Code of every row's group.
    effects : int
    """

    shared: Callable[[], None]
    rows: Callable[[Mapping[str, Any]], tuple[Any, Any]]
    density: Callable[[Mapping[str, Any], Any], Any]
    group: np.ndarray
    effects: int


def summed(parts: Parts) -> dict[str, Any]:
    """Content of a reference: moments of every unconstrained coordinate, and their errors."""
    info = initialize_model(random.key(0), parts.shared)
    flat, unravel = ravel_pytree(info.param_info.z)
    names = [
        name if not np.ndim(value) else f"{name}[{i}]"
        for name, value in sorted(info.param_info.z.items())
        for i in range(np.size(value))
    ]

    def height(nodes: Mapping[int, int]) -> Callable[[Any], Any]:
        def of(u: Any) -> Any:
            sites = unravel(u)
            values = info.postprocess_fn(sites)
            return _marginal(parts, values, nodes) - info.potential_fn(sites)

        return of

    many = jax.jit(lambda u: jax.lax.map(height(NODES), u, batch_size=AT_ONCE))
    value_and_slope = jax.jit(jax.value_and_grad(height(NODES)))
    mean, covariance = _peak(value_and_slope, len(flat))
    rng = np.random.default_rng(1)
    known = []
    for turn in range(ROUNDS):
        count = POINTS if turn < ROUNDS - 1 else 6 * POINTS
        points = _proposed(rng, mean, covariance, count)
        heights = np.asarray(many(jnp.asarray(points)))
        known.append((points, heights, mean, covariance))
        points, weights = _weighted(known, parts=1.0 if turn == ROUNDS - 2 else 0.7)
        mean = weights @ points
        covariance = np.cov(points.T, aweights=weights, ddof=0).reshape(2 * mean.shape)
        covariance += 1e-10 * np.diag(np.diag(covariance))
    points, weights = _weighted(known, parts=1.0)
    some = rng.choice(len(points), 50, p=weights)
    fewer = jax.jit(lambda u: jax.lax.map(height(FEWER), u, batch_size=AT_ONCE))
    where = jnp.asarray(points[some])
    off = float(np.std(np.asarray(fewer(where) - many(where))))
    return _content(names, points, weights, off)


def _marginal(parts: Parts, values: Mapping[str, Any], nodes: Mapping[int, int]) -> Any:
    base, along = parts.rows(values)
    if not parts.effects:
        return parts.density(values, base).sum()
    group, n_groups, k = jnp.asarray(parts.group), int(parts.group.max()) + 1, parts.effects

    def by_group(row: Any) -> Any:
        return jax.ops.segment_sum(row, group, n_groups)

    def joint(z: Any) -> Any:
        predictor = base + (along * z[group]).sum(axis=-1)
        return by_group(parts.density(values, predictor)) - 0.5 * (z**2).sum(axis=-1)

    def row_slope(predictor: Any) -> Any:
        return jax.grad(lambda m: parts.density(values, m).sum())(predictor)

    def expansion(z: Any) -> tuple[Any, Any]:
        predictor = base + (along * z[group]).sum(axis=-1)
        slope, curve = jax.jvp(row_slope, (predictor,), (jnp.ones_like(predictor),))
        # Where a row's density is not log-concave, no curvature of it is better than a negative.
        squares = jnp.minimum(curve, 0.0)[:, None, None] * along[:, :, None] * along[:, None, :]
        return by_group(slope[:, None] * along) - z, jnp.eye(k) - by_group(squares)

    def newton(z: Any, _: None) -> tuple[Any, None]:
        slope, precision = expansion(z)
        step = jnp.linalg.solve(precision, slope[..., None])[..., 0]
        tried = jnp.stack([z + length * step for length in LENGTHS])
        best = jnp.argmax(jax.vmap(joint)(tried), axis=0)
        return jnp.take_along_axis(tried, best[None, :, None], axis=0)[0], None

    mode, _ = jax.lax.scan(newton, jnp.zeros((n_groups, k)), None, length=STEPS)
    # Where a rule is placed changes its value by its error alone: no slope goes through it.
    mode = jax.lax.stop_gradient(mode)
    precision = jax.lax.stop_gradient(expansion(mode)[1])
    root = jnp.linalg.cholesky(precision)
    at, weight = np.polynomial.hermite_e.hermegauss(nodes[k])
    grid = np.array(list(product(at, repeat=k)))
    logs = np.log([np.prod(w) for w in product(weight, repeat=k)]) + 0.5 * (grid**2).sum(axis=1)
    moved = jax.vmap(
        lambda e: jnp.linalg.solve(
            root.swapaxes(-1, -2), jnp.broadcast_to(e, (n_groups, k))[..., None]
        )
    )(jnp.asarray(grid))[..., 0]
    heights = jax.vmap(lambda shift: joint(mode + shift))(moved) + logs[:, None]
    scale = jnp.log(jnp.diagonal(root, axis1=-2, axis2=-1)).sum(axis=-1)
    whole = jax.nn.logsumexp(heights, axis=0) - scale - 0.5 * k * np.log(2 * np.pi)
    return whole.sum()


def _peak(value_and_slope: Any, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The highest mode of several searches, and a covariance from its curvature."""

    def downhill(u: np.ndarray) -> tuple[float, np.ndarray]:
        value, slope = value_and_slope(jnp.asarray(u))
        if not np.isfinite(value) or not np.all(np.isfinite(slope)):
            return 1e10, np.zeros(size)
        return -float(value), -np.asarray(slope)

    rng = np.random.default_rng(0)
    starts = [np.zeros(size), *rng.uniform(-1.0, 1.0, (2, size))]
    ends = [
        minimize(downhill, u, jac=True, method="BFGS", options={"maxiter": 300}) for u in starts
    ]
    best = min(ends, key=lambda end: end.fun)
    step = 1e-3 * np.sqrt(np.clip(np.diag(best.hess_inv), 1e-8, 1e8))
    curve = np.stack(
        [
            (downhill(best.x + s * e)[1] - downhill(best.x - s * e)[1]) / (2 * s)
            for s, e in zip(step, np.eye(size), strict=True)
        ]
    )
    scaled = (curve + curve.T) / 2 * np.outer(step, step)
    values, vectors = np.linalg.eigh(scaled)
    values = np.clip(np.abs(values), 1e-10, None)
    return best.x, (vectors / values) @ vectors.T * np.outer(step, step)


def _proposed(rng: Any, mean: np.ndarray, covariance: np.ndarray, count: int) -> np.ndarray:
    """From a Student t, a sixth of it three times as wide."""
    normal = rng.normal(size=(count, len(mean))) @ np.linalg.cholesky(covariance).T
    wide = np.where(np.arange(count) % 6 == 0, 3.0, 1.0) / np.sqrt(
        rng.chisquare(DEGREES, count) / DEGREES
    )
    return mean + wide[:, None] * normal


def _log_proposal(points: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    root, d = np.linalg.cholesky(covariance), len(mean)
    squares = (np.linalg.solve(root, (points - mean).T) ** 2).sum(axis=0)
    constant = gammaln((DEGREES + d) / 2) - gammaln(DEGREES / 2) - np.log(np.diag(root)).sum()

    def student(width: float) -> np.ndarray:
        tail = -(DEGREES + d) / 2 * np.log1p(squares / width**2 / DEGREES)
        return constant - d / 2 * np.log(DEGREES) - d * np.log(width) + tail

    return np.logaddexp(np.log(5 / 6) + student(1.0), np.log(1 / 6) + student(3.0))


def _weighted(known: list[Any], parts: float) -> tuple[np.ndarray, np.ndarray]:
    """All points so far, by the mixture they came from; `parts` below 1 flattens weights."""
    points = np.concatenate([turn[0] for turn in known])
    heights = np.concatenate([turn[1] for turn in known])
    counts = np.array([len(turn[0]) for turn in known])
    logs = np.stack([_log_proposal(points, mean, covariance) for *_, mean, covariance in known])
    mixture = np.logaddexp.reduce(logs + np.log(counts / counts.sum())[:, None], axis=0)
    ratios = np.where(np.isfinite(heights), heights, -np.inf) - mixture
    weights = np.exp(parts * (ratios - ratios.max()))
    return points, weights / weights.sum()


def _content(
    names: list[str], points: np.ndarray, weights: np.ndarray, off: float
) -> dict[str, Any]:
    mean = weights @ points
    away = points - mean
    variance = weights @ away**2
    error = np.sqrt(weights**2 @ away**2)
    spread = np.sqrt(weights**2 @ (away**2 / variance - 1.0) ** 2) / 2
    ess = float(1.0 / (weights**2).sum())
    # Known as well as by so many independent draws.
    least = float(min((variance / error**2).min(), (0.5 / spread**2).min(), ess))
    rows = zip(names, mean, np.sqrt(variance), error, spread, strict=True)
    return {
        "complete": bool(least >= LEAST_ESS and off < MOST_OFF),
        "method": "sum over effects, importance sampling",
        "unconstrained": {
            name: {"mean": float(m), "sd": float(s), "mcse": float(e), "sd_mcse": float(t)}
            for name, m, s, e, t in rows
        },
        "least_ess": least,
        "rule_error": off,
    }
