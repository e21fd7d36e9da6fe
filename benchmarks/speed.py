"""Speed beside NumPyro's own ways: full-data NUTS, a loop over shards, HMC on subsamples.

- ``full``: a fit with the package's defaults beside NUTS on all rows, on a random intercept and
  slope with 10 rows a group and on a logistic regression without groups. Compared is the smallest
  effective sample size of the shared parameters, unconstrained, per second of wall time. NUTS
  begins at the values the data were drawn from, runs two chains on the same cores until it has
  2,000 effective draws or ``--cap`` seconds are over, in the form (centring of effects,
  layout of predictors) and arrangement of chains that were the fastest on 50,000 rows.
- ``loop``: one-shot consensus of unequal shards at equal draws, beside ``MCMC.run`` for each
  shard in a Python loop and NumPyro's ``consensus``; and what compiling once, scanning the kernel
  and sampling two shards at a time contribute, each switched off. Both sides sample the
  package's shards, so that the subposteriors are the same ones; cutting them counts towards our
  time alone.
- ``hmcecs``: a fit with the defaults beside ``HMCECS`` with a second-order Taylor proxy, for
  several sizes of its subsample, on the logistic regression.

Every measurement runs in a process of its own, compilation included, from data in memory, and is
appended to a JSON file with what it ran on; what is in the file is not run again. Figures to
quote are ratios of one run on one machine. Data have fixed seeds; ``--seed`` is the samplers'.

    python benchmarks/speed.py full --size 50000          # three sizes if none is given
    python benchmarks/speed.py loop hmcecs
    python benchmarks/speed.py --table                    # print what there is
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import machine
import numpy as np
import reference
from cases import CASES
from machine import in_own_process, load, save
from rivals import (
    ARRANGEMENTS,
    CHAINS,
    DEFAULTS,
    EACH_ITS_OWN,
    FORMS,
    HAND,
    HAND_ONCE,
    IN_TURN,
    LOOP,
    OURS,
    WARMUP,
    WHITENED,
    How,
    Loop,
    Row,
    Stop,
    full,
    hmcecs,
    ours,
)

OUT = Path(__file__).parent / "results" / "speed.json"
SIZES = {"full": (50_000, 200_000, 1_000_000), "loop": (100_000,), "hmcecs": (400_000,)}
TUNED_ON = 50_000  # rows on which the full fit's form and arrangement are chosen
TUNING_DRAWS = 300
EQUAL = 2_000  # effective draws at which times are compared


# Measurements


class Run:
    """Measures what is not in the file yet, and puts it there."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self._made: list[Mapping[str, Any]] = []

    def __call__(
        self, key: Mapping[str, Any], function: Callable[..., Row], *arguments: Any
    ) -> Row:
        """Return a measurement from the file, or else make it in a process of its own."""
        rows = load(self.args.out)
        there = [row for row in rows if same(row, key)]
        if there and (key in self._made or not self.args.again):
            return there[0]
        found = in_own_process(function, *arguments)
        row = {**key, **found, "machine": machine.facts()}
        save(self.args.out, [*(row for row in rows if not same(row, key)), row])
        self._made.append(key)
        print(brief(row), flush=True)
        return row


def same(row: Mapping[str, Any], key: Mapping[str, Any]) -> bool:
    """Whether a row is the measurement of this key."""
    return all(row.get(name) == value for name, value in key.items())


def brief(row: Mapping[str, Any]) -> str:
    """One line on a measurement, as it comes."""
    text = f"{row['part']}, {row.get('case', 'slopes')}, {row['rows']:,} rows, {row['who']}: "
    text += f"{row['seconds']:.1f} s ({row['compile_seconds']:.1f} s compiling)"
    if "ess" in row:
        text += f", ess {row['ess']:,.0f}"
    if "iterations" in row:
        text += f", {row['iterations']} iterations"
    if np.isfinite(row.get("steps", np.nan)):
        text += f", {row['steps']:.1f} steps each"
    if "good" in row:
        text += ", called good" if row["good"] else f", flagged: {row['verdict']}"
    return text


def run_full(run: Run, rows: int) -> None:
    """Both models at one size."""
    args = run.args
    for name in args.case:
        run(key_of("full", name, rows, args.seed, OURS), ours, name, rows, args.seed)
        how = tuned(run, name, min(rows, TUNED_ON))
        stop = Stop(EQUAL, np.inf, args.cap)
        who = "NUTS, x64" if args.x64 else "NUTS"
        run(key_of("full", name, rows, args.seed, who), full, name, rows, args.seed, how, stop)


def tuned(run: Run, name: str, rows: int) -> How:
    """The full fit's fastest form, then its fastest arrangement of chains."""
    x64 = run.args.x64
    tried: dict[How, float] = {}

    def best() -> How:
        return min(tried, key=lambda how: tried[how])

    def attempt(how: How) -> None:
        if how not in tried:
            key = key_of("tuning", name, rows, run.args.seed, ", ".join(map(str, how)))
            stop = Stop(np.inf, TUNING_DRAWS, run.args.cap)
            tried[how] = seconds_to(run(key, full, name, rows, run.args.seed, how, stop), 1_000)

    for form in FORMS[name]:
        attempt(How(form, "threads", x64))
    form = best().form
    for arrangement in ARRANGEMENTS:
        attempt(How(form, arrangement, x64))
    return best()


def run_loop(run: Run, rows: int) -> None:
    """All ways to run the loop."""
    args = run.args
    loop = Loop(rows, args.shards, args.warmup, args.samples)
    for name, function in LOOP.items():
        key = key_of("loop", "slopes", rows, args.seed, name) | loop._asdict()
        run(key, function, loop, args.seed, name)


def run_hmcecs(run: Run, rows: int) -> None:
    """HMCECS with several sizes of its subsample, and ours."""
    args = run.args
    key = key_of("hmcecs", "logistic", rows, args.seed, OURS)
    run(key, ours, "logistic", rows, args.seed)
    stop = Stop(EQUAL, np.inf, args.cap)
    for size in args.subsample:
        who = f"HMCECS, {size:,} rows in {args.blocks} blocks"
        key = key_of("hmcecs", "logistic", rows, args.seed, who)
        run(key, hmcecs, rows, args.seed, size, args.blocks, stop)


def key_of(part: str, case: str, rows: int, seed: int, who: str) -> Row:
    """What names a measurement."""
    return {"part": part, "case": case, "rows": rows, "seed": seed, "who": who}


PARTS: dict[str, Callable[[Run, int], None]] = {
    "full": run_full,
    "loop": run_loop,
    "hmcecs": run_hmcecs,
}


# Tables


def rate(row: Mapping[str, Any]) -> float:
    """Effective draws a second of the whole run."""
    return row.get("ess", 0.0) / row["seconds"]


def warm_rate(row: Mapping[str, Any]) -> float:
    """Effective draws a second after warm-up."""
    if "warm_seconds" not in row:
        return 0.0
    return row["ess"] / max(row["seconds"] - row["warm_seconds"], 1e-9)


def seconds_to(row: Mapping[str, Any], ess: float) -> float:
    """Seconds the run would take to so many effective draws, infinite if it has none."""
    if not warm_rate(row):
        return np.inf
    return row["warm_seconds"] + ess / warm_rate(row)


def print_tables(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print what the README quotes."""

    def order(row: Mapping[str, Any]) -> tuple[Any, ...]:
        return (
            [*PARTS, "tuning"].index(row["part"]),
            row["case"],
            row["rows"],
            row["seed"],
            *((row[name] for name in Loop._fields) if row["part"] == "loop" else ()),
        )

    groups = [list(group) for _, group in groupby(sorted(rows, key=order), order)]
    for part, lines in TABLES.items():
        found = [group for group in groups if group[0]["part"] == part]
        for line in lines(found) if found else ():
            print(line)
    for line in about({json.dumps(facts(row)): facts(row) for row in rows}.values()):
        print(line)


def facts(row: Mapping[str, Any]) -> Row:
    """What must be equal for two measurements to be compared."""
    return {key: row["machine"][key] for key in ("cores", "processor", "commit", "versions")}


def about(machines: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Say where the figures come from."""
    for one in machines:
        libraries = ", ".join(f"{name} {number}" for name, number in one["versions"].items())
        where = f"{one['cores']} cores of {one['processor']}"
        yield f"Measured on {where}; {libraries}; at {one['commit']}."
    if len(machines) > 1:
        yield "These are NOT of one run on one machine: do not quote ratios across them."


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Lines of a Markdown table."""
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    yield from ("| " + " | ".join(cells) + " |" for cells in rows)
    yield ""


def timing(row: Mapping[str, Any]) -> str:
    return f"{row['seconds']:,.0f} ({row['compile_seconds']:,.0f})"


def times(ratio: float) -> str:
    """How many times as fast."""
    return f"{ratio:,.2g}" if ratio < 10 else f"{ratio:,.0f}"


def full_table(groups: Sequence[Sequence[Mapping[str, Any]]]) -> Iterator[str]:
    """Ours beside NUTS on all rows."""
    cells, notes, profiles = [], [], []
    for group in groups:
        own = [row for row in group if row["who"] == OURS]
        others = [row for row in group if row["who"] != OURS]
        if own and others:
            cells.append(full_cells(own[0], max(others, key=rate)))
            notes += [note for row in others for note in full_notes(own[0], row)]
        profiles += [profile(row) for row in own if row.get("profile")]
    yield "Smallest effective sample size of the shared parameters per second of wall time:"
    yield ""
    yield from table(
        (
            "model", "rows", "NUTS: s (compiling)", "ess", "ess/s", "ess/s after warm-up",
            "ours: s (compiling)", "shards", "ess", "ess/s", "ours / NUTS",
            f"at {EQUAL:,} effective draws", "largest difference, sds", "sd ratios", "verdict",
        ),
        cells,
    )  # fmt: skip
    yield from (f"- {note}" for note in [*notes, *profiles])
    yield ""


def full_cells(own: Mapping[str, Any], other: Mapping[str, Any]) -> Sequence[str]:
    """One row of the table."""
    ratio = times(rate(own) / rate(other)) if rate(other) else "-"
    equal = "-"
    if own.get("ess", 0.0) >= EQUAL:
        # What has no draws yet needs longer than it had.
        there = seconds_to(other, EQUAL) if other["draws"] else other["seconds"]
        equal = "> " * (not other["draws"]) + times(there / own["seconds"])
    return (
        own["case"],
        f"{own['rows']:,}",
        timing(other) + " capped" * other["capped"],
        f"{other['ess']:,.0f}" if other["draws"] else f"warm-up, {other['iterations']} done",
        f"{rate(other):.3g}",
        f"{warm_rate(other):.3g}",
        timing(own),
        str(own["n_shards"]),
        f"{own.get('ess', 0.0):,.0f}",
        f"{rate(own):.3g}",
        ratio,
        equal,
        *agreement(own, other.get("unconstrained")),
        "good" if own["good"] else "not good",
    )


def agreement(one: Mapping[str, Any], known: Mapping[str, Any] | None) -> tuple[str, str]:
    """Largest difference of means in posterior sds, with its own error, and ratios of sds."""
    if not known or "unconstrained" not in one:
        return "-", "-"
    found = one["unconstrained"]
    away = {n: abs(found[n]["mean"] - row["mean"]) / row["sd"] for n, row in known.items()}
    worst = max(away, key=lambda name: away[name])
    error = known[worst]["mcse"] / known[worst]["sd"]
    # Errors of both sides: ours is the verdict's estimate, HMCECS's that of its draws.
    mine = one["error"][worst] if "error" in one else found[worst]["mcse"] / known[worst]["sd"]
    error = float(np.hypot(error, mine or 0.0))
    ratios = [found[n]["sd"] / row["sd"] for n, row in known.items()]
    return f"{away[worst]:.3f} (± {error:.3f})", f"{min(ratios):.2f} - {max(ratios):.2f}"


def full_notes(own: Mapping[str, Any], other: Mapping[str, Any]) -> Iterator[str]:
    """How the full fit was made, and what is extrapolated."""
    head = f"{own['case']}, {own['rows']:,} rows, {other['who']}: "
    yield (
        head
        + f"{other['form']}, chains {other['arrangement']}, "
        + (
            f"r_hat {other['r_hat']:.3f}, {other['steps']:.0f} steps a transition, "
            f"{other['divergences']} divergences, {other['draws']:,} draws of {CHAINS} chains"
            if other["draws"]
            else f"still in warm-up after {other['iterations']} of {WARMUP} iterations"
        )
    )
    if other["draws"]:
        how = "extrapolated" if other["ess"] < EQUAL else "about"
        yield head + f"{EQUAL:,} effective draws in {seconds_to(other, EQUAL):,.0f} s ({how})"
    else:
        pace = other["seconds"] * WARMUP / max(other["iterations"], 1)
        yield head + f"warm-up alone would end at {pace:,.0f} s at this pace (extrapolated)"


def profile(row: Mapping[str, Any]) -> str:
    """Where the time of a fit went."""
    parts = ", ".join(f"{phase} {seconds:.1f}" for phase, seconds in row["profile"].items())
    return f"{row['case']}, {row['rows']:,} rows, ours, seconds: {parts}"


def tuning_table(groups: Sequence[Sequence[Mapping[str, Any]]]) -> Iterator[str]:
    """How the full fit was chosen."""
    yield "NUTS on all rows, by form of the model, arrangement of its two chains, precision:"
    yield ""
    cells = [
        (
            row["case"],
            f"{row['rows']:,}",
            row["form"],
            row["arrangement"] + ", x64" * row["x64"],
            f"{row.get('warm_seconds', np.nan):.0f}",
            f"{warm_rate(row):.3g}",
            f"{seconds_to(row, 1_000):,.0f}",
        )
        for group in groups
        for row in sorted(group, key=lambda row: seconds_to(row, 1_000))
    ]
    head = ("model", "rows", "form", "chains", "s to the end of warm-up", "then ess/s")
    yield from table((*head, "s to 1,000 effective draws"), cells)


def loop_table(groups: Sequence[Sequence[Mapping[str, Any]]]) -> Iterator[str]:
    """The loop, and what each of our measures contributes."""
    for group in groups:
        found = {row["who"]: row for row in group}
        first = group[0]
        yield (
            f"One round on {first['n_shards']} shards of {first['rows']:,} rows in all, "
            f"{first['num_warmup']} + {first['num_samples']} transitions on each:"
        )
        yield ""
        base = found.get(HAND)
        cells = [
            (
                name,
                timing(row),
                times(base["seconds"] / row["seconds"]) if base else "-",
                f"{row['steps']:.1f}" if np.isfinite(row["steps"]) else "-",
            )
            for name, row in sorted(found.items(), key=lambda item: list(LOOP).index(item[0]))
        ]
        yield from table(("", "s (compiling)", "times as fast", "steps a transition"), cells)
        yield from (f"- {line}" for line in contributions(found))
        yield ""


def contributions(found: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """What each measure does, all else equal."""
    pairs = {
        "compiling once, MCMC.run": (HAND, HAND_ONCE),
        "compiling once, a scan over the kernel": (EACH_ITS_OWN, IN_TURN),
        "a scan over the kernel instead of MCMC.run": (HAND_ONCE, IN_TURN),
        "two shards at a time": (IN_TURN, OURS),
    }
    for what, (without, with_) in pairs.items():
        if without in found and with_ in found:
            ratio = found[without]["seconds"] / found[with_]["seconds"]
            yield f"{what}: {times(ratio)} times as fast"
    if WHITENED in found and OURS in found:
        one, other = found[OURS], found[WHITENED]
        yield (
            f"whitening, in an anchored round, which starts warm: {other['steps']:.1f} steps a "
            f"transition instead of {one['steps']:.1f}, {times(one['seconds'] / other['seconds'])} "
            "times as fast with the search for its anchor"
        )
    if HAND in found and OURS in found:
        one, other = found[OURS]["constrained"], found[HAND]["constrained"]
        away = max(abs(one[n]["mean"] - row["mean"]) / row["sd"] for n, row in other.items())
        yield (
            f"{found[HAND]['shapes']} different shapes of shards; the loop's consensus of "
            f"constrained draws and ours differ by up to {away:.2f} posterior sds"
        )
        if DEFAULTS in found:
            best = found[DEFAULTS]["constrained"]
            off = [
                max(abs(some[n]["mean"] - best[n]["mean"]) / best[n]["sd"] for n in other)
                for some in (other, one)
            ]
            verdict = "good" if found[DEFAULTS]["good"] else "not good"
            yield (
                f"from the corrected answer (verdict: {verdict}) the loop's is {off[0]:.2f} "
                f"posterior sds off, our one-shot {off[1]:.2f}"
            )


def hmcecs_table(groups: Sequence[Sequence[Mapping[str, Any]]]) -> Iterator[str]:
    """Ours beside HMCECS."""
    for group in groups:
        own = next((row for row in group if row["who"] == OURS), None)
        known = reference.read(CASES["logistic-plain"])
        at_hand = known if known and known["rows"] == group[0]["rows"] else None
        against = at_hand["unconstrained"] if at_hand else None
        yield f"Logistic regression, {group[0]['rows']:,} rows, 20 predictors, against " + (
            "a long NUTS on all rows:" if at_hand else "nothing, there is no reference:"
        )
        yield ""
        cells = [
            (
                row["who"],
                timing(row) + " capped" * row.get("capped", False),
                f"{row.get('ess', 0.0):,.0f}",
                f"{rate(row):.3g}",
                f"{warm_rate(row):.3g}" if row is not own else "-",
                times(rate(own) / rate(row)) if own and rate(row) else "-",
                *agreement(row, against),
                f"{row['r_hat']:.3f}" if "r_hat" in row else "-",
                f"{row['subsamples_accepted']:.2f}" if "subsamples_accepted" in row else "-",
            )
            for row in sorted(group, key=rate, reverse=True)
        ]
        head = ("", "s (compiling)", "ess", "ess/s", "ess/s after warm-up", "ours is times as fast")
        head += ("largest difference, sds", "sd ratios", "r_hat", "subsamples accepted")
        yield from table(head, cells)


TABLES: dict[str, Callable[..., Iterator[str]]] = {
    "full": full_table,
    "tuning": tuning_table,
    "loop": loop_table,
    "hmcecs": hmcecs_table,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", nargs="*", help=f"of {', '.join(PARTS)}; default all")
    parser.add_argument("--size", nargs="*", type=int, help="rows; default by part")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", nargs="*", choices=list(FORMS), default=list(FORMS))
    parser.add_argument("--cap", type=float, default=600, help="seconds for one run of NUTS")
    parser.add_argument("--x64", action="store_true", help="NUTS on all rows in double precision")
    parser.add_argument("--shards", type=int, default=40, help="of the loop")
    parser.add_argument("--warmup", type=int, default=500, help="transitions of the loop")
    parser.add_argument("--samples", type=int, default=500, help="draws of the loop")
    parser.add_argument("--subsample", nargs="*", type=int, default=[500, 1_000, 2_000, 4_000])
    parser.add_argument("--blocks", type=int, default=20, help="of HMCECS's subsample")
    parser.add_argument("--out", type=Path, default=OUT, help="JSON, default %(default)s")
    parser.add_argument("--again", action="store_true", help="run what is in the file, too")
    parser.add_argument("--table", action="store_true", help="only print what is in the file")
    args = parser.parse_args()
    if unknown := set(args.part) - set(PARTS):
        parser.error(f"no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    run = Run(args)
    for part in () if args.table else args.part or PARTS:
        for rows in args.size or SIZES[part]:
            PARTS[part](run, rows)
    print_tables(load(args.out))


if __name__ == "__main__":
    main()
