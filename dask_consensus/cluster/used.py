"""What a fit has used: tasks, and memory."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable
from typing import Any

from .client import current_client, current_work


def count(tasks: Iterable[Any]) -> None:
    """Count the tasks that are asked for, each once."""
    work = current_work()
    for task in tasks:
        for name, layer in getattr(getattr(task, "dask", None), "layers", {}).items():
            if name not in work.counted:
                work.counted.add(name)
                work.tasks += len(layer)


def used() -> dict[str, int]:
    """Say how many tasks the fit that runs now has had, and the peak of a worker's memory, bytes.

    Without a cluster it is that of this process. It is of all that the process has done so far, and
    0 where the system does not say.
    """
    client, peak = current_client(), peak_memory()
    if client is not None:
        with contextlib.suppress(Exception):  # a worker that has just ended does not answer
            peak = max(client.run(peak_memory).values(), default=0)
    return {"tasks": current_work().tasks, "memory": peak}


def peak_memory() -> int:
    """Largest resident memory that this process has had, in bytes; 0 where nobody knows."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
