"""Newton's method on the log posterior of u, local effects integrated out.

Every shard expands its own log density about the same point, to second order. The expansions are
Gaussian factors: their sum gives the next point, and at the mode the Laplace approximation of the
posterior (Smola, Vishwanathan and Eskin 2003, "Laplace propagation"). A few passes over the shards
do, where sampling each of them takes hundreds of times as many evaluations. Searches of one shard
alone, from points of the prior, say where to begin, and whether there is more than one mode.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..cluster.client import say
from ..cluster.mapreduce import Answer, each, map_reduce, on_worker
from ..cluster.shards import Shards
from ..cluster.tasks import broadcast, compute
from ..config import LaplaceOptions
from ..shard.compiling import seconds_compiling
from ..shard.engine import engine_of
from ..shard.quadrature import Rule
from ..shard.score import Expansion
from ..shard_data import ShardData, Size
from . import gaussian
from .ascent import (
    STEP,
    Array,
    Peak,
    all_finite,
    approach,
    ascend,
    inverse_curvature,
    positive_curvature,
)
from .enough import Top, blind, highest, lone, n_reached
from .mode_search import (
    DISPLACED,
    Found,
    apart,
    distinct,
    enough_nodes,
    find_peaks,
    spread,
    united,
)
from .reports import Anchor, Combined, Expansions, FitSettings, LaplaceApproximation, Report, Round
from .ridges import Ridge, bends, close_to, follow, widest

_ATTEMPTS = 3  # at a mode that more than one search reaches
_RIDGES = 4  # points on ridges that are looked at on all shards
_FOLLOWED = 4  # modes whose ridges are followed
_FLATTEST = 1e-3  # curvature of a shard, in its share of all
_RUNG = 8  # times as many shards as on the rung of a climb below
_FEWEST = 4  # shards of a rung
_MANY, _DISPLACED = 100, 0.5  # shards, and sds where a correction follows: nodes cost every row
_RIVALS = 7  # other peaks of one shard from which all shards are searched


def laplace(
    fit_settings: FitSettings,
    shards: Shards,
    starts: tuple[Array, Array],
    options: LaplaceOptions,
    *,
    corrected: bool,
) -> tuple[LaplaceApproximation | None, list[Peak]]:
    """Find the mode of the posterior, and its shape there.

    Parameters
    ----------
    fit_settings : FitSettings
        Its model's engine has no obstacle.
    shards : Shards
    starts : tuple of (n, d) arrays
        Points near the middle of the prior, and draws of it.
    options : LaplaceOptions
    corrected : bool
        Whether the mode is only where a correction begins, or the answer's.

    Returns
    -------
    approximation : LaplaceApproximation or None
        None if no search arrived.
    landmarks : list of Peak
        Points on ridges and at edges, which searches have ended on.
    """
    n, scale = shards.n, spread(starts[1])
    displaced = _DISPLACED if corrected and n >= _MANY else DISPLACED
    climbs = _Climbs(fit_settings, shards, options.steps, displaced)
    search = _searched(climbs, starts, options.searches)
    if not search.found and not search.ridges:
        return None, []
    search = _searched_elsewhere(climbs, starts, options.searches, search)
    tops, rule, searched = search.tops, climbs.rule_at(search.first), search.searched
    ridges = [*search.ridges, *climbs.lost]
    ridges += [other.peak for other in search.found[1 + _RIVALS :]]
    near = [
        approach(_Posterior(fit_settings, shards, rule).expand, ridge.u, ridge.covariance / n, 3)
        for ridge in sorted(ridges, key=lambda ridge: -ridge.height)[:_RIDGES]
    ]
    landmarks = [ridge for ridge in near if ridge is not None]
    if not tops:
        # Where the ridge is level there is no mode: any place on it will do to begin from.
        approximation = _level_ridge(fit_settings, shards, rule, landmarks, scale)
        if approximation is None:
            return None, landmarks
        return approximation._replace(reached=len(ridges), searched=searched), landmarks
    summits = distinct([top.peak for top in tops])
    along: list[Peak] = []
    for summit in summits[:_FOLLOWED]:
        if not any(close_to(summit, place) for place in along):
            ridge = _ridge_of(fit_settings, shards, rule, summit, scale)
            along += ridge.places
            landmarks += ridge.beyond
    # Peaks that were not looked at on all shards may be modes as well.
    modes = len(summits) + max(len(search.found) - 1 - _RIVALS, 0)
    approximation = highest(tops).approximation._replace(
        modes=modes,
        reached=search.reached,
        searched=searched,
        lone=0 if along else lone(tops),
        height=summits[0].height,
        others=tuple(summits[1:]),
        along=tuple(along),
    )
    return approximation, landmarks


class _Search(NamedTuple):
    """What searches of some shards have found, and the modes of all shards that it led to."""

    found: list[Found]
    ridges: list[Peak]
    tops: list[Top]
    reached: int  # how many reached the highest
    searched: int

    @property
    def first(self) -> Peak:
        """The best of what was found."""
        return self.found[0].peak if self.found else self.ridges[0]


def _searched(climbs: _Climbs, starts: tuple[Array, Array], n_searches: int) -> _Search:
    """Search some shards, and again while what was found is found by one search alone.

    Such a mode may have higher neighbours, or others as high, that none has reached.
    """
    found: list[Found] = []
    ridges: list[Peak] = []
    tops: list[Top] = []
    for attempt in range(_ATTEMPTS):
        seed = climbs.fit_settings.seed + attempt
        model, shards = climbs.fit_settings.model, climbs.shards
        more, unsettled = find_peaks(model, shards, starts, n_searches, seed)
        found, ridges = united([*found, *more]), ridges + unsettled
        if not found:
            break
        if n_reached(found) > 1 or attempt + 1 == _ATTEMPTS:
            tops = climbs.from_all(found)
            if not lone(tops):
                break
    reached = n_reached(found) if found else 0
    return _Search(found, ridges, tops, reached, (attempt + 1) * n_searches)


def _searched_elsewhere(
    climbs: _Climbs, starts: tuple[Array, Array], n_searches: int, before: _Search
) -> _Search:
    """Search a shard that alone knows of a direction: no search of others can have found that."""
    k = blind(climbs.told(before.tops), climbs.shards)
    if k is None:
        return before
    one, fit_settings = climbs.shards.some([k]), climbs.fit_settings
    more, _ = find_peaks(fit_settings.model, one, starts, n_searches, fit_settings.seed)
    tops = climbs.from_all(more, known=before.tops)
    reached = before.reached
    if tops and not any(top.peak.height > highest(tops).peak.height for top in before.tops):
        reached = n_reached(more)
    return before._replace(
        tops=[*before.tops, *tops], reached=reached, searched=before.searched + n_searches
    )


def _of_one(peak: Peak, n_shards: int) -> Peak:
    """Make a mode of all shards as wide as that of one."""
    return peak._replace(covariance=peak.covariance * n_shards)


class _Climbs:
    """Climbs on all shards from peaks of one, each of them once."""

    def __init__(
        self, fit_settings: FitSettings, shards: Shards, most: int, displaced: float
    ) -> None:
        self.fit_settings, self.shards = fit_settings, shards
        self.lost: list[Peak] = []  # peaks that led to no mode
        self._most, self._displaced = most, displaced
        self._rule: Rule | None = None
        self._last: Expansions | None = None
        self._known: list[tuple[Peak, Top | None]] = []

    def rule_at(self, first: Peak) -> Rule:
        """Take as many nodes for local effects as a peak asks for; the first that is asked."""
        if self._rule is None:
            shards = self.shards
            data, model = shards.data[shards.median()], broadcast(self.fit_settings.model)
            question = first, shards.n, self._displaced
            asked = on_worker(shards.execution, enough_nodes, data, model, *question)
            self._rule = compute([asked])[0]
        return self._rule

    def from_all(self, found: Sequence[Found], known: Sequence[Top] = ()) -> list[Top]:
        """Climb from the highest peaks that lead to no known mode: the modes that they lead to."""
        tops = []
        for peak, reached in found[: 1 + _RIVALS]:
            # All shards know more than one: a mode of theirs is as narrow.
            if any(not apart(_of_one(top.peak, self.shards.n), peak) for top in known):
                continue
            top = self._from(peak, self.rule_at(found[0].peak))
            if top is not None:
                tops.append(top._replace(reached=reached))
        return tops

    def told(self, tops: Sequence[Top]) -> Expansions | None:
        """Give what shards said of the highest mode, or of where a climb ended if there is none."""
        return highest(tops).approximation.expansions if tops else self._last

    def _from(self, peak: Peak, rule: Rule) -> Top | None:
        for start, top in self._known:
            if not apart(start, peak):
                return top
        top, self._last = _climbed(self.fit_settings, self.shards, rule, peak, self._most)
        self._known.append((peak, top))
        if top is None:
            self.lost.append(peak)
        return top


def _climbed(
    fit_settings: FitSettings, shards: Shards, rule: Rule, peak: Peak, most: int
) -> tuple[Top | None, Expansions | None]:
    """Climb on all shards from a peak of one; and what shards said of the last place."""
    start = _nearer(fit_settings, shards, rule, peak, most)
    posterior = _Posterior(fit_settings, shards, rule)
    arrived = ascend(posterior.expand, *start, most)
    if arrived is None:
        return None, posterior.last
    top, shift = arrived
    assert posterior.last is not None
    approximation = LaplaceApproximation(
        mean=top.u + shift,
        covariance=top.covariance,
        shift=shift / np.sqrt(np.diag(top.covariance)),
        modes=1,
        rounds=posterior.rounds,
        expansions=posterior.last._replace(step=top.u - posterior.last.u),
    )
    return Top(top, approximation, 0), posterior.last


def _nearer(
    fit_settings: FitSettings, shards: Shards, rule: Rule, peak: Peak, most: int
) -> tuple[Array, Array]:
    """Climb from the peak of one shard on a few, then on more: a mode, and its covariance."""
    u, covariance = peak.u, peak.covariance / shards.n
    order = np.random.default_rng([fit_settings.seed, 5]).permutation(shards.n)
    few = [shards.n // _RUNG**k for k in range(1, 8)]
    for n in sorted(n for n in few if n >= _FEWEST):
        posterior = _Posterior(fit_settings, shards, rule, order[:n].tolist())
        arrived = ascend(posterior.expand, u, covariance, most)
        if arrived is None:
            break
        u, covariance = arrived[0].u, arrived[0].covariance
    return u, covariance


def _ridge_of(
    fit_settings: FitSettings, shards: Shards, rule: Rule, peak: Peak, scale: Array
) -> Ridge:
    """Follow the ridge that a peak may be a piece of."""
    data, model = shards.data[shards.median()], broadcast(fit_settings.model)
    asked = on_worker(shards.execution, bends, data, model, peak, shards.n, rule)
    directions = compute([asked])[0]
    expand = _Posterior(fit_settings, shards, rule).expand
    ridges = [follow(expand, peak, along, scale) for along in directions]
    places = [place for ridge in ridges for place in ridge.places]
    beyond = [place for ridge in ridges for place in ridge.beyond]
    if sum(bool(ridge.places) for ridge in ridges) > 1:
        # A sheet: lines on it are not all of it.
        return Ridge([], [*places, *beyond])
    return Ridge(places, beyond)


def _level_ridge(
    fit_settings: FitSettings, shards: Shards, rule: Rule, places: Sequence[Peak], scale: Array
) -> LaplaceApproximation | None:
    """Follow a ridge from the highest of the places that searches ended on, if it is one."""
    if not places:
        return None
    start = max(places, key=lambda place: place.height)
    posterior = _Posterior(fit_settings, shards, rule)
    ridge = follow(posterior.expand, start, widest(start), scale)
    if not ridge.places or ridge.beyond:
        return None
    first, *others = sorted(ridge.places, key=lambda place: -place.height)
    return LaplaceApproximation(
        mean=first.u,
        covariance=first.covariance,
        shift=np.zeros_like(first.u),
        modes=1,
        rounds=posterior.rounds,
        height=first.height,
        along=tuple(others),
    )


def draws_of(
    fit_settings: FitSettings, approximation: LaplaceApproximation, shape: tuple[int, int]
) -> Combined:
    """Take the posterior to be the Gaussian found, and draw ``shape`` chains and draws."""
    mean, covariance = approximation.mean, approximation.covariance
    rng = np.random.default_rng([fit_settings.seed, len(approximation.rounds)])
    draws = gaussian.gaussian_draws(mean, covariance, shape, rng)
    if shape[0] * shape[1] > len(mean):
        draws = gaussian.matched(draws, mean, covariance)
    peaks: tuple[Peak, ...] = ()
    if approximation.others or approximation.along:
        first = Peak(mean, covariance, approximation.height)
        peaks = (first, *approximation.others, *approximation.along)
    return Combined(draws, mean, covariance, approximation.rounds, "laplace", peaks)


# All shards


class _Posterior:
    """Expands the posterior by a pass over all shards, and keeps a record of every pass.

    Of some shards it expands what all would be, were they like these; of that there is no record.
    """

    def __init__(
        self,
        fit_settings: FitSettings,
        shards: Shards,
        rule: Rule,
        chosen: Sequence[int] | None = None,
    ) -> None:
        self.rounds: list[Round] = []
        self.last: Expansions | None = None
        self._settings = broadcast(fit_settings)
        self._shards, self._rule, self._chosen = shards, rule, chosen

    def expand(self, u: Array, axes: Array) -> Expansion:
        """Sum the expansions of all shards about `u`, by steps along the columns of `axes`."""
        began = time.perf_counter()
        shards, weights = self._shards, self._shards.weights
        if self._chosen is not None:
            shards, weights = shards.some(self._chosen), [weights[k] for k in self._chosen]
        mapped = map_reduce(
            each(_expand),
            shards,
            [(weight,) for weight in weights],
            [self._settings, broadcast((u, axes, self._rule))],
            add_expansions,
            title=f"Newton step {len(self.rounds) + 1}"
            + ("" if self._chosen is None else f", {shards.n} shards"),
        )
        total: Expansion = mapped.total
        if self._chosen is not None:
            share = sum(weights)
            return Expansion._make(part / share for part in total)
        apart = zip(*(expanded.expansion for expanded in mapped.reports), strict=True)
        self.last = Expansions(u, axes, np.zeros_like(u), *map(np.array, apart))
        covariance = axes @ axes.T / STEP**2
        step = np.full_like(u, np.nan)
        if all_finite(total):
            covariance, _ = inverse_curvature(total.precision, covariance)
            step = covariance @ total.gradient
        movement = float(np.max(np.abs(step) / np.sqrt(np.diag(covariance))))
        say(f"Newton step {len(self.rounds) + 1} moved {movement:.2g} sds, less than 0.3 arrives")
        reports = [
            _report(expanded, size, weight, u, covariance)
            for expanded, size, weight in zip(mapped.reports, shards.sizes, weights, strict=True)
        ]
        self.rounds.append(
            Round(
                reports=reports,
                mean=u + step,
                covariance=covariance,
                anchor=Anchor(u, np.zeros_like(covariance), 0.0),
                movement=movement,
                noise=np.nan,
                seconds=time.perf_counter() - began,
            )
        )
        return total


class _Expanded(NamedTuple):
    """What one shard tells the client of a pass."""

    expansion: Expansion
    seconds: float
    compile_seconds: float


def _expand(
    data: ShardData,
    weight: float,
    fit_settings: FitSettings,
    where: tuple[Array, Array, Rule],
) -> Answer:
    """Expand one shard's log density; runs on a worker."""
    began, compiled = time.perf_counter(), seconds_compiling()
    u, axes, rule = where
    expansion = engine_of(fit_settings.model).expansion(data, u, axes, weight, rule)
    compiling = seconds_compiling() - compiled
    seconds = time.perf_counter() - began - compiling
    return Answer(expansion, _Expanded(expansion, seconds, compiling))


def _report(expanded: _Expanded, size: Size, weight: float, u: Array, covariance: Array) -> Report:
    """Describe a shard by the Gaussian that its expansion is; nothing was sampled."""
    mean = np.full_like(u, np.nan)
    precision = np.full_like(covariance, np.nan)
    expansion = expanded.expansion
    if all_finite(expansion):
        seen = expansion.precision, covariance / weight, _FLATTEST
        mean = u + inverse_curvature(*seen)[0] @ expansion.gradient
        precision = positive_curvature(*seen)
    return Report(
        *size, weight, mean, precision, expanded.seconds, expanded.compile_seconds, nuts=None
    )


def add_expansions(parts: list[Expansion]) -> Expansion:
    """Add up the expansions of several shards."""
    values, gradients, precisions, thirds = zip(*parts, strict=True)
    return Expansion(
        float(sum(values)),
        np.sum(gradients, axis=0),
        np.sum(precisions, axis=0),
        np.sum(thirds, axis=0),
    )
