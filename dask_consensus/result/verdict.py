"""The verdict: is this the full model's posterior, how accurately, and if not, why."""

from __future__ import annotations

import json
from typing import NamedTuple

import numpy as np

from ..combination.reports import Combined, Guess
from ..correction.assessment import usable
from ..correction.state import Correction
from ..plan.page import page, paragraph
from ..plan.plan import Plan
from ..warned import warn
from .estimates import approximate_error
from .reasons import SIZE_UNKNOWN, Earlier, Evidence, Reason, reasons_against, sections


class Verdict(NamedTuple):
    """What may be believed.

    Attributes
    ----------
    good : bool
    error : (d,) array
        Estimated error of each unconstrained mean, in posterior sds; infinite where unknown.
    reasons : tuple of Reason
        Why not, and what to change; empty if good.
    text : str
        One paragraph, which ends with the sections of the documentation on the reasons, if any.
    """

    good: bool
    error: np.ndarray
    reasons: tuple[Reason, ...]
    text: str

    @property
    def codes(self) -> str:
        """Codes of the reasons, each once."""
        return ", ".join(dict.fromkeys(reason.code for reason in self.reasons))

    @property
    def summary(self) -> str:
        """Whether it is good, and how far means may be off."""
        worst = float(np.max(self.error))
        size = f"within {worst:.2g} posterior sds" if np.isfinite(worst) else "off by any amount"
        return f"good, means {size}" if self.good else f"not to be relied on ({self.codes})"

    def _repr_html_(self) -> str:
        title = "\u2713 good" if self.good else "\u2717 not to be relied on"
        parts = [paragraph(self.text)]
        parts += [paragraph(f"{reason.code}: {reason.remedy}", "note") for reason in self.reasons]
        return page(title, parts, "good" if self.good else "bad")

    def reasons_as_json(self) -> str:
        """Write the reasons as a JSON list of objects; a number that is not finite is null."""
        return json.dumps(
            [
                {
                    name: (float(field) if np.isfinite(field) else None)
                    if name in ("value", "threshold")
                    else field
                    for name, field in reason._asdict().items()
                }
                for reason in self.reasons
            ]
        )


def evidence_of(
    plan: Plan, guess: Guess | None, combined: Combined, correction: Correction | None
) -> Evidence:
    """Collect what the diagnostics of all stages say."""
    return Evidence(
        names=plan.model.coordinate_names(),
        options=plan.options,
        combined=combined,
        correction=correction,
        uncorrected_because=plan.uncorrected_because,
        correctable=not plan.obstacle,
        modes=1 if guess is None else guess.modes,
        approximation=None if guess is None else guess.approximation,
        coupled=plan.model.coupled,
        local_sites=[site.name for site in plan.model.local],
        nuts_because=plan.nuts_because,
    )


def judge(evidence: Evidence) -> Verdict:
    """Combine every diagnostic into one verdict."""
    error = _error(evidence)
    error = np.where(np.isnan(error), np.inf, error)
    reasons = tuple(reasons_against(evidence, error))
    codes = {reason.code for reason in reasons}
    if evidence.earlier is not None:
        codes |= set(evidence.earlier.codes)
    if codes & SIZE_UNKNOWN:
        error = np.full_like(error, np.inf)
    return Verdict(not reasons, error, reasons, _text(evidence, error, reasons))


def warn_if_bad(verdict: Verdict) -> None:
    """Warn, once, of a bad verdict."""
    if not verdict.good:
        warn(verdict.text)


def _error(evidence: Evidence) -> np.ndarray:
    """Estimate the error of each mean, in posterior sds; infinite where its size is unknown."""
    correction = evidence.correction
    if evidence.alone:
        nuts = evidence.combined.rounds[-1].reports[0].nuts
        assert nuts is not None
        return np.asarray(1 / np.sqrt(np.maximum(nuts.ess, 1.0)))
    if correction is None:
        error = approximate_error(evidence.combined, evidence.approximation)
        if evidence.earlier is not None:
            error = np.hypot(error, evidence.earlier.carried)
        return np.full_like(error, np.inf) if evidence.coupled else error
    error = np.hypot(correction.estimate.error, correction.integration_error)
    error = np.hypot(error, correction.sampling_error)
    if correction.beyond is not None:
        error = np.hypot(error, correction.beyond.mean)
    if correction.coordinates is not None:
        known_of = error
        error = np.full(len(evidence.names), np.inf)
        error[correction.coordinates] = known_of
        if correction.levels is not None:
            error[correction.levels.effects] = correction.levels.error
    # Weights that cannot be used show that the combination is far off, and not how far; and the
    # shards of coupled groups weigh by another model.
    known = usable(correction) and not evidence.coupled
    return error if known else np.full_like(error, np.inf)


def _text(evidence: Evidence, error: np.ndarray, reasons: tuple[Reason, ...]) -> str:
    worst = int(np.argmax(error))
    size = f"about {error[worst]:.2g} posterior sds (on {evidence.names[worst]})"
    off = f"{size} or more"
    if np.isinf(error[worst]):
        size = off = "an unknown amount"
    how = _what_was_done(evidence)
    if reasons:
        why = "; ".join(map(str, reasons))
        return (
            f"Not to be relied on as the full model's posterior. {how}; means may be off by {off}. "
            f"Why: {why}. See {sections(reasons)}."
        )
    certain = evidence.alone or evidence.correction is not None
    what = "Good: this is the full model's posterior" + ("" if certain else ", approximately")
    return f"{what}. {how}; means are within {size}."


def _what_was_done(evidence: Evidence) -> str:
    correction, earlier = evidence.correction, evidence.earlier
    if earlier is not None:
        return _what_was_added(evidence, earlier)
    if evidence.alone:
        return _what_was_sampled(evidence)
    n_shards, asked = len(evidence.combined.rounds[-1].reports), ""
    if correction is None:
        what = "The combination of shards" if n_shards > 1 else "The Gaussian about the mode"
        return f"{what} was not corrected, because {evidence.uncorrected_because}"
    if correction.sampled_shards:
        asked = (
            f", on {correction.sampled_shards:,} of {n_shards:,} shards that stand for all to "
            f"{correction.sampling_error.max():.1g} posterior sds"
        )
    place = "the combination" if n_shards > 1 else "its mode"
    tried = evidence.nuts_failed and f"; NUTS on all rows did no better ({evidence.nuts_failed})"
    return (
        f"The full posterior was evaluated at {len(correction.weights):,} points around {place}"
        f"{asked} {_how_good(correction)}{tried}"
    )


def _what_was_sampled(evidence: Evidence) -> str:
    """Say what chains on all rows are worth, and why there are some."""
    n_chains, (nuts,) = len(evidence.combined.draws), evidence.nuts
    because = f", because {evidence.nuts_because}" if evidence.nuts_because else ""
    return (
        f"NUTS sampled all rows together{because}: {n_chains} chain{'s' * (n_chains > 1)} "
        f"(r_hat at most {np.max(nuts.r_hat):.2f}), as good as {nuts.ess.min():,.0f} independent "
        "draws"
    )


def _what_was_added(evidence: Evidence, earlier: Earlier) -> str:
    """Say what became of rows that arrived after a fit."""
    correction, which = evidence.correction, f"update {earlier.number}"
    new, rows = f"{earlier.new_rows:,} new rows", f"{earlier.rows:,}"
    if correction is None:
        return (
            f"{new} were added to the posterior of {rows}, taken to be Gaussian ({which}), and "
            f"the sum was not corrected, because {evidence.uncorrected_because}"
        )
    kept, adds = "", correction.sampling_error.max()
    if adds > 0:
        kept = f"; a sample, or an emulator, that speaks for old rows adds {adds:.1g} posterior sds"
    return (
        f"{new} were added to the posterior of {rows} ({which}), which is known at "
        f"{len(correction.weights):,} points of the earlier fit {_how_good(correction)}{kept}"
    )


def _how_good(correction: Correction) -> str:
    """Say how much weighted points are worth."""
    how = f"(k-hat {correction.k_hat:.2f}"
    if np.isfinite(correction.emulator_error):
        how += f"; its log, interpolated, errs by {correction.emulator_error:.1g} there"
    if not usable(correction):
        # What weights so uneven estimate is no number to go by, that of draws least of all.
        return (
            f"{how}), too unevenly weighted to be used: the posterior given is the uncorrected one"
        )
    return f"{how}), as good as {correction.estimate.ess:,.0f} independent draws"
