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
        yield markdown(columns, sorted(work, key=lambda row: (row["case"], row["rows"])))
    lines = [
        {"case": case, "what": what} | _line([row for row in work if row["case"] == case], what)
        for case in dict.fromkeys(row["case"] for row in work)
        for what in ("fit", "update")
        if sum(row["case"] == case for row in work) > 1
    ]
    columns = {
        "case": lambda row: row["case"],
        "CPU s": lambda row: row["what"],
        "however few rows": lambda row: f"{row['least']:.2f}",
        "and a million rows of the fit": lambda row: f"{row['each']:.3f}",
    }
    if lines:
        yield markdown(columns, lines)


def _line(work: Sequence[Row], what: str) -> dict[str, float]:
    """Draw the line of seconds through rows that passes by the fewest and the most."""
    few, *_, many = sorted(work, key=lambda row: row["rows"])
    rise = many["seconds"][what] - few["seconds"][what]
    each = rise / (many["rows"] - few["rows"])
    return {"least": few["seconds"][what] - each * few["rows"], "each": each * 1e6}


def _yes(good: bool) -> str:
    return "yes" if good else "no"
