"""Markdown tables from stored rows: a table is its columns, each a heading and what it shows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

Columns = Mapping[str, Callable[[Any], str]]


def markdown(columns: Columns, rows: Iterable[Any]) -> str:
    """Write a table, with an empty line after it."""
    lines = [f"| {' | '.join(show(row) for show in columns.values())} |" for row in rows]
    return "\n".join([f"| {' | '.join(columns)} |", "|" + "---|" * len(columns), *lines, ""])


def number(name: str, form: str = ",.0f") -> Callable[[Mapping[str, Any]], str]:
    """Show a number of a row, "-" where it has none."""
    return lambda row: "-" if row.get(name) is None else format(row[name], form)


def times(ratio: float) -> str:
    """How many times as fast."""
    return f"{ratio:,.2g}" if ratio < 10 else f"{ratio:,.0f}"
