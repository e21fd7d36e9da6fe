"""The verdict: is this the full model's posterior, how accurately, and if not, why."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import scipy.stats

from ..combination import gaussian
from ..config import default
from ..correction.importance import usable

if TYPE_CHECKING:
    from ..combination.laplace import LaplaceApproximation
    from ..combination.reports import Combined, Report, Round
    from ..correction.importance import Correction


_FEW_SHARDS = 4  # fewer cannot tell which of them is the stranger
_MANY_SHARDS = 10  # enough for their spread to be known
_LEAST = 0.01  # no uncorrected mean is known better, in sds
_APART = 3.0  # times further than the next shard


class Verdict(NamedTuple):
    """What may be believed.

    Attributes
    ----------
    good : bool
    error : (d,) array
        Estimated error of each unconstrained mean, in posterior sds.
    reasons : tuple of str
        Why not, and what to change; empty if good.
    text : str
        One paragraph.
    """

    good: bool
    error: np.ndarray
    reasons: tuple[str, ...]
    text: str


def judge(
    names: Sequence[str],
    combined: Combined,
    correction: Correction | None,
    *,
    modes: int,
    approximation: LaplaceApproximation | None,
    n_draws: int,
    uncorrected_because: str,
    coupled: Sequence[str],
) -> Verdict:
    """Combine every diagnostic into one verdict.

    Parameters
    ----------
    names : sequence of str
        Of the d coordinates of u.
    combined : Combined
    correction : Correction or None
    modes : int
        Separate places of comparable density that were found.
    approximation : LaplaceApproximation or None
        Where climbing came to.
    n_draws : int
        Draws of one shard in a round, all chains together.
    uncorrected_because : str
        Why there is no correction.
    coupled : sequence of str
        Terms by which groups depend on each other.
    """
    last = combined.rounds[-1]
    alone = len(last.reports) == 1
    reasons: list[str] = []
    if coupled and not alone:
        reasons.append(
            f"groups depend on each other through {', '.join(coupled)}, so the shards' product is "
            "another model: remove that dependence, or use n_shards=1"
        )
    if modes > 1:
        reasons.append(
            f"searches from several points found {modes} separate modes of comparable density: "
            "the posterior has more than one, and only one is described; identify the model "
            "(order the components, say)"
        )
    if alone:
        error = 1 / np.sqrt(np.maximum(last.reports[0].ess, 1.0))
        reasons += _sampling_reasons(last.reports, names, n_draws)
    elif correction is not None:
        error = np.hypot(correction.estimate.error, correction.integration_error)
        if not usable(correction):
            # The weights show that the combination is far off, and not how far.
            error = np.full_like(error, np.inf)
        reasons += _correction_reasons(correction, names, error)
    else:
        error = _approximate_error(combined, approximation)
        if coupled:
            error = np.full_like(error, np.inf)
        reasons += _sampling_reasons(last.reports, names, n_draws)
        reasons += _approximation_reasons(last, names, error)
    stranger = None if alone else strange_shard(combined)
    if stranger is not None:
        k, worst = stranger
        reasons.append(
            f"shard {k} disagrees with the others, most on {names[worst]}: its rows look drawn "
            "from another population; compare them with the rest"
        )
    good = not reasons
    return Verdict(
        good,
        error,
        tuple(reasons),
        _text(names, good, error, reasons, alone, correction, uncorrected_because),
    )


def warn_if_bad(verdict: Verdict) -> None:
    """Warn, once, of a bad verdict."""
    if not verdict.good:
        warnings.warn(verdict.text, UserWarning, stacklevel=4)


def _text(
    names: Sequence[str],
    good: bool,
    error: np.ndarray,
    reasons: Sequence[str],
    alone: bool,
    correction: Correction | None,
    because: str,
) -> str:
    worst = int(np.nanargmax(error))
    size = f"about {error[worst]:.2g} posterior sds (on {names[worst]})"
    if np.isinf(error[worst]):
        size = "an unknown amount"
    if alone:
        how = "One shard holds all rows: this is plain NUTS on the full model"
    elif correction is not None:
        how = (
            f"The full posterior was evaluated at {len(correction.weights):,} points around the "
            f"combination (k-hat {correction.k_hat:.2f}"
        )
        if np.isfinite(correction.emulator_error):
            how += f"; its log, interpolated, errs by {correction.emulator_error:.1g} there"
        how += f"), as good as {correction.estimate.ess:,.0f} independent draws"
        if not usable(correction):
            how += ", which are too poor to use: the posterior given is the uncorrected one"
    else:
        how = f"The combination of shards was not corrected, because {because}"
    if good:
        what = "Good: this is the full model's posterior" + (
            "" if alone or correction is not None else ", approximately"
        )
        return f"{what}. {how}; means are within {size}."
    return (
        f"Not to be relied on as the full model's posterior. {how}; means may be off by "
        f"{size} or more. " + "; ".join(reasons) + "."
    )


# Reasons
def _correction_reasons(
    correction: Correction, names: Sequence[str], error: np.ndarray
) -> list[str]:
    reasons = []
    limit = min(default("k-hat"), 1 - 1 / np.log10(len(correction.weights)))
    if not correction.k_hat <= limit:
        reasons.append(
            f"k-hat {correction.k_hat:.2f} of the importance weights is above {limit:.2f}: the "
            "combination is too far from the posterior, or lighter-tailed; use fewer shards, more "
            "draws (num_samples), or another parameterisation"
        )
    ess, sd_error = correction.estimate.ess, correction.estimate.sd_error
    if ess < default("weight-ess"):
        reasons.append(
            f"{len(correction.weights):,} weighted points are as good as {ess:.0f} independent "
            f"draws, fewer than {default('weight-ess')}: use more draws (num_samples) or fewer "
            "shards"
        )
    worst = int(np.argmax(sd_error))
    if sd_error[worst] > default("sd-error"):
        reasons.append(
            f"the sd of {names[worst]} is known to {sd_error[worst]:.0%} only: its tail "
            "is long (separation, or too little data for its prior); give it a tighter prior"
        )
    worst = int(np.argmax(correction.integration_error))
    if correction.integration_error[worst] > default("integration-error"):
        reasons.append(
            "integrating the local effects leaves an error of "
            f"{correction.integration_error[worst]:.2g} posterior sds on {names[worst]}: "
            "reparameterise the local sites (centred where groups have many rows)"
        )
    worst = int(np.argmax(correction.beyond))
    if correction.beyond[worst] > default("beyond"):
        reasons.append(
            f"the posterior has mass far out on {names[worst]} that the points do not reach: its "
            "tail is heavier than an exponential; give it a prior with lighter tails"
        )
    if correction.coupling > default("coupling"):
        reasons.append(
            "the Hessian of the local effects is not block-diagonal "
            f"({correction.coupling:.2g} of its size lies between groups): effects couple groups"
        )
    if correction.modes_not_found > default("lost-modes"):
        reasons.append(
            f"the mode of {correction.modes_not_found:.1%} of the groups was not found: their density may "
            "have several"
        )
    return reasons


def _sampling_reasons(reports: Sequence[Report], names: Sequence[str], n_draws: int) -> list[str]:
    reasons = []
    r_hat = np.array([report.r_hat for report in reports])
    ess = np.array([report.ess for report in reports])
    if (r_hat > default("r-hat")).any():
        k, worst = divmod(int(np.nanargmax(r_hat)), r_hat.shape[1])
        reasons.append(
            f"shard {k} has r_hat {r_hat[k, worst]:.2f} on {names[worst]}: its chains have not "
            "converged; raise num_warmup"
        )
    if ess.min() < default("shard-ess"):
        k, worst = divmod(int(ess.argmin()), ess.shape[1])
        reasons.append(
            f"shard {k} has {ess[k, worst]:.0f} effective draws of {names[worst]}, fewer than "
            f"{default('shard-ess')}; raise num_samples, or reparameterise"
        )
    divergences = np.array([report.divergences for report in reports])
    share = divergences.sum() / (n_draws * len(reports))
    if share > default("divergences"):
        reasons.append(
            f"{divergences.sum()} divergences, {share:.1%} of the draws, most on shard "
            f"{int(divergences.argmax())}: raise target_accept_prob, or reparameterise"
        )
    return reasons


def _approximation_reasons(last: Round, names: Sequence[str], error: np.ndarray) -> list[str]:
    reasons = []
    worst = int(np.nanargmax(error))
    if error[worst] > default("approximate-error"):
        reasons.append(
            f"the estimated error of {names[worst]} is {error[worst]:.2g} posterior sds: shards "
            "are skewed or drew too little; use correct='auto' where it can be had, fewer shards, "
            "or more draws"
        )
    if last.movement > 3 * last.noise:
        reasons.append(
            f"the last round still moved by {last.movement:.2g} posterior sds, more than its Monte "
            f"Carlo error of {last.noise:.2g}: raise rounds"
        )
    return reasons


# Estimates
def _approximate_error(
    combined: Combined, approximation: LaplaceApproximation | None
) -> np.ndarray:
    """Error of an uncorrected combination: Monte Carlo noise, and what the shards' skew moves.

    Where the mode was climbed, the mean that follows from it to first order is at hand to be
    compared with; the size of that first order is the size of what may be left of it.

    Elsewhere a shard is expanded about its own mean, a distance x from the combined one. The third
    derivatives T there make its gradient at the combined mean wrong by half of T : C, for its
    covariance C, as the mean of a skewed density is not its mode, and by half of T : xx, as a
    quadratic taken far away is not the one needed. The draws tell the first, their joint skewness
    being -C (T : C), and of the second what their coordinates' own skewness does. Summed as the
    sites are summed, these offsets move the combination, and do not average out.
    """
    last = combined.rounds[-1]
    sd = np.sqrt(np.diag(combined.covariance))
    if approximation is not None:
        return np.maximum(
            np.hypot((combined.mean - approximation.mean) / sd, approximation.shift), _LEAST
        )
    offsets = np.zeros(len(sd))
    d = len(sd)
    skew = _common([report.skew for report in last.reports], last.reports, 6)
    joint = _common([report.joint_skew for report in last.reports], last.reports, 2 * (d + 2))
    for report in last.reports:
        precision = gaussian.as_matrix(report.precision)
        spread = np.sqrt(np.diag(gaussian.inverse(precision)))
        away = (report.mean - combined.mean) / spread
        offsets += precision @ (spread / 2 * (joint + skew * away**2))
    bias = combined.covariance @ offsets / sd
    moved = 0.0 if np.isnan(last.movement) else last.movement / 2
    return np.sqrt(bias**2 + last.noise**2 + moved**2)


def _common(
    statistics: Sequence[np.ndarray], reports: Sequence[Report], variance: float
) -> np.ndarray:
    """Part of a statistic that shards have in common, less what Monte Carlo error would show.

    Of e normal draws the skewness has variance 6 / e, the joint skewness 2 (d + 2) / e.
    """
    mean = np.mean(statistics, axis=0)
    ess = np.maximum(np.mean([report.ess for report in reports], axis=0), 1.0)
    noise = variance / (ess * len(reports))
    return np.sign(mean) * np.sqrt(np.maximum(mean**2 - noise, 0.0))


def strange_shard(combined: Combined) -> tuple[int, int] | None:
    """Name the shard that looks drawn from another population, and the coordinate that shows it.

    At the combined mean the gradient of a shard's log likelihood, its score, has mean zero and
    its share of the precision as covariance. Real data are more dispersed than any model, in all
    shards alike, so a shard's score is held against the median and the median absolute deviation
    of all shards, wherever that is wider than the model says.
    """
    last = combined.rounds[-1]
    if len(last.reports) < _FEW_SHARDS:
        return None
    precision = gaussian.inverse(last.covariance)
    away = last.anchor_precision @ (last.mean - last.anchor_mean)
    scores = np.array(
        [
            (gaussian.as_matrix(report.precision) @ (report.mean - last.mean) + away)
            / np.sqrt(np.diag(precision) * report.weight * (1 - report.weight))
            for report in last.reports
        ]
    )
    centred = scores - np.median(scores, axis=0)
    spread = np.maximum(1.0, scipy.stats.median_abs_deviation(scores, axis=0, scale="normal"))
    distance = np.abs(centred) / spread
    k, worst = divmod(int(distance.argmax()), distance.shape[1])
    # Of few shards the spread is badly known; a stranger then also stands apart from the next.
    runner_up = np.sort(np.abs(centred[:, worst]))[-2]
    apart = len(scores) >= _MANY_SHARDS or abs(centred[k, worst]) > _APART * runner_up
    far = distance[k, worst] > default("strange-shard")
    return (k, worst) if far and apart else None
