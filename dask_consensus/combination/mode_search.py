"""Where to begin: searches of one shard for the modes of its posterior."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain, pairwise
from typing import NamedTuple

import numpy as np
import scipy.optimize
import scipy.stats

from ..cluster.mapreduce import compute_with_progress, on_worker
from ..cluster.shards import Shards
from ..cluster.tasks import broadcast, compute
from ..model.model import ShardModel, precision
from ..shard.compiling import on_device
from ..shard.engine import Engine, engine_of
from ..shard.quadrature import Rule
from ..shard.subsets import few_units, some_units
from ..shard_data import ShardData, Size
from .ascent import Array, Peak, ascend
from .redrawn import redrawn
from .symmetry import images

FAR = float(scipy.stats.norm.isf(1e-6 / 2))  # sds beyond which a mode is another one
DISPLACED = 0.1  # sds by which too few nodes may displace the mode
_NEEDLE = 10.0  # times as wide as which a mode is another one than one within it
_COMPARABLE = 12.0  # log density by which another mode may be lower and still count
_ROWS = 512  # of a shard that many points are tried on
_POLISHED = 12  # peaks of such rows that are looked at on a whole shard, at most
_VALLEY = 2.0  # fall of the log density half way between two ends that parts them
_ELSEWHERE = 8  # places beside the best from which rows are searched
_EVALUATIONS = 200  # of one search of such rows, at most
_STRETCH = 2.0  # of half the points beyond the prior's bulk, from its median
_POLISH = 12  # expansions at most to polish a search of one shard
_SAME = 1e-6  # relative difference of log densities by more than which fewer nodes do not do


def comparable(height: float, highest: float, d: int) -> bool:
    """Tell whether a mode in `d` dimensions is high enough to count beside the highest."""
    return height >= highest - _COMPARABLE - d


def spread(draws: Array) -> Array:
    """Scale of a step of ordinary size, ``(d,)``: that of draws ``(n, d)`` of the prior."""
    scale = scipy.stats.median_abs_deviation(draws, axis=0, scale="normal")
    return np.where(np.isfinite(scale) & (scale > 0), scale, 1.0).astype(np.float64)


def distinct(peaks: Sequence[Peak]) -> list[Peak]:
    """Peaks that are comparable with the highest and apart from each other, highest first.

    A low one that is wide may have as much mass as one that is high and narrow, or more.
    """
    if not peaks:
        return []
    masses = [peak.height + np.linalg.slogdet(peak.covariance)[1] / 2 for peak in peaks]
    highest, heaviest = max(peak.height for peak in peaks), max(masses)
    kept: list[Peak] = []
    for k in sorted(range(len(peaks)), key=lambda k: -peaks[k].height):
        peak = peaks[k]
        high = comparable(peak.height, highest, len(peak.u))
        heavy = masses[k] >= heaviest - _COMPARABLE
        if (high or heavy) and all(apart(peak, other) for other in kept):
            kept.append(peak)
    return kept


def apart(peak: Peak, other: Peak) -> bool:
    """Tell whether two peaks are two, and not one that was reached twice."""
    sds = np.sqrt(np.diag(peak.covariance)), np.sqrt(np.diag(other.covariance))
    return _far(peak.u - other.u, *sds)


def _far(away: Array, sd: Array, other: Array) -> bool:
    """Tell whether places are two: far in the wider one's sds; or in the narrower one's, a needle.

    Reached twice a place would be as wide.
    """
    wide, narrow = np.maximum(sd, other), np.minimum(sd, other)
    needle = (wide > _NEEDLE * narrow) & (np.abs(away) > FAR * narrow)
    return bool((np.abs(away) > FAR * wide).any() or needle.any())


class Found(NamedTuple):
    """A maximum of one shard's posterior.

    Attributes
    ----------
    peak : Peak
    reached : int
        How many of the searches ended there.
    """

    peak: Peak
    reached: int


class Ended(NamedTuple):
    """Where one search of a few rows ended: the point, its height, and sds there, about."""

    u: Array
    height: float
    sd: Array


def find_peaks(
    model: ShardModel, shards: Shards, starts: tuple[Array, Array], n_searches: int, seed: int
) -> tuple[list[Found], list[Peak]]:
    """Search some rows of several shards from many points, and polish what they find on one shard.

    Peaks of few rows are wide, so that many points may be tried; those of several shards differ
    by chance, so that all are compared on one.

    Parameters
    ----------
    model : ShardModel
        Its engine has no obstacle.
    shards : Shards
    starts : tuple of (n, d) arrays
        Points near the middle of the prior, and draws of it.
    n_searches : int
        In all.
    seed : int

    Returns
    -------
    peaks : list of Found
        Comparable and distinct, highest first; empty if no search arrived.
    ridges : list of Peak
        Where searches ended that are as high, but no peaks: on a ridge, or at an edge.
    """
    execution, given = shards.execution, broadcast(model)
    median, chosen = shards.median(), searched_shards(shards)
    pieces = [on_worker(execution, few_rows, shards.data[k], model) for k in chosen]
    draws = _finite(starts[1])
    points, scale = _starting_points(starts[0], draws, seed), spread(draws)
    parts, n_each = np.array_split(points, len(chosen)), -(-n_searches // len(chosen))
    searches = [
        on_worker(execution, search_rows, piece, given, part, scale, n_each)
        for piece, part in zip(pieces, parts, strict=True)
    ]
    answers = compute_with_progress(searches, execution, "searching", "shard")
    ended = list(chain.from_iterable(answers))
    if not ended:
        return [], []

    piece = pieces[chosen.index(median)]

    def height(points: Array) -> Array:
        heights: Array = compute([on_worker(execution, heights_of, piece, given, points)])[0]
        return heights

    elsewhere = _elsewhere(ended, draws, model, height, seed)
    if len(elsewhere):
        more = on_worker(execution, search_from, piece, given, elsewhere, scale)
        ended += compute_with_progress([more], execution, "searching", "shard")[0]
    candidates = _candidates(ended, model, height)
    polishing = [
        on_worker(execution, search, shards.data[median], given, end.u, end.sd)
        for end, _ in candidates
    ]
    polished = compute_with_progress(polishing, execution, "polishing", "peak")
    return _told_apart(polished, [count for _, count in candidates])


def searched_shards(shards: Shards) -> list[int]:
    """Give the numbers of the shards of which some rows are searched."""
    return sorted({0, shards.median(), shards.n - 1})


def _finite(draws: Array) -> Array:
    """Put other draws in the place of those whose unconstrained value overflows."""
    finite = np.isfinite(draws).all(axis=1)
    kept = np.resize(np.flatnonzero(finite), len(draws))
    return draws[kept] if finite.any() else np.zeros_like(draws)


def _starting_points(medians: Array, draws: Array, seed: int) -> Array:
    """All points that searches may begin from, in random order."""
    rng = np.random.default_rng([seed, 3])
    points = np.concatenate([medians, draws, beyond(draws, rng)])
    return rng.permutation(points)


def _elsewhere(
    ended: Sequence[Ended],
    draws: Array,
    model: ShardModel,
    height: Callable[[Array], Array],
    seed: int,
) -> Array:
    """Give places as high as where searches ended, beyond a valley, that differ in a few sites.

    Returns
    -------
    (n, d) array
        The highest of them, and some of all.
    """
    # Heights that searches of other rows told are not to be compared.
    there = height(np.array([end.u for end in ended]))
    k = int(np.argmax(there))
    best, sd, top = ended[k].u, ended[k].sd, float(there[k])
    rng = np.random.default_rng([seed, 7])
    others = redrawn(best, draws, model.shared, rng)
    others = others[[_far(u - best, sd, sd) for u in others]]
    if not len(others):
        return others
    heights = height(others)
    high = [comparable(h, top, len(best)) for h in heights.tolist()]
    others, heights = others[high], heights[high]
    if not len(others):
        return others
    across = np.minimum(heights, top) - height((others + best) / 2) > _VALLEY
    others, heights = others[across], heights[across]
    order = np.argsort(-heights, kind="stable")
    some = rng.permutation(order[_ELSEWHERE // 2 :])[: _ELSEWHERE // 2]
    return others[np.concatenate([order[: _ELSEWHERE // 2], some])]


def _candidates(
    ended: Sequence[Ended], model: ShardModel, height: Callable[[Array], Array]
) -> list[tuple[Ended, int]]:
    """Compare the ends of searches on the same rows: which are one, and which images are as high.

    Returns
    -------
    list of tuple of Ended and int
        The highest places, and how many searches ended there; none at an image.
    """
    pool = np.array([end.u for end in ended])
    heights = height(pool)
    ended = [end._replace(height=float(h)) for end, h in zip(ended, heights, strict=True)]
    best = max(ended, key=lambda end: end.height)
    # Ends with a valley between them and the best are not the best, however near they are.
    falls = np.minimum(heights, best.height) - height((pool + best.u) / 2)
    beside = [end for end, fall in zip(ended, falls, strict=True) if fall <= _VALLEY]
    across = [end for end, fall in zip(ended, falls, strict=True) if not fall <= _VALLEY]
    candidates = [*merged(beside), *merged(across)]
    mirrored = images(best.u, model.shared)
    # A point that is its own image has many that are none.
    mirrored = mirrored[[_far(u - best.u, best.sd, best.sd) for u in mirrored]]
    if len(mirrored):
        there = [
            Ended(u, float(h), best.sd) for u, h in zip(mirrored, height(mirrored), strict=True)
        ]
        high = [end for end in there if comparable(end.height, best.height, len(end.u))]
        candidates += [(end, 0) for end, _ in merged(high)]
    return sorted(candidates, key=lambda pair: -pair[0].height)[:_POLISHED]


def _told_apart(
    polished: Sequence[tuple[Peak, bool]], counts: Sequence[int]
) -> tuple[list[Found], list[Peak]]:
    """Tell peaks from what is none, and count the searches that reached each."""
    peaks = distinct([peak for peak, settled in polished if settled])
    reached = [0] * len(peaks)
    for (peak, _), count in zip(polished, counts, strict=True):
        same = (k for k, other in enumerate(peaks) if not apart(peak, other))
        k = next(same, None)
        if k is not None:
            reached[k] += count
    highest = max(peak.height for peak, _ in polished)
    ridges = [
        peak
        for peak, settled in polished
        if not settled and comparable(peak.height, highest, len(peak.u))
    ]
    return [Found(peak, count) for peak, count in zip(peaks, reached, strict=True)], ridges


def united(found: Sequence[Found]) -> list[Found]:
    """Join what several rounds of searches have found."""
    peaks = distinct([search.peak for search in found])
    return [
        Found(peak, sum(reached for other, reached in found if not apart(peak, other)))
        for peak in peaks
    ]


def beyond(draws: Array, rng: np.random.Generator) -> Array:
    """Spread as many points as there are draws over their marginals, in and beyond their bulk.

    A scrambled Sobol sequence leaves no region empty by chance; each coordinate is a quantile of
    the draws, at twice its distance from the median for half of the points.
    """
    n, d = draws.shape
    uniform = scipy.stats.qmc.Sobol(d, rng=rng).random(n)
    points = np.column_stack([np.quantile(draws[:, j], uniform[:, j]) for j in range(d)])
    middle = np.median(draws, axis=0)
    points[::2] = middle + _STRETCH * (points[::2] - middle)
    return points


def merged(ended: Sequence[Ended]) -> list[tuple[Ended, int]]:
    """Unite searches that ended at one place, the highest standing for all; and count them."""
    kept: list[tuple[Ended, int]] = []
    for end in sorted(ended, key=lambda end: -end.height):
        for k, (other, count) in enumerate(kept):
            if not _far(end.u - other.u, end.sd, other.sd):
                kept[k] = other, count + 1
                break
        else:
            kept.append((end, 1))
    return kept


# On a worker


def few_rows(data: ShardData, model: ShardModel) -> ShardData:
    """Take some units of a shard, many of those that hold what is rare: they may know most."""
    room = Size(_ROWS, tuple(min(count, _ROWS) for count in data.size.groups))
    return some_units(data, model.codes, room, 1, rare_first=True)


def heights_of(data: ShardData, model: ShardModel, points: Array) -> Array:
    """Log posterior of some rows under the full prior at each point, ``(n,)``."""
    return _heights(data, model, points, engine_of(model).search_nodes[0])


def _heights(data: ShardData, model: ShardModel, points: Array, n_nodes: int) -> Array:
    ones = np.ones(points.shape[1])
    heights = engine_of(model).descents(data, points, ones, 0, n_nodes).height
    return np.where(np.isfinite(heights), heights, -np.inf)


def _search_nodes(engine: Engine, height: Callable[[int], float]) -> int:
    """Take the fewest nodes where they are exact, as for Gaussian rows, by heights of one point.

    Where they are not, the gradient is not that of the height: a search by both comes to no end,
    or to one that is sds away.
    """
    fewest, *more = engine.search_nodes
    if not more:
        return fewest
    finer = height(more[0])
    exact = abs(height(fewest) - finer) <= _SAME * (1 + abs(finer))
    return fewest if exact else more[0]


def search_rows(
    data: ShardData, model: ShardModel, points: Array, scale: Array, n: int
) -> list[Ended]:
    """Search from the best of `points`: half of the `n` from the highest, others from all over."""
    heights = heights_of(data, model, points)
    order = np.argsort(-heights, kind="stable")
    best = order[: n // 2]
    # The winners of heats among the others: good ones, of many places. And points at random: where
    # a density is low, and wide, none wins.
    rest = np.setdiff1d(np.arange(len(points)), best)
    n_random = (n - len(best)) // 2
    heats = np.array_split(rest[n_random:], n - len(best) - n_random)
    winners = [int(heat[np.argmax(heights[heat])]) for heat in heats if len(heat)]
    begins = [*best.tolist(), *winners, *rest[:n_random].tolist()]
    begins = [k for k in begins if np.isfinite(heights[k])]
    if not begins:
        return []
    return search_from(data, model, points[begins], scale)


def search_from(data: ShardData, model: ShardModel, begins: Array, scale: Array) -> list[Ended]:
    """Search some rows from each of ``(n, d)`` points: where each search ended."""
    engine = engine_of(model)
    n_nodes = _search_nodes(engine, lambda n: float(_heights(data, model, begins[:1], n)[0]))
    descents = engine.descents(data, begins, scale, _EVALUATIONS, n_nodes)
    sds = np.sqrt(np.maximum(descents.variance, np.finfo(float).tiny))
    return [
        Ended(u, float(height), sd)
        for u, height, sd in zip(descents.u, descents.height, sds, strict=True)
        if np.isfinite(height)
    ]


def search(data: ShardData, model: ShardModel, start: Array, scale: Array) -> tuple[Peak, bool]:
    """Search one shard's posterior, under the full prior, for a peak; and tell whether it is one.

    Parameters
    ----------
    data : ShardData
    model : ShardModel
    start, scale : (d,) arrays
        Where to begin, and the size of a step.
    """
    engine = engine_of(model)

    def there(n_nodes: int) -> float:
        return float(engine.gradient(data, start[None], 1.0, Rule(n_nodes)).value[0])

    rule = Rule(_search_nodes(engine, there))
    u, height, guess = _descend(data, model, start, scale, rule)
    ended = Peak(u, guess, height)
    if not np.isfinite(height):
        return ended, False
    try:
        arrived = ascend(
            lambda u, axes: engine.expansion(data, u, axes, 1.0, rule), u, guess, _POLISH
        )
    except np.linalg.LinAlgError:
        return ended, False
    return (ended, False) if arrived is None else (arrived[0], True)


def _descend(
    data: ShardData, model: ShardModel, start: Array, scale: Array, rule: Rule
) -> tuple[Array, float, Array]:
    """Minimise by L-BFGS: the point, its height, a guess at the covariance there."""
    engine = engine_of(model)
    with precision(model.double):
        there = on_device(data)

    def fall(z: Array) -> tuple[float, Array]:
        score = engine.gradient(there, (start + scale * z)[None], 1.0, rule)
        if not (np.isfinite(score.value).all() and np.isfinite(score.gradient).all()):
            return 1e300, np.zeros_like(z)
        return -float(score.value[0]), -scale * score.gradient[0]

    origin = np.zeros_like(start)
    if fall(origin)[0] == 1e300:
        return start, -np.inf, np.diag(scale**2)
    ended = scipy.optimize.minimize(
        fall, origin, jac=True, method="L-BFGS-B", options={"maxcor": 30}
    )
    guess = np.asarray(scale[:, None] * ended.hess_inv.todense() * scale, np.float64)
    return start + scale * ended.x, -float(ended.fun), (guess + guess.T) / 2.0


def enough_nodes(
    data: ShardData, model: ShardModel, peak: Peak, n_shards: int, displaced: float = DISPLACED
) -> Rule:
    """Take as few nodes as displace the mode of all shards by no more than is allowed.

    Parameters
    ----------
    data : ShardData
        Of one shard; the others' errors are taken to be like its own.
    model : ShardModel
    peak : Peak
    n_shards : int
    displaced : float
        Posterior sds.
    """
    engine = engine_of(model)
    n_modes = engine.most_modes(few_units(data, model.codes), peak.u[None])

    def gradient(n_nodes: int) -> Array:
        rule = Rule(n_nodes, n_modes)
        return engine.gradient(data, peak.u[None], 1.0, rule).gradient[0]

    fewer = gradient(engine.gradient_nodes[0])
    for n_nodes, more_nodes in pairwise(engine.gradient_nodes):
        more = gradient(more_nodes)
        error = more - fewer
        # Errors of shards add up, and the sd shrinks.
        if np.sqrt(n_shards * error @ peak.covariance @ error) < displaced:
            return Rule(n_nodes, n_modes)
        fewer = more
    return Rule(engine.gradient_nodes[-1], n_modes)
