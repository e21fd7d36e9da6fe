"""Whether searches were enough: several reached what was found, and they could see everything."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..cluster.shards import Shards
from .ascent import STEP, Peak
from .mode_search import Found, apart, distinct, searched_shards
from .reports import Expansions, LaplaceApproximation

_AS_HIGH = 1.0  # log density by which images of a mode differ at most
_CHANGE = 0.1  # of a variance, by one mode more, that matters
_SEEN = 0.1  # of what a direction's share should be, that searched shards know of it at least


class Top(NamedTuple):
    """A mode of all shards, and how many searches led there."""

    peak: Peak
    approximation: LaplaceApproximation
    reached: int


def highest(tops: Sequence[Top]) -> Top:
    """Take the highest of some modes."""
    return max(tops, key=lambda top: top.peak.height)


def n_reached(found: Sequence[Found]) -> int:
    """Count the searches that reached the highest peak, or an image that is as high."""
    top = found[0].peak.height
    return sum(one.reached for one in found if one.peak.height > top - _AS_HIGH)


def lone(tops: Sequence[Top]) -> int:
    """Count the modes beside others that one search alone has reached, and that matter.

    There may be others like them that none has (Good 1953, Biometrika 40, section 2): they matter
    if one more of their mass, as far away, would change a variance.
    """
    summits = distinct([top.peak for top in tops])
    if len(summits) < 2:
        return 0
    masses = np.array([peak.height + np.linalg.slogdet(peak.covariance)[1] / 2 for peak in summits])
    shares = np.exp(masses - masses.max())
    shares /= shares.sum()
    centers = np.array([peak.u for peak in summits])
    within = np.array([np.diag(peak.covariance) for peak in summits])
    away = (centers - shares @ centers) ** 2
    change = shares * (away / (shares @ (within + away))).max(axis=1)
    reached = [
        sum(top.reached for top in tops if not apart(top.peak, summit)) for summit in summits
    ]
    # Images are known without a search.
    return int(((change > _CHANGE) & (np.array(reached) == 1)).sum())


def blind(told: Expansions | None, shards: Shards) -> int | None:
    """Name the shard that knows most of a direction that those searched know nothing of; or None.

    Information is curvature at the mode, of each shard, the prior's shared among all.
    """
    if told is None or not np.isfinite(told.precision).all():
        return None
    root = told.axes / STEP
    white = np.einsum("ji,kjl,lm->kim", root, told.precision, root, optimize=True)
    searched = searched_shards(shards)
    share = sum(shards.weights[k] for k in searched)
    values, vectors = np.linalg.eigh(white[searched].sum(axis=0))
    if values[0] > _SEEN * share:
        return None
    # Of a scale the curvature of few groups has either sign: what cancels is known all the same.
    known = np.abs(np.einsum("i,kij,j->k", vectors[:, 0], white, vectors[:, 0]))
    return None if known[searched].sum() > _SEEN * share * known.sum() else int(np.argmax(known))
