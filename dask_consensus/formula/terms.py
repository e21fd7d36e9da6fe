"""What a formula says, which response, which terms, which groups, and whether it may.

The parser is that of formulae, which Bambi uses. It makes a tree of calls and names, of which
nothing is run here but the transforms below: a formula that was read from a file can name columns
and these functions, and no other Python.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ..plan.bindings import similar

if TYPE_CHECKING:
    from types import ModuleType

STATEFUL = ("center", "scale", "standardize", "bs", "cr", "cc", "poly")
"""Transforms that learn from the data: from all of them, before any partition is transformed."""
_CATEGORICAL = ("C", "S", "T")
_NUMPY = (
    *("abs", "arcsinh", "ceil", "cos", "exp", "expm1", "floor", "log", "log10", "log1p", "log2"),
    *("sign", "sin", "sqrt", "square", "tan", "tanh"),
)
FUNCTIONS: dict[str, Any] = {name: getattr(np, name) for name in _NUMPY}
FUNCTIONS |= {f"np.{name}": function for name, function in FUNCTIONS.items()}
_ENCODINGS = ("Treatment", "Sum")
ALLOWED = (*STATEFUL, *_CATEGORICAL, "I", *_ENCODINGS, *_NUMPY)
PROPORTIONS = ("p", "prop", "proportion")
WEIGHTED = "weighted"
_INSTALL = "pip install 'dask_consensus[formulas]'"


class FormulaError(ValueError):
    """A formula that cannot be read, or says what no model here can do."""


@dataclass(frozen=True)
class Response:
    """What stands left of the tilde.

    Attributes
    ----------
    name : str
        As it is written.
    value : lazy expression
        Of formulae: evaluates to the response.
    level : text or number, optional
        The value that counts as success, of ``y['yes']``.
    trials, weight : lazy expression, optional
    """

    name: str
    value: Any
    level: Any = None
    trials: Any = None
    weight: Any = None


@dataclass(frozen=True)
class Terms:
    """A formula, read; its terms are those of formulae, not yet evaluated.

    Attributes
    ----------
    text : str
    model : formulae.terms.terms.Model
        Terms right of the tilde, offsets among them.
    response : Response
    offsets : tuple
        Lazy expressions that are added without a coefficient.
    columns : tuple of str
        Columns of the frame that are named right of the tilde, in order.
    response_columns : tuple of str
        And left of it.
    """

    text: str
    model: Any
    response: Response
    offsets: tuple[Any, ...]
    columns: tuple[str, ...]
    response_columns: tuple[str, ...]

    @property
    def intercept(self) -> bool:
        """Whether there is one."""
        return any(term.name == "Intercept" for term in self.model.common_terms)

    @property
    def common(self) -> list[Any]:
        """The terms with a coefficient for all rows, the intercept left out."""
        return [term for term in self.model.common_terms if term.name != "Intercept"]

    @property
    def grouped(self) -> list[Any]:
        """The terms with coefficients for each group."""
        return list(self.model.group_terms)

    @property
    def factors(self) -> list[tuple[str, ...]]:
        """The columns of each grouping factor, each factor once."""
        return list(dict.fromkeys(factor_of(term) for term in self.grouped))

    def designs(self) -> list[Any]:
        """Return the terms that make columns of numbers: common ones, then those within groups."""
        inner = [term.expr for term in self.grouped if term.expr.name != "Intercept"]
        return [*self.common, *inner]


def formulae() -> ModuleType:
    """Import the parser.

    Raises
    ------
    ImportError
        If it is not installed, with the command that does.
    """
    try:
        return importlib.import_module("formulae")
    except ImportError as error:
        raise ImportError(f"formulas need the package formulae, a parser: {_INSTALL}") from error


def read(text: str) -> Terms:
    """Read a formula, and refuse what cannot be a model here.

    Raises
    ------
    FormulaError
        If it does not parse, has no response, or calls what it may not.
    """
    formulae()
    model = _parsed(text)
    if model.response is None:
        raise FormulaError(f"formula {text!r} has no response: write 'y ~ x', not '~ x'")
    offsets: list[Any] = []
    for term in list(model.common_terms):
        for component in getattr(term, "components", ()):
            if _callee(component) == "offset":
                _check_alone(term, component, text)
                offsets.append(component.call.args[0])
                model.common_terms.remove(term)
    response = _response(model.response.term.components[0], text)
    terms = Terms(text, model, response, tuple(offsets), (), ())
    for component in _components(terms):
        _check(getattr(component, "call", None), text, inside=False)
    for expression in (*offsets, response.value, response.trials, response.weight):
        _check(expression, text, inside=False)
    for term in terms.grouped:
        factor_of(term)
    names = [name for component in _components(terms) for name in names_in(component)]
    names += [name for expression in offsets for name in names_in(expression)]
    names += [column for factor in terms.factors for column in factor]
    parts = (response.value, response.trials, response.weight)
    left = [name for expression in parts if expression is not None for name in names_in(expression)]
    columns = tuple(dict.fromkeys(names))
    return Terms(text, model, response, tuple(offsets), columns, tuple(dict.fromkeys(left)))


def check_columns(
    terms: Terms, available: Sequence[Hashable], *, with_response: bool = True
) -> None:
    """Refuse a formula that names a column the frame has not.

    Raises
    ------
    FormulaError
        Naming it, and one that is called nearly so.
    """
    response = terms.response_columns if with_response else ()
    for name in (*response, *terms.columns):
        if name not in available:
            what, (column, *_) = "response" if name in response else "term", name.split(".")
            meant = similar(name, available)
            if column in available:
                meant = f": it calls no methods. Make a column first, ddf['name'] = ddf.{name}"
            raise FormulaError(
                f"formula {terms.text!r}: the frame has no column {name!r} (a {what}){meant}; its "
                f"columns are {', '.join(map(str, available))}"
            )


def factor_of(term: Any) -> tuple[str, ...]:
    """Return the columns whose values make the groups of a term.

    Raises
    ------
    FormulaError
        If the factor is an expression, not a column.
    """
    columns = []
    for component in term.factor.components:
        call = getattr(component, "call", None)
        if call is not None and call.callee == "C" and len(call.args) == 1 and not call.kwargs:
            call = call.args[0]
        name = getattr(call, "name", None) if call is not None else component.name
        if not isinstance(name, str):
            raise FormulaError(
                f"({term.name}): groups are the values of columns, not of {component.name}: make "
                "it a column of the frame first"
            )
        columns.append(name)
    return tuple(columns)


def stateful_calls(terms: Terms) -> dict[str, list[Any]]:
    """Return the calls that learn from the data, each under how it reads; equal ones together."""
    found: dict[str, list[Any]] = {}
    for component in _components(terms):
        for call in _calls(getattr(component, "call", None)):
            if call.callee in STATEFUL:
                found.setdefault(str(call), []).append(call)
    return found


def is_categoric(component: Any, meta: pd.DataFrame) -> bool:
    """Tell whether a component has levels, not numbers."""
    call = getattr(component, "call", None)
    if call is not None:
        return bool(call.callee in _CATEGORICAL)
    dtype = meta[component.name].dtype
    categorical = isinstance(dtype, pd.CategoricalDtype)
    return categorical or not pd.api.types.is_numeric_dtype(dtype)


def levels_source(component: Any) -> Any:
    """Return the expression whose values are the levels of a categorical component."""
    call = getattr(component, "call", None)
    while call is not None and getattr(call, "callee", None) in _CATEGORICAL:
        call = call.args[0]
    if call is not None:
        return call
    resolver = importlib.import_module("formulae.terms.call_resolver")
    return resolver.LazyVariable(component.name)


def environment() -> Any:
    """Return all names that a formula may call, for formulae."""
    transforms = importlib.import_module("formulae.transforms").TRANSFORMS
    encodings = importlib.import_module("formulae.categorical").ENCODINGS
    names = {name: transforms[name] for name in (*STATEFUL, *_CATEGORICAL, "I")}
    numpy = {name: FUNCTIONS[name] for name in _NUMPY}
    made = importlib.import_module("formulae.environment")
    return made.Environment([{**numpy, **names, **encodings, "np": _Numpy()}])


class _Numpy:
    """The functions of NumPy that a formula may call as ``np.log``."""

    def __getattr__(self, name: str) -> Any:
        return FUNCTIONS[name]


def _parsed(text: str) -> Any:
    if not text.strip():
        raise FormulaError("the formula is empty: write 'y ~ x', or pass a model")
    if text.count("`") % 2:
        raise FormulaError(f"formula {text!r}: a backquote is not closed")
    if "||" in text.replace(" ", ""):
        raise FormulaError(
            f"formula {text!r}: effects of a group are independent unless priors= correlates them, "
            "so that '|' says what '||' does in lme4"
        )
    describe = importlib.import_module("formulae.model_description").model_description
    try:
        return describe(text)
    except Exception as error:  # of many types: scanner, parser, resolver
        raise FormulaError(
            f"formula {text!r} cannot be read ({error or type(error).__name__}): it is written as "
            "for lme4 or Bambi, 'y ~ x + C(day) + (1 + x | store)'"
        ) from error


def _response(component: Any, text: str) -> Response:
    call = getattr(component, "call", None)
    if call is None:
        level = component.reference
        resolver = importlib.import_module("formulae.terms.call_resolver")
        name = component.name if level is None else f"{component.name}[{level}]"
        return Response(name, resolver.LazyVariable(component.name), level)
    weight = None
    name = str(call)
    if call.callee == WEIGHTED:
        call, weight = _two_arguments(call, "response", "weight", text)
    trials = None
    if getattr(call, "callee", None) in PROPORTIONS:
        call, trials = _two_arguments(call, "successes", "trials", text)
    return Response(name, call, None, trials, weight)


def _two_arguments(call: Any, first: str, second: str, text: str) -> tuple[Any, Any]:
    if len(call.args) != 2 or call.kwargs:
        raise FormulaError(f"formula {text!r}: write {call.callee}({first}, {second})")
    return call.args[0], call.args[1]


def _check_alone(term: Any, component: Any, text: str) -> None:
    call = component.call
    if len(term.components) > 1 or len(call.args) != 1 or call.kwargs:
        raise FormulaError(f"formula {text!r}: offset(x) is a term of its own, of one argument")


def _components(terms: Terms) -> Iterator[Any]:
    for term in terms.designs():
        yield from term.components


def _callee(component: Any) -> str | None:
    call = getattr(component, "call", None)
    return None if call is None else call.callee


def _calls(expression: Any) -> Iterator[Any]:
    """Yield the calls of an expression, the outermost first."""
    if expression is None:
        return
    if hasattr(expression, "callee"):
        yield expression
        for argument in (*expression.args, *expression.kwargs.values()):
            yield from _calls(argument)
    elif hasattr(expression, "args"):
        for argument in expression.args:
            yield from _calls(argument)


def learns(component: Any) -> bool:
    """Tell whether a component is a transform that learns from the data."""
    return _callee(component) in STATEFUL


def names_in(expression: Any) -> list[str]:
    """Name the columns that an expression, or a component, refers to."""
    if hasattr(expression, "call"):
        return names_in(expression.call)
    if hasattr(expression, "callee") or hasattr(expression, "args"):
        keywords = getattr(expression, "kwargs", {}).values()
        skipped = _ENCODINGS if getattr(expression, "callee", "") in _CATEGORICAL else ()
        parts = [name for part in (*expression.args, *keywords) for name in names_in(part)]
        return [name for name in parts if name not in skipped]
    name = getattr(expression, "name", None)
    return [name] if isinstance(name, str) else []


def _check(expression: Any, text: str, *, inside: bool) -> None:
    """Refuse calls of anything but the transforms; `inside` one that learns from the data."""
    for call in _calls(expression):
        plain = call.callee.removeprefix("np.")
        if plain not in ALLOWED or (call.callee.startswith("np.") and plain not in _NUMPY):
            raise FormulaError(
                f"formula {text!r} calls {call.callee}(), and a formula may call "
                f"{', '.join(ALLOWED)} alone: make {call} a column of the frame first"
                f"{_instead(call.callee)}"
            )
        learned = call.callee in STATEFUL or call.callee in _CATEGORICAL
        if learned and (call is not expression or inside):
            raise FormulaError(
                f"formula {text!r}: {call.callee}() learns from the data and stands inside of "
                "another call: make what it is taken of a column of the frame first"
            )
        if call.callee in _CATEGORICAL and "levels" in call.kwargs:
            raise FormulaError(
                f"formula {text!r}: {call.callee}(levels=...) is not read; make the column an "
                "ordered categorical, whose order is kept"
            )
        _check_arguments(call, text)


def _check_arguments(call: Any, text: str) -> None:
    """Check the arguments of a transform that learns, which must be numbers."""
    if call.callee not in STATEFUL:
        return
    transforms = importlib.import_module("formulae.transforms").TRANSFORMS
    settings = [*call.args[1:], *call.kwargs.values()]
    try:
        inspect.signature(transforms[call.callee]()).bind(*call.args, **call.kwargs)
        numbers = all(not names_in(setting) for setting in settings)
    except TypeError as error:
        raise FormulaError(f"formula {text!r}: {call}: {error}") from None
    if not numbers or not call.args or not names_in(call.args[0]):
        raise FormulaError(
            f"formula {text!r}: {call}: the first argument is a column, or made of columns, and "
            "the others are numbers"
        )


def _instead(callee: str) -> str:
    known = {
        "hsgp": ". For a smooth curve write bs(x, df=5)",
        "tp": ". For a smooth curve write bs(x, df=5)",
        "binary": ". Of a response write y['yes'] ~ ...",
        "B": ". Of a response write y['yes'] ~ ...",
        "offset": "; offset(x) is a term of its own",
        "weighted": "; weighted(y, w) is what a response may be",
        "censored": ". Censored responses need a model: see 'Rows that are not plain' in the docs",
        "truncated": ". Truncated responses need a model: see 'Rows that are not plain'",
    }
    return known.get(callee, "")
