"""Which columns does the model read? Those of the formula's terms, made of any partition alike.

What a formula has learned from all of the data is written down in a :class:`Frozen`, in terms of
JSON. From it and the formula the parser makes the same terms anywhere: in a worker, or months
later. A partition is then transformed row by row.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache, reduce
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from ..frame.values import category_codes
from .statistics import lacking_in, lacking_told, numbers_in, plain_columns, values_in
from .terms import (
    FormulaError,
    Terms,
    environment,
    formulae,
    is_categoric,
    levels_source,
    names_in,
    read,
    stateful_calls,
)


class Frozen(NamedTuple):
    """What a formula has learned from all rows.

    Attributes
    ----------
    text : str
        The formula.
    rows : dict
        Column -> values of a few rows, among which each level of each category is.
    orders : dict
        Column -> its categories in their order, where it has one.
    numbers : tuple of str
        Columns that hold numbers, not categories.
    samples : dict
        Transform that learns -> how many values it is taken of, their mean and sd, and values that
        stand for all.
    labels : dict
        Term -> what its columns are called, to know them again.
    """

    text: str
    rows: dict[str, list[Any]]
    orders: dict[str, list[Any]]
    numbers: tuple[str, ...]
    samples: dict[str, dict[str, Any]]
    labels: dict[str, list[str]] = {}  # noqa: RUF012

    def written(self) -> str:
        """Write it as JSON."""
        return json.dumps(self._asdict())

    @staticmethod
    def from_written(told: str) -> Frozen:
        """Read it again."""
        return Frozen(**json.loads(told))


class Design(NamedTuple):
    """A formula whose terms know their levels and what they have learned.

    Attributes
    ----------
    terms : Terms
        Evaluated on the rows of `Frozen`.
    meta : DataFrame
        Of these rows.
    """

    terms: Terms
    meta: pd.DataFrame

    def labels(self, term: Any) -> list[str]:
        """Name the columns of a term."""
        labels: list[str] = term.labels
        return labels

    def contrasts(self, component: Any) -> np.ndarray | None:
        """Return the codes of each level, ``(levels, columns)``; None of a component of numbers."""
        return component.contrast_matrix.matrix if is_categoric(component, self.meta) else None

    def columns(self, term: Any, rows: pd.DataFrame) -> np.ndarray:
        """Make the columns of a term, ``(rows, columns)``, of plain columns.

        Raises
        ------
        FormulaError
            If a row has a level that the formula does not know.
        """
        interact = importlib.import_module("formulae.utils").get_interaction_matrix
        env = environment()
        parts = [self._values(component, rows, env) for component in term.components]
        made = reduce(interact, parts) if len(parts) > 1 else parts[0]
        return np.asarray(made[:, np.newaxis] if made.ndim == 1 else made, np.float64)

    def _values(self, component: Any, rows: pd.DataFrame, env: Any) -> np.ndarray:
        contrasts = self.contrasts(component)
        if contrasts is None:
            return numbers_in(component, rows, env)
        source = levels_source(component)
        values = values_in(source, rows, env)
        codes = category_codes(values, tuple(component.levels))
        unknown = (codes < 0) & values.notna().to_numpy()
        if unknown.any():
            these = sorted(map(str, values[unknown].unique()))
            more = ", ..." if len(these) > 3 else ""
            raise FormulaError(
                f"{component.name}: {', '.join(these[:3])}{more} "
                f"{'is a level' if len(these) == 1 else 'are levels'} that the formula has not "
                f"been fitted to; known are {_few(component.levels)}: leave these rows out, or map "
                "them to a level that is known"
            )
        # A row without a value, and without a response, is left out where rows are counted.
        made: np.ndarray = np.vstack([contrasts, np.full(contrasts.shape[1], np.nan)])[codes]
        return made


def _few(levels: Sequence[Any]) -> str:
    shown = [str(level) for level in levels[:6]]
    return ", ".join(shown) + (", ..." if len(levels) > 6 else "")


@lru_cache(maxsize=16)
def _design_of(written: str) -> Design:
    frozen = Frozen.from_written(written)
    terms = read(frozen.text)
    rows = _prototype(frozen)
    for name, calls in stateful_calls(terms).items():
        for call in calls:
            call.stateful_transform = _fitted(call, frozen.samples[name], name)
    try:
        terms.model.eval(rows, environment())
    except FormulaError:
        raise
    except Exception as error:  # of formulae, or of NumPy within
        raise FormulaError(f"formula {frozen.text!r} cannot be evaluated: {error}") from error
    return Design(terms, rows)


def design_of(frozen: Frozen) -> Design:
    """Have the parser make the terms of a formula, with what they have learned.

    Raises
    ------
    FormulaError
        If it cannot, or if another version of the parser makes other terms.
    """
    formulae()
    design = _design_of(frozen.written())
    for name, term in terms_by_name(design.terms).items():
        known = frozen.labels.get(name)
        if frozen.labels and known != term.labels:
            version = getattr(formulae(), "__version__", "installed here")
            raise FormulaError(
                f"formula {frozen.text!r}: term {name!r} had columns {known} in the fit, and "
                f"formulae {version} makes {term.labels}: install the version that it was fitted "
                "with"
            )
    return design


def _prototype(frozen: Frozen) -> pd.DataFrame:
    """Make the rows on which the parser sees each level once."""
    columns = {}
    for name, values in frozen.rows.items():
        made: Any = values
        if name in frozen.orders:
            made = pd.Categorical(values, categories=frozen.orders[name], ordered=True)
        elif name not in frozen.numbers:
            made = pd.Categorical(values)
        columns[name] = pd.Series(made)
    return pd.DataFrame(columns)


def _fitted(call: Any, sample: Mapping[str, Any], name: str) -> Any:
    """Teach a transform what all the data say."""
    transforms = importlib.import_module("formulae.transforms").TRANSFORMS
    transform = transforms[call.callee]()
    values = np.asarray(sample["values"], np.float64)
    settings = [argument.eval({}, environment()) for argument in call.args[1:]]
    keywords = {key: value.eval({}, environment()) for key, value in call.kwargs.items()}
    if hasattr(transform, "std") and not sample["sd"] > 0:
        raise FormulaError(f"{name}: its column is {sample['mean']:g} in every row")
    try:
        transform(values, *settings, **keywords)
    except Exception as error:  # of formulae, SciPy or NumPy
        raise FormulaError(f"{name}: {error}") from error
    if hasattr(transform, "mean"):
        transform.mean = sample["mean"]
    if hasattr(transform, "std"):
        transform.std = sample["sd"]
    if hasattr(transform, "norms2"):
        # Sums of squares grow with the number of rows, of which the sample stands for all.
        ratio = sample["n"] / len(values)
        transform.norms2 = {power: ratio * norm for power, norm in transform.norms2.items()}
    return transform


# The columns of a frame


class Fed(NamedTuple):
    """How an argument of the model is fed.

    Attributes
    ----------
    argument : str
    kind : str
        "common", "grouped", "offset", "weight", "trials", "response", or "category".
    term : tuple of str
        The terms whose columns it receives; of a category the columns of the factor.
    columns : tuple of str
        What they are called.
    center : tuple of float
        What is taken off each.
    levels : tuple
        Of a category, or of an ordered response.
    """

    argument: str
    kind: str
    terms: tuple[str, ...]
    columns: tuple[str, ...]
    center: tuple[float, ...] = ()
    levels: tuple[Any, ...] = ()


class Columns(NamedTuple):
    """Which columns to make of a partition.

    Attributes
    ----------
    frozen : str
        What the formula has learned, as JSON.
    fed : tuple of Fed
    discrete : bool
        Whether the response is whole numbers.
    """

    frozen: str
    fed: tuple[Fed, ...]
    discrete: bool

    def make(self, partition: pd.DataFrame, prefix: str = "") -> pd.DataFrame:
        """Make the columns of a partition; those whose source is not there are left out.

        Runs on a worker.
        """
        design = design_of(Frozen.from_written(self.frozen))
        terms = design.terms
        rows, env = plain_columns(_named(partition, terms)), environment()
        lacking = lacking_in(rows, terms)
        if lacking:  # by the columns that the frame has: of those made here nobody knows the names
            raise FormulaError(f"formula {terms.text!r}: {lacking_told(lacking)}")
        by_name = terms_by_name(terms)
        made: dict[str, Any] = {}
        for fed in self.fed:
            names = [prefix + name for name in fed.columns]
            if fed.kind in ("common", "grouped"):
                columns = np.hstack([design.columns(by_name[n], rows) for n in fed.terms])
                columns = columns - np.asarray(fed.center) if fed.center else columns
                made |= {name: columns[:, i] for i, name in enumerate(names)}
            elif fed.kind == "offset":
                made[names[0]] = sum(numbers_in(one, rows, env) for one in terms.offsets)
            elif fed.kind == "category":
                made[names[0]] = factor_values(rows, fed.terms, fed.levels)
            else:
                values = self._left(fed, terms, rows, env)
                if values is not None:
                    made[names[0]] = values
        return pd.DataFrame(made, partition.index)

    def _left(self, fed: Fed, terms: Terms, rows: pd.DataFrame, env: Any) -> Any:
        """Evaluate what stands left of the tilde; None where its columns are not there."""
        response = terms.response
        expression = {"response": response.value, "trials": response.trials}.get(
            fed.kind, response.weight
        )
        if not set(names_in(expression)) <= set(rows.columns):
            return None
        if fed.kind != "response":
            return numbers_in(expression, rows, env)
        if fed.levels or response.level is not None:
            values = values_in(expression, rows, env)
            missing = values.isna().to_numpy()
            if response.level is not None:
                codes = (values == response.level).to_numpy(bool, na_value=False).astype(int)
            else:
                codes = category_codes(values, fed.levels)
                _check_levels(values[(codes < 0) & ~missing], response.name, fed.levels)
            return _whole(np.where(missing, np.nan, codes))
        numbers = numbers_in(expression, rows, env)
        return _whole(numbers) if self.discrete else numbers


def _named(partition: pd.DataFrame, terms: Terms) -> pd.DataFrame:
    """Take the columns that a formula names and the partition has, the index among them."""
    names = dict.fromkeys([*terms.columns, *terms.response_columns])
    columns = {name: partition[name] for name in names if name in partition.columns}
    index = partition.index
    if index.name in names and index.name not in columns:
        columns[str(index.name)] = index.to_series()
    lacking = [name for name in terms.columns if name not in columns]
    if lacking:
        raise FormulaError(
            f"formula {terms.text!r}: the frame has no column {lacking[0]!r}; its columns are "
            f"{', '.join(map(str, partition.columns))}"
        )
    return pd.DataFrame(columns, index)


def _check_levels(unknown: pd.Series, name: str, levels: Sequence[Any]) -> None:
    if len(unknown):
        raise FormulaError(
            f"response {name!r}: {unknown.iloc[0]} is none of the levels {_few(levels)}"
        )


def _whole(numbers: np.ndarray) -> Any:
    """Make whole numbers, some of which may be missing."""
    missing = np.isnan(numbers)
    if (numbers[~missing] != np.floor(numbers[~missing])).any():
        raise FormulaError("the response holds numbers that are not whole")
    made = pd.array(np.where(missing, 0, numbers).astype(np.int64), dtype="Int64")
    made[missing] = pd.NA
    return made


def factor_values(
    rows: pd.DataFrame, columns: Sequence[str], levels: Sequence[Any]
) -> pd.Categorical:
    """Make a categorical of the groups of a factor; of several columns their values, joined.

    Groups that are none of the levels have no code.
    """
    if len(columns) == 1:
        codes = category_codes(rows[columns[0]], tuple(levels))
        return pd.Categorical.from_codes(codes, categories=list(levels))
    joined = joined_groups(rows[list(columns)].itertuples(index=False, name=None))
    return pd.Categorical(joined, categories=list(levels))


def joined_groups(groups: Any) -> list[str]:
    """Name groups of several columns as formulae does: ``a:b``."""
    return [":".join(map(_name, group)) for group in groups]


def _name(value: Any) -> str:
    value = value.item() if isinstance(value, np.generic) else value
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def terms_by_name(terms: Terms) -> dict[str, Any]:
    """Return the terms that make columns, those within groups under the name of the group term."""
    return {term.name: term for term in terms.common} | {
        term.name: term.expr for term in terms.grouped
    }
