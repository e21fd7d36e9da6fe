"""How far a forecast is from what a fit then takes, phase by phase.

Each in a process of its own, nothing compiled before: the plan's forecast, on a shard that is made
up, and a fit, with its own forecast, on a real one. ``--cpu`` counts processor
time on one thread, on a machine that does other things besides; ``--processes`` are workers of a
cluster.

    python -m benchmarks.forecast
    python -m benchmarks.forecast --cpu --rows 40000 --case binary
    python -m benchmarks.forecast --cpu --rows 4800 --case nested
    python -m benchmarks.forecast --processes 2 --case binary
    python -m benchmarks.forecast --table
"""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any
from unittest import mock

import dask

from .cases import CASES as NAMED
from .cases import Case
from .cases.sized import sized_case
from .cases.sound import nested
from .measure.fits import in_memory, quietly
from .measure.script import Store, parse

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "slopes": ("slopes", {}),
    "binary": ("binary", {}),
    "logistic": ("logistic", {}),
    "binary, consensus": ("binary", {"method": "consensus", "correct": False, "local": None}),
    "slopes, anchored": ("slopes", {"method": "anchored"}),
    "binary, one shard": ("binary", {"n_shards": 1}),
    "binary, nuts": ("binary", {"method": "nuts", "n_shards": 1}),
    "nested": ("nested", {}),
}
PHASES = ("search", "rounds", "correction", "local")
TOY = {"rows": [400], "case": ["binary"]}


@contextlib.contextmanager
def processor_time(cpu: bool) -> Iterator[None]:
    """Have all clocks count processor time, of work on one thread."""
    if not cpu:
        yield
        return
    with (
        mock.patch.object(time, "perf_counter", time.process_time),
        dask.config.set(scheduler="synchronous"),
    ):
        yield


@contextlib.contextmanager
def on_processes(number: int) -> Iterator[None]:
    """Have a cluster of so many processes of one thread; none if there are to be none."""
    if not number:
        yield
        return
    from distributed import Client, LocalCluster

    here = {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0"}
    with LocalCluster(n_workers=number, threads_per_worker=1, **here) as cluster, Client(cluster):
        yield


def case_of(model: str, rows: int) -> Case:
    """Counties in regions, of 80 rows each; or a case of so many rows."""
    if model == "nested":
        return replace(NAMED["nested-2"], frame=lambda: nested(rows // 80))
    return sized_case(model, rows)


def measure(
    name: str, rows: int, shards: int, part: str, cpu: bool, processes: int = 0
) -> dict[str, Any]:
    """Forecast a fit from its plan, or run it; nothing is compiled before."""
    model, options = CASES[name]
    case = case_of(model, rows)
    given = {"by": case.by, "columns": case.columns, "n_shards": shards} | options
    with (
        processor_time(cpu),
        on_processes(processes),
        tempfile.TemporaryDirectory() as cache,
        dask.config.set({"consensus.cache": cache, "consensus.forecast": True}),
    ):
        frame = in_memory(case.frame(), 4)
        if part == "plan":
            return {"forecast": frame.consensus.plan(case.model, **given).forecast().as_dict()}
        lazy = frame.consensus.fit(case.model, progress=False, compute=False, **given)
        tree = quietly(lazy)
    attributes = {name: json.loads(tree.attrs[name]) for name in ("forecast", "profile", "used")}
    return attributes | {"points": tree["correction"].sizes["point"] if "correction" in tree else 0}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Forecasts of all phases but reading and shuffling rows, beside what they took."""
    lines = [
        "| case | rows | shards | phase | at least | likely | at most | took | took / likely |",
        "|---|---|---|---|---|---|---|---|---|",
    ]

    def add(row: dict[str, Any], phase: str, seconds: Sequence[float], took: float) -> None:
        on = f", {row['processes']} processes" if row.get("processes") else ""
        named = [row["case"] + on, f"{row['rows']:,}", str(row["shards"]), phase]
        numbers = [f"{number:.1f}" for number in (*seconds, took)]
        ratio = f"{took / seconds[1]:.2f}"
        lines.append(f"| {' | '.join([*named, *numbers, ratio])} |")

    for row in (row for row in rows if row["part"] == "fit"):
        known = {p: s for p, s in row["forecast"]["seconds"].items() if p in PHASES}
        for phase, seconds in known.items():
            add(row, phase, seconds, row["profile"][phase])
        total = [sum(part) for part in zip(*known.values(), strict=True)]
        add(row, "all", total, sum(row["profile"][phase] for phase in PHASES))
        same = ("case", "rows", "shards", "cpu", "processes")
        for other in rows:
            if other["part"] == "plan" and all(other.get(name) == row.get(name) for name in same):
                planned = [s for p, s in other["forecast"]["seconds"].items() if p in PHASES]
                # A plan reckons with all compiling; what the fit's own probe did is part of it.
                took = sum(row["profile"].get(phase, 0.0) for phase in (*PHASES, "forecast"))
                total = [sum(part) for part in zip(*planned, strict=True)]
                add(row, "all, by the plan", total, took)
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure what is asked for, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--case", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--rows", nargs="+", type=int, default=[40_000])
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--cpu", action="store_true", help="count processor time")
    parser.add_argument("--processes", type=int, default=0, help="workers of a cluster")
    args = parse(parser, argv, TOY)
    if args.cpu and args.processes:
        parser.error("--cpu counts the time of one process, so there can be no --processes")
    store = Store(args, "forecast")
    if not args.table:
        for rows in args.rows:
            for name in args.case:
                shards = CASES[name][1].get("n_shards", args.shards)
                for part in ("plan", "fit"):
                    key = {"case": name, "rows": rows, "shards": shards, "part": part}
                    key["cpu"] = args.cpu
                    if args.processes:
                        key["processes"] = args.processes
                    asked = name, rows, shards, part, args.cpu, args.processes
                    store.measure(key, measure, *asked)
    print(table(store.rows()))


if __name__ == "__main__":
    main()
