"""Figures, panels, colours and legends: what all pictures share."""

from __future__ import annotations

import io
import math
import textwrap
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The reference is a grey area. The others are lines in colours of Okabe and Ito's palette, which
# stay apart for colour-blind readers, and in dashes, which stay apart without any colour.
REFERENCE = "#c4c4c4"
STYLES = (("#d55e00", "-"), ("#0072b2", "--"), ("#009e73", "-."), ("#cc79a7", ":"))
INK = "#404040"
SHARD, COMBINED = STYLES[1][0], STYLES[0][0]
MAX_COLUMNS = 3
_DPI = 150
_PIXELS = 100  # an inch, where a notebook shows a figure: half of those of a sharp screen


def panels(n: int, *, width: float = 3.2, height: float = 2.2) -> tuple[Figure, list[Axes]]:
    """Make a figure of `n` panels, in rows of at most three."""
    try:
        from matplotlib.layout_engine import ConstrainedLayoutEngine

        picture = _shown_by_notebooks()
    except ImportError as error:
        message = "plots need matplotlib: pip install 'dask_consensus[plots]'"
        raise ImportError(message, name="matplotlib") from error
    n_columns = columns(n)
    n_rows = math.ceil(n / n_columns)
    size = (width * n_columns, 0.6 + height * n_rows)
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.08)
    figure = picture(size, dpi=_DPI, layout=layout)
    axes = list(figure.subplots(n_rows, n_columns, squeeze=False).ravel())
    for ax in axes[n:]:
        ax.set_axis_off()
    return figure, axes[:n]


def columns(n: int) -> int:
    """Say how many of `n` panels stand in a row."""
    return 2 if n == 4 else min(MAX_COLUMNS, n)


def _shown_by_notebooks() -> type[Figure]:
    # Figure, unlike pyplot, opens no window and keeps no global state; saving it uses Agg.
    from matplotlib.figure import Figure

    return _picture(Figure)


@cache
def _picture(figure: type[Figure]) -> type[Figure]:
    class Picture(figure):  # type: ignore[misc, valid-type]
        """A figure that a notebook shows without ``%matplotlib inline``."""

        def _repr_png_(self) -> tuple[bytes, dict[str, Any]]:
            buffer = io.BytesIO()
            self.savefig(buffer, format="png", dpi=_DPI)
            width, height = self.get_size_inches()
            return buffer.getvalue(), {
                "width": round(_PIXELS * width),
                "height": round(_PIXELS * height),
            }

    return Picture


def bare(ax: Axes, title: str, *, x: str = "", y: str = "") -> None:
    """Title a panel and its axes, and leave out what is not read."""
    ax.set_xlabel(x, fontsize=9, color=INK)
    ax.set_ylabel(y, fontsize=9, color=INK)
    ax.set_title(title, loc="left", fontsize=11, fontweight="bold")
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(INK)
    ax.tick_params(labelsize=9, color=INK, labelcolor=INK)


def plain_log(ax: Axes) -> None:
    """Make the y axis logarithmic, its numbers written out: 0.02, not a power of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    ax.set_yscale("log")
    low, high = ax.get_ylim()
    steps = (1.0,) if high > 300 * low else (1.0, 2.0, 5.0)
    ax.yaxis.set_major_locator(LogLocator(subs=steps, numticks=12))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())


def explain(figure: Figure, note: str, *axes: Axes) -> None:
    """Say above all panels what the marks of `axes` mean, and below what is drawn."""
    keys = [key for ax in axes for key in zip(*ax.get_legend_handles_labels(), strict=True)]
    if keys:
        handles, labels = zip(*keys, strict=True)
        # As many to a line as the width holds, at about 0.08 inch a letter.
        n_columns = int(figure.get_figwidth() / (0.6 + 0.08 * max(map(len, labels))))
        n_columns = max(1, min(n_columns, len(labels)))
        figure.legend(
            handles, labels, loc="outside upper left", ncols=n_columns, frameon=False, fontsize=10
        )
    note = textwrap.fill(note, int(14 * figure.get_figwidth()))
    figure.supxlabel(note, x=0.01, ha="left", fontsize=9, color=INK)
