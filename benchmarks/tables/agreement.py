"""How near fits come to the full data's posterior, and whether the verdict knows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np

from ..cases import CASES
from ..measure.draws import distance
from . import Columns, markdown

Rows = Sequence[Mapping[str, Any]]
EFFECTIVE = 2_000  # draws for which full NUTS is timed, where the corrected has more


def tables(rows: Rows, references: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """All tables; `references` by case, where there is one."""
    rows = sorted(rows, key=lambda row: (list(CASES).index(row["case"]), row["shards"]))
    rows = [{**row, "reference": references.get(row["case"])} for row in rows]
    yield summary([row for row in rows if not CASES[row["case"]].fails and row["reference"]])
    yield coverage([row for row in rows if row["reference"] and "error" in row])
    corrected = [row for row in rows if row["method"] == "corrected"]
    yield failures([row for row in corrected if CASES[row["case"]].fails])


def _distances(runs: Rows) -> list[Any]:
    return [distance(run, run["reference"]) for run in runs if "failed" not in run]


def _of(runs: Rows, method: str) -> Rows:
    return [run for run in runs if run["method"] == method]


def _median_and_worst(values: Sequence[float], digits: str) -> str:
    return f"{np.median(values):.{digits}} ({np.max(values):.{digits}})" if values else ""


def summary(rows: Rows) -> str:
    """Each case that must succeed: the largest difference by each method, over seeds."""

    def difference(method: str, digits: str = "2g") -> Callable[[Rows], str]:
        def show(runs: Rows) -> str:
            runs = _of(runs, method)
            away = [d.difference for d in _distances(runs)]
            failed = len(runs) - len(away)
            text = [f"{failed} of {len(runs)} failed"] if failed else []
            return ", ".join(filter(None, [_median_and_worst(away, digits), *text])) or "-"

        return show

    def corrected(name: str) -> Callable[[Rows], list[float]]:
        return lambda runs: [r[name] for r in _of(runs, "corrected") if name in r] or [np.nan]

    def ratios(runs: Rows) -> str:
        pairs = [d.ratios for d in _distances(_of(runs, "corrected"))]
        return f"{np.min(pairs, initial=np.inf):.2f} - {np.max(pairs, initial=0):.2f}"

    def seconds(runs: Rows) -> str:
        took = corrected("seconds")(runs)
        return f"{min(took):.0f} ({max(took):.0f})"

    columns: Columns = {
        "case": lambda runs: runs[0]["case"],
        "shards": lambda runs: str(runs[0]["shards"]),
        "corrected: difference (worst)": difference("corrected", "3g"),
        "sd ratios": ratios,
        "k-hat": lambda runs: f"{max(corrected('correction_k_hat')(runs)):.2f}",
        "s (with compiling)": seconds,
        "full NUTS, s": lambda runs: _full_nuts(corrected("correction_ess")(runs), runs[0]),
        "laplace": difference("laplace"),
        "anchored": difference("anchored"),
        "one-shot": difference("one-shot"),
        "NumPyro": difference("numpyro"),
    }
    groups = groupby(rows, lambda row: (row["case"], row["shards"]))
    return markdown(columns, [list(runs) for _, runs in groups])


def _full_nuts(ess: Sequence[float], run: Mapping[str, Any]) -> str:
    """CPU seconds of one warmed-up chain of NUTS on all rows to as many effective draws."""
    reference = run["reference"]
    if "cpu_seconds" not in reference:
        return "-"
    took, effective = reference["cpu_seconds"], min(float(np.median(ess)), EFFECTIVE)
    begun = took["compile"] + took["warmup"] / reference["chains"]
    return f"{begun + effective / reference['least_ess'] * took['sampling']:.0f}"


def coverage(rows: Rows) -> str:
    """How often twice the estimated error, with the reference's, covered the true one."""
    kinds = {"all": rows, "called good": [row for row in rows if row["good"]]}
    kinds |= {method: _of(rows, method) for method in sorted({row["method"] for row in rows})}
    covered = [(kind, [d.covered for d in _distances(some)]) for kind, some in kinds.items()]
    columns: Columns = {
        "runs": lambda pair: pair[0],
        "difference covered": lambda pair: f"{sum(pair[1])} of {len(pair[1])}",
    }
    return markdown(columns, covered)


def failures(rows: Rows) -> str:
    """Each case built to fail, by the package's defaults."""

    def flagged(runs: Rows) -> Rows:
        return [run for run in runs if not run.get("good", False)]

    def off(runs: Rows) -> str:
        away = [d.difference for d in _distances(runs)] if runs[0]["reference"] else []
        return _median_and_worst(away, "2g") or "no reference"

    def reason(runs: Rows) -> str:
        run = (flagged(runs) or runs)[0]
        verdict = run.get("verdict", "")
        why = verdict.partition("Why: ")[2] or verdict.partition("or more. ")[2] or verdict
        return (run.get("failed") or why).partition(". See ")[0].split("; ")[0][:160]

    columns: Columns = {
        "case": lambda runs: runs[0]["case"],
        "built to fail by": lambda runs: CASES[runs[0]["case"]].fails,
        "flagged": lambda runs: f"{len(flagged(runs))} of {len(runs)}",
        "largest difference, sds": off,
        "first reason": reason,
    }
    return markdown(columns, [list(runs) for _, runs in groupby(rows, lambda row: row["case"])])
