"""Speed beside NumPyro's own ways: full-data NUTS, a loop over shards, HMC on subsamples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np

from ..measure import loop
from ..measure.loop import OURS
from . import Columns, markdown, number, times

Row = Mapping[str, Any]
EQUAL = 2_000  # effective draws at which times are compared
ORDER = ("part", "case", "rows", "seed", *loop.Loop._fields)


def tables(rows: Sequence[Row], references: Mapping[str, Row]) -> Iterator[str]:
    """All tables, and what they were measured on."""

    def order(row: Row) -> tuple[Any, ...]:
        return tuple(row[name] for name in (ORDER if row["part"] == "loop" else ORDER[:4]))

    # What was measured of the same rows: who -> row.
    groups = [{r["who"]: r for r in group} for _, group in groupby(sorted(rows, key=order), order)]
    parts: dict[str, list[dict[str, Row]]] = {}
    for group in groups:
        parts.setdefault(next(iter(group.values()))["part"], []).append(group)
    yield from full(parts.get("full", []))
    for group in parts.get("loop", []):
        yield from loops(group)
    for group in parts.get("hmcecs", []):
        yield from hmcecs(group, references.get("logistic-plain"))
    yield from svi(parts.get("svi", []), parts.get("full", []))
    yield from measured_on(rows)


def measured_on(rows: Sequence[Row]) -> Iterator[str]:
    """Say where the figures come from: ratios are of one commit on one machine."""
    facts = {tuple(str(r["machine"][k]) for k in ("cores", "processor", "commit")) for r in rows}
    for cores, processor, commit in sorted(facts):
        yield f"Measured on {cores} cores of {processor}, at {commit}."


def rate(row: Row) -> float:
    """Effective draws a second of the whole run."""
    return row.get("ess", 0.0) / row["seconds"]


def warm_rate(row: Row) -> float:
    """Effective draws a second after warm-up."""
    if "warm_seconds" not in row:
        return 0.0
    return row["ess"] / max(row["seconds"] - row["warm_seconds"], 1e-9)


def _timing(row: Row) -> str:
    capped = " capped" if row.get("capped") else ""
    return f"{row['seconds']:,.0f} ({row['compile_seconds']:,.0f}){capped}"


def _agreement(fit: Row, reference: Mapping[str, Any] | None) -> tuple[str, str]:
    """Largest difference of means in posterior sds, with its own error, and ratios of sds."""
    if not reference or "unconstrained" not in fit:
        return "-", "-"
    moments = fit["unconstrained"]
    away = {n: abs(moments[n]["mean"] - row["mean"]) / row["sd"] for n, row in reference.items()}
    worst = max(away, key=lambda name: away[name])
    sd = reference[worst]["sd"]
    # Errors of both sides: ours is the verdict's estimate, HMCECS's that of its draws.
    estimated = fit["error"][worst] if "error" in fit else moments[worst]["mcse"] / sd
    error = np.hypot(reference[worst]["mcse"] / sd, estimated or 0.0)
    ratios = [moments[name]["sd"] / row["sd"] for name, row in reference.items()]
    return f"{away[worst]:.3f} (± {error:.3f})", f"{min(ratios):.2f} - {max(ratios):.2f}"


def full(groups: Sequence[Mapping[str, Row]]) -> Iterator[str]:
    """Ours beside NUTS on all rows, and how both went."""
    pairs = [(group[OURS], group["NUTS"]) for group in groups if {OURS, "NUTS"} <= set(group)]
    columns: Columns = {
        "model": lambda pair: pair[0]["case"],
        "rows": lambda pair: f"{pair[0]['rows']:,}",
        "NUTS: s (compiling)": lambda pair: _timing(pair[1]),
        "NUTS: ess": lambda pair: _draws_or_warmup(pair[1]),
        "NUTS: ess/s": lambda pair: f"{rate(pair[1]):.3g}",
        "after warm-up": lambda pair: f"{warm_rate(pair[1]):.3g}",
        "ours: s (compiling)": lambda pair: _timing(pair[0]),
        "shards": lambda pair: str(pair[0]["n_shards"]),
        "ours: ess": lambda pair: f"{pair[0].get('ess', 0.0):,.0f}",
        "ours: ess/s": lambda pair: f"{rate(pair[0]):.3g}",
        "ours / NUTS": lambda pair: times(rate(pair[0]) / rate(pair[1])) if rate(pair[1]) else "-",
        f"at {EQUAL:,} effective draws": lambda pair: _at_equal(*pair),
        "largest difference, sds": lambda pair: _agreement(pair[0], pair[1].get("unconstrained"))[
            0
        ],
        "sd ratios": lambda pair: _agreement(pair[0], pair[1].get("unconstrained"))[1],
        "verdict": lambda pair: "good" if pair[0]["good"] else "not good",
    }
    if pairs:
        yield markdown(columns, pairs)
    for ours, nuts in pairs:
        phases = ", ".join(f"{phase} {seconds:.1f}" for phase, seconds in ours["profile"].items())
        chains = f"{nuts['iterations']:,} transitions a chain"
        if nuts["draws"]:
            chains += f", r_hat {nuts['r_hat']:.3f}, {nuts['steps']:.0f} steps each"
        yield f"- {ours['case']}, {ours['rows']:,} rows: NUTS {chains}; ours, seconds: {phases}"
    yield ""


def _draws_or_warmup(nuts: Row) -> str:
    return f"{nuts['ess']:,.0f}" if nuts["draws"] else f"warm-up, {nuts['iterations']} done"


def _at_equal(ours: Row, nuts: Row) -> str:
    if ours.get("ess", 0.0) < EQUAL:
        return "-"
    if not nuts["draws"]:  # it needs longer than it had
        return f"> {times(nuts['seconds'] / ours['seconds'])}"
    return times((nuts["warm_seconds"] + EQUAL / warm_rate(nuts)) / ours["seconds"])


def loops(rows: Mapping[str, Row]) -> Iterator[str]:
    """The loop by all ways, and how its answers differ."""
    first, best = next(iter(rows.values())), rows.get(loop.DEFAULTS)
    yield (
        f"One round on {first['n_shards']} shards of {first['rows']:,} rows in all, "
        f"{first['num_warmup']} + {first['num_samples']} transitions on each:\n"
    )
    columns: Columns = {
        "": lambda row: row["who"],
        "s (compiling)": _timing,
        "times as fast": lambda row: times(first["seconds"] / row["seconds"]),
        "steps a transition": lambda row: f"{row.get('steps', np.nan):.1f}".replace("nan", "-"),
        "off the corrected answer, sds": lambda row: _off(row, best),
    }
    yield markdown(columns, rows.values())


def _off(row: Row, best: Row | None) -> str:
    if not best or row is best:
        return "-"
    moments = row["constrained"]
    away = (abs(moments[n]["mean"] - b["mean"]) / b["sd"] for n, b in best["constrained"].items())
    return f"{max(away):.2f}"


def hmcecs(group: Mapping[str, Row], reference: Row | None) -> Iterator[str]:
    """Ours beside HMCECS."""
    ours, first = group.get(OURS), next(iter(group.values()))
    known = reference["unconstrained"] if reference and reference["rows"] == first["rows"] else None
    against = "a long NUTS on all rows" if known else "nothing, there is no reference"
    yield f"Logistic regression, {first['rows']:,} rows, 20 predictors, against {against}:\n"
    columns: Columns = {
        "": lambda row: row["who"],
        "s (compiling)": _timing,
        "ess": number("ess"),
        "ess/s": lambda row: f"{rate(row):.3g}",
        "after warm-up": lambda row: f"{warm_rate(row):.3g}" if row is not ours else "-",
        "ours is times as fast": lambda row: times(rate(ours) / rate(row)) if ours else "-",
        "largest difference, sds": lambda row: _agreement(row, known)[0],
        "sd ratios": lambda row: _agreement(row, known)[1],
        "r_hat": number("r_hat", ".3f"),
        "subsamples accepted": number("subsamples_accepted", ".2f"),
    }
    yield markdown(columns, sorted(group.values(), key=rate, reverse=True))


def svi(groups: Sequence[Mapping[str, Row]], full: Sequence[Mapping[str, Row]]) -> Iterator[str]:
    """Ours beside variational inference, against NUTS on the same rows."""
    rows = [row for group in groups for row in group.values()]
    known = {
        (row["case"], row["rows"]): row.get("unconstrained")
        for group in full
        if (row := group.get("NUTS"))
    }

    def against(row: Row) -> tuple[str, str]:
        return _agreement(row, known.get((row["case"], row["rows"])))

    columns: Columns = {
        "model": lambda row: row["case"],
        "rows": lambda row: f"{row['rows']:,}",
        "who": lambda row: row["who"],
        "steps": lambda row: f"{row['steps']:,}" if row["who"] != OURS else "-",
        "s (compiling)": _timing,
        "CPU s": lambda row: f"{row['cpu_seconds']:,.0f}",
        "largest difference, sds": lambda row: against(row)[0],
        "sd ratios": lambda row: against(row)[1],
    }
    if rows:
        yield markdown(columns, rows)
