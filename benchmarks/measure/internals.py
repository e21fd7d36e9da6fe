"""All that the benchmarks take from inside of the package, in one place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import dask
import jax
import numpy as np
from dask.callbacks import Callback

from dask_consensus.cluster.mapreduce import Answer, each, map_reduce
from dask_consensus.cluster.placement import Execution
from dask_consensus.cluster.shards import Shards, persist
from dask_consensus.combination import gaussian
from dask_consensus.combination.gaussian import GaussianFactor
from dask_consensus.frame import assign
from dask_consensus.model.roles import ModelInputs, read_model
from dask_consensus.shard.constrain import constrain
from dask_consensus.shard.target import log_density, tempered
from dask_consensus.shard_data import ShardData, Size

# Shards, for the loop written by hand


def shards_of(lazy: Any) -> list[tuple[ShardData, Size, float]]:
    """Cut the shards of a fit that has not run: padded, their own sizes, powers of the prior."""
    plan = lazy.plan()
    unpadded = assign.shards(lazy.frame, plan.bindings.layout, plan.assignment)
    shards = persist(unpadded, Execution())
    return list(zip(dask.compute(*shards.data), shards.sizes, shards.weights, strict=True))


# Draws of shards, for NumPyro's consensus


class ShardDraws(Callback):
    """Keeps the contribution of every shard as the local scheduler sees it."""

    def __init__(self) -> None:
        self._factors: list[GaussianFactor] = []
        super().__init__(posttask=self._keep)

    def _keep(self, key: Any, result: Any, *_: Any) -> None:
        if isinstance(result, tuple) and result and isinstance(result[0], GaussianFactor):
            self._factors.append(result[0])

    def constrained(self, lazy: Any) -> list[dict[str, np.ndarray]]:
        """Draws of the shared sites of every shard, ``(draws, ...)``."""
        plan = lazy.plan()
        sites = [site.name for site in plan.model.shared]
        shards = []
        for factor in self._factors:
            u = gaussian.solve(factor.precision, factor.draws)
            values = constrain(plan.model, u, plan.example)
            shards.append({site: np.concatenate(values[site]) for site in sites})
        return shards


# The tree of sums


def make_factor(number: int, dim: int, draws: int) -> GaussianFactor:
    """Make a shard's contribution from its number, the same one in any process.

    Without linear algebra, whose time would hide that of the reduction.
    """
    rng = np.random.default_rng([20_260, number])
    vector = rng.normal(size=dim)
    precision = np.diag(rng.uniform(0.5, 2.0, dim)) + np.outer(vector, vector)
    return GaussianFactor(precision, rng.normal(size=dim), rng.normal(size=(1, draws, dim)))


def add(total: GaussianFactor, factor: GaussianFactor) -> GaussianFactor:
    """Add one contribution."""
    return gaussian.add([total, factor])


def _map_factor(number: int, dim: int, draws: int) -> Answer:
    return Answer(make_factor(number, dim, draws), number)


def tree_of_sums(
    sites: int, dim: int, draws: int, split_every: int, shards_per_task: int
) -> GaussianFactor:
    """Add all contributions by the package's tree, on whatever scheduler is there."""
    execution = Execution(split_every, progress=False, shards_per_task=shards_per_task)
    shards = Shards(range(sites), [], [], execution)  # numbers in place of data
    given, shared = [()] * sites, [dim, draws]
    return map_reduce(each(_map_factor), shards, given, shared, gaussian.add, title="sites").total


# The density a shard samples


def shard_gradient(
    model: Callable[..., None], arguments: Mapping[str, np.ndarray], by: str | None, n_groups: int
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """``(u, local, *data) -> value, gradients`` of the full density of one shard; its data."""
    values = {name: value for name, value in arguments.items() if name != by}
    groups = ({by: 0}, (by,), {f"n_{by}": 0}) if by else ({}, (), {})
    read = read_model(model, ModelInputs(values, *groups, {}, {}))
    n_rows = len(next(iter(arguments.values())))
    masks = (np.ones(n_groups, bool),) if by else ()
    data = ShardData(dict(arguments), np.ones(n_rows, bool), masks)
    return jax.value_and_grad(partial(log_density, read), (0, 1)), (data, tempered(1.0, read.dim))
