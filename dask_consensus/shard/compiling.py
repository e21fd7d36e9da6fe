"""Compiled code: one of each a process, whatever thread asks first."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Hashable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .model import TRACE_LOCK

_COMPILED: dict[Hashable, Callable[..., Any]] = {}
_LOCKS: dict[Hashable, threading.Lock] = {}
_GUARD = threading.Lock()
_KEEP = 32  # compiled functions kept a process


def compiled(signature: Hashable, build: Callable[[], Callable[..., Any]], *arguments: Any) -> Any:
    """Compile ``build()`` for arguments of these shapes, once a process for each signature.

    Threads that need the same code wait for one to compile it. Python code of the model runs
    under the tracing lock; XLA compiles outside of it.
    """
    with _GUARD:
        lock = _LOCKS.setdefault(signature, threading.Lock())
    with lock:
        if signature not in _COMPILED:
            with TRACE_LOCK:
                lowered = jax.jit(build()).lower(*arguments)
            code = lowered.compile()
            with _GUARD:
                while len(_COMPILED) >= _KEEP:
                    oldest = next(iter(_COMPILED))
                    del _COMPILED[oldest]
                _COMPILED[signature] = code
        return _COMPILED[signature]


def shapes_of(tree: Any) -> Hashable:
    """Shapes and types of the arrays of a pytree, with its structure."""
    leaves, structure = jax.tree.flatten(tree)
    return structure, tuple((leaf.shape, str(leaf.dtype)) for leaf in leaves)


def on_device(tree: Any) -> Any:
    """Put NumPy arrays on the device, floats in the working precision."""
    working = jnp.result_type(float)

    def put(leaf: Any) -> jax.Array:
        array = np.asarray(leaf)
        return jnp.asarray(array, working if array.dtype.kind == "f" else None)

    return jax.tree.map(put, tree)


def precision(x64: bool) -> contextlib.AbstractContextManager[None]:
    """Work in the precision the user works in, whatever this process is set to."""
    return jax.enable_x64(x64)
