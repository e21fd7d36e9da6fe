"""Hypothesis strategies: tables of nested groups, and ways to cut them into shards."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from hypothesis import strategies as st

from .models import frame


class Cut(NamedTuple):
    """A table, the shard of each row, and how much to pad shards."""

    table: pd.DataFrame
    shard: np.ndarray
    extra_rows: int
    extra_groups: int
    seed: int


seeds = st.integers(0, 2**31)


@st.composite
def cuts(draw: Any, by: tuple[str, ...]) -> Cut:
    """Cut rows into shards at random, without splitting an outermost group."""
    sizes = draw(
        st.lists(
            st.lists(st.integers(1, 4), min_size=1, max_size=3), min_size=1, max_size=4
        ).filter(lambda sizes: sum(map(sum, sizes)) > 1)
    )
    seed = draw(seeds)
    table = frame(sizes, seed)
    key = table[by[0]] if by else table.index
    codes, labels = pd.factorize(key)
    n_shards = draw(st.integers(1, len(labels)))
    # The first groups fill the shards one by one, so that none is empty.
    rng = np.random.default_rng(seed)
    dealt = np.append(np.arange(n_shards), rng.integers(n_shards, size=len(labels) - n_shards))
    padding = draw(st.tuples(st.integers(0, 3), st.integers(0, 2)))
    return Cut(table, dealt[codes], *padding, seed)


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
