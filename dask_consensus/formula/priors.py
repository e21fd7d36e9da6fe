"""Which priors has a formula? Bambi's, scaled by what the data say, or those that are given.

Slopes are normal about zero with 2.5 sds of the response over those of the column, in a logistic
model with one over the sd; the intercept, at the mean of all columns, is normal about the mean of
the response (Bambi 0.17, `bambi/priors/scaler.py`; the conventions are those of Gelman, Jakulin,
Pittau and Su 2008, and of rstanarm). Where there is no sd to go by, the response's is one.
"""

from __future__ import annotations

import ast
import difflib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from .families import Family
from .terms import FormulaError

_WIDE = 2.5  # sds of the response for one of a column

_PARAMETERS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    # NumPyro's names, and PyMC's, by which Bambi has them
    "Normal": (("loc", "scale"), ("mu", "sigma")),
    "StudentT": (("df", "loc", "scale"), ("nu", "mu", "sigma")),
    "Cauchy": (("loc", "scale"), ("alpha", "beta")),
    "Laplace": (("loc", "scale"), ("mu", "b")),
    "Logistic": (("loc", "scale"), ("mu", "s")),
    "HalfNormal": (("scale",), ("sigma",)),
    "HalfCauchy": (("scale",), ("beta",)),
    "HalfStudentT": (("df", "scale"), ("nu", "sigma")),
    "Exponential": (("rate",), ("lam",)),
    "Gamma": (("concentration", "rate"), ("alpha", "beta")),
    "InverseGamma": (("concentration", "rate"), ("alpha", "beta")),
    "LogNormal": (("loc", "scale"), ("mu", "sigma")),
    "Uniform": (("low", "high"), ("lower", "upper")),
    "Beta": (("concentration1", "concentration0"), ("alpha", "beta")),
    "LKJ": (("concentration",), ("eta",)),
}
_POSITIVE = {
    *("HalfNormal", "HalfCauchy", "HalfStudentT", "Exponential", "Gamma", "InverseGamma"),
    *("LogNormal", "Uniform", "Beta"),
}
_SHAPES = {"scale", "rate", "df", "concentration", "concentration1", "concentration0"}


class Prior(NamedTuple):
    """A distribution by its name, and its parameters; a list of numbers is one for each column."""

    name: str
    parameters: tuple[Any, ...]

    def __str__(self) -> str:
        return f"{self.name}({', '.join(_text(value) for value in self.parameters)})"


class TermScale(NamedTuple):
    """What is known of the columns of a term.

    Attributes
    ----------
    mean, sd : tuple of float
        Of each column.
    sum_sd : float
        Of the sum of all of them.
    categoric : bool
        Whether all of its components have levels.
    interaction : bool
    """

    mean: tuple[float, ...]
    sd: tuple[float, ...]
    sum_sd: float
    categoric: bool
    interaction: bool


def prior_of(given: Any, key: str) -> Prior:
    """Read a prior: ``"Normal(0, 1)"``, or a distribution of NumPyro.

    Raises
    ------
    FormulaError
        If it is none, naming it by its key.
    """
    if isinstance(given, Prior):
        return given
    if not isinstance(given, str):
        name = type(given).__name__
        if name == "LKJCholesky":
            name = "LKJ"
        if name not in _PARAMETERS:
            raise FormulaError(
                f"priors={{{key!r}: ...}}: {name} is none of {', '.join(_PARAMETERS)}; edit the "
                "source of the model (plan.model_source) for another"
            )
        parameters = [np.asarray(getattr(given, one)) for one in _PARAMETERS[name][0]]
        return _checked(Prior(name, tuple(value.tolist() for value in parameters)), key)
    try:
        call = ast.parse(given.strip().removeprefix("dist."), mode="eval").body
        assert isinstance(call, ast.Call)
        assert isinstance(call.func, ast.Name)
        name = call.func.id
        values = [ast.literal_eval(argument) for argument in call.args]
        named = {str(k.arg): ast.literal_eval(k.value) for k in call.keywords}
    except (SyntaxError, ValueError, AssertionError):
        raise FormulaError(
            f"priors={{{key!r}: {given!r}}} is no distribution: write it as 'Normal(0, 1)', with "
            "numbers"
        ) from None
    if name not in _PARAMETERS:
        close = difflib.get_close_matches(name, _PARAMETERS, n=1)
        meant = f" (did you mean {close[0]}?)" if close else ""
        raise FormulaError(
            f"priors={{{key!r}: {given!r}}}: {name} is none of {', '.join(_PARAMETERS)}{meant}"
        )
    ours, theirs = _PARAMETERS[name]
    if len(values) > len(ours):
        raise FormulaError(f"priors={{{key!r}: {given!r}}}: {name} has {', '.join(ours)} alone")
    by_name = dict(zip(ours, values, strict=False))
    for parameter, value in named.items():
        place = next((i for i, n in enumerate(ours) if parameter in (n, theirs[i])), None)
        if place is None or ours[place] in by_name:
            raise FormulaError(
                f"priors={{{key!r}: {given!r}}}: {name} has {', '.join(ours)}, each once, not "
                f"{parameter!r}"
            )
        by_name[ours[place]] = value
    lacking = [parameter for parameter in ours if parameter not in by_name]
    if lacking:
        raise FormulaError(f"priors={{{key!r}: {given!r}}}: {name} also needs {lacking[0]!r}")
    return _checked(Prior(name, tuple(by_name[parameter] for parameter in ours)), key)


def _checked(prior: Prior, key: str) -> Prior:
    """Refuse parameters that are no numbers, or out of their range."""
    for parameter, value in zip(_PARAMETERS[prior.name][0], prior.parameters, strict=True):
        numbers = np.asarray(value)
        right = numbers.dtype.kind in "iuf" and numbers.ndim < 2 and np.isfinite(numbers).all()
        if not right or (parameter in _SHAPES and not (numbers > 0).all()):
            what = "a number above 0" if parameter in _SHAPES else "a number"
            raise FormulaError(
                f"priors={{{key!r}: {prior}}}: {parameter} must be {what}, not {value!r}"
            )
    if prior.name == "Uniform" and not np.all(np.less(*prior.parameters)):
        raise FormulaError(f"priors={{{key!r}: {prior}}}: low must be below high")
    return prior


class Scales(NamedTuple):
    """What the priors are scaled on."""

    family: Family
    link: str
    mean: float  # of the response, where it is a real number; else 0
    sd: float  # likewise; else 1
    common: Mapping[str, TermScale]
    grouped: Mapping[str, TermScale]  # term -> its columns; none for an intercept
    intercept: bool
    levels: int  # of an ordered response


def default_priors(scales: Scales, given: Mapping[str, Any]) -> dict[str, Prior]:
    """Return the prior of every parameter, under the name of its site or term.

    Raises
    ------
    FormulaError
        If `given` names what there is not, or is no prior; or a column is constant.
    """
    priors: dict[str, Prior] = {}
    own = {key: prior_of(value, key) for key, value in given.items()}
    family = scales.family
    logistic = family.values in ("binary", "successes") and scales.link in ("logit", "probit")
    sigmas, means = [], []
    for name, term in scales.common.items():
        _check_varies(name, term)
        sigma = _slopes(scales, term, logistic=logistic)
        priors[name] = Prior("Normal", (0.0, _one_or_all(sigma)))
        if name not in own:
            sigmas.append(sigma)
            means.append(np.asarray(term.mean))
    at_zero = _WIDE * scales.sd
    if sigmas:
        at_zero = float(
            np.sqrt(at_zero**2 + np.concatenate(sigmas) ** 2 @ np.concatenate(means) ** 2)
        )
    if scales.intercept:
        priors["Intercept"] = Prior("Normal", (0.0, 1.5) if logistic else (scales.mean, at_zero))
    for name, term in scales.grouped.items():
        expression = name.partition("|")[0]
        if expression == "1":
            priors[f"{name}_sigma"] = Prior("HalfNormal", (at_zero,))
        else:
            _check_varies(name, term)
            sigma = _WIDE * scales.sd / np.asarray(term.sd)
            priors[f"{name}_sigma"] = Prior("HalfNormal", (_one_or_all(sigma),))
    for name, text in family.parameters.items():
        priors[name] = prior_of(text.format(sd=repr(scales.sd)), name)
    if family.values == "ordered":
        middle = np.round(np.linspace(-2, 2, scales.levels - 1), 2)
        priors["threshold"] = Prior("Normal", (middle.tolist(), 1.0))
    return _with_own(priors, own, scales)


def _one_or_all(numbers: np.ndarray) -> float | list[float]:
    """Write numbers of columns as one, where there is one column."""
    listed: list[float] = numbers.tolist()
    return listed if len(listed) > 1 else listed[0]


def correlations(scales_grouped: Sequence[str]) -> list[str]:
    """Name the correlations that a prior may be given of: of factors with several effects."""
    effects: dict[str, int] = {}
    for name in scales_grouped:
        factor = name.partition("|")[2]
        effects[factor] = effects.get(factor, 0) + 1
    return [f"cor|{factor}" for factor in effects]


def _with_own(
    priors: dict[str, Prior], own: Mapping[str, Prior], scales: Scales
) -> dict[str, Prior]:
    allowed = [*priors, *correlations(list(scales.grouped))]
    for key, prior in own.items():
        if key not in allowed:
            close = difflib.get_close_matches(key, allowed, n=1)
            meant = f" (did you mean {close[0]!r}?)" if close else ""
            raise FormulaError(
                f"priors names {key!r}, which the formula has not{meant}; it has "
                f"{', '.join(map(repr, allowed))}"
            )
        if (prior.name == "LKJ") != key.startswith("cor|"):
            needed = "'LKJ(1)'" if key.startswith("cor|") else "no LKJ, which is of correlations"
            raise FormulaError(f"priors={{{key!r}: {prior}}}: needs {needed}")
        positive = key.endswith("_sigma") or key in scales.family.parameters
        below = prior.name == "Uniform" and np.min(prior.parameters[0]) < 0
        if positive and (prior.name not in _POSITIVE or below):
            raise FormulaError(
                f"priors={{{key!r}: {prior}}}: this parameter is positive; take one of "
                f"{', '.join(sorted(_POSITIVE))}"
            )
        if key == "threshold" and prior.name != "Normal":
            raise FormulaError("priors={'threshold': ...} must be Normal")
        _check_length(key, prior, priors.get(key))
    return priors | dict(own)


def _check_length(key: str, prior: Prior, default: Prior | None) -> None:
    """Refuse a list of another length than the term has columns."""
    columns = 1
    if default is not None:
        columns = max((np.size(value) for value in default.parameters), default=1)
    for value in prior.parameters:
        if np.ndim(value) and np.size(value) != columns:
            raise FormulaError(
                f"priors={{{key!r}: {prior}}} has {np.size(value)} numbers for {columns} columns"
            )


def _slopes(scales: Scales, term: TermScale, *, logistic: bool) -> np.ndarray:
    """Return the sd of the coefficient of each column."""
    sd = np.asarray(term.sd)
    if not logistic:
        return np.asarray(_WIDE * scales.sd / sd)
    if term.categoric:
        return np.ones(len(sd))
    if term.interaction and len(sd) > 1:
        return np.full(len(sd), 1 / term.sum_sd)
    return np.asarray(1 / sd)


def _check_varies(name: str, term: TermScale) -> None:
    if not np.isfinite(term.sd).all():
        raise FormulaError(
            f"term {name!r} has values that are not finite, the logarithm of 0 perhaps: leave "
            "these rows out, or make it a column of the frame that has none"
        )
    if not all(sd > 0 for sd in term.sd):
        raise FormulaError(
            f"term {name!r} has a column that is the same in every row (sd 0), which no "
            "coefficient can be told of: leave it out, or join levels"
        )


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_text(one) for one in value) + "]"
    return number(value)


def number(value: Any) -> str:
    """Write a number as Python reads it, with as many digits as single precision needs."""
    short = f"{float(value):.9g}"
    return short if any(mark in short for mark in ".einf") else f"{short}.0"
