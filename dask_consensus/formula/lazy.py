"""What happens when a formula is fitted, and when its tree is met again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import dask.dataframe as dd

from ..cluster.client import followed
from ..config import Options
from ..fit import LazyFit, working_with
from ..plan.plan import Plan
from ..plan.show import not_run
from ..update import LazyUpdate
from .formula import Formula, from_written, translate
from .terms import FormulaError

if TYPE_CHECKING:
    import xarray as xr

    from ..plan.added import PlannedUpdate

_ATTRIBUTE = "formula"


@dataclass(frozen=True, repr=False)
class LazyFormula:
    """A fit of a formula that has run nothing yet; what ``fit(..., compute=False)`` returns.

    Attributes
    ----------
    frame : dask.dataframe.DataFrame
    text : str
        The formula.
    family, link, priors, progress
        As given to `fit`.
    options : Options
    update : tuple of DataTree and DataFrame or None, optional
        The earlier fit whose formula is meant, with all that it has learned, and its rows.
    """

    frame: dd.DataFrame
    text: str
    family: str
    link: str | None
    priors: Mapping[str, Any] | None
    options: Options
    progress: bool | None = None
    update: tuple[xr.DataTree, dd.DataFrame | None] | None = None

    def __repr__(self) -> str:
        return not_run(self, repr(self.text))

    def plan(self) -> Plan | PlannedUpdate:
        """Look at the data, write the model, read it, and count the rows; sample nothing."""
        with working_with(self.options), followed(self.progress, leave=False):
            formula = self._formula()
            planned = self._lazy(formula).plan()
        return replace(planned, formula=formula) if isinstance(planned, Plan) else planned

    def compute(self) -> xr.DataTree:
        """Run the fit."""
        with working_with(self.options):
            with followed(self.progress, leave=False):
                formula = self._formula()
            return self._lazy(formula).compute()

    def _formula(self) -> Formula:
        if self.update is not None:
            return self._earlier(self.update[0])
        return translate(
            self.frame,
            self.text,
            family=self.family,
            link=self.link,
            priors=self.priors,
            split_every=self.options.split_every,
        )

    def _earlier(self, tree: xr.DataTree) -> Formula:
        """Return the formula of an earlier fit: priors and levels stay as they were."""
        formula = formula_of(tree)
        if formula is None or formula.text != self.text:
            fitted = "a model" if formula is None else repr(formula.text)
            raise FormulaError(
                f"update=: the earlier fit was of {fitted}, not of {self.text!r}: pass that"
            )
        return formula

    def _lazy(self, formula: Formula) -> LazyFit | LazyUpdate:
        frame, by, columns = formula.frame(self.frame), formula.by, formula.columns
        given = frame, formula.model, by, columns, self.options, self.progress
        told = {_ATTRIBUTE: formula.written()}
        if self.update is None:
            return LazyFit(*given, told)
        tree, old = self.update
        return LazyUpdate(*given, tree, None if old is None else formula.frame(old), told)


@dataclass(frozen=True)
class Again:
    """A model met again, beside the frame whose rows it is asked about.

    Attributes
    ----------
    frame : dask.dataframe.DataFrame
        The rows, with the columns that a formula adds.
    model : callable
    columns : mapping or None
    added : list of str
        The columns that the answer shall not have.
    """

    frame: dd.DataFrame
    model: Callable[..., Any]
    columns: Mapping[str, Any] | None
    added: list[str]

    def without(self, answer: dd.DataFrame) -> dd.DataFrame:
        """Drop what was added."""
        return answer.drop(columns=self.added) if self.added else answer


def formula_of(tree: xr.DataTree) -> Formula | None:
    """Read the formula that a tree was fitted by; None if it was a model."""
    told = tree.attrs.get(_ATTRIBUTE)
    return None if told is None else from_written(told)


def met_again(
    frame: dd.DataFrame,
    tree: xr.DataTree,
    model: Callable[..., Any] | str | None,
    columns: Mapping[str, Any] | None,
) -> Again:
    """Return what a tree was fitted by: the model that is given, or its own formula's.

    Raises
    ------
    FormulaError
        If neither is there, or another formula is given.
    """
    if callable(model):
        return Again(frame, model, columns, [])
    formula = formula_of(tree)
    if formula is None:
        what = "model" if model is None else f"formula {model!r}"
        raise FormulaError(
            f"the tree was fitted by a model, not by a formula ({what} given): pass that model"
            if model is not None
            else "the tree was fitted by a model: pass it after the tree"
        )
    if model is not None and model != formula.text:
        raise FormulaError(f"the tree was fitted by {formula.text!r}, not by {model!r}")
    if columns:
        raise FormulaError("columns= is for models: a formula names its columns; rename those")
    beside, fed, added = formula.beside(frame)
    return Again(beside, formula.model, fed, added)
