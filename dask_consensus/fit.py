"""The story of a fit: plan, shard, sample and combine, correct, judge, result."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import dask.dataframe as dd
import numpy as np
import xarray as xr

from .climb import Summit, climb, expanded
from .cluster import assign as sharding
from .cluster import mapreduce
from .cluster.mapreduce import Travel
from .cluster.sizes import Sharded, padded_sizes, size_of
from .config import Options, default
from .correct import Asked, Correction, correct, equal_weight_draws, usable
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
from .rounds import Combined, anchored, one_shot
from .shard import device
from .shard.constrain import constrain
from .shard.sample import Settings, prior_points
from .shard.target import Data
from .shard.units import obstacle
from .sites import Job
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
        clock = Clock()
        mapreduce.check_resources(self.options.resources)
        with clock("plan"):
            plan = self.plan()
        warn_before_sampling(plan)
        with clock("shard"):
            shards = persist(self.frame, plan)
            travel = way(plan, shards, self.progress)
        with clock("search"):
            guess = locate(plan, shards, travel)
        with clock("rounds"):
            combined = combine(plan, shards, guess, travel)
        with clock("correction"):
            corrected = correction(plan, shards, combined, travel)
        if guess is not None and corrected is not None and not usable(corrected):
            # What is quick was not good enough for a proposal: sample, and for longer.
            with clock("rounds"):
                combined = combine(plan, shards, guess, travel, before=combined)
            with clock("correction"):
                corrected = correction(plan, shards, combined, travel)
        verdict = verdict_on(plan, combined, guess, corrected)
        warn_if_bad(verdict)
        return result(plan, combined, corrected, verdict, clock)


class Clock:
    """Wall time of each phase of a fit, in seconds."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._began = time.perf_counter()

    @contextlib.contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Time a phase; one that comes again is added."""
        began = time.perf_counter()
        yield
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - began

    def total(self) -> float:
        """Seconds since the clock was made."""
        return time.perf_counter() - self._began


def persist(frame: dd.DataFrame, plan: Plan) -> Sharded:
    """Send every row to its shard, and keep the shards: they are read many times."""
    parts = mapreduce.persist(sharding.shards(frame, plan.bindings.layout, plan.assignment))
    sizes = mapreduce.compute([mapreduce.call(size_of, part) for part in parts])
    return Sharded(parts, sizes, padded_sizes(sizes))


def way(plan: Plan, shards: Sharded, progress: bool | None) -> Travel:
    """Say where and how tasks on shards run."""
    options = plan.options
    travel = Travel(options.split_every, default("retries"), progress, options.resources)
    if options.shards_per_task != "auto":
        together = int(options.shards_per_task)
    else:
        asked = mapreduce.placed(travel, device.memory)
        available = mapreduce.compute([asked])[0]
        columns = len(plan.bindings.layout.columns)
        largest = max(shards.padded)
        together = device.shards_that_fit(plan.model, *largest, columns, available)
        # Every worker that may take part should have work.
        workers = mapreduce.workers_with(options.resources)
        together = min(together, -(-plan.n_shards // workers))
    return travel._replace(shards_per_task=together)


Guess = Summit | Pilot


def locate(plan: Plan, shards: Sharded, travel: Travel) -> Guess | None:
    """Find where the posterior is: by climbing, or by a pilot where nothing can be climbed."""
    options, model = plan.options, plan.model
    if plan.n_shards == 1 or plan.method in ("consensus", "parametric"):
        return None
    because = obstacle(model)
    if not because:
        summit = climb(
            _job(plan),
            shards,
            travel,
            prior_points(model, _example(plan), options.seed, default("searches")),
            most=default("climb-steps"),
        )
        if summit is not None:
            return summit
        because = "no mode was found"
    if options.method == "laplace":
        raise ValueError(f"method='laplace', but {because}; use method='anchored'")
    return fly(
        model,
        shards,
        Settings(default("pilot-warmup"), default("pilot-samples"), options.target_accept_prob),
        travel,
        seed=options.seed,
        n_chains=default("pilot-chains"),
    )


def combine(
    plan: Plan,
    shards: Sharded,
    guess: Guess | None,
    travel: Travel,
    before: Combined | None = None,
) -> Combined:
    """Combine the shards, in unconstrained space.

    A mode that was climbed needs no draws for a correction to follow. Rounds that a correction
    follows are few and short; `before` is a combination that was not good enough for it, and
    longer rounds go on from there.
    """
    options = plan.options
    settings = Settings(options.num_warmup, options.num_samples, options.target_accept_prob)
    if guess is None:
        parametric = options.method == "parametric"
        return one_shot(_job(plan), shards, settings, travel, parametric=parametric)
    corrected = not plan.uncorrected_because
    if isinstance(guess, Summit) and plan.method == "laplace" and before is None:
        return expanded(_job(plan), guess, (options.num_chains, options.num_samples))

    short = before is None and corrected
    few = max(default("round-samples"), 4 * plan.model.dim)
    settings = settings._replace(
        num_warmup=default("round-warmup"),
        num_samples=min(options.num_samples, few) if short else options.num_samples,
        adapt_mass=False,
    )
    if before is not None:
        mean, precision = before.mean, inverse(before.covariance) / plan.n_shards
    elif isinstance(guess, Summit):
        mean, precision = guess.mean, inverse(guess.covariance) / plan.n_shards
    else:
        mean, precision = guess.mean, guess.precision
    return anchored(
        _job(plan),
        shards,
        settings,
        travel,
        mean,
        precision,
        most=options.rounds or default("rounds-corrected" if short else "rounds"),
        informed=isinstance(guess, Summit) or before is not None,
        before=() if before is None else before.rounds,
    )


def correction(
    plan: Plan, shards: Sharded, combined: Combined, travel: Travel
) -> Correction | None:
    """Weight the combination by the full posterior, wherever the model allows it."""
    because = plan.uncorrected_because
    if because:
        if plan.options.correct is True and plan.n_shards > 1:
            raise ValueError(f"correct=True, but {because}; use correct='auto' to go on without")
        return None
    return correct(
        Asked(plan.model, shards, travel),
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
        summit=guess if isinstance(guess, Summit) else None,
        n_draws=combined.draws.shape[0] * combined.draws.shape[1],
        uncorrected_because=plan.uncorrected_because,
        coupled=plan.model.coupled,
    )


def result(
    plan: Plan,
    combined: Combined,
    corrected: Correction | None,
    verdict: Verdict,
    clock: Clock,
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
        groups["posterior"] = _posterior(plan, equal_weight_draws(corrected.estimate, shape, rng))
    # JSON has no infinity: an error of unknown size is null.
    sizes = [float(size) if np.isfinite(size) else None for size in verdict.error]
    accuracy = dict(zip(model.coordinate_names(), sizes, strict=True))
    return to_datatree(
        groups,
        {
            **asdict(options),
            "n_shards": plan.n_shards,
            "by": [str(key) for key in plan.bindings.layout.by],
            "sampling_time": clock.total(),
            "profile": clock.seconds | {"compile": _compiling(combined, corrected)},
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


def _compiling(combined: Combined, corrected: Correction | None) -> float:
    """Seconds of the phases in which the slowest shard of a pass compiled, or waited for it."""
    passes = [max(report.compile_seconds for report in one.reports) for one in combined.rounds]
    return float(sum(passes)) + (corrected.compile_seconds if corrected is not None else 0.0)


def _example(plan: Plan) -> Data:
    """Small data of real rows, all of it real."""
    example = plan.example
    groups = tuple(np.ones(count, bool) for count in example.groups)
    return Data(example.arguments, np.ones(example.rows, bool), groups)


def _job(plan: Plan) -> Job:
    options = plan.options
    return Job(plan.model, options.num_chains, options.weights == "diagonal", options.seed)
