"""Why a fit cannot be believed: each check of the diagnostics, and what to do about it.

A reason has a code, the value that was found, the threshold it crossed, and a remedy that has an
effect on the path the fit took.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from ..combination.reports import Combined, LaplaceApproximation, NutsDiagnostics
from ..config import Options
from ..correction.importance import Correction
from .estimates import strange_shard


class Reason(NamedTuple):
    """One thing that speaks against a fit.

    Attributes
    ----------
    code : str
        Names the check; the same in every release.
    value, threshold : float
        What was found, and the limit that it crossed.
    where : str
        The parameter, shard or site concerned; empty where it is the whole fit.
    problem, remedy : str
        What it means, and what to change.
    """

    code: str
    value: float
    threshold: float
    where: str
    problem: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.problem}: {self.remedy}"


class Evidence(NamedTuple):
    """Everything that a verdict is made from.

    Attributes
    ----------
    names : sequence of str
        Of the d coordinates of u.
    options : Options
    method : str
        The method that combined the shards.
    combined : Combined
    correction : Correction or None
    uncorrected_because : str
        Why there is no correction.
    modes : int
        Separate places of comparable density that were found.
    approximation : LaplaceApproximation or None
        Where the mode was found.
    coupled : sequence of str
        Terms by which groups depend on each other.
    """

    names: Sequence[str]
    options: Options
    method: str
    combined: Combined
    correction: Correction | None
    uncorrected_because: str
    modes: int = 1
    approximation: LaplaceApproximation | None = None
    coupled: Sequence[str] = ()

    @property
    def alone(self) -> bool:
        """Whether one shard holds all rows."""
        return len(self.combined.rounds[-1].reports) == 1


def reasons_against(evidence: Evidence, error: np.ndarray) -> list[Reason]:
    """Run every check that applies; `error` is the estimated error of each mean, in sds."""
    checks: list[Callable[[Evidence], list[Reason]]] = [_coupled, _several_modes]
    if evidence.alone:
        checks += [_not_converged, _few_draws, _divergences]
    elif evidence.correction is not None:
        checks += [_correction_weights, _correction_integrals]
    elif _sampled(evidence):
        checks += [_not_converged, _few_draws, _divergences]
    reasons = [reason for check in checks for reason in check(evidence)]
    if not evidence.alone and evidence.correction is None:
        reasons += _approximation(evidence, error)
    return reasons if evidence.alone else reasons + _strange_shard(evidence)


# The posterior


def _coupled(evidence: Evidence) -> list[Reason]:
    if evidence.alone or not evidence.coupled:
        return []
    terms = ", ".join(evidence.coupled)
    return [
        Reason(
            "coupled",
            len(evidence.coupled),
            0,
            terms,
            f"groups depend on each other through {terms}, so the shards' product is another model",
            "remove that dependence, or use n_shards=1",
        )
    ]


def _several_modes(evidence: Evidence) -> list[Reason]:
    if evidence.modes <= 1:
        return []
    return [
        Reason(
            "modes",
            evidence.modes,
            1,
            "",
            f"searches from several points found {evidence.modes} separate modes of comparable "
            "density, of which one is described",
            "identify the model (order the components, say)",
        )
    ]


# The correction


def _correction_weights(evidence: Evidence) -> list[Reason]:
    correction, limits = evidence.correction, evidence.options.verdict
    assert correction is not None
    n_points, estimate = len(correction.weights), correction.estimate
    more = (
        "raise consensus.correction.iterations (now "
        f"{evidence.options.correction.iterations}) in Dask's configuration"
    )
    reasons = []
    k_hat = min(limits.k_hat, 1 - 1 / np.log10(n_points))
    if not correction.k_hat <= k_hat:
        reasons.append(
            Reason(
                "k-hat",
                correction.k_hat,
                k_hat,
                "",
                f"k-hat {correction.k_hat:.2f} of the importance weights is above {k_hat:.2f}, so "
                "the points miss part of the posterior",
                f"{more}, or use n_shards=1",
            )
        )
    if estimate.ess < limits.ess:
        reasons.append(
            Reason(
                "ess",
                estimate.ess,
                limits.ess,
                "",
                f"{n_points:,} weighted points are as good as {estimate.ess:.0f} independent "
                f"draws, fewer than {limits.ess:g}",
                more,
            )
        )
    worst = int(np.argmax(estimate.sd_error))
    name, sd_error = evidence.names[worst], estimate.sd_error[worst]
    if sd_error > limits.sd_error:
        reasons.append(
            Reason(
                "sd-error",
                sd_error,
                limits.sd_error,
                name,
                f"the sd of {name} is known to {sd_error:.0%} only",
                f"{more}; if its tail is long (separation, or too little data for its prior), give "
                "it a tighter prior",
            )
        )
    worst = int(np.argmax(correction.tail_log_ratio))
    name, ratio = evidence.names[worst], correction.tail_log_ratio[worst]
    if ratio > limits.tail_log_ratio:
        reasons.append(
            Reason(
                "tail",
                ratio,
                limits.tail_log_ratio,
                name,
                f"the posterior has mass far out on {name} that the points do not reach, its tail "
                "being heavier than an exponential",
                "give it a prior with lighter tails",
            )
        )
    return reasons


def _correction_integrals(evidence: Evidence) -> list[Reason]:
    correction, limits = evidence.correction, evidence.options.verdict
    assert correction is not None
    reasons = []
    worst = int(np.argmax(correction.integration_error))
    name, error = evidence.names[worst], correction.integration_error[worst]
    if error > limits.integration_error:
        reasons.append(
            Reason(
                "integration",
                error,
                limits.integration_error,
                name,
                "integrating the local effects leaves an error of "
                f"{error:.2g} posterior sds on {name}",
                "reparameterise the local sites (centred where groups have many rows)",
            )
        )
    if correction.coupling > limits.coupling:
        reasons.append(
            Reason(
                "coupling",
                correction.coupling,
                limits.coupling,
                "",
                "the Hessian of the local effects is not block-diagonal "
                f"({correction.coupling:.2g} of its size lies between groups), so effects couple "
                "groups",
                "remove that dependence, or use n_shards=1",
            )
        )
    if correction.modes_not_found > limits.modes_not_found:
        reasons.append(
            Reason(
                "modes-not-found",
                correction.modes_not_found,
                limits.modes_not_found,
                "",
                f"the mode of {correction.modes_not_found:.1%} of the groups was not found, whose "
                "density may have several",
                "reparameterise the local sites, or use n_shards=1",
            )
        )
    return reasons


# Sampling


def _sampled(evidence: Evidence) -> bool:
    return evidence.combined.rounds[-1].reports[0].nuts is not None


def _diagnostics(evidence: Evidence) -> list[NutsDiagnostics]:
    reports = evidence.combined.rounds[-1].reports
    return [report.nuts for report in reports if report.nuts is not None]


def _not_converged(evidence: Evidence) -> list[Reason]:
    r_hat = np.array([nuts.r_hat for nuts in _diagnostics(evidence)])
    limit = evidence.options.verdict.r_hat
    if not (r_hat > limit).any():
        return []
    k, worst = divmod(int(np.nanargmax(r_hat)), r_hat.shape[1])
    return [
        Reason(
            "r-hat",
            r_hat[k, worst],
            limit,
            f"shard {k}, {evidence.names[worst]}",
            f"shard {k} has r_hat {r_hat[k, worst]:.2f} on {evidence.names[worst]}, its chains not "
            "having converged",
            "raise num_warmup",
        )
    ]


def _few_draws(evidence: Evidence) -> list[Reason]:
    ess = np.array([nuts.ess for nuts in _diagnostics(evidence)])
    limit = evidence.options.verdict.shard_ess
    if ess.min() >= limit:
        return []
    k, worst = divmod(int(ess.argmin()), ess.shape[1])
    return [
        Reason(
            "shard-ess",
            ess[k, worst],
            limit,
            f"shard {k}, {evidence.names[worst]}",
            f"shard {k} has {ess[k, worst]:.0f} effective draws of {evidence.names[worst]}, fewer "
            f"than {limit:g}",
            "raise num_samples, or reparameterise",
        )
    ]


def _divergences(evidence: Evidence) -> list[Reason]:
    divergences = np.array([nuts.divergences for nuts in _diagnostics(evidence)])
    limit = evidence.options.verdict.divergences
    n_draws = np.prod(evidence.combined.draws.shape[:2])
    share = divergences.sum() / (n_draws * len(divergences))
    if share <= limit:
        return []
    k = int(divergences.argmax())
    return [
        Reason(
            "divergences",
            share,
            limit,
            f"shard {k}",
            f"{divergences.sum()} divergences, {share:.1%} of the draws, most on shard {k}",
            "raise target_accept_prob, or reparameterise",
        )
    ]


# The combination


def _approximation(evidence: Evidence, error: np.ndarray) -> list[Reason]:
    options, last = evidence.options, evidence.combined.rounds[-1]
    worst = int(np.nanargmax(error))
    name, limit = evidence.names[worst], options.verdict.approximate_error
    reasons = []
    if error[worst] > limit:
        remedy = "use fewer shards, or raise num_samples"
        if evidence.uncorrected_because == "correct=False":
            remedy = "leave correct at 'auto'"
        elif evidence.method in ("consensus", "parametric"):
            remedy = "use method='anchored', or fewer shards"
        reasons.append(
            Reason(
                "approximate-error",
                error[worst],
                limit,
                name,
                f"the estimated error of {name} is {error[worst]:.2g} posterior sds, as shards are "
                "skewed or drew too little",
                remedy,
            )
        )
    if last.movement > 3 * last.noise:
        reasons.append(
            Reason(
                "moving",
                last.movement,
                3 * last.noise,
                "",
                f"the last round still moved by {last.movement:.2g} posterior sds, more than its "
                f"Monte Carlo error of {last.noise:.2g}",
                f"raise rounds (now {len(evidence.combined.rounds)})",
            )
        )
    return reasons


def _strange_shard(evidence: Evidence) -> list[Reason]:
    limit = evidence.options.verdict.strange_shard
    stranger = strange_shard(evidence.combined, limit)
    if stranger is None:
        return []
    k, worst, distance = stranger
    return [
        Reason(
            "strange-shard",
            distance,
            limit,
            f"shard {k}, {evidence.names[worst]}",
            f"shard {k} disagrees with the others, most on {evidence.names[worst]}, as if its rows "
            "were drawn from another population",
            "compare them with the rest",
        )
    ]
