"""Whether a sample of shards says how far it is from all of them.

Each case is fitted on all shards once. Of its points every shard's remainder is then known, so that
what any sample would have said is a sum: as many samples are drawn as wanted, grown as a fit grows
them, and their differences from all shards are held against twice what they say of themselves.
Cases are regular ones and those built to be misjudged (``cases/uneven.py``).

    python -m benchmarks.sampling                          # 1 million rows in 100 shards
    python -m benchmarks.sampling --case rare-level --rows 300000 --again
    python -m benchmarks.sampling --table
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np

from .cases.uneven import UNEVEN, frame_of
from .measure.internals import Sampled
from .measure.script import Store, parse
from .tables import cost

TOY = {"rows": 4_000, "shards": 20, "samples": 5, "case": ["binary"]}


def measure(name: str, rows: int, n_shards: int, samples: int, seed: int) -> dict[str, Any]:
    """Fit a case on all shards, and draw samples of them."""
    case = UNEVEN[name]
    frame = frame_of(case, rows, seed, n_shards if case.divided else 4)
    lazy = frame.consensus.fit(
        case.model, by="group", n_shards=n_shards, seed=seed, progress=False, compute=False
    )
    sampled = Sampled(lazy)
    drawn = [sampled.sample(number) for number in range(samples)]
    some = [one for one in drawn if one is not None]
    away = np.array([one.away for one in some])
    error = np.array([one.error for one in some])
    return {
        "shards": sampled.n_shards,
        "good": sampled.good,
        "verdict": sampled.verdict,
        "all": len(drawn) - len(some),
        "certain": [one.certain for one in some],
        "asked": [one.asked for one in some],
        "covered": float(np.mean(np.abs(away) <= 2 * error)) if some else None,
        "worst": float(np.abs(away).max()) if some else None,
        "largest_error": float(error.max()) if some else None,
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", nargs="*", choices=list(UNEVEN))
    parser.add_argument("--rows", type=int, default=10**6)
    parser.add_argument("--shards", type=int, default=100)
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    args = parse(parser, argv, TOY)
    store = Store(args, "sampling")
    for name in () if args.table else args.case or UNEVEN:
        key = {"case": name, "rows": args.rows, "wanted": args.shards, "seed": args.seed}
        store.measure(key, measure, name, args.rows, args.shards, args.samples, args.seed)
    print(*cost.sampling(store.rows()), sep="\n")


if __name__ == "__main__":
    main()
