"""Hypothesis strategies: tables of nested groups, and ways to cut them into shards."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from hypothesis import strategies as st

from .models import frame

# Rows of each county of each region. Every other shape costs a compilation of every model.
TABLES = (((2, 1, 3), (4,), (1, 3)), ((3, 2),))


class Cut(NamedTuple):
    """A table, the shard of each row, and whether shards are padded to one shape."""

    table: pd.DataFrame
    shard: np.ndarray
    padded: bool
    seed: int


seeds = st.integers(0, 2**31)


@st.composite
def cuts(draw: Any, by: tuple[str, ...]) -> Cut:
    """Cut rows into shards at random, without splitting an outermost group."""
    seed = draw(seeds)
    table = frame(draw(st.sampled_from(TABLES)), seed)
    codes, labels = pd.factorize(table[by[0]] if by else table.index)
    n_shards = draw(st.integers(1, min(len(labels), 4)))
    # The first groups fill the shards one by one, so that none is empty.
    rng = np.random.default_rng(seed)
    dealt = np.append(np.arange(n_shards), rng.integers(n_shards, size=len(labels) - n_shards))
    return Cut(table, dealt[codes], draw(st.booleans()), seed)


@st.composite
def draws(draw: Any, max_shards: int = 9) -> np.ndarray:
    """Draws ``(shards, chains, draws, d)`` of correlated coordinates on different scales."""
    n_shards, dim = draw(st.integers(1, max_shards)), draw(st.integers(1, 4))
    chains = draw(st.integers(1, 2))
    rng = np.random.default_rng(draw(seeds))
    mixing = rng.normal(size=(n_shards, dim, dim)) + 2 * np.eye(dim)
    scales = np.exp(rng.normal(size=dim))
    z = rng.normal(size=(n_shards, chains, 40, dim))
    return np.einsum("sij,scnj->scni", mixing, z) * scales + rng.normal(size=dim)
