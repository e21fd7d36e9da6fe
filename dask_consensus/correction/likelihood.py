"""What the shards say of points: the log posterior, added up over all of them."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import numpy as np

from ..cluster.mapreduce import Answer, each, map_reduce
from ..cluster.shards import Shards
from ..cluster.tasks import broadcast
from ..model.model import ShardModel
from ..shard.compiling import seconds_compiling
from ..shard.engine import engine_of
from ..shard.target import log_prior
from ..shard_data import ShardData
from .proposals import Array

_PROBE = 32  # points on which node counts are compared
_INTEGRATION = 0.02  # sd, over points, of the log weight's integration error that is accepted


class Evaluated(NamedTuple):
    """The log posterior at points, up to one constant.

    Attributes
    ----------
    points : (G, d) array
    log_density : (G,) array
        Prior and likelihood; minus infinity where it is not finite.
    log_likelihood : (G,) array
        Less that at the center.
    at_center : float
        The log likelihood at the center.
    modes_not_found : (G,) array
        Share of the groups whose mode was not found.
    coupling : float
        Largest deviation of a shard's Hessian from block-diagonal.
    compile_seconds : float
        What the slowest shard spent compiling.
    """

    points: Array
    log_density: Array
    log_likelihood: Array
    at_center: float
    modes_not_found: Array
    coupling: float
    compile_seconds: float


class LogPosterior(NamedTuple):
    """The log posterior of all shards, as a function of points.

    Attributes
    ----------
    model : ShardModel
    shards : Shards
    example : ShardData
        Any data the model accepts, for its prior.
    center : (d,) array
        Where likelihoods are taken as differences to.
    n_nodes : int
        Nodes an axis (of a grid) or in all; 0 without local effects.
    """

    model: ShardModel
    shards: Shards
    example: ShardData
    center: Array
    n_nodes: int = 0

    def __call__(self, points: Array, title: str) -> Evaluated:
        """Evaluate it at ``(G, d)`` points, by one pass over the shards."""
        points = self.rounded(points)
        mapped = map_reduce(
            each(_evaluate),
            self.shards,
            [()] * self.shards.n,
            [broadcast((self.model, points, self.rounded(self.center), self.n_nodes))],
            _add,
            title=title,
        )
        log_likelihood, at_center, not_found, units = mapped.total
        # NaN passes through NumPy's maximum, not through Python's.
        coupling, compiling = np.max(mapped.reports, axis=0).tolist()
        log_density = log_prior(self.model, self.example, points) + log_likelihood
        return Evaluated(
            points=points,
            log_density=np.where(np.isfinite(log_density), log_density, -np.inf),
            log_likelihood=log_likelihood,
            at_center=at_center,
            modes_not_found=not_found / max(units, 1),
            coupling=coupling,
            compile_seconds=compiling,
        )

    def rounded(self, points: Array) -> Array:
        """Round points to the precision in which shards evaluate them: all then mean the same."""
        return points if self.model.x64 else points.astype(np.float32).astype(np.float64)

    def with_enough_nodes(self, points: Array) -> tuple[LogPosterior, float]:
        """Take as few nodes as agree with the next number of them on a few points.

        Returns
        -------
        log_posterior : LogPosterior
        compile_seconds : float
            This is where the code of all later passes is compiled.
        """
        ladder = engine_of(self.model).value_nodes
        fewest = self._replace(n_nodes=ladder[0])
        if len(ladder) == 1:
            return fewest, 0.0
        few = points[:_PROBE]
        first = fewest(few, "nodes")
        values = first.log_likelihood
        for fewer, more in itertools.pairwise(ladder):
            better = self._replace(n_nodes=more)(few, "nodes").log_likelihood
            if np.std(better - values) < _INTEGRATION:
                return self._replace(n_nodes=fewer), first.compile_seconds
            values = better
        return self._replace(n_nodes=ladder[-1]), first.compile_seconds

    def integration_error(self, evaluated: Evaluated, weights: Array, sd: Array) -> Array:
        """First-order change of the mean, in sds, if points had the next number of nodes.

        Parameters
        ----------
        evaluated : Evaluated
        weights : (G,) array
            Of its points.
        sd : (d,) array
            Of the posterior.
        """
        ladder = engine_of(self.model).value_nodes
        if len(ladder) == 1:
            return np.zeros_like(sd)
        position = min(ladder.index(self.n_nodes), len(ladder) - 2)
        other = ladder[position + 1] if ladder[position] == self.n_nodes else ladder[position]
        chosen = np.argsort(-weights, kind="stable")[:_PROBE]
        points = evaluated.points[chosen]
        compared = self._replace(n_nodes=other)(points, "nodes").log_likelihood
        change = compared - evaluated.log_likelihood[chosen]
        share = weights[chosen] / weights[chosen].sum()
        away = (points - share @ points) / sd
        return np.abs((share * (change - share @ change)) @ away)


def _evaluate(data: ShardData, question: tuple[ShardModel, Array, Array, int]) -> Answer:
    """One shard's log likelihoods; runs on a worker."""
    model, points, center, n_nodes = question
    before = seconds_compiling()
    values = engine_of(model).values(data, points, center, n_nodes)
    return Answer(
        (values.log_likelihood, values.at_center, values.modes_not_found, values.units),
        (values.coupling, seconds_compiling() - before),
    )


def _add(parts: list[Any]) -> tuple[Array, float, Array, int]:
    values, at_center, not_found, units = zip(*parts, strict=True)
    return np.sum(values, axis=0), float(sum(at_center)), np.sum(not_found, axis=0), sum(units)
