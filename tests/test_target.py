"""The identity on which everything rests: the shards' densities multiply to the full model's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import jax
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpyro.infer.util import potential_energy

from dask_consensus.frame.arrays import Column, Layout, to_shard
from dask_consensus.model.model import ShardModel, precision
from dask_consensus.shard.target import log_density, tempered
from dask_consensus.shard_data import ROWS, Shard, ShardData, Size, pad

from .models import ZOO, frame, planned
from .strategies import Cut, cuts

# Each has terms of the kinds that another model of the zoo has, too.
ALIKE = {
    "decentered", "deterministics", "flat_priors", "heavy_tails", "scoped", "second_axis",
    "support_that_depends_on_a_site", "transformed", "unit_interval", "vectors_and_matrices",
}  # fmt: skip

ROW = "number of the row"  # a column that tells which row of the table each row of a shard is


@pytest.fixture(autouse=True)
def x64():
    with precision(True):
        yield


class Full(NamedTuple):
    """The whole table as the model receives it, coded here by pandas, not by the package."""

    arguments: dict[str, np.ndarray]
    codes: list[np.ndarray]

    @classmethod
    def of(cls, table: pd.DataFrame, layout: Layout) -> Full:
        codes = [
            table.groupby(list(layout.by[: level + 1]), sort=False).ngroup().to_numpy()
            for level in range(len(layout.by))
        ]
        arguments = {}
        for argument, column, kind, level, categories, *_, item in layout.columns:
            if kind == "group":
                arguments[argument] = codes[level]
            elif kind == "category":
                arguments[argument] = np.array([categories.index(v) for v in table[column]])
            elif item >= 0:
                arguments[argument] = np.array(table[column].tolist())
            else:
                arguments[argument] = table[column].to_numpy()
        return cls(arguments, codes)

    @property
    def sizes(self) -> tuple[int, tuple[int, ...]]:
        return len(next(iter(self.arguments.values()))), tuple(c.max() + 1 for c in self.codes)


class Piece(NamedTuple):
    """A shard's data, and where its real rows and groups are in the full data, by level."""

    data: ShardData
    weight: float
    positions: dict[int, np.ndarray]


def pieces(cut: Cut, layout: Layout, full: Full) -> list[Piece]:
    # Lists are of the precision in which the plan was made, by whichever test came first.
    columns = [c._replace(dtype="float64") if c.item >= 0 else c for c in layout.columns]
    numbered = layout._replace(columns=(*columns, Column(ROW, ROW, "value")), x64=True)
    table = cut.table.assign(**{ROW: np.arange(len(cut.table))})
    found = []
    for _, part in table.groupby(cut.shard):
        shard = to_shard(part, numbered)
        sizes = (shard.rows, shard.groups)
        if cut.padded:
            rows, groups = full.sizes
            # A row for each padding group, as there always is.
            sizes = (rows + max(groups, default=0) + 2, tuple(count + 2 for count in groups))
        data = pad(shard, Size(*sizes))
        row = data.arguments.pop(ROW)[: shard.rows]
        found.append(Piece(data, shard.rows / len(table), positions_of(shard, row, full)))
    return found


def positions_of(shard: Shard, row: np.ndarray, full: Full) -> dict[int, np.ndarray]:
    positions = {ROWS: row}
    for argument, level in shard.levels.items():
        _, first = np.unique(shard.arguments[argument], return_index=True)
        positions[level] = full.codes[level][row[first]]
    return positions


def local_values(
    model: ShardModel, whole: Mapping[str, np.ndarray], piece: Piece, rng: np.random.Generator
) -> tuple[dict[str, np.ndarray], float]:
    """Return a shard's local values, and the log density that those of its padding should have."""
    values, padding = {}, 0.0
    for site in model.local:
        shape = model.local_shapes(*piece.data.size)[site.name]
        value = np.moveaxis(rng.uniform(-1, 1, shape), site.axis, 0)
        own = piece.positions[site.level]
        value[: len(own)] = np.moveaxis(whole[site.name], site.axis, 0)[own]
        padding -= 0.5 * np.square(value[len(own) :]).sum()
        values[site.name] = np.moveaxis(value, 0, site.axis)
    return values, padding


def read(name: str) -> tuple[ShardModel, Layout]:
    plan = planned(name)
    return replace(plan.model, x64=True), plan.bindings.layout


# Code that runs a few times: XLA need not try hard.
LEAST = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}


@cache
def compiled(name: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """NumPyro's log density of the full model; a shard's, with its gradient."""
    model, _ = read(name)

    def full(u, local, arguments, groups):
        values = {**model.unravel(u), **local}
        return -potential_energy(ZOO[name].model, (), model.keywords(arguments, groups), values)

    def shard(u, local, data, weight):
        return log_density(model, u, local, data, tempered(weight, model.dim))

    whole = jax.jit(full, static_argnums=3, compiler_options=LEAST)
    return whole, jax.jit(jax.value_and_grad(shard, argnums=(0, 1)), compiler_options=LEAST)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if n in ALIKE else []) for n in ZOO]
)
@settings(max_examples=5)
@given(data=st.data())
def test_shards_multiply_to_the_full_density(name: str, data: Any):
    model, layout = read(name)
    full_density, shard_density = compiled(name)
    cut = data.draw(cuts(layout.by))
    full = Full.of(cut.table, layout)
    rng = np.random.default_rng(cut.seed)
    u = rng.uniform(-1, 1, model.dim)
    local = {
        site: rng.uniform(-1, 1, shape) for site, shape in model.local_shapes(*full.sizes).items()
    }

    total = size = 0.0
    for piece in pieces(cut, layout, full):
        values, padding = local_values(model, local, piece, rng)
        value, gradient = shard_density(u, values, piece.data, piece.weight)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
        total += value - padding
        size += abs(value) + abs(padding)
    expected = full_density(u, local, full.arguments, full.sizes[1])
    # The same float64 terms in another order: good to a few hundred roundings of their sum.
    np.testing.assert_allclose(total, expected, rtol=1e-12, atol=1e-13 * size)


def test_an_anchor_is_a_gaussian_in_u():
    """It is what is taken out again in natural parameters."""
    model, layout = read("intercepts")
    table = frame()
    full = Full.of(table, layout)
    (piece,) = pieces(Cut(table, np.zeros(len(table), int), False, 0), layout, full)
    rng = np.random.default_rng(0)
    u, mean, root = rng.normal(size=3), rng.normal(size=3), rng.normal(size=(3, 3))
    local = {"alpha": rng.normal(size=full.sizes[1])}
    plain = tempered(0.3, 3)
    anchored = plain._replace(anchor_mean=mean, anchor_precision=root @ root.T)
    difference = np.diff(
        [log_density(model, u, local, piece.data, factor) for factor in (plain, anchored)]
    )
    np.testing.assert_allclose(difference, -0.5 * np.square((u - mean) @ root).sum(), rtol=1e-9)
