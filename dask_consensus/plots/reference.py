"""Where is another fit of the same model? A grey band in each panel."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .panels import INK, REFERENCE
from .scales import Scale, coordinates, group

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes


def bands(
    axes: list[Axes],
    scales: list[Scale],
    tree: xr.DataTree,
    reference: xr.DataTree | None,
    *,
    vertical: bool = False,
) -> None:
    """Shade one sd to either side of a reference's mean, corrected if it was, in each panel."""
    if reference is None:
        return
    names, expected = coordinates(tree), coordinates(reference)
    if expected != names:
        raise ValueError(
            f"the reference has parameters {', '.join(expected)}, the result has {', '.join(names)}"
        )
    moments = group(reference, "rounds").isel(round=-1)
    if "uncorrected" in reference.children:
        moments = group(reference, "correction")
    found = zip(axes, scales, moments["mean"].values, moments["sd"].values, strict=True)
    for ax, scale, mean, sd in found:
        span, line = (ax.axvspan, ax.axvline) if vertical else (ax.axhspan, ax.axhline)
        low, middle, high = scale(mean + sd * np.array([-1.0, 0.0, 1.0]))
        span(low, high, color=REFERENCE, linewidth=0, label="reference")
        line(middle, color=INK, linewidth=1)
