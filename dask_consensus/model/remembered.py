"""A model that was read once, written as JSON beside its fit, and met again later.

Reading a model takes real data and many traces. To evaluate it again it is enough to know its
sites, and to have the function itself, which is not stored; one trace tells whether it is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro

from .model import TRACE_LOCK, Latent, ShardModel, Term, named, pickle_by_value

Told = dict[str, Any]
_ROWS, _GROUPS = 13, (3, 5, 7, 9)  # of the data on which a model is met again


def remember(model: ShardModel) -> Told:
    """Write down all of a model but its function."""
    return {
        "levels": list(model.levels),
        "codes": dict(model.codes),
        "counts": dict(model.counts),
        "constants": dict(model.constants),
        "latents": [latent._asdict() for latent in model.latents],
        "terms": [term._asdict() for term in model.terms],
        "x64": model.x64,
        "cache": model.cache,
        "cache_size": model.cache_size,
    }


def meet_again(function: Callable[..., Any], told: Told, dtypes: Mapping[str, str]) -> ShardModel:
    """Make a model of what was told of it, and of its function.

    Parameters
    ----------
    function : callable
        The model that was fitted.
    told : dict
        What :func:`remember` wrote.
    dtypes : mapping
        Of each argument that a column feeds.

    Raises
    ------
    ValueError
        If the function has other arguments, or other sites.
    """
    model = named(
        ShardModel(
            pickled=pickle_by_value(function),
            token="",
            levels=tuple(told["levels"]),
            codes=told["codes"],
            counts=told["counts"],
            constants=told["constants"],
            latents=tuple(Latent(**_with_tuples(latent)) for latent in told["latents"]),
            terms=tuple(Term(**term) for term in told["terms"]),
            x64=told["x64"],
            cache=told["cache"],
            cache_size=told.get("cache_size", 1000),
        )
    )
    _check_is_the_same(model, dtypes)
    return model


def example(
    model: ShardModel, dtypes: Mapping[str, str]
) -> tuple[dict[str, np.ndarray], tuple[int, ...]]:
    """Make data of a few rows, zeros all of them, and count its groups."""
    groups = _GROUPS[: len(model.levels)]
    return {name: np.zeros(_ROWS, dtype) for name, dtype in dtypes.items()}, groups


def _check_is_the_same(model: ShardModel, dtypes: Mapping[str, str]) -> None:
    arguments, groups = example(model, dtypes)
    found: dict[str, tuple[int, ...]] = {}

    def trace(arguments: Mapping[str, Any]) -> None:
        seeded = numpyro.handlers.seed(model.function, jax.random.key(0))
        sites = numpyro.handlers.trace(seeded).get_trace(**model.keywords(arguments, groups))
        for name, site in sites.items():
            if site["type"] == "sample" and not site["is_observed"]:
                found[name] = jnp.shape(site["value"])

    try:
        with TRACE_LOCK:
            jax.eval_shape(trace, arguments)
    except TypeError as error:
        raise ValueError(
            f"the model is not the one that was fitted: called with {', '.join(arguments)} it "
            f"raised {error}"
        ) from error
    expected = {}
    for site in model.latents:
        shape = list(site.shape)
        if site.level is not None:
            shape[site.axis] = model.size_of(site.level, _ROWS, groups)
        expected[site.name] = tuple(shape)
    if found != expected:
        names = [
            f"{name!r} ({_shape_in(found, name)} here, {_shape_in(expected, name)} in the fit)"
            for name in sorted({*found, *expected})
            if found.get(name) != expected.get(name)
        ]
        raise ValueError(f"the model is not the one that was fitted: sites {', '.join(names)}")


def _shape_in(shapes: Mapping[str, tuple[int, ...]], name: str) -> str:
    return f"shape {shapes[name]}" if name in shapes else "absent"


def _with_tuples(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Undo what JSON does to tuples."""
    return {
        name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()
    }
