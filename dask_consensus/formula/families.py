"""Which families of responses there are, and what each is in NumPyro."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from .statistics import Seen
from .terms import FormulaError, Response

Values = Literal["real", "binary", "counts", "successes", "positive", "unit", "ordered"]

INVERSE_LINKS = {
    "identity": "eta",
    "log": "jnp.exp(eta)",
    "inverse": "1 / eta",
    "logit": "jax.nn.sigmoid(eta)",
    "probit": "jax.scipy.stats.norm.cdf(eta)",
    "cloglog": "-jnp.expm1(-jnp.exp(eta))",
}
_BINARY = ("logit", "probit", "cloglog")
_SD = "HalfStudentT(4, {sd})"  # of the response


class Family(NamedTuple):
    """A family of responses.

    Attributes
    ----------
    name : str
    values : str
        What a response may be.
    links : tuple of str
        The default first.
    parameters : dict
        Others than the mean -> their default prior, as Bambi has it.
    likelihood : dict
        Link -> the distribution in NumPyro, of ``eta``, or of ``mean``; "" is any other link.
    """

    name: str
    values: Values
    links: tuple[str, ...]
    parameters: Mapping[str, str]
    likelihood: Mapping[str, str]

    def distribution(self, link: str) -> str:
        """Write the distribution of a row, of ``eta`` and the family's parameters."""
        if link in self.likelihood:
            return self.likelihood[link]
        return self.likelihood[""].format(mean=INVERSE_LINKS[link])

    @property
    def discrete(self) -> bool:
        """Whether the response is a whole number."""
        return self.values in ("binary", "counts", "successes", "ordered")


def _family(
    name: str,
    values: Values,
    links: tuple[str, ...],
    likelihood: Mapping[str, str],
    **parameters: str,
) -> Family:
    return Family(name, values, links, parameters, likelihood)


FAMILIES = {
    family.name: family
    for family in (
        _family(
            "gaussian",
            "real",
            ("identity", "log"),
            {"": "dist.Normal({mean}, sigma)"},
            sigma=_SD,
        ),
        _family(
            "student",
            "real",
            ("identity", "log"),
            {"": "dist.StudentT(nu, {mean}, sigma)"},
            sigma=_SD,
            nu="Gamma(2, 0.1)",
        ),
        _family(
            "bernoulli",
            "binary",
            _BINARY,
            {"logit": "dist.Bernoulli(logits=eta)", "": "dist.Bernoulli(probs={mean})"},
        ),
        _family(
            "binomial",
            "successes",
            _BINARY,
            {
                "logit": "dist.Binomial(total_count=trials, logits=eta)",
                "": "dist.Binomial(total_count=trials, probs={mean})",
            },
        ),
        _family("poisson", "counts", ("log",), {"": "dist.Poisson({mean})"}),
        _family(
            "negativebinomial",
            "counts",
            ("log",),
            {"": "dist.NegativeBinomial2({mean}, alpha)"},
            alpha="HalfCauchy(1)",
        ),
        _family(
            "gamma",
            "positive",
            ("log", "inverse"),
            {
                "log": "dist.Gamma(alpha, alpha * jnp.exp(-eta))",
                "inverse": "dist.Gamma(alpha, alpha * eta)",
            },
            alpha="HalfCauchy(1)",
        ),
        _family(
            "beta",
            "unit",
            _BINARY,
            {"": "dist.BetaProportion({mean}, kappa)"},
            kappa="HalfCauchy(1)",
        ),
        _family("ordered", "ordered", ("logit",), {"": "dist.OrderedLogistic(eta, threshold)"}),
    )
}
_ALSO = {
    "t": "student",
    "studentt": "student",
    "normal": "gaussian",
    "negbinomial": "negativebinomial",
    "nbinom": "negativebinomial",
    "cumulative": "ordered",
    "logistic": "bernoulli",
}


def family_of(name: str, link: str | None) -> tuple[Family, str]:
    """Find a family by its name, or one that Bambi or brms has for it, and its link.

    Raises
    ------
    FormulaError
        If there is none such, with those that there are.
    """
    plain = str(name).lower().replace("_", "").replace(" ", "").replace("-", "")
    family = FAMILIES.get(_ALSO.get(plain, plain))
    if family is None:
        close = difflib.get_close_matches(plain, [*FAMILIES, *_ALSO], n=1)
        meant = f" (did you mean {_ALSO.get(close[0], close[0])!r}?)" if close else ""
        raise FormulaError(f"family={name!r} is none of {', '.join(FAMILIES)}{meant}")
    link = link or family.links[0]
    if link not in family.links:
        raise FormulaError(
            f"link={link!r}: family {family.name!r} has {' or '.join(map(repr, family.links))}"
        )
    return family, link


def levels_of_response(family: Family, response: Response, seen: Seen) -> list[Any]:
    """Return the levels of an ordered response; none of another; and refuse what is no such.

    Raises
    ------
    FormulaError
        If the response holds values that the family has no density for.
    """
    if (response.trials is None) == (family.values == "successes"):
        written = "p(y, n)" if response.trials is None else "y"
        raise FormulaError(
            f"response {response.name!r}: family {family.name!r} takes "
            f"{written} on the left, y of n trials where it is 'binomial'"
        )
    if family.values == "ordered":
        return _ordered(response, seen)
    if response.level is not None:
        if family.values != "binary":
            raise FormulaError(
                f"response {response.name!r} is whether a value is {response.level!r}, which is "
                f"family='bernoulli', not {family.name!r}"
            )
        if response.level not in seen.values:
            raise FormulaError(
                f"response {response.name!r}: no row has the value {response.level!r}; it has "
                f"{_some(seen)}"
            )
        return []
    if seen.response is None:
        raise FormulaError(
            f"response {response.name!r} holds {_some(seen)}, no numbers: write "
            f"{response.name}['{min(map(str, seen.values))}'] with family='bernoulli', or "
            "family='ordered'"
        )
    _check_range(family, response, seen)
    return []


def _check_range(family: Family, response: Response, seen: Seen) -> None:
    found = seen.response
    assert found is not None
    wrong = {
        "binary": (not seen.values <= {0, 1}, "0 and 1"),
        "counts": (not found.whole or found.low < 0, "whole numbers from 0 on"),
        "successes": (not found.whole or found.low < 0, "whole numbers from 0 on"),
        "positive": (found.low <= 0, "numbers above 0"),
        "unit": (found.low <= 0 or found.high >= 1, "numbers between 0 and 1, without either"),
    }
    is_wrong, expected = wrong.get(family.values, (False, ""))
    if is_wrong:
        some = "values that are not whole" if not found.whole else f"{_some(seen)}"
        raise FormulaError(
            f"response {response.name!r}: family {family.name!r} takes {expected}, and the column "
            f"holds {some}, from {found.low:g} to {found.high:g}"
        )
    if family.values == "real" and not found.moments.sd > 0:
        raise FormulaError(
            f"response {response.name!r} is {found.low:g} in every row: there is nothing to explain"
        )


def _ordered(response: Response, seen: Seen) -> list[Any]:
    if len(seen.values) > 100:
        raise FormulaError(
            f"response {response.name!r} has more than 100 values, too many for family='ordered'"
        )
    order = [value for value in seen.order if value in seen.values]
    if seen.response is None and len(order) < len(seen.values):
        raise FormulaError(
            f"response {response.name!r} holds text, whose order nothing tells: make it an ordered "
            "categorical, or whole numbers"
        )
    levels = order if len(order) == len(seen.values) else sorted(seen.values)
    if len(levels) < 2:
        raise FormulaError(f"response {response.name!r} has one value, {levels[0]!r}, only")
    return levels


def _some(seen: Seen) -> str:
    some = sorted(map(str, seen.values))
    return ", ".join(some[:4]) + (", ..." if len(some) > 4 else "")
