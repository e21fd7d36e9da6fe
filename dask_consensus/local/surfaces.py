"""Log likelihoods of many groups at all draws, from those at few.

Where there are many groups, the posterior of the shared parameters is so narrow that the log
likelihood of each group hardly bends in it: a polynomial of second degree through its values at a
few draws says what it is at the others. All groups share the draws, so that one small matrix serves
them all; and whether it holds is looked at, group by group, at draws that lie far out.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy.linalg

_TIMES = 2  # as many draws as a polynomial has terms
_OF_SD = 0.02  # of a group's sd over the draws that a value far out may be off
_NATS = 1e-4  # or so much
_SAVED = 0.6  # share of the draws beyond which asking few saves too little


class Surfaces(NamedTuple):
    """Which of S draws are asked, and what they say of all."""

    asked: np.ndarray  # (n,) draws to fit to, then draws to check at
    spread: np.ndarray  # (S, m) matrix from values at the first m of these to all draws

    @property
    def rest(self) -> np.ndarray:
        """The draws that are not asked."""
        return np.setdiff1d(np.arange(len(self.spread)), self.asked)

    def filled(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Go from values ``(n, G)`` at the draws that are asked to all, ``(S, G)``.

        And tell of which groups this holds, ``(G,)``.
        """
        fitted = self.spread.shape[1]
        with np.errstate(invalid="ignore", over="ignore"):
            everywhere = self.spread @ values[:fitted]
            away = np.abs(everywhere[self.asked[fitted:]] - values[fitted:]).max(axis=0)
            sound = away <= _OF_SD * everywhere.std(axis=0) + _NATS
        everywhere[self.asked] = values
        return everywhere, sound


def surfaces_of(draws: np.ndarray) -> Surfaces | None:
    """Choose among draws ``(S, d)``; None where so many would be needed that all may be asked."""
    n, d = draws.shape
    terms = (d + 1) * (d + 2) // 2
    checks = terms + 2
    if _TIMES * terms + checks > _SAVED * n:
        return None
    away = draws - draws.mean(axis=0)
    # Directions without any spread have no terms.
    sizes, axes = np.linalg.eigh(away.T @ away / n)
    kept = sizes > 1e-12 * sizes.max(initial=0)
    standard = away @ (axes[:, kept] / np.sqrt(sizes[kept]))
    basis = _second_degree(standard)
    chosen: list[int] = []
    for _ in range(_TIMES):
        # The draws that say most of the terms, as far as they are not taken yet.
        left = np.setdiff1d(np.arange(n), chosen)
        order = scipy.linalg.qr(basis[left].T, mode="r", pivoting=True)[1]
        chosen += left[order[: basis.shape[1]]].tolist()
    left = np.setdiff1d(np.arange(n), chosen)
    outermost = left[np.argsort(-np.sum(standard[left] ** 2, axis=1))][:checks]
    return Surfaces(np.append(chosen, outermost), basis @ np.linalg.pinv(basis[chosen]))


def _second_degree(points: np.ndarray) -> np.ndarray:
    """Evaluate all products of up to two coordinates, ``(S, terms)``."""
    i, j = np.triu_indices(points.shape[1])
    return np.column_stack([np.ones(len(points)), points, points[:, i] * points[:, j]])
