"""What is said of groups, beside full-data NUTS and the truth."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
    cells = {}
    for row in rows:
        cells.setdefault((row["kind"], row["size"]), []).append(row)
    summed = []
    for (kind, size), some in cells.items():
        groups = sum(row["groups"] for row in some)
        summed.append(
            {
                "kind": kind,
                "size": size,
                "groups": groups,
                "fits": len(some),
                "good": sum(row["good"] for row in some),
                "half": sum(row["held"]["50%"] for row in some) / groups,
                "most": sum(row["held"]["90%"] for row in some) / groups,
                "exact": sum(row["held_exactly"]["90%"] for row in some) / groups,
                "exact_half": sum(row["held_exactly"]["50%"] for row in some) / groups,
                "summary": sum(row["held_summary"] for row in some) / groups,
                "below": sum(row["below_median"] for row in some) / groups,
            }
        )
    columns: Columns = {
        "rows": lambda row: row["kind"],
        "a group": number("size", "d"),
        "groups": number("groups", ","),
        "of fits (good)": lambda row: f"{row['fits']} ({row['good']})",
        "in 50% intervals": lambda row: _share(row, "half", 0.5),
        "of the exact posterior": lambda row: _share(row, "exact_half", 0.5),
        "in 90% intervals": lambda row: _share(row, "most", 0.9),
        "of the summary": lambda row: _share(row, "summary", 0.9),
        "of the exact": lambda row: _share(row, "exact", 0.9),
        "below its median": lambda row: _share(row, "below", 0.5),
    }
    return markdown(columns, summed)


def _share(row: Row, name: str, expected: float) -> str:
    """Print a share, and its distance from what is expected in binomial standard errors."""
    error = np.sqrt(expected * (1 - expected) / row["groups"])
    return f"{row[name]:.3f} ({(row[name] - expected) / error:+.1f})"


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
