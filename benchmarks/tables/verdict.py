"""What verdicts were worth: fits judged against references, by trial, and how estimates do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..cases.drawn import number_of
from ..cases.hostile import Trial
from . import Columns, markdown

LEAST, TIMES = 0.1, 3.0  # the bar: posterior sds, and times the fit's own estimate
# A reference with fewer effective draws, or chains that disagree, is none.
LEAST_ESS, MOST_R_HAT = 400, 1.02
Rows = Sequence[Mapping[str, Any]]


class Off(NamedTuple):
    """The coordinate that is furthest from its reference, beyond what is known of that."""

    size: float
    where: str
    estimate: float  # the fit's own
    wrong: bool  # further than the bar, there or elsewhere


class Judged(NamedTuple):
    """A fit and what became of it."""

    row: Mapping[str, Any]
    outcome: str  # one of OUTCOMES
    mean: Off | None
    sd: Off | None

    @property
    def name(self) -> str:
        return self.row["case"]

    @property
    def first(self) -> str:
        """Code of the first reason against it."""
        if "failed" in self.row:
            return self.row["code"]
        return self.row["reasons"][0][0] if self.row["reasons"] else ""


OUTCOMES = {
    "good": "good, and right",
    "wrong": "good, and wrong",
    "wrong sd": "good, its sds wrong",
    "too strict": "refused, though right",
    "refused": "refused, for a true reason",
    "false reason": "refused, for another reason",
    "unknown": "no reference",
}


def judged(row: Mapping[str, Any], reference: Mapping[str, Any] | None, trial: Trial) -> Judged:
    """Hold one fit against the posterior of its rows."""
    if "failed" in row:
        true = row["code"] in trial.truths
        return Judged(row, "refused" if true else "false reason", None, None)
    if reference is None:
        return Judged(row, "unknown", None, None)
    mean, sd = _off(row, reference)
    near = mean.size <= LEAST and sd.size <= LEAST
    fit = Judged(row, "", mean, sd)
    if row["good"]:
        outcome = "wrong" if mean.wrong else "wrong sd" if sd.wrong else "good"
    elif near and not (trial.notable and fit.first in trial.truths):
        outcome = "too strict"
    else:
        outcome = "refused" if fit.first in trial.truths else "false reason"
    return fit._replace(outcome=outcome)


def trusted(seeds: Mapping[str, Any]) -> dict[str, Any]:
    """Keep the references, by seed, that a fit may be held against."""
    return {
        seed: reference
        for seed, reference in seeds.items()
        if reference["complete"]
        or (
            reference.get("least_ess", 0) >= LEAST_ESS
            and reference.get("worst_r_hat", np.inf) <= MOST_R_HAT
        )
    }


def _off(row: Mapping[str, Any], reference: Mapping[str, Any]) -> tuple[Off, Off]:
    names = [name for name in reference["moments"] if name in row["moments"]]
    theirs = np.array([reference["moments"][name] for name in names])
    ours = np.array([row["moments"][name] for name in names], dtype=float)  # null is NaN
    with np.errstate(invalid="ignore", divide="ignore"):
        away = np.abs(ours[:, 0] - theirs[:, 0]) / theirs[:, 1]
        ratio = np.abs(np.log(ours[:, 1] / theirs[:, 1]))
    known = theirs[:, 2] / theirs[:, 1], theirs[:, 3]
    return tuple(
        _furthest(size, error, estimate, names)
        for size, error, estimate in zip((away, ratio), known, ours[:, 2:].T, strict=True)
    )


def _furthest(size: Any, error: Any, estimate: Any, names: Sequence[str]) -> Off:
    size = np.where(np.isfinite(size), size, np.inf)
    # Twice what the reference itself may be off by is taken away, in squares.
    beyond = np.sqrt(np.maximum(size**2 - 4 * error**2, 0.0))
    limit = np.fmax(LEAST, TIMES * estimate)
    worst = int(np.argmax(beyond / limit))
    return Off(
        float(beyond[worst]),
        names[worst],
        float(estimate[worst]),
        bool(beyond[worst] > limit[worst]),
    )


def tables(
    rows: Rows, references: Mapping[str, Mapping[str, Any]], trials: Mapping[str, Trial]
) -> Iterator[str]:
    """Outcomes by trial, their sums, every fit that broke the promise, and the calibration."""
    order = {name: i for i, name in enumerate(trials)}
    rows = sorted(rows, key=lambda row: (order[row["case"]], row["shards"], row["seed"]))
    references = {name: trusted(seeds) for name, seeds in references.items()}
    fits = [
        judged(row, references[row["case"]].get(str(row["seed"])), trials[row["case"]])
        for row in rows
    ]
    yield by_trial(fits)
    yield totals(fits)
    yield broken(fits)
    yield calibration(rows, references)


def _count(outcome: str) -> Any:
    return lambda fits: str(sum(fit.outcome == outcome for fit in fits) or "")


def _codes(outcome: str) -> Any:
    def show(fits: Sequence[Judged]) -> str:
        codes = Counter(fit.first for fit in fits if fit.outcome == outcome)
        return ", ".join(f"{count} {code}" for code, count in codes.items())

    return show


def by_trial(fits: Sequence[Judged]) -> str:
    """One line a trial."""

    def worst(field: str) -> Any:
        def show(fits: Sequence[Judged]) -> str:
            off = [getattr(f, field) for f in fits if f.row.get("good") and getattr(f, field)]
            top = max(off, key=lambda each: each.size, default=None)
            return f"{top.size:.2g} ({top.where}, {top.estimate:.2g})" if top else "-"

        return show

    columns: Columns = {
        "trial": lambda fits: fits[0].name,
        "fits": lambda fits: str(len(fits)),
        "good, right": _count("good"),
        "good, WRONG": _count("wrong"),
        "sd wrong": _count("wrong sd"),
        "right, refused": _codes("too strict"),
        "refused, true": _codes("refused"),
        "refused, false": _codes("false reason"),
        "no reference": _count("unknown"),
        "good: worst mean (where, own estimate)": worst("mean"),
        "good: worst log sd": worst("sd"),
    }
    return markdown(columns, [list(group) for _, group in groupby(fits, lambda fit: fit.name)])


def totals(fits: Sequence[Judged]) -> str:
    """How many fits ended how."""
    counts = Counter(fit.outcome for fit in fits)
    right = counts["good"] + counts["too strict"]
    columns: Columns = {
        "outcome": lambda item: OUTCOMES[item],
        "fits": lambda item: str(counts[item]),
    }
    share = f"Right answers refused: {counts['too strict']} of {right}.\n"
    return markdown(columns, OUTCOMES) + share


def broken(fits: Sequence[Judged]) -> str:
    """Every fit that is not as it should be, and what repeats it."""
    lines = []
    for fit in fits:
        if fit.outcome not in ("wrong", "wrong sd", "too strict", "false reason"):
            continue
        row, off = fit.row, fit.sd if fit.outcome == "wrong sd" else fit.mean
        size = f"off {off.size:.2g} on {off.where}, own estimate {off.estimate:.2g}" if off else ""
        reason = ", ".join(each[0] for each in row.get("reasons", [])) or fit.first
        number = number_of(row["case"])
        which = f"--case {row['case']}" if number is None else f"--random 1 --first {number}"
        command = f"{which} --seed {row['seed']} --n-shards {row['shards']} --again"
        lines.append(f"- {OUTCOMES[fit.outcome]}: {size} [{reason}] `benchmarks.verdict {command}`")
    return "\n".join([*lines, ""])


def errors_of(
    rows: Rows, references: Mapping[str, Mapping[str, Any]], *, good: bool
) -> tuple[np.ndarray, np.ndarray]:
    """True errors of all means, and what fits said of them (with the reference's own)."""
    pairs = []
    for row in rows:
        reference = trusted(references[row["case"]]).get(str(row["seed"]))
        if reference is None or "failed" in row or row["good"] is not good:
            continue
        for name, (mean, sd, mcse, _) in reference["moments"].items():
            ours = row["moments"].get(name)
            if ours is not None and None not in ours[:3]:
                pairs.append((abs(ours[0] - mean) / sd, np.hypot(ours[2], mcse / sd)))
    true, said = np.array(pairs).reshape(-1, 2).T
    return true, said


def calibration(rows: Rows, references: Mapping[str, Mapping[str, Any]]) -> str:
    """How often a mean was within once and twice its estimated error."""
    columns: Columns = {
        "means of fits": lambda item: item[0],
        "means": lambda item: f"{len(item[1][0]):,}",
        "within the estimate": lambda item: _share(item[1], 1),
        "within twice the estimate": lambda item: _share(item[1], 2),
    }
    groups = []
    for kind, wanted in (("hostile", False), ("drawn at random", True)):
        some = [row for row in rows if (number_of(row["case"]) is not None) is wanted]
        for good in (True, False):
            pairs = errors_of(some, references, good=good)
            groups.append((f"{kind}, {'good' if good else 'refused'}", pairs))
    return markdown(columns, groups)


def _share(pairs: tuple[np.ndarray, np.ndarray], times: float) -> str:
    true, said = pairs
    return f"{np.mean(true <= times * said):.0%}" if len(true) else "-"


def calibration_figure(
    rows: Rows, references: Mapping[str, Mapping[str, Any]], results: Path
) -> None:
    """Draw true errors over estimated ones, beside the stored rows."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 5), layout="constrained")
    for good, color in ((False, "tab:red"), (True, "tab:blue")):
        true, said = errors_of(rows, references, good=good)
        label = "good" if good else "refused"
        axes.loglog(
            np.maximum(said, 1e-4), np.maximum(true, 1e-4), ".", color=color, label=label, alpha=0.4
        )
    line = np.array([1e-3, 10.0])
    for times, style in ((1, "-"), (2, "--"), (3, ":")):
        axes.plot(line, times * line, style, color="black", linewidth=0.8, label=f"{times} times")
    axes.axhline(LEAST, color="gray", linewidth=0.8)
    axes.set(xlabel="estimated error of a mean, posterior sds", ylabel="true error")
    axes.legend()
    figure.savefig(results.with_name("verdict-calibration.png"), dpi=120)
    plt.close(figure)
