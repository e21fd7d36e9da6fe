"""A few shards that speak for all: which, and how far they may err.

Every shard has been expanded about a point near the mode, so that one polynomial of each is known,
``q_k``, and the sum of all exactly. Left of the log posterior is ``sum_k r_k`` with
``r_k = w_k log p + log l_k - q_k``, which is small, and which some shards tell: those that stand
out in what is known of all of them, and others drawn at random. What is drawn at random is
multiplied by the ratio of the rows it stands for to its own (a difference estimator, whose
differences are a ratio estimator: Saerndal, Swensson and Wretman 1992, Model Assisted Survey
Sampling, chapters 6 and 7). How its shards differ tells how far the sum may be from that of all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.stats

from ..combination.ascent import STEP
from ..combination.reports import Expansions
from ..config import CorrectionOptions
from ..shard_data import Size
from .proposals import Array

_STANDS_OUT = 6.0  # spreads from the median at which a shard is asked for certain
_TRIMMED = 0.05  # share of the shards that say nothing of the spread
_EVEN = 0.05  # of a share of the curvature, of the size: a spread that is at least to be expected
_SLIGHT = 1e-3  # posterior sds by which one shard's skew may move a mean unnoticed
_MOST = 0.5  # of the shards; more are as well all of them
_FEWEST = 2  # shards that differ
_UNSEEN = 1.2  # times the error, for the tails of what shards say, which a few do not show
_SPARE = 1.2  # times as many shards as an error asks, which is itself an estimate
_UNLIKE = 0.25  # of the curvature that a sample may lack, or have too much of
_TWO_SDS = float(scipy.stats.norm.cdf(2))


class Polynomials(NamedTuple):
    """One polynomial in u a shard: quadratic about one point, with a cubic term about another.

    The cubic term ``(z . v) (z' P z)`` moves means as far as a third derivative does of which a
    trace is known: by ``(d + 2) C v``, for the inverse ``C`` of ``P`` (Isserlis 1918, Biometrika
    12).

    Attributes
    ----------
    u, mode : (d,) arrays
    whiten : (d, d) array
        ``z @ whiten`` has the squared length ``z' P z``.
    value : (n,) array
    gradient : (n, d) array
    precision : (n, d, d) array
    cubic : (n, d) array
        ``v`` of each.
    """

    u: Array
    mode: Array
    whiten: Array
    value: Array
    gradient: Array
    precision: Array
    cubic: Array

    def __call__(self, points: Array) -> Array:
        """Values at ``(G, d)`` points, ``(n, G)``."""
        x, z = points - self.u, points - self.mode
        bent = np.array([((x @ matrix) * x).sum(axis=1) for matrix in self.precision])
        lengths = ((z @ self.whiten) ** 2).sum(axis=1)
        return self.value[:, None] + self.gradient @ x.T - bent / 2 + (self.cubic @ z.T) * lengths

    def of(self, chosen: npt.NDArray[np.int64]) -> Polynomials:
        """Take some of them."""
        return self._replace(**{name: getattr(self, name)[chosen] for name in _OF_EACH})

    def total(self) -> Polynomials:
        """Add all of them up: one polynomial, whose values are ``(1, G)``."""
        return self._replace(**{name: getattr(self, name).sum(axis=0)[None] for name in _OF_EACH})


_OF_EACH = ("value", "gradient", "precision", "cubic")


def polynomials(expansions: Expansions) -> Polynomials:
    """Take of each shard what its expansion says."""
    d, root = len(expansions.u), expansions.axes / STEP
    return Polynomials(
        u=expansions.u,
        mode=expansions.u + expansions.step,
        whiten=np.asarray(np.linalg.inv(root).T, np.float64),
        value=expansions.value,
        gradient=expansions.gradient,
        precision=expansions.precision,
        cubic=expansions.third_derivative / (2 * STEP**2 * (d + 2)),
    )


class Sample(NamedTuple):
    """Shards that speak for all.

    Attributes
    ----------
    expansions : Expansions
        Of all K shards.
    weights : (K,) array
        Each shard's share of the rows.
    certain : (c,) int array
        Shards that stand out, and speak for themselves.
    order : (K - c,) int array
        The others, in the order in which they are drawn.
    n_drawn : int
        How many of them are.
    """

    expansions: Expansions
    weights: Array
    certain: npt.NDArray[np.int64]
    order: npt.NDArray[np.int64]
    n_drawn: int

    @property
    def chosen(self) -> npt.NDArray[np.int64]:
        """Numbers of the m shards that are asked."""
        return np.concatenate([self.certain, self.order[: self.n_drawn]])

    @property
    def factors(self) -> Array:
        """How many shards each of those stands for, ``(m,)``; times their weights they give 1."""
        weights = self.weights[self.chosen]
        n_certain = len(self.certain)
        rest = 1 - weights[:n_certain].sum()
        drawn = np.full(self.n_drawn, rest / weights[n_certain:].sum())
        return np.concatenate([np.ones(n_certain), drawn])

    def fewer(self, n_drawn: int) -> Sample:
        """Take so many of the shards that were drawn, at most."""
        return self._replace(n_drawn=min(n_drawn, self.n_drawn))

    def error(self, values: Array) -> Array:
        """Give the standard error of a sum over all shards, for values ``(m, n)`` of those asked.

        That of a ratio to the rows, without replacement (Cochran 1977, Sampling Techniques, chapter
        6), as much larger as Student's t is in which so few differences are measured, and a fifth
        more, for shards that are skewed.
        """
        drawn = values[len(self.certain) :]
        weights = self.weights[self.order[: self.n_drawn]]
        m, n = self.n_drawn, len(self.order)
        total = self.weights[self.order].sum()
        away = drawn - np.multiply.outer(weights, drawn.sum(axis=0) / weights.sum())
        variance = (away**2).sum(axis=0) / (m - 1)
        scale = total / weights.mean() * np.sqrt((1 - m / n) / m)
        few = _UNSEEN * scipy.stats.t.ppf(_TWO_SDS, m - 1) / 2
        return np.asarray(few * scale * np.sqrt(variance), np.float64)

    def unlikeness(self) -> float:
        """How far its curvature is from that of all, in the direction in which it is furthest."""
        root = self.expansions.axes / STEP
        precision = self.expansions.precision
        total, here = precision.sum(axis=0), np.tensordot(self.factors, precision[self.chosen], 1)
        apart = np.linalg.eigvalsh(root.T @ (here - total) @ root)
        return float(np.abs(apart).max())


def first_sample(
    expansions: Expansions, sizes: Sequence[Size], options: CorrectionOptions, seed: int
) -> Sample | None:
    """Choose shards to begin with.

    Parameters
    ----------
    expansions : Expansions
    sizes : sequence of Size
        Of all shards.
    options : CorrectionOptions
    seed : int

    Returns
    -------
    Sample or None
        None where all shards are as well asked.
    """
    rows = np.array([size.rows for size in sizes], np.float64)
    counts = np.array([[size.rows, *size.groups] for size in sizes], np.float64)
    weights = rows / rows.sum()
    if len(rows) == 1 or not all(np.isfinite(part).all() for part in expansions):
        return None
    stand_out = _stand_out(expansions, weights, counts)
    rng = np.random.default_rng([seed, 4])
    certain = np.flatnonzero(stand_out)
    sample = Sample(expansions, weights, certain, rng.permutation(np.flatnonzero(~stand_out)), 0)
    enough_rows = int(np.ceil(options.sampled_rows / rows.mean()))
    return _of(sample, max(_FEWEST, options.sampled_shards, enough_rows))


def larger_sample(sample: Sample, error: float, wanted: float) -> Sample | None:
    """Choose as many shards more as an error asks, twice as many at least; None for all."""
    if not np.isfinite(error):
        return None
    times = max(2.0, _SPARE * (error / wanted) ** 2)
    return _of(sample, int(min(np.ceil(times * sample.n_drawn), len(sample.weights))))


def _of(sample: Sample, n_drawn: int) -> Sample | None:
    """Draw so many shards, and as many more as it takes to be like all; None for all."""
    n = len(sample.weights)
    while len(sample.certain) + n_drawn <= _MOST * n:
        drawn = sample._replace(n_drawn=n_drawn)
        if drawn.unlikeness() < _UNLIKE:
            return drawn
        n_drawn *= 2
    return None


def _stand_out(expansions: Expansions, weights: Array, counts: Array) -> npt.NDArray[np.bool_]:
    """Tell which shards are unlike the others in size, score, curvature or skew, ``(K,)``.

    What many shards have, and others have not, is no exception: a spread is taken over all but a
    few. Nor is what is too slight to matter.
    """
    root, share = expansions.axes / STEP, weights[:, None]
    score = (expansions.gradient - share * expansions.gradient.sum(axis=0)) @ root
    curvature = np.einsum("ji,kjl,li->ki", root, expansions.precision, root, optimize=True)
    skew = expansions.third_derivative @ root / (2 * STEP**2)
    sizes = counts / np.maximum(counts.mean(axis=0), 1.0)
    features = [
        (score / np.sqrt(share * (1 - share)), 1.0),
        (curvature / share, _EVEN),
        (skew, _SLIGHT / _STANDS_OUT),
        (sizes, _EVEN),
        (expansions.value[:, None] / share, 0.0),
    ]
    return np.any([_far(values, least) for values, least in features], axis=0)


def _far(values: Array, least: float) -> npt.NDArray[np.bool_]:
    """Tell which shards are far from the median in one of their values ``(K, n)``."""
    away = np.abs(values - np.median(values, axis=0))
    n_trimmed = int(np.ceil(_TRIMMED * len(away)))
    spread = np.sqrt((np.sort(away, axis=0)[:-n_trimmed] ** 2).mean(axis=0))
    return np.asarray((away > _STANDS_OUT * np.maximum(spread, least)).any(axis=1))
