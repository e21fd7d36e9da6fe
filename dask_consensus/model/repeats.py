"""Whether a model is the same each time its Python code runs.

The code runs once for each kernel that is compiled, and anew in every process that received the
model. What it draws, counts or reads from a clock is then another constant in each of them.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, jaxpr_as_fun

from .checks import Probe, draw_values, inner_jaxprs
from .examples import Example
from .model import ShardModel, log_terms, precision

_ROUNDING = 1e-6  # relative, of single precision; of values near 0, absolute
_OTHER_KEY = 1  # than that of `ShardModel.log_terms`


class _Trace(NamedTuple):
    """A model's density as it was traced: the names of its terms, and what computes them."""

    terms: tuple[str, ...]
    computation: ClosedJaxpr
    text: str

    def same_as(self, other: _Trace) -> bool:
        """Tell whether nothing was different in the two traces, constants included."""
        if self.terms != other.terms or self.text != other.text:
            return False
        return _same_constants(self, other)

    def values(self, arguments: Any) -> dict[str, Any]:
        """Evaluate every term."""
        entries = jax.jit(jaxpr_as_fun(self.computation))(*jax.tree.leaves(arguments))
        return dict(zip(self.terms, entries, strict=True))


def check_repeats(function: Callable[..., Any], probe: Probe, example: Example) -> None:
    """Refuse a model whose density at one point is another one each time its code runs.

    It is traced as it was given and as workers will receive it, more than once, and its density is
    evaluated under two random keys, which nothing but latent sites should use.
    """
    model = probe.model
    values = draw_values(model, example, seed=1)
    received = [pickle.loads(model.pickled) for _ in range(3)]
    arguments = (values, example.arguments)
    # The function as it was given may have been traced in the user's precision, and then bears no
    # other; counters and clocks move by less than single precision shows.
    changed = _changed(model, [function, function, received[0]], example, arguments)
    with precision(probe.double):
        copies = [received[1], received[1], received[2], model.function]
        changed |= _changed(model, copies, example, arguments)
    ours, theirs = (probe.exact_terms(values, example, key=key) for key in (0, _OTHER_KEY))
    changed |= {name for name in ours if not _equal(ours[name], theirs[name])}
    if changed:
        raise not_the_same(changed)


def not_the_same(terms: set[str], where: str = "each time the model's code runs") -> ValueError:
    """Make the error that names the terms, and says what to do."""
    return ValueError(
        f"the density of {', '.join(sorted(terms))} at one point is another one {where}: the model "
        "draws random numbers (of NumPy, random, or numpyro.prng_key()), counts, reads a clock or "
        "its surroundings, outside of numpyro.sample. Its code runs once for each kernel that is "
        "compiled and anew on every worker, and each would have another model. Draw with "
        "numpyro.sample what is random; or compute the value once, beforehand, and pass it as a "
        "column, or as a constant by functools.partial."
    )


def _traced(
    model: ShardModel, function: Callable[..., Any], example: Example, arguments: Any
) -> _Trace:
    """Trace the density anew: under a function of its own, since JAX remembers what it traced."""

    def run(values: Any, data: Any) -> dict[str, jax.Array]:
        return log_terms(function, values, model.keywords(data, example.groups))[0]

    computation, shapes = jax.make_jaxpr(run, return_shape=True)(*arguments)
    return _Trace(tuple(sorted(shapes)), computation, _text(computation))


def _changed(
    model: ShardModel, functions: list[Callable[..., Any]], example: Example, arguments: Any
) -> set[str]:
    """Name the terms that have other values; a trace may differ in what has no effect."""
    first, *others = (_traced(model, one, example, arguments) for one in functions)
    changed: set[str] = set()
    for other in others:
        if first.same_as(other):
            continue
        changed |= set(first.terms) ^ set(other.terms)
        ours, theirs = first.values(arguments), other.values(arguments)
        common = set(ours) & set(theirs)
        alike = _close if _same_constants(first, other) else _equal
        changed |= {name for name in common if not alike(ours[name], theirs[name])}
    return changed


def _same_constants(first: _Trace, other: _Trace) -> bool:
    """Tell whether two traces hold the same numbers, perhaps in another precision.

    JAX keeps the constants of a function in the precision in which it was first traced.
    """
    ours, theirs = (list(_constants(trace.computation)) for trace in (first, other))
    return len(ours) == len(theirs) and all(map(_equal, ours, theirs))


def _close(a: Any, b: Any) -> bool:
    """Tell whether values are the same but for single precision."""
    a, b = np.asarray(a), np.asarray(b)
    return a.shape == b.shape and np.allclose(a, b, rtol=_ROUNDING, atol=_ROUNDING, equal_nan=True)


def _equal(a: Any, b: Any) -> bool:
    a, b = (np.asarray(jax.random.key_data(x) if _is_key(x) else x) for x in (a, b))
    return np.array_equal(a, b, equal_nan=a.dtype.kind == "f" and b.dtype.kind == "f")


def _is_key(value: Any) -> bool:
    return jax.dtypes.issubdtype(getattr(value, "dtype", bool), jax.dtypes.prng_key)


def _text(computation: ClosedJaxpr) -> str:
    """Write a computation down, without the places in memory of the functions it names."""
    return re.sub(r"0x[0-9a-f]+", "", str(computation.jaxpr))


def _constants(computation: ClosedJaxpr | Jaxpr) -> Iterator[Any]:
    """All constants of a computation; as text they are cut short, or left out."""
    if isinstance(computation, ClosedJaxpr):
        yield from computation.consts
        computation = computation.jaxpr
    for equation in computation.eqns:
        yield from (var.val for var in equation.invars if isinstance(var, Literal))
        for inner in inner_jaxprs(equation):
            yield from _constants(inner)
    yield from (var.val for var in computation.outvars if isinstance(var, Literal))
