"""How long a cluster is waited for, and what is said when nothing comes of it.

Dask waits without a word while no worker is there, or while all of them are paused; what was asked
for goes on after an error, or after Ctrl-C, until somebody forgets it. Whatever a client waits for
is therefore watched: silence is broken, ended after a while, and what is left is cancelled.
"""

from __future__ import annotations

import contextlib
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from typing import Any

from .client import ClusterLost, Work, current_work, lost
from .killed import WorkersKilled, died_with, killed_by

_WARN_AFTER = 30.0  # seconds without a worker that can take a task
_EVERY = 2.0  # seconds between two looks at the workers


class NoWorkers(RuntimeError):
    """No worker could take a task for as long as was to be waited."""


@contextlib.contextmanager
def watched(client: Any, futures: Sequence[Any], tasks: Sequence[Any]) -> Iterator[None]:
    """Wait for futures of a client within; they are those of `tasks`.

    Raises
    ------
    NoWorkers
        Where no worker could take a task for as long as the fit is to wait.
    ClusterLost
        If the scheduler is gone, or has forgotten what it was asked for.
    WorkersKilled
        If a task has ended the process of each worker that tried it.
    """
    work = current_work()
    watch = _Watch(client, futures, tasks, work)
    watch.start()
    try:
        yield
    except BaseException as error:
        said = watch.trouble if isinstance(error, Exception) else None
        said = said or _lost(error, client) or killed_by(error, futures, tasks, work.shards)
        if client.status == "running":
            # What is left would run for nothing: after an error, and after Ctrl-C.
            with contextlib.suppress(Exception):
                client.cancel(list(futures))
        if said is None:
            raise
        raise said from (None if said is watch.trouble else error)
    finally:
        watch.stop()


def _lost(error: BaseException, client: Any) -> ClusterLost | None:
    """Say why Dask has cancelled what a client waits for; None where it has not."""
    if not isinstance(error, CancelledError):
        return None
    if client.status != "running":
        return lost(client)
    return ClusterLost(
        "the tasks of the fit were cancelled while it waited for them: the scheduler was restarted "
        "(Client.restart), or somebody has cancelled them (Client.cancel). Run the fit again"
    )


class _Watch(threading.Thread):
    """Looks at the workers while the client waits, and cancels what it waits for in the end."""

    def __init__(
        self, client: Any, futures: Sequence[Any], tasks: Sequence[Any], work: Work
    ) -> None:
        super().__init__(name="consensus-watch", daemon=True)
        self.trouble: Exception | None = None
        self._client, self._futures, self._tasks, self._work = client, futures, tasks, work
        self._over = threading.Event()

    def run(self) -> None:
        """Look until told to stop."""
        since = None
        self._remember_workers()
        while not self._over.wait(_EVERY):
            try:
                why = nothing_can_run(self._client, self._work.resources)
            except Exception:  # the scheduler does not answer: the client will say so
                continue
            if not why:
                since = None
                continue
            since = since or time.monotonic()
            try:
                self._complain(why, time.monotonic() - since)
            except Exception as trouble:  # a warning may be an error
                if self._over.is_set():
                    return
                self.trouble = trouble
                with contextlib.suppress(Exception):
                    self._client.cancel(list(self._futures))
                return

    def _remember_workers(self) -> None:
        """Note how one is equipped: of those that have died nothing tells it any more."""
        if self._work.equipped is None:
            with contextlib.suppress(Exception):
                workers = self._client.scheduler_info(n_workers=-1)["workers"].values()
                self._work.equipped = next(iter(workers), None)

    def stop(self) -> None:
        """End."""
        self._over.set()
        self.join(_EVERY)

    def _complain(self, why: str, waited: float) -> None:
        limit = self._work.timeout
        if limit and waited >= limit:
            died = self._died()
            remedy = died or (
                "Start workers, or see why they do not start (their logs, the cluster's queue)."
            )
            kind = WorkersKilled if died else NoWorkers
            raise kind(
                f"nothing could run for {waited:.0f} seconds: {why}. {remedy} A fit waits for "
                f"consensus.worker-timeout of Dask's configuration ({limit:g} seconds; 0: for ever)"
            )
        if waited >= _WARN_AFTER and not self._work.warned:
            self._work.warned = True
            still = f"for another {limit - waited:.0f} seconds" if limit else "for ever"
            died = self._died()
            warnings.warn(
                f"nothing has run for {waited:.0f} seconds: {why}. {died}{' ' * bool(died)}The fit "
                f"waits {still} (consensus.worker-timeout in Dask's configuration)",
                UserWarning,
                stacklevel=2,
            )

    def _died(self) -> str:
        """Say which rows the workers died with, if they did."""
        try:
            if self._client.scheduler_info(n_workers=-1)["workers"]:
                return ""
            return died_with(self._client, self._tasks, self._work.shards, self._work.equipped)
        except Exception:  # a scheduler may run nothing for a client
            return ""


def nothing_can_run(client: Any, resources: Mapping[str, float] | None) -> str:
    """Say why no worker can take a task; empty where one can, or works on one."""
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    where = client.scheduler.address
    if not workers:
        return f"the cluster at {where} has no workers"
    able = [worker for worker in workers if _works(worker)]
    if not able:
        states = sorted({str(worker.get("status")) for worker in workers})
        full = " (their memory is nearly full)" if "paused" in states else ""
        return f"of the {len(workers)} workers at {where} all are {' or '.join(states)}{full}"
    needs = (resources or {}).items()
    if not any(
        all((worker.get("resources") or {}).get(name, 0) >= amount for name, amount in needs)
        for worker in able
    ):
        wanted = ", ".join(f"{name}={amount:g}" for name, amount in needs)
        return f"of the {len(able)} workers at {where} that run none has the resources {wanted}"
    return ""


def _works(worker: Mapping[str, Any]) -> bool:
    """Tell whether a worker takes tasks, or has one in hand; a paused one ends what it began."""
    executing = (worker.get("metrics") or {}).get("task_counts", {}).get("executing", 0)
    return worker.get("status") == "running" or executing > 0
