"""What will be done, and whether it can be, before anything runs."""

from __future__ import annotations

import html
import textwrap
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dask.dataframe as dd
import numpy as np
import pandas as pd

from ..config import Method, Options
from ..frame import assign as sharding
from ..frame import survey as surveying
from ..frame.arrays import Layout, encode
from ..model.examples import Example, examples
from ..model.model import ShardModel, double_precision
from ..model.roles import ModelInputs, read_model
from ..shard.effects import effects_per_unit, obstacle
from ..shard_data import Data, Size, padded_sizes
from .bindings import Bindings, bind
from .show import _level, _range, _shape, coupled_message, largest_group_message
from .tables import Table


def _example(plan: Plan) -> Data:
    """Small data of real rows, all of it real."""
    example = plan.example
    groups = tuple(np.ones(count, bool) for count in example.groups)
    return Data(example.arguments, np.ones(example.rows, bool), groups)


_SAMPLE = 64  # rows of a partition on which the model is traced


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
    example : Example
        Small data that the model accepts.
    """

    options: Options
    bindings: Bindings
    model: ShardModel
    survey: surveying.Survey
    assignment: sharding.Assignment
    example: Example

    @property
    def n_shards(self) -> int:
        """Number of shards."""
        return self.assignment.n_shards

    @property
    def uncorrected_because(self) -> str:
        """Why no correction follows; empty if one does."""
        if self.n_shards == 1:
            return "one shard needs none"
        if self.options.correct is False:
            return "correct=False"
        return obstacle(self.model)

    @property
    def method(self) -> Method:
        """The method that "auto" stands for here, or the one that was asked for."""
        if self.options.method != "auto":
            return self.options.method
        return "anchored" if self.n_shards == 1 or obstacle(self.model) else "laplace"

    def tables(self) -> list[Table]:
        """Lay the plan out in tables."""
        sites = ("site", "role", "shape", "support", "distribution", "in each shard")
        return [
            Table("fit", (), self._summary()),
            Table("arguments of the model", ("argument", "column", "receives"), self._arguments()),
            Table("sites", sites, self._sites()),
            Table("shards", (), self._shards()),
        ]

    def notes(self) -> list[str]:
        """Say what the user should know before running."""
        if self.n_shards == 1:
            return []
        notes = [
            f"{site.name}: {site.prior} prior, {site.note}"
            for site in self.model.shared
            if site.note
        ]
        if self.assignment.largest is not None:
            notes.append(largest_group_message(self))
        if self.model.coupled:
            notes.append(coupled_message(self.model))
        return notes

    def __repr__(self) -> str:
        parts = [table.text() for table in self.tables()]
        for note in self.notes():
            parts.append(textwrap.fill(f"note: {note}", 96, subsequent_indent="  "))
        return "\n\n".join(parts)

    def _repr_html_(self) -> str:
        parts = [table.html() for table in self.tables()]
        parts += [f"<p><em>note:</em> {html.escape(note)}</p>" for note in self.notes()]
        return f"<div>{''.join(parts)}</div>"

    def _summary(self) -> list[list[str]]:
        options, chains = self.options, self.options.num_chains
        how = {
            "whole": "one shard, the full model",
            "divisions": "whole partitions, no shuffle",
            "hash": "rows shuffled by group, groups kept whole",
            "rows": "rows dealt out, rows being exchangeable",
        }[self.assignment.kind]
        method, tempering = "NUTS on everything", "none"
        sampling = (
            f"{options.num_warmup} warm-up + {options.num_samples} draws, "
            f"{chains} chain{'s' if chains != 1 else ''} a shard"
        )
        if self.n_shards > 1:
            method = f"{self.method}, {options.weights} weights"
            if self.method == "laplace":
                method = "laplace, Newton steps on all shards, local effects integrated out"
                sampling = "none of the shards"
            weights = _range(self.assignment.rows / self.assignment.rows.sum(), "{:.3g}")
            tempering = f"priors, Jacobian included, to the power w = rows / all rows, {weights}"
        return [
            ["method", method],
            ["sharding", how],
            ["tempering", tempering],
            ["sampling", sampling],
            ["correction", self._correction()],
            ["shared dimensions", str(self.model.dim)],
            ["precision", "float64" if self.model.x64 else "float32"],
        ]

    def _correction(self) -> str:
        because = self.uncorrected_because
        if because:
            return f"none, because {because}" if self.n_shards > 1 else "none needed"
        q = effects_per_unit(self.model)
        return "points weighted by the full posterior" + (
            f", {q} effect{'s' if q > 1 else ''} a group integrated out" if q else ""
        )

    def _arguments(self) -> list[list[str]]:
        kinds = {"group": "group codes, local to a shard", "value": "values"}
        rows = []
        for column in self.bindings.layout.columns:
            kind = kinds.get(column.kind, f"codes of {len(column.categories)} categories")
            rows.append([column.argument, str(column.column), kind])
        for name, level in self.bindings.counts.items():
            rows.append([name, "", f"number of groups of {self.model.levels[level]}"])
        for name, number in self.bindings.constants.items():
            rows.append([name, "", f"{number}, the number of categories"])
        return rows + [[name, "", "its default"] for name in self.bindings.defaults]

    def _sites(self) -> list[list[str]]:
        tempered, own = "whole" if self.n_shards == 1 else "to the power w", "whole"
        rows = []
        latent = {site.name for site in self.model.latents}
        for site in self.model.latents:
            shape = _shape(site.shape, site.level, site.axis, self.model)
            role, what = ("shared", tempered) if site.level is None else ("local", own)
            rows.append([site.name, role, shape, site.support, site.prior, what])
        for term in self.model.terms:
            if term.name not in latent and not term.name.endswith("_log_det"):
                role, what = ("prior", tempered) if term.level is None else ("observed", own)
                rows.append([term.name, role, _level(term, self.model), "", "", what])
        return rows + [[n, "deterministic", "", "", "", ""] for n in self.model.deterministics]

    def _shards(self) -> list[list[str]]:
        assignment, by = self.assignment, self.bindings.layout.by
        rows = [
            ["shards", f"{self.n_shards:,}"],
            ["rows", f"{self.survey.rows:,}"],
            ["rows a shard", _range(assignment.rows, "{:,.0f}")],
        ]
        if by:
            about = "" if self.survey.groups_exact else "about "
            rows += [
                [f"groups of {by[0]}", f"{about}{self.survey.n_groups:,}"],
                [f"groups of {by[0]} a shard", about + _range(assignment.groups, "{:,.0f}")],
            ]
        groups = assignment.groups.tolist() if by else [()] * self.n_shards
        sizes = [
            Size(int(rows), (count,) if by else ())
            for rows, count in zip(assignment.rows, groups, strict=True)
        ]
        padded = padded_sizes(sizes)
        extra = sum(size.rows for size in padded) - int(assignment.rows.sum())
        share = extra / assignment.rows.sum()
        rows.append(["padding rows", f"{extra:,} ({share:.1%})" if extra else "none"])
        rows.append(["shapes to compile", str(len(set(padded)))])
        return rows


def make_plan(
    frame: dd.DataFrame,
    model: Callable[..., Any],
    *,
    by: Hashable | Sequence[Hashable] | None,
    columns: Mapping[str, Hashable] | None,
    options: Options,
) -> Plan:
    """Bind, read the model on a small sample, count the rows, assign groups to shards.

    What can be refused without the data is refused first, then what a small sample shows, then
    what one pass over the rows shows.
    """
    bindings = bind(frame, model, by, columns, double_precision())
    layout = bindings.layout
    values = _sample(frame, layout)
    codes = {c.argument: c.level for c in layout.columns if c.kind == "group"}
    offered = ModelInputs(
        values=values,
        codes=codes,
        levels=tuple(map(str, layout.by)),
        counts=bindings.counts,
        constants=bindings.constants,
        columns={c.argument: str(c.column) for c in layout.columns},
    )
    read = read_model(model, offered)
    survey = surveying.survey(frame, layout, split_every=options.split_every or 8).compute()
    surveying.check(survey, layout)
    assignment = sharding.assign(
        survey, frame, layout, n_shards=options.n_shards, rows_per_shard=options.rows_per_shard or 1
    )
    if assignment.n_shards > 1:
        _check_draws(read, options)
    example = examples(values, codes, len(layout.by))[0]
    return Plan(options, bindings, read, survey, assignment, example)


def _sample(frame: dd.DataFrame, layout: Layout) -> dict[str, np.ndarray]:
    """Real values of some rows, for each argument that receives values or categories."""
    rows = surveying.used(frame, layout)
    # A frame is often sorted: rows of one partition alone may all agree in some column.
    some = sorted({0, rows.npartitions // 2, rows.npartitions - 1})
    sample = _heads(rows.partitions[some], layout)
    if not len(sample):
        # These partitions may be empty, or hold nothing that can be used.
        surveying.check(surveying.survey(frame, layout).compute(), layout)
        sample = _heads(rows, layout)
    order = np.random.default_rng(0).permutation(len(sample))[:_SAMPLE]
    return {
        column.argument: sample[column.argument].to_numpy()[order]
        for column in layout.columns
        if column.kind != "group"
    }


def _heads(rows: dd.DataFrame, layout: Layout) -> pd.DataFrame:
    """Encode the first rows of each partition that have no missing or infinite value."""
    heads = rows.map_partitions(pd.DataFrame.head, _SAMPLE, meta=rows._meta).compute()
    encoded = encode(heads.dropna(), layout)
    numbers = encoded.select_dtypes("number")
    return encoded[np.isfinite(numbers).all(axis=1)]


def _check_draws(model: ShardModel, options: Options) -> None:
    """Refuse fewer draws than the precision of a shard can be estimated from."""
    draws = (options.num_samples or 0) * (options.num_chains or 0)
    needed = model.dim + 2 if options.weights == "full" else 3
    if draws <= needed:
        raise ValueError(
            f"{draws} draws a shard cannot give the precision of {model.dim} shared dimensions: "
            f"more than {needed} effective draws are needed. Raise num_samples or num_chains"
            + (", or use weights='diagonal'." if options.weights == "full" else ".")
        )
