"""The story of a fit: plan, shard, sample and combine, correct, judge, result."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dask.dataframe as dd
import xarray as xr

from .cluster import mapreduce
from .cluster.placement import Execution, check_resources, workers_with
from .cluster.shards import Shards, persist
from .combination.laplace import LaplaceApproximation
from .combination.methods import Guess, combine, locate
from .combination.reports import Combined
from .config import Options, default
from .correction.importance import Correction, correct, usable
from .correction.likelihood import LogPosterior
from .frame import assign as sharding
from .plan.plan import Plan, _example, make_plan
from .plan.show import warn_before_sampling
from .result.clock import Clock
from .result.datatree import result
from .result.verdict import Verdict, judge, warn_if_bad
from .shard import device


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
        clock = Clock()
        check_resources(self.options.resources)
        with clock("plan"):
            plan = self.plan()
        warn_before_sampling(plan)
        with clock("shard"):
            shards = persist(sharding.shards(self.frame, plan.bindings.layout, plan.assignment))
            execution = way(plan, shards, self.progress)
        with clock("search"):
            guess = locate(plan, shards, execution)
        with clock("rounds"):
            combined = combine(plan, shards, guess, execution)
        with clock("correction"):
            corrected = correction(plan, shards, combined, execution)
        if guess is not None and corrected is not None and not usable(corrected):
            # What is quick was not good enough for a proposal: sample, and for longer.
            with clock("rounds"):
                combined = combine(plan, shards, guess, execution, before=combined)
            with clock("correction"):
                corrected = correction(plan, shards, combined, execution)
        verdict = verdict_on(plan, combined, guess, corrected)
        warn_if_bad(verdict)
        return result(plan, combined, corrected, verdict, clock)


def way(plan: Plan, shards: Shards, progress: bool | None) -> Execution:
    """Say where and how tasks on shards run."""
    options = plan.options
    execution = Execution(options.split_every, default("retries"), progress, options.resources)
    if options.shards_per_task != "auto":
        together = int(options.shards_per_task)
    else:
        asked = mapreduce.placed(execution, device.memory)
        available = mapreduce.compute([asked])[0]
        columns = len(plan.bindings.layout.columns)
        largest = max(shards.padded)
        together = device.shards_that_fit(plan.model, *largest, columns, available)
        # Every worker that may take part should have work.
        workers = workers_with(options.resources)
        together = min(together, -(-plan.n_shards // workers))
    return execution._replace(shards_per_task=together)


def correction(
    plan: Plan, shards: Shards, combined: Combined, execution: Execution
) -> Correction | None:
    """Weight the combination by the full posterior, wherever the model allows it."""
    because = plan.uncorrected_because
    if because:
        if plan.options.correct is True and plan.n_shards > 1:
            raise ValueError(f"correct=True, but {because}; use correct='auto' to go on without")
        return None
    return correct(
        LogPosterior(plan.model, shards, execution),
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
        tolerance=default("correction-emulator"),
    )


def verdict_on(
    plan: Plan, combined: Combined, guess: Guess | None, corrected: Correction | None
) -> Verdict:
    """Judge what the diagnostics of all stages say together."""
    return judge(
        plan.model.coordinate_names(),
        combined,
        corrected,
        modes=1 if guess is None else guess.modes,
        approximation=guess if isinstance(guess, LaplaceApproximation) else None,
        n_draws=combined.draws.shape[0] * combined.draws.shape[1],
        uncorrected_because=plan.uncorrected_because,
        coupled=plan.model.coupled,
    )
