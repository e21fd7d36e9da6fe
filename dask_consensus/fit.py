"""The story of a fit: plan, shard, sample and combine, correct, judge, result."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import dask.dataframe as dd
import numpy as np
import xarray as xr

from .cluster import assign as sharding
from .cluster import mapreduce
from .cluster.sizes import Size, padded_sizes, size_of
from .config import Options, default
from .correct import Correction, Shards, correct, equal_weight_draws, usable
from .gaussian import inverse
from .pilot import Pilot, fly
from .plan import Plan, make_plan, warn_before_sampling
from .results import (
    correction_dataset,
    posterior_dataset,
    rounds_dataset,
    shards_dataset,
    to_datatree,
)
from .rounds import Combined, Job, Travel, anchored, one_shot
from .shard.marginal import obstacle
from .shard.model import constrain
from .shard.sample import Settings
from .shard.target import Data
from .verdict import Verdict, judge, warn_if_bad


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
        shards = persist(self.frame, plan)
        pilot = fly_pilot(plan, shards, self.progress)
        combined = combine(plan, shards, pilot, self.progress)
        corrected = correction(plan, shards, combined, self.progress)
        if pilot is not None and corrected is not None and not usable(corrected):
            # Few short rounds are mostly enough for a proposal; here they were not.
            combined = combine(plan, shards, pilot, self.progress, before=combined)
            corrected = correction(plan, shards, combined, self.progress)
        verdict = verdict_on(plan, combined, pilot, corrected)
        warn_if_bad(verdict)
        return result(plan, combined, corrected, verdict, time.perf_counter() - began)


class Sharded(NamedTuple):
    """The shards, where they lie, and their sizes."""

    parts: list[Any]
    sizes: list[Size]
    padded: list[Size]


def persist(frame: dd.DataFrame, plan: Plan) -> Sharded:
    """Send every row to its shard, and keep the shards: they are read many times."""
    parts = mapreduce.persist(sharding.shards(frame, plan.bindings.layout, plan.assignment))
    sizes = mapreduce.compute([mapreduce.call(size_of, part) for part in parts])
    return Sharded(parts, sizes, padded_sizes(sizes))


def fly_pilot(plan: Plan, shards: Sharded, progress: bool | None) -> Pilot | None:
    """Find roughly where the posterior is, for anchored rounds to begin from."""
    options = plan.options
    if plan.n_shards == 1 or options.method != "anchored":
        return None
    return fly(
        plan.model,
        shards.parts,
        shards.sizes,
        shards.padded,
        Settings(default("pilot-warmup"), default("pilot-samples"), options.target_accept_prob),
        seed=options.seed,
        n_chains=default("pilot-chains"),
        progress=progress,
    )


def combine(
    plan: Plan,
    shards: Sharded,
    pilot: Pilot | None,
    progress: bool | None,
    before: Combined | None = None,
) -> Combined:
    """Sample every shard and combine the draws, in unconstrained space.

    Rounds that a correction follows are few and short; `before` is their combination, where it
    was not good enough and longer rounds go on from it.
    """
    options, parts, sizes = plan.options, shards.parts, shards.sizes
    job = Job(
        model=plan.model,
        num_chains=options.num_chains,
        diagonal=options.weights == "diagonal",
        seed=options.seed,
    )
    travel = _travel(plan, progress)
    settings = Settings(options.num_warmup, options.num_samples, options.target_accept_prob)
    if pilot is None:
        parametric = options.method == "parametric"
        return one_shot(job, parts, sizes, settings, travel, parametric=parametric)

    short = before is None and not why_uncorrected(plan)
    few = max(default("round-samples"), 4 * plan.model.dim)
    settings = settings._replace(
        num_warmup=default("round-warmup"),
        num_samples=min(options.num_samples, few) if short else options.num_samples,
        adapt_mass=False,
    )
    if before is None:
        guess = pilot.mean, pilot.precision
    else:
        guess = before.mean, inverse(before.covariance) / plan.n_shards
    return anchored(
        job,
        parts,
        sizes,
        settings,
        travel,
        *guess,
        most=options.rounds or default("rounds-corrected" if short else "rounds"),
        before=() if before is None else before.rounds,
    )


def why_uncorrected(plan: Plan) -> str:
    """Say why no correction follows; empty if one does."""
    if plan.n_shards == 1:
        return "one shard needs none"
    if plan.options.correct is False:
        return "correct=False"
    return obstacle(plan.model)


def correction(
    plan: Plan, shards: Sharded, combined: Combined, progress: bool | None
) -> Correction | None:
    """Weight the combination by the full posterior, wherever the model allows it."""
    because = why_uncorrected(plan)
    if because:
        if plan.options.correct is True and plan.n_shards > 1:
            raise ValueError(f"correct=True, but {because}; use correct='auto' to go on without")
        return None
    return correct(
        Shards(plan.model, shards.parts, shards.padded, _travel(plan, progress)),
        _example(plan),
        combined.mean,
        combined.covariance,
        seed=plan.options.seed,
        first=default("correction-first"),
        later=default("correction-later"),
        turns=default("correction-turns"),
        enough=max(default("correction-ess"), 20.0 * plan.model.dim),
        k_hat=default("correction-k-hat"),
        sd_error=default("correction-sd-error"),
    )


def verdict_on(
    plan: Plan, combined: Combined, pilot: Pilot | None, corrected: Correction | None
) -> Verdict:
    """Judge what the diagnostics of all stages say together."""
    return judge(
        plan.model.coordinate_names(),
        combined,
        corrected,
        pilot,
        n_draws=combined.draws.shape[0] * combined.draws.shape[1],
        uncorrected_because=why_uncorrected(plan),
        coupled=plan.model.coupled,
    )


def result(
    plan: Plan,
    combined: Combined,
    corrected: Correction | None,
    verdict: Verdict,
    seconds: float,
) -> xr.DataTree:
    """Constrain the draws and label everything."""
    options, model = plan.options, plan.model
    groups = {
        "posterior": _posterior(plan, combined.draws),
        "shards": shards_dataset(model, combined.rounds),
        "rounds": rounds_dataset(model, combined.rounds),
    }
    if corrected is not None:
        groups["correction"] = correction_dataset(model, corrected)
    if corrected is not None and usable(corrected):
        rng = np.random.default_rng([options.seed, 1])
        shape = (options.num_chains, options.num_samples)
        groups["uncorrected"] = groups["posterior"]
        groups["posterior"] = _posterior(plan, equal_weight_draws(corrected, shape, rng))
    # JSON has no infinity: an error of unknown size is null.
    sizes = [float(size) if np.isfinite(size) else None for size in verdict.error]
    accuracy = dict(zip(model.coordinate_names(), sizes, strict=True))
    return to_datatree(
        groups,
        {
            **asdict(options),
            "n_shards": plan.n_shards,
            "by": [str(key) for key in plan.bindings.layout.by],
            "sampling_time": seconds,
            "verdict": verdict.text,
            "verdict_good": int(verdict.good),
            "accuracy": accuracy,
        },
    )


def _posterior(plan: Plan, draws: np.ndarray) -> xr.Dataset:
    example = plan.example
    values = constrain(plan.model, draws, example.arguments, example.rows, example.groups)
    labels = {c.argument: c.categories for c in plan.bindings.layout.columns if c.categories}
    return posterior_dataset(plan.model, values, labels)


def _example(plan: Plan) -> Data:
    """Small data of real rows, all of it real."""
    example = plan.example
    groups = tuple(np.ones(count, bool) for count in example.groups)
    return Data(example.arguments, np.ones(example.rows, bool), groups)


def _travel(plan: Plan, progress: bool | None) -> Travel:
    return Travel(plan.options.split_every, default("retries"), progress)
