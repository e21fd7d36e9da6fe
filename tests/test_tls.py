"""A fit over encrypted connections gives what it gives over others."""

import warnings

import dask
import pytest
import xarray as xr

from . import fit, from_pandas
from .test_waiting import ROWS, SMALL, model


@pytest.mark.distributed
@pytest.mark.slow
def test_a_fit_over_tls():
    from distributed import Client, LocalCluster, Security

    rows = from_pandas(ROWS)
    with dask.config.set(scheduler="synchronous"):
        expected = fit(rows, model, **SMALL)["posterior"].to_dataset().drop_attrs()
    with warnings.catch_warnings():
        # Of the library that makes certificates, about dates.
        warnings.simplefilter("ignore", DeprecationWarning)
        security = Security.temporary()
    with (
        LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=False,
            protocol="tls",
            security=security,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            memory_limit=0,
        ) as cluster,
        Client(cluster, security=security) as client,
    ):
        info = client.scheduler_info()
        addresses = [info["address"], *info["workers"]]
        assert all(address.startswith("tls://") for address in addresses)
        found = fit(rows, model, **SMALL)["posterior"].to_dataset().drop_attrs()
    xr.testing.assert_identical(found, expected)
