"""The client that a fit works with, from its first task to its last, and whether it is there.

A cluster that is gone must not turn a fit of a terabyte into one on the threads of this process,
which is what Dask does once a client has closed; and an asynchronous client cannot be waited for.
"""

from __future__ import annotations

import contextlib
import gc
import sys
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import dask
from dask.base import get_scheduler

from .progress import Pass, Progress
from .versions import check_versions

if TYPE_CHECKING:
    from ..shard_data import Size
    from .journal import Journal

_LOCALLY = "dask.config.set(scheduler='threads')"


def new_scope() -> str:
    """Name work anew."""
    return uuid.uuid4().hex


class ClusterLost(RuntimeError):
    """The cluster that a fit would run on, or ran on, is gone."""


@dataclass
class Work:
    """What all passes of one fit have in common.

    Attributes
    ----------
    client : distributed.Client or None
        None where there is no cluster.
    timeout : float
        Seconds to wait while no worker can take a task; 0 for ever.
    resources : mapping, optional
        What tasks on shards need of a worker.
    shards : dict
        Key of a task that makes a shard -> its number, and its size once that is known.
    names : dict
        Key of a task that holds what is known of a shard -> what that is, and its number.
    journal : Journal, optional
        What the fit's shards have answered already, where that is kept.
    warned : bool
        Whether it has been said that nothing runs.
    equipped : mapping, optional
        What the scheduler said of one of its workers, while there were some.
    scope : str
        Names what runs on threads of this process, which can be stopped by it.
    progress : Progress, optional
        Who is told how far the fit has come; None where nobody is.
    tasks : int
        That were asked for.
    counted : set of str
        Layers of graphs that these were in.
    """

    client: Any | None
    timeout: float = 0.0
    resources: Mapping[str, float] | None = None
    shards: dict[Any, tuple[int, Size | None]] = field(default_factory=dict)
    names: dict[Any, tuple[Any, ...]] = field(default_factory=dict)
    journal: Journal | None = None
    warned: bool = False
    equipped: Mapping[str, Any] | None = None
    scope: str = field(default_factory=new_scope)
    progress: Progress | None = None
    tasks: int = 0
    counted: set[str] = field(default_factory=set)


# Of this thread. A context variable would be copied to whatever the client's loop runs, and keep
# the client alive.
_HERE = threading.local()


@contextlib.contextmanager
def working(timeout: float, resources: Mapping[str, float] | None = None) -> Iterator[Work]:
    """Work with the client that is current now until the end; within a fit, with the fit's.

    Raises
    ------
    ClusterLost
        If there was a client, and its cluster is gone.
    RuntimeError
        If the client is asynchronous.
    ValueError
        If workers have other versions of the packages that matter.
    """
    work = _of_this_fit()
    if work is not None:
        yield work
        return
    client = current_client()
    if client is not None:
        check_versions(client)
    _HERE.work = work = Work(client, timeout, resources)
    try:
        yield work
    finally:
        _HERE.work = None


@contextlib.contextmanager
def followed(show: bool | None, *, leave: bool = True) -> Iterator[Progress]:
    """Have the fit that runs now tell how far it has come, on one line; within another, on its."""
    work = current_work()
    if work.progress is not None:
        yield work.progress
        return
    with Progress(show, leave=leave) as work.progress:
        try:
            yield work.progress
        finally:
            work.progress = None


def say(text: str) -> None:
    """Tell whoever follows the fit what has been found."""
    progress = current_work().progress
    if progress is not None:
        progress.say(text)


@contextlib.contextmanager
def passing(
    title: str,
    total: int,
    show: bool | None,
    note: Callable[[list[Any]], str] = lambda _: "",
    unit: str = "shard",
) -> Iterator[Pass]:
    """Tell of a pass over the shards: on the line of the fit, or else on one of its own."""
    progress = current_work().progress
    if progress is not None:
        with progress.passing(title, total, note, unit) as this:
            yield this
        return
    with Progress(show, last=title) as alone, alone.passing(title, total, note, unit) as this:
        yield this


def current_work() -> Work:
    """Return what the fit that runs now works with; outside of one, the current client alone."""
    return _of_this_fit() or Work(current_client())


def current_client() -> Any | None:
    """Return the client of the fit that runs now, or the one Dask would compute with, if any."""
    work = _of_this_fit()
    client = work.client if work is not None else _client_of_dask()
    if client is not None and client.status != "running":
        raise lost(client)
    return client


def lost(client: Any) -> ClusterLost:
    """Make the error that says so."""
    return ClusterLost(
        f"the cluster of {_named(client)} is gone (its status is {client.status!r}). Connect "
        f"a distributed.Client to one that runs, or have this process work alone: {_LOCALLY}"
    )


def _of_this_fit() -> Work | None:
    return getattr(_HERE, "work", None)


def _client_of_dask() -> Any | None:
    try:
        owner = getattr(get_scheduler(), "__self__", None)
    except RuntimeError as error:
        raise _no_scheduler(error) from error
    if hasattr(owner, "submit") and hasattr(owner, "scheduler_info"):
        return owner
    if not dask.config.get("scheduler", None) and _left_behind():
        gc.collect()  # what nobody holds any more is nobody's
        for client in _left_behind():
            raise lost(client)
    return None


def _left_behind() -> list[Any]:
    """Return clients that were to be used, and that closed without having been told to.

    Dask forgets them, and computes on threads.
    """
    client_type = getattr(sys.modules.get("distributed"), "Client", None)
    found = []
    for client in list(getattr(client_type, "_instances", ())):
        # A client that was closed, and not by a cluster that ended, has stopped its loop.
        loop = getattr(client, "_loop_runner", None)
        mine = getattr(client, "_set_as_default", False) and not client.asynchronous
        if mine and client.status == "closed" and loop is not None and loop.is_started():
            found.append(client)
    return found


def _no_scheduler(error: RuntimeError) -> RuntimeError:
    """Say why Dask has no scheduler to compute with."""
    from distributed import Client

    with contextlib.suppress(ValueError):
        if Client.current().asynchronous:
            return RuntimeError(
                "the current distributed.Client is asynchronous, which a fit cannot wait for. "
                "Create a client with asynchronous=False, outside of a running event loop, or run "
                "the fit in a thread with a client of its own (asyncio.to_thread)"
            )
    return RuntimeError(
        f"Dask has no scheduler to compute with ({error}): create a distributed.Client, or have "
        f"this process work alone: {_LOCALLY}"
    )


def _named(client: Any) -> str:
    """Name a client by where its scheduler is, or was."""
    scheduler = getattr(client, "scheduler", None)
    address = getattr(scheduler, "address", None) or getattr(client, "_start_arg", None)
    where = address if isinstance(address, str) else ""
    return f"the distributed.Client {client.id}" + (f" ({where})" if where else "")
