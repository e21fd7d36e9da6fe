"""The terms in which groups of real shards depend on each other, hidden on the small sample."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..cluster.mapreduce import on_worker
from ..cluster.shards import Shards
from ..cluster.tasks import broadcast, call, compute
from ..model.model import named
from ..shard.additivity import changed_terms
from ..shard.subsets import piece, shapes
from ..shard_data import Size
from .plan import Plan

_MOST_SHARDS = 64  # that give some of their groups to the mixture of all
_SDS = 3.0  # around the answer


def with_coupling(plan: Plan, shards: Shards, points: np.ndarray) -> Plan:
    """Add the terms in which groups of real shards do not add up, at points ``(G, d)`` of u.

    Looked at are some groups of all shards together, and half of the shard of median size with
    half of another: apart from the rest they must add to the density what they add with it. NUTS
    on all rows takes nothing apart, but where effects of groups are to be found.
    """
    if plan.method == "nuts" and plan.no_local_because:
        return plan
    mixtures = _mixtures(shards)
    size = shapes(shards.padded, max(map(len, mixtures)))
    execution, model, codes = shards.execution, broadcast(plan.model), plan.model.codes
    tasks = []
    for number, members in enumerate(mixtures):
        room = _share(size[0], len(members))
        pieces = [
            # Where the shard lies, whatever it lies on.
            call(piece, shards.data[k], codes, room, place)
            for place, k in enumerate(members)
        ]
        tasks.append(on_worker(execution, changed_terms, pieces, model, points, size, number))
    found = {name for changed in compute(tasks) for name in changed}
    coupled = tuple(sorted(found | set(plan.model.coupled)))
    if coupled == plan.model.coupled:
        return plan
    return replace(plan, model=named(replace(plan.model, coupled=coupled)))


def near_zero(plan: Plan) -> np.ndarray:
    """Points ``(2, d)`` to look at while nothing is known of the answer."""
    return np.random.default_rng(0).uniform(-1.0, 1.0, (2, plan.model.dim))


def around(mean: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """Points ``(2, d)``: the answer, and one some sds away."""
    away = np.random.default_rng(0).uniform(-_SDS, _SDS, len(mean))
    return np.stack([mean, mean + away * np.sqrt(np.diag(covariance))])


def _mixtures(shards: Shards) -> list[list[int]]:
    """Numbers of the shards that are looked at together."""
    spaced = np.linspace(0, shards.n - 1, min(shards.n, _MOST_SHARDS))
    mixtures = [sorted({int(k) for k in spaced.round()})]
    median = shards.median()
    for other in sorted({0, shards.n - 1} - {median}):
        if {median, other} != set(mixtures[0]):
            mixtures.append([median, other])
    return mixtures


def _share(size: Size, n: int) -> Size:
    return Size(max(1, size.rows // n), tuple(max(1, (count - 1) // n) for count in size.groups))
