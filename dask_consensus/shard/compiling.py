"""Compiled code: one of each a process, whatever thread asks first, and kept on disk for the next.

It is kept in a folder of this machine's own kind of processor under the one that the model names
(``consensus.cache``); nowhere where that is empty. A cache that JAX has been given already is left
alone.
"""

from __future__ import annotations

import contextlib
import enum
import re
import threading
import time
from collections.abc import Callable, Hashable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..model.model import TRACE_LOCK, ShardModel
from ..wanted import check_wanted
from .code_on_disk import keep_on_disk
from .device import accelerated

_COMPILED: dict[Hashable, Callable[..., Any]] = {}
_LOCKS: dict[Hashable, threading.Lock] = {}
_GUARD = threading.Lock()
_ONE_AT_A_TIME = threading.Lock()
# On a CPU jaxlib (0.10) divides a batch of triangular systems among the threads of its pool, and
# two calls at once may wait for each other's threads for ever.
_BATCHED_SOLVE = re.compile(r"lapack_\w*trsm\w*\(.*\).*: \(tensor<(\d+x){3,}")
_SPENT = threading.local()
_KEEP = 32  # compiled functions kept a process
_BLOCK = 256  # points evaluated by one call
_LITTLE = 2**15  # numbers in the largest array for which code runs sooner than it compiles


class Effort(enum.Enum):
    """How hard XLA tries to make code for a CPU run fast: what it gains, or what it costs."""

    ONCE = "least: it runs once or twice"
    BY_SIZE = "less where arrays are small"
    MOST = "all: it runs thousands of times"


# Fused loops of small arrays win nothing, and take half of the time of compilation.
_LIGHTLY = {"xla_cpu_use_fusion_emitters": False, "xla_backend_optimization_level": 1}
_LEAST = {"xla_cpu_use_fusion_emitters": False, "xla_backend_optimization_level": 0}


def compiled(
    model: ShardModel,
    kind: Hashable,
    build: Callable[[], Callable[..., Any]],
    *arguments: Any,
    effort: Effort = Effort.BY_SIZE,
) -> Any:
    """Compile ``build()`` for arguments of these shapes, once a process for model and `kind`.

    Threads that need the same code wait for one to compile it. Python code of the model runs
    under the tracing lock; XLA compiles outside of it. What is returned stops where nobody wants it
    any more.
    """
    began = time.perf_counter()
    leaves, structure = jax.tree.flatten(arguments)
    shapes = tuple((leaf.shape, str(leaf.dtype)) for leaf in leaves)
    signature = (model.token, kind, structure, shapes)
    with _GUARD:
        lock = _LOCKS.setdefault(signature, threading.Lock())
    with lock:
        if signature not in _COMPILED:
            keep_on_disk(model.cache, model.cache_size)
            with TRACE_LOCK:
                lowered = jax.jit(build()).lower(*arguments)
            fresh = _compile(lowered, max((leaf.size for leaf in leaves), default=0), effort)
            if not accelerated() and _BATCHED_SOLVE.search(lowered.as_text()):
                fresh = _alone(fresh)
            with _GUARD:
                while len(_COMPILED) >= _KEEP:
                    oldest = next(iter(_COMPILED))
                    del _COMPILED[oldest]
                _COMPILED[signature] = fresh
        code = _COMPILED[signature]
    _SPENT.seconds = seconds_compiling() + time.perf_counter() - began

    def run(*given: Any) -> Any:
        check_wanted()
        return code(*given)

    return run


def is_compiled(model: ShardModel, *kinds: str) -> bool:
    """Tell whether this process has compiled code of one of these kinds for a model."""
    with _GUARD:
        known = [signature[:2] for signature in _COMPILED]  # type: ignore[index]
    return any(token == model.token and _first(kind) in kinds for token, kind in known)


def _first(kind: Hashable) -> Hashable:
    return kind[0] if isinstance(kind, tuple) else kind


def _alone(run: Callable[..., Any]) -> Callable[..., Any]:
    """Let code run while none of its kind does."""

    def run_alone(*arguments: Any) -> Any:
        with _ONE_AT_A_TIME:
            return jax.block_until_ready(run(*arguments))

    return run_alone


def _compile(lowered: Any, largest: int, effort: Effort) -> Callable[..., Any]:
    little = effort is Effort.BY_SIZE and largest <= _LITTLE
    if not accelerated() and (little or effort is Effort.ONCE):
        options = _LIGHTLY if little else _LEAST
        # Another XLA may not know these options; code that cannot be compiled fails again below.
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            return lowered.compile(compiler_options=options)
    return lowered.compile()


def seconds_compiling() -> float:
    """Wall time that this thread has spent compiling so far, or waiting for another that did."""
    return getattr(_SPENT, "seconds", 0.0)


def in_blocks(
    model: ShardModel,
    kind: Hashable,
    build: Callable[[], Callable[[Any, jax.Array], Any]],
    fixed: Any,
    points: np.ndarray,
    effort: Effort = Effort.BY_SIZE,
) -> Any:
    """Apply ``build()(fixed, points)`` to points ``(G, d)``, however many, by code compiled once.

    `kind` names the code, with the model and the shapes of the arrays in `fixed`. What the code
    gives for a block of points is joined to arrays of length G.
    """
    padded = np.resize(points, (-(-len(points) // _BLOCK) * _BLOCK, points.shape[1]))
    given = on_device(fixed)
    blocks = [on_device(padded[i : i + _BLOCK]) for i in range(0, len(padded), _BLOCK)]
    run = compiled(model, kind, build, given, blocks[0], effort=effort)
    values = jax.device_get([run(given, block) for block in blocks])
    return jax.tree.map(lambda *parts: np.concatenate(parts)[: len(points)], *values)


def on_device(tree: Any) -> Any:
    """Put NumPy arrays on the device at once, floats in the working precision."""
    working = jnp.result_type(float)

    def ready(leaf: Any) -> jax.Array | np.ndarray:
        if isinstance(leaf, jax.Array) and leaf.dtype in (working, bool, np.int32, np.int64):
            return leaf
        array = np.asarray(leaf)
        return array.astype(working, copy=False) if array.dtype.kind == "f" else array

    return jax.device_put(jax.tree.map(ready, tree))
