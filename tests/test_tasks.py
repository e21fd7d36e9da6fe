"""Trees of reductions, and shards that are padded once."""

import dask
import numpy as np
import pytest
from dask.delayed import delayed
from hypothesis import given
from hypothesis import strategies as st

from dask_consensus.cluster import mapreduce as mapreduce_module
from dask_consensus.cluster import shards as shards_module
from dask_consensus.cluster.mapreduce import Answer, each, map_reduce
from dask_consensus.cluster.placement import Execution
from dask_consensus.cluster.shards import persist
from dask_consensus.cluster.tasks import broadcast, call, tree
from dask_consensus.shard_data import Shard, pad, padded_sizes


@given(n=st.integers(1, 70), split_every=st.integers(2, 9))
def test_a_tree_takes_every_part_once_and_in_order(n, split_every):
    sizes = []

    def join(parts):
        sizes.append(len(parts))
        return [leaf for part in parts for leaf in part]

    assert tree([[i] for i in range(n)], join, split_every) == list(range(n))
    assert max(sizes, default=0) <= split_every
    # A level has a task for each `split_every` parts of the one below, until one is left.
    levels, width = 0, n
    while width > 1:
        width = -(-width // split_every)
        levels += width
    assert len(sizes) == levels


@pytest.mark.parametrize("split_every", [2, 3, 8])
def test_the_part_after_a_full_batch_counts(split_every):
    """One more than a power of the width: the last part travels alone on every level."""
    for n in (split_every, split_every + 1, split_every**2, split_every**2 + 1):
        assert tree(list(range(1, n + 1)), sum, split_every) == n * (n + 1) // 2


def test_a_single_part_is_its_own_sum():
    def never(parts):
        raise AssertionError("there is nothing to add")

    assert tree(["only"], never, 2) == "only"


def triple(data, weight, factor):
    return Answer(weight * data, ("seen", data), data + factor)


def add(parts):
    return np.sum(parts, axis=0)


@pytest.mark.parametrize("together", [1, 2, 3, 7])
def test_a_map_keeps_the_order_of_shards(together):
    """However many shards a task takes; reports and states are those of single shards."""
    execution = Execution(split_every=2, progress=False, shards_per_task=together)
    data = [delayed(float(i)) for i in range(7)]
    shards = shards_module.Shards(data, [], [], execution)
    with dask.config.set(scheduler="synchronous"):
        mapped = map_reduce(
            each(triple),
            shards,
            [(10.0**i,) for i in range(7)],
            [broadcast(100.0)],
            add,
            title="test",
            keep_states=True,
        )
        states = dask.compute(*mapped.states)
    assert mapped.total == 6543210.0
    assert mapped.reports == [("seen", float(i)) for i in range(7)]
    assert list(states) == [100.0 + i for i in range(7)]


def test_thousands_of_shards_are_not_thousands_of_tasks(monkeypatch):
    """Unless they are worked on at once, of which a device holds so many."""
    taken = []

    def counted(share, function, add, data, *rest):
        taken.append(len(data))
        return answers(share, function, add, data, *rest)

    answers = mapreduce_module._answers
    monkeypatch.setattr(mapreduce_module, "_answers", counted)
    shards = shards_module.Shards(
        [delayed(float(i)) for i in range(600)], [], [], Execution(progress=False)
    )
    arguments = shards, [(1.0,)] * 600, [broadcast(0.0)], add
    with dask.config.set(scheduler="synchronous"):
        mapped = map_reduce(each(triple), *arguments, title="test")
        assert sorted(taken, reverse=True) == [3] * 200
        taken.clear()
        at_once = map_reduce(lambda *asked: each(triple)(*asked), *arguments, title="test")
        assert taken == [1] * 600
    assert mapped.total == at_once.total == 600 * 599 / 2
    assert mapped.reports == at_once.reports == [("seen", float(i)) for i in range(600)]


def unpadded(rows):
    arguments = {"g": np.arange(rows, dtype=np.int32), "y": np.arange(float(rows))}
    return Shard(arguments, rows, (rows,), {"g": 0})


def test_shards_are_padded_once_and_never_made_again(monkeypatch):
    made, padded = [], []

    def make(rows):
        made.append(rows)
        return unpadded(rows)

    def counted(shard, size):
        padded.append(shard.rows)
        return pad(shard, size)

    monkeypatch.setattr(shards_module, "pad", counted)
    with dask.config.set(scheduler="synchronous"):
        shards = persist([call(make, rows) for rows in (3, 5, 4, 40)], Execution())
        for _ in range(2):
            data = dask.compute(*shards.data)
    assert sorted(made) == sorted(padded) == [3, 4, 5, 40]
    assert [(size.rows, size.groups) for size in shards.sizes] == [
        (3, (3,)), (5, (5,)), (4, (4,)), (40, (40,)),
    ]  # fmt: skip
    assert [d.size for d in data] == shards.padded == padded_sizes(shards.sizes)
    assert [int(d.rows.sum()) for d in data] == [3, 5, 4, 40]
    for d, size in zip(data, shards.sizes, strict=True):
        np.testing.assert_array_equal(d.arguments["y"][: size.rows], np.arange(size.rows))
    # The three alike share one shape, the exceptional one has its own.
    assert len(set(shards.padded)) == 2
    np.testing.assert_allclose(shards.weights, np.array([3, 5, 4, 40]) / 52)
    assert shards.median() == 2
