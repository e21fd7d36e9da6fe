"""Draws of the shared parameters at which effects are found."""

from __future__ import annotations

import numpy as np

from ..combination import gaussian


def chosen(draws: np.ndarray, wanted: int) -> tuple[np.ndarray, np.ndarray]:
    """Take evenly spaced draws of each chain: which, and they themselves, ``(chains, n, d)``."""
    chains, n = draws.shape[:2]
    each_ = min(n, max(1, wanted // chains))
    which = np.unique(np.linspace(0, n - 1, each_).round().astype(int))
    return which, draws[:, which]


def representative(draws: np.ndarray, wanted: int) -> np.ndarray:
    """Take few draws ``(n, d)`` that have the mean and the covariance of all of them."""
    flat = draws.reshape(-1, draws.shape[-1])
    _, few = chosen(draws, wanted)
    few = few.reshape(-1, draws.shape[-1])
    if len(few) < len(flat) and len(few) > 2 * flat.shape[1] + 1:
        try:
            return gaussian.matched(few, *gaussian.moments(flat))
        except np.linalg.LinAlgError:  # draws that do not span the space
            return few
    return few + flat.mean(axis=0) - few.mean(axis=0)
