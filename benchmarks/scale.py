"""What growth costs: rows, workers on one machine, contributions to add up.

- ``growth``: a random intercept and slope, or a binary response with random intercepts, at 1, 3 and
  10 million rows, in Parquet files, on two worker processes, with the package's defaults.
- ``cores``: the same fit in several settings of workers. JAX takes every core in every process,
  whoever else is there; Dask's threads are what a fit without a client runs on.
- ``reduction``: 10,000 contributions of 50 parameters with 1,000 draws, made on workers and added
  up by the package's tree on processes, on threads, and flat: brought to the client one by one.

Every measurement runs in a process of its own, so that peaks of memory are its own.

    python -m benchmarks.scale growth --rows 100000 300000 --results /tmp/scale
    python -m benchmarks.scale --table                           # print what there is
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Sequence
from functools import reduce
from pathlib import Path
from typing import Any
from unittest import mock

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
from dask.sizeof import sizeof
from distributed import Client

from .cases.sized import GROWING, ROWS_A_GROUP
from .measure.fits import n_shards_of
from .measure.internals import add, make_factor, tree_of_sums
from .measure.machine import MIB, TaskCount, gpu_cluster, local_cluster, peak_mib
from .measure.script import Store, parse
from .tables import cost

ROWS_A_GPU_SHARD = 250_000
ROWS_A_FILE, FILES_AT_ONCE = 250_000, 4  # whose rows are shuffled among each other
WAYS = ("tree-cluster", "tree-threads", "flat")
AHEAD = 8  # contributions that are on their way to the client while one is added
REDUCED = {"sites": 10_000, "dim": 50, "draws": 1_000, "split_every": 8, "shards_per_task": 1}
TOY = {
    "rows": [400], "workers": 1, "cores": 1, "cores_rows": 400,
    "sites": 12, "dim": 3, "draws": 10,
}  # fmt: skip


def simulated(rows: int, seed: int, model: str) -> Iterator[pd.DataFrame]:
    """Simulate rows, those of a few files at a time."""
    batch = ROWS_A_FILE * FILES_AT_ONCE
    for number, first in enumerate(range(0, rows, batch)):
        rng = np.random.default_rng([seed, number])
        sizes = np.full(min(batch, rows - first) // ROWS_A_GROUP, ROWS_A_GROUP)
        frame, _ = GROWING[model][1](rng, sizes)
        frame = frame.assign(group=frame["group"] + first // ROWS_A_GROUP)
        yield frame.iloc[rng.permutation(len(frame))]


def write(folder: Path, rows: int, seed: int, model: str = "slopes") -> None:
    """Write Parquet files; the rows of a group lie in any of a few."""
    folder.mkdir()
    for number, frame in enumerate(simulated(rows, seed, model)):
        for part, start in enumerate(range(0, len(frame), ROWS_A_FILE)):
            path = folder / f"rows-{number:04d}-{part}.parquet"
            frame.iloc[start : start + ROWS_A_FILE].to_parquet(path, index=False)


def fit(
    rows: int,
    setting: Sequence[int],
    seed: int,
    here: bool,
    model: str = "slopes",
    gpu: bool = False,
) -> dict[str, Any]:
    """Fit files with so many workers of so many threads; none are Dask's threads."""
    workers, threads, *_ = setting
    options: dict[str, Any] = {"by": "group", "seed": seed, "n_shards": n_shards_of(rows)}
    if gpu:
        options |= {"n_shards": max(4, rows // ROWS_A_GPU_SHARD), "resources": {"GPU": 1}}
        options["shards_per_task"] = "auto"
    function, _, truth = GROWING[model]
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        write(Path(folder) / "rows", rows, seed, model)
        count, client = TaskCount(), None
        if workers:
            if gpu:
                cluster = stack.enter_context(gpu_cluster(folder, workers))
            else:
                cluster = stack.enter_context(local_cluster(folder, workers, threads, here=here))
            client = stack.enter_context(Client(cluster))
            cluster.scheduler.add_plugin(count)
        frame = dd.read_parquet(Path(folder) / "rows")
        before, began = peak_mib(), time.perf_counter()
        tree = frame.consensus.fit(function, progress=False, **options)
        seconds = time.perf_counter() - began
        worker_mib = list(client.run(peak_mib).values()) if client else []
    posterior, profile = tree["posterior"], json.loads(tree.attrs["profile"])
    moments = {k: (float(posterior[k].mean()), float(posterior[k].std())) for k in truth}
    return {
        "workers": workers,
        "shards": options["n_shards"],
        "seconds": seconds,
        "profile": profile,
        # What compiling took is contained in the other phases.
        "phases": {phase: took for phase, took in profile.items() if phase != "compile"},
        "compiling": profile["compile"],
        "tasks": count.tasks,
        "worker_mib": worker_mib,
        "client_mib": peak_mib(),
        "client_before_mib": before,
        "moments": moments,
        "z": {name: (mean - truth[name]) / sd for name, (mean, sd) in moments.items()},
        "good": bool(tree.attrs["verdict_good"]),
        "verdict": tree.attrs["verdict"],
    }


def growth(args: argparse.Namespace) -> None:
    store = Store(args, "scale")
    for rows in () if args.table else args.rows:
        key = {"model": args.model, "rows": rows, "workers": args.workers, "seed": args.seed}
        key["gpu"] = args.gpu
        setting = (args.workers, 1)
        store.measure(key, fit, rows, setting, args.seed, args.toy, args.model, args.gpu)
    print(*cost.growth(store.rows()), sep="\n")


def cores(args: argparse.Namespace) -> None:
    """Every way to use all cores, with JAX's choice and with one thread of JAX a Dask thread."""
    store, n = Store(args, "cores"), args.cores
    settings = [(0, n, None), (1, n, None), (n, 1, None), (n, 1, 1), (1, 1, None), (1, 1, 1)]
    for setting in () if args.table else dict.fromkeys(settings):
        key = {"rows": args.cores_rows, "setting": list(setting), "seed": args.seed}
        variable = {"PJRT_NPROC": str(setting[-1])} if setting[-1] else {}
        with mock.patch.dict(os.environ, variable):
            store.measure(key, fit, args.cores_rows, setting, args.seed, args.toy)
    print(*cost.cores(store.rows()), sep="\n")


def add_up(way: str, size: dict[str, int], here: bool) -> dict[str, Any]:
    """Add contributions up in one way, and hold the sum against one made here."""
    start, count, moved, worker_mib = peak_mib(), TaskCount(), 0.0, None
    numbers, arguments = range(size["sites"]), (size["dim"], size["draws"])
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        client = None
        if way == "tree-threads":
            options = {"scheduler": "threads", "num_workers": size["workers"]}
            stack.enter_context(dask.config.set(options))
        else:
            cluster = stack.enter_context(local_cluster(folder, size["workers"], here=here))
            client = stack.enter_context(Client(cluster))
            cluster.scheduler.add_plugin(count)
        began = time.perf_counter()
        if way == "flat":
            total = reduce(add, _fetched(client, numbers, arguments))
        else:
            total = tree_of_sums(**{key: n for key, n in size.items() if key != "workers"})
        seconds = time.perf_counter() - began
        if client:
            sent = client.run(lambda dask_worker: dask_worker.transfer_outgoing_bytes_total)
            moved, worker_mib = sum(sent.values()), max(client.run(peak_mib).values())
    peak = peak_mib()
    exact = reduce(add, (make_factor(number, *arguments) for number in numbers))
    parts = zip(total, exact, strict=True)
    difference = max(np.abs(a - b).max() / np.abs(b).max() for a, b in parts)
    if difference > 1e-10:
        raise AssertionError(f"{way} is {difference:.1e} away from a flat sum")
    at_once = 2 if way == "flat" else max(size["split_every"], size["shards_per_task"])
    return {
        "seconds": seconds,
        "tasks": count.tasks or None,
        "moved_mib": moved / MIB,
        "worker_mib": worker_mib,
        "client_mib": peak,
        "start_mib": start,
        "site_mib": sizeof(total) / MIB,
        "node_mib": min(at_once, size["sites"]) * sizeof(total) / MIB,
        "difference": float(difference),
    }


def _fetched(client: Client, numbers: range, arguments: tuple[int, int]) -> Iterator[Any]:
    """Contributions made on workers, in order; a few at a time are on their way."""
    waiting: deque[Any] = deque()
    for number in numbers:
        waiting.append(client.submit(make_factor, number, *arguments, pure=False))
        if len(waiting) > AHEAD:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def reduction(args: argparse.Namespace) -> None:
    store = Store(args, "reduction")
    size = {name: getattr(args, name) for name in (*REDUCED, "workers")}
    for way in () if args.table else WAYS:
        store.measure({**size, "way": way}, add_up, way, size, args.toy)
    print(*cost.reduction(store.rows()), sep="\n")


PARTS = {"growth": growth, "cores": cores, "reduction": reduction}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", nargs="*", help=f"of {', '.join(PARTS)}; default all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--rows", nargs="+", type=int, default=[10**6, 3 * 10**6, 10**7])
    parser.add_argument("--model", default="slopes", choices=list(GROWING), help="that grows")
    parser.add_argument("--gpu", action="store_true", help="growth on a GPU that one worker has")
    parser.add_argument("--cores", type=int, default=os.cpu_count())
    parser.add_argument("--cores-rows", type=int, default=10**6, help="of cores")
    parser.set_defaults(**REDUCED)
    args = parse(parser, argv, TOY)
    if args.gpu and not args.toy:
        os.environ["JAX_PLATFORMS"] = "cpu"  # in every process but the one that has the GPU
    for part in args.part or PARTS:
        PARTS[part](args)


if __name__ == "__main__":
    main()
