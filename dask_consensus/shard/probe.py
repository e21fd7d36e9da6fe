"""How fast a model is, on this device, on rows like these."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ..model.model import ShardModel
from ..shard_data import ShardData
from .compiling import is_compiled, seconds_compiling
from .engine import engine_of
from .nuts import NutsSettings, trial
from .quadrature import Rule
from .target import tempered

_MORE = 24  # points, where they take no time: a call takes some by itself
_APART = 0.02  # between points, as small as posteriors are wide
_ENOUGH = 0.3  # seconds that tell enough
_TRIAL = 1.0  # seconds of NUTS
_OF_FITS = ("descent", "nested descent")  # kinds of code that searches run
_TOOK: dict[str, float] = {}  # seconds that a model's gradient took to compile in this process


class Rates(NamedTuple):
    """Seconds that a shard takes; None of what was not asked for, or cannot be had.

    Attributes
    ----------
    rows : int
        Of the shard, padding included.
    gradient, value : float or None
        Of one point: the density and its gradient, local effects integrated out by the fewest
        nodes; the density alone, by those that values begin with.
    compile_gradient, compile_value : float
        Compiling them, or reading compiled code.
    transition : float or None
        Of one transition of NUTS, at the beginning of a chain.
    compile_nuts : float
    """

    rows: int
    gradient: float | None = None
    value: float | None = None
    compile_gradient: float = 0.0
    compile_value: float = 0.0
    transition: float | None = None
    compile_nuts: float = 0.0


def rates(
    data: ShardData,
    model: ShardModel,
    u: np.ndarray,
    *,
    gradient: bool,
    values: bool,
    nuts: NutsSettings | None,
) -> Rates:
    """Time the code that a fit will run, at a few points near `u`; runs on a worker.

    What is compiled for it is what the fit runs on shards of this shape, so that it is no loss.
    """
    found = Rates(len(data.rows))
    engine = engine_of(model)
    if gradient:
        rule = Rule(engine.gradient_nodes[0])
        seconds, compiling = _timed(lambda n: engine.gradient(data, _points(u, n), 1.0, rule))
        found = found._replace(gradient=seconds, compile_gradient=_cold(model, compiling))
    if values:
        nodes = Rule(engine.value_nodes[min(1, len(engine.value_nodes) - 1)])
        seconds, compiling = _timed(lambda n: engine.values(data, _points(u, n), u, nodes))
        found = found._replace(value=seconds, compile_value=compiling)
    if nuts is not None:
        before = seconds_compiling()
        seconds = trial(model, data, tempered(1.0, model.dim), nuts, (0, 0, 0), _TRIAL)
        found = found._replace(transition=seconds, compile_nuts=seconds_compiling() - before)
    return found


def _cold(model: ShardModel, compiling: float) -> float:
    """Seconds of compiling a gradient, by which all other code is judged.

    Where a probe has compiled it before, and no fit has run since, the rest is still to compile.
    """
    if not is_compiled(model, *_OF_FITS):
        _TOOK[model.token] = compiling = max(compiling, _TOOK.get(model.token, 0.0))
    return compiling


def _points(u: np.ndarray, n: int) -> np.ndarray:
    """Points a little apart from each other, as those of a fit are."""
    return u + _APART * np.random.default_rng(0).standard_normal((n, len(u)))


def _timed(work: Callable[[int], Any]) -> tuple[float, float]:
    """Seconds a point of work on some, and of compiling, which the first call may have to do."""
    before, began = seconds_compiling(), time.perf_counter()
    work(1)
    compiling = seconds_compiling() - before
    took = time.perf_counter() - began - compiling
    if took > _ENOUGH:
        # The first call does what no other has to, and the machine may have done something else.
        took = min(took, _seconds(work, 1))
        if took > _ENOUGH:
            return took, compiling
    more = _MORE if took < _ENOUGH / _MORE else 4
    spent = [min(_seconds(work, n) for _ in range(2)) for n in (1, more)]
    # What a call takes whatever the points is little of many; few points of a slow model show it.
    return max(spent[1] - spent[0], spent[1] / 2) / (more - 1), compiling


def _seconds(work: Callable[[int], Any], n: int) -> float:
    began = time.perf_counter()
    work(n)
    return time.perf_counter() - began
