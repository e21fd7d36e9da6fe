"""Ranks of true values among draws: whether they are uniform, and how often intervals hold them.

Ranks of a value among ``L`` draws are 0 to ``L``, each with the same probability where the value
comes from the distribution that the draws come from. A count of ranks below ``k`` is binomial then,
at every ``k`` exactly, so that the band around all of them is one of binomial quantiles, its level
found by simulation (Säilynoja, Bürkner and Vehtari 2022).
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import scipy.stats

Array = np.ndarray
SHARES = (0.5, 0.9)
_LEVEL, _BINS, _SIMULATIONS = 0.95, 10, 10_000


class Band(NamedTuple):
    """What counts of uniform ranks below each of 1 to L stay in, all at once."""

    below: Array  # (L,) of the first rank on, the probability of a smaller one
    low: Array  # (L,) least count
    high: Array  # (L,) largest
    null: Array  # least tail probabilities of simulated uniform ranks, sorted


class Uniformity(NamedTuple):
    """What ranks say of the draws that they were taken among."""

    n: int
    chi2: float  # p-value of their counts in ten bins of equal width
    ecdf: float  # p-value of the point of their ECDF that is furthest out
    inside: bool  # whether the ECDF stays in its 95% simultaneous band
    shares: tuple[float, ...]  # of the ranks inside of the middle 50% and 90%
    errors: tuple[float, ...]  # binomial standard errors of these


def uniformity(ranks: Array, draws: int) -> Uniformity:
    """Hold ranks among `draws` draws, ``(n,)``, against the uniform distribution on 0 to `draws`.

    The middle shares are exact where `draws` + 1 is a multiple of twenty.
    """
    n, values = len(ranks), draws + 1
    bins = np.histogram(ranks, _BINS, (0, values))[0]
    band = band_of(n, draws)
    count = counts_below(ranks, draws)
    tail = _least_tails(count[None], _binomial(n, draws))[0]
    held = [np.mean(np.abs(ranks - draws / 2) < share * values / 2) for share in SHARES]
    return Uniformity(
        n=n,
        chi2=float(scipy.stats.chisquare(bins).pvalue),
        ecdf=float(np.searchsorted(band.null, tail, side="right") / len(band.null)),
        inside=bool(np.all((count >= band.low) & (count <= band.high))),
        shares=tuple(map(float, held)),
        errors=tuple(float(np.sqrt(share * (1 - share) / n)) for share in SHARES),
    )


def counts_below(ranks: Array, draws: int) -> Array:
    """Count the ranks ``(..., n)`` below 1 to `draws`, ``(..., draws)``."""
    return (ranks[..., None] < np.arange(1, draws + 1)).sum(axis=-2)


@lru_cache
def band_of(n: int, draws: int) -> Band:
    """Find the band of `n` ranks by simulation, the same one in every run."""
    below = np.arange(1, draws + 1) / (draws + 1)
    table, rng = _binomial(n, draws), np.random.default_rng(0)
    null = np.empty(_SIMULATIONS)
    for i in range(_SIMULATIONS):
        counts = np.bincount(rng.integers(0, draws + 1, n), minlength=draws + 1)
        null[i] = _least_tails(np.cumsum(counts[:-1])[None], table)[0]
    null.sort()
    tail = null[int((1 - _LEVEL) * _SIMULATIONS)]
    inside = (table[:, 1:] >= tail) & (1 - table[:, :-1] >= tail)
    return Band(below, inside.argmax(axis=1), n - inside[:, ::-1].argmax(axis=1), null)


def _binomial(n: int, draws: int) -> Array:
    """Tabulate the probabilities of counts of less than 0 to n + 1, ``(draws, n + 2)``."""
    below = np.arange(1, draws + 1)[:, None] / (draws + 1)
    return scipy.stats.binom.cdf(np.arange(-1, n + 1), n, below)


def _least_tails(counts: Array, table: Array) -> Array:
    """Find the least probability of any count ``(..., draws)`` or one further out, ``(...)``."""
    rows = np.arange(len(table))
    tails = np.minimum(table[rows, counts + 1], 1 - table[rows, counts])
    return tails.min(axis=-1)
