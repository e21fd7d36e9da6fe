"""Compiled code: one of each a process, whatever thread asks first, and kept on disk for the next.

JAX's compilation cache is set to a folder of this machine's own kind of processor under the one
that the model names (``consensus.cache``); none is used where that is empty. A cache that JAX has
been given already is left alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import threading
import time
from collections.abc import Callable, Hashable
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..model.model import TRACE_LOCK, ShardModel

_COMPILED: dict[Hashable, Callable[..., Any]] = {}
_LOCKS: dict[Hashable, threading.Lock] = {}
_GUARD = threading.Lock()
_SPENT = threading.local()
_KEEP = 32  # compiled functions kept a process
_BLOCK = 256  # points evaluated by one call
_WORTH_KEEPING = 0.2  # seconds of compilation from which code is kept on disk


def compiled(
    model: ShardModel, kind: Hashable, build: Callable[[], Callable[..., Any]], *arguments: Any
) -> Any:
    """Compile ``build()`` for arguments of these shapes, once a process for model and `kind`.

    Threads that need the same code wait for one to compile it. Python code of the model runs
    under the tracing lock; XLA compiles outside of it.
    """
    began = time.perf_counter()
    leaves, structure = jax.tree.flatten(arguments)
    shapes = tuple((leaf.shape, str(leaf.dtype)) for leaf in leaves)
    signature = (model.token, kind, structure, shapes)
    with _GUARD:
        lock = _LOCKS.setdefault(signature, threading.Lock())
    with lock:
        if signature not in _COMPILED:
            _keep_on_disk(model.cache)
            with TRACE_LOCK:
                lowered = jax.jit(build()).lower(*arguments)
            fresh = lowered.compile()
            with _GUARD:
                while len(_COMPILED) >= _KEEP:
                    oldest = next(iter(_COMPILED))
                    del _COMPILED[oldest]
                _COMPILED[signature] = fresh
        code = _COMPILED[signature]
    _SPENT.seconds = seconds_compiling() + time.perf_counter() - began
    return code


def seconds_compiling() -> float:
    """Wall time that this thread has spent compiling so far, or waiting for another that did."""
    return getattr(_SPENT, "seconds", 0.0)


def _keep_on_disk(folder: str) -> None:
    """Give JAX a compilation cache under `folder`, unless it has one."""
    given = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined,unused-ignore]
    if given is not None or not folder:
        return
    path = os.path.join(os.path.expanduser(folder), _processor())
    # Where nothing can be written JAX warns at every compilation.
    with contextlib.suppress(OSError):
        os.makedirs(path, exist_ok=True)
        jax.config.update("jax_compilation_cache_dir", path)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", _WORTH_KEEPING)


@lru_cache(maxsize=1)
def _processor() -> str:
    """Name this kind of processor: code compiled for another may not run here."""
    try:
        with open("/proc/cpuinfo") as lines:
            kind = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:
        kind = platform.processor()
    return f"{platform.machine()}-{hashlib.sha256(kind.encode()).hexdigest()[:12]}"


def in_blocks(
    model: ShardModel,
    kind: Hashable,
    build: Callable[[], Callable[[Any, jax.Array], Any]],
    fixed: Any,
    points: np.ndarray,
) -> Any:
    """Apply ``build()(fixed, points)`` to points ``(G, d)``, however many, by code compiled once.

    `kind` names the code, with the model and the shapes of the arrays in `fixed`. What the code
    gives for a block of points is joined to arrays of length G.
    """
    padded = np.resize(points, (-(-len(points) // _BLOCK) * _BLOCK, points.shape[1]))
    given = on_device(fixed)
    blocks = [on_device(padded[i : i + _BLOCK]) for i in range(0, len(padded), _BLOCK)]
    run = compiled(model, kind, build, given, blocks[0])
    values = jax.device_get([run(given, block) for block in blocks])
    return jax.tree.map(lambda *parts: np.concatenate(parts)[: len(points)], *values)


def on_device(tree: Any) -> Any:
    """Put NumPy arrays on the device, floats in the working precision."""
    working = jnp.result_type(float)

    def put(leaf: Any) -> jax.Array:
        if isinstance(leaf, jax.Array) and leaf.dtype in (working, bool, np.int32, np.int64):
            return leaf
        array = np.asarray(leaf)
        return jnp.asarray(array, working if array.dtype.kind == "f" else None)

    return jax.tree.map(put, tree)
