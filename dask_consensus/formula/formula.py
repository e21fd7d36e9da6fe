"""In which order a formula beside a frame becomes a NumPyro model and the columns that feed it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import dask.dataframe as dd
import numpy as np
import pandas as pd
from dask.base import tokenize

from ..cluster.tasks import broadcast
from .design import Columns, Design, Frozen, design_of, terms_by_name
from .families import FAMILIES, family_of, levels_of_response
from .groups import Grouping, grouping_of
from .numbers import Moments, add
from .priors import Scales, TermScale, default_priors, prior_of
from .source import Asked, Grouped, Written, compiled, written
from .statistics import Levels, Seen, columns_measured, look, plain_columns, with_index
from .terms import (
    FormulaError,
    Terms,
    check_columns,
    factor_of,
    is_categoric,
    learns,
    levels_source,
    names_in,
    read,
)

_VERSION = 1
_BESIDE = "formula: "  # before the names of columns that are set beside those of a frame


@dataclass(frozen=True)
class Formula:
    """A formula as a model: what `plan.formula` is.

    Attributes
    ----------
    frozen : Frozen
        What it has learned from all rows.
    asked : Asked
        Family, terms, priors, groups.
    """

    frozen: Frozen
    asked: Asked

    @cached_property
    def _written(self) -> Written:
        return written(self.asked)

    @property
    def text(self) -> str:
        """The formula."""
        return self.asked.text

    @property
    def source(self) -> str:
        """The model as NumPyro code, which runs as it stands."""
        return self._written.source

    @cached_property
    def model(self) -> Any:
        """The model."""
        return compiled(self.source)

    @property
    def by(self) -> list[str] | None:
        """Key columns, as `fit` takes them."""
        return list(self.asked.grouping.by) or None

    @property
    def columns(self) -> dict[str, Any]:
        """Argument of the model -> columns of :meth:`frame`, as `fit` takes them."""
        return self._columns("")

    @property
    def priors(self) -> dict[str, str]:
        """The prior of each parameter, as it may be given in `priors`."""
        return {name: str(prior) for name, prior in self.asked.priors.items()}

    def frame(self, frame: dd.DataFrame) -> dd.DataFrame:
        """Make the frame of the model's columns, lazily, row by row."""
        keys = [key for key in self.asked.grouping.by if key in frame.columns]
        meta = pd.concat([frame._meta[keys], self._meta(frame, "")], axis=1)
        return self._mapped(frame, "", keys, meta)

    def beside(self, frame: dd.DataFrame) -> tuple[dd.DataFrame, dict[str, Any], list[str]]:
        """Set the model's columns beside those of a frame.

        Returns
        -------
        frame : dask.dataframe.DataFrame
        columns : dict
            Argument of the model -> columns.
        added : list of str
            The columns that were added.
        """
        check_columns(read(self.text), _available(frame), with_response=False)
        added = self._meta(frame, _BESIDE)
        meta = pd.concat([frame._meta, added], axis=1)
        made = self._mapped(frame, _BESIDE, list(frame.columns), meta)
        there = self._columns(_BESIDE)
        fed = {name: its for name, its in there.items() if set(np.atleast_1d(its)) <= set(added)}
        return made, fed | self._written.keys, list(added)

    def written(self) -> str:
        """Write it down as JSON: no code, but the formula, and numbers."""
        asked = self.asked
        told = asked._asdict() | {
            "family": asked.family.name,
            "priors": self.priors,
            "grouped": [term._asdict() for term in asked.grouped],
            "grouping": asked.grouping._asdict(),
        }
        return json.dumps({"version": _VERSION, "asked": told, "frozen": self.frozen._asdict()})

    def _columns(self, prefix: str) -> dict[str, Any]:
        columns: dict[str, Any] = {}
        for fed in self._written.fed:
            names = [prefix + name for name in fed.columns]
            matrix = fed.kind == "common" or len(names) > 1
            columns[fed.argument] = names if matrix else names[0]
        return columns | self._written.keys

    def _make(self) -> Columns:
        return Columns(self.frozen.written(), self._written.fed, self.asked.family.discrete)

    def _meta(self, frame: dd.DataFrame, prefix: str) -> pd.DataFrame:
        """Say of which dtype the columns are; those that stand left of the tilde may not be."""
        columns = {}
        response = read(self.text).response
        sources = {
            "response": response.value,
            "trials": response.trials,
            "weight": response.weight,
        }
        for fed in self._written.fed:
            if fed.kind in sources and not set(names_in(sources[fed.kind])) <= set(frame.columns):
                continue
            for name in fed.columns:
                dtype: Any = np.dtype(np.float64)
                if fed.kind == "category":
                    dtype = pd.CategoricalDtype(list(fed.levels))
                elif fed.kind == "response" and self.asked.family.discrete:
                    dtype = "Int64"
                columns[prefix + name] = pd.Series([], dtype=dtype)
        return pd.DataFrame(columns).reindex(frame._meta.index)

    def _mapped(
        self, frame: dd.DataFrame, prefix: str, kept: list[Any], meta: pd.DataFrame
    ) -> dd.DataFrame:
        make = self._make()
        return frame.map_partitions(
            _made,
            broadcast(make),
            prefix,
            kept,
            meta=meta,
            enforce_metadata=False,
            token=f"formula-{tokenize(frame, make, prefix, kept)}",
        )


def _made(partition: pd.DataFrame, columns: Columns, prefix: str, kept: list[Any]) -> pd.DataFrame:
    """Make the model's columns beside those that are kept; runs on a worker."""
    return pd.concat([partition[kept], columns.make(partition, prefix)], axis=1)


def from_written(told: str) -> Formula:
    """Read a formula again, as :meth:`Formula.written` wrote it.

    The model's source is made anew of what is read, which is checked as a formula of the user's is.

    Raises
    ------
    FormulaError
        If it is of a later version, or damaged.
    """
    try:
        read_again = json.loads(told)
        if read_again["version"] != _VERSION:
            raise FormulaError(
                f"the tree's formula is of version {read_again['version']}, and this package reads "
                f"version {_VERSION}: install the version that it was fitted with"
            )
        asked = dict(read_again["asked"])
        grouping = asked["grouping"]
        asked["family"] = FAMILIES[asked["family"]]
        asked["priors"] = {key: prior_of(text, key) for key, text in asked["priors"].items()}
        asked["grouped"] = tuple(
            Grouped(term["name"], tuple(term["factor"]), tuple(term["columns"]))
            for term in asked["grouped"]
        )
        asked["grouping"] = Grouping(
            tuple(grouping["by"]),
            tuple((tuple(factor), int(level)) for factor, level in grouping["tiers"]),
            tuple(map(tuple, grouping["crossed"])),
            tuple(map(tuple, grouping["levels"])),
            grouping["told"],
        )
        asked["common"] = {name: tuple(its) for name, its in asked["common"].items()}
        asked["means"] = {name: tuple(map(float, its)) for name, its in asked["means"].items()}
        asked["levels"] = tuple(asked["levels"])
        frozen = Frozen(**read_again["frozen"])
        if read(frozen.text).text != asked["text"]:
            raise FormulaError("the tree's formula cannot be read: it has two")
        return Formula(frozen, Asked(**asked))
    except FormulaError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FormulaError(f"the tree's formula cannot be read: {error!r}") from error


def translate(
    frame: dd.DataFrame,
    text: str,
    *,
    family: str = "gaussian",
    link: str | None = None,
    priors: Mapping[str, Any] | None = None,
    split_every: int = 8,
) -> Formula:
    """Make a model of a formula and what the frame holds, in one pass over its columns.

    There is a second pass if a transform that learns stands in an interaction.

    Raises
    ------
    FormulaError
        If the formula cannot be read, or names what the frame has not; if the family cannot have
        the response; if a prior is none.
    """
    terms = read(text)
    kind, link = family_of(family, link)
    check_columns(terms, _available(frame))
    seen = look(frame, terms, split_every)
    levels = levels_of_response(kind, terms.response, seen)
    frozen = _frozen(frame, terms, seen)
    design = design_of(frozen)
    frozen = frozen._replace(
        labels={name: term.labels for name, term in terms_by_name(design.terms).items()}
    )
    scales = _scales(frame, design, frozen, seen, split_every)
    grouped = tuple(
        Grouped(term.name, factor_of(term), tuple(_labels(term.expr)))
        for term in design.terms.grouped
    )
    ordered = kind.values == "ordered"
    intercept = design.terms.intercept and not ordered
    of_response = seen.response
    real = kind.values == "real" and of_response is not None
    told = Scales(
        family=kind,
        link=link,
        mean=float(of_response.moments.mean) if real and of_response else 0.0,
        sd=float(of_response.moments.sd) if real and of_response else 1.0,
        common={term.name: scales[term.name] for term in design.terms.common},
        grouped={term.name: scales[term.name] for term in design.terms.grouped},
        intercept=intercept,
        levels=len(levels),
    )
    response = terms.response
    trials = None if response.trials is None else getattr(response.trials, "value", True)
    asked = Asked(
        text=text,
        family=kind,
        link=link,
        intercept=intercept,
        common={term.name: tuple(_labels(term)) for term in design.terms.common},
        means={name: scale.mean for name, scale in told.common.items()} if intercept else {},
        grouped=grouped,
        grouping=grouping_of(terms.factors, seen.factors),
        priors=default_priors(told, priors or {}),
        response=_site(response.value, priors=told),
        levels=tuple(levels),
        offset=bool(terms.offsets),
        weight=response.weight is not None,
        trials=trials,
    )
    return Formula(frozen, asked)


def _available(frame: dd.DataFrame) -> list[Any]:
    available = list(frame.columns)
    return [*available, frame.index.name] if frame.index.name is not None else available


def _labels(term: Any) -> list[str]:
    labels: list[str] = [] if term.name == "Intercept" else term.labels
    return labels


def _site(expression: Any, priors: Scales) -> str:
    """Name the observed site after the response, unless a parameter has that name."""
    name = str(getattr(expression, "name", expression))
    taken = {"Intercept", "Intercept_centred", "beta", "threshold", *priors.family.parameters}
    taken |= {*priors.common, *priors.grouped}
    return f"{name}_" if name in taken else name


def _frozen(frame: dd.DataFrame, terms: Terms, seen: Seen) -> Frozen:
    """Write down what the formula has learned."""
    meta = with_index(frame, terms)._meta
    base = [seen.base[name] for name in terms.columns]
    rows = [base]
    orders: dict[str, list[Any]] = {}
    components = {c.name: c for term in terms.designs() for c in term.components}
    for name, levels in seen.levels.items():
        source = levels_source(components[name])
        columns = list(dict.fromkeys(names_in(source)))
        for values in levels.rows.values():
            own = dict(zip(columns, values, strict=True))
            rows.append([own.get(c, b) for c, b in zip(terms.columns, base, strict=True)])
        if levels.orders:
            orders[columns[0]] = _ordered(levels)
    numbers = tuple(
        name
        for name in terms.columns
        if pd.api.types.is_numeric_dtype(meta[name].dtype)
        and not isinstance(meta[name].dtype, pd.CategoricalDtype)
    )
    samples = {
        name: {
            "n": found.moments.n,
            "mean": float(found.moments.mean),
            "sd": float(found.moments.sd),
            "values": found.sample().tolist(),
        }
        for name, found in seen.learned.items()
    }
    by_column = {name: [row[i] for row in rows] for i, name in enumerate(terms.columns)}
    return Frozen(terms.text, by_column, orders, numbers, samples)


def _ordered(levels: Levels) -> list[Any]:
    """Order the levels that there are as the partitions do, if one of them lists all."""
    longest = max(levels.orders, key=len)
    if set(levels.rows) <= set(longest):
        return [level for level in longest if level in levels.rows]
    return sorted(levels.rows, key=lambda level: (isinstance(level, str), level))


# What is known of each term's columns


def _scales(
    frame: dd.DataFrame, design: Design, frozen: Frozen, seen: Seen, split_every: int
) -> dict[str, TermScale]:
    """Find mean and sd of the columns of each term, from what is known, or by a second pass."""
    scales: dict[str, TermScale] = {}
    again: dict[str, Any] = {}
    for name, term in terms_by_name(design.terms).items():
        if term.name == "Intercept":
            scales[name] = TermScale((), (), 0.0, False, False)
        elif not any(learns(component) for component in term.components):
            scales[name] = _of_cells(design, term, seen)
        elif len(term.components) == 1:
            scales[name] = _of_sample(term, frozen)
        else:
            again[name] = term
    if again:
        measure = _Measure(frozen.written(), tuple(again))
        measured = columns_measured(with_index(frame, design.terms), measure, split_every)
        for name, (columns, sums) in _pairs(measured).items():
            scales[name] = _scale(again[name], design, columns.mean, columns.sd, float(sums.sd))
    return scales


def _pairs(found: Mapping[str, Moments]) -> dict[str, tuple[Moments, Moments]]:
    names = [name for name in found if not name.startswith("sum of ")]
    return {name: (found[name], found[f"sum of {name}"]) for name in names}


@dataclass(frozen=True)
class _Measure:
    """Makes the columns of some terms, to be measured; sent to workers."""

    frozen: str
    names: tuple[str, ...]

    def __call__(self, partition: pd.DataFrame) -> dict[str, np.ndarray]:
        """Make them of a partition, and their sums, of rows that lack nothing."""
        design = design_of(Frozen.from_written(self.frozen))
        terms = design.terms
        used = partition[list(dict.fromkeys([*terms.columns, *terms.response_columns]))].dropna()
        rows, by_name = plain_columns(used), terms_by_name(terms)
        columns = {name: design.columns(by_name[name], rows) for name in self.names}
        return columns | {f"sum of {name}": its.sum(axis=1) for name, its in columns.items()}


def _of_cells(design: Design, term: Any, seen: Seen) -> TermScale:
    """Add up the moments of the cells of a term's levels."""
    cells = _cells(design, term, seen)
    coded: dict[str, tuple[np.ndarray, int]] = {}
    for component in term.components:
        codes_of_levels = design.contrasts(component)
        if codes_of_levels is not None:
            coded[component.name] = codes_of_levels, len(coded)
    n = sum(moments.n for moments in cells.values())
    vectors, weights, means, squares = [], [], [], []
    for cell, moments in cells.items():
        vector = np.ones(1)
        for component in term.components:
            if component.name in coded:
                matrix, i = coded[component.name]
                row = matrix[component.levels.index(cell[i])]
                vector = np.outer(vector, row).ravel()
        vectors.append(vector)
        weights.append(moments.n / n)
        means.append(float(moments.mean))
        squares.append(float(moments.squares) / n)
    codes, share = np.array(vectors, float), np.array(weights)
    at, spread = np.array(means), np.array(squares)

    def measured(code: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with np.errstate(invalid="ignore"):
            values = code * at[:, np.newaxis]
            mean = share @ values
            return mean, np.sqrt(share @ (values - mean) ** 2 + spread @ code**2)

    mean, sd = measured(codes)
    sum_sd = float(measured(codes.sum(axis=1, keepdims=True))[1][0])
    return _scale(term, design, mean, sd, sum_sd)


def _cells(design: Design, term: Any, seen: Seen) -> dict[Any, Moments]:
    """Return the cells of a term; one that the parser has added has those of another, merged."""
    levels = [c.name for c in term.components if is_categoric(c, design.meta)]
    numbers = {c.name for c in term.components} - set(levels)
    for table in seen.tables.values():
        if set(levels) <= set(table.levels) and numbers == set(table.numbers):
            where = [table.levels.index(name) for name in levels]
            together: dict[Any, list[Moments]] = {}
            for cell, moments in table.cells.items():
                together.setdefault(tuple(cell[i] for i in where), []).append(moments)
            return {cell: add(parts) for cell, parts in together.items()}
    raise FormulaError(f"term {term.name!r}: its columns cannot be made; write it out in full")


def _scale(term: Any, design: Design, mean: Any, sd: Any, sum_sd: float) -> TermScale:
    categoric = all(is_categoric(component, design.meta) for component in term.components)
    several = len(term.components) > 1
    return TermScale(
        tuple(np.ravel(mean).tolist()), tuple(np.ravel(sd).tolist()), sum_sd, categoric, several
    )


def _of_sample(term: Any, frozen: Frozen) -> TermScale:
    """Measure the columns of a transform where what stands for all rows is."""
    call = term.components[0].call
    sample = frozen.samples[str(call)]
    values = np.asarray(sample["values"], float)
    settings = [argument.eval({}, None) for argument in call.args[1:]]
    keywords = {key: value.eval({}, None) for key, value in call.kwargs.items()}
    columns = np.asarray(call.stateful_transform(values, *settings, **keywords))
    columns = columns.reshape(len(values), -1)
    mean, sd = columns.mean(axis=0), columns.std(axis=0)
    if hasattr(call.stateful_transform, "mean"):  # of center and scale all is known
        by = getattr(call.stateful_transform, "std", 1.0)
        mean, sd = np.zeros(1), np.array([sample["sd"] / by])
    sums = float(columns.sum(axis=1).std())
    return TermScale(tuple(mean.tolist()), tuple(sd.tolist()), sums, False, False)
