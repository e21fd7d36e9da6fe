"""Where tasks on shards run: which workers, which resources."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import dask
from dask.system import CPU_COUNT

from .client import current_client


class Execution(NamedTuple):
    """How maps over shards run.

    Mapped tasks run where a worker has the `resources`, as in ``{"GPU": 1}``; reductions anywhere.
    """

    split_every: int = 8  # contributions added by one task of the reduction tree
    retries: int = 0  # of a failed task, under a distributed client
    progress: bool | None = None  # outside of a fit: whether a pass has a line of its own
    resources: Mapping[str, float] | None = None
    shards_per_task: int = 1


def check_resources(resources: Mapping[str, float] | None) -> None:
    """Refuse resources that no worker has: tasks would wait for ever.

    Raises
    ------
    ValueError
        Without a distributed client, or if no worker has all of them.
    """
    if not resources:
        return
    client = current_client()
    wanted = ", ".join(f"{name}={amount:g}" for name, amount in resources.items())
    if client is None:
        raise ValueError(
            f"resources ({wanted}) are those of workers: create a distributed.Client first, or "
            "leave resources out"
        )
    if not workers_with(resources):
        offers = _offers(client)
        offered = {f"{name}={amount:g}" for offer in offers for name, amount in offer.items()}
        raise ValueError(
            f"no worker has the resources {wanted}; the {len(offers)} workers offer "
            f"{', '.join(sorted(offered)) or 'none'}. Start workers with --resources "
            f"'{next(iter(resources))}=1', or leave resources out"
        )


def workers_with(resources: Mapping[str, float] | None) -> int:
    """Count the workers that mapped tasks may run on; 1 without a distributed client."""
    client = current_client()
    if client is None:
        return 1
    needs = (resources or {}).items()
    return sum(
        all(offer.get(name, 0) >= amount for name, amount in needs) for offer in _offers(client)
    )


def capacity(resources: Mapping[str, float] | None) -> tuple[int, int]:
    """Count the workers that mapped tasks may run on, and the tasks that these take at once."""
    client = current_client()
    if client is None:
        scheduler = dask.config.get("scheduler", None)
        if scheduler in ("synchronous", "sync", "single-threaded"):
            return 1, 1
        return 1, dask.config.get("num_workers", None) or CPU_COUNT
    needs = dict(resources or {})
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    slots = []
    for worker in workers:
        offer = worker.get("resources") or {}
        fits = [int(offer.get(name, 0) // amount) for name, amount in needs.items()]
        slots.append(min([worker.get("nthreads", 1), *fits]))
    able = [n for n in slots if n]
    return max(len(able), 1), max(sum(able), 1)


def _offers(client: Any) -> list[Mapping[str, float]]:
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    return [worker.get("resources") or {} for worker in workers]


def requiring(resources: Mapping[str, float] | None) -> contextlib.AbstractContextManager[Any]:
    """Make tasks run where the resources are; the shards they take are in memory already."""
    return dask.annotate(resources=dict(resources)) if resources else contextlib.nullcontext()
