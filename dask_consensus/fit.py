"""The story of a fit: plan, shard, sample and combine, result."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import dask.dataframe as dd
import xarray as xr

from .cluster import assign as sharding
from .cluster import mapreduce
from .config import Options, default
from .plan import Plan, make_plan, warn_before_sampling
from .results import posterior_dataset, shards_dataset, to_datatree
from .rounds import Combined, Job, one_shot, size_of
from .shard.model import constrain
from .shard.sample import Settings


@dataclass(frozen=True)
class LazyFit:
    """A fit that has run nothing yet; what ``fit(..., compute=False)`` returns.

    Attributes
    ----------
    frame : dask.dataframe.DataFrame
    model : callable
    by, columns, options, progress
        As given to `fit`.
    """

    frame: dd.DataFrame
    model: Callable[..., Any]
    by: Hashable | Sequence[Hashable] | None
    columns: Mapping[str, Hashable] | None
    options: Options
    progress: bool | None = None

    def plan(self) -> Plan:
        """Read the model and count the rows; sample nothing."""
        return make_plan(
            self.frame, self.model, by=self.by, columns=self.columns, options=self.options
        )

    def compute(self) -> xr.DataTree:
        """Run the fit."""
        began = time.perf_counter()
        plan = self.plan()
        warn_before_sampling(plan)
        shards = mapreduce.persist(sharding.shards(self.frame, plan.bindings.layout, plan.assignment))
        combined = combine(plan, shards, self.progress)
        return result(plan, combined, time.perf_counter() - began)


def combine(plan: Plan, shards: Sequence[Any], progress: bool | None) -> Combined:
    """Sample every shard and combine their draws, in unconstrained space."""
    options = plan.options
    job = Job(
        model=plan.model,
        settings=Settings(options.num_warmup, options.num_samples, options.target_accept_prob),
        num_chains=options.num_chains,
        diagonal=options.weights == "diagonal",
        seed=options.seed,
    )
    return one_shot(
        job,
        shards,
        mapreduce.gather(size_of, shards),
        parametric=options.method == "parametric",
        split_every=options.split_every,
        retries=default("retries"),
        progress=progress,
    )


def result(plan: Plan, combined: Combined, seconds: float) -> xr.DataTree:
    """Constrain the combined draws and label everything."""
    example = plan.example
    values = constrain(plan.model, combined.draws, example.arguments, example.rows, example.groups)
    labels = {c.argument: c.categories for c in plan.bindings.layout.columns if c.categories}
    return to_datatree(
        {
            "posterior": posterior_dataset(plan.model, values, labels),
            "shards": shards_dataset(plan.model, combined.rounds),
        },
        {
            **asdict(plan.options),
            "n_shards": plan.n_shards,
            "by": [str(key) for key in plan.bindings.layout.by],
            "sampling_time": seconds,
        },
    )
