"""Frames and models drawn at random: is each cut into the right shards, or refused in words?

Outcomes are ``right``, ``refused`` (an error that the package raises) and ``warned`` (an answer
with a word of what is wrong with it); and what must not be: ``silent`` (a wrong answer, or a defect
that nobody heard of), ``crash`` (an error that happened to the package) and ``hanging``.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any

import dask
import numpy as np

from ..cases.odd_frames import OddFrame, grouped, odd_frame, of_rows
from ..cases.odd_models import OddModel, odd_model
from .fits import on_purpose
from .internals import Cut, cut, densities

WELL = ("right", "refused", "warned")
Answer = Callable[[dict[str, Any]], dict[str, Any]]


def frames() -> Answer:
    """What tries a block of frames, by their numbers."""
    return lambda key: _tried(range(key["first"], key["first"] + key["count"]), frame_outcome)


def models() -> Answer:
    """What tries a block of models."""
    return lambda key: _tried(range(key["first"], key["first"] + key["count"]), model_outcome)


def _tried(numbers: Iterable[int], outcome: Callable[[int], tuple[str, str]]) -> dict[str, Any]:
    """Count outcomes, and keep what was said of those that must not be."""
    counts: dict[str, int] = {}
    wrong = []
    for number in numbers:
        what, said = outcome(number)
        counts[what] = counts.get(what, 0) + 1
        if what not in WELL:
            wrong.append([number, what, said])
    return {"outcomes": counts, "wrong": wrong}


def frame_outcome(number: int) -> tuple[str, str]:
    """Cut a frame drawn at random into shards, and look at every row of them."""
    odd = odd_frame(number)
    model = of_rows if odd.group is None else grouped
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with dask.config.set(scheduler="synchronous"):
            try:
                made = cut(odd.frame, model, odd.n_shards, **odd.named)
            except Exception as error:
                if on_purpose(error):
                    return "refused", str(error)
                return "crash", f"{odd.what}: {type(error).__name__}: {error}"
    if odd.defect:
        return "silent", f"{odd.what}: nothing was said"
    wrong = _misplaced(odd, made)
    return ("silent", f"{odd.what}: {wrong}") if wrong else ("right", "")


def _misplaced(odd: OddFrame, made: Cut) -> str:
    """Say which rows did not arrive as they were; empty where all did, each group whole."""
    rows = [
        (shard.arguments["x"], shard.arguments["y"], _group_of(shard, k))
        for k, shard in enumerate(made.shards)
    ]
    x, y, place = (np.concatenate(parts) for parts in zip(*rows, strict=True))
    if len(x) != len(odd.x):
        return f"{len(odd.x)} rows, {len(x)} in the shards"
    ours, theirs = np.lexsort((y, x)), np.lexsort((odd.y, odd.x))
    if not (np.array_equal(x[ours], odd.x[theirs]) and np.array_equal(y[ours], odd.y[theirs])):
        return "values are not what they were"
    if odd.group is None:
        return ""
    # A pair of values may come twice: then either of its rows may be meant.
    pairs = np.column_stack([odd.x[theirs], odd.y[theirs]])
    single = np.unique(pairs, axis=0, return_index=True, return_counts=True)
    once = single[1][single[2] == 1]
    both = np.column_stack([odd.group[theirs][once], place[ours][once]])
    found = len(np.unique(both, axis=0))
    if not found == len(np.unique(both[:, 0])) == len(np.unique(both[:, 1])):
        return "rows of one group were divided, or groups were mixed"
    n = len(np.unique(odd.group))
    return "" if made.groups == n else f"{n} groups, {made.groups} counted"


def _group_of(shard: Any, number: int) -> np.ndarray:
    codes = shard.arguments.get("g")
    return np.zeros(shard.rows) if codes is None else codes + number * 1e6


def model_outcome(number: int) -> tuple[str, str]:
    """Read a model drawn at random; hold its shards' densities against NumPyro's of all rows."""
    odd = odd_model(number)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with dask.config.set({"scheduler": "synchronous", "consensus.cache": ""}):
            try:
                plan, ours, theirs, size = densities(odd)
            except Exception as error:
                if on_purpose(error):
                    return "refused", str(error)
                return "crash", f"{odd.what}: {type(error).__name__}: {error}"
    told = plan.model.coupled or any("the model" in str(one.message) for one in caught)
    if abs(ours - theirs) <= 1e-9 * size:
        return "right", ""
    if told:
        return "warned", ""
    return "silent", f"{odd.what}: {ours} in shards, {theirs} in all ({_kind(odd)})"


def _kind(odd: OddModel) -> str:
    return odd.mistake or "no mistake"
