"""Why a fit cannot be believed: each check of the diagnostics, and what to do about it.

A reason has a code, the value that was found, the threshold it crossed, and a remedy that has an
effect on the path the fit took. A value that is not a number crosses every threshold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from ..combination.reports import Combined, LaplaceApproximation, NutsDiagnostics
from ..config import Options
from ..correction.assessment import USABLE_DRAWS_A_DIMENSION, usable
from ..correction.levels import Levels
from ..correction.state import Correction
from .estimates import strange_shard, visited

SIZE_UNKNOWN = frozenset(
    {"coupled", "modes", "lone-mode", "k-hat", "tail", "integration", "coupling", "modes-not-found"}
    | {"r-hat", "shard-ess", "divergences", "moving"}
)
"""Codes of checks without which no estimate of the error holds."""
ALL_ROWS = "use method='nuts'"
"""The remedy that needs no shards, no weights and no integrals: chains on all rows at once."""
TOGETHER = "fit all rows together, which update=(tree, ddf_old) does where it must"
"""The remedy where what an earlier fit knows is not enough for the rows that were added."""
PAGE = "docs/verdict.md"
"""The page of the documentation that has a section for each code, under the code."""


class Reason(NamedTuple):
    """One thing that speaks against a fit.

    Attributes
    ----------
    code : str
        Names the check; the same in every release. A section of `PAGE` bears it as its heading.
    value, threshold : float
        What was found, and the limit that it crossed.
    where : str
        The parameter, shard or term concerned; empty where it is the whole fit.
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


class Earlier(NamedTuple):
    """The fit to which rows were added.

    Attributes
    ----------
    rows, new_rows : int
        That it had, and that came.
    number : int
        Of the update.
    carried : (d,) array
        Errors of means that it hands on where nothing corrects them, in posterior sds.
    codes : tuple of str
        Of the reasons against it; empty if it was good.
    """

    rows: int
    new_rows: int
    number: int
    carried: np.ndarray
    codes: tuple[str, ...]


class Evidence(NamedTuple):
    """Everything that a verdict is made from.

    Attributes
    ----------
    names : sequence of str
        Of the d coordinates of u.
    options : Options
    combined : Combined
    correction : Correction or None
    uncorrected_because : str
        Why there is no correction.
    correctable : bool
        Whether there could be one.
    modes : int
        Separate places of comparable density that were found.
    approximation : LaplaceApproximation or None
        Where the mode was found.
    coupled : sequence of str
        Terms by which groups depend on each other.
    local_sites : sequence of str
        Names of the local sites.
    earlier : Earlier or None
        The fit to which rows were added; None where all were fitted together.
    nuts_because : str
        Why NUTS has sampled all rows; empty if it has not, or was asked to.
    nuts_failed : str
        What speaks against chains on all rows that did no better; empty if there were none.
    """

    names: Sequence[str]
    options: Options
    combined: Combined
    correction: Correction | None
    uncorrected_because: str
    correctable: bool = False
    modes: int = 1
    approximation: LaplaceApproximation | None = None
    coupled: Sequence[str] = ()
    local_sites: Sequence[str] = ()
    earlier: Earlier | None = None
    nuts_because: str = ""
    nuts_failed: str = ""

    @property
    def corrected(self) -> Sequence[str]:
        """Names of the coordinates that the correction is about."""
        which = None if self.correction is None else self.correction.coordinates
        return self.names if which is None else [self.names[i] for i in which]

    @property
    def alone(self) -> bool:
        """Whether NUTS has sampled all rows together."""
        return self.earlier is None and self.combined.method == "nuts"

    @property
    def nuts(self) -> list[NutsDiagnostics]:
        """What sampling the shards showed in the last round; empty where none was sampled."""
        reports = self.combined.rounds[-1].reports
        return [report.nuts for report in reports if report.nuts is not None]


def sections(reasons: Sequence[Reason]) -> str:
    """Name the sections of the documentation on some reasons."""
    codes = dict.fromkeys(reason.code for reason in reasons)
    return PAGE + ", ".join(f"#{code}" for code in codes)


def reasons_against(evidence: Evidence, error: np.ndarray) -> list[Reason]:
    """Run every check that applies; `error` is the estimated error of each mean, in sds."""
    checks: list[Callable[[Evidence], Iterator[Reason]]] = [_several_modes]
    if not evidence.alone:
        checks = [_coupled, *checks]
    if evidence.correction is not None:
        checks += [_no_variance, _correction_weights, _correction_tails, _correction_integrals]
    elif evidence.nuts:
        checks += [_sampling]
    if evidence.earlier is not None:
        checks += [_earlier_fit]
    reasons = [reason for check in checks for reason in check(evidence)]
    if not evidence.alone:
        if evidence.correction is None:
            reasons += _approximation(evidence, error)
        reasons += _strange_shard(evidence)
    return reasons


def _ways(evidence: Evidence, *ways: str) -> str:
    """Join remedies, without one that was tried."""
    return ", or ".join(way for way in ways if way != ALL_ROWS or not evidence.nuts_failed)


# The posterior


def _coupled(evidence: Evidence) -> Iterator[Reason]:
    if evidence.coupled:
        terms = ", ".join(evidence.coupled)
        problem = (
            f"groups depend on each other through {terms}, so the shards' product is another model"
        )
        if len(evidence.combined.rounds[-1].reports) == 1:
            problem = (
                f"groups depend on each other through {terms}, so that their effects cannot be "
                "integrated out one group at a time"
            )
        remedy = _ways(evidence, "remove that dependence", ALL_ROWS)
        yield Reason("coupled", len(evidence.coupled), 0, terms, problem, remedy)


def _several_modes(evidence: Evidence) -> Iterator[Reason]:
    correction, approximation = evidence.correction, evidence.approximation
    remedy = "identify the model (order the components, say)"
    places = 0 if approximation is None else len(approximation.along)
    if _covered(evidence):
        pass
    elif places:
        problem = "the posterior is a curved ridge, of which a piece is described"
        yield Reason("modes", 1 + places, 1, "", problem, remedy)
    elif evidence.modes > 1:
        problem = (
            f"searches from several points found {evidence.modes} separate modes of comparable "
            "density, of which one is described"
        )
        yield Reason("modes", evidence.modes, 1, "", problem, remedy)
    elif correction is not None and usable(correction):
        # Weights that cannot be used say so themselves, and nothing of what they missed.
        missed, limit = correction.landmark_log_ratio, evidence.options.verdict.tail_log_ratio
        problem = (
            "searches ended at places that no point is near, where weights would be "
            f"e^{missed:.3g} times as large as any"
        )
        remedy += ", and write shared sites that have a scale of their own non-centred"
        yield Reason("modes", missed, limit, "", problem, remedy)
    if approximation is None:
        return
    lone = approximation.reached == 1 < approximation.searched
    if lone and evidence.alone:
        # Chains that began elsewhere, each by itself, and came there are as many more searches.
        lone = not visited(evidence.combined.draws, approximation, evidence.modes, by_all=True)
    problem = (
        f"only 1 of {approximation.searched} searches reached the highest mode that was found, "
        "so there may be a higher one that none has"
    )
    if not lone and not evidence.alone:
        lone = approximation.lone > 0
        problem = (
            f"of {approximation.modes} modes {approximation.lone} were reached by one each of "
            f"{approximation.searched} searches, so there may be others that none has"
        )
    if lone:
        remedy = f"raise consensus.laplace.searches (now {evidence.options.laplace.searches})"
        yield Reason("lone-mode", 1, 1, "", problem, f"{remedy}, or give narrower priors")


def _covered(evidence: Evidence) -> bool:
    """Tell whether draws, or a correction's points, reach every place that a search has found."""
    if evidence.alone:
        return visited(evidence.combined.draws, evidence.approximation, evidence.modes)
    correction, limit = evidence.correction, evidence.options.verdict.tail_log_ratio
    if correction is None or not usable(correction):
        return False
    approximation = evidence.approximation
    if approximation is not None and evidence.modes > 1 + len(approximation.others):
        return False  # some were not looked at on all shards
    return bool(correction.landmark_log_ratio <= limit)


# The correction


def _correction_weights(evidence: Evidence) -> Iterator[Reason]:
    correction, limits = evidence.correction, evidence.options.verdict
    assert correction is not None
    n_points, estimate = len(correction.weights), correction.estimate
    more = (
        "raise consensus.correction.iterations (now "
        f"{evidence.options.correction.iterations}) in Dask's configuration"
    )
    longer = _ways(evidence, more, ALL_ROWS)
    if evidence.earlier is not None:
        more = longer = TOGETHER
    limit = min(limits.k_hat, 1 - 1 / np.log10(n_points))
    if not correction.k_hat <= limit:
        problem = (
            f"k-hat {correction.k_hat:.2f} of the importance weights is above {limit:.2f}, so the "
            "points miss part of the posterior"
        )
        yield Reason("k-hat", correction.k_hat, limit, "", problem, longer)
    # Fewer draws than assessment.usable asks are not used, whatever the threshold.
    least = max(limits.ess, USABLE_DRAWS_A_DIMENSION * len(evidence.corrected))
    if not estimate.ess >= least:
        problem = (
            f"{n_points:,} weighted points are as good as {estimate.ess:.0f} independent draws, "
            f"fewer than {least:g}"
        )
        yield Reason("ess", estimate.ess, least, "", problem, more)
    worst = int(np.argmax(estimate.sd_error))
    name, error = evidence.corrected[worst], estimate.sd_error[worst]
    if not error <= limits.sd_error:
        problem = f"the sd of {name} is known to {error:.0%} only"
        yield Reason("sd-error", error, limits.sd_error, name, problem, more)


def _no_variance(evidence: Evidence) -> Iterator[Reason]:
    correction, limit = evidence.correction, evidence.options.verdict.tail_log_ratio
    assert correction is not None
    for name, ratio in zip(evidence.corrected, correction.tail_log_ratio, strict=True):
        if np.isposinf(ratio):
            problem = (
                f"the tail of {name} falls so slowly that it has no variance, and its mean and its "
                "sd mean nothing, whatever its quantiles are"
            )
            yield Reason("tail", ratio, limit, name, problem, "give it a prior with lighter tails")


def _correction_tails(evidence: Evidence) -> Iterator[Reason]:
    correction, limit = evidence.correction, evidence.options.verdict.tail_log_ratio
    assert correction is not None
    worst = int(np.argmax(correction.tail_log_ratio))
    name, ratio = evidence.corrected[worst], correction.tail_log_ratio[worst]
    if np.isposinf(ratio):
        return  # there is no more to say of it
    if not ratio <= limit:
        problem = (
            f"the posterior has mass far out on {name} that the points do not reach, its tail "
            "being heavier than an exponential"
        )
        remedy = "give it a prior with lighter tails"
        if evidence.earlier is not None:
            remedy = TOGETHER
        yield Reason("tail", ratio, limit, name, problem, remedy)
    elif correction.beyond is not None:
        worst, limit = int(np.argmax(correction.beyond.sd)), evidence.options.verdict.sd_error
        name, error = evidence.corrected[worst], correction.beyond.sd[worst]
        if not error <= limit:
            along = evidence.corrected[correction.beyond.where]
            problem = (
                f"far out on {along}, where other parameters take other values, lies a little mass "
                f"that the points do not reach, which makes the sd of {name} larger by {error:.0%}"
            )
            which = along if along == name else f"{along} or {name}"
            remedy = _ways(evidence, f"give {which} a prior that ends sooner", ALL_ROWS)
            yield Reason("tail", error, limit, name, problem, remedy)


def _correction_integrals(evidence: Evidence) -> Iterator[Reason]:
    correction, limits = evidence.correction, evidence.options.verdict
    assert correction is not None
    for error, limit, what in (
        (correction.integration_error, limits.integration_error, "mean"),
        (correction.integration_sd_error, limits.sd_error, "sd"),
    ):
        worst = int(np.argmax(error))
        if error[worst] <= limit:
            continue
        name, sites = evidence.corrected[worst], ", ".join(evidence.local_sites)
        effects = f"local effects ({sites})"
        if correction.levels is not None:
            effects = "local and crossed effects" if sites else "crossed effects"
        problem = (
            f"two ways to integrate the {effects} differ by {error[worst]:.2g} "
            f"posterior sds in the {what} of {name}"
        )
        if not np.isfinite(error[worst]):
            problem = f"one of two ways to integrate the {effects} gave no number"
        # Chains on all rows integrate nothing; what another form does depends on the data.
        remedy = _ways(evidence, ALL_ROWS, "try another parameterisation of the local sites")
        yield Reason("integration", error[worst], limit, name, problem, remedy)
        break
    coupling = correction.coupling
    if not coupling <= limits.coupling:
        problem = (
            f"the Hessian of the local effects is not block-diagonal ({coupling:.2g} of its size "
            "lies between groups), so effects couple groups"
        )
        remedy = _ways(evidence, "remove that dependence", ALL_ROWS)
        yield Reason("coupling", coupling, limits.coupling, "", problem, remedy)
    if correction.levels is not None:
        yield from _levels(evidence, correction.levels)
    share = correction.modes_not_found
    if not share <= limits.modes_not_found:
        problem = (
            f"the mode of {share:.1%} of the groups was not found, whose density may have several"
        )
        remedy = _ways(evidence, ALL_ROWS, "try another parameterisation of the local sites")
        yield Reason("modes-not-found", share, limits.modes_not_found, "", problem, remedy)


def _levels(evidence: Evidence, levels: Levels) -> Iterator[Reason]:
    """Judge what is known of crossed effects by the limits of integration."""
    limits = evidence.options.verdict
    for error, limit, what in (
        (levels.error, limits.integration_error, "mean"),
        (levels.sd_error, limits.sd_error, "sd"),
    ):
        worst = int(np.argmax(error))
        if not error[worst] <= limit:
            name = evidence.names[levels.effects[worst]]
            problem = (
                f"a crossed effect is far from normal given the rest: the {what} of {name} may be "
                f"off by {error[worst]:.2g} " + ("posterior sds" if what == "mean" else "of it")
            )
            remedy = _ways(evidence, ALL_ROWS, "join levels of few rows")
            yield Reason("integration", error[worst], limit, name, problem, remedy)
            break


# Rows that were added


def _earlier_fit(evidence: Evidence) -> Iterator[Reason]:
    assert evidence.earlier is not None
    codes = evidence.earlier.codes
    if codes:
        problem = f"the fit to which rows were added was not to be relied on ({', '.join(codes)})"
        yield Reason("earlier-fit", len(codes), 0, "", problem, TOGETHER)


# Sampling


def _sampling(evidence: Evidence) -> Iterator[Reason]:
    limits, names, together = evidence.options.verdict, evidence.names, evidence.alone
    r_hat = np.array([nuts.r_hat for nuts in evidence.nuts])
    if (r_hat > limits.r_hat).any():
        k, worst = divmod(int(np.nanargmax(r_hat)), len(names))
        value, name = r_hat[k, worst], names[worst]
        problem = f"shard {k} has r_hat {value:.2f} on {name}, its chains not having converged"
        if together:
            problem = f"the chains have r_hat {value:.2f} on {name}, not having converged"
        where = name if together else f"shard {k}, {name}"
        yield Reason("r-hat", value, limits.r_hat, where, problem, "raise num_warmup")
    ess = np.array([nuts.ess for nuts in evidence.nuts])
    k, worst = divmod(int(ess.argmin()), len(names))
    value, name = ess[k, worst], names[worst]
    # Draws of a shard make a Gaussian of it; those of all rows are the answer.
    limit = limits.ess if together else limits.shard_ess
    if not value >= limit:
        problem = f"shard {k} has {value:.0f} effective draws of {name}, fewer than {limit:g}"
        if together:
            problem = (
                f"the chains are as good as {value:.0f} independent draws of {name}, fewer than "
                f"{limit:g}"
            )
        where = name if together else f"shard {k}, {name}"
        remedy = "raise num_samples, or reparameterise"
        if value >= limits.shard_ess:
            yield Reason("ess", value, limit, where, problem, remedy)
        else:
            yield Reason("shard-ess", value, limit, where, problem, remedy)
    divergences = np.array([nuts.divergences for nuts in evidence.nuts])
    n_draws = np.prod(evidence.combined.draws.shape[:2])
    share = divergences.sum() / (n_draws * len(divergences))
    if share > limits.divergences:
        k = int(divergences.argmax())
        problem = f"{divergences.sum()} divergences, {share:.1%} of the draws"
        problem += "" if together else f", most on shard {k}"
        where = "" if together else f"shard {k}"
        remedy = "raise target_accept_prob, or reparameterise"
        yield Reason("divergences", share, limits.divergences, where, problem, remedy)


# The combination


def _approximation(evidence: Evidence, error: np.ndarray) -> Iterator[Reason]:
    options, last = evidence.options, evidence.combined.rounds[-1]
    worst = int(np.argmax(error))
    name, limit = evidence.names[worst], options.verdict.approximate_error
    # Of coupled groups the error is unknown, and no number of draws makes it known.
    if error[worst] > limit and not evidence.coupled:
        problem = (
            f"the estimated error of {name} is {error[worst]:.2g} posterior sds, as shards are "
            "skewed or drew too little"
        )
        remedy = "use fewer shards, or raise num_samples"
        if evidence.correctable:
            remedy = "leave correct at 'auto'"
        elif evidence.combined.method in ("consensus", "parametric"):
            remedy = "use method='anchored', or fewer shards"
        if evidence.earlier is not None:
            remedy = TOGETHER
        yield Reason("approximate-error", error[worst], limit, name, problem, remedy)
    if last.movement > 3 * last.noise:
        problem = (
            f"the last round still moved by {last.movement:.2g} posterior sds, more than its Monte "
            f"Carlo error of {last.noise:.2g}"
        )
        remedy = f"raise rounds (now {options.rounds or options.anchored.rounds})"
        yield Reason("moving", last.movement, 3 * last.noise, "", problem, remedy)


def _strange_shard(evidence: Evidence) -> Iterator[Reason]:
    limit = evidence.options.verdict.strange_shard
    stranger = strange_shard(evidence.combined, limit)
    if stranger is not None:
        k, worst, distance = stranger
        name = evidence.names[worst]
        problem = (
            f"shard {k} disagrees with the others, most on {name}, as if its rows were drawn from "
            "another population"
        )
        remedy = (
            "compare them with the rest (ddf.consensus.check(tree, model, by=<the key, or a "
            "column>, check_verdict=False))"
        )
        yield Reason("strange-shard", distance, limit, f"shard {k}, {name}", problem, remedy)
