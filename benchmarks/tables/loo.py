"""What is left out, beside NUTS, refits, and the clock."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from . import Columns, markdown, number

Row = Mapping[str, Any]


def tables(rows: Sequence[Row]) -> Iterator[str]:
    """Lay out each part that there are rows of."""
    laid_out = {"models": _models, "refits": _refits, "speed": _speed}
    for part, lay_out in laid_out.items():
        some = [row for row in rows if row["part"] == part]
        if some:
            yield from lay_out(some)


def _models(rows: Sequence[Row]) -> Iterator[str]:
    cells, ranks = [], []
    for row in rows:
        for name, told in row.items():
            if not isinstance(told, dict) or "groups" not in told or "good" not in told:
                continue
            for unit in ("rows", "groups"):
                for by, numbers in told[unit].items():
                    cells.append({"model": name, "unit": unit, "by": by, "numbers": numbers})
        for unit, ranked in row["ranks"].items():
            for by, order in ranked.items():
                ranks.append({"unit": unit, "by": by, "order": order})
    columns: Columns = {
        "model": lambda row: row["model"],
        "left out": lambda row: {"rows": "visits", "groups": "patients"}[row["unit"]],
        "by": lambda row: row["by"],
        "elpd": lambda row: f"{row['numbers'][0]:,.1f}" + _spread(row["numbers"]),
        "se": lambda row: f"{row['numbers'][1]:.1f}",
        "p_loo": lambda row: f"{row['numbers'][2]:.1f}",
        "k-hat above 0.7": lambda row: f"{row['numbers'][3]:.1%}",
    }
    yield markdown(columns, cells)
    columns = {
        "left out": lambda row: {"rows": "visits", "groups": "patients"}[row["unit"]],
        "by": lambda row: row["by"],
        "order of az.compare: difference (its error)": lambda row: ", ".join(
            f"{name} {difference:,.0f} ({error:.0f})"
            for name, (difference, error) in row["order"].items()
        ),
    }
    yield markdown(columns, ranks)


def _spread(numbers: Sequence[float]) -> str:
    """The sd of what several sets of draws said, where there were several."""
    return f" (+- {numbers[4]:.1f})" if len(numbers) > 4 else ""


def _refits(rows: Sequence[Row]) -> Iterator[str]:
    columns: Columns = {
        "k-hat": number("pareto_k", ".2f"),
        "left in": number("lpd", ".3f"),
        "left out": number("elpd", ".3f"),
        "by NUTS on the others": number("exact", ".3f"),
        "its Monte Carlo error": number("error", ".3f"),
    }
    yield markdown(columns, [patient for row in rows for patient in row["patients"]])


def _speed(rows: Sequence[Row]) -> Iterator[str]:
    columns: Columns = {
        "rows": number("rows", ",d"),
        "fit, seconds": number("fit"),
        "groups left out": number("group"),
        "rows left out": number("row"),
    }
    yield markdown(columns, rows)
