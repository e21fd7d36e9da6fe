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
from .mode_search import DISPLACED, Found, distinct, enough_nodes, find_peaks, spread, united
from .reports import Anchor, Combined, Expansions, FitSettings, LaplaceApproximation, Report, Round
from .ridges import Ridge, bends, close_to, follow, widest

_ATTEMPTS = 3  # at a mode that more than one search reaches
_AS_HIGH = 1.0  # log density by which images of a mode differ at most
_RIDGES = 4  # points on ridges that are looked at on all shards
_FOLLOWED = 4  # modes whose ridges are followed
_FLATTEST = 1e-3  # curvature of a shard, in its share of all
_RUNG = 8  # times as many shards as on the rung of a climb below
_FEWEST = 4  # shards of a rung
_DISPLACED = 0.5  # sds, where a correction begins at the mode: nodes cost every row
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
    n, model, scale = shards.n, fit_settings.model, spread(starts[1])
    searched = 0
    found: list[Found] = []
    ridges: list[Peak] = []
    # A mode that one search alone has reached may have higher neighbours that none has.
    for attempt in range(_ATTEMPTS):
        seed = fit_settings.seed + attempt
        searched += options.searches
        more, unsettled = find_peaks(model, shards, starts, options.searches, seed)
        found, ridges = united([*found, *more]), ridges + unsettled
        if not found or _reached(found) > 1:
            break
    if not found and not ridges:
        return None, []
    first = found[0].peak if found else ridges[0]
    data = shards.data[shards.median()]
    displaced = _DISPLACED if corrected else DISPLACED
    enough = on_worker(shards.execution, enough_nodes, data, broadcast(model), first, n, displaced)
    rule = compute([enough])[0]
    tops, lost = _climbed(fit_settings, shards, rule, found[: 1 + _RIVALS], options.steps)
    ridges += [*lost, *(other.peak for other in found[1 + _RIVALS :])]
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
    summits = distinct([top for top, _ in tops])
    along: list[Peak] = []
    for summit in summits[:_FOLLOWED]:
        if not any(close_to(summit, place) for place in along):
            ridge = _ridge_of(fit_settings, shards, rule, summit, scale)
            along += ridge.places
            landmarks += ridge.beyond
    highest = max(tops, key=lambda pair: pair[0].height)[1]
    # Peaks that were not looked at on all shards may be modes as well.
    modes = len(summits) + max(len(found) - 1 - _RIVALS, 0)
    approximation = highest._replace(
        modes=modes,
        reached=_reached(found),
        searched=searched,
        height=summits[0].height,
        others=tuple(summits[1:]),
        along=tuple(along),
    )
    return approximation, landmarks


def _climbed(
    fit_settings: FitSettings, shards: Shards, rule: Rule, found: Sequence[Found], most: int
) -> tuple[list[tuple[Peak, LaplaceApproximation]], list[Peak]]:
    """Climb on all shards from the peaks of one: the modes, and the peaks that led to none."""
    tops, lost = [], []
    for peak, _ in found:
        start = _nearer(fit_settings, shards, rule, peak, most)
        posterior = _Posterior(fit_settings, shards, rule)
        arrived = ascend(posterior.expand, *start, most)
        if arrived is None:
            lost.append(peak)
            continue
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
        tops.append((top, approximation))
    return tops, lost


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


def _reached(found: list[Found]) -> int:
    """Count the searches that reached the highest mode, or an image that is as high."""
    highest = found[0].peak.height
    return sum(one.reached for one in found if one.peak.height > highest - _AS_HIGH)


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
