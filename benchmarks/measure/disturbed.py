"""A fit on a cluster in which something is made to happen: when, to whom, and what came of it."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import dask
import numpy as np
import pandas as pd
import psutil
import xarray as xr
from distributed import Client, LocalCluster
from distributed.chaos import KillWorker
from distributed.diagnostics.plugin import SchedulerPlugin

from ..cases.case import sizes_of_groups
from ..cases.sized import GROWING
from .fits import in_memory, quietly
from .internals import phases_told

MEMORY = 2 * 2**30  # bytes of a worker
Injury = Callable[["Patient", list[str]], None]


def small_rows(rows: int) -> pd.DataFrame:
    """Make binary rows, ten a group: the same ones in any process."""
    rng = np.random.default_rng(7)
    return GROWING["binary"][1](rng, sizes_of_groups(rng, rows // 10, rows))[0]


def small_fit(rows: int, shards: int, seed: int, ddf: Any = None, **options: Any) -> Any:
    """Prepare a fit of such rows, with an effect a group, that has not run yet."""
    model, _, _ = GROWING["binary"]
    frame = in_memory(small_rows(rows), 6) if ddf is None else ddf
    options = {"local": "summary", "seed": seed, "progress": False} | options
    return frame.consensus.fit(model, by="group", n_shards=shards, compute=False, **options)


class Finished(SchedulerPlugin):
    """Counts how often each task has finished, and tells of each that does."""

    name = "finished"

    def __init__(self) -> None:
        self.times: Counter[Any] = Counter()
        self.seconds: Counter[Any] = Counter()
        self.again = 0.0
        self.tell: Callable[[], None] = lambda: None

    def transition(
        self, key: Any, start: str, finish: str, *_: Any, startstops: Any = (), **__: Any
    ) -> None:
        if start == "processing" and finish == "memory":
            spent = sum(s["stop"] - s["start"] for s in startstops if s["action"] == "compute")
            if self.times[key]:
                self.again += spent
            else:
                self.seconds[key] = spent
            self.times[key] += 1
            self.tell()

    def read(self) -> dict[str, Any]:
        """Tasks, those that were done again, and the same of the seconds they took."""
        return {
            "tasks": len(self.times),
            "repeated": sum(self.times.values()) - len(self.times),
            "task_seconds": round(sum(self.seconds.values()), 3),
            "repeated_seconds": round(self.again, 3),
        }


class Patient(NamedTuple):
    """A cluster that is fitted on, and its worker processes by address."""

    cluster: LocalCluster
    client: Client
    pids: dict[str, int]


@contextlib.contextmanager
def cluster_of(workers: int, folder: str | None = None, **config: Any) -> Iterator[Any]:
    """Worker processes of one thread each, which are started again when they end."""
    with (
        tempfile.TemporaryDirectory() as scratch,
        dask.config.set(config),
        LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            memory_limit=MEMORY,
            local_directory=folder or scratch,
            silence_logs=60,
        ) as cluster,
        Client(cluster) as client,
    ):
        yield cluster, client


class When(NamedTuple):
    """So many tasks after a phase of the fit has begun."""

    phase: str
    after: int


def disturbed(
    lazy: Any, cluster: LocalCluster, client: Client, when: When, whom: str, injury: Injury
) -> dict[str, Any]:
    """Run a fit in which one worker or two are hurt; say how it ended, and what was done twice."""
    client.wait_for_workers(len(cluster.worker_spec))
    patient = Patient(cluster, client, client.run(os.getpid))
    victims = list(patient.pids)[: 1 if whom == "one" else 2]
    hurt = _Once(when, lambda: injury(patient, victims))
    finished = Finished()
    finished.tell = hurt.task
    cluster.scheduler.add_plugin(finished)
    began = time.perf_counter()
    try:
        with phases_told(hurt.phase):
            row = {"finished": True, "digest": digest(quietly(lazy))}
    except Exception as error:
        row = {"finished": False, "failed": f"{type(error).__name__}: {error}"}
    seconds = time.perf_counter() - began
    cluster.scheduler.remove_plugin(finished.name)
    hurt.join()
    gone = sum(not _lives(patient.pids[address]) for address in victims)
    told = {"struck": hurt.struck, "gone": gone, "seconds": round(seconds, 2)}
    told |= {"workers": len(patient.pids)}
    return {**row, **told, **finished.read()}


def _lives(pid: int) -> bool:
    """Tell whether a process is there, and more than its exit status."""
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


class _Once:
    """Does something, in a thread of its own, when so many tasks of a phase are done."""

    def __init__(self, when: When, do: Callable[[], None]) -> None:
        self._when, self._do = when, do
        self._left: int | None = None
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    @property
    def struck(self) -> bool:
        return self._thread is not None

    def phase(self, name: str) -> None:
        if name == self._when.phase and self._left is None:
            self._left = self._when.after
        elif name != self._when.phase and not self.struck:
            self._left = None

    def task(self) -> None:
        if self._left is not None and not self.struck:
            self._left -= 1
            if self._left <= 0:
                self._thread = threading.Thread(target=self._run, daemon=True)
                self._thread.start()

    def _run(self) -> None:
        try:
            self._do()
        except Exception as error:
            self._error = error

    def join(self) -> None:
        """Wait for what was done; raise if it could not be."""
        if self._thread is not None:
            self._thread.join(60)
        if self._error is not None:
            raise RuntimeError("nothing was made to happen") from self._error


def digest(tree: xr.DataTree) -> str:
    """Name all draws and effects of a result by their bits."""
    content = hashlib.sha256()
    for name in ("posterior", "uncorrected", "local"):
        if name in tree.children:
            group = tree[name].to_dataset()
            for variable in sorted(map(str, group.variables)):
                content.update(variable.encode())
                content.update(np.ascontiguousarray(group[variable].to_numpy()).tobytes())
    return content.hexdigest()[:16]


# What may happen to a worker


def kill(patient: Patient, victims: list[str]) -> None:
    """End the processes as an operator, or a kernel out of memory, does."""
    for address in victims:
        os.kill(patient.pids[address], signal.SIGKILL)


def leave(patient: Patient, victims: list[str]) -> None:
    """Have the processes end by themselves, by Dask's own plugin for that.

    Nobody starts them again; where it is all of them, others come.
    """
    patient.client.run(_chaos, workers=victims, wait=False)
    if len(victims) == len(patient.pids):
        patient.cluster.scale(2 * len(victims))


def retire(patient: Patient, victims: list[str]) -> None:
    """Take workers away with due notice: somebody must be left to whom they hand what they have."""
    patient.client.retire_workers(victims, close_workers=True)


def swell(patient: Patient, victims: list[str]) -> None:
    """Have the processes take more memory than they may, so that their nannies end them."""
    patient.client.run(_swell, MEMORY, workers=victims, wait=False)


def stop_for(seconds: float) -> Injury:
    """Make processes stand still for a while, or for good."""

    def stop(patient: Patient, victims: list[str]) -> None:
        for address in victims:
            os.kill(patient.pids[address], signal.SIGSTOP)
        if np.isfinite(seconds):
            time.sleep(seconds)
            for address in victims:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(patient.pids[address], signal.SIGCONT)

    return stop


KINDS: dict[str, Injury] = {
    "SIGKILL": kill,
    "exit": leave,
    "retired": retire,
    "out of memory": swell,
}


async def _chaos(dask_worker: Any) -> None:
    await KillWorker("1 ms", "sys.exit").setup(dask_worker)


async def _swell(most: int) -> None:
    held = []
    for _ in range(2 * most // 2**28):
        held.append(np.ones(2**25))  # 256 MiB, each page of it written to
        await asyncio.sleep(0)
    await asyncio.sleep(10)


class Killer(threading.Thread):
    """Kills one worker after another, each so many seconds, until told to stop."""

    def __init__(self, client: Client, every: float) -> None:
        super().__init__(daemon=True)
        self._client, self._every = client, every
        self._over = threading.Event()
        self.kills = 0

    def run(self) -> None:
        while not self._over.wait(self._every):
            with contextlib.suppress(Exception):
                pids = self._client.run(os.getpid)
                address = sorted(pids)[self.kills % len(pids)]
                os.kill(pids[address], signal.SIGKILL)
                self.kills += 1

    def stop(self) -> None:
        self._over.set()
        self.join(10)
