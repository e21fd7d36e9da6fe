"""Preload for GPU workers: says how much of the GPU JAX may take, before JAX starts.

JAX takes three quarters of a GPU's memory the moment it first computes, so that two workers on
one GPU, or a worker beside cuDF, fail. Give every worker this module::

    dask worker tcp://... --resources GPU=1 --preload dask_consensus.cluster.preload

Memory is then taken as it is needed, up to the share ``consensus.gpu-memory`` of Dask's
configuration (``DASK_CONSENSUS__GPU_MEMORY`` in the environment; 0.9 if unset).
What JAX's own variables say already is left alone.
"""

from __future__ import annotations

import os
import sys
import warnings
from typing import Any

import dask.config


def dask_setup(worker: Any) -> None:
    """Set JAX's memory variables in a worker's process; Dask calls this as the worker starts.

    A ``consensus.gpu-memory`` that is no number between 0 and 1 raises a ValueError. A process that
    has imported JAX already gets a UserWarning.
    """
    share = dask.config.get("consensus.gpu-memory", 0.9)
    try:
        valid = 0 < float(share) <= 1
    except (TypeError, ValueError):
        valid = False
    if not valid:
        raise ValueError(f"consensus.gpu-memory must lie between 0 and 1, got {share!r}")
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", str(share))
    if "jax" in sys.modules:
        warnings.warn(
            f"worker {getattr(worker, 'name', '')} had imported jax before "
            "dask_consensus.cluster.preload ran: if it has computed, its share of the GPU's memory "
            "is set already",
            UserWarning,
            stacklevel=2,
        )
