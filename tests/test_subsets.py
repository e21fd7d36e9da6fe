from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dask_consensus.shard import subsets
from dask_consensus.shard.subsets import (
    Part,
    few_units,
    parts,
    piece,
    pieces_of,
    shapes,
    some_units,
    together,
    units_of,
)
from dask_consensus.shard_data import ROWS, Shard, ShardData, Size, pad, size_of

CODES = {"region": 0, "county": 1}


def shard(codes: dict[str, int], rows: int = 120, seed: int = 0) -> Shard:
    """Ten regions of two counties each, or rows alone; `sparse` is nonzero in two rows."""
    rng = np.random.default_rng(seed)
    sparse = np.zeros(rows)
    sparse[rng.choice(rows, 2, replace=False)] = 1.0, 2.0
    arguments: dict[str, np.ndarray] = {"row": seed * 1000.0 + np.arange(rows), "sparse": sparse}
    county = np.arange(rows) * 20 // rows
    every = {"region": county // 2, "county": county}
    arguments |= {name: every[name].astype(np.int32) for name in codes}
    groups = (10, 20) if codes else ()
    return Shard(arguments, rows, groups, codes)


def padded(one: Shard) -> ShardData:
    return pad(one, Size(one.rows + 5, tuple(count + 2 for count in one.groups)))


def mixture(codes: dict[str, int]) -> tuple[Shard, np.ndarray, tuple[Size, Size]]:
    several = [padded(shard(codes, seed=seed)) for seed in (0, 1)]
    size = shapes([data.size for data in several], 2)
    room = Size(size[0].rows // 2, tuple(count // 2 for count in size[0].groups))
    return *together([piece(data, codes, room, 0) for data in several], size[0]), size


ALL_CODES = [{}, {"region": 0}, {"county": 1}, CODES]


@pytest.mark.parametrize("codes", ALL_CODES)
def test_pieces_are_joined_group_by_group(codes):
    whole, origin, size = mixture(codes)
    assert pad(whole, size[0]).size == size[0]
    assert np.array_equal(origin[units_of(whole)], whole.arguments["row"] // 1000)
    for name, level in codes.items():
        assert set(whole.arguments[name]) == set(range(whole.groups[level]))
        # Rows of a group are those of one group before.
        before = np.floor(whole.arguments["row"] % 1000 * 20 / 120) // (2 if level == 0 else 1)
        labels = set(
            zip(whole.arguments[name], whole.arguments["row"] // 1000, before, strict=True)
        )
        assert len(labels) == whole.groups[level]


def real(part: Part) -> dict[str, Any]:
    rows = int(part.data.rows.sum())
    return {name: values[:rows] for name, values in part.data.arguments.items()}


@pytest.mark.parametrize("codes", ALL_CODES)
def test_parts_say_which_entries_are_theirs(codes):
    whole, origin, size = mixture(codes)
    chosen = parts(whole, origin, 0, *size)
    for part in chosen:
        rows = part.entries[ROWS]
        found = real(part)
        assert np.array_equal(found["row"], whole.arguments["row"][rows])
        units = set(units_of(whole)[rows])
        # Units are whole, and some are left out.
        assert np.isin(units_of(whole), list(units)).sum() == len(rows) < whole.rows
        for name, level in codes.items():
            assert np.array_equal(part.entries[level][found[name]], whole.arguments[name][rows])
            assert part.data.groups[level].sum() == len(part.entries[level])
    assert {part.data.size for part in chosen} == set(size)


@pytest.mark.parametrize("codes", ALL_CODES)
def test_some_parts_lack_what_is_largest_or_rare(codes):
    whole, origin, size = mixture(codes)
    largest = [real(part)["sparse"].max() for part in parts(whole, origin, 0, *size)]
    assert whole.arguments["sparse"].max() == 2
    assert {0, 1} <= set(largest)


def test_rare_rows_are_taken_into_pieces():
    data = padded(shard({}, rows=4000))
    taken = piece(data, {}, Size(100, ()), 0)
    assert size_of(taken) == Size(100, ())
    assert set(taken.arguments["sparse"]) == {0, 1, 2}


def test_of_large_groups_a_piece_has_some_rows():
    data = padded(shard({"region": 0}, rows=4000))
    taken = piece(data, {"region": 0}, Size(2000, (6, 1)), 0)
    sizes = np.bincount(taken.arguments["region"])
    assert sorted(sizes) == [3, 3, 3, 250, 250, 250]


def test_of_single_groups_every_other_piece_is_short():
    one = shard({"region": 0})._replace(groups=(1, 1))
    one.arguments["region"][:] = 0
    rows = [piece(padded(one), {"region": 0}, Size(200, (1, 1)), place).rows for place in range(4)]
    assert rows == [25, 3, 25, 3]


@pytest.mark.parametrize("codes", ALL_CODES)
def test_pieces_have_all_units_once_in_one_shape(codes, monkeypatch):
    monkeypatch.setattr(subsets, "PIECE", 32)
    data = padded(shard(codes))
    taken = list(pieces_of(data, codes, 0, 10**6))
    assert len({piece.size for piece in taken}) == 1
    rows = np.concatenate([one.arguments["row"][: int(one.rows.sum())] for one in taken])
    assert sorted(rows) == list(range(120))
    first = few_units(data, codes)
    np.testing.assert_array_equal(first.arguments["row"], taken[0].arguments["row"])
    assert len(list(pieces_of(data, codes, 0, 40))) == 2


@pytest.mark.parametrize("codes", ALL_CODES)
def test_units_with_rare_values_come_first_if_they_are_wanted(codes):
    room = Size(30, tuple(count - 1 for count in (10, 20)) if codes else ())
    for seed in range(4):
        data = padded(shard(codes, seed=seed))
        some = some_units(data, codes, room, 1, rare_first=True)
        assert (some.arguments["sparse"] > 0).any()
