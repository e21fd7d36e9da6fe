"""What a GPU worker's process is told before JAX starts."""

import sys

import dask
import pytest

from dask_consensus.cluster import preload

VARIABLES = ("XLA_PYTHON_CLIENT_PREALLOCATE", "XLA_PYTHON_CLIENT_MEM_FRACTION")


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    for name in VARIABLES:
        # Set first, so that what the preload sets is taken back too.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def variables():
    import os

    return tuple(os.environ.get(name) for name in VARIABLES)


def test_memory_is_taken_as_needed(monkeypatch):
    monkeypatch.delitem(sys.modules, "jax", raising=False)
    preload.dask_setup(None)
    assert variables() == ("false", "0.9")


def test_what_the_user_said_stands(monkeypatch):
    monkeypatch.delitem(sys.modules, "jax", raising=False)
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.3")
    with dask.config.set({"consensus.gpu-memory": 0.5}):
        preload.dask_setup(None)
    assert variables() == ("false", "0.3")


def test_the_share_is_configured(monkeypatch):
    monkeypatch.delitem(sys.modules, "jax", raising=False)
    with dask.config.set({"consensus.gpu-memory": 0.5}):
        preload.dask_setup(None)
    assert variables() == ("false", "0.5")


@pytest.mark.parametrize("share", [0, 1.5, "half", None])
def test_a_share_is_a_share(share):
    with (
        dask.config.set({"consensus.gpu-memory": share}),
        pytest.raises(ValueError, match="must lie between 0 and 1"),
    ):
        preload.dask_setup(None)


def test_too_late_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "jax", object())
    with pytest.warns(UserWarning, match="had imported jax before"):
        preload.dask_setup(None)


@pytest.mark.distributed
def test_workers_run_it():
    from distributed import Client, LocalCluster

    def asked():
        import os

        return os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION")

    with (
        LocalCluster(
            n_workers=1,
            threads_per_worker=1,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            preload=["dask_consensus.cluster.preload"],
        ) as cluster,
        Client(cluster) as client,
    ):
        assert list(client.run(asked).values()) == ["0.9"]
