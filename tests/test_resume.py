"""Fits that go on from a store: to the same bits, without doing again what was done."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import dask
import fsspec
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
import pytest

import dask_consensus.fit as spine
from dask_consensus.cluster import mapreduce
from dask_consensus.cluster.store import Store
from dask_consensus.cluster.tasks import broadcast
from dask_consensus.combination import subposterior
from dask_consensus.local import effects
from dask_consensus.resume import StoreMismatch, _read

from . import fit, from_pandas
from . import test_nested_effects as nested

OPTIONS = {"by": "who", "n_shards": 4, "method": "auto", "correct": "auto", "local": "summary"}
TIMES = {"seconds", "compile_seconds"}


def model(who, y=None, *, n_who):
    mu = numpyro.sample("mu", dist.Normal(0, 10))
    tau = numpyro.sample("tau", dist.HalfNormal(5))
    with numpyro.plate("groups", n_who):
        alpha = numpyro.sample("alpha", dist.Normal(mu, tau))
    with numpyro.plate("rows", len(who)):
        numpyro.sample("obs", dist.Normal(alpha[who], 1), obs=y)


def other_code(who, y=None, *, n_who):
    mu = numpyro.sample("mu", dist.Normal(0, 10))
    tau = numpyro.sample("tau", dist.HalfNormal(6))
    with numpyro.plate("groups", n_who):
        alpha = numpyro.sample("alpha", dist.Normal(mu, tau))
    with numpyro.plate("rows", len(who)):
        numpyro.sample("obs", dist.Normal(alpha[who], 1), obs=y)


def other_sites(who, y=None, *, n_who):
    mu = numpyro.sample("mu", dist.Normal(0, 10))
    with numpyro.plate("groups", n_who):
        alpha = numpyro.sample("alpha", dist.Normal(mu, 1))
    with numpyro.plate("rows", len(who)):
        numpyro.sample("obs", dist.Normal(alpha[who], 1), obs=y)


def table(seed=0):
    rng = np.random.default_rng(seed)
    who = np.repeat([f"../g{i:02d}" for i in range(40)], 5)
    y = np.repeat(rng.normal(2, 1, 40), 5) + rng.normal(0, 1, 200)
    return pd.DataFrame({"who": who, "y": y, "z": y})


class Crash(BaseException):
    """The process ends here."""


@pytest.fixture(scope="module", autouse=True)
def synchronous():
    with dask.config.set(scheduler="synchronous"):
        yield


class Passes:
    """Counts passes over shards; crashes before the one whose number is ``crash``."""

    def __init__(self, monkeypatch):
        self.ran, self.crash, self._run = [], None, mapreduce._run
        monkeypatch.setattr(mapreduce, "_run", self)

    def __call__(self, batches, *rest):
        if len(self.ran) + 1 == self.crash:
            self.crash = None
            raise Crash
        self.ran.append(len(batches))
        return self._run(batches, *rest)


@pytest.fixture
def passes(monkeypatch):
    return Passes(monkeypatch)


@pytest.fixture
def no_rows(monkeypatch):
    """Refuse to send rows to shards."""

    def refuse():
        monkeypatch.setattr(spine, "rows_to_shards", None)

    return refuse


@pytest.fixture(scope="module")
def frame():
    return from_pandas(table(), npartitions=2)


@pytest.fixture(scope="module")
def plain(frame):
    """A fit that keeps nothing, and how many passes it takes."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        passes = Passes(monkeypatch)
        return fit(frame, model, **OPTIONS), len(passes.ran)


@pytest.fixture(scope="module")
def finished(frame, plain, tmp_path_factory):
    """A store of a whole fit, which crashed half way and was gone on with."""
    path = tmp_path_factory.mktemp("finished") / "store"
    with pytest.MonkeyPatch.context() as monkeypatch:
        counted = Passes(monkeypatch)
        tree, total = plain
        assert crashed(counted, total // 2 + 1, frame, str(path))
        before = len(counted.ran)
        counted.ran.clear()
        assert_same(fit(frame, model, **OPTIONS, store=str(path)), tree)
        # Of what was done before the crash nothing is done again.
        assert before + len(counted.ran) == total
    return path


def assert_same(tree, other):
    """Every number of every group but wall times, to the last bit."""
    assert tree.groups == other.groups
    for group in tree.groups:
        one, same = tree[group].to_dataset(), other[group].to_dataset()
        # A bucket lists its arrays in another order than a folder.
        assert sorted(map(str, one.variables)) == sorted(map(str, same.variables))
        for name in set(one.variables) - TIMES:
            a, b = one[name].values, same[name].values
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b, err_msg=f"{group} {name}")
    assert tree.attrs["verdict"] == other.attrs["verdict"]


def files(path):
    return sorted(file for file in Path(path).rglob("*") if file.is_file())


# The same call goes on


def crashed(passes, number, frame, path, **options):
    """Run a fit that ends before a pass, by its number, and say whether it came to that."""
    passes.ran.clear()
    passes.crash = number
    try:
        fit(frame, model, **(OPTIONS | options), store=path)
    except Crash:
        return True
    return False


def test_a_fit_that_is_finished_is_read(frame, plain, finished, passes, no_rows, monkeypatch):
    """Its rows are counted, and sent nowhere; nothing is forecast."""
    no_rows()
    monkeypatch.setattr(spine, "forecast_or_none", None)
    with dask.config.set({"consensus.forecast": True}):
        assert_same(fit(frame, model, **OPTIONS, store=str(finished)), plain[0])
    assert passes.ran == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"method": "anchored", "num_samples": 100},
        {"method": "anchored", "num_samples": 100, "correct": False, "rounds": 3, "local": None},
        {"method": "consensus", "num_samples": 100, "correct": False},
        {"method": "parametric", "num_samples": 100},
        {"local": "draws", "local_draws": 20},
        {"n_shards": 1, "num_samples": 100},
    ],
    ids=["laplace", "anchored", "rounds", "consensus", "parametric", "draws", "whole"],
)
def test_a_fit_that_crashes_in_every_pass_goes_on(frame, passes, no_rows, tmp_path, options):
    """It is begun anew as often as it has passes, and each begins where the one before ended."""
    whole = fit(frame, model, **(OPTIONS | options), store=str(tmp_path / "whole"))
    total = len(passes.ran)
    path = str(tmp_path / "store")
    done = 0
    while crashed(passes, 2, frame, path, **options):
        assert len(passes.ran) == 1
        done += 1
    assert done + len(passes.ran) == total
    no_rows()
    passes.ran.clear()
    assert_same(fit(frame, model, **(OPTIONS | options), store=path), whole)
    assert passes.ran == []


@pytest.mark.slow
def test_a_fit_of_two_levels_that_crashes_in_every_pass_goes_on(passes, no_rows, tmp_path):
    options = nested.FIT | nested.BY
    frame = from_pandas(nested.table(regions=9), npartitions=2)
    whole = fit(frame, nested.model, **options)
    total, done, path = len(passes.ran), 0, str(tmp_path / "store")
    while True:
        passes.ran.clear()
        passes.crash = 2
        try:
            tree = fit(frame, nested.model, **options, store=path)
            break
        except Crash:
            assert len(passes.ran) == 1
            done += 1
    assert done + len(passes.ran) == total
    assert_same(tree, whole)
    no_rows()
    passes.ran.clear()
    passes.crash = None
    assert_same(fit(frame, nested.model, **options, store=path), whole)
    assert passes.ran == []


@pytest.mark.slow
def test_a_round_goes_on_with_the_shards_it_has(frame, monkeypatch, tmp_path):
    """Those that were sampled before the crash are not sampled again."""
    sampled = []
    sample = subposterior._sample_batch

    def counted(data, turns, settings):
        if len(sampled) == counted.crash:
            raise Crash
        sampled.append((settings.number, *(turn.number for turn in turns)))
        return sample(data, turns, settings)

    monkeypatch.setattr(subposterior, "_sample_batch", counted)
    options = OPTIONS | {"method": "anchored", "num_samples": 60, "rounds": 3, "correct": False}
    options |= {"local": None, "n_shards": 5}
    counted.crash = None
    whole = fit(frame, model, **options)
    everything = sorted(sampled)
    sampled.clear()
    counted.crash = 8
    with pytest.raises(Crash):
        fit(frame, model, **options, store=str(tmp_path / "store"))
    counted.crash = None
    again = fit(frame, model, **options, store=str(tmp_path / "store"))
    assert_same(again, whole)
    assert sorted(sampled) == everything
    assert not [file for file in files(tmp_path) if file.parent.name != "steps"][1:]


@pytest.mark.slow
def test_draws_of_effects_go_on_block_by_block(frame, monkeypatch, tmp_path):
    monkeypatch.setattr(effects.DrawStore, "_CHUNK_GROUPS", 16)
    monkeypatch.setattr(effects.DrawStore, "_BLOCK_BYTES", 4 * 40 * 7)
    options = OPTIONS | {"local": "draws", "local_draws": 20, "correct": False}
    options |= {"num_samples": 40}
    whole = fit(frame, model, **options, store=str(tmp_path / "whole"))["local"].load()
    written = []
    write = effects.DrawStore.write

    def counted(self, states, starts, chain, draws):
        if len(written) == counted.crash:
            raise Crash
        written.append(draws)
        return write(self, states, starts, chain, draws)

    monkeypatch.setattr(effects.DrawStore, "write", counted)
    counted.crash = 1
    path = str(tmp_path / "store")
    with pytest.raises(Crash):
        fit(frame, model, **options, store=path)
    counted.crash = None
    there = fit(frame, model, **options, store=path)["local"]
    assert there.load().identical(whole)
    assert [draws.start for draws in written] == [0, 7, 14]
    # A chunk that is damaged afterwards is named, and its block drawn again.
    inside = files(tmp_path / "store" / "local" / "alpha")
    for file, blocks in ((inside[0], 1), (inside[-1], 3)):
        assert (file.suffix == ".json") == (blocks == 3)
        file.write_bytes(file.read_bytes()[:-3])
        written.clear()
        with pytest.warns(UserWarning, match=r"local of store .* is damaged \(draws \d+ to \d+ of"):
            there = fit(frame, model, **options, store=path)["local"]
        assert there.load().identical(whole)
        assert len(written) == blocks


def test_draws_on_several_levels_are_known_again(tmp_path, monkeypatch):
    """Chunks of every level have their checksums."""
    monkeypatch.setattr(effects.DrawStore, "_CHUNK_GROUPS", 4)
    n = {"a": 3, "b": 9}
    dims = {name: ("chain", "draw", f"of_{name}") for name in n}
    shapes = {name: (1, 2, its) for name, its in n.items()}
    coords = {"chain": [0], "draw": [0, 1]}
    starts = {"of_a": np.array([0, 1, 3]), "of_b": np.array([0, 5, 9])}
    values = {
        name: np.arange(2.0 * its, dtype=np.float32).reshape(2, its) for name, its in n.items()
    }
    states = [
        broadcast(
            {
                name: values[name][:, starts[f"of_{name}"][k] : starts[f"of_{name}"][k + 1]]
                for name in n
            }
        )
        for k in range(2)
    ]

    def opened():
        store = effects.DrawStore(str(tmp_path))
        store.create(dims, shapes, coords)
        return store

    checksums = opened().write(states, starts, 0, slice(0, 2))
    assert len(checksums) == 1 + 3
    again = opened()
    assert again.holds(0, slice(0, 2), checksums)
    for name in n:
        np.testing.assert_array_equal(again.opened()[name][0], values[name])
    for name in n:
        file = next(f for f in files(tmp_path / "local" / name) if f.suffix != ".json")
        whole = file.read_bytes()
        file.write_bytes(whole[:-3])
        with pytest.warns(UserWarning, match=f"of 'of_{name}'"):
            assert not opened().holds(0, slice(0, 2), checksums)
        file.write_bytes(whole)


@pytest.mark.slow
def test_a_url_is_a_store(frame, plain, passes):
    options = OPTIONS | {"store": "memory://fits/one"}
    try:
        assert_same(fit(frame, model, **options), plain[0])
        passes.ran.clear()
        assert_same(fit(frame, model, **options), plain[0])
        assert passes.ran == []
    finally:
        fsspec.filesystem("memory").store.clear()


# Damage


def damage(file, rng):
    """Flip a bit, or cut."""
    content = bytearray(file.read_bytes())
    at = int(rng.integers(len(content)))
    if rng.random() < 0.5:
        content[at] ^= 1 << int(rng.integers(8))
        file.write_bytes(content)
    else:
        file.write_bytes(content[:at])


def test_all_that_is_damaged_is_named_and_computed_again(frame, plain, finished, tmp_path):
    path = shutil.copytree(finished, tmp_path / "store")
    rng = np.random.default_rng(0)
    records = [file for file in files(path) if file.parent.name == "steps"]
    for file in records[::2]:
        damage(file, rng)
    with pytest.warns(UserWarning, match="damaged") as told:
        assert_same(fit(frame, model, **OPTIONS, store=str(path)), plain[0])
    said = " ".join(str(warning.message) for warning in told)
    # What is not looked at because something before it was damaged is not named.
    named = [file for file in records[::2] if file.name in said]
    assert len(named) == len(records[::2])


@pytest.mark.slow
def test_any_file_may_be_damaged(frame, plain, finished, tmp_path):
    rng = np.random.default_rng(1)
    path = tmp_path / "store"
    for i in range(len(files(finished))):
        shutil.copytree(finished, path)
        file = files(path)[i]
        damage(file, rng)
        with pytest.warns(UserWarning, match=file.name):
            assert_same(fit(frame, model, **OPTIONS, store=str(path)), plain[0])
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "damaged")
            assert_same(fit(frame, model, **OPTIONS, store=str(path)), plain[0])
        shutil.rmtree(path)


@pytest.mark.parametrize("content", ["", "{}", "[1]", "null", '{"sha256": 1}', "\ufffd", "NaN"])
def test_what_nobody_wrote_says_of_no_fit_what_it_is(content):
    assert _read(content) is None


@pytest.mark.parametrize("content", [b"\xff\xfe", None])
def test_without_knowing_which_fit_it_is_nothing_is_believed(
    frame, finished, passes, tmp_path, content
):
    path = shutil.copytree(finished, tmp_path / "store")
    about = path / "dask_consensus.json"
    if content is None:
        told = json.loads(about.read_text())
        told["settings"]["seed"] = 1  # and the checksum as it was
        content = json.dumps(told).encode()
    about.write_bytes(content)
    with pytest.warns(UserWarning, match=r"dask_consensus\.json of store .* is damaged"):
        assert crashed(passes, 1, frame, str(path))
    # And what the shards hold, without an answer.
    assert [file.name[:6] for file in files(path)] == ["dask_c", "shards"]


@pytest.mark.slow
def test_a_full_disk_costs_what_would_have_been_kept(frame, plain, monkeypatch, tmp_path):
    write = Store._write

    def full(self, file, content):
        if file.startswith("steps/newton"):
            raise OSError(28, "No space left on device")
        write(self, file, content)

    monkeypatch.setattr(Store, "_write", full)
    with pytest.warns(UserWarning, match=r"takes no more \(No space left on device\)"):
        assert_same(fit(frame, model, **OPTIONS, store=str(tmp_path / "store")), plain[0])


# Another fit


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"seed": 1}, "seed: 0 in the store, 1 now"),
        ({"num_samples": 70}, "num_samples: 500 in the store, 70 now"),
        ({"correct": False}, "correct: 'auto' in the store, False now"),
        ({"local": None}, "local: 'summary' in the store, None now"),
    ],
)
def test_other_settings_are_refused_before_anything_runs(frame, finished, options, told):
    def computes(*_, **__):
        raise AssertionError("Dask computed something")

    before = files(finished)
    with dask.config.set(scheduler=computes), pytest.raises(StoreMismatch, match=told):
        fit(frame, model, **(OPTIONS | options), store=str(finished))
    with (
        dask.config.set({"scheduler": computes, "consensus.correction.ess": 7}),
        pytest.raises(StoreMismatch, match=r"consensus\.correction\.ess: 1000 in the store, 7 now"),
    ):
        fit(frame, model, **OPTIONS, store=str(finished))
    assert files(finished) == before


def changed_row(table):
    table.loc[17, "y"] += 1e-6
    return table


def another_key(table):
    return table.replace({"who": {"../g03": "g3"}})


@pytest.mark.parametrize(
    ("function", "change", "options", "told"),
    [
        (other_code, None, {}, r"the model \('model', now 'other_code'\) has other code"),
        (model, changed_row, {}, "data: the rows hold other values in 'y'"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                (other_sites, None, {}, r"has other sites: tau"),
                (model, None, {"columns": {"y": "z"}}, r"argument y: column 'y' .* 'z' .* now"),
                (model, lambda t: t.iloc[1:], {}, "data: 200 rows in the store, 199 now"),
                (model, another_key, {}, "data: the rows hold other values in 'who'"),
            )
        ),
    ],
    ids=["code", "value", "sites", "columns", "row", "key"],
)
def test_another_model_or_other_data_are_refused(finished, passes, function, change, options, told):
    rows = table() if change is None else change(table())
    before = files(finished)
    with pytest.raises(StoreMismatch, match=told) as error:
        fit(from_pandas(rows, 2), function, **(OPTIONS | options), store=str(finished))
    assert str(finished) in str(error.value)
    assert passes.ran == []
    assert files(finished) == before


@pytest.mark.slow
def test_the_same_rows_in_another_order_are_the_same_data(plain, finished, passes):
    rows = table().sample(frac=1, random_state=3)
    assert_same(fit(from_pandas(rows, 5), model, **OPTIONS, store=str(finished)), plain[0])
    assert passes.ran == []


@pytest.mark.slow
def test_what_says_where_a_fit_runs_may_change(frame, plain, finished, passes):
    with dask.config.set({"consensus.retries": 5, "consensus.worker-timeout": 3}):
        tree = fit(frame, model, **OPTIONS, store=str(finished), shards_per_task=2)
    assert_same(tree, plain[0])
    assert passes.ran == []


@pytest.mark.slow
def test_rows_dealt_out_otherwise_are_refused(tmp_path, passes):
    """Without groups, which row is in which shard depends on the partitions."""

    def alone(y):
        numpyro.sample("obs", dist.Normal(numpyro.sample("mu", dist.Normal(0, 10)), 1), obs=y)

    options = {"n_shards": 3, "method": "laplace", "store": str(tmp_path / "store")}
    passes.crash = 2
    with pytest.raises(Crash):
        fit(from_pandas(table(), 2), alone, **options)
    with pytest.raises(StoreMismatch, match="the same rows lie in other partitions"):
        fit(from_pandas(table()[::-1], 4), alone, **options)


def test_what_is_no_store_is_left_alone(frame, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for place in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(FileExistsError, match="nothing is overwritten"):
            fit(frame, model, **OPTIONS, store=str(place))
    assert [file.name for file in files(tmp_path)] == ["notes.txt"]


def test_no_path_leads_out_of_a_store(finished):
    """Keys of groups begin with two dots here."""
    assert {file.name for file in finished.parent.iterdir()} == {"store"}
    assert {file.name for file in finished.iterdir()} == {"dask_consensus.json", "steps"}


# Another process, another cluster


SCRIPT = """
import sys, dask
from tests import fit, from_pandas
from tests.test_resume import OPTIONS, model, table
path, workers, options = sys.argv[1], int(sys.argv[2]), eval(sys.argv[3])

def run():
    return fit(from_pandas(table(), 2), model, **(OPTIONS | options), store=path)

if __name__ == "__main__":
    if workers:
        from tests.conftest import local_cluster
        with local_cluster(workers, 1):
            run()
    else:
        run()
"""


def process(path, workers, options):
    root = str(Path(__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": root, "PYTHONHASHSEED": str(time.time_ns() % 2**31)}
    command = [sys.executable, "-c", SCRIPT, str(path), str(workers), repr(options)]
    return subprocess.Popen(command, cwd=root, env=environment, start_new_session=True)


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("workers", [0, 2])
def test_a_killed_process_is_gone_on_with_by_another(frame, passes, no_rows, tmp_path, workers):
    """Killed again and again, with its cluster if it has one, each time after some more records."""
    options = {"method": "anchored", "num_samples": 100, "correct": False, "rounds": 3}
    whole = fit(frame, model, **(OPTIONS | options))
    path, kills = tmp_path / "store", 0
    for more in (1, 6, 4, 5, 3):
        before = len(files(path)) if path.exists() else 0
        child = process(path, workers, options)
        try:
            while child.poll() is None and (not path.exists() or len(files(path)) < before + more):
                time.sleep(0.02)
            kills += child.poll() is None
        finally:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    assert kills >= 3
    assert_same(fit(frame, model, **(OPTIONS | options), store=str(path)), whole)
    no_rows()
    assert_same(fit(frame, model, **(OPTIONS | options), store=str(path)), whole)


@pytest.mark.slow
@pytest.mark.distributed
def test_a_cluster_goes_on_where_threads_have_stopped(frame, plain, passes, cluster, tmp_path):
    assert crashed(passes, 5, frame, str(tmp_path / "store"))
    with cluster(2, 1), dask.config.set(scheduler=None):
        assert_same(fit(frame, model, **OPTIONS, store=str(tmp_path / "store")), plain[0])
        # What the client alone sees is no store.
        with pytest.raises(OSError, match=r"is not seen by 2 of 2 workers"):
            fit(frame, model, **OPTIONS, store="memory://mine")
