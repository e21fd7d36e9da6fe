"""A trial: a case whose data are drawn anew with every seed, and what is true of a refusal."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any
from zlib import crc32

import numpy as np
import pandas as pd

from ..case import Case, Problem

Moments = Mapping[str, tuple[float, float]]  # coordinate of u -> mean, sd

# What weights that miss part of the posterior show, by whichever check sees it first.
WEIGHTS = ("k-hat", "ess", "sd-error", "tail")
# What chains of shards show, and what an uncorrected combination does.
CHAINS = ("r-hat", "shard-ess", "divergences", "approximate-error", "moving")
EFFECTS = ("integration", "modes-not-found")


def _no_rows(rng: np.random.Generator) -> pd.DataFrame:
    raise NotImplementedError("a trial says how its rows are drawn")


@dataclass(frozen=True)
class Trial(Case):
    """A case built to break the verdict.

    Attributes
    ----------
    draw : callable
        Rows from a random generator; shapes are the same for every seed.
    truths : tuple of str
        Codes of reasons that would be true, ``"error"`` of a refusal before anything is sampled.
    notable : bool
        A refusal for a true reason is right, however near the answer comes.
    by_hand : callable, optional
        From the frame, a problem with the same posterior of the shared sites that NUTS samples
        well: effects integrated out in closed form or on a dense grid.
    grid : mapping, optional
        Unconstrained coordinate -> lowest, highest, number of points: the posterior is summed.
    exact : callable, optional
        From the frame, mean and sd of every unconstrained coordinate, without any sampling.
    summed : callable, optional
        From the frame, the content of a reference, effects of groups integrated out by hand.
    jitter : float
        Chains of a reference start so far apart, at most, in each unconstrained coordinate.
    """

    draw: Callable[[np.random.Generator], pd.DataFrame] = _no_rows
    truths: tuple[str, ...] = ()
    notable: bool = False
    by_hand: Callable[[pd.DataFrame], Problem] | None = None
    grid: Mapping[str, tuple[float, float, int]] | None = None
    exact: Callable[[pd.DataFrame], Moments] | None = None
    summed: Callable[[pd.DataFrame], dict[str, Any]] | None = None
    jitter: float = 0.3

    def at(self, seed: int) -> Trial:
        """Take the data of a seed."""
        words = [seed, crc32(self.name.encode())]
        return replace(self, frame=lambda: self.draw(np.random.default_rng(words)))

    def arguments(self, frame: pd.DataFrame) -> tuple[dict[str, np.ndarray], dict[str, int]]:
        """Everything the model takes: keys may be nested, and categories have a number too."""
        keys = [self.by] if isinstance(self.by, str) else list(self.by or ())
        arrays, counts = {}, {}
        for name in inspect.signature(self.model).parameters:
            column = self.columns.get(name, name)
            if column in keys:
                # A group of an inner key is one within a group of the outer ones.
                nested = frame[keys[: keys.index(column) + 1]].astype(str).agg("/".join, axis=1)
                codes, groups = pd.factorize(nested, sort=True)
                arrays[name], counts[f"n_{name}"] = codes.astype(np.int32), len(groups)
            elif column in frame and isinstance(frame[column].dtype, pd.CategoricalDtype):
                arrays[name] = frame[column].cat.codes.to_numpy(np.int32)
                counts[f"n_{name}"] = len(frame[column].cat.categories)
            elif column in frame:
                arrays[name] = frame[column].to_numpy()
        takes = inspect.signature(self.model).parameters
        return arrays, {name: count for name, count in counts.items() if name in takes}

    def problem(self, frame: pd.DataFrame) -> Problem:
        """The full fit: by hand where that is given, or else as in any case."""
        return super().problem(frame) if self.by_hand is None else self.by_hand(frame)


TRIALS: dict[str, Trial] = {}


def trial(name: str, **fields: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a trial of the model that follows; fields are those of :class:`Trial`."""

    def register(model: Callable[..., None]) -> Callable[..., None]:
        fields.setdefault("shards", (4, 10, 1))
        TRIALS[name] = Trial(name, model, frame=lambda: TRIALS[name].at(0).frame(), **fields)
        return model

    return register


def statistics(frame: pd.DataFrame, by: str, y: str = "y") -> dict[str, np.ndarray]:
    """Size, mean and sum of squares about it of every group."""
    groups = frame.groupby(by)[y]
    mean = groups.mean().to_numpy()
    squares = (groups.var(ddof=0) * groups.size()).to_numpy()
    return {"n": groups.size().to_numpy(np.float64), "mean": mean, "squares": squares}


def codes(groups: int, each: int) -> np.ndarray:
    """Codes of groups of equal size."""
    return np.repeat(np.arange(groups), each)


def moments_on_grid(heights: np.ndarray, axes: Mapping[str, np.ndarray]) -> Moments:
    """Mean and sd along each axis of a grid of log densities."""
    weights = np.exp(heights - heights.max())
    weights /= weights.sum()
    moments = {}
    for axis, (name, values) in enumerate(axes.items()):
        w = weights.sum(axis=tuple({*range(heights.ndim)} - {axis}))
        mean = w @ values
        moments[name] = (float(mean), float(np.sqrt(w @ (values - mean) ** 2)))
    return moments
