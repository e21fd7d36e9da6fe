"""Rows that a sample of shards may misjudge: what matters lies in a few of them.

Any number of rows; groups lie in shards by the hash of their key, or as the frame is divided.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.special import expit

from .hostile.responses import student_errors
from .sized import TRUTH, simulate_binary, simulate_slopes, slopes
from .sound import logistic_intercepts

_ROWS_A_GROUP = 5


class Uneven(NamedTuple):
    """A model, the rows of a size that may be chosen, and how they reach their shards."""

    model: Callable[..., None]
    frame: Callable[[np.random.Generator, int], pd.DataFrame]
    divided: bool = False  # by key, as a sorted table is: shards are runs of neighbours


def _binary(rng: np.random.Generator, group: np.ndarray, x: np.ndarray) -> pd.DataFrame:
    a = rng.normal(-0.5, 1.0, group.max() + 1)
    y = rng.random(len(group)) < expit(a[group] + 0.7 * x)
    return pd.DataFrame({"group": group, "x": x, "y": y.astype(float)})


def _even(rows: int) -> np.ndarray:
    return np.repeat(np.arange(rows // _ROWS_A_GROUP), _ROWS_A_GROUP)


def _gaussian(rng: np.random.Generator, rows: int) -> pd.DataFrame:
    return simulate_slopes(rng, np.full(rows // 10, 10))[0]


def _plain(rng: np.random.Generator, rows: int) -> pd.DataFrame:
    return simulate_binary(rng, np.full(rows // _ROWS_A_GROUP, _ROWS_A_GROUP))[0]


def _rare(rng: np.random.Generator, rows: int) -> pd.DataFrame:
    """A level of a covariate that one row in 10,000 has."""
    group = _even(rows)
    return _binary(rng, group, (rng.random(len(group)) < 1e-4).astype(float))


def _lone(rng: np.random.Generator, rows: int) -> pd.DataFrame:
    """A binary covariate that is 1 in one group, and so in one shard."""
    group = _even(rows)
    group[:60] = 0
    return _binary(rng, group, (group == 0) * (rng.random(len(group)) < 0.5).astype(float))


def _giants(rng: np.random.Generator, rows: int) -> pd.DataFrame:
    """One group in a thousand has 300 times the rows of others: 30% of all."""
    sizes = np.full(max(rows * 7 // (10 * _ROWS_A_GROUP), 1000), _ROWS_A_GROUP)
    sizes[rng.choice(len(sizes), len(sizes) // 1000, replace=False)] *= 430
    group = np.repeat(np.arange(len(sizes)), sizes)
    return _binary(rng, group, rng.normal(size=len(group)))


def _heavy_tails(rng: np.random.Generator, rows: int) -> pd.DataFrame:
    """Student's t of 2.5 degrees of freedom, and 20 rows further out than that would ever be."""
    group = _even(rows)
    x, a = rng.normal(size=len(group)), rng.normal(1.0, 1.0, group.max() + 1)
    y = a[group] + 0.5 * x + rng.standard_t(2.5, len(group))
    y[rng.choice(len(y), 20, replace=False)] += 1e5
    return pd.DataFrame({"group": group, "x": x, "y": y})


def _stranger(rng: np.random.Generator, rows: int) -> pd.DataFrame:
    """The last hundredth of a sorted table is drawn from another population."""
    frame = _gaussian(rng, rows)
    last = frame.index[-len(frame) // 100 :]
    frame.loc[last, "y"] = rng.normal(-2.0, 3.0 * TRUTH["sigma"], len(last))
    return frame


def _by_size(rng: np.random.Generator, rows: int) -> pd.DataFrame:
    """Groups of 1 to 29 rows, sorted by their size; the effects of large ones are larger."""
    sizes = np.sort(rng.integers(1, 30, rows // 15))
    group = np.repeat(np.arange(len(sizes)), sizes)
    frame = _binary(rng, group, rng.normal(size=len(group)))
    p = expit(rng.normal(-1.0, 1.0, len(sizes))[group] + sizes[group] / 15 + 0.7 * frame["x"])
    return frame.assign(y=(rng.random(len(group)) < p).astype(float))


def _by_time(rng: np.random.Generator, rows: int) -> pd.DataFrame:
    """Groups sorted by time, over which all that the model takes for constant drifts."""
    frame, _ = simulate_slopes(rng, np.full(rows // 10, 10))
    time = np.linspace(-1, 1, len(frame))
    return frame.assign(
        y=frame["y"] + time * (1 + frame["x"]) + time**2 * rng.normal(size=len(time))
    )


UNEVEN = {
    "slopes": Uneven(slopes, _gaussian),
    "binary": Uneven(logistic_intercepts, _plain),
    "rare-level": Uneven(logistic_intercepts, _rare),
    "lone-level": Uneven(logistic_intercepts, _lone),
    "giants": Uneven(logistic_intercepts, _giants),
    "heavy-tails": Uneven(student_errors, _heavy_tails),
    "stranger": Uneven(slopes, _stranger, divided=True),
    "by-size": Uneven(logistic_intercepts, _by_size, divided=True),
    "by-time": Uneven(slopes, _by_time, divided=True),
}


def frame_of(case: Uneven, rows: int, seed: int, n_partitions: int) -> Any:
    """Make the rows of a case a Dask DataFrame."""
    import dask.dataframe as dd

    frame = case.frame(np.random.default_rng([61, seed]), rows)
    if case.divided:
        return dd.from_pandas(frame.set_index("group").sort_index(), npartitions=n_partitions)
    return dd.from_pandas(frame, npartitions=n_partitions, sort=False)
