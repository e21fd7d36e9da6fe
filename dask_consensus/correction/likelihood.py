"""What the shards say of points: log likelihoods added up over all of them."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import numpy as np

from ..cluster import mapreduce
from ..cluster.placement import Execution
from ..cluster.shards import Shards
from ..model.model import ShardModel
from ..shard.compiling import seconds_compiling
from ..shard.effects import effects_per_unit
from ..shard.marginal import log_likelihoods
from ..shard.quadrature import ladder
from ..shard_data import Data, Shard, Size, pad
from .proposals import Array
from .weights import Weighed

_PROBE = 32  # points on which node counts are compared
_INTEGRATION = 0.02  # sd, over points, of the log weight's integration error that is accepted


class LogPosterior(NamedTuple):
    """Whose likelihood is asked for, and how to reach it."""

    model: ShardModel
    shards: Shards
    execution: Execution


def _working(model: ShardModel, points: Array) -> Array:
    """Round points to the precision in which shards evaluate them, so that all mean the same."""
    return points if model.x64 else points.astype(np.float32).astype(np.float64)


# Asking the shards
class _Answer(NamedTuple):
    """Sums over shards, and the worst of what they reported."""

    log_likelihood: Array
    at_center: float
    modes_not_found: Array
    coupling: float
    compile_seconds: float


def _likelihoods(
    asked: LogPosterior, points: Array, center: Array, nodes: int, title: str
) -> _Answer:
    """Sum the log likelihoods of all shards at points, as differences to the center."""
    question = mapreduce.broadcast((asked.model, points, center, nodes))
    mapped = mapreduce.map_reduce(
        mapreduce.each(_evaluate),
        asked.shards.parts,
        [(padded,) for padded in asked.shards.padded],
        [question],
        _add,
        execution=asked.execution,
        title=title,
    )
    values, at_center, modes_not_found, units = mapped.total
    coupling, compiling = (max(part) for part in zip(*mapped.reports, strict=True))
    return _Answer(values, at_center, modes_not_found / max(units, 1), coupling, compiling)


def _evaluate(
    shard: Shard, padded: Size, question: tuple[ShardModel, Array, Array, int]
) -> tuple[tuple[Array, float, Array, int], tuple[float, float], None]:
    """One shard's log likelihoods; runs on a worker."""
    model, points, center, nodes = question
    before = seconds_compiling()
    found = log_likelihoods(model, Data(*pad(shard, *padded)), points, center, max(nodes, 1))
    values = (found.log_likelihood, found.at_center, found.modes_not_found, found.units)
    return values, (found.coupling, seconds_compiling() - before), None


def _add(parts: list[Any]) -> tuple[Array, float, Array, int]:
    values, at_center, modes_not_found, units = zip(*parts, strict=True)
    return (
        np.sum(values, axis=0),
        float(sum(at_center)),
        np.sum(modes_not_found, axis=0),
        sum(units),
    )


def _enough_nodes(asked: LogPosterior, points: Array, center: Array) -> tuple[int, float]:
    """Take as few nodes as agree with the next number of them on a few points.

    Returns
    -------
    nodes : int
    compile_seconds : float
        This is where the code of all later turns is compiled.
    """
    q = effects_per_unit(asked.model)
    if not q:
        return 0, 0.0
    steps = ladder(q)
    fewest = _likelihoods(asked, points, center, steps[0], "nodes")
    values = fewest.log_likelihood
    for fewer, more in itertools.pairwise(steps):
        better = _likelihoods(asked, points, center, more, "nodes").log_likelihood
        if np.std(better - values) < _INTEGRATION:
            return fewer, fewest.compile_seconds
        values = better
    return steps[-1], fewest.compile_seconds


def _integration_error(
    asked: LogPosterior,
    points: Array,
    values: Array,
    center: Array,
    nodes: int,
    weighed: Weighed,
    sd: Array,
) -> Array:
    """First-order change of the mean, in sds, if points had the next number of nodes."""
    q = effects_per_unit(asked.model)
    if not q:
        return np.zeros_like(sd)
    steps = ladder(q)
    position = min(steps.index(nodes), len(steps) - 2)
    other = steps[position + 1] if steps[position] == nodes else steps[position]
    weights = weighed.weights[-len(points) :]
    chosen = np.argsort(-weights, kind="stable")[:_PROBE]
    compared = _likelihoods(asked, points[chosen], center, other, "nodes").log_likelihood
    change = compared - values[chosen]
    share = weights[chosen] / weights[chosen].sum()
    away = (points[chosen] - share @ points[chosen]) / sd
    return np.abs((share * (change - share @ change)) @ away)
