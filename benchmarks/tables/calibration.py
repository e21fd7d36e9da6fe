"""Ranks of what is true: tables of their uniformity, and a picture of their ECDFs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..measure.ranks import SHARES, Uniformity, band_of, counts_below, uniformity
from . import Columns, markdown

Rows = Sequence[Mapping[str, Any]]
# Of a palette that the colour-blind can tell apart (Okabe and Ito 2008).
_INSIDE, _OUTSIDE, _BAND = "#0072B2", "#D55E00", "#DDDDDD"
_COLUMNS = 5


class Ranked(NamedTuple):
    """A number that was ranked in many simulations of a model."""

    model: str
    name: str
    draws: int
    ranks: np.ndarray  # (simulations,)

    @property
    def uniformity(self) -> Uniformity:
        """What the ranks say."""
        return uniformity(self.ranks, self.draws)


def ranked(rows: Rows) -> Iterator[Ranked]:
    """Gather the ranks of every number; of effects, those of one group a simulation."""
    cells: dict[tuple[str, str, int], list[int]] = {}
    for row in rows:
        for name, ranks in row.get("ranks", {}).items():
            cells.setdefault((row["model"], name, row["draws"]), []).append(ranks[0])
    for (model, name, draws), ranks in cells.items():
        yield Ranked(model, name, draws, np.array(ranks))


def outcome(row: Mapping[str, Any]) -> str:
    """Say in a word or two what became of a fit."""
    if "failed" in row:
        return f"failed: {row['failed']}"
    return "good" if row["good"] else "not good: " + ", ".join(code for code, _ in row["reasons"])


def tables(rows: Rows) -> Iterator[str]:
    """Fits and what became of them; ranks of all, of those called good, and of the others."""
    yield _fits(rows)
    judged = [row for row in rows if "ranks" in row]
    kinds = {
        "Ranks of all fits": judged,
        "Fits called good": [row for row in judged if row["good"]],
        "Fits not called good": [row for row in judged if not row["good"]],
    }
    for title, some in kinds.items():
        if some and (some is judged or len(some) < len(judged)):
            yield _ranks(title, list(ranked(some)))


def _fits(rows: Rows) -> str:
    models = dict.fromkeys(row["model"] for row in rows)
    columns: Columns = {
        "model": lambda some: some[0]["model"],
        "fits": lambda some: str(len(some)),
        "called good": lambda some: str(sum(row.get("good", False) for row in some)),
        "not good, first reason": _reasons,
        "raised": lambda some: str(sum("failed" in row for row in some)),
        "without effects": lambda some: str(
            sum("ranks" in row and "log lik" not in row["ranks"] for row in some)
        ),
        "s a fit, median": lambda some: f"{np.median(_seconds(some)):.1f}",
        "90%": lambda some: f"{np.quantile(_seconds(some), 0.9):.1f}",
        "the first": lambda some: f"{_seconds(some)[0]:.1f}",
    }
    groups = [
        sorted((row for row in rows if row["model"] == model), key=lambda row: row["simulation"])
        for model in models
    ]
    return markdown(columns, groups)


def _seconds(rows: Rows) -> list[float]:
    return [row["seconds"] for row in rows]


def _reasons(rows: Rows) -> str:
    codes = Counter(row["reasons"][0][0] for row in rows if row.get("reasons"))
    return ", ".join(f"{count} {code}" for code, count in codes.most_common()) or "-"


def _ranks(title: str, numbers: Sequence[Ranked]) -> str:
    tested = [(each, each.uniformity) for each in numbers]
    columns: Columns = {
        "model": lambda row: row[0].model,
        "ranked": lambda row: row[0].name,
        "N": lambda row: str(row[1].n),
        "chi-square p": lambda row: f"{row[1].chi2:.3f}",
        "ECDF p": lambda row: f"{row[1].ecdf:.3f}",
        "ECDF in its 95% band": lambda row: "yes" if row[1].inside else "NO",
        "in 50% intervals": lambda row: _share(row[1], 0),
        "in 90% intervals": lambda row: _share(row[1], 1),
    }
    inside = sum(test.inside for _, test in tested)
    text = (
        f"{title}: {inside} of {len(tested)} ECDFs are in their bands, "
        f"{0.95 * len(tested):.1f} are expected to be.\n"
    )
    return f"{text}\n{markdown(columns, tested)}"


def _share(test: Uniformity, which: int) -> str:
    """Print a share, its binomial error, and its distance from what is expected in such errors."""
    share, error = test.shares[which], test.errors[which]
    return f"{share:.1%} ± {error:.1%} ({(share - SHARES[which]) / error:+.1f})"


def picture(rows: Rows, path: Path) -> None:
    """Draw how far the ECDF of each number's ranks is from the uniform one, and its band."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    numbers = list(ranked(rows))
    height = -(-len(numbers) // _COLUMNS)
    figure, grid = plt.subplots(
        height,
        _COLUMNS,
        figsize=(2.4 * _COLUMNS, 2 * height + 0.6),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for axes in grid.flat[len(numbers) :]:
        axes.set_axis_off()
    for axes, number in zip(grid.flat, numbers, strict=False):
        _draw(axes, number)
    figure.supxlabel("rank of what is true among the draws, as a share")
    figure.supylabel("ECDF less that of uniform ranks")
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _draw(axes: Any, number: Ranked) -> None:
    n, inside = len(number.ranks), number.uniformity.inside
    band = band_of(n, number.draws)
    off = counts_below(number.ranks, number.draws) / n - band.below
    limits = (band.low / n - band.below, band.high / n - band.below)
    axes.fill_between(band.below, *limits, color=_BAND, linewidth=0, label="95% band")
    axes.axhline(0, color="black", linewidth=0.5)
    axes.plot(band.below, off, color=_INSIDE if inside else _OUTSIDE, linewidth=1.4)
    axes.set_title(f"{number.model}: {number.name}" + ("" if inside else ", OUTSIDE"), fontsize=10)
