"""Answers of shards that are kept, each under its question; shards here are arrays of numbers."""

import threading
from functools import partial
from pathlib import Path

import dask
import numpy as np
import pytest

from dask_consensus.cluster import journal as module
from dask_consensus.cluster.client import current_work, working
from dask_consensus.cluster.journal import Journal, NotKept, recalled
from dask_consensus.cluster.mapreduce import (
    Answer,
    compute_with_progress,
    each,
    map_reduce,
    on_worker,
)
from dask_consensus.cluster.placement import Execution
from dask_consensus.cluster.shards import not_sent, persist
from dask_consensus.cluster.store import Store
from dask_consensus.cluster.tasks import broadcast, call, compute
from dask_consensus.shard_data import Shard, Size, Summary

N = 5
ASKED = []


class Crash(BaseException):
    """The process ends here."""


def make(number):
    return Shard({"x": np.arange(3.0) + number}, 3, (), {}, labels=())


def total(data, factor, shared):
    """A function on one shard."""
    ASKED.append(int(data.arguments["x"][0]))
    if len(ASKED) == shared.get("crash"):
        raise Crash
    value = data.arguments["x"].sum() * factor
    return Answer(np.array([value]), {"value": value}, {"state": np.full(2, value)})


def several(data, per_shard, shared):
    """The same, of some shards at once, which come one a task."""
    return [total(d, *given, shared) for d, given in zip(data, per_shard, strict=True)]


def with_state(data, per_shard, shared):
    return [
        Answer(state["state"] + d.arguments["x"][0], None)
        for d, (state,) in zip(data, per_shard, strict=True)
    ]


def peek(data, what):
    ASKED.append(what)
    return data.arguments["x"].sum()


@pytest.fixture
def shards(tmp_path):
    """Shards of a fit that keeps a journal."""
    ASKED.clear()
    with dask.config.set(scheduler="synchronous"), working(0.0):
        sent = persist([call(make, k) for k in range(N)], Execution(progress=False))
        reopen(tmp_path)
        yield sent


def reopen(path, salt="one"):
    """Begin the same fit again, with what the store holds."""
    current_work().journal = Journal(Store(str(path)), salt)
    ASKED.clear()
    return current_work().journal


def ask(shards, function=several, title="pass", keep_states=False, factor=2.0, **shared):
    given = [(factor,)] * shards.n
    return map_reduce(
        function, shards, given, [broadcast(shared)], sum, title=title, keep_states=keep_states
    )


def test_the_same_question_is_not_asked_twice(shards, tmp_path):
    first = ask(shards)
    assert sorted(ASKED) == list(range(N))
    reopen(tmp_path)
    again = ask(shards)
    assert ASKED == []
    np.testing.assert_array_equal(again.total, first.total)
    assert again.reports == first.reports
    # In a fit there are questions that are asked twice, too.
    assert ask(shards).reports == first.reports


@pytest.mark.parametrize(
    "other",
    [
        {"factor": np.nextafter(2.0, 3)},
        {"function": each(total)},
        {"more": 1},
        {"salt": "two"},
        {"some": [0, 1]},
        {"some": [1, 0, 2, 3, 4]},
    ],
)
def test_another_question_is_asked(shards, tmp_path, other):
    ask(shards)
    reopen(tmp_path, other.pop("salt", "one"))
    some = other.pop("some", range(N))
    ask(shards.some(list(some)), **other)
    assert len(ASKED) == len(list(some))


def test_a_pass_goes_on_with_the_tasks_it_has(shards, tmp_path):
    whole = ask(shards, keep_states=True, title="whole")
    ASKED.clear()
    with pytest.raises(Crash):
        # No two questions are the same here: that of the crash is repeated without it.
        ask(shards, function=partial(crashing, at=4), keep_states=True)
    assert len(ASKED) == 4
    before = sorted(ASKED[:-1])
    reopen(tmp_path)
    again = ask(shards, function=partial(crashing, at=4), keep_states=True)
    assert sorted([*before, *ASKED]) == list(range(N))
    np.testing.assert_array_equal(again.total, whole.total)
    assert again.reports == whole.reports


def crashing(data, per_shard, shared, at):
    if len(ASKED) == at - 1 and not any(current_crashes):
        current_crashes.append(True)
        ASKED.append(-1)
        raise Crash
    return several(data, per_shard, shared)


current_crashes: list[bool] = []


@pytest.fixture(autouse=True)
def no_crash():
    current_crashes.clear()


@pytest.mark.parametrize(("worth", "shares"), [(0.0, N), (60.0, 0)])
def test_a_task_that_took_long_is_kept_by_itself(shards, tmp_path, monkeypatch, worth, shares):
    monkeypatch.setattr(module, "WORTH", worth)
    ask(shards)
    assert len(list(tmp_path.rglob("*/*/*.parquet"))) == shares


def test_states_are_read_where_they_are_needed(shards, tmp_path):
    def two():
        first = ask(shards, keep_states=True)
        given = [(state,) for state in first.states]
        return map_reduce(with_state, shards, given, [broadcast({})], sum, title="second").total

    whole = two()
    for file in Path(tmp_path).rglob("second*.parquet"):
        file.unlink()
    reopen(tmp_path)
    np.testing.assert_array_equal(two(), whole)
    assert ASKED == []
    # Of one that is damaged the shard is asked again, and no other.
    for file in Path(tmp_path).rglob("second*.parquet"):
        file.unlink()
    (file,) = (f for f in Path(tmp_path).rglob("*.parquet") if f.name.startswith("3."))
    file.write_bytes(b"")
    reopen(tmp_path)
    with pytest.warns(UserWarning, match=r"/3\.[0-9a-f]{64}\.parquet of store"):
        np.testing.assert_array_equal(two(), whole)
    assert ASKED == [3]
    journal = reopen(tmp_path)
    journal.finish()
    assert not list(tmp_path.rglob("*/*/*.parquet"))
    assert journal.get("finished-one") is True


def test_tasks_that_are_asked_of_shards_are_kept(shards, tmp_path):
    def answers():
        tasks = [on_worker(shards.execution, peek, shards.data[k], k) for k in (1, 3)]
        nested = on_worker(shards.execution, add, tasks[0], tasks[1])
        return (
            compute(tasks),
            compute([nested]),
            compute_with_progress(tasks, shards.execution, "looking", "shard"),
        )

    first = answers()
    reopen(tmp_path)
    assert answers() == first
    assert ASKED == []


def add(one, other):
    return one + other


def test_what_is_not_of_rows_is_asked_of_this_cluster(shards, tmp_path):
    for _ in range(2):
        compute([on_worker(shards.execution, ASKED.append, "version")])
    assert ASKED == ["version"] * 2
    assert not list(tmp_path.rglob("*.parquet"))


def test_what_cannot_be_written_or_named_is_asked_again(shards, tmp_path):
    class Thing:
        pass

    for _ in range(2):
        reopen(tmp_path)
        compute([on_worker(shards.execution, peek, shards.data[0], Thing())])
        assert len(ASKED) == 1
        (lock,) = compute([on_worker(shards.execution, a_lock, shards.data[0])])
        assert lock is not None
    assert not list(tmp_path.rglob("*.parquet"))


def a_lock(_):
    return threading.Lock()


def test_an_answer_that_holds_no_longer_is_given_again(shards, tmp_path):
    given = []

    def answer():
        given.append(1)
        return len(given)

    question = ["written", list(shards.data)]
    assert recalled("written", question, answer, lambda _: True) == 1
    assert recalled("written", question, answer, lambda _: True) == 1
    assert recalled("written", question, answer, lambda kept: kept != 1) == 2


def test_a_disk_that_is_full_stops_nothing(shards, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Store, "_write", full)
    with pytest.warns(UserWarning, match=r"takes no more \(No space left on device\): the fit"):
        told = ask(shards, keep_states=True)
    assert len(told.reports) == N


def of_shard(shard, form):
    """Stand for the hashes of a shard's groups."""
    return shard.arguments["x"].astype(np.uint64)


def test_hashes_of_groups_are_read_without_rows(tmp_path):
    hashing = partial(of_shard, form="text")
    with dask.config.set(scheduler="synchronous"), working(0.0):
        reopen(tmp_path)
        tasks = [call(make, k) for k in range(N)]
        sent = persist(tasks, Execution(progress=False), hashes_of=hashing)
        current_work().journal.finish()
        assert reopen(tmp_path).complete
        summary = [Summary(Size(3, ()), None)] * N
        known = not_sent(summary, sent.execution, hashes_of=hashing)
        np.testing.assert_array_equal(known.hashes, sent.hashes)
        assert known.hashes[1].dtype == np.uint64
        with pytest.raises(NotKept):
            not_sent(summary, sent.execution, hashes_of=partial(of_shard, form="int64"))


def test_answers_are_read_without_rows_or_not_at_all(shards, tmp_path):
    first = ask(shards)
    current_work().journal.finish()
    assert reopen(tmp_path).complete
    summary = [Summary(Size(3, ()), None)] * N
    absent = not_sent(summary, shards.execution)
    assert absent.padded == shards.padded
    assert ask(absent).reports == first.reports
    with pytest.raises(NotKept):
        ask(absent, factor=3.0)
    for title in ("", "some"):
        tasks = [on_worker(absent.execution, peek, absent.data[0], title)]
        with pytest.raises(NotKept):
            compute(tasks)
    # Even where nobody looked: the tasks hold nothing.
    current_work().journal = None
    with pytest.raises(NotKept):
        compute([on_worker(absent.execution, peek, absent.data[0], 1)])


def test_a_name_says_what_and_no_more(shards):
    journal = current_work().journal
    rows = list(shards.data)
    name = journal.name_of("Correction, iteration 3 of ../../etc!", rows)
    assert name.startswith("correction-iteration-3-of-etc-")
    journal.put(name, 1)
    assert journal.get(name) == 1
    assert journal.name_of("éà", rows).startswith("answer-")
    assert journal.name_of("x" * 500, rows) < "x" * 41
