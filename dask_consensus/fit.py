"""The story of a fit: plan, shard, locate, combine, correct, judge, group effects."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import dask.dataframe as dd
import xarray as xr

from .cluster.client import followed, say, working
from .cluster.freed import freed_memory_kept
from .cluster.mapreduce import on_worker
from .cluster.placement import Execution, check_resources, workers_with
from .cluster.progress import Progress
from .cluster.shards import Shards, not_sent, persist
from .cluster.shuffle_logs import usual_shuffles_unlogged
from .cluster.tasks import compute
from .combination.methods import combine, locate
from .combination.reports import Combined, Guess
from .config import Options
from .correction.draws import posterior_draws
from .correction.importance import correct
from .correction.levels import correct_crossed
from .correction.likelihood import LogPosterior
from .correction.peaks import moments_of
from .correction.state import Correction, CorrectionSettings
from .fallback import Found, chains_if_bad, longer_if_unusable
from .frame.assign import shards as rows_to_shards
from .frame.seen import hashes_of, seen
from .frame.unchanged import unchanged
from .frame.unreadable import files_named
from .local.effects import check_memory, local_effects
from .plan.coupling import around, near_zero, with_coupling
from .plan.forecast import Forecast, forecast, sharding
from .plan.plan import Plan, make_plan
from .plan.show import not_run, warn_before_sampling
from .plan.undefined import check_defined
from .plan.workers import check_on_workers
from .result.clock import Clock
from .result.datatree import result
from .result.verdict import warn_if_bad
from .resume import check_store, checked_by, goes_on, known_shards, resumed
from .shard import device
from .shard_data import Shard, Size, padded_sizes


@dataclass(frozen=True, repr=False)
class LazyFit:
    """A fit that has run nothing yet; what ``fit(..., compute=False)`` returns.

    Attributes
    ----------
    frame : dask.dataframe.DataFrame
    model : callable
    by, columns, progress
        As given to `fit`.
    options : Options
        Everything else, Dask's configuration read when the fit was made.
    attributes : mapping of str
        What the result shall say besides.
    """

    frame: dd.DataFrame
    model: Callable[..., Any]
    by: Hashable | Sequence[Hashable] | None
    columns: Mapping[str, Hashable] | None
    options: Options
    progress: bool | None = None
    attributes: Mapping[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        return not_run(self, getattr(self.model, "__name__", repr(self.model)))

    def plan(self) -> Plan:
        """Read the model and count the rows; sample nothing."""
        with (
            working_with(self.options),
            followed(self.progress, leave=False),
            files_named(self.frame),
        ):
            return make_plan(
                self.frame, self.model, by=self.by, columns=self.columns, options=self.options
            )

    def compute(self) -> xr.DataTree:
        """Run the fit."""
        with (
            working_with(self.options),
            followed(self.progress) as progress,
            files_named(self.frame),
        ):
            return self._run(progress)

    def _run(self, progress: Progress) -> xr.DataTree:
        """Go from the plan to the verdict, or on from where the store's fit has come to."""
        clock = Clock(progress)
        check_resources(self.options.resources)
        check_store(self.options)
        with clock("plan"):
            plan = self.plan()
            check_memory(plan)
            progress.say(plan.summary)
        return resumed(plan, lambda: self._fitted(plan, clock, progress))

    def _fitted(self, plan: Plan, clock: Clock, progress: Progress) -> xr.DataTree:
        """Go from the rows to the verdict."""
        progress.expect({"shard": sharding(plan).likely})
        with clock("shard"):
            shards = shard_rows(self.frame, plan, self.progress)
            plan = plan.having(shards.n_groups)
            check_memory(plan)
        with clock("check"):
            check_on_workers(plan, shards.execution, near_zero(plan))
            check_defined(plan, shards)
            plan = with_coupling(plan, shards, near_zero(plan))
            check_correctable(plan)
        warn_before_sampling(plan)
        expected = None
        # Of a fit that is gone on with nobody knows how much is left.
        if self.options.forecast and not (plan.model.crossed or goes_on()):
            with clock("forecast"):
                expected = forecast_or_none(plan, shards)
                progress.expect({} if expected is None else expected.ahead)
        with clock("search"):
            guess = locate(plan, shards)  # None for one-shot methods and NUTS on all rows
            if guess is None and plan.method == "laplace":
                plan = plan.giving_up("no mode was found")
        with clock("rounds"):
            combined = combine(plan, shards, guess)
        with clock("correction"):
            correction = correct_combination(plan, shards, guess, combined)
        found = Found(plan, guess, combined, correction)
        found = longer_if_unusable(found, shards, clock, correct_combination)
        with clock("check"):
            plan = with_coupling(
                plan, shards, around(found.combined.mean, found.combined.covariance)
            )
        found, verdict = chains_if_bad(found._replace(plan=plan), shards, clock)
        plan, guess, combined, correction = found
        warn_if_bad(verdict)
        options = self.options
        shape = (options.num_chains, options.num_samples)
        draws = posterior_draws(
            combined, correction, shape, options.seed, (plan.model, plan.example)
        )
        with clock("local"):
            local = local_effects(plan, shards, draws, correction)
        progress.conclude(verdict.summary)
        groups = seen(plan.survey, shards.hashes)
        tree = result(
            plan, guess, combined, correction, draws, local, verdict, clock, groups, expected
        )
        tree.attrs.update(self.attributes)
        return tree


@contextlib.contextmanager
def working_with(options: Options) -> Iterator[None]:
    """Work with one client until the end, whose workers keep some of what they free."""
    with (
        working(options.worker_timeout, options.resources),
        freed_memory_kept(options.freed_memory),
        usual_shuffles_unlogged(),
    ):
        yield


def shard_rows(
    frame: dd.DataFrame,
    plan: Plan,
    progress: bool | None,
    shapes: Callable[[Sequence[Size]], list[Size]] = padded_sizes,
    whose: str = "",
) -> Shards:
    """Send every row to its shard, keep the shards, and say how work reaches them.

    `whose` tells these shards from others of the same work.
    """
    options = plan.options
    execution = Execution(options.split_every, options.retries, progress, options.resources)
    layout = plan.bindings.layout
    keep_labels, known, hashing = not plan.no_local_because, known_shards(whose), _hashing(plan)
    if known is not None:
        shards = not_sent(
            known,
            execution,
            keep_labels=keep_labels,
            hashes_of=hashing,
            shapes=shapes,
            whose=whose,
        )
    else:
        unpadded = rows_to_shards(frame, layout, plan.assignment)
        check = checked_by(unchanged(plan.survey, layout), whose)
        shards = persist(
            unpadded,
            execution,
            check,
            keep_labels=keep_labels,
            hashes_of=hashing,
            shapes=shapes,
            whose=whose,
        )
    together = options.shards_per_task
    if together == "auto":
        together = _shards_that_fit(plan, shards)
    return shards._replace(execution=execution._replace(shards_per_task=int(together)))


def _hashing(plan: Plan) -> Callable[[Shard], Any] | None:
    """Hash the keys of groups where the survey could not tell them apart, if a client holds all."""
    survey, layout = plan.survey, plan.bindings.layout
    most = plan.options.local_limits.groups
    if not layout.by or survey.groups_exact or survey.n_groups > most:
        return None
    return partial(hashes_of, form=survey.forms(layout)[0])


def forecast_or_none(plan: Plan, shards: Shards) -> Forecast | None:
    """Say what the long phases will cost; where that fails, the fit goes on without."""
    try:
        told = forecast(plan, shards)
    except Exception as error:
        say(f"none, since timing the model failed ({type(error).__name__}: {error})")
        return None
    say(f"about {sum(told.ahead.values()):.0f} s from here")
    return told


def check_correctable(plan: Plan) -> None:
    """Refuse to go on where a correction is insisted on and there can be none."""
    because = plan.uncorrected_because
    if plan.options.correct is True and because and plan.method != "nuts":
        raise ValueError(f"correct=True, but {because}; use correct='auto' to go on without")


def correct_combination(
    plan: Plan, shards: Shards, guess: Guess | None, combined: Combined
) -> Correction | None:
    """Weight the combination by the full posterior, wherever the model allows it."""
    because = plan.uncorrected_because
    if because:
        say(f"none, because {because}")
        return None
    options = plan.options
    mean, covariance = combined.mean, combined.covariance
    if combined.peaks:
        mean, covariance = moments_of(combined.peaks)
    settings = CorrectionSettings(
        mean=mean,
        covariance=covariance,
        peaks=combined.peaks,
        landmarks=() if guess is None else guess.landmarks,
        seed=options.seed,
        options=options.correction,
        limits=options.verdict,
        expansions=None if guess is None else guess.expansions,
    )
    log_posterior = LogPosterior(plan.model, shards, plan.example, combined.mean)
    if guess is not None and guess.crossed is not None:
        return correct_crossed(settings, log_posterior, guess.crossed)
    return correct(settings, log_posterior)


def _shards_that_fit(plan: Plan, shards: Shards) -> int:
    """Shards that one task should take: as many as a device holds, if every worker has some."""
    memory = compute([on_worker(shards.execution, device.memory)])[0]
    columns = len(plan.bindings.layout.columns)
    fitting = device.shards_that_fit(plan.model, *max(shards.padded), columns, memory)
    return min(fitting, -(-plan.n_shards // workers_with(plan.options.resources)))
