"""What will be done, and whether it can be, before anything runs."""

from __future__ import annotations

import html
import textwrap
import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dask.dataframe as dd
import jax
import numpy as np
import pandas as pd

from .bindings import Bindings, bind
from .cluster import assign as sharding
from .cluster.arrays import Layout, encode
from .config import Options
from .shard.examples import Example, examples
from .shard.model import ROWS, ShardModel, Term
from .shard.reading import Reading, read_model

_SAMPLE = 64  # rows of the frame on which the model is traced


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
    survey: sharding.Survey
    assignment: sharding.Assignment
    example: Example

    @property
    def n_shards(self) -> int:
        """Number of shards."""
        return self.assignment.n_shards

    def sections(self) -> list[tuple[str, list[list[str]]]]:
        """The plan as titled tables, the first row of each its header."""
        return [
            ("fit", self._summary()),
            ("arguments of the model", self._arguments()),
            ("sites", self._sites()),
            ("shards", self._shards()),
        ]

    def notes(self) -> list[str]:
        """What the user should know before running."""
        notes = [
            f"{site.name}: {site.prior} prior, {site.note}" for site in self.model.shared if site.note
        ]
        largest = self.assignment.largest
        if largest is not None and self.n_shards > 1:
            notes.append(largest_group_message(self))
        if self.model.coupled and self.n_shards > 1:
            notes.append(coupled_message(self.model))
        return notes

    def __repr__(self) -> str:
        parts = []
        for title, (header, *rows) in self.sections():
            table = pd.DataFrame(rows, columns=header).to_string(index=False, justify="left")
            parts.append(f"{title}\n{textwrap.indent(table, '  ')}")
        for note in self.notes():
            parts.append(textwrap.fill(f"note: {note}", 96, subsequent_indent="  "))
        return "\n\n".join(parts)

    def _repr_html_(self) -> str:
        parts = ["<div>"]
        for title, (header, *rows) in self.sections():
            table = pd.DataFrame(rows, columns=header).to_html(index=False, border=0)
            parts.append(f"<h4>{html.escape(title)}</h4>{table}")
        parts += [f"<p><em>note:</em> {html.escape(note)}</p>" for note in self.notes()]
        return "".join([*parts, "</div>"])

    def _summary(self) -> list[list[str]]:
        options, chains = self.options, self.options.num_chains
        how = {
            "whole": "one shard, the full model",
            "divisions": "whole partitions, no shuffle",
            "hash": "shuffled by group, groups kept whole",
            "rows": "shuffled row by row",
        }[self.assignment.kind]
        method = options.method if self.n_shards > 1 else "NUTS on everything"
        if self.n_shards > 1:
            method += f", {options.weights} weights"
        return [
            ["what", "how"],
            ["method", method],
            ["shared dimensions", str(self.model.dim)],
            ["sharding", how],
            [
                "sampling",
                f"{options.num_warmup} warm-up + {options.num_samples} draws, "
                f"{chains} chain{'s' if chains != 1 else ''} a shard",
            ],
            ["precision", "float64" if self.model.x64 else "float32"],
        ]

    def _arguments(self) -> list[list[str]]:
        kinds = {"group": "group codes, local to a shard", "value": "values"}
        rows = [["argument", "column", "receives"]]
        for column in self.bindings.layout.columns:
            kind = kinds.get(column.kind, f"codes of {len(column.categories)} categories")
            rows.append([column.argument, str(column.column), kind])
        for name, level in self.bindings.counts.items():
            rows.append([name, "-", f"number of groups of {self.model.levels[level]!s}"])
        for name, number in self.bindings.constants.items():
            rows.append([name, "-", f"{number} (categories)"])
        rows += [[name, "-", "its default"] for name in self.bindings.defaults]
        return rows

    def _sites(self) -> list[list[str]]:
        rows = [["site", "role", "shape", "support", "distribution", "in each shard"]]
        weights = self.assignment.rows / self.assignment.rows.sum()
        power = _range(weights, "{:.3g}")
        share = "whole" if self.n_shards == 1 else f"to the power w = {power}"
        latent = {site.name: site for site in self.model.latents}
        for site in self.model.latents:
            shape = _shape(site.shape, site.level, site.axis, self.model)
            role = "shared" if site.level is None else "local"
            what = share if site.level is None else "whole (in one shard only)"
            rows.append([site.name, role, shape, site.support, site.prior, what])
        for term in self.model.terms:
            if term.name not in latent and not term.name.endswith("_log_det"):
                role = "observed" if term.level is not None else "prior term"
                what = "whole (in one shard only)" if term.level is not None else share
                rows.append([term.name, role, _level(term, self.model), "", "", what])
        rows += [[name, "deterministic", "", "", "", ""] for name in self.model.deterministics]
        return rows

    def _shards(self) -> list[list[str]]:
        assignment = self.assignment
        rows = [
            ["what", "number"],
            ["shards", f"{self.n_shards:,}"],
            ["rows", f"{self.survey.rows:,}"],
            ["rows a shard", _range(assignment.rows, "{:,.0f}")],
        ]
        if self.bindings.layout.by:
            about = "" if self.survey.groups_exact else "about "
            name = str(self.bindings.layout.by[0])
            rows.append([f"groups of {name}", f"{about}{self.survey.n_groups:,}"])
            rows.append(
                [f"groups of {name} a shard", about + _range(assignment.groups, "{:,.0f}")]
            )
        padded = int((assignment.rows.max() - assignment.rows).sum())
        share = padded / assignment.rows.sum()
        rows.append(["padding", f"{padded:,} rows ({share:.1%})" if padded else "none"])
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
    bindings = bind(frame, model, by, columns, bool(jax.config.jax_enable_x64))
    layout = bindings.layout
    values = _sample(frame, layout)
    codes = {c.argument: c.level for c in layout.columns if c.kind == "group"}
    offered = Reading(
        values=values,
        codes=codes,
        levels=tuple(map(str, layout.by)),
        counts=bindings.counts,
        constants=bindings.constants,
        columns={c.argument: str(c.column) for c in layout.columns},
    )
    read = read_model(model, offered)
    _check_draws(read, options)
    survey = sharding.survey(frame, layout, split_every=_at_least_two(options.split_every)).compute()
    sharding.check(survey, layout)
    assignment = sharding.assign(
        survey, frame, layout, n_shards=options.n_shards, rows_per_shard=options.rows_per_shard or 1
    )
    example = examples(values, codes, len(layout.by))[0]
    return Plan(options, bindings, read, survey, assignment, example)


def warn_before_sampling(plan: Plan) -> None:
    """Warn of what will cost accuracy or time whatever the draws are."""
    if plan.n_shards == 1:
        return
    if plan.assignment.largest is not None:
        warnings.warn(largest_group_message(plan), UserWarning, stacklevel=4)
    if plan.model.coupled:
        warnings.warn(coupled_message(plan.model), UserWarning, stacklevel=4)


def largest_group_message(plan: Plan) -> str:
    """Say which group is larger than a shard, and what that costs."""
    assert plan.assignment.largest is not None
    label, rows = plan.assignment.largest
    mean = plan.survey.rows / plan.n_shards
    return (
        f"group {label!r} of {plan.bindings.layout.by[0]!r} has {rows:,} rows, more than the "
        f"{mean:,.0f} rows of a balanced shard; a group is never split, so one shard is larger and "
        f"takes longer. {int(plan.survey.rows // rows)} shards or fewer would be balanced."
    )


def coupled_message(model: ShardModel) -> str:
    """Say that no product over shards is the full model's posterior."""
    return (
        f"the density of {', '.join(model.coupled)} in one group changes with other groups' rows "
        "or effects, so groups are not independent given the shared sites and the shards cannot "
        "give the full model's posterior. Centre and scale columns beforehand, over the whole "
        "frame; or fit with n_shards=1."
    )


def _sample(frame: dd.DataFrame, layout: Layout) -> dict[str, np.ndarray]:
    """Real values of some rows, for each argument that receives values or categories."""
    rows = sharding.used(frame, layout)
    head = _usable(rows.head(_SAMPLE, npartitions=1, compute=True), layout)
    if not len(head):
        # The first partition may be empty, or hold nothing that can be used.
        sharding.check(sharding.survey(frame, layout).compute(), layout)
        head = _usable(rows.head(_SAMPLE, npartitions=-1, compute=True), layout)
    return {
        name: encoded.to_numpy()
        for name, encoded in head.items()
        if name in {column.argument for column in layout.columns}
    }


def _usable(head: pd.DataFrame, layout: Layout) -> pd.DataFrame:
    """Encode the rows of a sample that have no missing or infinite value."""
    head = head.dropna()
    encoded = encode(head, layout)
    numbers = encoded.select_dtypes("number")
    return encoded[np.isfinite(numbers).all(axis=1)]


def _check_draws(model: ShardModel, options: Options) -> None:
    """Refuse fewer draws than the precision of a shard can be estimated from."""
    assert options.num_samples is not None and options.num_chains is not None
    draws = options.num_samples * options.num_chains
    needed = model.dim + 2 if options.weights == "full" else 3
    if options.n_shards != 1 and draws <= needed:
        raise ValueError(
            f"{draws} draws a shard cannot give the precision of {model.dim} shared dimensions: "
            f"more than {needed} effective draws are needed. Raise num_samples or num_chains"
            + (", or use weights='diagonal'." if options.weights == "full" else ".")
        )


def _at_least_two(number: int | None) -> int:
    return max(2, number or 2)


def _range(values: np.ndarray, pattern: str) -> str:
    low, high = pattern.format(values.min()), pattern.format(values.max())
    return low if low == high else f"{low} to {high}"


def _shape(shape: tuple[int, ...], level: int | None, axis: int, model: ShardModel) -> str:
    entries = [str(size) for size in shape]
    if level is not None:
        entries[axis] = "rows" if level == ROWS else model.levels[level]
    return f"({', '.join(entries)})"


def _level(term: Term, model: ShardModel) -> str:
    if term.level is None:
        return ""
    return "(rows)" if term.level == ROWS else f"({model.levels[term.level]})"
