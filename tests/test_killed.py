"""A task that ends each worker that tries it: which rows, and what to change."""

import os
import re
from contextlib import contextmanager

import dask
import numpy as np
import pandas as pd
import pytest

from dask_consensus.cluster import waiting
from dask_consensus.cluster.client import working
from dask_consensus.cluster.killed import WorkersKilled, _remedy, killed_by, shards_behind
from dask_consensus.cluster.mapreduce import Answer, each, map_reduce
from dask_consensus.cluster.placement import Execution
from dask_consensus.cluster.shards import persist
from dask_consensus.cluster.tasks import broadcast, call
from dask_consensus.shard_data import Shard, Size

from . import from_pandas, plan
from .test_waiting import model


def shard(rows):
    groups = max(1, rows // 10)
    codes = np.arange(rows, dtype=np.int32) % groups
    return Shard({"g": codes, "y": np.arange(float(rows))}, rows, (groups,), {"g": 0})


def end_process(data, number, fatal):
    if number in fatal:
        os._exit(1)
    return Answer(0.0, number)


async def stay_away():
    """Start no process again."""


def end_process_at(partition, row):
    if row in partition.index:
        os._exit(1)
    return partition


@contextmanager
def frail(cluster):
    """One worker, and no second attempt."""
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        cluster(1, 1) as client,
    ):
        yield client


@pytest.mark.distributed
def test_rows_that_end_every_worker_are_named(cluster):
    with frail(cluster), working(0.0):
        shards = persist([call(shard, rows) for rows in (30, 50)], Execution(progress=False))
        numbers, given = [(0,), (1,)], [broadcast([1])]
        # Dask suspects all that the worker had received.
        with pytest.raises(
            WorkersKilled,
            match=r"shard 1 \(50 rows, 5 groups\).*: 1 workers died .* at tcp://127.* \(no limit "
            r"of memory, 1 thread\).*more memory.*rows_per_shard= below 50",
        ):
            map_reduce(each(end_process), shards, numbers, given, sum, title="test")
        # The cluster lives on.
        shards = persist([call(shard, rows) for rows in (30, 50)], Execution(progress=False))
        mapped = map_reduce(each(end_process), shards, numbers, [broadcast([])], sum, title="test")
        assert mapped.reports == [0, 1]


@pytest.mark.distributed
def test_rows_that_ended_the_last_worker_are_named(cluster, monkeypatch):
    """Fewer workers than Dask tries, and nobody starts others."""
    monkeypatch.setattr(waiting, "_EVERY", 0.1)
    with cluster(1, 1) as client, working(1.0):
        for nanny in client.cluster.workers.values():
            nanny.instantiate = stay_away
        shards = persist([call(shard, rows) for rows in (30, 50)], Execution(progress=False))
        numbers, given = [(0,), (1,)], [broadcast([1])]
        with pytest.raises(
            WorkersKilled,
            match=r"has no workers\. The last worker died \(no limit of memory, 1 thread\) while "
            r"it worked on .*shard 1 \(50 rows, 5 groups\)\..*rows_per_shard= below 50",
        ):
            map_reduce(each(end_process), shards, numbers, given, sum, title="test")


@pytest.mark.parametrize(
    ("sizes", "remedy"),
    [
        ([], r"smaller partitions \(ddf\.repartition\)"),
        ([Size(50, (5,)), Size(70, (9,))], "rows_per_shard= below 70, or more n_shards"),
        ([Size(50, ())], "rows_per_shard= below 50"),
        ([Size(50, (1,))], "those of one group, which is never cut"),
        ([None], "make shards smaller"),
    ],
)
def test_the_remedy_is_one(sizes, remedy):
    assert re.search(remedy, _remedy(list(enumerate(sizes))))


@pytest.mark.distributed
def test_a_partition_that_ends_every_worker_is_named(cluster):
    rows = from_pandas(pd.DataFrame({"y": np.arange(40.0)}), 4)
    fatal = rows.map_partitions(end_process_at, 35, meta=rows._meta)
    with (
        frail(cluster),
        pytest.raises(WorkersKilled, match=r"partition \d of the frame.*ddf\.repartition"),
    ):
        plan(fatal, model, n_shards=2)


def test_other_errors_are_left_alone():
    assert killed_by(ValueError("no"), [], [], {}) is None


def test_the_shards_behind_a_task_are_found():
    first, second = call(shard, 3), call(shard, 4)
    shards = {first.key: (7, Size(3, (1,))), second.key: (2, None)}
    both = call(max, call(len, first), call(len, second))
    assert shards_behind(both.key, [both], shards) == [(2, None), (7, Size(3, (1,)))]
    assert shards_behind("elsewhere", [both], shards) == []
