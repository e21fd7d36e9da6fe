"""What a process computes on, and how much fits there."""

from __future__ import annotations

import jax
import numpy as np

from ..model.model import ShardModel

_ROW_VALUES = 32  # numbers a row that a gradient keeps, besides the data
_LOCAL_VALUES = 64  # copies of the local sites that a trajectory of NUTS keeps
_SHARE = 0.6  # of a device's memory


def accelerated() -> bool:
    """Tell whether this process computes on a GPU or the like."""
    return jax.default_backend() != "cpu"


def memory() -> int:
    """Bytes of the device that may be used; 0 on a CPU."""
    if not accelerated():
        return 0
    known = jax.local_devices()[0].memory_stats() or {}
    return int(known.get("bytes_limit", 0))


def shards_that_fit(
    model: ShardModel, rows: int, groups: tuple[int, ...], columns: int, available: int
) -> int:
    """Count the shards of one size that can be sampled at once in so many bytes; at least 1."""
    word = 8 if model.x64 else 4
    local = sum(int(np.prod(shape)) for shape in model.local_shapes(rows, groups).values())
    each = word * (rows * (columns + _ROW_VALUES) + local * _LOCAL_VALUES)
    return max(1, int(_SHARE * available) // max(each, 1))
