"""Memory that a worker frees while a fit runs, and what becomes of it.

Dask starts its workers with ``MALLOC_TRIM_THRESHOLD_=65536``: the C library gives freed memory back
to the system at once, so that idle workers look small. Arrays that are made and freed thousands of
times then lie on pages that the system hands out and clears anew each time, which takes as long as
what is computed on them. While a fit runs its workers keep a little of what they free.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
import uuid
from collections.abc import Iterator
from typing import Any

from distributed import WorkerPlugin

from .client import current_client

_VARIABLE, _OF_DASK = "MALLOC_TRIM_THRESHOLD_", 65_536
_TRIM, _MAP = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
_MAPPED_BY_DEFAULT, _MOST_MAPPED = 2**17, 2**25  # bytes; the C library takes no more than that
_LARGEST = 2**30  # bytes; a larger number would be no C int
_LOCK = threading.Lock()
_FITS = [0]  # that run on this process


@contextlib.contextmanager
def freed_memory_kept(mib: int) -> Iterator[None]:
    """Let the workers of the current client keep so much of what they free; 0 for nothing."""
    client = current_client()
    if client is None or not mib:
        yield
        return
    plugin = KeepFreed(mib * 2**20)
    client.register_plugin(plugin)
    try:
        yield
    finally:
        if client.status == "running":
            client.unregister_worker_plugin(plugin.name)


class KeepFreed(WorkerPlugin):
    """Does so on each worker, also on those that join later, unless they were started otherwise."""

    def __init__(self, size: int) -> None:
        self.name = f"consensus-freed-memory-{uuid.uuid4().hex}"
        self._size = size

    def setup(self, worker: Any) -> None:
        """Keep freed memory; Dask calls this."""
        with _LOCK:
            _FITS[0] += 1
            size = min(self._size, _LARGEST)
            _give_back_beyond(size, min(size // 2, _MOST_MAPPED))

    def teardown(self, worker: Any) -> None:
        """Go back to what Dask asked for, and give back what was kept, after the last fit."""
        with _LOCK:
            _FITS[0] -= 1
            if not _FITS[0] and _give_back_beyond(_OF_DASK, _MAPPED_BY_DEFAULT):
                ctypes.CDLL(None).malloc_trim(0)


def _give_back_beyond(size: int, mapped: int) -> bool:
    """Set from which size on memory is given back, where Dask has set it and the library can."""
    if os.environ.get(_VARIABLE) != str(_OF_DASK):
        return False
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (AttributeError, TypeError):  # another C library than GNU's
        return False
    return bool(set_option(_TRIM, size) and set_option(_MAP, mapped))
