"""No fit waits in silence, or for ever; and none runs where it was not meant to."""

import asyncio
import threading
import time
import warnings
from contextlib import contextmanager

import dask
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
import pytest

from dask_consensus.cluster import waiting
from dask_consensus.cluster.client import ClusterLost, current_client, working
from dask_consensus.cluster.tasks import call, compute
from dask_consensus.cluster.waiting import NoWorkers, nothing_can_run

from . import fit, from_pandas, plan


def model(y):
    mu = numpyro.sample("mu", dist.Normal(0, 10))
    with numpyro.plate("rows", len(y)):
        numpyro.sample("obs", dist.Normal(mu, 1), obs=y)


ROWS = pd.DataFrame({"y": np.arange(40.0) % 3})
SMALL = {"n_shards": 2, "num_warmup": 20, "num_samples": 20}


@contextmanager
def threads(n_workers, **options):
    """A cluster on threads of this process: quick to start."""
    from distributed import Client, LocalCluster

    with (
        LocalCluster(
            n_workers=n_workers,
            threads_per_worker=1,
            processes=False,
            host="127.0.0.1",
            protocol="tcp",
            dashboard_address="127.0.0.1:0",
            memory_limit=0,
            **options,
        ) as cluster,
        Client(cluster, timeout=1) as client,
    ):
        yield client
    forget(client)


def forget(client):
    """Do what `Client.close` leaves out where its cluster was gone before."""
    client._loop_runner.stop()


@pytest.fixture
def hasty(monkeypatch):
    """Warn after a moment."""
    monkeypatch.setattr(waiting, "_WARN_AFTER", 0.2)
    monkeypatch.setattr(waiting, "_EVERY", 0.1)


@pytest.fixture
def half_a_second():
    with dask.config.set({"consensus.worker-timeout": 0.5}):
        yield


@pytest.mark.distributed
@pytest.mark.parametrize("what", [plan, fit])
def test_without_a_worker_a_fit_warns_and_ends(hasty, half_a_second, what):
    with threads(0) as client:
        with (
            pytest.warns(UserWarning, match=r"nothing has run for .* has no workers.* waits"),
            pytest.raises(NoWorkers, match=r"127.* has no workers.* consensus\.worker-timeout"),
        ):
            what(from_pandas(ROWS), model, **SMALL)
        # What it waited for is not left behind.
        assert not client.futures


@pytest.mark.distributed
def test_what_has_a_worker_again_goes_on(hasty):
    with threads(0) as client, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        client.loop.call_later(0.6, client.cluster.scale, 1)
        assert plan(from_pandas(ROWS), model, **SMALL).survey.rows == len(ROWS)


@pytest.mark.distributed
def test_a_later_pass_ends_too(hasty, half_a_second):
    """All workers leave between the survey and the shards."""
    with threads(1) as client, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        with working(0.5):
            assert compute([call(abs, -3)]) == [3]
            client.cluster.scale(0)
            with pytest.raises(NoWorkers, match="has no workers"):
                compute([call(abs, -3)])


@pytest.mark.distributed
def test_paused_workers_are_no_workers(hasty, half_a_second):
    from distributed.core import Status

    with threads(1) as client:

        def set_status(status, dask_worker):
            dask_worker.status = status

        client.run(set_status, Status.paused)
        with (
            pytest.warns(UserWarning, match="all are paused"),
            pytest.raises(NoWorkers, match=r"of the 1 workers at .* all are paused .*memory"),
        ):
            plan(from_pandas(ROWS), model, **SMALL)
        client.run(set_status, Status.running)
        assert plan(from_pandas(ROWS), model, **SMALL).survey.rows == len(ROWS)


@pytest.mark.distributed
def test_a_resource_that_left_is_missed():
    with threads(1, resources={"GPU": 1}) as client:
        assert nothing_can_run(client, {"GPU": 1}) == ""
        assert nothing_can_run(client, None) == ""
        assert "none has the resources GPU=2" in nothing_can_run(client, {"GPU": 2})


def test_a_worker_that_ends_what_it_began_works():
    paused = {"status": "paused", "metrics": {"task_counts": {"executing": 1}}}
    assert waiting._works(paused)
    assert not waiting._works({"status": "paused", "metrics": {"task_counts": {"memory": 1}}})


@pytest.mark.parametrize("value", [-1, "long", None, True])
def test_how_long_to_wait_is_a_number(value):
    with (
        dask.config.set({"consensus.worker-timeout": value}),
        pytest.raises(ValueError, match=r"consensus\.worker-timeout must be a number"),
    ):
        plan(from_pandas(ROWS), model, **SMALL)


@pytest.mark.distributed
def test_a_closed_cluster_is_no_reason_to_work_here():
    from distributed import Client, LocalCluster

    cluster = LocalCluster(
        n_workers=0,
        processes=False,
        host="127.0.0.1",
        protocol="tcp",
        dashboard_address="127.0.0.1:0",
    )
    client = Client(cluster)
    cluster.close()
    with pytest.raises(ClusterLost, match=r"is gone .*'closed'.*Connect.*scheduler='threads'"):
        plan(from_pandas(ROWS), model, **SMALL)
    with (
        dask.config.set(scheduler=client),
        pytest.raises(ClusterLost, match=r"Client-.* is gone"),
    ):
        plan(from_pandas(ROWS), model, **SMALL)
    with dask.config.set(scheduler="threads"):
        assert plan(from_pandas(ROWS), model, **SMALL).survey.rows == len(ROWS)
    forget(client)
    assert current_client() is None


@pytest.mark.distributed
def test_a_client_that_was_closed_leaves_the_fit_to_this_process():
    with threads(0) as client:
        assert current_client() is client
    assert current_client() is None
    assert plan(from_pandas(ROWS), model, **SMALL).survey.rows == len(ROWS)


@pytest.mark.distributed
def test_a_cluster_that_ends_within_a_fit_ends_it():
    with threads(1) as client, working(0.0):
        assert compute([call(abs, -3)]) == [3]
        client.loop.call_later(0.3, client.cluster.close)
        with pytest.raises(ClusterLost, match="is gone"):
            compute([call(time.sleep, 1)])
        with pytest.raises(ClusterLost, match="is gone"):
            compute([call(abs, -3)])


@pytest.mark.distributed
def test_cancelled_tasks_are_said_to_be_so():
    from distributed import Future

    with threads(1) as client:
        cancel = threading.Timer(
            0.3, lambda: client.cancel([Future(key, client) for key in list(client.futures)])
        )
        cancel.start()
        with pytest.raises(ClusterLost, match=r"were cancelled .* Run the fit again"):
            compute([call(time.sleep, 2)])


@pytest.mark.distributed
def test_an_asynchronous_client_is_refused():
    from distributed import Client, LocalCluster

    async def main():
        async with (
            LocalCluster(
                n_workers=0,
                processes=False,
                host="127.0.0.1",
                protocol="tcp",
                dashboard_address="127.0.0.1:0",
                asynchronous=True,
            ) as cluster,
            Client(cluster, asynchronous=True),
        ):
            plan(from_pandas(ROWS), model, **SMALL)

    with pytest.raises(RuntimeError, match=r"Client is asynchronous.*asynchronous=False"):
        asyncio.run(main())


def test_a_scheduler_that_is_not_there_is_said():
    with (
        dask.config.set(scheduler="distributed"),
        pytest.raises(RuntimeError, match=r"no scheduler to compute with.*scheduler='threads'"),
    ):
        plan(from_pandas(ROWS), model, **SMALL)
