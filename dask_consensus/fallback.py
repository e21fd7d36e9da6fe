"""What is tried next where the quick answer is not good enough."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from .cluster.client import say
from .cluster.shards import Shards
from .combination.methods import combine, combine_longer
from .combination.reports import Combined, Guess
from .combination.subposterior import SamplingFailed
from .correction.assessment import nearest, usable
from .correction.state import Correction
from .plan.plan import Plan
from .result.clock import Clock
from .result.verdict import Verdict, evidence_of, judge
from .warned import warn

Correct = Callable[[Plan, Shards, Guess | None, Combined], Correction | None]


class Found(NamedTuple):
    """An answer, and what it was found from."""

    plan: Plan
    guess: Guess | None
    combined: Combined
    correction: Correction | None

    @property
    def unusable(self) -> bool:
        """Whether it was corrected by weights that do not even describe the posterior."""
        return self.correction is not None and not usable(self.correction)


def longer_if_unusable(found: Found, shards: Shards, clock: Clock, correct: Correct) -> Found:
    """Sample shards, and for longer, where a quick proposal's weights cannot be used.

    The better of the two answers is kept.
    """
    plan, guess, combined, correction = found
    crossed = guess is not None and guess.crossed is not None
    if guess is None or correction is None or not found.unusable or plan.n_shards == 1 or crossed:
        return found
    with clock("rounds"):
        try:
            longer = combine_longer(plan, shards, guess, combined)
        except SamplingFailed as error:  # there is an answer already
            warn(f"no longer rounds: {error}")
            return found
    with clock("correction"):
        again = correct(plan, shards, guess, longer)
    if again is not None and nearest([correction, again]):
        return found._replace(combined=longer, correction=again)
    return found


def chains_if_bad(found: Found, shards: Shards, clock: Clock) -> tuple[Found, Verdict]:
    """Judge the answer; where all rows lie in one place and it is bad, let NUTS sample them all.

    Chains on all rows need no weights and no integrals. Their answer is kept where it is good, and
    where the other was no answer at all.
    """
    plan, guess, combined, correction = found
    evidence = evidence_of(plan, guess, combined, correction)
    verdict = judge(evidence)
    if combined.method != "laplace" or not plan.gives_up or verdict.good:
        return found, verdict
    because = f"the correction of a Gaussian about its mode failed ({verdict.codes})"
    with clock("rounds"):
        chains = _chains(found._replace(plan=plan.giving_up(because)), shards)
    if chains is None:
        return found, verdict
    of_chains = judge(evidence_of(*chains))
    if of_chains.good or found.unusable or plan.obstacle:
        return chains, of_chains
    return found, judge(evidence._replace(nuts_failed=of_chains.codes))


def _chains(found: Found, shards: Shards) -> Found | None:
    """Sample all rows; None, with a warning, where that failed: there is an answer already."""
    plan, guess, *_ = found
    say(f"NUTS on all rows, because {plan.nuts_because}")
    try:
        combined = combine(plan, shards, None)
    except SamplingFailed as error:
        warn(f"NUTS on all rows: {error}")
        return None
    if guess is not None and guess.crossed is not None:
        # Its modes are those of fewer coordinates.
        guess = guess._replace(approximation=None)
    return Found(plan, guess, combined, None)
