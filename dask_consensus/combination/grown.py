"""What shards of new rows make of an earlier posterior, taken to be Gaussian.

The earlier posterior is the prior of what comes: its precision and shift are there already, the
prior of the model among them, and new shards add theirs, which are those of their likelihood alone.
Where effects can be integrated out these are expansions about a point, and Newton steps lead to
where they should be taken. Where not, every new shard is sampled under the whole earlier posterior,
which is taken out again of all but one of them.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..cluster.mapreduce import Answer, each, map_reduce, on_worker
from ..cluster.shards import Shards
from ..cluster.tasks import broadcast, compute
from ..model.model import ShardModel
from ..shard.compiling import seconds_compiling
from ..shard.coordinates import whitened
from ..shard.engine import engine_of
from ..shard.nuts import NutsSettings
from ..shard.quadrature import Rule
from ..shard.score import Expansion
from ..shard_data import ShardData, Size
from . import gaussian
from .ascent import Array, Peak, all_finite, ascend, inverse_curvature, positive_curvature
from .laplace import add_expansions
from .mode_search import enough_nodes
from .reports import Anchor, Combined, FitSettings, LaplaceApproximation, Report, Round
from .subposterior import RoundSettings, monte_carlo_error, sample_subposteriors

if TYPE_CHECKING:
    from dask.delayed import Delayed

_FLATTEST = 1e-3  # curvature of a shard, in its share of all
_LEAST = 0.5  # of the earlier precision, that noise may leave of it
_ROUND = 1_000  # names the randomness of an update, and what it adds to


class Added(NamedTuple):
    """Rows that are to be added.

    Attributes
    ----------
    shards : Shards
        Of the new rows, and of the old ones of their groups.
    removed : Shards or None
        Of these old rows alone, which are in the earlier posterior already.
    rows : int
        All rows there are then.
    """

    shards: Shards
    removed: Shards | None
    rows: int

    @property
    def shares(self) -> list[float]:
        """Share of all rows that each shard has."""
        return [size.rows / self.rows for size in self.shards.sizes]


class Grown(NamedTuple):
    """A posterior to which rows were added.

    Attributes
    ----------
    combined : Combined
        Its draws are the Gaussian's.
    approximation : LaplaceApproximation or None
        None where new shards were sampled.
    """

    combined: Combined
    approximation: LaplaceApproximation | None


def grown_by_expansion(
    settings: FitSettings,
    added: Added,
    mean: Array,
    covariance: Array,
    steps: int,
    shape: tuple[int, int],
) -> Grown | None:
    """Add expansions of the new shards' log likelihood to a Gaussian.

    Parameters
    ----------
    settings : FitSettings
        Its model's engine has no obstacle.
    added : Added
    mean : (d,) array
    covariance : (d, d) array
        Of the earlier posterior.
    steps : int
        Newton steps at most.
    shape : tuple of int
        Chains and draws.

    Returns
    -------
    Grown or None
        None if Newton's method did not arrive.
    """
    began = time.perf_counter()
    model, n = settings.model, added.shards.n
    data, there = added.shards.data[added.shards.median()], Peak(mean, covariance * n, 0.0)
    enough = on_worker(added.shards.execution, enough_nodes, data, broadcast(model), there, n)
    posterior = _Posterior(model, added, mean, covariance, compute([enough])[0])
    arrived = ascend(posterior.expand, mean, covariance, steps)
    if arrived is None or not posterior.asked:
        return None
    top, shift = arrived
    last = posterior.asked[-1]
    new_mean, sd = top.u + shift, np.sqrt(np.diag(top.covariance))
    this = Round(
        reports=[
            _report(one, size, share, last.u, top.covariance)
            for one, size, share in zip(last.parts, added.shards.sizes, added.shares, strict=True)
        ],
        mean=new_mean,
        covariance=top.covariance,
        anchor=Anchor(last.u, np.zeros_like(covariance), 0.0),
        movement=float(np.max(np.abs(new_mean - mean) / sd)),
        noise=np.nan,
        seconds=time.perf_counter() - began,
    )
    rng = np.random.default_rng([settings.seed, _ROUND])
    draws = gaussian.gaussian_draws(new_mean, top.covariance, shape, rng)
    if shape[0] * shape[1] > len(mean):
        draws = gaussian.matched(draws, new_mean, top.covariance)
    approximation = LaplaceApproximation(
        mean=new_mean, covariance=top.covariance, shift=shift / sd, modes=1, rounds=[this]
    )
    combined = Combined(draws, new_mean, top.covariance, [this], "laplace")
    return Grown(combined, approximation)


class _Part(NamedTuple):
    """What one shard tells the client."""

    expansion: Expansion
    seconds: float
    compile_seconds: float


class _Asked(NamedTuple):
    """A pass over the shards."""

    u: Array
    parts: list[_Part]  # of the shards that are added


class _Posterior:
    """Expands a Gaussian times the likelihood of new rows, and keeps what shards said."""

    def __init__(
        self, model: ShardModel, added: Added, mean: Array, covariance: Array, rule: Rule
    ) -> None:
        self.asked: list[_Asked] = []
        self._model, self._added, self._rule = broadcast(model), added, rule
        self._mean, self._precision = mean, gaussian.inverse(covariance)

    def expand(self, u: Array, axes: Array) -> Expansion:
        """Expand it about `u`, by steps along the columns of `axes`."""
        where = broadcast((u, axes, self._rule))
        total, parts = self._likelihood(self._added.shards, where)
        if self._added.removed is not None:
            old, _ = self._likelihood(self._added.removed, where)
            total = _less(total, old)
        self.asked.append(_Asked(u, parts))
        away = u - self._mean
        pull = self._precision @ away
        return Expansion(
            float(total.value - away @ pull / 2),
            total.gradient - pull,
            total.precision + self._precision,
            total.third_derivative,
        )

    def _likelihood(self, shards: Shards, where: Delayed) -> tuple[Expansion, list[_Part]]:
        mapped = map_reduce(
            each(_expand),
            shards,
            [()] * shards.n,
            [self._model, where],
            add_expansions,
            title="Newton step, new rows",
        )
        return mapped.total, mapped.reports


def _expand(data: ShardData, model: ShardModel, where: tuple[Array, Array, Rule]) -> Answer:
    """Expand one shard's log likelihood; runs on a worker."""
    began, compiled = time.perf_counter(), seconds_compiling()
    u, axes, rule = where
    # To the power 0 there is no prior: that is in the posterior to which this is added.
    expansion = engine_of(model).expansion(data, u, axes, 0.0, rule)
    compiling = seconds_compiling() - compiled
    return Answer(expansion, _Part(expansion, time.perf_counter() - began - compiling, compiling))


def _less(whole: Expansion, part: Expansion) -> Expansion:
    return Expansion(
        whole.value - part.value,
        whole.gradient - part.gradient,
        whole.precision - part.precision,
        whole.third_derivative - part.third_derivative,
    )


def _report(one: _Part, size: Size, share: float, u: Array, covariance: Array) -> Report:
    """Describe a shard by the Gaussian that its expansion is."""
    mean, precision = np.full_like(u, np.nan), np.full_like(covariance, np.nan)
    if all_finite(one.expansion):
        seen = one.expansion.precision, covariance / share, _FLATTEST
        mean = u + inverse_curvature(*seen)[0] @ one.expansion.gradient
        precision = positive_curvature(*seen)
    return Report(*size, share, mean, precision, one.seconds, one.compile_seconds)


def grown_by_sampling(
    settings: FitSettings,
    nuts: NutsSettings,
    added: Added,
    mean: Array,
    covariance: Array,
    number: int,
) -> Grown:
    """Sample every new shard under the earlier posterior, and take that out of all but one.

    Parameters
    ----------
    settings : FitSettings
    nuts : NutsSettings
    added : Added
        Nothing is removed.
    mean : (d,) array
    covariance : (d, d) array
        Of the earlier posterior.
    number : int
        Of the update, which names its randomness.
    """
    began = time.perf_counter()
    precision = gaussian.inverse(covariance)
    anchor, n = Anchor(mean, precision, 1.0), added.shards.n
    sampled = RoundSettings(
        number=_ROUND + number,
        fit=settings._replace(diagonal=False),
        nuts=nuts,
        anchor=anchor,
        coordinates=whitened(mean, precision),
        warm=True,
    )
    mapped = map_reduce(
        sample_subposteriors,
        added.shards,
        [(k, 0.0, None) for k in range(n)],
        [broadcast(sampled)],
        gaussian.add,
        title="new rows",
    )
    total: gaussian.GaussianFactor = mapped.total
    rest, shift = gaussian.subtract_anchors(total, n - 1, precision, mean)
    rest = gaussian.floored(rest, precision, _LEAST)
    new_mean, new_covariance = gaussian.solve(rest, shift), gaussian.inverse(rest)
    draws = gaussian.matched(gaussian.consensus_draws(total), new_mean, new_covariance)
    reports: list[Report] = [
        report._replace(weight=share)
        for report, share in zip(mapped.reports, added.shares, strict=True)
    ]
    this = Round(
        reports=reports,
        mean=new_mean,
        covariance=new_covariance,
        anchor=anchor,
        movement=np.nan,
        noise=monte_carlo_error(reports, float(n - 1)),
        seconds=time.perf_counter() - began,
    )
    return Grown(Combined(draws, new_mean, new_covariance, [this], "anchored"), None)
