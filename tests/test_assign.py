from __future__ import annotations

from collections.abc import Iterator

import dask
import dask.dataframe as dd
import hypothesis.strategies as st
import numpy as np
import pandas as pd
import pytest
from dask.dataframe.utils import clear_known_categories
from dask.delayed import Delayed
from distributed import Client, LocalCluster
from hypothesis import given, settings

from dask_consensus.frame.arrays import Column, Layout
from dask_consensus.frame.assign import Assignment, assign, pack, shards
from dask_consensus.frame.shuffle import BucketMap
from dask_consensus.frame.survey import survey
from dask_consensus.shard_data import Shard

from .test_arrays import assert_same_shard

BY_PATIENT = Layout(
    ("patient",), (Column("patient", "patient", "group", level=0), Column("y", "y", "value"))
)
BY_NOTHING = Layout((), (Column("y", "y", "value"),))


def visits(sizes: list[int] | np.ndarray) -> pd.DataFrame:
    """Rows in random order, each with a number of its own, of groups of the sizes given."""
    patients = np.repeat(np.arange(len(sizes)), sizes)
    order = np.random.default_rng(0).permutation(len(patients))
    return pd.DataFrame({"patient": patients, "y": np.arange(len(patients))}).iloc[order]


def split(frame: pd.DataFrame, npartitions: int) -> dd.DataFrame:
    return dd.from_pandas(frame.reset_index(drop=True), npartitions=npartitions)


def pick(number: int, frames: list[pd.DataFrame]) -> pd.DataFrame:
    return frames[number]


def parts(frames: list[pd.DataFrame], **options) -> dd.DataFrame:
    options = {"meta": frames[0].iloc[:0]} | options
    return dd.from_map(pick, range(len(frames)), frames=frames, **options)


def assigned(frame: dd.DataFrame, layout: Layout = BY_PATIENT, **options) -> Assignment:
    counted = survey(frame, layout).compute(scheduler="synchronous")
    return assign(counted, frame, layout, **options)


def made(
    frame: dd.DataFrame, assignment: Assignment, layout: Layout = BY_PATIENT, **options
) -> tuple[Shard, ...]:
    return dask.compute(*shards(frame, layout, assignment), **{"scheduler": "sync"} | options)


def assert_same(one: tuple[Shard, ...], other: tuple[Shard, ...]) -> None:
    for left, right in zip(one, other, strict=True):
        assert_same_shard(left, right)


def shuffles(lazy: list[Delayed]) -> bool:
    return any("shuffle" in str(key) for key in lazy[0].__dask_graph__())


def refuse(*args, **kwargs):
    raise AssertionError("computed too early")


# Which shard


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=60), st.integers(1, 12))
def test_pack_is_a_partition_and_no_item_would_better_it(rows, n_shards):
    rows = np.array(rows)
    members, total = pack(rows, n_shards)
    np.testing.assert_array_equal(np.bincount(members, rows, n_shards), total)
    assert (np.bincount(members, minlength=n_shards) > 0).sum() == min(n_shards, len(rows))
    # The last item went to the emptiest shard: no shard is more than one of its items above it.
    for shard in set(members):
        assert total[shard] - rows[members == shard].min() <= total.min()


@given(st.data())
@settings(max_examples=30)
def test_balance_of_random_groups(data):
    """Unequal groups, none larger than 5% of a shard: shards within 10% of their mean."""
    n_shards = data.draw(st.integers(2, 20))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    sizes = rng.lognormal(sigma=data.draw(st.floats(0, 2)), size=60 * n_shards)
    limit = 0.05 * sizes.sum() / n_shards
    frame = split(visits(np.ceil(np.minimum(sizes, limit / 2)).astype(int)), 3)
    assignment = assigned(frame, n_shards=n_shards)
    assert assignment.kind == "hash"
    assert assignment.largest is None
    assert np.abs(assignment.rows / assignment.rows.mean() - 1).max() <= 0.1


def test_balance_of_more_groups_than_buckets():
    sizes = np.ceil(np.random.default_rng(3).lognormal(size=3000)).astype(int)
    frame = split(visits(sizes), 4)
    counted = survey(frame, BY_PATIENT, buckets=1024).compute(scheduler="sync")
    assignment = assign(counted, frame, BY_PATIENT, n_shards=10)
    found = made(frame, assignment)
    assert [shard.rows for shard in found] == assignment.rows.tolist()
    assert sum(shard.groups[0] for shard in found) == 3000
    assert np.abs(assignment.rows / assignment.rows.mean() - 1).max() <= 0.1
    # An estimate of the whole is 3% off; that of a shard also varies with what its buckets hold.
    assert np.abs(assignment.groups / [shard.groups[0] for shard in found] - 1).max() < 0.3


@pytest.mark.parametrize(
    ("rows_per_shard", "expected"), [(1000, 1), (100, 1), (67, 1), (50, 2), (30, 3), (1, 10)]
)
def test_default_number_of_shards(rows_per_shard, expected):
    frame = split(visits([10] * 10), 3)
    assert assigned(frame, rows_per_shard=rows_per_shard).n_shards == expected


def test_default_number_of_shards_without_groups():
    frame = split(visits([10] * 10), 3)
    assert assigned(frame, BY_NOTHING, rows_per_shard=1).n_shards == 100


@pytest.mark.parametrize(
    ("layout", "options", "message"),
    [
        (BY_PATIENT, {"n_shards": 4}, r"there are 3 groups of 'patient'; ask for at most 3 shards"),
        (BY_NOTHING, {"n_shards": 7}, r"there are 6 rows; ask for at most 6 shards"),
        (BY_PATIENT, {"n_shards": 0}, "n_shards must be at least 1, got 0"),
        (BY_PATIENT, {"rows_per_shard": 0}, "rows_per_shard must be at least 1, got 0"),
    ],
)
def test_numbers_of_shards_that_leave_some_empty(layout, options, message):
    with pytest.raises(ValueError, match=message):
        assigned(split(visits([1, 2, 3]), 2), layout, **options)


def test_more_shards_than_buckets():
    frame = split(visits([1] * 3000), 2)
    counted = survey(frame, BY_PATIENT, buckets=1024).compute(scheduler="sync")
    with pytest.raises(ValueError, match="buckets of groups"):
        assign(counted, frame, BY_PATIENT, n_shards=2000)


def test_group_larger_than_a_shard_is_named_and_whole():
    frame = split(visits([5, 100, 5, 5, 5]), 3)
    assignment = assigned(frame, n_shards=3)
    assert assignment.largest == ("1", 100)
    assert sorted(assignment.rows) == [10, 10, 100]
    assert max(made(frame, assignment), key=lambda shard: shard.rows).groups == (1,)
    assert assigned(frame, n_shards=1).largest is None


# How rows get there


@given(st.lists(st.integers(1, 12), min_size=2, max_size=25), st.integers(1, 5), st.data())
@settings(max_examples=40, deadline=None)
def test_every_row_reaches_one_shard_and_no_group_is_split(sizes, npartitions, data):
    frame = visits(sizes)
    ddf = split(frame, npartitions)
    n_shards = data.draw(st.integers(1, len(sizes)))
    assignment = assigned(ddf, n_shards=n_shards)
    found = made(ddf, assignment)

    assert [shard.rows for shard in found] == assignment.rows.tolist()
    assert [shard.groups[0] for shard in found] == assignment.groups.tolist()
    landed = np.concatenate([shard.arguments["y"] for shard in found])
    np.testing.assert_array_equal(np.sort(landed), np.arange(len(frame)))
    patient = frame.set_index("y")["patient"]
    seen = [set(patient[shard.arguments["y"]]) for shard in found]
    assert sum(map(len, seen)) == len(set.union(*seen)) == len(sizes)
    # Codes and values of a row stay together.
    for shard in found:
        codes = pd.factorize(patient[shard.arguments["y"]].to_numpy(), sort=True)[0]
        np.testing.assert_array_equal(shard.arguments["patient"], codes)


def test_whole_frame_is_one_shard_without_a_shuffle():
    frame = split(visits([3, 4, 5]), 4)
    assignment = assigned(frame)
    assert (assignment.kind, assignment.n_shards, assignment.groups.tolist()) == ("whole", 1, [3])
    assert not shuffles(shards(frame, BY_PATIENT, assignment))
    assert made(frame, assignment)[0].rows == 12


def test_rows_without_a_key_are_dealt_out_evenly():
    frame = split(visits([100]), 7)
    assignment = assigned(frame, BY_NOTHING, n_shards=9)
    assert assignment.kind == "rows"
    assert assignment.rows.tolist() == [12] + [11] * 8
    found = made(frame, assignment, BY_NOTHING)
    assert [shard.rows for shard in found] == assignment.rows.tolist()
    landed = np.concatenate([shard.arguments["y"] for shard in found])
    np.testing.assert_array_equal(np.sort(landed), np.arange(100))
    # Each shard has rows of every partition.
    partition = {y: i for i, part in enumerate(frame.partitions) for y in part.compute()["y"]}
    assert all(len({partition[y] for y in shard.arguments["y"]}) == 7 for shard in found)


def test_deal_depends_on_no_order_and_no_period_of_rows():
    rows = pd.DataFrame({"y": np.tile([0.0, 1.0, 2.0, 3.0], 25)})
    shuffled = rows.sample(frac=1, random_state=0).reset_index(drop=True)
    one, other = parts([rows, rows]), parts([shuffled, rows[::-1]])
    assignment = assigned(one, BY_NOTHING, n_shards=4)
    found = made(one, assignment, BY_NOTHING)
    assert_same(found, made(other, assignment, BY_NOTHING))
    # Dealt out in the order of the file, each shard would have one of the four values alone.
    assert all(set(shard.arguments["y"]) == {0, 1, 2, 3} for shard in found)


def sorted_by_patient(sizes: list[int], npartitions: int) -> dd.DataFrame:
    return dd.from_pandas(visits(sizes).set_index("patient"), npartitions=npartitions)


def test_frame_divided_by_key_is_not_shuffled():
    frame = sorted_by_patient([5] * 24, 8)
    assert frame.known_divisions
    assignment = assigned(frame, n_shards=4)
    assert assignment.kind == "divisions"
    assert assignment.rows.tolist() == [30] * 4
    assert assignment.groups.tolist() == [6] * 4
    lazy = shards(frame, BY_PATIENT, assignment)
    assert not shuffles(lazy)
    found = made(frame, assignment)
    assert [shard.rows for shard in found] == [30] * 4
    assert [shard.groups[0] for shard in found] == [6] * 4
    # The same frame without divisions is shuffled: the test above can fail.
    column = frame.reset_index()
    assert shuffles(shards(column, BY_PATIENT, assigned(column, n_shards=4)))


def test_fair_partitions_are_shards_of_their_own():
    frame = sorted_by_patient([5] * 24, 8)
    assignment = assigned(frame, rows_per_shard=17)
    # 120 / 17 is 7, and seven shards of eight partitions are uneven.
    assert (assignment.kind, assignment.n_shards) == ("divisions", 8)
    assert assigned(frame, n_shards=7).kind == "hash"
    assert assigned(frame, rows_per_shard=6).kind == "hash"


def test_unbalanced_divisions_are_shuffled():
    frame = sorted_by_patient([5, 5, 50, 5, 5, 5, 5, 5] * 4, 5)
    assert assigned(frame, n_shards=4).kind == "hash"


@pytest.mark.parametrize(
    ("patients", "divisions", "kind"),
    [
        # The last division is inclusive.
        ([[1, 1], [2, 2], [3, 4]], [1, 2, 3, 4], "divisions"),
        ([[1, 1], [2, 2], [3, 3]], [1, 2, 3, 3], "divisions"),
        # Statistics of files say so where patient 2 is in two files.
        ([[1, 2], [2, 3], [4, 4]], [1, 2, 4, 4], "hash"),
        ([[1, 2], [], [2, 3], [4, 4]], [1, 2, 2, 4, 4], "hash"),
        ([[1, 1], [], [2, 2], [4, 4], []], [1, 2, 2, 4, 5, 5], "divisions"),
        # Divisions that are wrong: patient 3 is in the first file and the last.
        ([[1, 3], [2, 2], [3, 4]], [1, 2, 3, 4], "hash"),
        # Partitions need not be sorted within.
        ([[2, 1], [3, 2], [4, 4]], [1, 2, 4, 4], "hash"),
    ],
)
def test_groups_on_the_boundaries_of_partitions(patients, divisions, kind):
    frames = [
        pd.DataFrame({"y": np.arange(len(part), dtype=float)}, index=pd.Index(part, dtype="int64"))
        for part in patients
    ]
    frame = parts([f.rename_axis("patient") for f in frames], divisions=divisions)
    assert frame.known_divisions
    assignment = assigned(frame, n_shards=3)
    assert assignment.kind == kind
    found = made(frame, assignment)
    assert [shard.rows for shard in found] == assignment.rows.tolist()
    distinct = {patient for part in patients for patient in part}
    assert sum(shard.groups[0] for shard in found) == len(distinct)


def test_group_on_a_boundary_is_found_among_more_groups_than_buckets():
    index = pd.Index(np.repeat(np.arange(3000), 2), name="patient")
    rows = pd.DataFrame({"y": 0.0}, index=index)
    for cut, kind in ((3000, "divisions"), (3001, "hash")):
        frame = parts([rows[:cut], rows[:0], rows[cut:]], divisions=[0, 1500, 1500, 2999])
        counted = survey(frame, BY_PATIENT, buckets=1024).compute(scheduler="sync")
        assert not counted.groups_exact
        assert assign(counted, frame, BY_PATIENT, n_shards=2).kind == kind


def test_partition_without_rows_does_not_round_keys():
    near = [2**60, 2**60 + 1]
    rows = pd.DataFrame({"patient": near, "y": [1.0, 2.0]})
    frame = parts([rows, rows.iloc[:0].astype({"patient": "float64"})])
    (shard,) = made(frame, assigned(frame))
    assert shard.groups == (2,)


def test_lookup_table_is_one_task():
    frame = split(visits([2] * 50), 8)
    lazy = shards(frame, BY_PATIENT, assigned(frame, n_shards=5))
    graph = lazy[0].__dask_graph__().to_dict()
    assert sum(isinstance(getattr(task, "value", None), BucketMap) for task in graph.values()) == 1
    assert not any(
        isinstance(argument, BucketMap)
        for task in graph.values()
        for argument in getattr(task, "args", ())
    )


def test_keys_do_not_change_between_calls():
    frame = split(visits([2] * 50), 8)
    for layout in (BY_PATIENT, BY_NOTHING):
        assignment = assigned(frame, layout, n_shards=5)
        one, other = (shards(frame, layout, assignment) for _ in range(2))
        assert [shard.key for shard in one] == [shard.key for shard in other]
        assert set(one[0].__dask_graph__()) == set(other[0].__dask_graph__())


def test_nothing_runs_before_it_is_asked_for():
    meta = visits([1])
    with dask.config.set(scheduler=refuse):
        for layout, n_shards in ((BY_PATIENT, 3), (BY_NOTHING, 3), (BY_PATIENT, 1)):
            assignment = assigned(split(visits([5] * 9), 3), layout, n_shards=n_shards)
            frame = dd.from_map(refuse, range(3), meta=meta)
            lazy = shards(frame, layout, assignment)
            assert len(lazy) == n_shards
            with pytest.raises(AssertionError, match="too early"):
                lazy[0].compute()


def test_frame_that_changes_between_passes_is_refused():
    one, other = split(visits([2] * 9), 2), split(visits([2] * 12), 2)
    with pytest.raises(RuntimeError, match="'patient' has groups that were not there"):
        made(other, assigned(one, n_shards=3))


def test_partitions_may_disagree_on_categories_and_be_empty():
    names = visits([3, 1, 4, 1, 5]).assign(patient=lambda f: f["patient"].map("p{}".format))
    frames = [
        names.iloc[start::4].assign(patient=lambda f: f["patient"].astype("category"))
        for start in range(4)
    ]
    frames[2] = frames[2].iloc[:0]
    frame = parts(frames, meta=clear_known_categories(frames[0].iloc[:0]))
    plain = parts([f.astype({"patient": "str"}) for f in frames])
    assignment = assigned(frame, n_shards=2)
    assert_same(made(frame, assignment), made(plain, assigned(plain, n_shards=2)))


# Wherever it runs


def nested() -> tuple[dd.DataFrame, Layout]:
    rng = np.random.default_rng(5)
    rows = 3000
    frame = pd.DataFrame(
        {
            "region": rng.integers(0, 40, rows),
            "county": rng.integers(0, 5, rows),
            "sex": pd.Categorical(rng.choice(["f", "m"], rows)),
            "treated": rng.random(rows) < 0.5,
            "y": rng.normal(size=rows).round(1),
        }
    ).assign(region=lambda f: f["region"].map("region {}".format))
    layout = Layout(
        by=("region", "county"),
        columns=(
            Column("county", "county", "group", level=1),
            Column("sex", "sex", "category", categories=("f", "m")),
            Column("treated", "treated", "value"),
            Column("y", "y", "value"),
        ),
    )
    return split(frame, 6), layout


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    cluster = LocalCluster(
        n_workers=2,
        threads_per_worker=2,
        processes=True,
        host="127.0.0.1",
        dashboard_address="127.0.0.1:0",
        silence_logs="ERROR",
    )
    with cluster, Client(cluster) as client:
        yield client


@pytest.mark.parametrize("method", ["tasks", "disk"])
@pytest.mark.parametrize("scheduler", ["threads", "sync"])
def test_shards_do_not_depend_on_scheduler_or_shuffle(scheduler, method):
    frame, layout = nested()
    assignment = assigned(frame, layout, n_shards=7)
    expected = made(frame, assignment, layout)
    lazy = shards(frame, layout, assignment, shuffle_method=method)
    assert_same(dask.compute(*lazy, scheduler=scheduler), expected)


@pytest.mark.distributed
@pytest.mark.parametrize("n_shards", [1, 7])
@pytest.mark.parametrize("keyed", [True, False])
def test_shards_on_a_cluster_are_those_of_threads(client, keyed, n_shards):
    frame, layout = nested()
    if not keyed:
        layout = layout._replace(by=(), columns=layout.columns[1:])
    with dask.config.set(scheduler="threads", **{"dataframe.shuffle.method": "tasks"}):
        assignment = assigned(frame, layout, n_shards=n_shards)
        expected = made(frame, assignment, layout, scheduler="threads")
    counted = client.compute(survey(frame, layout)).result()
    remote = assign(counted, frame, layout, n_shards=n_shards)
    np.testing.assert_array_equal(remote.rows, assignment.rows)
    lazy = shards(frame, layout, remote)
    if n_shards > 1:
        assert any("p2p" in str(key) for key in lazy[0].__dask_graph__())
    assert_same(client.gather(client.compute(lazy)), expected)


@pytest.mark.distributed
def test_divided_frame_on_a_cluster(client):
    frame = sorted_by_patient([5] * 24, 8)
    assignment = assigned(frame, n_shards=4)
    assert assignment.kind == "divisions"
    expected = made(frame, assignment)
    assert_same(client.gather(client.compute(shards(frame, BY_PATIENT, assignment))), expected)
