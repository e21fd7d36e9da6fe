"""Candidates for the effects of each unit at a draw of ``u``, and their weights.

They are drawn around every mode that a unit has, and weighted by what the density is beside that of
the proposal. How many, how wide, and whether modes are followed as ``u`` moves is a :class:`Look`.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
import scipy.stats
from jax import lax

from ..model.model import ShardModel
from ..shard_data import ShardData
from . import hills, newton
from .effects import unit_density, unit_level
from .marginal import Center, moved
from .quadrature import gauss_hermite
from .target import Terms

DEGREES = 6  # of freedom, of the t distribution; even, so that uniform numbers make it
_STEPS, _NEAR = 8, 0.03  # at a draw of u, from modes moved along with it
_LOST = 0.5  # squared Newton decrement beyond which a unit's mode was not found


class Look(NamedTuple):
    """How effects are looked at, at a draw of u.

    Candidates are of as many t distributions as there are widths, in turn: those of the curvature
    at the mode, times the width; or normal. A mode that is not `followed` moves with u as it begins
    to, and keeps its curvature.
    """

    candidates: int  # in mirrored pairs of each width
    widths: tuple[float, ...]
    normal: bool
    followed: bool
    kept: int  # of the candidates at a draw, that quantiles of what is far from normal are taken of
    enough: float  # efficiency of all units with which no closer look is needed
    nodes: int = 0  # an axis, of a Gauss-Hermite rule that the candidates are; 0: random ones

    def width_of(self, pair: int) -> float:
        """Width of a pair of candidates."""
        return self.widths[pair % len(self.widths)]


LOOKS = (
    Look(4, (1.0,), normal=True, followed=False, kept=4, enough=0.98),
    Look(32, (1.0,), normal=False, followed=True, kept=8, enough=0.7),
    Look(192, (1.0, 3.0, 10.0), normal=False, followed=True, kept=192, enough=0.0),
)
# Moments of what is skewed, but not far from normal, of few effects a unit; no draws can be made of
# nodes. One effect takes few enough that a look at whether it is normal would cost as much.
QUADRATURE = {
    q: Look(nodes**q, (1.0,), normal=True, followed=False, kept=1, enough=0.93, nodes=nodes)
    for q, nodes in ((1, 5), (2, 4))
}


@lru_cache(maxsize=8)
def points_of(q: int, n_draws: int, look: Look) -> tuple[np.ndarray, np.ndarray]:
    """Make points ``(n_draws, candidates, q)``, and a uniform number of each draw.

    They are standard normal, with exactly that mean and covariance; or of t distributions. The half
    of a draw's are mirror images of the others; which draw has which is random. Nodes are the same
    for all draws.
    """
    if look.nodes:
        nodes = gauss_hermite(q, look.nodes).points
        return np.broadcast_to(nodes, (n_draws, *nodes.shape)), np.full(n_draws, 0.5)
    pairs = look.candidates // 2
    uniform = scipy.stats.qmc.Halton(q + 1, rng=0).random(n_draws * pairs)
    half = scipy.special.ndtri(np.clip(uniform[:, :q], 1e-12, 1 - 1e-12))
    if len(half) > q:
        factor = np.linalg.cholesky(half.T @ half / len(half))
        half = np.linalg.solve(factor, half.T).T
    if not look.normal:
        half *= np.sqrt(DEGREES / scipy.stats.chi2.ppf(uniform[:, q], DEGREES))[:, None]
    rng = np.random.default_rng(0)
    half = rng.permutation(half).reshape(n_draws, pairs, q)
    half *= np.resize(look.widths, pairs)[:, None]
    shares = (np.arange(n_draws) + 0.5) / n_draws
    return np.concatenate([half, -half], axis=1), rng.permutation(shares)


def log_shares(q: int, look: Look) -> np.ndarray:
    """Log of the weights ``(candidates,)`` of candidates where the proposal is the density."""
    if look.nodes:
        rule = gauss_hermite(q, look.nodes)
        return rule.log_weights - (rule.points**2).sum(axis=1) / 2
    return np.full(look.candidates, -np.log(look.candidates))


def log_proposal(standardised: jax.Array, look: Look) -> jax.Array:
    """Log density of points ``(..., q)`` in units of the curvature, but for a constant."""
    square, q = jnp.sum(standardised**2, axis=-1), standardised.shape[-1]
    if look.normal:
        return -square / 2
    of_widths = [
        -q * float(np.log(width)) - (DEGREES + q) / 2 * jnp.log1p(square / (DEGREES * width**2))
        for width in look.widths
    ]
    if len(of_widths) == 1:
        return of_widths[0]
    return jax.scipy.special.logsumexp(jnp.stack(of_widths), axis=0)


def random_point(
    keys: jax.Array, i: jax.Array, shape: tuple[int, int], look: Look, dtype: Any
) -> jax.Array:
    """Draw candidate number `i` of each unit at random, standardised; ``(U, q)``."""
    points = jax.random.normal(keys[0], shape, dtype)
    if look.normal:
        return points
    uniform = jax.random.uniform(keys[1], (DEGREES // 2, shape[0]), dtype, minval=1e-12)
    chi_square = -2 * jnp.sum(jnp.log(uniform), axis=0)
    width = jnp.asarray(np.array(look.widths), dtype)[i % len(look.widths)]
    return points * jnp.sqrt(DEGREES / chi_square)[:, None] * width


class Taken(NamedTuple):
    """One of the candidates of each unit, as often as their weights say, while they come."""

    effects: jax.Array  # (U, q)
    level: jax.Array  # (U,)
    total: jax.Array  # log of the sum of their weights
    square: jax.Array  # and of their squares

    @classmethod
    def none(cls, units: int, q: int, dtype: Any) -> Taken:
        """Begin without any."""
        nowhere = jnp.full(units, -jnp.inf, dtype)
        return cls(jnp.zeros((units, q), dtype), nowhere, nowhere, nowhere)

    def or_else(
        self, i: jax.Array, key: jax.Array, effects: jax.Array, log_weight: jax.Array
    ) -> Taken:
        """Look at candidate number `i`."""
        # The largest of these is each candidate as often as its weight says; the first is taken in
        # any case.
        level = log_weight + jax.random.gumbel(key, log_weight.shape, log_weight.dtype)
        better = (level > self.level) | (i == 0)
        return Taken(
            jnp.where(better[:, None], effects, self.effects),
            jnp.where(better, level, self.level),
            jnp.logaddexp(self.total, log_weight),
            jnp.logaddexp(self.square, 2 * log_weight),
        )

    def efficiency(self, n: int) -> jax.Array:
        """Give the effective share of `n` candidates, ``(U,)``."""
        share = jnp.exp(2 * self.total - self.square) / n
        return jnp.where(jnp.isfinite(share), share, 0.0)


class Around(NamedTuple):
    """The modes of all units at one draw of u."""

    density: newton.Density
    hills: hills.Hills
    lost: jax.Array  # units
    look: Look

    def candidate(self, normal: jax.Array, share: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Make points of standardised ones ``(U, q)``, and give the log of their weights.

        Of several modes a unit takes the one that its `share` ``(U,)``, uniform, falls to.
        """
        effects, factor, log_mass = self.hills
        if len(effects) == 1:
            point = effects[0] + newton.back_solve(factor[0], normal)
            drawn_with = log_proposal(normal, self.look)
        else:
            # Where no mode is there, the first place is as good as any.
            nowhere = ~jnp.isfinite(log_mass).any(axis=0)
            log_share = jax.nn.log_softmax(log_mass.at[0].max(jnp.where(nowhere, 0.0, -jnp.inf)), 0)
            taken = jnp.sum(jnp.cumsum(jnp.exp(log_share), axis=0)[:-1] < share, axis=0)
            units = jnp.arange(effects.shape[1])
            point = effects[taken, units] + newton.back_solve(factor[taken, units], normal)
            away = jnp.einsum("muji,muj->mui", factor, point - effects)
            logs = log_share + hills.log_determinant(factor) + log_proposal(away, self.look)
            drawn_with = jax.scipy.special.logsumexp(logs, axis=0)
        value = self.density(point)[0]
        return point, jnp.where(jnp.isnan(value), -jnp.inf, value) - drawn_with


def around(model: ShardModel, data: ShardData, center: Center, u: jax.Array, look: Look) -> Around:
    """Find the modes of all units at `u`, from those at the center."""

    def density(effects: jax.Array) -> tuple[jax.Array, Terms]:
        return unit_density(model, u, effects, data, center.reference)

    def follow(mode: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, ...]:
        effects, move = mode
        near = newton.ascend(density, effects, _STEPS, _NEAR, move)
        arrived = near.decrement < _LOST
        there = near.effects + jnp.where(arrived[:, None], near.step, 0.0)
        log_mass = near.value - hills.log_determinant(near.factor)
        return there, near.factor, jnp.where(arrived, log_mass, -jnp.inf), arrived

    moves = moved(model, data, center, u)
    if not look.followed:
        nothing = jnp.zeros(moves.shape[:2], u.dtype)
        summits = hills.Hills(center.effects + moves, center.factor, nothing)
        return Around(density, summits, jnp.zeros((), int), look)
    effects, factor, log_mass, arrived = lax.map(follow, (center.effects, moves))
    log_mass = jnp.where(center.present, log_mass, -jnp.inf)
    lost = jnp.sum(data.mask(unit_level(model)) & ~arrived.any(axis=0))
    return Around(density, hills.Hills(effects, factor, log_mass), lost, look)
