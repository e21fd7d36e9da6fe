"""What will be done with a model and a frame, and whether it can be, before anything runs."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import dask.dataframe as dd
import numpy as np
import pandas as pd

from ..cluster.client import working
from ..cluster.tasks import compute
from ..config import Method, Options
from ..frame.arrays import Layout, encode, labels_of
from ..frame.assign import Assignment, assign
from ..frame.defects import usable
from ..frame.survey import Survey, check, survey, used
from ..model.crossed import MOST_CROSSED
from ..model.examples import Example, examples
from ..model.model import ShardModel, double_precision, named
from ..model.responses import responses
from ..model.roles import ModelInputs, read_model
from ..shard.engine import engine_of
from ..shard.local_sites import returned
from ..shard.nuts import NutsSettings
from ..shard.tiers import tiers
from ..shard_data import ShardData
from .bindings import Bindings, bind, similar
from .page import page, paragraph
from .show import columns_told, notes_of, tables_of

if TYPE_CHECKING:
    from ..formula.formula import Formula
    from .forecast import Forecast

_SAMPLE = 64  # rows of a partition on which the model is traced
_LOCAL_ROWS, _MOST_LOCAL_DRAWS = 5_000_000, 256  # rows times draws that cost next to nothing
_COST = "cost: plan.forecast() times the model, and says how long it takes and what it needs"
_COST_CROSSED = "cost: plan.forecast() says what it needs, but not how long crossed effects take"
_DRAWS_A_DIMENSION = 4  # of a round that a correction follows, at least
_COMBINING = ("anchored", "consensus", "parametric")  # methods that sample several shards
# So many shared parameters of so few rows each often have a scale of their own, whose funnel
# weighted points do not follow, while a gradient of rows so few costs next to nothing.
_MANY_PARAMETERS, _FEW_ROWS_EACH = 20, 75


@dataclass(frozen=True, repr=False)
class Plan:
    """What `fit` will do with a model and a frame.

    Attributes
    ----------
    options : Options
        As they were asked for, defaults filled in.
    bindings : Bindings
        Which column feeds which argument.
    model : ShardModel
        The model, read: sites, their roles, shapes and supports, the terms of its density.
    survey : Survey
        What one pass over the frame has counted.
    assignment : Assignment
        How many shards, of how many rows and groups.
    example : ShardData
        Small data that the model accepts, all of it real.
    key_dtypes : tuple of dtype
        Of the columns of the groups' keys, in the frame.
    counting : float
        Seconds that counting the rows has taken.
    given_up : str
        What the fit has found that speaks for sampling all rows after all.
    formula : Formula or None
        What the model was written for; None of a model of the user's.
    counted_groups : tuple of int
        Groups of each level, once there are shards.
    """

    options: Options
    bindings: Bindings
    model: ShardModel
    survey: Survey
    assignment: Assignment
    example: ShardData
    key_dtypes: tuple[Any, ...] = ()
    counting: float = 0.0
    given_up: str = ""
    formula: Formula | None = None
    counted_groups: tuple[int, ...] = ()

    @property
    def model_source(self) -> str:
        """The NumPyro code of a formula's model, which runs as it stands.

        Raises
        ------
        AttributeError
            If the model was not written for a formula.
        """
        if self.formula is None:
            raise AttributeError("the model is the one that was passed, not a formula's")
        return self.formula.source

    @property
    def n_shards(self) -> int:
        """Number of shards."""
        return self.assignment.n_shards

    @property
    def labels(self) -> dict[str, tuple[Any, ...]]:
        """Categories of the arguments that receive codes; of matrices the names of columns."""
        return labels_of(self.bindings.layout)

    @property
    def summary(self) -> str:
        """What is planned, in a few words."""
        method = "NUTS" if self.method == "nuts" else self.method
        shards = f", {self.n_shards:,} shards" if self.n_shards > 1 else " in one shard"
        return f"{self.survey.rows:,} rows{shards}, {self.model.dim} shared parameters, {method}"

    @property
    def fits_one_shard(self) -> bool:
        """Whether there are more shards than rows need, since `n_shards` asked for them."""
        return self.n_shards > 1 and self.survey.rows <= self.options.rows_per_shard

    @property
    def obstacle(self) -> str:
        """Why local effects cannot be integrated out; empty if they can."""
        return engine_of(self.model).obstacle

    @property
    def uncorrected_because(self) -> str:
        """Why no correction follows; empty if one does."""
        if self.method == "nuts":
            return "NUTS on all rows needs none"
        if self.options.correct is False:
            return "correct=False"
        return self.obstacle

    @property
    def no_local_because(self) -> str:
        """Why effects of groups are not returned; empty if they are."""
        options, model = self.options, self.model
        if options.local is None:
            return "local=None"
        if not model.local:
            return "the model has no local sites"
        if self.obstacle:
            return self.obstacle
        if not returned(model):
            sites = ", ".join(site.name for site in model.local)
            return (
                f"effects of rows ({sites}) have no labels: predict(tree, model, kind='effects') "
                "sets them beside each row"
            )
        groups = max(self.groups_at(tier.level) for tier in returned(model))
        if groups > self.most_groups and not options.store:
            return (
                f"{groups:,} groups are more than consensus.local.groups, {self.most_groups:,}, "
                "that the client is to hold: raise it, or pass store=, a folder or URL that the "
                "workers write them to"
            )
        return ""

    @property
    def most_groups(self) -> int:
        """Groups whose effects a client is to hold, at most."""
        return self.options.local_limits.groups

    def groups_at(self, level: int) -> int:
        """Return the number of groups of a level; of outermost ones until there are shards."""
        return self.counted_groups[level] if self.counted_groups else self.survey.n_groups

    def having(self, groups: Sequence[int]) -> Plan:
        """Plan with so many groups of each level, which shards have told."""
        return replace(self, counted_groups=tuple(map(int, groups)))

    @property
    def local_draws(self) -> int:
        """Draws of the shared parameters at which effects of groups are found."""
        return self.local_draws_for(self.survey.rows)

    def local_draws_for(self, rows: int) -> int:
        """Say how many they are where a fit is of so many rows."""
        if self.options.local_draws is not None:
            return self.options.local_draws
        # Fewer could not have the means and the covariance of all.
        few = max(self.options.local_limits.draws, 2 * self.model.dim_without_crossed + 4)
        return max(few, min(_MOST_LOCAL_DRAWS, _LOCAL_ROWS // rows))

    @property
    def looks_for_effects(self) -> tuple[int, int]:
        """Looks at every row that effects of groups take at a draw, at least and at most."""
        summary = self.options.local == "summary"
        return engine_of(self.model).looks_at_rows(summary=summary)

    @property
    def method(self) -> Method:
        """The method that "auto" stands for here, or the one that was asked for."""
        if self.options.method == "nuts" or self.nuts_because:
            return "nuts"
        if self.options.method != "auto":
            return self.options.method
        return "anchored" if self.obstacle and self.n_shards > 1 else "laplace"

    @property
    def nuts_because(self) -> str:
        """Why NUTS samples all rows though it was not asked for; empty if it does not."""
        options, rows, d = self.options, self.survey.rows, self.model.dim
        if self.n_shards > 1 or options.method == "nuts":
            return ""
        if options.method in _COMBINING:
            return "one shard has no other to be combined with"
        if options.method == "laplace" or options.correct is True:
            return ""
        if self.obstacle or self.given_up:
            return self.obstacle or self.given_up
        many = d >= _MANY_PARAMETERS and rows < _FEW_ROWS_EACH * d
        if many and options.correct == "auto" and not self.model.crossed:
            return f"{d} shared parameters are many for {rows:,} rows"
        return ""

    @property
    def may_give_up(self) -> bool:
        """Whether NUTS on all rows may take over where nothing else leads anywhere."""
        options = self.options
        return options.method == "auto" and options.correct is not True and self.n_shards == 1

    @property
    def gives_up(self) -> bool:
        """Whether it does, where the correction of few rows cannot be relied on."""
        few = self.survey.rows <= self.options.rows_per_shard
        return self.may_give_up and self.options.correct == "auto" and few

    def giving_up(self, because: str) -> Plan:
        """Plan NUTS on all rows, for a reason that the fit has found."""
        model = self.model
        if model.crossed:
            model = named(replace(model, crossed=()))
        return replace(self, model=model, given_up=because)

    @property
    def chains_sampled(self) -> int:
        """Chains on each shard that is sampled."""
        options = self.options
        return options.num_chains if self.method == "nuts" else options.shard_chains

    @property
    def one_shot_nuts(self) -> NutsSettings:
        """How shards are sampled once, and all rows are."""
        options = self.options
        return NutsSettings(options.num_warmup, options.num_samples, options.target_accept_prob)

    def round_nuts(self, *, short: bool) -> NutsSettings:
        """How shards are sampled in a round; in a short one, for a correction to follow."""
        options, anchored = self.options, self.options.anchored
        enough = max(anchored.num_samples, _DRAWS_A_DIMENSION * self.model.dim)
        return NutsSettings(
            num_warmup=anchored.num_warmup,
            num_samples=min(options.num_samples, enough) if short else options.num_samples,
            target_accept_prob=options.target_accept_prob,
            adapt_mass=False,
        )

    def most_rounds(self, *, short: bool) -> int:
        """Anchored rounds at most."""
        anchored = self.options.anchored
        return self.options.rounds or (anchored.rounds_corrected if short else anchored.rounds)

    def forecast(self) -> Forecast:
        """Say what the fit will cost: seconds by phase, memory, tasks, bytes moved, points.

        The model is timed where the fit would run, on a shard made up of the sample of rows that
        the plan was made with. That takes as long as compiling the model's density twice, some
        seconds; the code is kept for the fit. Nothing is sampled, but for a second of NUTS where
        shards will be.

        Returns
        -------
        Forecast
            Prints as tables. Seconds are ranges.
        """
        from .forecast import forecast

        with working(self.options.worker_timeout, self.options.resources):
            return forecast(self)

    def notes(self) -> list[str]:
        """Say what the user should know before running."""
        return notes_of(self)

    def __repr__(self) -> str:
        parts = [table.text() for table in tables_of(self)]
        for note in self.notes():
            parts.append(textwrap.fill(f"note: {note}", 96, subsequent_indent="  "))
        parts.append(self._cost)
        return "\n\n".join(parts)

    def _repr_html_(self) -> str:
        parts = [table.html() for table in tables_of(self)]
        parts += [paragraph(f"note: {note}", "note") for note in self.notes()]
        return page(f"plan: {self.summary}", [*parts, paragraph(self._cost, "soft")])

    @property
    def _cost(self) -> str:
        return _COST_CROSSED if self.model.crossed else _COST


def make_plan(
    frame: dd.DataFrame,
    model: Callable[..., Any],
    *,
    by: Any,
    columns: Mapping[str, Hashable] | None,
    options: Options,
    fitted: bool = False,
) -> Plan:
    """Bind, read the model on a small sample, count the rows, assign groups to shards.

    What can be refused without the data is refused first, then what a small sample shows, then
    what one pass over the rows shows. Of a model that was `fitted` less is asked, as in
    :func:`.read_model`.
    """
    bindings = bind(frame, model, by, columns, double_precision())
    bindings = bindings.completed(frame, options.split_every)
    layout = bindings.layout
    values = _sample(frame, layout)
    codes = {c.argument: c.level for c in layout.columns if c.kind == "group"}
    inputs = ModelInputs(
        values=values,
        codes=codes,
        levels=tuple(map(str, layout.by)),
        counts=bindings.counts,
        constants=bindings.constants,
        columns=columns_told(layout),
        defaults={name: similar(name, list(frame.columns)) for name in bindings.defaults},
        categories={c.argument: len(c.categories) for c in layout.columns if c.categories},
    )
    read = read_model(
        model, inputs, cache=options.cache, cache_size=options.cache_size, fitted=fitted
    )
    read = _with_crossed(read, options)
    example = examples(values, codes, len(layout.by))[0]
    layout = layout._replace(responses=_responses(read, example, layout))
    bindings = bindings._replace(layout=layout)
    began = time.perf_counter()
    (counted,) = compute([survey(frame, layout, split_every=options.split_every)])
    counting = time.perf_counter() - began
    check(counted, layout)
    n_shards = 1 if options.method == "nuts" else options.n_shards
    assignment = assign(
        counted, frame, layout, n_shards=n_shards, rows_per_shard=options.rows_per_shard
    )
    if assignment.n_shards > 1:
        _check_rows(read, counted.rows, assignment.n_shards)
        if not read.crossed:
            _check_draws(read, options)
    dtypes = tuple(used(frame, layout)._meta[name].dtype for name in layout.by)
    return Plan(options, bindings, read, counted, assignment, _whole(example), dtypes, counting)


def _responses(model: ShardModel, example: Example, layout: Layout) -> tuple[str, ...]:
    """Name the arguments that are only observed, but matrices: a row may lack a part of one."""
    plain = {column.argument for column in layout.direct if column.entry < 0}
    return tuple(name for name in responses(model, example) if name in plain)


def _sample(frame: dd.DataFrame, layout: Layout) -> dict[str, np.ndarray]:
    """Real values of some rows, for each argument that receives values or categories."""
    rows = used(frame, layout)
    # A frame is often sorted: rows of one partition alone may all agree in some column.
    some = sorted({0, rows.npartitions // 2, rows.npartitions - 1})
    sample = _heads(rows.partitions[some], layout)
    if not len(sample):
        # These partitions may be empty, or begin with rows that lack something: the outcome, say.
        sample = _heads(rows, layout, whole=True)
    if not len(sample):
        check(compute([survey(frame, layout)])[0], layout)
    order = np.random.default_rng(0).permutation(len(sample))[:_SAMPLE]
    return layout.assembled({str(name): sample[name].to_numpy()[order] for name in sample})


def _heads(rows: dd.DataFrame, layout: Layout, *, whole: bool = False) -> pd.DataFrame:
    """Encode the first rows of each partition, of a whole one or of its head, that can be used."""
    values = layout.typed(rows._meta)._replace(by=())
    heads: pd.DataFrame
    meta = encode(rows._meta, values)
    (heads,) = compute([rows.map_partitions(_head, values, whole, meta=meta)])
    return heads


def _head(partition: pd.DataFrame, layout: Layout, whole: bool) -> pd.DataFrame:
    """Encode the first rows of a partition, those that the model can use."""
    head = partition if whole else partition.head(_SAMPLE)
    return encode(head[usable(head, layout)].head(_SAMPLE), layout)


def _whole(example: Example) -> ShardData:
    """Make data of an example, all of it real."""
    groups = tuple(np.ones(count, bool) for count in example.groups)
    return ShardData(example.arguments, np.ones(example.rows, bool), groups)


def _check_rows(model: ShardModel, rows: int, n_shards: int) -> None:
    """Refuse shards that have too few rows to say anything of the parameters."""
    least = max(model.dim_without_crossed, 2)
    if rows < least * n_shards:
        most = max(rows // least, 1)
        raise ValueError(
            f"n_shards={n_shards} leaves {rows / n_shards:.1f} rows a shard, fewer than the "
            f"{least} shared parameters need to be told apart: ask for at most {most:,} "
            "shards, or leave n_shards out"
        )


def _with_crossed(model: ShardModel, options: Options) -> ShardModel:
    """Treat crossed effects as such where that can be done, and refuse too many of them."""
    if not model.crossed:
        return model
    size = sum(one.size for one in model.crossed)
    ours = options.method in ("auto", "laplace") and len(tiers(model)) < 2
    if not ours or engine_of(model).obstacle:
        return named(replace(model, crossed=()))
    if size > MOST_CROSSED:
        names = ", ".join(f"{one.site} ({one.size:,})" for one in model.crossed)
        raise ValueError(
            f"{size:,} crossed effects ({names}) are more than the {MOST_CROSSED:,} whose Hessian "
            "is kept as one matrix. Make their column the key, by=, if it has more levels than the "
            "key has; join levels of few rows; leave the smallest out; or have few rows sampled "
            "whole, method='nuts'"
        )
    return model


def _check_draws(model: ShardModel, options: Options) -> None:
    """Refuse fewer draws than the precision of a shard can be estimated from."""
    draws = options.num_samples * options.shard_chains
    needed = model.dim + 2 if options.weights == "full" else 3
    if draws <= needed:
        raise ValueError(
            f"{draws} draws a shard cannot give the precision of {model.dim} shared dimensions: "
            f"more than {needed} effective draws are needed. Raise num_samples or num_chains"
            + (", or use weights='diagonal'." if options.weights == "full" else ".")
        )
