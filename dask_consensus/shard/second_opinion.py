"""Integrals of the local effects by a rule of another kind: a second opinion on the first.

Finer rules around the same modes agree with each other on what all of them miss. Importance
sampling misses other things: its points are drawn around every mode that many ascents reach, near
it and as far as heavy tails go, and from wide densities about the local prior, weighted by all of
these together (Veach and Guibas 1995). The same points serve every u, so that differences between
points of u are known far better than the integrals. Every unit has points of its own, in two
halves, whose differences say how well the sum is known. The log of an average of few is too low, of
twice as many half as much, which is taken away (Quenouille 1956, Biometrika 43) and counts as
doubt.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
from jax import lax

from ..model.model import ShardModel, precision
from ..shard_data import ShardData, Size
from . import hills, newton
from .compiling import compiled, on_device
from .effects import effects_per_unit, nothing_subtracted, others, unit_density, unit_level
from .marginal import log_likelihoods, scouted
from .quadrature import Rule
from .subsets import in_shape

_WORK = 2**25  # rows times points of u times points of a unit
_POINTS = (32, 512)  # of each density and half, at least and at most
_FEWEST = 4  # where these units are few of those that the answer is of
_NARROW = (1.1, 2.5, 8.0, 30.0)  # scales of the densities around each mode, in its expansion's
_WIDE = (1.5, 5.0)  # and of those about the local prior, in its sds
_HALVES = 2
_LEAST_SD = 1e-3


class Opinions(NamedTuple):
    """Log likelihoods of some units at points, less those at the first point."""

    first: np.ndarray  # (G,) by the rule that is used
    second: np.ndarray  # (G,) by the other
    noise: np.ndarray  # (G, U) half of what two halves of its points differ by, in every unit
    bias: np.ndarray  # (G,) what all of its points say more than each half by itself
    units: int


def second_opinion(
    model: ShardModel, data: ShardData, points: np.ndarray, rule: Rule, size: Size, effort: float
) -> Opinions:
    """Integrate the local effects twice at points ``(G, d)``, near each other, by unlike rules.

    The model has local effects, and no :func:`.effects.obstacle`. The first point is the center.
    The `size` is that of a shard, for which the code of the first rule is compiled already; the
    `effort` is how many times as many points the second rule takes.
    """
    q = effects_per_unit(model)
    first = log_likelihoods(model, in_shape(data, model.codes, size), points, points[0], rule)
    with precision(model.double):
        arrays, where = on_device((data, points))
        n = n_points(len(data.rows), len(points), effort)
        sobol = on_device(scipy.stats.qmc.Sobol(q, rng=0).random(n))
        given = arrays, where, sobol, *scouted(model, arrays, where[0])
        run = compiled(model, "second opinion", lambda: _importance(model), *given)
        second = np.asarray(jax.device_get(run(*given)), np.float64)
    by_half, noise, bias = weighed(second)
    return Opinions(first.log_likelihood, by_half.sum(axis=1) + 2 * bias, noise, bias, first.units)


def weighed(second: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Take two halves ``(2, G, U)`` apart: ``(G, U)`` of their mean and half difference, a bias."""
    halves = second - second[:, :1]
    together = np.logaddexp(*second)
    together -= together[:1]
    by_half = halves.mean(axis=0)
    bias = together.sum(axis=1) - by_half.sum(axis=1)
    return by_half, (halves[0] - halves[1]) / 2, bias


def n_points(n_rows: int, n_values: int, effort: float) -> int:
    """Give the number of points, a power of two, of each density and half."""
    at_once = _HALVES * (len(_NARROW) * hills.MOST_MODES + len(_WIDE))
    afforded = np.clip(_WORK / (n_rows * n_values * at_once), *_POINTS)
    return int(2 ** int(np.log2(max(effort * afforded, min(effort, 1.0) * _POINTS[0], _FEWEST))))


class Proposals(NamedTuple):
    """Normal densities of each unit that its points are drawn from, as many of each; C of them."""

    center: jax.Array  # (C, U, q)
    factor: jax.Array  # (C, U, q, q) Cholesky factors of the precisions

    def points(self, normal: jax.Array) -> jax.Array:
        """Make standard normal numbers ``(C, U, q)`` points of each density."""
        return self.center + jax.vmap(newton.back_solve)(self.factor, normal)

    def log_density(self, effects: jax.Array) -> jax.Array:
        """Log density of the mixture at ``(U, q)``, but for a constant."""
        away = jnp.einsum("cuji,cuj->cui", self.factor, effects - self.center)
        logs = hills.log_determinant(self.factor) - jnp.sum(away**2, axis=-1) / 2
        return jax.scipy.special.logsumexp(logs, axis=0)


def proposals_of(found: hills.Hills, around: hills.Surroundings) -> Proposals:
    """Put densities around all modes of each unit, and about its local prior."""
    sd = jnp.maximum(around.sd, _LEAST_SD)
    prior = (jnp.eye(sd.shape[-1], dtype=sd.dtype) / sd[:, :, None])[None]
    # A mode that is not there leaves its points to the main one, which may be none: an ascent that
    # ended nowhere. One that is not a number would make none of the unit's points count.
    main, shape = found.effects[0], found.factor[0]
    known = jnp.isfinite(main).all(axis=-1) & jnp.isfinite(shape).all(axis=(-2, -1))
    main = jnp.where(known[:, None], main, around.middle)
    shape = jnp.where(known[:, None, None], shape, prior[0])
    there = found.present.at[0].set(known)[:, :, None]
    modes = jnp.where(there, found.effects, main)
    factor = jnp.where(there[..., None], found.factor, shape)
    return Proposals(
        jnp.concatenate([modes] * len(_NARROW) + [around.middle[None]] * len(_WIDE)),
        jnp.concatenate([factor / s for s in _NARROW] + [prior / s for s in _WIDE]),
    )


def log_averages(
    values: Callable[[jax.Array], jax.Array], proposals: Proposals, sobol: jax.Array, n_values: int
) -> jax.Array:
    """Log averages of densities over those that points are drawn from, ``(2, n_values, U)``.

    Parameters
    ----------
    values : callable
        Log densities ``(n_values, U)`` of effects ``(U, q)``.
    proposals : Proposals
    sobol : (n, q) array
        Points of the unit cube.
    n_values : int
    """
    # Every half, density and unit shifts the points by itself: their errors are independent.
    shape = (_HALVES, *proposals.center.shape)
    shift = jax.random.uniform(jax.random.key(1), shape, sobol.dtype)

    def weighted(effects: jax.Array) -> jax.Array:
        there = values(effects) - proposals.log_density(effects)
        return jnp.where(jnp.isnan(there), -jnp.inf, there)

    def add(i: jax.Array, total: jax.Array) -> jax.Array:
        uniform = jnp.clip((sobol[i] + shift) % 1.0, 1e-9, 1 - 1e-9)
        effects = jax.vmap(proposals.points)(jax.scipy.special.ndtri(uniform))
        there = jax.vmap(jax.vmap(weighted))(effects)  # (halves, C, n_values, U)
        return jnp.logaddexp(total, jax.scipy.special.logsumexp(there, axis=1))

    units = proposals.center.shape[1]
    nowhere = jnp.full((_HALVES, n_values, units), -jnp.inf, sobol.dtype)
    return lax.fori_loop(0, len(sobol), add, nowhere)


def _importance(model: ShardModel) -> Callable[..., jax.Array]:
    """Log likelihoods of all units at all points, ``(2, G, U + 1)``, by the two halves.

    The last is what belongs to no unit.
    """

    def run(
        data: ShardData,
        points: jax.Array,
        sobol: jax.Array,
        found: hills.Hills,
        around: hills.Surroundings,
    ) -> jax.Array:
        mask = data.mask(unit_level(model))
        nothing = nothing_subtracted(data, points[0])
        proposals = proposals_of(found, around)

        def density(u: jax.Array, effects: jax.Array) -> tuple[jax.Array, Any]:
            return unit_density(model, u, effects, data, nothing)

        def values(effects: jax.Array) -> jax.Array:
            return jax.vmap(lambda u: density(u, effects)[0])(points)

        log_integrals = jnp.where(mask, log_averages(values, proposals, sobol, len(points)), 0.0)

        def rest(u: jax.Array) -> jax.Array:
            return jnp.sum(others(model, density(u, proposals.center[0])[1], nothing))

        others_there = jnp.broadcast_to(jax.vmap(rest)(points), log_integrals.shape[:2])
        return jnp.concatenate([log_integrals, others_there[:, :, None]], axis=-1)

    return run
