"""Rows that arrive: ten updates in a row beside fits of all rows, and the work of one.

- ``agreement``: largest difference of a mean and of a log sd between ten updates in a row and a fit
  of all rows, in posterior sds, over what both state.
- ``work``: CPU seconds of a fit, and of an update by a share of its rows; the second of two, so
  that nothing is compiled. Of a fit that takes more than a minute the first is counted.

    python -m benchmarks.updates agreement work
    python -m benchmarks.updates work --case slopes --rows 100_000 1_000_000 10_000_000
    python -m benchmarks.updates --table
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from .cases.sized import GROWING, ROWS_A_GROUP
from .measure.fits import in_memory, n_shards_of, quietly
from .measure.script import Store, parse
from .tables import updates as tables

PARTS = ("agreement", "work")
UPDATES = 10
_LONG = 60.0  # CPU seconds
TOY = {"case": ["binary"], "size": 1_000, "share": [0.05], "rows": [2_000], "refits": [10]}


def agreement(case: str, size: int, share: float, refits: Sequence[int]) -> dict[str, Any]:
    """Update ten times by a share of the rows there are, and fit all of them after some."""
    groups = size // ROWS_A_GROUP
    sizes = [groups]
    for _ in range(UPDATES):
        sizes.append(max(1, round(share * sum(sizes))))
    ends = np.cumsum(sizes)
    model, frame = _case(case, int(ends[-1]))
    tree = _fit(model, frame[frame["group"] < ends[0]])
    after = []
    for number, (begin, end) in enumerate(pairwise(ends), 1):
        new = in_memory(frame[frame["group"].between(begin, end - 1)], 2)
        tree = quietly(new.consensus.fit(model, update=tree, compute=False, progress=False))
        if number in refits:
            reference = _fit(model, frame[frame["group"] < end])
            after.append({"update": number} | _compared(tree, reference))
    return {"after": after}


def _case(name: str, groups: int) -> tuple[Callable[..., Any], pd.DataFrame]:
    model, simulate, _ = GROWING[name]
    return model, simulate(np.random.default_rng(0), np.full(groups, ROWS_A_GROUP))[0]


def _fit(model: Callable[..., Any], frame: pd.DataFrame) -> xr.DataTree:
    n, rows = n_shards_of(len(frame)), in_memory(frame, 4)
    lazy = rows.consensus.fit(model, by="group", n_shards=n, compute=False, progress=False)
    return quietly(lazy)


def _compared(tree: xr.DataTree, reference: xr.DataTree) -> dict[str, Any]:
    """Set an update beside a fit of the same rows."""
    if "correction" not in tree.children:  # an update before was too large for the points
        nothing = dict.fromkeys(("off", "stated", "in_errors", "log_sd", "k_hat"), np.nan)
        good = bool(tree.attrs["verdict_good"]), bool(reference.attrs["verdict_good"])
        rows = {"rows": int(tree.attrs["n_rows"])}
        return rows | nothing | {"good": good[0], "good_of_all": good[1]}
    here, there = tree["correction"], reference["correction"]
    off = np.abs((here["mean"] - there["mean"]) / there["sd"]).to_numpy()
    stated = np.hypot(_accuracy(tree), _accuracy(reference))
    log_sd = np.abs(np.log(here["sd"] / there["sd"])).to_numpy()
    return {
        "rows": int(tree.attrs["n_rows"]),
        "off": float(off.max()),
        "stated": float(_accuracy(tree).max()),
        "in_errors": float((off / stated).max()),
        "log_sd": float(log_sd.max()),
        "k_hat": float(here["k_hat"]),
        "stand_in": float(here["sampling_error"].max()),
        "good": bool(tree.attrs["verdict_good"]),
        "good_of_all": bool(reference.attrs["verdict_good"]),
    }


def _accuracy(tree: xr.DataTree) -> np.ndarray:
    sizes = json.loads(tree.attrs["accuracy"]).values()
    return np.array([np.inf if size is None else size for size in sizes])


def work(case: str, rows: int, share: float) -> dict[str, Any]:
    """Fit and update, each twice: CPU seconds of the second, in which nothing is compiled.

    A fit of more than a minute is not made again for what it compiles.
    """
    groups = rows // ROWS_A_GROUP
    new = max(1, round(share * groups))
    model, frame = _case(case, groups + 2 * new)
    ends = [0, groups, groups + new, groups + 2 * new]
    old, *later = (in_memory(frame[frame["group"].between(a, b - 1)], 4) for a, b in pairwise(ends))
    seconds: dict[str, float] = {}
    lazy = old.consensus.fit(model, by="group", compute=False, progress=False)
    for _ in range(2):
        tree, seconds["fit"] = _timed(lazy)
        if seconds["fit"] > _LONG:
            break
    for part in later:
        lazy = part.consensus.fit(model, update=tree, compute=False, progress=False)
        tree, seconds["update"] = _timed(lazy)
    profile = json.loads(tree.attrs["profile"])
    good = bool(tree.attrs["verdict_good"])
    return {"seconds": seconds, "new": new * ROWS_A_GROUP, "good": good, "profile": profile}


def _timed(lazy: Any) -> tuple[xr.DataTree, float]:
    began = time.process_time()
    tree = quietly(lazy)
    return tree, time.process_time() - began


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", default=list(PARTS), help=f"of {', '.join(PARTS)}")
    parser.add_argument("--case", nargs="+", default=["slopes", "binary"])
    parser.add_argument("--size", type=int, default=20_000, help="rows of the first fit")
    parser.add_argument("--share", type=float, nargs="+", default=[0.01, 0.1, 0.5])
    parser.add_argument("--refits", type=int, nargs="+", default=[1, 5, 10])
    parser.add_argument(
        "--rows", type=int, nargs="+", default=[1_000_000], help="of the fits whose work counts"
    )
    args = parse(parser, argv, TOY)
    store = Store(args, "updates")
    for part in () if args.table else args.parts:
        for case in args.case:
            if part == "work":
                for rows in args.rows:
                    key = {"part": part, "case": case, "rows": rows, "share": 0.01}
                    store.measure(key, work, case, rows, 0.01)
                continue
            for share in args.share:
                key = {"part": part, "case": case, "size": args.size, "share": share}
                store.measure(key, agreement, case, args.size, share, args.refits)
    print(*tables.tables(store.rows()), sep="\n")


if __name__ == "__main__":
    main()
