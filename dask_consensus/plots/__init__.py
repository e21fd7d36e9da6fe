"""Pictures of results. Needs matplotlib, which is imported only when a picture is drawn.

Functions that draw raise ImportError without matplotlib, and ValueError for a result that lacks
what they draw. What they return is a matplotlib figure that belongs to no window: a notebook shows
it, ``figure.axes`` are its panels, and ``figure.savefig(path)`` saves it.
"""

from .against_data import calibration, checks
from .convergence import rounds
from .densities import compare, parameters
from .group_effects import effects
from .panels import COMBINED, INK, REFERENCE, SHARD, STYLES
from .per_shard import balance, subposteriors
from .weighting import weights

__all__ = [
    "COMBINED",
    "INK",
    "REFERENCE",
    "SHARD",
    "STYLES",
    "balance",
    "calibration",
    "checks",
    "compare",
    "effects",
    "parameters",
    "rounds",
    "subposteriors",
    "weights",
]
