"""Draws as numbers: moments, effective sample sizes, and how far they are from a reference."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpyro.diagnostics import effective_sample_size, split_gelman_rubin

Moments = dict[str, dict[str, float]]


def flat(sites: Mapping[str, np.ndarray]) -> np.ndarray:
    """Join sites ``(chains, draws, ...)`` to ``(chains, draws, d)``."""
    parts = [np.asarray(v, np.float64).reshape(*v.shape[:2], -1) for v in sites.values()]
    return np.concatenate(parts, axis=-1)


def scalar_names(sites: Mapping[str, np.ndarray]) -> list[str]:
    """Name the scalars of sites ``(chains, draws, ...)``, as in ``beta[1, 0]``."""
    return [
        site + (f"[{', '.join(map(str, index))}]" if index else "")
        for site, value in sites.items()
        for index in np.ndindex(value.shape[2:])
    ]


def table_of(means: np.ndarray, sds: np.ndarray, names: Sequence[str]) -> Moments:
    """Mean and sd by name."""
    rows = zip(names, means, sds, strict=True)
    return {str(name): {"mean": float(mean), "sd": float(sd)} for name, mean, sd in rows}


def moments(sites: Mapping[str, np.ndarray]) -> Moments:
    """Mean and sd of every scalar of sites ``(chains, draws, ...)``."""
    names = scalar_names(sites)
    rows = flat(sites).reshape(-1, len(names))
    return table_of(rows.mean(axis=0), rows.std(axis=0, ddof=1), names)


def summary(sites: Mapping[str, np.ndarray]) -> Moments:
    """Moments and diagnostics of every scalar that varies, of sites ``(chains, draws, ...)``."""
    draws = flat(sites)
    with np.errstate(invalid="ignore", divide="ignore"):
        ess, r_hat = effective_sample_size(draws), split_gelman_rubin(draws)
    table = moments(sites)
    for i, (name, row) in enumerate(list(table.items())):
        row |= {"ess": float(ess[i]), "r_hat": float(r_hat[i])}
        row["mcse"] = row["sd"] / float(np.sqrt(ess[i]))
        row["sd_mcse"] = _sd_error(draws[..., i])
        if row["sd"] <= 1e-9 * (1 + abs(row["mean"])):
            del table[name]
    return table


def _sd_error(draws: np.ndarray) -> float:
    """Relative Monte Carlo error of the sd of one scalar's draws ``(chains, draws)``."""
    squares = (draws - draws.mean()) ** 2
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(squares.std() / squares.mean() / np.sqrt(effective_sample_size(squares)) / 2)


def least_ess(sites: Mapping[str, np.ndarray]) -> float:
    """Smallest effective sample size of a chain's sites ``(draws, ...)``."""
    with np.errstate(invalid="ignore", divide="ignore"):
        ess = effective_sample_size(flat({name: value[None] for name, value in sites.items()}))
    return float(np.where(np.isfinite(ess), ess, 0.0).min())


class Distance(NamedTuple):
    """How far a fit is from its reference, in posterior sds."""

    difference: float  # largest of means of shared scalars, constrained and unconstrained
    ratios: tuple[float, float]  # smallest and largest ratio of sds, likewise
    # Whether the largest difference of unconstrained means is within twice the verdict's largest
    # estimate and the reference's own error, added in squares.
    covered: bool


def distance(fit: Mapping[str, Any], reference: Mapping[str, Any]) -> Distance:
    """Hold moments of a fit against the reference's."""
    away, ratios = (np.array(values) for values in zip(*_compared(fit, reference), strict=True))
    errors = []
    for name, row in reference["unconstrained"].items() if "error" in fit else ():
        true = abs(fit["unconstrained"][name]["mean"] - row["mean"]) / row["sd"]
        # An error of unknown size is null in JSON.
        estimated = np.inf if fit["error"][name] is None else fit["error"][name]
        errors.append((true, estimated, row["mcse"] / row["sd"]))
    true, estimated, known = np.array(errors).reshape(-1, 3).T
    at_worst = known[true.argmax()] if len(true) else 0.0
    largest = 2 * float(np.hypot(estimated.max(initial=0.0), at_worst))
    return Distance(
        difference=float(away.max()),
        ratios=(float(ratios.min()), float(ratios.max())),
        covered=bool(true.max(initial=0.0) <= largest),
    )


def _compared(
    fit: Mapping[str, Any], reference: Mapping[str, Any]
) -> Iterator[tuple[float, float]]:
    for space in ("constrained", "unconstrained"):
        for name, row in reference[space].items() if space in fit else ():
            moment = fit[space][name]
            yield abs(moment["mean"] - row["mean"]) / row["sd"], moment["sd"] / row["sd"]
