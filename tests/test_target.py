"""The identity on which everything rests: the shards' densities multiply to the full model's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpyro.infer.util import potential_energy

from dask_consensus.cluster.arrays import Column, Layout, Shard, pad, to_shard
from dask_consensus.shard.model import ROWS, ShardModel
from dask_consensus.shard.target import Data, PriorFactor, log_density, tempered

from .models import ZOO, frame, planned
from .strategies import Cut, cuts

ROW = "number of the row"


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


class Full(NamedTuple):
    """The whole table as the model receives it, coded here, by pandas, not by the package."""

    arguments: dict[str, np.ndarray]
    codes: list[np.ndarray]

    @classmethod
    def of(cls, table: pd.DataFrame, layout: Layout) -> Full:
        codes = [
            table.groupby(list(layout.by[: level + 1]), sort=False).ngroup().to_numpy()
            for level in range(len(layout.by))
        ]
        arguments = {}
        for argument, column, kind, level, categories in layout.columns:
            values = table[column]
            if kind == "group":
                arguments[argument] = codes[level]
            elif kind == "category":
                arguments[argument] = values.map({c: i for i, c in enumerate(categories)}).to_numpy(int)
            else:
                arguments[argument] = values.to_numpy()
        return cls(arguments, codes)

    @property
    def groups(self) -> tuple[int, ...]:
        return tuple(code.max() + 1 for code in self.codes)


class Piece(NamedTuple):
    """A shard's padded data, and where its rows and groups are in the full data."""

    data: Data
    weight: float
    positions: dict[int, np.ndarray]  # level -> position in the full data of each real entry


def cut_up(cut: Cut, layout: Layout, full: Full) -> list[Piece]:
    numbered = layout._replace(columns=(*layout.columns, Column(ROW, ROW, "value")), x64=True)
    table = cut.table.assign(**{ROW: np.arange(len(cut.table))})
    shards = [to_shard(part, numbered) for _, part in table.groupby(cut.shard)]
    rows = max(shard.rows for shard in shards) + cut.extra_rows
    groups = tuple(
        max(shard.groups[level] for shard in shards) + cut.extra_groups + 1
        for level in range(len(layout.by))
    )
    return [_piece(shard, rows, groups, full) for shard in shards]


def _piece(shard: Shard, rows: int, groups: tuple[int, ...], full: Full) -> Piece:
    data = Data(*pad(shard, rows, groups))
    row = data.arguments.pop(ROW)[: shard.rows]
    positions = {ROWS: row}
    for level, code in enumerate(full.codes):
        local = _codes(shard, level)
        _, first = np.unique(local, return_index=True)
        positions[level] = code[row[first]]
    return Piece(data, shard.rows / len(full.arguments[next(iter(full.arguments))]), positions)


def _codes(shard: Shard, level: int) -> np.ndarray:
    argument = next(name for name, at in shard.levels.items() if at == level)
    return shard.arguments[argument]


def read(name: str) -> tuple[ShardModel, Layout]:
    found = planned(name)
    return replace(found.model, x64=True), found.bindings.layout


def local_values(
    model: ShardModel, whole: Mapping[str, np.ndarray], piece: Piece, rng: np.random.Generator
) -> tuple[dict[str, np.ndarray], float]:
    """A shard's share of the local values, and the log density that its padding should have."""
    values, padding = {}, 0.0
    for site in model.local:
        shape = model.local_shapes(*piece.data.sizes)[site.name]
        value = np.moveaxis(rng.uniform(-1, 1, shape), site.axis, 0)
        own = piece.positions[site.level]
        value[: len(own)] = np.moveaxis(whole[site.name], site.axis, 0)[own]
        padding -= 0.5 * np.square(value[len(own) :]).sum()
        values[site.name] = np.moveaxis(value, 0, site.axis)
    return values, padding


@pytest.mark.parametrize("name", ZOO)
@settings(max_examples=6)
@given(data=st.data())
def test_shards_multiply_to_the_full_density(name: str, data: Any):
    model, layout = read(name)
    cut = data.draw(cuts(layout.by))
    rng = np.random.default_rng(cut.seed)
    full = Full.of(cut.table, layout)
    rows = len(cut.table)

    u = rng.uniform(-1, 1, model.dim)
    local = {k: rng.uniform(-1, 1, s) for k, s in model.local_shapes(rows, full.groups).items()}
    counts = {name: int(full.groups[level]) for name, level in model.counts.items()}
    keywords = {**full.arguments, **counts, **model.constants}
    expected = -potential_energy(ZOO[name].model, (), keywords, {**model.unravel(u), **local})

    def density(u, values, piece):
        factor = tempered(piece.weight, model.dim)
        return log_density(model, u, values, piece.data, factor)

    total, size = 0.0, 0.0
    for piece in cut_up(cut, layout, full):
        values, padding = local_values(model, local, piece, rng)
        value, gradient = jax.value_and_grad(density, argnums=(0, 1))(jnp.asarray(u), values, piece)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
        total += value - padding
        size += abs(value)
    # Two sums of the same float64 terms in another order, each good to about 1e-16 of its size.
    np.testing.assert_allclose(total, expected, rtol=1e-12, atol=1e-12 * size)
