"""What is said of groups, beside full-data NUTS and the truth."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from . import Columns, markdown, number

Row = Mapping[str, Any]


def tables(rows: Sequence[Row]) -> Iterator[str]:
    """Lay out each part that there are rows of."""
    parts = {
        part: [row for row in rows if row["part"] == part]
        for part in ("osic", "coverage", "stored")
    }
    if parts["osic"]:
        yield from (_against_nuts(parts["osic"]), "")
    if parts["coverage"]:
        yield from (_coverage(parts["coverage"]), "")
    if parts["stored"]:
        yield _stored(parts["stored"])


def _against_nuts(rows: Sequence[Row]) -> str:
    of_sites = [{**row[site], "site": site, **row} for row in rows for site in ("a", "b")]
    columns: Columns = {
        "site": lambda row: row["site"],
        "shards": number("shards", "d"),
        "largest difference of a mean, sds": number("largest", ".3f"),
        "beyond twice the reference's error": lambda row: f"{max(row['beyond_error'], 0):.3f}",
        "sd ratios": lambda row: " - ".join(f"{ratio:.2f}" for ratio in row["sd_ratios"]),
        "5%, 50%, 95% quantile": lambda row: ", ".join(f"{q:.2f}" for q in row["quantiles"]),
        "largest rms difference of a correlation": lambda row: (
            f"{max(row['correlations'].values()):.3f}"
        ),
        "shards alone: of a mean": lambda row: f"{row['alone'][0]:.2f}",
        "sd ratios ": lambda row: " - ".join(f"{ratio:.2f}" for ratio in row["alone"][1:]),
    }
    return markdown(columns, of_sites)


def _coverage(rows: Sequence[Row]) -> str:
    cells: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        cells.setdefault((row["kind"], row["size"]), []).append(row)
    columns: Columns = {
        "rows": lambda row: row["kind"],
        "a group": number("size", "d"),
        "groups": number("groups", ","),
        "of fits (good)": lambda row: f"{len(row['fits'])} ({row['good']})",
        "in 50% intervals": lambda row: _share(row, 0.5, lambda fit: fit["held"]["50%"]),
        "of the exact posterior": lambda row: _share(
            row, 0.5, lambda fit: fit["held_exactly"]["50%"]
        ),
        "in 90% intervals": lambda row: _share(row, 0.9, lambda fit: fit["held"]["90%"]),
        "of the summary": lambda row: _share(row, 0.9, lambda fit: fit["held_summary"]),
        "of the exact": lambda row: _share(row, 0.9, lambda fit: fit["held_exactly"]["90%"]),
        "below its median": lambda row: _share(row, 0.5, lambda fit: fit["below_median"]),
    }
    summed = [
        {
            "kind": kind,
            "size": size,
            "groups": sum(fit["groups"] for fit in fits),
            "good": sum(fit["good"] for fit in fits),
            "fits": fits,
        }
        for (kind, size), fits in cells.items()
    ]
    return markdown(columns, summed)


def _share(row: Row, expected: float, held: Callable[[Row], int]) -> str:
    """Print a share, and its distance from what is expected in standard errors.

    Groups of a fit share what it says of the population, so errors are of fits, not of groups.
    """
    shares = np.array([held(fit) / fit["groups"] for fit in row["fits"]])
    if len(shares) < 2:
        return f"{shares.mean():.3f}"
    error = shares.std(ddof=1) / np.sqrt(len(shares))
    return f"{shares.mean():.3f} ({(shares.mean() - expected) / error:+.1f})"


def _stored(rows: Sequence[Row]) -> str:
    columns: Columns = {
        "rows": number("rows", ","),
        "groups": number("groups", ","),
        "sites": number("sites", "d"),
        "draws": lambda row: f"{row['draws']:,}" if row["draws"] else "their summary",
        "seconds": number("seconds"),
        "of it drawing and writing": number("local_seconds"),
        "worker, peak MiB": lambda row: f"{max(row['worker_mib']):,.0f}",
        "client, peak MiB": lambda row: (
            f"{row['client_mib']:,.0f} ({row['client_before_mib']:,.0f} before)"
        ),
        "on disk, MiB": number("disk_mib", ",.0f"),
    }
    return markdown(columns, rows)
