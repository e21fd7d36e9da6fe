"""Updates beside fits of all rows, and their work."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from . import Columns, markdown

Row = Mapping[str, Any]


def tables(rows: Sequence[Row]) -> Iterator[str]:
    """Lay out each part that there are rows of."""
    steps = [
        {"case": row["case"], "share": row["share"], **step}
        for row in rows
        if row["part"] == "agreement"
        for step in row["after"]
    ]
    columns: Columns = {
        "case": lambda row: row["case"],
        "new rows": lambda row: f"{row['share']:.0%}",
        "update": lambda row: str(row["update"]),
        "rows": lambda row: f"{row['rows']:,}",
        "means off, sds": lambda row: f"{row['off']:.4f}",
        "stated": lambda row: f"{row['stated']:.4f}",
        "off, in errors of both": lambda row: f"{row['in_errors']:.2f}",
        "log sds off": lambda row: f"{row['log_sd']:.4f}",
        "k-hat": lambda row: f"{row['k_hat']:.2f}",
        "good (fit of all)": lambda row: f"{_yes(row['good'])} ({_yes(row['good_of_all'])})",
    }
    if steps:
        yield markdown(columns, steps)
    work = [row for row in rows if row["part"] == "work"]
    columns = {
        "case": lambda row: row["case"],
        "rows": lambda row: f"{row['rows']:,}",
        "new": lambda row: f"{row['new']:,}",
        "fit, CPU s": lambda row: f"{row['seconds']['fit']:.1f}",
        "update, CPU s": lambda row: f"{row['seconds']['update']:.1f}",
        "share": lambda row: f"{row['seconds']['update'] / row['seconds']['fit']:.1%}",
    }
    if work:
        yield markdown(columns, work)


def _yes(good: bool) -> str:
    return "yes" if good else "no"
