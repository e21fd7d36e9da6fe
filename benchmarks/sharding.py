"""Balance, time and memory of sharding by key, beside Dask's own hash shuffle.

Simulates a table of visits whose patients differ a thousandfold in their number of visits, writes
it to Parquet in a temporary folder and makes shards of it on a local cluster, once with this
package and once with ``ddf.shuffle(on=key, npartitions=...)``. Prints the table that the README
quotes.

    python benchmarks/sharding.py --rows 5_000_000 --groups 500_000 --partitions 40 --shards 100
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import dask.dataframe as dd
import numpy as np
import pandas as pd
from distributed import Client
from machine import in_own_process, local_cluster, peak_mib

from dask_consensus.frame.arrays import Column, Layout, to_shard
from dask_consensus.frame.assign import assign, shards
from dask_consensus.frame.survey import check, survey, used
from dask_consensus.shard_data import Shard

LAYOUT = Layout(
    by=("patient",),
    columns=(
        Column("patient", "patient", "group", level=0),
        Column("weeks", "weeks", "value"),
        Column("fvc", "fvc", "value"),
    ),
)


class Outcome(NamedTuple):
    rows: np.ndarray
    groups: np.ndarray
    largest: tuple[str, int]
    seconds: dict[str, float]
    client_mib: float
    worker_mib: float


def write_visits(folder: Path, rows: int, groups: int, partitions: int, spread: float) -> None:
    """Write Parquet files of visits; each patient has at least one, in any of the files."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    weights = rng.lognormal(sigma=spread, size=groups)
    more = rng.choice(groups, rows - groups, p=weights / weights.sum())
    patients = rng.permutation(np.concatenate([np.arange(groups), more]))
    for number, part in enumerate(np.array_split(patients, partitions)):
        frame = pd.DataFrame(
            {
                "patient": pd.Series(part).map("P{:08d}".format).astype("str"),
                "weeks": rng.integers(0, 120, len(part)),
                "fvc": rng.normal(2500, 800, len(part)),
                "unused": rng.normal(size=len(part)),
            }
        )
        frame.to_parquet(folder / f"visits-{number:03d}.parquet", index=False)


def size(shard: Shard) -> tuple[int, int, tuple[str, int]]:
    return shard.rows, *shard.groups, shard.largest


def sizes(client: Client, made: list) -> list[tuple[int, int, tuple[str, int]]]:
    """Hold all shards on the workers, as a fit does, and return only their sizes."""
    held = client.compute(made)
    return client.gather(client.map(size, held))


def outcome(client: Client, found: list, seconds: dict[str, float]) -> Outcome:
    rows, groups, largest = zip(*found, strict=True)
    return Outcome(
        rows=np.array(rows),
        groups=np.array(groups),
        largest=max(largest, key=lambda group: group[1]),
        seconds=seconds,
        client_mib=peak_mib(),
        worker_mib=max(client.run(peak_mib).values()),
    )


def balanced(client: Client, frame: dd.DataFrame, n_shards: int) -> Outcome:
    """Make shards with this package."""
    before, start = peak_mib(), time.perf_counter()
    counted = client.compute(survey(frame, LAYOUT)).result()
    check(counted, LAYOUT)
    assignment = assign(counted, frame, LAYOUT, n_shards=n_shards)
    surveyed = time.perf_counter()
    found = sizes(client, shards(frame, LAYOUT, assignment))
    done = time.perf_counter()
    print(
        f"{counted.n_groups:,} groups ({'exact' if counted.groups_exact else 'an estimate'}), "
        f"{len(counted.buckets):,} buckets; client at {before:.0f} MiB before; "
        f"rows as promised: {[n for n, _, _ in found] == assignment.rows.tolist()}"
    )
    return outcome(client, found, {"survey": surveyed - start, "shuffle": done - surveyed})


def plain(client: Client, frame: dd.DataFrame, n_shards: int) -> Outcome:
    """Make shards with Dask's hash shuffle."""
    start = time.perf_counter()
    made = (
        used(frame, LAYOUT)
        .shuffle(on="patient", npartitions=n_shards)
        .map_partitions(to_shard, LAYOUT, meta=(None, "object"), enforce_metadata=False)
        .to_delayed()
    )
    found = sizes(client, made)
    return outcome(client, found, {"survey": 0.0, "shuffle": time.perf_counter() - start})


def measure(name: str, folder: str, workers: int, n_shards: int) -> Outcome:
    """Start a cluster and make shards on it."""
    with local_cluster(folder, workers) as cluster, Client(cluster) as client:
        return MAKERS[name](client, dd.read_parquet(Path(folder) / "visits"), n_shards)


def report(name: str, result: Outcome) -> None:
    balance = result.rows / result.rows.mean()
    label, rows = result.largest
    print(
        f"| {name} | {balance.max() - 1:+.1%} | {balance.min() - 1:+.1%} "
        f"| {result.rows.min():,} - {result.rows.max():,} "
        f"| {result.groups.min():,} - {result.groups.max():,} | {label}: {rows:,} "
        f"| {result.seconds['survey']:.1f} s | {result.seconds['shuffle']:.1f} s "
        f"| {result.client_mib:.0f} MiB | {result.worker_mib:.0f} MiB |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--groups", type=int, default=500_000)
    parser.add_argument("--partitions", type=int, default=40)
    parser.add_argument("--shards", type=int, default=100)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--spread", type=float, default=2.0, help="sd of log group size")
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        simulation = (args.rows, args.groups, args.partitions, args.spread)
        in_own_process(write_visits, Path(folder) / "visits", *simulation)
        results = {
            name: in_own_process(measure, name, folder, args.workers, args.shards)
            for name in MAKERS
        }
    print(
        "| | fullest | emptiest | rows | groups | largest group | survey | shuffle, arrays ", end=""
    )
    print("| client, peak | worker, peak |")
    print("|---|" + "---|" * 9)
    for name, result in results.items():
        report(name, result)


MAKERS = {"dask_consensus": balanced, "ddf.shuffle": plain}

if __name__ == "__main__":
    main()
