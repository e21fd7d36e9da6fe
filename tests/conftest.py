from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import dask
import hypothesis
import pytest

# Processes of a session share what they compile, and leave nothing behind on the machine. Those
# that run tests side by side are started by one that has made the folder.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _CACHE = tempfile.TemporaryDirectory(prefix="dask-consensus-tests-")
    os.environ["DASK_CONSENSUS__CACHE"] = _CACHE.name

# Hundreds of small fits need no forecast; what a forecast is, and costs, has tests of its own.
os.environ.setdefault("DASK_CONSENSUS__FORECAST", "false")
dask.config.set({"consensus.forecast": False})  # Dask may have read the environment before

# Examples are few and the same in every run; how long they take depends on the machine.
hypothesis.settings.register_profile(
    "house", derandomize=True, deadline=None, max_examples=25, print_blob=True
)
hypothesis.settings.load_profile("house")


@contextmanager
def local_cluster(n_workers: int, threads_per_worker: int) -> Iterator[Any]:
    from distributed import Client, LocalCluster

    with (
        LocalCluster(
            n_workers=n_workers,
            threads_per_worker=threads_per_worker,
            processes=True,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            memory_limit=0,
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


@pytest.fixture
def cluster() -> Any:
    """Start a cluster of processes: ``cluster(n_workers, threads_per_worker)``."""
    return local_cluster
