"""What it costs: growth with rows, workers on one machine, the reduction, the gradient."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from . import Columns, markdown, number

Row = Mapping[str, Any]
MODEL = "the model's"
TASK_SECONDS = 1e-3  # of a scheduler a task; Dask's documentation says 0.2 to 1 ms


def growth(rows: Sequence[Row]) -> Iterator[str]:
    """Cost by the number of rows, and what a large fit should cost."""
    columns: Columns = {
        "model": lambda row: row["model"],
        "rows": number("rows", ","),
        "on": lambda row: row["machine"]["gpu"] if row["gpu"] else f"{row['workers']} processes",
        "shards": number("shards", "d"),
        "seconds": number("seconds"),
        "a million rows": lambda row: f"{row['seconds'] / row['rows'] * 1e6:,.0f}",
        "by phase": lambda row: ", ".join(f"{name} {s:,.0f}" for name, s in row["phases"].items()),
        "of it compiling": number("compiling"),
        "tasks": number("tasks", ","),
        "worker, peak MiB": lambda row: f"{max(row['worker_mib']):,.0f}",
        "client, peak MiB": _client("client_before_mib"),
        "largest z to the truth": _largest_z,
        "verdict": lambda row: "good" if row["good"] else "bad",
        "load before": _load,
    }
    yield markdown(columns, sorted(rows, key=lambda row: (row["gpu"], row["model"], row["rows"])))
    for model in sorted({row["model"] for row in rows if not row["gpu"]}):
        of_model = [row for row in rows if row["model"] == model and not row["gpu"]]
        if len(of_model) > 1:
            yield f"{model}: {_large_fit(of_model)}"


def rivals(
    rows: Sequence[Row], truths: Mapping[str, Mapping[str, float]], ours: str
) -> Iterator[str]:
    """Seconds and memory of each, and how far its estimates are from the truth, in our sds."""
    posteriors = {(row["model"], row["rows"]): row for row in rows if row["who"] == ours}
    table = []
    for row in sorted(rows, key=lambda row: (row["model"], row["rows"], row["seconds"])):
        posterior = posteriors.get((row["model"], row["rows"]))
        away = {}
        if posterior is not None:
            away = {
                name: (row["estimates"][name] - truth) / posterior["sds"][name]
                for name, truth in truths[row["model"]].items()
            }
        table.append(
            {**row, "times": posterior and row["seconds"] / posterior["seconds"], "z": away}
        )
    columns: Columns = {
        "model": lambda row: row["model"],
        "rows": number("rows", ","),
        "who": lambda row: f"{row['who']} {row['version']}".strip(),
        "seconds": number("seconds", ",.1f"),
        "of ours": lambda row: "-" if row["times"] is None else f"{row['times']:.2f}",
        "memory, MiB": number("mib", ",.0f"),
        "largest z to the truth": lambda row: _largest_z(row) if row["z"] else "-",
        "load before": _load,
    }
    yield markdown(columns, table)


def sampling(rows: Sequence[Row]) -> Iterator[str]:
    """How far samples of shards are from all of them, and what they say of it."""

    def of_some(name: str, form: str) -> Any:
        return lambda row: "-" if row[name] is None else format(row[name], form)

    columns: Columns = {
        "case": lambda row: row["case"],
        "rows": number("rows", ","),
        "shards": number("shards", "d"),
        "verdict of all": lambda row: "good" if row["good"] else "bad",
        "samples that ask all": number("all", "d"),
        "shards asked": lambda row: _between(row["asked"]),
        "of them for certain": lambda row: _between(row["certain"]),
        "largest difference": of_some("worst", ".1g"),
        "largest error stated": of_some("largest_error", ".1g"),
        "within twice the error": of_some("covered", ".1%"),
    }
    yield markdown(columns, rows)


def _between(counts: Sequence[int]) -> str:
    if not counts:
        return "-"
    return f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"


def _largest_z(row: Row) -> str:
    worst = max(row["z"], key=lambda name: abs(row["z"][name]))
    return f"{abs(row['z'][worst]):.1f} ({worst})"


def _load(row: Row) -> str:
    return str(row["machine"]["load_before"])


def _client(before: str) -> Any:
    return lambda row: f"{row['client_mib']:,.0f} ({row[before]:,.0f} before)"


def _large_fit(rows: Sequence[Row], size: int = 500_000_000, cores: int = 64) -> str:
    """What a large fit should cost, by a line through all sizes.

    Assumes that shards stay of one size, so that their number grows and not their cost, that as
    many points are needed, and that disks and the network keep up.
    """
    counts, seconds = (np.array([row[k] for row in rows], float) for k in ("rows", "seconds"))
    # Weighted by 1/rows: errors are a share of the time, not a number of seconds.
    slope, fixed = np.polyfit(counts, seconds, 1, w=1 / counts)
    largest = max(rows, key=lambda row: row["rows"])
    tasks = largest["tasks"] / largest["rows"] * size
    core_seconds = slope * largest["workers"] * size
    work, scheduling = core_seconds / cores, tasks * TASK_SECONDS
    millions = ", ".join(f"{million:.1f}" for million in (seconds - fixed) / counts * 1e6)
    return (
        f"{size:,} rows on {cores} cores: {(fixed + max(work, scheduling)) / 60:,.0f} to "
        f"{(fixed + work + scheduling) / 60:,.0f} minutes: {core_seconds / 3600:,.0f} core-hours "
        f"of work, beside or after {tasks:,.0f} tasks at {TASK_SECONDS * 1e3:.0f} ms of a "
        f"scheduler. Less the {fixed:,.0f} s that every fit takes, a million rows took {millions} "
        "s.\n"
    )


def cores(rows: Sequence[Row]) -> Iterator[str]:
    """Settings of workers, beside Dask's threads at as many rows."""
    base = {row["rows"]: row["seconds"] for row in rows if not row["setting"][0]}
    columns: Columns = {
        "rows": number("rows", ","),
        "setting": lambda row: _setting(*row["setting"]),
        "s": number("seconds", ".1f"),
        "of it compiling": lambda row: f"{row['profile']['compile']:.1f}",
        "correction, s": lambda row: f"{row['profile']['correction']:.1f}",
        "s / s of threads": lambda row: f"{row['seconds'] / base.get(row['rows'], np.nan):.2f}",
        "load before": _load,
    }
    yield markdown(columns, rows)


def _setting(workers: int, threads: int, jax_threads: int | None) -> str:
    text = f"{workers} x {threads} thread" + "s" * (threads > 1)
    text = text if workers else "Dask's threads, no client"
    return text + (f", PJRT_NPROC={jax_threads}" if jax_threads else "")


def reduction(rows: Sequence[Row]) -> Iterator[str]:
    """Ways to add contributions up."""
    columns: Columns = {
        "sites": lambda row: f"{row['sites']:,} x {row['site_mib']:.2f} MiB",
        "way": lambda row: row["way"],
        "seconds": number("seconds", ".1f"),
        "tasks": number("tasks", ","),
        "moved, MiB": number("moved_mib"),
        "added by one task, MiB": number("node_mib", ".1f"),
        "worker, peak MiB": number("worker_mib"),
        "client, peak MiB": _client("start_mib"),
        "difference": number("difference", ".0e"),
        "load before": _load,
    }
    yield markdown(columns, rows)


def gradient(rows: Sequence[Row]) -> Iterator[str]:
    """The gradient, by model and precision, and its memory traffic."""
    for row in rows:
        groups = f", {row['groups']:,} equal groups"
        name = "random intercept and slope" if row["groups"] else "logistic"
        precision = "f64" if row["x64"] else "f32"
        where = f" on {row['machine']['gpu']}" if row["gpu"] else ""
        yield f"{name}, {precision}{where}: {row['rows']:,} rows{groups * bool(row['groups'])}\n"
        ns = dict(row["ns_a_row"]["in_a_loop"])
        model, speed = ns[MODEL], row["memory_bytes_a_second"] / 1e9
        ns[f"({row['bytes_a_row']:.1f} bytes a row, {speed:.0f} GB/s)"] = row["bytes_a_row"] / speed
        columns: Columns = {
            "gradient": lambda way: way[0],
            "ns a row": lambda way: f"{way[1]:.3g}",
            "times as fast as the model's": lambda way, model=model: f"{model / way[1]:.2f}",
        }
        yield markdown(columns, ns.items())
