"""Speed beside NumPyro's own ways: full-data NUTS, a loop over shards, HMC on subsamples.

- ``full``: a fit with the package's defaults beside NUTS on all rows, on a random intercept and
  slope with 10 rows a group and on a logistic regression without groups: effective draws of the
  worst shared parameter, unconstrained, a second. NUTS begins at the values the data were drawn
  from; it ends at ``--ess`` effective draws or ``--cap`` seconds.
- ``loop``: one-shot consensus of unequal shards, beside ``MCMC.run`` for each shard in a loop.
- ``hmcecs``: a fit with the defaults beside ``HMCECS``, on the logistic regression.
- ``svi``: a fit with the defaults beside NumPyro's automatic guides, held against NUTS of ``full``.

Every measurement runs in a process of its own, compilation included, from data in memory. Figures
to quote are ratios of one run on one machine. Data have fixed seeds; ``--seed`` is the samplers'.

    python -m benchmarks.speed full --size 50000          # three sizes if none is given
    python -m benchmarks.speed loop hmcecs svi
    python -m benchmarks.speed --table                    # print what there is
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

from .cases import read_reference
from .measure import hmcecs, loop, svi
from .measure.chains import Sampling, full
from .measure.fits import by_default
from .measure.loop import OURS
from .measure.script import Store, parse
from .tables.speed import tables

SIZES = {
    "full": (50_000, 200_000, 1_000_000), "loop": (100_000,), "hmcecs": (400_000,),
    "svi": (50_000,),
}  # fmt: skip
TOY = {
    "size": [400], "case": ["slopes"], "ess": 20, "cap": 60, "chains": 1, "full_warmup": 50,
    "ways": (loop.HAND_ONCE, loop.OURS), "shards": 2, "warmup": 100, "samples": 100,
    "subsample": [50], "blocks": 5, "steps": 100, "guides": svi.GUIDES[:1],
}  # fmt: skip


def run_full(store: Store, args: argparse.Namespace, rows: int) -> None:
    """Both models at one size."""
    sampling = Sampling(args.chains, args.full_warmup, 10, args.ess, args.cap, args.seed)
    for case in args.case:
        key = {"part": "full", "case": case, "rows": rows, "seed": args.seed}
        store.measure(key | {"who": OURS}, by_default, case, rows, args.seed)
        store.measure(key | {"who": "NUTS"}, full, sampling, case, rows, args.toy)


def run_loop(store: Store, args: argparse.Namespace, rows: int) -> None:
    """All ways to run the loop."""
    setting = loop.Loop(rows, args.shards, args.warmup, args.samples)
    for way in args.ways:
        key = {"part": "loop", "case": "slopes", **setting._asdict(), "seed": args.seed}
        store.measure(key | {"who": way}, loop.measure, setting, args.seed, way)


def run_hmcecs(store: Store, args: argparse.Namespace, rows: int) -> None:
    """HMCECS with several sizes of its subsample, and ours."""
    key = {"part": "hmcecs", "case": "logistic", "rows": rows, "seed": args.seed}
    store.measure(key | {"who": OURS}, by_default, "logistic", rows, args.seed)
    warmup, piece = args.full_warmup, 5 * args.full_warmup // 2
    sampling = Sampling(args.chains, warmup, piece, args.ess, args.cap, args.seed)
    for size in args.subsample:
        who = {"who": f"HMCECS, {size:,} rows in {args.blocks} blocks"}
        store.measure(key | who, hmcecs.measure, sampling, rows, size, args.blocks, args.toy)


def run_svi(store: Store, args: argparse.Namespace, rows: int) -> None:
    """All guides on both models, but for a matrix of as many rows and columns as effects."""
    for case in args.case:
        key = {"part": "svi", "case": case, "rows": rows, "seed": args.seed}
        store.measure(key | {"who": OURS}, by_default, case, rows, args.seed)
        for guide in args.guides:
            if case == "slopes" and guide == "AutoMultivariateNormal":
                continue
            who = {"who": f"SVI, {guide}", "steps": args.steps}
            store.measure(key | who, svi.measure, case, rows, guide, args.steps, args.seed)


PARTS: dict[str, Callable[[Store, argparse.Namespace, int], None]] = {
    "full": run_full,
    "loop": run_loop,
    "hmcecs": run_hmcecs,
    "svi": run_svi,
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", nargs="*", help=f"of {', '.join(PARTS)}; default all")
    parser.add_argument("--size", nargs="*", type=int, help="rows; default by part")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", nargs="*", default=["slopes", "logistic"], help="of full")
    parser.add_argument("--ess", type=float, default=2_000, help="effective draws to stop at")
    parser.add_argument("--cap", type=float, default=600, help="seconds for one run of NUTS")
    parser.add_argument("--chains", type=int, default=2, help="of NUTS on all rows, of HMCECS")
    parser.add_argument("--full-warmup", type=int, default=400, help="transitions, full and hmcecs")
    parser.add_argument(
        "--ways", nargs="*", choices=loop.WAYS, default=loop.WAYS, help="of the loop"
    )
    parser.add_argument("--shards", type=int, default=40, help="of the loop")
    parser.add_argument("--warmup", type=int, default=500, help="transitions of the loop")
    parser.add_argument("--samples", type=int, default=500, help="draws of the loop")
    parser.add_argument("--subsample", nargs="*", type=int, default=[500, 1_000, 2_000, 4_000])
    parser.add_argument("--blocks", type=int, default=20, help="of HMCECS's subsample")
    parser.add_argument("--guides", nargs="*", choices=svi.GUIDES, default=svi.GUIDES)
    parser.add_argument("--steps", type=int, default=10_000, help="of SVI")
    args = parse(parser, argv, TOY)
    if unknown := set(args.part) - set(PARTS):
        parser.error(f"no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    store = Store(args, "speed")
    for part in () if args.table else args.part or PARTS:
        for rows in args.size or SIZES[part]:
            PARTS[part](store, args, rows)
    references = {"logistic-plain": read_reference("logistic-plain")}
    print(*tables(store.rows(), references), sep="\n")


if __name__ == "__main__":
    main()
