"""How much of the prior's variance of an effect do the rows leave, and how do its sds move.

Both follow from curvatures at the modes, carried to sites that are computed from effects by their
derivative there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..model.model import ShardModel
from ..shard_data import ShardData
from . import newton
from .compiling import compiled, on_device
from .tiers import Tier

_WIDER = 0.03  # relative change of an effect's sd over draws of u that is worth keeping

Sites = Callable[[jax.Array], dict[str, jax.Array]]
"""Maps effects ``(U, q)`` of a tier to local sites."""


def prior_density(
    model: ShardModel, tier: Tier, u: jax.Array, data: ShardData, local: Sites
) -> newton.Density:
    """Make the log density of a tier's own sites, given `u` and what else is local."""
    own = {name for site in tier.sites for name in (site.name, f"_{site.name}_log_det")}
    terms = [term for term in model.terms if term.name in own and term.level == tier.level]
    mask = data.mask(tier.level)

    def prior(effects: jax.Array) -> tuple[jax.Array, None]:
        values = {**model.unravel(u), **local(effects)}
        entries, _ = model.log_terms(values, data.arguments, data.size[1])
        total = jnp.zeros(len(effects), u.dtype)
        for term in terms:
            entry = jnp.moveaxis(entries[term.name], term.axis, 0)
            total += jnp.sum(entry.reshape(len(entry), -1), axis=1)
        return jnp.where(mask, total, -0.5 * jnp.sum(effects**2, axis=1)), None

    return prior


def share_left(
    sites: Sites, modes: jax.Array, whole: newton.Density, prior: newton.Density
) -> dict[str, jax.Array]:
    """Share of the variance under the prior that is left with the rows, ``(U, entries)``."""
    q = modes.shape[1]
    axes = [jnp.broadcast_to(axis, modes.shape) for axis in jnp.eye(q, dtype=modes.dtype)]
    slopes = [jax.jvp(sites, (modes,), (axis,))[1] for axis in axes]
    variances = []
    for density in (whole, prior):
        factor = newton.cholesky(newton.curvature(density, modes)[2])
        inverse = jnp.stack([newton.solve(factor, axis) for axis in axes], axis=2)
        variances.append(
            {
                name: sum(
                    slopes[i][name] * slopes[j][name] * inverse[:, i, j][:, None]
                    for i in range(q)
                    for j in range(q)
                )
                for name in slopes[0]
            }
        )
    after, before = variances
    return {
        name: jnp.clip(jnp.where(before[name] > 0, after[name] / before[name], 1.0), 0.0, 1.0)
        for name in after
    }


def widening_at(
    model: ShardModel,
    data: ShardData,
    center: Any,
    draws: np.ndarray,
    effects: Sequence[jax.Array],
    log_sds_of: Callable[[ShardData, Any], Callable[[jax.Array], tuple[jax.Array, ...]]],
) -> tuple[jax.Array, ...]:
    """Change of the logarithms of sds with u, ``(U, q, d)``, at the center; for each tier.

    It is not known where there are hundreds of crossed effects; it is zero where that changes no
    sd by much, and where draws of u are so few, since rows are so many, that it would cost more
    than it is worth.

    Parameters
    ----------
    model, data, center
    draws : (G, d) array
    effects : sequence of (U, q) arrays
        At the center.
    log_sds_of : callable
        Makes, of data and the center, a function of u that gives the logarithms ``(U, q)``.
    """
    d = 0 if model.crossed else draws.shape[1]
    nothing = tuple(jnp.zeros((*its.shape, d), its.dtype) for its in effects)
    if not d or 4 * d > len(draws):
        return nothing
    sds = draws.std(axis=0)
    steps = on_device(np.maximum(sds / 2, 1e-3))

    def build() -> Callable[..., tuple[jax.Array, ...]]:
        return lambda data, center, steps: _widening(log_sds_of(data, center), center.u, steps)

    run = compiled(model, "widening", build, data, center, steps)
    widening = run(data, center, steps)
    change = max(np.linalg.norm(np.asarray(w) * sds, axis=2).max(initial=0.0) for w in widening)
    return tuple(widening) if change > _WIDER else nothing


def _widening(
    log_sds: Callable[[jax.Array], tuple[jax.Array, ...]], u: jax.Array, steps: jax.Array
) -> tuple[jax.Array, ...]:
    def along(given: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, ...]:
        axis, step = given
        ahead, behind = log_sds(u + step * axis), log_sds(u - step * axis)
        changes = [(a - b) / (2 * step) for a, b in zip(ahead, behind, strict=True)]
        return tuple(jnp.where(jnp.isfinite(change), change, 0.0) for change in changes)

    changes = lax.map(along, (jnp.eye(len(steps), dtype=steps.dtype), steps))
    return tuple(jnp.moveaxis(change, 0, 2) for change in changes)
