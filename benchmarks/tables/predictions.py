"""Predictions, beside full-data NUTS and new rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from . import Columns, markdown, number

Row = Mapping[str, Any]
_PARTS = ("osic", "coverage", "speed")


def tables(rows: Sequence[Row]) -> Iterator[str]:
    """Lay out each part that there are rows of."""
    laid_out = {"osic": _against_nuts, "coverage": _coverage, "speed": _speed}
    for part in _PARTS:
        some = [row for row in rows if row["part"] == part]
        if some:
            yield from (laid_out[part](some), "")


def _against_nuts(rows: Sequence[Row]) -> str:
    cells = [
        {"draws": row["draws"] or "by default", "what": what, "off": row[what]}
        for row in rows
        for what in row
        if what.split()[0] in ("expected", "predictive")
    ]
    columns: Columns = {
        "draws": lambda row: str(row["draws"]),
        "rows": lambda row: row["what"],
        "largest difference of a mean, sds": lambda row: f"{row['off'][0]:.3f}",
        "of an sd": lambda row: f"{row['off'][1]:.1%}",
        "of a 5%, 95% quantile, sds": lambda row: f"{row['off'][2]:.2f}, {row['off'][3]:.2f}",
    }
    return markdown(columns, cells)


def _coverage(rows: Sequence[Row]) -> str:
    cells: dict[Any, list[Row]] = {}
    for row in rows:
        cells.setdefault((row["kind"], row["size"]), []).append(row)
    summed = []
    for (kind, size), some in cells.items():
        groups = sum(row["groups"] for row in some)
        told = {
            f"{who} {share}": sum(row[who][share] for row in some) / groups
            for who in ("seen", "unseen")
            for share in ("50%", "90%")
        }
        good = sum(row["good"] for row in some)
        summed.append({"kind": kind, "size": size, "n": groups, "good": good, **told})
    columns: Columns = {
        "rows": lambda row: row["kind"],
        "rows a group": number("size", "d"),
        "groups": number("n", ",d"),
        "fits called good": number("good", "d"),
        "seen groups, in 50%": number("seen 50%", ".1%"),
        "in 90%": number("seen 90%", ".1%"),
        "unseen, in 50%": number("unseen 50%", ".1%"),
        "in 90% ": number("unseen 90%", ".1%"),
    }
    return markdown(columns, summed)


def _speed(rows: Sequence[Row]) -> str:
    cells = [
        {"rows": row["rows"], "what": what, "speed": speed}
        for row in rows
        for what, speed in row["rows_a_second"].items()
    ]
    columns: Columns = {
        "rows": number("rows", ",d"),
        "statistics": lambda row: row["what"],
        "rows a second": number("speed", ",d"),
    }
    return markdown(columns, cells)
