"""Where else a posterior may be as high: a mode of which some sites are drawn anew.

A second place that a prior names, or that rows leave open, may be as high as the first in a few
sites, the others staying where they are; but a draw of the prior is low for the sake of these
others, and a search from it ends at the first. So sites of the best place are exchanged for those
of draws, one at a time, one of their coordinates, or half of all: the uniform crossover of
evolutionary search (Syswerda 1989, Proceedings of the 3rd International Conference on Genetic
Algorithms).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..model.model import Latent
from .ascent import Array

_MOST = 768  # points


def redrawn(u: Array, draws: Array, sites: Sequence[Latent], rng: np.random.Generator) -> Array:
    """Exchange some of the coordinates of ``u`` ``(d,)`` for those of `draws` ``(n, d)``.

    Returns
    -------
    (m, d) array
        None of one coordinate alone, which the draws themselves have tried.
    """
    number = np.repeat(np.arange(len(sites)), [site.size for site in sites])
    n, d = _MOST, len(u)
    if d < 2:
        return np.empty((0, d))
    # Each site in turn; of every fourth point one coordinate, of every fourth half of all sites.
    turn = np.arange(n) % len(sites)
    taken = turn[:, None] == number
    taken[2::4] = rng.integers(d, size=len(taken[2::4]))[:, None] == np.arange(d)
    taken[3::4] = (rng.random((len(taken[3::4]), len(sites))) < 0.5)[:, number]
    drawn = draws[rng.permutation(np.resize(np.arange(len(draws)), n))]
    return np.where(taken, drawn, u)
