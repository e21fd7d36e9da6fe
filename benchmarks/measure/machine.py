"""The machine: what it is, processes and clusters of their own, memory."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import platform
import subprocess
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from distributed import LocalCluster, Nanny, Scheduler, SpecCluster
from distributed.diagnostics.plugin import SchedulerPlugin

LIBRARIES = ("numpy", "jax", "numpyro", "dask", "distributed")
MIB = 2**20


def facts() -> dict[str, Any]:
    """Where and with what a row is measured, and how busy the machine is."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    git = subprocess.run([*command, "--abbrev=12"], capture_output=True, text=True, check=False)
    return {
        "processor": _field("/proc/cpuinfo", "model name") or platform.processor(),
        "cores": os.cpu_count(),
        "memory_gib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in LIBRARIES},
        "commit": git.stdout.strip(),
        "load_before": round(os.getloadavg()[0], 2),
        "gpu": _gpu(),
    }


def _gpu() -> str:
    """Name the GPU, if there is one."""
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    with contextlib.suppress(OSError):
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return ""


def peak_mib() -> float:
    """Most memory this program has held at once.

    Not ``ru_maxrss``, which a program inherits from the one that started it.
    """
    return float((_field("/proc/self/status", "VmHWM") or "nan").split()[0]) / 1024


def _field(path: str, name: str) -> str:
    """Read the first ``name: value`` of a file of the Linux kernel."""
    lines = Path(path).read_text().splitlines() if Path(path).exists() else []
    values = [line.partition(":")[2].strip() for line in lines if line.startswith(name)]
    return values[0] if values else ""


class TaskCount(SchedulerPlugin):
    """Counts tasks as the scheduler sees them finish."""

    name = "count"

    def __init__(self) -> None:
        self.tasks = 0

    def transition(self, key: Any, start: str, finish: str, *_: Any, **__: Any) -> None:
        self.tasks += start == "processing" and finish == "memory"


def local_cluster(
    folder: str | Path, workers: int, threads: int = 1, *, here: bool = False
) -> AbstractContextManager:
    """Workers that nothing outside this machine can reach; processes, or threads `here`."""
    return LocalCluster(
        n_workers=workers,
        threads_per_worker=threads,
        processes=not here,
        host=None if here else "127.0.0.1",
        dashboard_address="127.0.0.1:0",
        local_directory=str(folder),
        silence_logs="ERROR",
    )


def gpu_cluster(folder: str | Path, workers: int) -> SpecCluster:
    """A worker that has the GPU, and others that read and shuffle on CPUs, as processes.

    Only that worker finds the GPU where ``JAX_PLATFORMS=cpu`` is set before JAX is imported.
    """
    local = {"host": "127.0.0.1", "nthreads": 1, "local_directory": str(folder)}
    find_gpu = "import jax; jax.config.update('jax_platforms', None)"
    of_gpu = {"resources": {"GPU": 1}, "preload": ["dask_consensus.cluster.preload", find_gpu]}
    return SpecCluster(
        {
            number: {"cls": Nanny, "options": {**local, **({} if number else of_gpu)}}
            for number in range(workers)
        },
        {
            "cls": Scheduler,
            "options": {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0"},
        },
        silence_logs="ERROR",
    )


def in_own_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function where no earlier work counts towards its time or its memory."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()
