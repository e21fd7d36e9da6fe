"""The posterior of a few parameters, hundreds of crossed effects integrated out; and its mode.

Given all other shared parameters, ``t``, the effects ``b`` of crossed factors have a density that
is nearly normal. Its mode and its curvature there are sums over shards (:mod:`..shard.crossed`), so
that Newton's method finds it for many ``t`` at once, a pass over all shards a step. Laplace's
approximation of the integral over ``b`` (Rue, Martino and Chopin 2009, JRSS B 71, section 3) is
then a log density of ``t`` alone, of a few dimensions, that is climbed here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.linalg

from ..cluster.journal import recalled
from ..cluster.mapreduce import Answer, each, map_reduce
from ..cluster.shards import Shards
from ..cluster.tasks import broadcast
from ..model.crossed import coordinates
from ..model.model import ShardModel
from ..shard.crossed import Curvature, curvature, prior_curvature
from ..shard.engine import engine_of
from ..shard.quadrature import Rule
from ..shard_data import ShardData
from .ascent import Peak
from .gaussian import inverse, square_root
from .quadratics import STEP, design, quadratic
from .reports import Anchor, LaplaceApproximation, Report, Round
from .symmetry import images

Array = npt.NDArray[np.float64]
_AT_ONCE = 2**25  # numbers of Hessians that are added up at a time
_WORTH_KEEPING = 2**18  # of them, that a store keeps of one look
_MOST_LOOKS = 30  # at effects, from far away
_NEAR = 1e-5  # squared decrement at which a last step arrives, and the volume is that at the mode
_SHORTEST = 1e-3  # share of a step that is tried last
_LONGEST = 4.0  # sds of a step from where curvature is known
_MOST_CHANGE = 16.0  # of curvature at a time, from what was expected
_ROUNDING = 0.01  # of heights that are the same
_ARRIVED = 0.1  # sds
_ALIKE = 2.0  # factor by which curvature may differ from what points were spaced by
_MOST_STEPS = 25
_FEW_ROWS = 50_000  # that a search begins with
_STARTS, _CLIMBS = 12, 3  # points of the prior that are looked at; from which it is climbed
_AS_HIGH, _APART = 5.0, 3.0  # log units, and sds, of modes that count as several
_IMAGES = 32  # of a mode, that are looked at
_VALLEY = 2.0  # fall of the log density half way between two places that parts them
_TERMS_A_POINT = 0.5  # of a polynomial that says where modes are


class GivenOthers(NamedTuple):
    """What is known of ``J`` crossed effects at each of G values of the other parameters.

    Attributes
    ----------
    mode : (G, J) array
    log_volume : (G,) array
        Half the log determinants of the precisions there.
    log_density : (G,) array
        Of the other parameters, effects integrated out by Laplace's method; up to what the engine
        leaves out of units' integrals. Minus infinity where no mode was found.
    factors : callable
        Gives the lower Cholesky factors of the precisions, ``(G, J, J)``; after a crash it takes
        some looks at the rows, since of so many numbers none is kept.
    """

    mode: Array
    log_volume: Array
    log_density: Array
    factors: Callable[[], Array]


class _Climbed(NamedTuple):
    """What is kept of a climb."""

    mode: Array  # (G, J)
    found: Array  # (G,) bool
    log_volume: Array  # (G,)
    log_density: Array  # (G,)


class CrossedEffects:
    """The log density of shards in all parameters but crossed effects, which it integrates out.

    It remembers where modes of effects were, to begin from at other points.
    """

    def __init__(self, model: ShardModel, shards: Shards, example: ShardData) -> None:
        self.model, self.shards, self.example = model, shards, example
        self.effects, self.others = coordinates(model)
        self._known: list[tuple[Array, Array]] = []
        self._model = broadcast(model)

    def joined(self, others: Array, effects: Array) -> Array:
        """Make points of ``u`` of the two parts, each ``(..., n)``."""
        u = np.empty((*np.broadcast_shapes(others.shape[:-1], effects.shape[:-1]), self.model.dim))
        u[..., self.others], u[..., self.effects] = others, effects
        return u

    def at(self, others: Array, title: str) -> Iterator[tuple[slice, GivenOthers]]:
        """Integrate at points ``(G, p)``, some of them at a time."""
        size = max(1, _AT_ONCE // len(self.effects) ** 2)
        for first in range(0, len(others), size):
            some = slice(first, min(first + size, len(others)))
            yield some, self._climbed(others[some], title)

    def log_density(self, others: Array, title: str) -> Array:
        """Log density at points ``(G, p)``, by Laplace's method."""
        return np.concatenate([given.log_density for _, given in self.at(others, title)])

    def modes(self, others: Array) -> Array:
        """Modes of effects ``(G, J)`` at points ``(G, p)``, from memory where that has them."""
        known = {point.tobytes(): mode for point, mode in self._known}
        new = np.array([point for point in others if point.tobytes() not in known])
        if len(new):
            for some, given in self.at(new, "crossed effects"):
                known |= {p.tobytes(): b for p, b in zip(new[some], given.mode, strict=True)}
        return np.array([known[point.tobytes()] for point in others])

    def expanded(self, points: Array, title: str) -> Curvature:
        """Expand the log density of all shards, prior included, in the effects; at few points."""
        likelihood = self.expanded_likelihood(points, title)
        prior = prior_curvature(self.model, self.example, points)
        return Curvature(*(a + b for a, b in zip(likelihood, prior, strict=True)))

    def expanded_likelihood(self, points: Array, title: str) -> Curvature:
        """Expand the log likelihood alone.

        A store keeps it where it is small: Hessians of a thousand effects are 10 MB a point.
        """
        mapped = map_reduce(
            each(_expand),
            self.shards,
            [()] * self.shards.n,
            [self._model, broadcast(points)],
            _add,
            title=title,
            recorded=len(points) * len(self.effects) ** 2 <= _WORTH_KEEPING,
        )
        total: Curvature = mapped.total
        return total

    def kept(self, title: str, question: list[Any], answer: Callable[[], Any]) -> Any:
        """Have an answer of all shards kept in a store, in place of what it is made of."""
        return recalled(title, [list(self.shards.data), self.model, *question], answer)

    def guess(self, others: Array) -> Array:
        """Guess modes ``(G, J)`` from those that are known: by a polynomial, or the nearest."""
        if not self._known:
            return np.zeros((len(others), len(self.effects)))
        points = np.array([point for point, _ in self._known])
        modes = np.array([mode for _, mode in self._known])
        away, scale = points.mean(axis=0), points.std(axis=0)
        scale = np.where(scale > 0, scale, 1.0)
        white, asked = (points - away) / scale, (others - away) / scale
        near = np.argmin(((asked[:, None] - white) ** 2).sum(axis=2), axis=1)
        guessed = modes[near]
        for degree in (2, 1):
            design = polynomial(white, degree)
            if design.shape[1] <= _TERMS_A_POINT * len(points):
                # From the nearest known mode along a polynomial of all of them.
                fit, *_ = np.linalg.lstsq(design, modes, rcond=1e-10)
                inside = np.abs(asked).max(axis=1) < 3
                moved = (polynomial(asked, degree) - design[near]) @ fit
                return guessed + np.where(inside[:, None], moved, 0.0)
        return guessed

    def _climbed(self, others: Array, title: str) -> GivenOthers:
        """Find the mode of effects at each of the points, from where they are guessed to be."""
        begin, factors = self.guess(others), []

        def climb() -> _Climbed:
            told, factor = self._climb(others, begin, title)
            factors.append(factor)
            return told

        def factors_there() -> Array:
            return factors[0] if factors else self._climb(others, begin, title)[1]

        told: _Climbed = self.kept(title, ["climbed", others, begin], climb)
        self._known += [(others[k], told.mode[k]) for k in np.flatnonzero(told.found)]
        return GivenOthers(told.mode, told.log_volume, told.log_density, factors_there)

    def _climb(self, others: Array, begin: Array, title: str) -> tuple[_Climbed, Array]:
        """Climb to the mode of effects at each of the points, all in step; and the factors."""
        n, size = len(others), len(self.effects)
        here = begin.copy()
        value, share = np.full(n, -np.inf), np.ones(n)
        step, factor = np.zeros((n, size)), np.zeros((n, size, size))
        left, found = np.arange(n), np.zeros(n, bool)
        for _ in range(_MOST_LOOKS):
            tried = here[left] + share[left, None] * step[left]
            told = self.expanded(self.joined(others[left], tried), title)
            for i, k in enumerate(left):
                # Not where it is NaN; slack for the rounding of large sums.
                climbs = told.value[i] >= value[k] - 1e-6 * abs(told.value[i]) - 1e-3
                if not (climbs or np.isneginf(value[k])):
                    share[k] /= 2
                    continue
                here[k], value[k], share[k] = tried[i], told.value[i], 1.0
                factor[k] = factor_of(told.precision[i])
                step[k] = scipy.linalg.cho_solve((factor[k], True), told.gradient[i])
                decrement = float(told.gradient[i] @ step[k])
                if decrement < _NEAR:
                    found[k] = True
                    here[k] += step[k]
                    value[k] += decrement / 2
            left = left[~found[left] & (share[left] > _SHORTEST) & np.isfinite(value[left])]
            if not len(left):
                break
        log_volume = np.log(np.maximum(np.einsum("gii->gi", factor), 1e-300)).sum(axis=1)
        log_density = value - log_volume + size / 2 * np.log(2 * np.pi)
        climbed = _Climbed(here, found, log_volume, np.where(found, log_density, -np.inf))
        return climbed, factor


def _expand(data: ShardData, model: ShardModel, points: Array) -> Answer:
    """Expand one shard's log likelihood in crossed effects; runs on a worker."""
    return Answer(curvature(model, data, points), None)


def _add(parts: list[Curvature]) -> Curvature:
    return Curvature(*(np.sum(part, axis=0) for part in zip(*parts, strict=True)))


def factor_of(precision: Array) -> Array:
    """Cholesky factor of a precision, made positive definite where it is not."""
    if not np.isfinite(precision).all():
        return np.full_like(precision, np.nan)
    try:
        return np.asarray(np.linalg.cholesky(precision), np.float64)
    except np.linalg.LinAlgError:
        values, vectors = np.linalg.eigh(precision)
        least = 1e-3 * np.abs(values).max()
        made = (vectors * np.maximum(np.abs(values), least)) @ vectors.T
        return np.asarray(np.linalg.cholesky(made), np.float64)


def polynomial(white: Array, degree: int) -> Array:
    """Terms of a polynomial of degree 1 or 2 at points ``(G, p)``."""
    columns = [np.ones((len(white), 1)), white]
    if degree == 2:
        first, second = np.triu_indices(white.shape[1])
        columns.append(white[:, first] * white[:, second])
    return np.concatenate(columns, axis=1)


# The mode


def crossed_mode(
    model: ShardModel,
    shards: Shards,
    example: ShardData,
    starts: tuple[Array, Array],
) -> tuple[LaplaceApproximation, CrossedEffects] | None:
    """Find the mode of all parameters but crossed effects: on few shards first, then on all.

    Parameters
    ----------
    model : ShardModel
    shards : Shards
    example : ShardData
    starts : pair of (n, d) arrays
        Points of the prior, near its middle and anywhere.

    Returns
    -------
    LaplaceApproximation and CrossedEffects, or None
        Of all d parameters, and what is known of the modes of effects; None where no mode was
        found.
    """
    began = time.perf_counter()
    chosen = _few(shards)
    few = CrossedEffects(model, shards.some(chosen), example)
    peaks, searched = _searched(few, starts)
    if not peaks:
        return None
    best = peaks[0]
    others = [
        peak
        for peak in peaks[1:]
        if peak.height > best.height - _AS_HIGH and _distance(best, peak) > _APART
    ]
    everyone = CrossedEffects(model, shards, example)
    share = sum(shards.weights[k] for k in chosen)
    peak = climb(everyone, best.u, best.covariance * share, "Newton steps")
    if peak is None:
        return None
    mean, covariance = _of_all(everyone, peak)
    approximation = LaplaceApproximation(
        mean=mean,
        covariance=covariance,
        shift=np.full(model.dim, np.nan),  # not known
        modes=1 + len(others) + mirrored(few, best, others),
        rounds=[_round(everyone, mean, covariance, began)],
        reached=sum(_distance(best, peak) <= _APART for peak in peaks),
        searched=searched,
        height=peak.height,
    )
    return approximation, everyone


def _round(crossed: CrossedEffects, mean: Array, covariance: Array, began: float) -> Round:
    """Describe shards by their scores at the mode: Gaussians of their share of the precision."""
    shards, model = crossed.shards, crossed.model
    scores = map_reduce(
        each(_score),
        shards,
        [(weight,) for weight in shards.weights],
        [broadcast(model), broadcast(mean)],
        _nothing,
        title="scores",
    ).reports
    precision = np.diag(inverse(covariance))
    reports = [
        Report(*size, weight, mean + score / (weight * precision), weight * precision, 0.0, 0.0)
        for score, size, weight in zip(scores, shards.sizes, shards.weights, strict=True)
    ]
    nothing = Anchor(mean, np.zeros((model.dim, model.dim)), 0.0)
    seconds = time.perf_counter() - began
    return Round(reports, mean, covariance, nothing, np.nan, np.nan, seconds)


def _nothing(_: list[None]) -> None:
    return None


def _score(data: ShardData, weight: float, model: ShardModel, u: Array) -> Answer:
    """Gradient of a shard's log density in all parameters; runs on a worker."""
    engine = engine_of(model)
    rule = Rule(engine.gradient_nodes[min(1, len(engine.gradient_nodes) - 1)])
    return Answer(None, engine.gradient(data, u[None], weight, rule).gradient[0])


def _few(shards: Shards) -> list[int]:
    """Choose as many shards as a search begins with, of all sizes."""
    rows = sum(size.rows for size in shards.sizes)
    wanted = max(1, round(shards.n * min(1.0, _FEW_ROWS / rows)))
    return sorted(set(np.linspace(0, shards.n - 1, wanted + 2).round().astype(int)[1:-1].tolist()))


def _distance(best: Peak, other: Peak) -> float:
    away = other.u - best.u
    return float(np.sqrt(away @ np.linalg.solve(best.covariance, away)))


def mirrored(few: CrossedEffects, best: Peak, known: Sequence[Peak] = ()) -> int:
    """Count mirror images of a mode, and exchanged entries, that are as high and beside it.

    Those that are `known` modes are not counted.

    Where a likelihood is even in a coefficient all climbs may end on one side.
    """
    taken = {one.site for one in few.model.crossed}
    places = images(best.u, [site for site in few.model.shared if site.name not in taken])
    if not len(places):
        return 0
    places = places[:_IMAGES]
    there = few.log_density(places, "search")
    high = there > best.height - _AS_HIGH
    if not high.any():
        return 0
    places, there = places[high], there[high]
    between = few.log_density((places + best.u) / 2, "search")
    beside: list[Peak] = []
    for u, height, valley in zip(places, there, between, strict=True):
        apart = all(
            _distance(one, Peak(u, best.covariance, height)) > _APART
            for one in (best, *known, *beside)
        )
        if apart and valley < min(height, best.height) - _VALLEY:
            beside.append(Peak(u, best.covariance, float(height)))
    return len(beside)


def _searched(few: CrossedEffects, starts: tuple[Array, Array]) -> tuple[list[Peak], int]:
    """Climb from the best of some points of the prior; the highest peak first, and how often."""
    medians, draws = (part[:, few.others] for part in starts)
    # Of heavy tails the quartiles say more than the sd.
    low, high = np.quantile(draws, [0.25, 0.75], axis=0)
    scale = np.maximum(np.minimum(draws.std(axis=0), 3 * (high - low)), 1e-3)
    points = np.concatenate([medians[: _STARTS // 2], draws[: _STARTS // 2]])
    height = np.array([few.log_density(point[None], "search")[0] for point in points])
    order = np.argsort(-np.where(np.isfinite(height), height, -np.inf))
    peaks = []
    for k in order[:_CLIMBS]:
        if np.isfinite(height[k]):
            peak = climb(few, points[k], np.diag((scale / 2) ** 2), "search")
            if peak is not None:
                peaks.append(peak)
    return sorted(peaks, key=lambda peak: -peak.height), _CLIMBS


def climb(crossed: CrossedEffects, start: Array, covariance: Array, title: str) -> Peak | None:
    """Climb by Newton steps on quadratics through points half an sd apart, where they lead up."""
    u, p, longest = start, len(start), _LONGEST
    white = design(p)
    for _ in range(_MOST_STEPS):
        axes = square_root(covariance)
        height = crossed.log_density(u + white @ axes.T, title)
        if not np.isfinite(height[0]):
            return None
        if not np.isfinite(height).all():
            covariance = covariance / 16
            continue
        slope, bend = quadratic(height, p)
        values, vectors = np.linalg.eigh(bend)
        curved = np.clip(np.abs(values), 1 / _MOST_CHANGE, _MOST_CHANGE)
        move = vectors @ ((vectors.T @ slope) / curved)
        root = axes @ vectors / np.sqrt(curved)
        length = float(np.sqrt(move @ slope)) if values.min() > 0 else np.inf
        if values.min() > 1 / _ALIKE and values.max() < _ALIKE and length < _ARRIVED:
            return Peak(u + axes @ move, root @ root.T, float(height[0] + length**2 / 2))
        size = float(np.linalg.norm(move))
        move *= min(1.0, longest / max(size, 1e-300))
        there = u + axes @ move
        ahead = crossed.log_density(there[None], title)[0]
        top = int(np.argmax(height))
        if ahead > height[top] - _ROUNDING:
            u, longest = there, 2 * longest if size > longest else longest
        else:
            # A quadratic does not say where it is higher: one of the points does, or none.
            u, longest = u + axes @ white[top], longest / 2
        covariance = root @ root.T
    return None


def _of_all(crossed: CrossedEffects, peak: Peak) -> tuple[Array, Array]:
    """Mean and covariance of all parameters, as if effects were linear in the others."""
    ((_, given),) = crossed.at(peak.u[None], "crossed effects")
    mean = crossed.joined(peak.u, given.mode[0])
    axes = square_root(peak.covariance)
    points = peak.u + STEP * np.concatenate([axes.T, -axes.T])
    modes = crossed.modes(points)
    ahead, behind = np.split(modes, 2)
    slope = (ahead - behind).T / (2 * STEP)  # of modes, along the axes

    def inverted() -> Array:
        return np.asarray(scipy.linalg.cho_solve((given.factors()[0], True), np.eye(size)))

    size = len(given.mode[0])
    inverse = crossed.kept("crossed effects", ["inverse", peak.u, given.mode], inverted)
    covariance = np.empty((len(mean), len(mean)))
    effects, others = crossed.effects, crossed.others
    covariance[np.ix_(others, others)] = peak.covariance
    covariance[np.ix_(effects, effects)] = inverse + slope @ slope.T
    covariance[np.ix_(others, effects)] = axes @ slope.T
    covariance[np.ix_(effects, others)] = slope @ axes.T
    return mean, covariance
