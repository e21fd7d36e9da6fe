"""The story of an update: rows have arrived since a fit, and are added to it.

What the earlier fit knows of its rows is in its tree: the log posterior at its points. New rows go
to shards of their own, which add their log likelihood there. Groups that have old and new rows are
looked at anew, with all of their rows, and taken out as they were.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import dask.dataframe as dd
import numpy as np
import xarray as xr

from .cluster.client import followed, say
from .cluster.placement import check_resources
from .cluster.progress import Progress
from .cluster.shards import Shards
from .cluster.tasks import compute
from .combination import gaussian
from .combination.grown import Added, Grown, grown_by_expansion, grown_by_sampling
from .combination.reports import FitSettings
from .config import Options
from .correction.draws import posterior_draws
from .correction.likelihood import LogPosterior
from .correction.reweighted import NewRows, reweighted
from .correction.state import Correction
from .fit import LazyFit, shard_rows, working_with
from .frame.assign import assign
from .frame.contents import add_contents
from .frame.seen import among, count_rows, names_of, rows_of, seen
from .frame.survey import survey, used
from .frame.unreadable import files_named
from .local.effects import check_memory, local_effects
from .local.kept import with_kept
from .local.rows import columns_fed, key_columns
from .plan.added import PlannedUpdate
from .plan.coupling import around, near_zero, with_coupling
from .plan.plan import Plan, make_plan
from .plan.show import not_run, warn_before_sampling
from .plan.undefined import check_defined
from .plan.workers import check_on_workers
from .result.batches import BATCHES, seen_before, written
from .result.clock import Clock
from .result.datatree import result
from .result.earlier import EarlierFit, check_same_model, earlier_fit, name_of
from .result.names import coordinate_labels
from .result.reasons import Earlier, Evidence
from .result.verdict import Verdict, judge, warn_if_bad
from .resume import check_store, finished_tree, resumed
from .shard_data import rounded_sizes
from .warned import warn

_TOO_FEW = {"k-hat", "ess", "sd-error", "tail", "modes", "approximate-error"}
"""Codes of reasons that all rows together would not give."""


@dataclass(frozen=True, repr=False)
class LazyUpdate:
    """An update that has run nothing yet; what ``fit(..., update=tree, compute=False)`` returns.

    Attributes
    ----------
    frame : dask.dataframe.DataFrame
        The new rows.
    model : callable
    by, columns, progress
        As given to `fit`; by default those of the earlier fit.
    options : Options
    tree : DataTree
        Of the earlier fit.
    old : dask.dataframe.DataFrame or None
        The rows that it was fitted to, where they can be reached.
    attributes : mapping of str
        What the result shall say besides.
    """

    frame: dd.DataFrame
    model: Callable[..., Any]
    by: Hashable | Sequence[Hashable] | None
    columns: Mapping[str, Hashable] | None
    options: Options
    progress: bool | None
    tree: xr.DataTree
    old: dd.DataFrame | None = None
    attributes: Mapping[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        return not_run(self, getattr(self.model, "__name__", repr(self.model)))

    def plan(self) -> PlannedUpdate:
        """Read the model and count the new rows; sample nothing."""
        with (
            working_with(self.options),
            followed(self.progress, leave=False),
            files_named(self.frame),
        ):
            earlier = earlier_fit(self.tree, self.model)
            plan = self._plan(earlier, self.frame)
            together = self._all_together_because(plan)
            return PlannedUpdate(plan, earlier.n_rows, earlier.n_updates + 1, together)

    def compute(self) -> xr.DataTree:
        """Run the update."""
        with (
            working_with(self.options),
            followed(self.progress) as progress,
            files_named(self.frame),
            contextlib.nullcontext() if self.old is None else files_named(self.old),
        ):
            return self._run(progress)

    def _run(self, progress: Progress) -> xr.DataTree:
        """Go from what is known to the new rows, or on from where the store has come to."""
        clock = Clock(progress)
        check_resources(self.options.resources)
        check_store(self.options)
        with clock("plan"):
            earlier = earlier_fit(self.tree, self.model)
            plan = self._plan(earlier, self.frame)
            warn_if_repeated(earlier, plan)
            because = self._all_together_because(plan)
            if not because:
                _uncorrected_because(earlier, plan)  # what is asked for may not be had
                self._straddling(earlier, plan, [])
                check_memory(plan)
        if because:
            say(f"all rows are fitted together, because {because}")
            return self._fit_together(earlier, plan)
        begins = name_of(self.tree)
        return resumed(plan, lambda: self._updated(earlier, plan, clock, progress), begins)

    def _updated(
        self, earlier: EarlierFit, plan: Plan, clock: Clock, progress: Progress
    ) -> xr.DataTree:
        """Go from the new rows to the verdict."""
        options, new = self.options, plan
        with clock("shard"):
            shards = shard_rows(self.frame, plan, self.progress, rounded_sizes, "new")
            straddling = self._straddling(earlier, plan, [])
            if shards.hashes:
                straddling = self._straddling(earlier, plan, shards.hashes)
            keys, removed = seen(plan.survey, shards.hashes), None
            if keys is None and plan.bindings.layout.by:
                raise ValueError(
                    f"update=: the {plan.survey.n_groups:,} groups of the new rows are more than "
                    "consensus.local.groups, and new rows of old groups would not be noticed: "
                    "raise that number, or add the rows in several updates"
                )
            if len(straddling):
                plan, shards, removed = self._with_old_rows(earlier, plan, straddling)
        with clock("check"):
            check_on_workers(plan, shards.execution, near_zero(plan))
            check_defined(plan, shards)
            plan = with_coupling(plan, shards, near_zero(plan))
        warn_before_sampling(plan)
        added = Added(shards, removed, earlier.n_rows + new.survey.rows)
        because = _uncorrected_because(earlier, plan)
        with clock("rounds"):
            grown = _grown(earlier, plan, added)
        with clock("correction"):
            correction = None if because else _corrected(earlier, plan, added, grown)
        with clock("check"):
            answer = grown.combined.mean, grown.combined.covariance
            plan = with_coupling(plan, shards, around(*answer))
        evidence = _evidence(earlier, plan, new.survey.rows, grown, correction, because)
        verdict = judge(evidence)
        if self.old is not None and _better_together(verdict, earlier):
            why = "; ".join(reason.problem for reason in verdict.reasons)
            warn(
                f"the new rows could not be added to the earlier fit ({why}): all rows are fitted "
                "together, as they would be without update=",
            )
            return self._fit_together(earlier, new)
        warn_if_bad(verdict)
        shape = (options.num_chains, options.num_samples)
        draws = posterior_draws(
            grown.combined, correction, shape, options.seed, (plan.model, plan.example)
        )
        with clock("local"):
            # At as many draws as a fit of all rows would find them.
            enough = replace(plan.options, local_draws=plan.local_draws_for(added.rows))
            found = local_effects(replace(plan, options=enough), shards, draws, correction)
            moved = gaussian.moments(draws)[0] - earlier.mean
            local = with_kept(self.tree, found, moved, earlier.n_updates + 1)
        progress.conclude(verdict.summary)
        whole = _of_all(earlier, new)
        groups = None if keys is None or earlier.seen is None else np.union1d(earlier.seen, keys)
        tree = result(whole, None, grown.combined, correction, draws, local, verdict, clock, groups)
        tree.attrs.update(self.attributes)
        return _described(tree, earlier, new, len(straddling), groups)

    def _plan(self, earlier: EarlierFit, frame: dd.DataFrame) -> Plan:
        """Plan for new rows as for those before: the same columns, by the same keys."""
        recalled, columns = earlier.recalled, self.columns or {}
        fed = columns_fed(frame, recalled, columns, set(recalled.dtypes))
        by = list(key_columns(frame, recalled, columns))
        given = self.by if isinstance(self.by, list | tuple) else [self.by]
        if self.by is not None and list(given) != by:
            raise ValueError(
                f"by={self.by!r}, but the earlier fit was by {', '.join(recalled.by) or 'no key'}: "
                "leave by= out, or fit all rows together"
            )
        plan = make_plan(
            frame, self.model, by=by or None, columns=fed, options=self.options, fitted=True
        )
        check_same_model(earlier, plan)
        return plan

    def _straddling(
        self, earlier: EarlierFit, plan: Plan, hashes: Sequence[np.ndarray]
    ) -> np.ndarray:
        """Hashes of the groups that have old and new rows; none while new ones are not known.

        Raises
        ------
        ValueError
            If there are any and the old rows were not given, naming some.
        """
        layout, known = plan.bindings.layout, seen(plan.survey, hashes)
        if not layout.by or known is None:
            return np.empty(0, np.uint64)
        key = layout.by[0]
        if earlier.seen is None:
            raise ValueError(
                f"update=: the earlier fit had {earlier.n_groups:,} groups of {key!r}, more than "
                f"consensus.local.groups, and did not keep by what they are known again, so that "
                "new rows of old groups would not be noticed: raise that number in such a fit, or "
                "fit all rows together"
            )
        both = among(known, earlier.seen)
        if len(both) and self.old is None:
            names = names_of(self.frame, layout, both)
            raise ValueError(
                f"update=: {len(both):,} of {len(known):,} groups of {key!r} have rows in the "
                f"earlier fit as well ({names}), and a group's rows must be looked at together: "
                "pass the rows of that fit too, update=(tree, ddf_old), of which those of these "
                "groups are read; or leave new rows of old groups out, or fit all rows together"
            )
        return both

    def _with_old_rows(
        self, earlier: EarlierFit, plan: Plan, straddling: np.ndarray
    ) -> tuple[Plan, Shards, Shards]:
        """Plan and shards of new rows with the old ones of their groups, and shards of these."""
        layout = plan.bindings.layout
        old = rows_of(self._all_old(earlier, plan), layout, straddling).persist()
        options = self.options
        (counted,) = compute([survey(old, layout, split_every=options.split_every)])
        found = 0 if not counted.rows else counted.n_groups
        if found != len(straddling) and counted.groups_exact:
            raise ValueError(
                f"update=(tree, ddf_old): {len(straddling):,} groups of {layout.by[0]!r} have new "
                f"rows and were in the earlier fit, and ddf_old has rows of {found:,} of them: "
                "pass the rows that the tree was fitted to"
            )
        assignment = assign(counted, old, layout, rows_per_shard=options.rows_per_shard)
        taken = replace(plan, survey=counted, assignment=assignment)
        removed = shard_rows(old, taken, self.progress, rounded_sizes, "old")
        together = dd.concat([used(self.frame, layout), old])
        joined = self._plan(earlier, together)
        shards = shard_rows(together, joined, self.progress, rounded_sizes, "both")
        return joined, shards, removed

    def _all_old(self, earlier: EarlierFit, plan: Plan) -> dd.DataFrame:
        """Return the old rows, in the columns that the model uses, after counting them.

        Raises
        ------
        ValueError
            If they are not as many as were fitted.
        """
        assert self.old is not None
        layout = plan.bindings.layout
        if (total := count_rows(self.old, layout)) != earlier.n_rows:
            raise ValueError(
                f"update=(tree, ddf_old): ddf_old has {total:,} rows, and the tree is of "
                f"{earlier.n_rows:,}: pass the rows that it was fitted to, those of all updates "
                "among them and the new ones not"
            )
        return used(self.old, layout)

    def _all_together_because(self, plan: Plan) -> str:
        """Say why old and new rows are fitted together; empty if new ones are added.

        Raises
        ------
        ValueError
            If the old rows are needed, and were not given.
        """
        if not plan.model.crossed:
            return ""
        names = ", ".join(one.site for one in plan.model.crossed)
        if self.old is None:
            raise ValueError(
                f"update=: crossed effects ({names}) are shared by old and new rows, and a tree "
                "does not hold what the old ones say of hundreds of them together: pass the rows "
                "of that fit too, update=(tree, ddf_old), and all are fitted together; or leave "
                "update= out and fit them so"
            )
        return f"crossed effects ({names}) are shared by old and new ones"

    def _fit_together(self, earlier: EarlierFit, plan: Plan) -> xr.DataTree:
        """Fit old and new rows anew, where what is known of the old ones is not enough."""
        layout = plan.bindings.layout
        together = dd.concat([self._all_old(earlier, plan), used(self.frame, layout)])
        recalled, given = earlier.recalled, self.columns or {}
        columns = columns_fed(together, recalled, given, set(recalled.dtypes))
        by = list(layout.by) or None
        lazy = LazyFit(
            together, self.model, by, columns, self.options, self.progress, self.attributes
        )
        return lazy.compute()


def update_of(given: Any) -> tuple[xr.DataTree, dd.DataFrame | None]:
    """Read what `update=` was given: a tree or a store, and the rows of that fit or not."""
    tree, old = given if isinstance(given, tuple) and len(given) == 2 else (given, None)
    if isinstance(tree, str | os.PathLike):
        tree = finished_tree(os.fsdecode(tree))
    if not isinstance(tree, xr.DataTree):
        raise TypeError(
            "update= takes what fit returned, a DataTree, or the store= of a fit that has "
            "finished, or either with the rows that it was fitted to, (tree, ddf_old); got "
            f"{type(given).__name__}"
        )
    if old is not None and not isinstance(old, dd.DataFrame):
        raise TypeError(
            f"update=(tree, ddf_old): ddf_old must be a Dask DataFrame, got {type(old).__name__}"
        )
    return tree, old


def warn_if_repeated(earlier: EarlierFit, plan: Plan) -> None:
    """Say so where the new rows are old ones, as far as what they hold tells."""
    rows = plan.survey.rows
    what = seen_before(earlier.batches, rows, plan.survey.contents)
    if what:
        warn(
            f"update=: the {rows:,} new rows hold just what the rows of {what} held, in every "
            "column that is used. If they are the same rows, they are counted twice, and the "
            "posterior is too narrow: leave them out"
        )


def _uncorrected_because(earlier: EarlierFit, plan: Plan) -> str:
    """Say why new rows are added as Gaussians alone; empty if the posterior is corrected."""
    because = plan.obstacle
    if plan.options.correct is False:
        because = "correct=False"
    elif not because and earlier.before is None:
        because = "the earlier fit has no correction, whose points are needed"
    if because and plan.options.correct is True:
        raise ValueError(f"correct=True, but {because}; fit all rows together")
    return because


def _grown(earlier: EarlierFit, plan: Plan, added: Added) -> Grown:
    """Add Gaussians: the combination before its correction, or all there is without one."""
    options = plan.options
    settings = FitSettings(plan.model, options.shard_chains, False, options.seed)
    mean, covariance = earlier.mean, earlier.covariance
    if not plan.obstacle:
        shape = (options.num_chains, options.num_samples)
        steps = options.laplace.steps
        grown = grown_by_expansion(settings, added, mean, covariance, steps, shape)
        if grown is not None:
            return grown
        raise ValueError(
            "update=: no mode of the posterior with the new rows was found near the earlier one; "
            "fit all rows together"
        )
    if added.removed is not None:
        raise ValueError(
            f"update=: groups have old and new rows, and {plan.obstacle}, so that what they said "
            "before cannot be taken out of the earlier posterior; fit all rows together"
        )
    number = earlier.n_updates + 1
    return grown_by_sampling(settings, plan.one_shot_nuts, added, mean, covariance, number)


def _corrected(earlier: EarlierFit, plan: Plan, added: Added, grown: Grown) -> Correction:
    """Weight the points of the earlier fit by the posterior of all rows."""
    assert earlier.before is not None
    options, mean = plan.options, grown.combined.mean

    def likelihood(shards: Shards) -> LogPosterior:
        return LogPosterior(plan.model, shards, plan.example, mean)

    removed = None if added.removed is None else likelihood(added.removed)
    share = sum(size.rows for size in added.shards.sizes) / added.rows
    rows = NewRows(likelihood(added.shards), removed, min(share, 1.0))
    covariance = grown.combined.covariance
    return reweighted(earlier.before, rows, mean, covariance, options.correction, options.seed)


def _evidence(
    earlier: EarlierFit,
    plan: Plan,
    new_rows: int,
    grown: Grown,
    correction: Correction | None,
    because: str,
) -> Evidence:
    """Collect what speaks for and against the update."""
    combined = grown.combined
    sd = np.sqrt(np.diag(combined.covariance))
    return Evidence(
        names=coordinate_labels(plan.model, plan.labels),
        options=plan.options,
        combined=combined,
        correction=correction,
        uncorrected_because=because,
        correctable=False,
        approximation=grown.approximation,
        coupled=plan.model.coupled,
        local_sites=[site.name for site in plan.model.local],
        earlier=Earlier(
            rows=earlier.n_rows,
            new_rows=new_rows,
            number=earlier.n_updates + 1,
            carried=_carried(earlier, combined.mean, sd),
            codes=() if earlier.good else earlier.codes,
        ),
    )


def _carried(earlier: EarlierFit, mean: np.ndarray, sd: np.ndarray) -> np.ndarray:
    """Errors of a Gaussian that stands for the earlier posterior, in sds of the new one.

    Beside its own error: a density of skewness s, tilted so that its mean moves by x sds, has a
    mean that moves by s x^2 / 2 further (the third cumulant).
    """
    draws = earlier.recalled.draws.reshape(-1, len(mean))
    skew = (((draws - earlier.mean) / earlier.sd) ** 3).mean(axis=0)
    tilt = np.abs(mean - earlier.mean) / earlier.sd
    wider = np.maximum(sd / earlier.sd, 1.0)
    return np.hypot(earlier.error * wider, np.abs(skew) * tilt**2 / 2 * earlier.sd / sd)


def _better_together(verdict: Verdict, earlier: EarlierFit) -> bool:
    """Tell whether all rows, fitted together, would be better off."""
    codes = {reason.code for reason in verdict.reasons}
    return bool(codes & _TOO_FEW) or (not earlier.good and bool(set(earlier.codes) & _TOO_FEW))


def _of_all(earlier: EarlierFit, plan: Plan) -> Plan:
    """Make the plan of new rows say what old and new rows hold together."""
    then = earlier.recalled.contents
    if then is None:
        return plan
    counted = plan.survey
    both = counted._replace(contents=add_contents([then, counted.contents]))
    return replace(plan, survey=both)


def _described(
    tree: xr.DataTree,
    earlier: EarlierFit,
    new: Plan,
    n_straddling: int,
    groups: np.ndarray | None,
) -> xr.DataTree:
    """Say in a tree of how many rows it is, and that its shards are those of new ones."""
    n_groups = earlier.n_groups + new.survey.n_groups - n_straddling
    if not new.bindings.layout.by:
        n_groups = 0
    number = earlier.n_updates + 1
    batch = f"update {number}", new.survey.rows, new.survey.contents
    told = {
        BATCHES: written([*earlier.batches, batch]),
        "n_rows": earlier.n_rows + new.survey.rows,
        "n_groups": len(groups) if groups is not None else n_groups,
        "n_updates": number,
        "update": json.dumps({"rows": new.survey.rows, "groups_again": n_straddling}),
    }
    for node in (tree, tree["posterior"]):
        node.attrs.update(told)
    shards = tree["shards"].to_dataset()
    shards["weight"] = xr.zeros_like(shards["weight"])
    shards["weight"].attrs["long_name"] = "power of the prior that the shard took: it was there"
    tree["shards"] = xr.DataTree(shards.assign_attrs(holds="shards of the last update"))
    return tree
