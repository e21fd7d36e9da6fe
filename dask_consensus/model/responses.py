"""Which arguments are nothing but observed? Rows without a value there say nothing of the model."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from numpyro.ops.provenance import eval_provenance

from ..shard_data import ROWS
from .checks import draw_values
from .examples import Example
from .model import TRACE_LOCK, ShardModel


def responses(model: ShardModel, example: Example) -> tuple[str, ...]:
    """Name the arguments that are values of observed sites with an entry a row, and nothing else.

    What a distribution, a mask, a scale or the prior of any site depends on is no response.
    """
    rows = {term.name for term in model.terms if term.observed and term.level == ROWS}
    data = {name: v for name, v in example.arguments.items() if name not in model.codes}
    if not rows or not data:
        return ()
    values = {k: jnp.asarray(v) for k, v in draw_values(model, example, seed=0).items()}

    def run(**given: Any) -> tuple[Any, Any]:
        _, trace = model.log_terms(values, example.arguments | given, example.groups)
        sites = {name: site for name, site in trace.items() if site["type"] == "sample"}
        observed = {
            name: site["value"]
            for name, site in sites.items()
            if name in rows and not isinstance(site["fn"], dist.Unit)
        }
        held = [(jax.tree.leaves(site["fn"]), site["scale"]) for site in sites.values()]
        held += [site["value"] for name, site in sites.items() if name not in observed]
        arrays = [leaf for leaf in jax.tree.leaves(held) if isinstance(leaf, jax.Array)]
        return observed, [jnp.asarray(0.0), *arrays]

    with TRACE_LOCK:
        observed, others = eval_provenance(run, **{k: jnp.asarray(v) for k, v in data.items()})
    seen = frozenset().union(*observed.values()) if observed else frozenset()
    return tuple(name for name in data if name in seen - frozenset().union(*others))
