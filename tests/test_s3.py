"""A store in S3, for which a server on this machine stands, where that is installed."""

import gc
import warnings

import dask
import fsspec
import pytest

from dask_consensus.update import update_of

from . import fit, from_pandas
from .test_resume import OPTIONS, Crash, Passes, assert_same, model, table

moto = pytest.importorskip("moto.server", reason="moto[server] is not installed")
pytest.importorskip("s3fs", reason="s3fs is not installed")
# boto's own
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]


@pytest.fixture
def bucket(monkeypatch):
    """The URL of an empty bucket."""
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    fsspec.filesystem("s3", skip_instance_cache=True).mkdir("fits")
    try:
        yield "s3://fits"
    finally:
        server.stop()
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        with warnings.catch_warnings():
            # Nobody closes the connections of a file system: they end when they are collected.
            warnings.simplefilter("ignore")
            gc.collect()


@pytest.mark.parametrize(
    "options", [{}, {"local": "draws", "local_draws": 20}], ids=["summary", "draws"]
)
def test_a_fit_goes_on_from_a_bucket(bucket, monkeypatch, tmp_path, options):
    frame, url, options = from_pandas(table(), 2), f"{bucket}/monday", OPTIONS | options
    with dask.config.set(scheduler="synchronous"):
        passes = Passes(monkeypatch)
        whole = fit(frame, model, **options, store=str(tmp_path / "whole"))
        total, done = len(passes.ran), 0
        for number in (2, total // 2):
            passes.ran.clear()
            passes.crash = number
            with pytest.raises(Crash):
                fit(frame, model, **options, store=url)
            done += len(passes.ran)
        passes.ran.clear()
        with pytest.raises(ValueError, match="has not finished"):
            update_of(url)
        assert_same(fit(frame, model, **options, store=url), whole)
        assert done + len(passes.ran) == total
        passes.ran.clear()
        assert_same(fit(frame, model, **options, store=url), whole)
        assert passes.ran == []
        # A bit that flips is named, and what it was in is made again.
        system = fsspec.filesystem("s3")
        record = next(path for path in system.find(url) if "/newton" in path)
        content = bytearray(system.cat_file(record))
        content[len(content) // 2] ^= 1
        system.pipe_file(record, bytes(content))
        with pytest.warns(UserWarning, match="damaged"):
            assert_same(fit(frame, model, **options, store=url), whole)
    assert_same(update_of(url)[0], whole)
