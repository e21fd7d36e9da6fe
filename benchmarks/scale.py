"""How cost grows with rows: a random intercept and slope at 1, 3 and 10 million rows.

Simulates groups of 10 rows, writes them to Parquet in a temporary folder and fits them on a local
cluster of worker processes with the package's defaults, each size in a process of its own. Results
are kept in a JSON file, so that a run can be interrupted and resumed.

    python benchmarks/scale.py
    python benchmarks/scale.py --rows 100_000 300_000 --out /tmp/scale.json
    python benchmarks/scale.py --table                           # print what there is
    python benchmarks/scale.py --table --gpu-rows-per-second 2e5 # as measured on one GPU
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import dask.dataframe as dd
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
from distributed import Client
from machine import Count, facts, in_own_process, load, local_cluster, peak_mib, print_rows, save

import dask_consensus  # noqa: F401  registers ddf.consensus

OUT = Path(__file__).parent / "results" / "scale.json"
SIZES = (1_000_000, 3_000_000, 10_000_000)
ROWS_A_GROUP = 10
ROWS_A_FILE = 250_000
TASK_SECONDS = 1e-3  # of a scheduler a task; Dask's documentation says 0.2 to 1 ms
FILES_AT_ONCE = 4  # whose rows are shuffled among each other
TRUTH = {"mu_a": 1.0, "tau_a": 0.8, "mu_b": -0.5, "tau_b": 0.4, "sigma": 1.2}


def model(group, x, y=None, *, n_group):
    mu_a = numpyro.sample("mu_a", dist.Normal(0.0, 5.0))
    tau_a = numpyro.sample("tau_a", dist.HalfNormal(2.0))
    mu_b = numpyro.sample("mu_b", dist.Normal(0.0, 5.0))
    tau_b = numpyro.sample("tau_b", dist.HalfNormal(2.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(5.0))
    with numpyro.plate("groups", n_group):
        a = numpyro.sample("a", dist.Normal(mu_a, tau_a))
        b = numpyro.sample("b", dist.Normal(mu_b, tau_b))
    with numpyro.plate("rows", len(x)):
        numpyro.sample("obs", dist.Normal(a[group] + b[group] * x, sigma), obs=y)


# Runs


def write(folder: Path, rows: int, seed: int) -> None:
    """Write Parquet files, a few at a time; the rows of a group lie in any of those few."""
    folder.mkdir()
    batch = ROWS_A_FILE * FILES_AT_ONCE
    for number, first in enumerate(range(0, rows, batch)):
        frame = simulate(np.random.default_rng([seed, number]), first, min(batch, rows - first))
        parts = np.array_split(np.arange(len(frame)), -(-len(frame) // ROWS_A_FILE))
        for part, members in enumerate(parts):
            path = folder / f"rows-{number:04d}-{part}.parquet"
            frame.iloc[members].to_parquet(path, index=False)


def simulate(rng: np.random.Generator, first: int, rows: int) -> pd.DataFrame:
    """Rows `first` and following of the data, whole groups of them, shuffled."""
    group = (first + np.arange(rows)) // ROWS_A_GROUP
    own = group - group[0]
    a = rng.normal(TRUTH["mu_a"], TRUTH["tau_a"], own[-1] + 1)
    b = rng.normal(TRUTH["mu_b"], TRUTH["tau_b"], own[-1] + 1)
    x = rng.normal(size=rows)
    y = rng.normal(a[own] + b[own] * x, TRUTH["sigma"])
    return pd.DataFrame({"group": group, "x": x, "y": y}).iloc[rng.permutation(rows)]


def measure(folder: str, rows: int, workers: int, seed: int) -> dict[str, Any]:
    """Fit the files on a cluster of its own; what it took, and what came out."""
    machine = facts()
    with local_cluster(folder, workers) as cluster, Client(cluster) as client:
        count = Count()
        cluster.scheduler.add_plugin(count)
        frame = dd.read_parquet(Path(folder) / "rows")
        before, began = peak_mib(), time.perf_counter()
        tree = frame.consensus.fit(model, by="group", seed=seed, progress=False)
        seconds = time.perf_counter() - began
        worker_mib = list(client.run(peak_mib).values())
    posterior, shards = tree["posterior"], tree["shards"]
    phases = json.loads(tree.attrs["profile"])
    compiling = phases.pop("compile")  # contained in the others
    moments = {
        name: (float(posterior[name].mean()), float(posterior[name].std())) for name in TRUTH
    }
    return {
        "rows": rows,
        "workers": workers,
        "seed": seed,
        "shards": int(tree.attrs["n_shards"]),
        "partitions": frame.npartitions,
        "seconds": seconds,
        "phases": phases,
        "compiling": compiling,
        "shard_seconds": float(shards["seconds"].sum()),
        "compile_seconds": float(shards["compile_seconds"].sum()),
        "steps": float(shards["steps"].mean()),
        "tasks": count.tasks,
        "worker_mib": worker_mib,
        "client_mib": peak_mib(),
        "client_before_mib": before,
        "moments": moments,
        "z": {name: (mean - TRUTH[name]) / sd for name, (mean, sd) in moments.items()},
        "good": bool(tree.attrs["verdict_good"]),
        "verdict": tree.attrs["verdict"],
        "machine": machine,
    }


def run(rows: int, workers: int, seed: int) -> dict[str, Any]:
    """Simulate and fit one size, each in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        in_own_process(write, Path(folder) / "rows", rows, seed)
        return in_own_process(measure, folder, rows, workers, seed)


# Tables


def growth(results: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """Seconds that every fit takes, and core-seconds a row, by a line through all sizes.

    With one size all of its time counts as growing with rows.
    """
    rows = np.array([one["rows"] for one in results], float)
    seconds = np.array([one["seconds"] for one in results])
    workers = results[0]["workers"]
    if len(set(rows)) == 1:
        return 0.0, float(seconds.mean() / rows[0] * workers)
    # Weighted by 1/rows: errors are a share of the time, not a number of seconds.
    slope, fixed = np.polyfit(rows, seconds, 1, w=1 / rows)
    return max(float(fixed), 0.0), float(slope * workers)


def expected(
    results: Sequence[Mapping[str, Any]],
    rows: int = 500_000_000,
    cores: int = 64,
    gpus: int = 8,
    gpu_rows_per_second: float | None = None,
) -> Iterator[str]:
    """Say what a large fit should cost, and what is assumed.

    Parameters
    ----------
    results : sequence of mapping
        Measured sizes.
    rows, cores, gpus : int
    gpu_rows_per_second : float, optional
        Rows that one GPU takes through the whole fit in a second, as measured elsewhere.
    """
    fixed, core_seconds = growth(results)
    largest = max(one["rows"] for one in results)
    sizes = [f"{one['rows']:,}" for one in results]
    most = max(results, key=lambda one: one["rows"])
    tasks = most["tasks"] / most["rows"] * rows
    work, scheduling = core_seconds * rows / cores, tasks * TASK_SECONDS
    yield (
        f"{rows:,} rows on {cores} cores: {hours(fixed + max(work, scheduling))} to "
        f"{hours(fixed + work + scheduling)}: {fixed:,.0f} s once, {hours(work)} of work "
        f"({core_seconds * rows / 3600:,.0f} core-hours, {core_seconds * 1e6:,.0f} core-seconds a "
        f"million rows), beside or after {hours(scheduling)} of a scheduler for {tasks:,.0f} tasks "
        f"at {TASK_SECONDS * 1e3:.0f} ms; shards_per_task divides the tasks."
    )
    apart = [(one["seconds"] - fixed) / one["rows"] * 1e6 for one in results]
    yield (
        f"Less the {fixed:,.0f} s that every fit takes, a million rows took "
        f"{', '.join(f'{one:.1f}' for one in apart)} s at {', '.join(sizes)} rows: "
        f"{(max(apart) / min(apart) - 1):.0%} apart."
    )
    if gpu_rows_per_second is None:
        yield f"{rows:,} rows on {gpus} GPUs: unmeasured."
    else:
        total = fixed + max(rows / (gpus * gpu_rows_per_second), scheduling)
        yield (
            f"{rows:,} rows on {gpus} GPUs of {gpu_rows_per_second:,.0f} rows a second each, as "
            f"given: {hours(total)}."
        )
    if len({one["rows"] for one in results}) == 1:
        yield "Only one size was measured: what a fit costs once is counted as growing with rows."
    yield (
        f"Assumed: a line through sizes up to {largest:,} rows holds {rows / largest:,.0f} times "
        "beyond them (shards stay of one size, so that their number grows and not their cost; as "
        "many rounds and points are needed); workers are always busy, as there are many more "
        "shards than workers; a core is as fast as here; disks and network keep up, so that the "
        "shuffle takes as many core-seconds a row."
    )


def hours(seconds: float) -> str:
    if seconds < 7200:
        return f"{seconds / 60:,.0f} minutes"
    return f"{seconds / 3600:,.1f} hours"


HEAD = (
    "rows", "shards", "seconds", "a million rows", "by phase", "of it compiling", "tasks",
    "worker, peak MiB", "client, peak MiB", "largest z to the truth", "verdict", "load before",
)  # fmt: skip


def row(one: Mapping[str, Any]) -> Sequence[str]:
    worst = max(one["z"], key=lambda name: abs(one["z"][name]))
    return (
        f"{one['rows']:,}",
        str(one["shards"]),
        f"{one['seconds']:,.0f}",
        f"{one['seconds'] / one['rows'] * 1e6:,.0f}",
        ", ".join(f"{name} {took:,.0f}" for name, took in one["phases"].items()),
        f"{one['compiling']:,.0f}",
        f"{one['tasks']:,}",
        f"{max(one['worker_mib']):,.0f}",
        f"{one['client_mib']:,.0f} ({one['client_before_mib']:,.0f} before)",
        f"{abs(one['z'][worst]):.1f} ({worst})",
        "good" if one["good"] else "bad",
        str(one["machine"]["load_before"]),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", nargs="+", type=int, default=list(SIZES))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--gpu-rows-per-second", type=float, help="of one GPU, as measured")
    parser.add_argument("--out", type=Path, default=OUT, help="JSON, default %(default)s")
    parser.add_argument("--again", action="store_true", help="run what is in the file, too")
    parser.add_argument("--table", action="store_true", help="only print what is in the file")
    args = parser.parse_args()
    for rows in () if args.table else args.rows:
        named = (rows, args.workers, args.seed)
        kept, same = [], []
        for one in load(args.out):
            is_same = (one["rows"], one["workers"], one["seed"]) == named
            (same if is_same else kept).append(one)
        if same and not args.again:
            continue
        save(args.out, sorted([*kept, run(*named)], key=lambda one: one["rows"]))
    results = load(args.out)
    print_rows(HEAD, [row(one) for one in results])
    alike = [one for one in results if one["workers"] == args.workers]
    if alike:
        print()
        print("\n".join(expected(alike, gpu_rows_per_second=args.gpu_rows_per_second)))


if __name__ == "__main__":
    main()
