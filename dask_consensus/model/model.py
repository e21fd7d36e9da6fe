"""A NumPyro model, read: the roles of its sites, and its log density term by term.

Every site of the model falls in one of two kinds, told apart by how shapes follow the data
(:mod:`.roles` finds out):

- a *shared* latent site has a shape of its own; all of them together, unconstrained and raveled,
  are the vector ``u`` of ``d`` numbers that the shards must agree on;
- a *local* latent site has one axis that follows the groups of a level, or the rows.

Every log density term likewise has no such axis (a *prior term*, in every shard the same) or one
(the shard's own). NumPyro puts ``log|J|`` of site ``x`` in a term of its own, ``_x_log_det``.
"""

from __future__ import annotations

import contextlib
import hashlib
import pickle
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from numpyro.infer.util import _unconstrain_reparam, compute_log_probs

from ..shard_data import ROWS
from .portable import pickle_by_value as pickle_by_value

try:
    from jax import enable_x64
except ImportError:  # before JAX 0.8
    from jax.experimental import enable_x64  # type: ignore[attr-defined,no-redef,unused-ignore]

# NumPyro keeps its stack of handlers in one list per process: two threads that trace at once
# corrupt it. Whoever runs a model's Python code holds this lock; compiled code needs none.
TRACE_LOCK = threading.RLock()
Arrays = Mapping[str, Any]


class Latent(NamedTuple):
    """A latent site of the model; in its shapes the entry at `axis` is a placeholder."""

    name: str
    level: int | None  # None for a shared site; ROWS or a group level for a local one
    axis: int  # the axis that follows the level; -1 for a shared site
    shape: tuple[int, ...]
    unconstrained: tuple[int, ...]  # shape of the unconstrained value
    support: str
    prior: str  # name of its distribution
    dims: tuple[str, ...] = ()  # name of each axis of the value: its plate's, or empty
    note: str = ""  # what tempering does to an improper or heavy-tailed prior; else empty

    @property
    def size(self) -> int:
        """Numbers in the unconstrained value of a shared site."""
        return int(np.prod(self.unconstrained, dtype=int))


class Derived(NamedTuple):
    """A deterministic site with one entry a group of a level, or a row; dims as in `Latent`."""

    name: str
    level: int
    axis: int
    shape: tuple[int, ...]
    dims: tuple[str, ...]


class Term(NamedTuple):
    """A term of the log density: its site's name, its level (None: a prior term) and axis."""

    name: str
    level: int | None
    axis: int
    observed: bool


@dataclass(frozen=True)
class ShardModel:
    """A model as one shard needs it; small, picklable, the same in every process.

    Equal tokens share compiled code. Where groups depend on each other, by `coupled` terms, no
    product over shards is exact. A model may hold constants of single precision that cannot meet
    double precision, in which likelihoods are added up where it can be.
    """

    pickled: bytes  # the model's function, by value
    token: str  # names the content of all other attributes but those of the cache
    levels: tuple[str, ...]  # names of the key columns, outermost first
    codes: Mapping[str, int]  # argument -> the level whose group codes it receives
    counts: Mapping[str, int]  # n_<argument> -> level (the number of its groups), where taken
    constants: Mapping[str, int]  # n_<argument> -> number of categories, likewise
    latents: tuple[Latent, ...]  # shared sites first, each kind in the order of the model
    terms: tuple[Term, ...] = ()
    # Deterministic sites that depend on shared sites alone -> name of each axis of their value.
    deterministics: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    # Those that follow groups or rows, and may depend on local sites and on data.
    derived: tuple[Derived, ...] = ()
    foreign: tuple[str, ...] = ()  # and those whose values change with other groups
    dropped: tuple[str, ...] = ()  # and those that no result has: of rows, or of all groups at once
    # Site -> of each axis the argument whose categories, or columns, label its entries, or none.
    labelled: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    x64: bool = False  # whether the user works in double precision
    double: bool = True  # whether the model can be evaluated in it
    cache: str = ""  # folder of compiled code; empty for none
    cache_size: int = 1000  # MiB of it, at most
    coupled: tuple[str, ...] = ()
    crossed: tuple[Any, ...] = ()  # `Crossed`: shared sites that rows look up by a column

    def __hash__(self) -> int:
        return hash(self.token)

    @property
    def identity(self) -> str:
        """What the model is but for its code, which no two processes need have the same bytes of.

        Of one fit, whose code is one.
        """
        return repr(replace(self, pickled=b"", token="", cache="", cache_size=0))

    @property
    def function(self) -> Callable[..., Any]:
        """The model's function; one object a process and precision."""
        return _load(self.pickled, double_precision())

    @property
    def shared(self) -> tuple[Latent, ...]:
        """The shared latent sites, in the order in which they are raveled to ``u``."""
        return tuple(site for site in self.latents if site.level is None)

    @property
    def local(self) -> tuple[Latent, ...]:
        """The local latent sites."""
        return tuple(site for site in self.latents if site.level is not None)

    @property
    def dim(self) -> int:
        """Length ``d`` of ``u``."""
        return sum(site.size for site in self.shared)

    @property
    def dim_without_crossed(self) -> int:
        """Numbers in ``u`` that are not effects of crossed factors."""
        return self.dim - sum(one.size for one in self.crossed)

    def coordinate_names(self) -> list[str]:
        """Name each of the ``d`` coordinates of ``u``, as in ``beta[1, 0]``."""
        names = []
        for site in self.shared:
            for index in np.ndindex(site.unconstrained):
                names.append(site.name + (f"[{', '.join(map(str, index))}]" if index else ""))
        return names

    def unravel(self, u: jax.Array) -> dict[str, jax.Array]:
        """Split ``u`` ``(d,)`` into the unconstrained values of the shared sites."""
        ends = np.cumsum([site.size for site in self.shared])[:-1]
        parts = jnp.split(u, ends)
        return {
            site.name: part.reshape(site.unconstrained)
            for site, part in zip(self.shared, parts, strict=True)
        }

    def size_of(self, level: int, rows: int, groups: tuple[int, ...]) -> int:
        """Entries along the axis of a level."""
        return rows if level == ROWS else groups[level]

    def local_shapes(self, rows: int, groups: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        """Shapes of the unconstrained local sites for so many rows and groups."""
        shapes = {}
        for site in self.local:
            shape = list(site.unconstrained)
            shape[site.axis] = self.size_of(site.level, rows, groups)  # type: ignore[arg-type]
            shapes[site.name] = tuple(shape)
        return shapes

    def keywords(self, arguments: Arrays, groups: tuple[int, ...]) -> dict[str, Any]:
        """Everything the function is called with: data, and the static numbers of groups."""
        sizes = {name: int(groups[level]) for name, level in self.counts.items()}
        return {**arguments, **sizes, **self.constants}

    def log_terms(
        self, values: Arrays, arguments: Arrays, groups: tuple[int, ...]
    ) -> tuple[dict[str, jax.Array], dict[str, Any]]:
        """Log density of each site, entry by entry, at unconstrained `values` of all latent sites.

        It is in the batch shape of the site; ``_<site>_log_det`` are among them. NumPyro's trace
        of the model, with constrained values and deterministics, comes second. Run it under
        :data:`TRACE_LOCK`.
        """
        return log_terms(self.function, values, self.keywords(arguments, groups))


def log_terms(
    function: Callable[..., Any],
    values: Arrays,
    keywords: Mapping[str, Any],
    key: jax.Array | None = None,
) -> tuple[dict[str, jax.Array], dict[str, Any]]:
    """Log density of each site of a function called with `keywords`; see `ShardModel.log_terms`.

    With values for all latent sites nothing should depend on the random key, 0 by default.
    """
    seeded = numpyro.handlers.seed(function, jax.random.key(0) if key is None else key)
    placed = numpyro.handlers.substitute(
        seeded, substitute_fn=partial(_unconstrain_reparam, values)
    )
    terms, trace = compute_log_probs(placed, (), keywords, {}, sum_log_prob=False)
    return terms, trace


def precision(x64: bool) -> contextlib.AbstractContextManager[None]:
    """Work in double precision or in single, whatever this process is set to."""
    return enable_x64(x64)


def double_precision() -> bool:
    """Tell whether the user works in double precision."""
    return bool(jnp.result_type(float) == jnp.float64)


def named(model: ShardModel) -> ShardModel:
    """Name a model, once it is read, by all that its compiled code depends on."""
    content = (
        repr(replace(model, pickled=b"", token="", cache="", cache_size=0)).encode() + model.pickled
    )
    return replace(model, token=hashlib.sha256(content).hexdigest()[:16])


@lru_cache(maxsize=32)
def _load(pickled: bytes, x64: bool) -> Callable[..., Any]:
    # JAX (0.10) keeps NumPy constants that compiled functions receive in the precision in which it
    # met them first, so that each precision has constants of its own.
    del x64
    # Random keys that a model holds would become part of the trace in which it is first called.
    with jax.ensure_compile_time_eval():
        return pickle.loads(pickled)
