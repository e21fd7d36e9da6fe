"""What workers on one machine do to each other: threads, processes, and JAX's own threads.

JAX takes every core in every process, whoever else is there. Fits the rows of ``scale.py`` with
the package's defaults in several settings, each in a process of its own, and compares them with
Dask's threads, which is what a fit without a client runs on.

    python benchmarks/cores.py
    python benchmarks/cores.py --rows 300_000 --cores 4
    python benchmarks/cores.py --table          # print what there is
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import dask.dataframe as dd
from distributed import Client
from machine import facts, in_own_process, load, local_cluster, print_rows, save
from scale import model, write

import dask_consensus  # noqa: F401  registers ddf.consensus

OUT = Path(__file__).parent / "results" / "cores.json"


class Setting(NamedTuple):
    """Worker processes, threads each, and how many threads JAX may take in each.

    No worker is Dask's threads in the client; no limit is JAX's own choice, all cores.
    """

    workers: int
    threads: int
    jax_threads: int | None

    def __str__(self) -> str:
        if not self.workers:
            text = "Dask's threads, no client"
        else:
            text = f"{self.workers} x {self.threads} thread" + "s" * (self.threads > 1)
        return text + (f", PJRT_NPROC={self.jax_threads}" if self.jax_threads else "")


def settings(cores: int) -> list[Setting]:
    """Every way to use all cores, with JAX's choice and with one thread of JAX a Dask thread."""
    return [
        Setting(0, cores, None),
        Setting(1, cores, None),
        Setting(cores, 1, None),
        Setting(cores, 1, 1),
        Setting(1, 1, None),
        Setting(1, 1, 1),
    ]


def measure(folder: str, rows: int, setting: Setting, seed: int) -> dict[str, Any]:
    """Fit the files in a setting; the environment is that of the process."""
    machine = facts()
    with contextlib.ExitStack() as stack:
        if setting.workers:
            cluster = local_cluster(folder, setting.workers, setting.threads)
            stack.enter_context(Client(stack.enter_context(cluster)))
        frame = dd.read_parquet(Path(folder) / "rows")
        began = time.perf_counter()
        tree = frame.consensus.fit(
            model, by="group", seed=seed, progress=False, n_shards=-(-rows // 50_000)
        )
        seconds = time.perf_counter() - began
    return {
        "rows": rows,
        "setting": list(setting),
        "seed": seed,
        "seconds": seconds,
        "profile": json.loads(tree.attrs["profile"]),
        "good": bool(tree.attrs["verdict_good"]),
        "machine": machine,
    }


@contextlib.contextmanager
def environment(name: str, value: int | None) -> Iterator[None]:
    """Give a variable to processes that start within; None takes it away."""
    before = os.environ.pop(name, None)
    if value is not None:
        os.environ[name] = str(value)
    try:
        yield
    finally:
        os.environ.pop(name, None)
        if before is not None:
            os.environ[name] = before


def table(results: Sequence[Mapping[str, Any]]) -> list[Sequence[str]]:
    """One row a setting, the time beside that of Dask's threads at as many rows."""
    base = {one["rows"]: one["seconds"] for one in results if not one["setting"][0]}
    return [
        (
            f"{one['rows']:,}",
            str(Setting(*one["setting"])),
            f"{one['seconds']:.1f}",
            f"{one['profile']['compile']:.1f}",
            f"{one['profile']['correction']:.1f}",
            f"{one['seconds'] / base[one['rows']]:.2f}" if one["rows"] in base else "-",
            str(one["machine"]["load_before"]),
        )
        for one in results
    ]


HEAD = (
    "rows", "setting", "s", "of it compiling", "correction, s", "s / s of threads", "load before",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--cores", type=int, default=os.cpu_count())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=OUT, help="JSON, default %(default)s")
    parser.add_argument("--table", action="store_true", help="only print what is in the file")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if not args.table:
            in_own_process(write, Path(folder) / "rows", args.rows, args.seed)
        for setting in () if args.table else settings(args.cores):
            named = {"rows": args.rows, "setting": list(setting), "seed": args.seed}
            kept = [one for one in load(args.out) if any(one[key] != named[key] for key in named)]
            with environment("PJRT_NPROC", setting.jax_threads):
                found = in_own_process(measure, folder, args.rows, setting, args.seed)
            save(args.out, [*kept, found])
    print_rows(HEAD, table(load(args.out)))


if __name__ == "__main__":
    main()
