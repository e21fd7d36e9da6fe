"""Workers with other packages than the client are named before anything runs."""

import importlib.metadata
import sys
import time

import pytest

from dask_consensus.cluster import versions
from dask_consensus.cluster.versions import check_versions

from . import from_pandas, plan
from .test_waiting import ROWS, SMALL, model, threads


@pytest.mark.distributed
def test_workers_with_another_numpyro_are_named(tmp_path, cluster):
    other = tmp_path / "numpyro-0.0.1.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: numpyro\nVersion: 0.0.1\n")
    here = importlib.metadata.version("numpyro")
    with cluster(1, 1) as client:
        client.run(look_first_in, str(tmp_path))
        with pytest.raises(
            ValueError, match=rf"numpyro is {here} here, and 0\.0\.1 on worker tcp://127.*\nInstall"
        ):
            plan(from_pandas(ROWS), model, **SMALL)


def look_first_in(folder):
    sys.path.insert(0, folder)
    importlib.invalidate_caches()


class Told:
    """A client whose workers have what is said of them."""

    def __init__(self, **told):
        self.told = told

    def run(self, function, package, on_error):
        here = importlib.metadata.version(package)
        return {f"worker-{i}": self.told.get(package, {}).get(i, here) for i in range(5)}


def test_what_is_missing_is_said_and_what_is_gone_is_not():
    check_versions(Told())
    check_versions(Told(jax={2: OSError("gone")}))
    missing = importlib.metadata.PackageNotFoundError("dask_consensus")
    with pytest.raises(ValueError, match=r"dask_consensus is .* and missing on worker worker-3\n"):
        check_versions(Told(dask_consensus={3: missing}))
    with pytest.raises(ValueError, match=r"1\.0 on workers worker-0, worker-1, worker-2 and 1 m"):
        check_versions(Told(jaxlib=dict.fromkeys(range(4), "1.0")))


def test_workers_that_do_not_answer_do_not_hold_up_the_fit(monkeypatch):
    monkeypatch.setattr(versions, "_PATIENCE", 0.05)
    client = Told()
    client.run = lambda *_, **__: time.sleep(0.2) or {}
    check_versions(client)


@pytest.mark.distributed
def test_the_same_packages_are_fine():
    with threads(1) as client:
        check_versions(client)
