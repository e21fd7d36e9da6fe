"""What faults did: how often each was tried, what came of it, what was done again."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from . import Columns, markdown

Rows = Sequence[Mapping[str, Any]]
_VICTIMS = {("one", 2): "one of two workers", ("all", 2): "both workers"}
_VICTIMS |= {("all", 4): "two of four workers"}


def tables(rows: Rows) -> Iterator[str]:
    """Faults that a fit is to survive, those it is to name, and what was drawn at random."""
    survived = [*_groups(rows, "kills", _killed), *_groups(rows, "straggler", _stood_still)]
    soaks = [(_soaked(row), [row]) for row in rows if row["part"] == "soak"]
    disks = [(f"full disk: {row['kind']}", [row]) for row in rows if row["part"] == "disk"]
    crashes = [(_crashed(row), [row]) for row in rows if row["part"] == "resumed"]
    timed = dict(_groups(rows, "time", _hurt))
    if survived or soaks or crashes:
        all_of_them = [*survived, *soaks, *crashes]
        yield markdown(_SURVIVED, [(name, some, timed.get(name, [])) for name, some in all_of_them])
    damaged = [row for row in rows if row["part"] == "damaged"]
    if damaged:
        yield markdown(_DAMAGED, damaged)
    files = [(f"Parquet file: {row['kind']}", [row]) for row in rows if row["part"] == "files"]
    if disks or files:
        yield markdown(_NAMED, [*disks, *files])
    drawn = [(part, [r for r in rows if r["part"] == part]) for part in ("frames", "models")]
    if any(some for _, some in drawn):
        yield markdown(_DRAWN, [(part, some) for part, some in drawn if some])


def _groups(
    rows: Rows, part: str, name: Callable[[Mapping[str, Any]], str]
) -> list[tuple[str, Rows]]:
    """Rows of a part, by what befell them; what came too late to befall them is left out."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["part"] == part and row["struck"]:
            groups.setdefault(name(row), []).append(row)
    return list(groups.items())


def _hurt(row: Mapping[str, Any]) -> str:
    return _stood_still(row) if row["kind"].startswith("stands still") else _killed(row)


def _killed(row: Mapping[str, Any]) -> str:
    return f"{row['kind']}, {_VICTIMS[row['whom'], row.get('workers', 2)]}"


def _stood_still(row: Mapping[str, Any]) -> str:
    return f"one of two workers {row['kind']}"


def _soaked(row: Mapping[str, Any]) -> str:
    return (
        f"{row['shards']} shards, a worker killed every {row['every']:g} s ({row['kills']} kills)"
    )


def _crashed(row: Mapping[str, Any]) -> str:
    return f"{row['whom']} killed {row['kills']} times, gone on with from the store"


_DAMAGED: Columns = {
    "cut short, bits flipped, filled with something else": lambda row: (
        f"files of the {row['kind']}"
    ),
    "tried": lambda row: str(row["tried"]),
    "draws identical": lambda row: str(row["identical"]),
    "met: named, or made anew": lambda row: str(row["named"]),
}


def _repeated(some: Rows, again: str, of: str) -> str:
    """Share of tasks, or of their seconds, that came again: median and largest."""
    counted = [row for row in some if row["finished"] and row.get(of)]
    shares = [row[again] / row[of] for row in counted]
    return f"{np.median(shares):.0%} ({max(shares):.0%})" if shares else "-"


def _lost(timed: Rows) -> str:
    """Seconds beyond those of an undisturbed fit on the same cluster: median and largest."""
    lost = [row["seconds"] - row["undisturbed"] for row in timed if row["finished"]]
    if not lost:
        return "-"
    whole = np.median([row["undisturbed"] for row in timed])
    return f"{np.median(lost):.1f} ({max(lost):.1f}), {len(lost)} fits of {whole:.1f}"


def _phases(some: Rows) -> str:
    return ", ".join(dict.fromkeys(row["phase"] for row in some if "phase" in row)) or "-"


_SURVIVED: Columns = {
    "fault": lambda of: of[0],
    "phases": lambda of: _phases(of[1]),
    "tried": lambda of: str(len(of[1])),
    "finished": lambda of: str(sum(row["finished"] for row in of[1])),
    "draws identical": lambda of: str(sum(bool(row.get("identical")) for row in of[1])),
    "workers gone": lambda of: (
        str(sum(row.get("gone", 0) for row in of[1])) if "gone" in of[1][0] else "-"
    ),
    "tasks done again, median (most)": lambda of: _repeated(of[1], "repeated", "tasks"),
    "of all their seconds": lambda of: _repeated(of[1], "repeated_seconds", "task_seconds"),
    "time lost (s), median (most)": lambda of: _lost(of[2]),
}


def _became(row: Mapping[str, Any]) -> str:
    if row["finished"]:
        return "finished, draws identical" if row["identical"] else "finished, OTHER draws"
    return "refused, and named" if row["named"] else "failed, the file NOT named"


_NAMED: Columns = {
    "fault": lambda of: of[0],
    "tried": lambda of: str(len(of[1])),
    "what came of it": lambda of: _became(of[1][0]),
    "what was said": lambda of: _first_words(of[1][0]),
}


def _first_words(row: Mapping[str, Any]) -> str:
    said = row.get("failed") or "; ".join(row.get("said", [])) or "-"
    words = re.sub(r"/tmp/\w+", "…", " ".join(said.split()).replace("|", "/"))
    return words if len(words) <= 200 else words[:197] + "..."


def _outcome(name: str) -> Callable[[tuple[str, Rows]], str]:
    return lambda of: f"{sum(row['outcomes'].get(name, 0) for row in of[1]):,}"


_DRAWN: Columns = {
    "drawn at random": lambda of: of[0],
    "tried": lambda of: f"{sum(sum(row['outcomes'].values()) for row in of[1]):,}",
    "right": _outcome("right"),
    "refused in words": _outcome("refused"),
    "right but for what is said": _outcome("warned"),
    "silent": _outcome("silent"),
    "crashed": _outcome("crash"),
    "hanging, or ended": _outcome("hanging or ended"),
}
