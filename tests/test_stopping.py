"""Ctrl-C, or an error, ends the work: on threads, on a cluster, whatever it is about."""

import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from dask_consensus.cluster.client import working
from dask_consensus.cluster.stopping import stoppable, stopped_by_errors
from dask_consensus.cluster.tasks import call, compute
from dask_consensus.shard.nuts import NutsSettings, sample_shard
from dask_consensus.shard.target import PriorFactor
from dask_consensus.wanted import UnwantedError, check_wanted, forget, forgotten, while_wanted

from .test_marginal import data_of, intercepts, read
from .test_waiting import threads


def test_what_was_forgotten_is_not_wanted():
    check_wanted()  # where nobody has said
    with while_wanted(lambda: not forgotten("this")):
        check_wanted()
        forget("that")
        check_wanted()
        forget("this")
        with pytest.raises(UnwantedError, match="interrupted, or has failed"):
            check_wanted()
        with while_wanted(lambda: True):
            check_wanted()
    check_wanted()


def _until_unwanted(started):
    started.set()
    for _ in range(1000):
        check_wanted()
        time.sleep(0.01)


def test_an_error_ends_what_runs_beside_it():
    """What the same fit has asked for until then, and no other's."""
    started, ended = threading.Event(), []

    def work(run):
        try:
            run(started)
        except UnwantedError:
            ended.append(True)

    with working(0.0):
        other = stoppable(check_wanted)
    with working(0.0):
        thread = threading.Thread(target=work, args=(stoppable(_until_unwanted),))
        thread.start()
        started.wait()
        with pytest.raises(ZeroDivisionError), stopped_by_errors():
            1 / 0  # noqa: B018
        thread.join(30)
        assert ended == [True]
        stoppable(check_wanted)()
    other()
    assert call(stoppable(check_wanted)).key.startswith("check_wanted-")


def test_a_chain_ends_between_two_pieces(monkeypatch):
    """It has a million transitions to go."""
    monkeypatch.setattr("dask_consensus.shard.nuts._PIECE", 1e-3)
    model = read(intercepts, {"y": np.zeros(4, int)}, groups=["g"])
    data = data_of({"y": np.arange(40) % 2}, {"g": np.arange(40) // 4})
    factor = PriorFactor(1.0, np.zeros(model.dim), np.zeros((model.dim, model.dim)))
    asked = []

    def wanted():
        asked.append(True)
        return len(asked) < 6

    with while_wanted(wanted), pytest.raises(UnwantedError):
        sample_shard(model, data, factor, NutsSettings(10, 10**6), (0, 0, 0))
    assert len(asked) == 6


@pytest.mark.distributed
def test_a_cancelled_task_ends_on_its_worker():
    from distributed import Event, Future

    with threads(1) as client:
        futures = client.compute([call(stoppable(_until_cancelled))])
        Event("begun").wait(30)
        client.cancel(futures)
        assert isinstance(futures[0], Future)
        assert Event("ended").wait(30)
        assert compute([call(abs, -3)]) == [3]


def _until_cancelled():
    from distributed import Event

    Event("begun").set()
    try:
        for _ in range(1000):
            check_wanted()
            time.sleep(0.01)
    except UnwantedError:
        Event("ended").set()
        raise


FIT = """
import sys
import dask.dataframe as dd, numpy as np, numpyro, numpyro.distributions as dist, pandas as pd
import dask_consensus
from dask_consensus.result.clock import Clock

def model(g, x, y, n_g):
    tau = numpyro.sample("tau", dist.HalfNormal(2))
    with numpyro.plate("groups", n_g):
        a = numpyro.sample("a", dist.Normal(0, tau))
    with numpyro.plate("rows", len(x)):
        numpyro.sample("obs", dist.Normal(a[g] + x, 1), obs=y)

def told(self, name, before=Clock.__call__):
    print(name, flush=True)
    return before(self, name)

if __name__ == "__main__":
    Clock.__call__ = told
    client = None
    if sys.argv[1] == "cluster":
        from distributed import Client
        client = Client(
            n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0"
        )
    rng = np.random.default_rng(0)
    rows = pd.DataFrame({"g": np.arange(4000) // 10, "x": 0.0, "y": rng.normal(size=4000)})
    frame = dd.from_pandas(rows, npartitions=4)
    # Hours of sampling, if nothing ends it.
    options = {"method": "consensus", "num_warmup": 1000, "num_samples": 1_000_000}
    try:
        frame.consensus.fit(model, by="g", n_shards=2, progress=False, **options)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
    if client is not None:
        assert client.submit(sum, [1, 2]).result(timeout=60) == 3
        client.close()
    plan = frame.consensus.plan(model, by="g", n_shards=2)
    print("usable", plan.n_shards, flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("where", ["threads", "cluster"])
@pytest.mark.parametrize(
    ("phase", "later"), [("plan", 0), ("shard", 0), ("rounds", 0), ("rounds", 8)]
)
def test_ctrl_c_ends_a_fit(tmp_path, where, phase, later):
    """And leaves a process, and a cluster, that can be used and that ends without complaint."""
    (tmp_path / "fit.py").write_text(FIT)
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "fit.py"), where],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip() == phase:
                break
        time.sleep(later)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert "interrupted" in out
    assert out.split()[-2:] == ["usable", "2"]
    assert process.returncode == 0, err
    assert "Traceback" not in err
