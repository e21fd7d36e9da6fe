"""What is said of the effects of each unit: statistics, and a normal distribution given ``u``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special

QUANTILES = (0.05, 0.5, 0.95)
STATISTICS = ("mean", "sd", "q05", "q50", "q95")
_NEARLY_NORMAL_SKEW, _NEARLY_NORMAL_EXCESS = 1.1, (-0.6, 2.5)


class Summary(NamedTuple):
    """Statistics of the local sites of the U units of a shard, and how well they are known.

    Shrinkage is the share of the prior's variance, given u, that the unit's own rows leave: 1
    where they say nothing, 0 where they say all. Efficiency is the effective share of the
    candidates, effective their number over all draws.
    """

    statistics: dict[str, np.ndarray]  # (statistics, U, *entry) of each site
    shrinkage: dict[str, np.ndarray]  # (U, *entry)
    given_shared: GivenShared
    efficiency: np.ndarray  # (U,)
    effective: np.ndarray  # (U,)
    modes_not_found: float  # units, averaged over draws


class GivenShared(NamedTuple):
    """The normal distribution of the raw effects of each unit, at any u.

    Its mean is that at the center plus the slope times how far u is from there, and the logarithms
    of its sds move likewise; of inner units it moves with how far the effects outside are from
    their means at the center as well. What effects differ from that line by, over draws of u and
    given each, in units of these sds, gives its covariance.
    """

    mean: np.ndarray  # (U, q)
    slope: np.ndarray  # (U, q, d); none where there are crossed effects
    widening: np.ndarray  # (U, q, d) of the logarithms of sds
    covariance: np.ndarray  # (U, q, q) at the center
    outer: np.ndarray  # (U, q, Q) change of the mean with effects of the tiers outside, if any


def in_place(whole: Summary, closer: Summary, units: np.ndarray) -> Summary:
    """Put what is said of some units in place of what was."""

    def put(then: np.ndarray, now: np.ndarray, axis: int = 0) -> np.ndarray:
        moved = np.moveaxis(np.array(then), axis, 0)
        moved[units] = np.moveaxis(now, axis, 0)
        return np.moveaxis(moved, 0, axis)

    return Summary(
        {k: put(v, closer.statistics[k], 1) for k, v in whole.statistics.items()},
        {k: put(v, closer.shrinkage[k]) for k, v in whole.shrinkage.items()},
        GivenShared(*map(put, whole.given_shared, closer.given_shared)),
        put(whole.efficiency, closer.efficiency),
        put(whole.effective, closer.effective),
        whole.modes_not_found + closer.modes_not_found,
    )


def normalised(log_weight: jax.Array) -> jax.Array:
    """Make weights ``(C, U)`` that add up to 1; equal ones where none is finite."""
    largest = jnp.max(log_weight, axis=0)
    return jax.nn.softmax(jnp.where(jnp.isfinite(largest), log_weight, 0.0), axis=0)


def statistics_of(
    origin: np.ndarray,
    moments: np.ndarray,
    kept: np.ndarray,
    *,
    by_order: bool = False,
    quantiles: Sequence[float] = QUANTILES,
) -> tuple[np.ndarray, np.ndarray]:
    """Make mean, sd and quantiles ``(statistics, U, entries)`` of moments about an origin.

    And tell which values, ``(U, entries)``, are far from normal.

    Quantiles of what is nearly normal follow from its moments (Cornish and Fisher 1938, Revue de
    l'Institut international de statistique 5), far more precisely than from `kept` values
    ``(A, U, entries)``; not where candidates were of many widths, all of them kept, since humps and
    shoulders may have the moments of what is nearly normal. Where none are kept moments have to do.
    """
    first, second, third, fourth = moments
    variance = np.maximum(second - first**2, 0.0)
    sd = np.sqrt(variance)
    with np.errstate(divide="ignore", invalid="ignore"):
        skew = (third - 3 * first * second + 2 * first**3) / sd**3
        central = fourth - 4 * first * third + 6 * first**2 * second - 3 * first**4
        excess = central / variance**2 - 3
    low, high = _NEARLY_NORMAL_EXCESS
    far = by_order | ~((np.abs(skew) < _NEARLY_NORMAL_SKEW) & (excess > low) & (excess < high))
    mean = origin + first
    found = [mean + sd * _expanded_quantile(share, skew, excess) for share in quantiles]
    if far.any() and len(kept) and len(found):
        ordered = np.quantile(kept[:, far], quantiles, axis=0, method="hazen")
        for quantile, exact in zip(found, ordered, strict=True):
            quantile[far] = exact
    return np.stack([mean, sd, *found]), far


def _expanded_quantile(share: float, skew: np.ndarray, excess: np.ndarray) -> np.ndarray:
    """Expand the quantile of a standardised variable about that of a normal one."""
    z = scipy.special.ndtri(share)
    expanded = z + skew * (z**2 - 1) / 6 + excess * (z**3 - 3 * z) / 24
    return np.asarray(expanded - skew**2 * (2 * z**3 - 5 * z) / 36)
