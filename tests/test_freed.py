"""Freed memory: workers keep some while a fit runs, and as Dask has it before and after."""

import resource

import numpy as np
import pytest

from dask_consensus.cluster.freed import freed_memory_kept

_TIMES, _PAGES = 50, 1024  # arrays made and freed, and pages of each


def faults() -> int:
    """Pages that the system hands out and clears for arrays that are made and freed."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(_TIMES):
        np.ones(_PAGES * resource.getpagesize() // 8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def on_workers(client) -> list[bool]:
    """Tell of each worker whether it keeps what it frees."""
    return [n < _TIMES * _PAGES / 2 for n in client.run(faults).values()]


@pytest.mark.filterwarnings("error")
def test_workers_keep_what_they_free_until_the_last_fit_ends(cluster):
    with cluster(2, 1) as client:
        if any(on_workers(client)):
            pytest.skip("this system's workers keep freed memory anyway")
        with freed_memory_kept(64):
            assert all(on_workers(client))
            with freed_memory_kept(64):
                assert all(on_workers(client))
            assert all(on_workers(client))
            client.cluster.scale(3)
            client.wait_for_workers(3)
            assert on_workers(client) == [True] * 3
        assert not any(on_workers(client))
        with pytest.raises(ZeroDivisionError), freed_memory_kept(64):
            1 / 0  # noqa: B018
        assert not any(on_workers(client))
        with freed_memory_kept(4096):  # whose bytes are no C int
            assert all(on_workers(client))
        with freed_memory_kept(0):
            assert not any(on_workers(client))
