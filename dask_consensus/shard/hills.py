"""All modes of a unit's density, not one: where effects may be, and what share each place has.

A rule around one mode sees one hump: of a mixture prior, of rows that disagree, of an effect that
enters by its square, it misses the others, and so does any finer rule around the same mode. Here
the ascent begins from many draws of the local prior as well, and the integral is divided among all
modes found, ``integral f = sum_m integral f s_m``, by shares ``s_m`` that add up to 1: those of the
quadratic expansions at the modes. Each part is integrated around its own mode.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from jax import lax
from numpyro.distributions import biject_to
from numpyro.infer import init_to_sample

from ..model.model import ShardModel
from ..shard_data import ShardData
from . import newton
from .effects import pack

MOST_MODES = 4  # of a unit that are told apart
_STARTS = 14  # draws of the local prior that an ascent begins from,
_STRETCHED = 6  # and as many of them three times further from their mean
_STRETCH = 3.0
N_STARTS = _STARTS + _STRETCHED
_ALIKE = 0.5  # sds within which two ascents have reached one mode
_LOST = 0.5  # squared Newton decrement beyond which an ascent has reached none
_NEAR = 1e-6
_NO_HEIGHT = -1e30  # log density of a mode that is not there; of all infinite no share is defined
WORTH_COUNTING = 1e-3  # share of a unit's mass at which a mode beside the largest counts


class Hills(NamedTuple):
    """Modes of every unit's density; the first of each unit is the one of most mass."""

    effects: Any  # (M, U, q)
    factor: Any  # (M, U, q, q) Cholesky factors of minus the Hessian
    log_mass: Any  # (M, U) by Laplace's method, but for a constant; minus infinity for no mode

    @property
    def present(self) -> Any:
        """Which modes are there, ``(M, U)``; the first one always is, though it may not be one."""
        return jnp.isfinite(self.log_mass).at[0].set(True)


def local_draws(
    model: ShardModel, data: ShardData, u: jax.Array, key: jax.Array, n: int
) -> jax.Array:
    """Draw the local effects of all units from their prior given `u`: ``(n, U, q)``."""
    return jax.vmap(lambda local: finite(pack(model, local)))(site_draws(model, data, u, key, n))


def finite(effects: jax.Array) -> jax.Array:
    """Put zeros where a site has no unconstrained value."""
    return jnp.where(jnp.isfinite(effects), effects, 0.0)


def site_draws(
    model: ShardModel, data: ShardData, u: jax.Array, key: jax.Array, n: int
) -> dict[str, jax.Array]:
    """Draw all local sites from their prior given `u`, unconstrained, each with `n` in front."""
    shared = model.unravel(u)
    anywhere = init_to_sample()

    def place(site: dict[str, Any]) -> Any:
        if site["type"] == "sample" and site["name"] in shared:
            return biject_to(site["fn"].support)(shared[site["name"]])
        return anywhere(site)

    def draw(key: jax.Array) -> dict[str, jax.Array]:
        seeded = numpyro.handlers.seed(model.function, key)
        placed = numpyro.handlers.substitute(seeded, substitute_fn=place)
        keywords = model.keywords(data.arguments, data.size[1])
        trace = numpyro.handlers.trace(placed).get_trace(**keywords)
        return {
            site.name: biject_to(trace[site.name]["fn"].support).inv(trace[site.name]["value"])
            for site in model.local
        }

    return jax.vmap(draw)(jax.random.split(key, n))


class Surroundings(NamedTuple):
    """Where the local prior has the effects of every unit, and some way around it."""

    middle: Any  # (U, q)
    sd: Any  # (U, q)


def starts(model: ShardModel, data: ShardData, u: jax.Array) -> tuple[jax.Array, Surroundings]:
    """Points to ascend from, ``(S, U, q)``: draws of the local prior, in and beyond its bulk."""
    return stretched(local_draws(model, data, u, jax.random.key(0), N_STARTS))


def stretched(draws: jax.Array) -> tuple[jax.Array, Surroundings]:
    """Move the last of draws ``(S, U, q)`` away from their mean, beyond their bulk."""
    near, far = draws[:_STARTS], draws[_STARTS:]
    middle = jnp.mean(draws, axis=0)
    points = jnp.concatenate([near, middle + _STRETCH * (far - middle)])
    return points, Surroundings(jnp.mean(points, axis=0), jnp.std(points, axis=0))


def ascents(density: newton.Density, begin: jax.Array, most: int) -> Hills:
    """Ascend from each of ``(M, U, q)`` points."""

    def ascended(start: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        there = newton.ascend(density, start, most, _NEAR)
        log_mass = there.value - log_determinant(there.factor)
        found = (there.decrement < _LOST) & jnp.isfinite(log_mass)
        return there.effects, there.factor, jnp.where(found, log_mass, -jnp.inf)

    return Hills(*lax.map(ascended, begin))


def climb(density: newton.Density, begin: jax.Array, most: int, n_modes: int) -> Hills:
    """Ascend from each of ``(S, U, q)`` points, and keep the modes of most mass of each unit."""
    return told_apart(ascents(density, begin, most), n_modes)


def told_apart(reached: Hills, n_modes: int) -> Hills:
    """Keep the modes of most mass of each unit, of all places that were reached."""
    units = jnp.arange(reached.effects.shape[1])

    def take(left: jax.Array, _: Any) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        best = jnp.argmax(left, axis=0)
        mode, shape = reached.effects[best, units], reached.factor[best, units]
        distance = jnp.linalg.norm(_whitened(shape, reached.effects - mode), axis=-1)
        return jnp.where(distance < _ALIKE, -jnp.inf, left), (mode, shape, left[best, units])

    return Hills(*lax.scan(take, reached.log_mass, None, length=n_modes)[1])


def shares(summits: Hills) -> Callable[[Any, jax.Array], Any]:
    """Give the log share of a mode at effects ``(U, q)``, ``(U,)``; shares of modes add up to 1."""
    if len(summits.effects) == 1:
        return lambda m, effects: 0.0
    heights = summits.log_mass + log_determinant(summits.factor)
    # Where a unit has no mode at all, everything is integrated around the first place.
    heights = jnp.where(jnp.isfinite(heights), heights, _NO_HEIGHT)
    heights = heights.at[0].max(_NO_HEIGHT / 2)

    def share(m: jax.Array, effects: jax.Array) -> jax.Array:
        away = _whitened(summits.factor, effects - summits.effects)
        expansions = heights - jnp.sum(away**2, axis=-1) / 2
        return expansions[m] - jax.scipy.special.logsumexp(expansions, axis=0)

    return share


def log_determinant(factor: jax.Array) -> jax.Array:
    """Log determinants of Cholesky factors ``(..., q, q)``."""
    return jnp.sum(jnp.log(jnp.diagonal(factor, axis1=-2, axis2=-1)), axis=-1)


def most_modes(log_mass: np.ndarray, mask: np.ndarray) -> int:
    """Count the modes that hold a share of a unit's mass worth counting, where it has most."""
    mass = np.asarray(log_mass, np.float64)[:, mask]
    if not mass.size:
        return 1
    shares = np.exp(mass - np.where(np.isfinite(mass[0]), mass[0], 0.0))
    return max(1, int((shares > WORTH_COUNTING).sum(axis=0).max()))


def _whitened(factor: jax.Array, away: jax.Array) -> jax.Array:
    """``L' x``, unit by unit: distances in sds of a quadratic expansion."""
    return jnp.einsum("...ji,...j->...i", factor, away)
