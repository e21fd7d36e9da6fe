"""The tree of sums at its real size: 10,000 sites of 50 shared parameters, 1,000 draws each.

Every site is made on a worker from its number alone, 0.4 MB of it, 4 GB in all, and added up

- by the package's tree (``mapreduce.map_reduce``) on a cluster of processes,
- by the same tree on threads,
- flat: made on the same cluster, brought to the client in turn and added there one by one, so
  that the client holds a few sites at a time but every byte travels.

    python benchmarks/reduction.py
    python benchmarks/reduction.py --sites 500 --ways tree-threads flat
    python benchmarks/reduction.py --shards-per-task 4
    python benchmarks/reduction.py --table

Every way runs in a process of its own, so that peaks of memory are its own. The results must agree
to 1e-10 of the largest number of each part.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import dask
import numpy as np
from dask.sizeof import sizeof
from distributed import Client
from machine import (
    MIB,
    Count,
    facts,
    in_own_process,
    load,
    local_cluster,
    peak_mib,
    print_rows,
    save,
)

from dask_consensus.cluster import mapreduce
from dask_consensus.combination import gaussian

OUT = Path(__file__).parent / "results" / "reduction.json"
WAYS = ("tree-cluster", "tree-threads", "flat")
AHEAD = 8  # sites that are on their way to the client while one is added


class Size(NamedTuple):
    """How much is reduced."""

    sites: int
    dim: int
    draws: int
    split_every: int
    shards_per_task: int
    workers: int


def make_site(number: int, dim: int, draws: int) -> gaussian.GaussianFactor:
    """Make a site from its number, the same one in any process.

    Without linear algebra, whose time would hide that of the reduction.
    """
    rng = np.random.default_rng([20_260, number])
    vector = rng.normal(size=dim)
    precision = np.diag(rng.uniform(0.5, 2.0, dim)) + np.outer(vector, vector)
    return gaussian.GaussianFactor(
        precision, rng.normal(size=dim), rng.normal(size=(1, draws, dim))
    )


def map_site(number: int, dim: int, draws: int) -> tuple[gaussian.GaussianFactor, int, None]:
    """What a map gives for a shard: a contribution, a report, a state."""
    return make_site(number, dim, draws), number, None


def tree(size: Size) -> gaussian.GaussianFactor:
    """Add all sites by the package's tree, on whatever scheduler is there."""
    numbers = list(range(size.sites))  # in place of shards
    execution = mapreduce.Execution(
        size.split_every, progress=False, shards_per_task=size.shards_per_task
    )
    done = mapreduce.map_reduce(
        mapreduce.each(map_site),
        numbers,
        [()] * size.sites,
        [size.dim, size.draws],
        gaussian.add,
        execution=execution,
        title="sites",
    )
    assert done.reports == numbers
    return done.total


def flat(client: Client, size: Size) -> gaussian.GaussianFactor:
    """Add all sites on the client, one after another, in the order of their numbers."""

    def ask(number: int) -> Any:
        return client.submit(make_site, number, size.dim, size.draws, pure=False)

    waiting = [ask(number) for number in range(min(AHEAD, size.sites))]
    total = None
    for number in range(size.sites):
        site = waiting.pop(0).result()
        if number + AHEAD < size.sites:
            waiting.append(ask(number + AHEAD))
        total = site if total is None else gaussian.add([total, site])
    return total


def on_cluster(way: str, size: Size, folder: str) -> tuple[gaussian.GaussianFactor, dict[str, Any]]:
    """Reduce on worker processes; what it took."""
    with local_cluster(folder, size.workers) as cluster, Client(cluster) as client:
        count = Count()
        cluster.scheduler.add_plugin(count)
        before, began = sum(client.run(sent).values()), time.perf_counter()
        total = tree(size) if way == "tree-cluster" else flat(client, size)
        seconds = time.perf_counter() - began
        moved = sum(client.run(sent).values()) - before
        return total, {
            "seconds": seconds,
            "tasks": count.tasks,
            "moved_mib": moved / MIB,
            "worker_mib": max(client.run(peak_mib).values()),
            "client_mib": peak_mib(),
        }


def sent(dask_worker: Any) -> int:
    """Bytes a worker has sent to others and to the client."""
    return dask_worker.transfer_outgoing_bytes_total


def on_threads(size: Size) -> tuple[gaussian.GaussianFactor, dict[str, Any]]:
    """Reduce on threads of this process."""
    began = time.perf_counter()
    with dask.config.set(scheduler="threads", num_workers=size.workers):
        total = tree(size)
    return total, {
        "seconds": time.perf_counter() - began,
        "tasks": None,
        "moved_mib": 0.0,
        "worker_mib": None,
        "client_mib": peak_mib(),
    }


def measure(way: str, size: Size) -> tuple[gaussian.GaussianFactor, dict[str, Any]]:
    """Reduce in one way; the sum, and what it took."""
    machine = facts()
    with tempfile.TemporaryDirectory() as folder:
        start = peak_mib()
        total, took = on_threads(size) if way == "tree-threads" else on_cluster(way, size, folder)
    site = sizeof(total)
    at_once = 2 if way == "flat" else max(size.split_every, size.shards_per_task)
    return total, {
        **size._asdict(),
        "way": way,
        **took,
        "start_mib": start,
        "site_mib": site / MIB,
        "node_mib": min(at_once, size.sites) * site / MIB,
        "all_mib": size.sites * site / MIB,
        "machine": machine,
    }


def difference(ours: gaussian.GaussianFactor, theirs: gaussian.GaussianFactor) -> float:
    """Largest difference, relative to the largest number of the part it is in."""
    return max(
        float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(ours, theirs, strict=True)
    )


def run(ways: Sequence[str], size: Size) -> list[dict[str, Any]]:
    """Reduce in several ways, and hold the sums against the last one's."""
    found = [in_own_process(measure, way, size) for way in ways]
    reference, _ = found[-1]
    results = []
    for total, took in found:
        away = difference(total, reference)
        if away > 1e-10:
            raise AssertionError(f"{took['way']} is {away:.1e} away from {ways[-1]}")
        results.append({**took, "difference": away})
    return results


HEAD = (
    "sites", "way", "sites a task", "seconds", "tasks", "moved, MiB",
    "added by one task, MiB", "worker, peak MiB", "client, peak MiB", "difference", "load before",
)  # fmt: skip


def row(one: Mapping[str, Any]) -> Sequence[str]:
    def number(name: str, form: str = ",.0f") -> str:
        return "-" if one[name] is None else format(one[name], form)

    return (
        f"{one['sites']:,} x {one['site_mib']:.2f} MiB",
        one["way"],
        "1" if one["way"] == "flat" else number("shards_per_task"),
        number("seconds", ".1f"),
        number("tasks"),
        number("moved_mib"),
        number("node_mib", ".1f"),
        number("worker_mib"),
        f"{one['client_mib']:,.0f} ({one['start_mib']:,.0f} before)",
        number("difference", ".0e"),
        str(one["machine"]["load_before"]),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sites", type=int, default=10_000)
    parser.add_argument("--dim", type=int, default=50)
    parser.add_argument("--draws", type=int, default=1_000)
    parser.add_argument("--split-every", type=int, default=8)
    parser.add_argument("--shards-per-task", type=int, default=1, help="sites that a task makes")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--out", type=Path, default=OUT, help="JSON, default %(default)s")
    parser.add_argument("--table", action="store_true", help="only print what is in the file")
    args = parser.parse_args()
    if not args.table:
        size = Size(**{name: getattr(args, name) for name in Size._fields})
        new = run(args.ways, size)
        ran = {(*size, one["way"]) for one in new}
        kept = [
            one
            for one in load(args.out)
            if (*(one[name] for name in Size._fields), one["way"]) not in ran
        ]
        save(args.out, [*kept, *new])
    print_rows(HEAD, [row(one) for one in load(args.out)])


if __name__ == "__main__":
    main()
