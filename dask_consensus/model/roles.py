"""Read a model: find the role of every site by tracing it on two small examples.

Whatever would make a shard's density something other than its share of the full model's is found
here, before anything runs: sites that cannot be sampled, axes that cannot be masked, priors that
look at the data, rows or groups whose order or number means something.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import biject_to
from numpyro.infer import init_to_uniform

from ..shard_data import ROWS
from .checks import (
    Probe,
    check_initial_density,
    check_prior_counts,
    check_prior_term,
    check_renumbering,
    draw_values,
    sites_of_other_groups,
    sources,
)
from .crossed import crossed_factors
from .examples import Example, examples
from .labelled import with_labels
from .model import (
    TRACE_LOCK,
    Derived,
    Latent,
    ShardModel,
    Term,
    double_precision,
    named,
    pickle_by_value,
)
from .portable import unpicklable
from .raised import line_of, shortened
from .repeats import check_repeats, not_the_same


class ModelInputs(NamedTuple):
    """What the data offers the model: which argument is fed by what."""

    values: Mapping[str, np.ndarray]  # argument -> some real values
    codes: Mapping[str, int]  # argument -> level of its codes
    levels: tuple[str, ...]  # key columns, outermost first
    counts: Mapping[str, int]  # n_<argument> -> level
    constants: Mapping[str, int]  # n_<argument> -> number of categories
    columns: Mapping[str, str]  # argument -> column, for messages
    defaults: Mapping[str, str] = MappingProxyType({})  # argument that keeps its default -> a hint
    categories: Mapping[str, int] = MappingProxyType({})  # argument -> number of its categories


class _SiteShape(NamedTuple):
    kind: str
    value: tuple[int, ...]
    log_prob: tuple[int, ...]
    observed: bool
    dims: tuple[str, ...] = ()


def read_model(
    function: Callable[..., Any],
    inputs: ModelInputs,
    *,
    cache: str = "",
    cache_size: int = 1000,
    fitted: bool = False,
) -> ShardModel:
    """Find the roles of a NumPyro model's sites, and refuse what cannot be sharded.

    Of one that was `fitted` already, and is held against that fit, it is not asked again whether it
    is the same each time its code runs: a fit had the same density in another process.

    Raises
    ------
    ValueError
        If the model has discrete latent sites, subsampling plates, ``param`` sites, no observed
        site, local sites or observations whose groups or rows are an event dimension, prior terms
        that depend on the data, gives meaning to the numbering of groups or to the order of rows,
        needs its data as constants, has another density each time its code runs, cannot be
        pickled, or has no finite density at any of 100 starting points.
    """
    small, renumbered, large = examples(inputs.values, inputs.codes, len(inputs.levels))
    with TRACE_LOCK:
        if not fitted:
            _check_sites_repeat(function, inputs, small)
        traced = [_trace_shapes(function, inputs, example) for example in (small, large)]
        model = ShardModel(
            pickled=_pickled(function),
            token="",
            levels=inputs.levels,
            codes=dict(inputs.codes),
            counts=dict(inputs.counts),
            constants=dict(inputs.constants),
            latents=_latents(function, inputs, (small, large), traced),
            x64=double_precision(),
            cache=cache,
            cache_size=cache_size,
        )
        if not model.shared:
            raise ValueError(
                "the model has no shared latent site: nothing links the shards. Fit the groups "
                "one by one instead."
            )
        model = replace(model, terms=_terms(model, inputs, (small, large), traced))
        model = replace(model, deterministics=_deterministics(model, inputs, small, traced))
        model = replace(model, derived=_derived((small, large), traced))
        model = with_labels(model, small, inputs.categories, _shapes_of(function, inputs))
        probe = Probe(model, small)
        if not fitted:
            check_repeats(function, probe, small)
        check_renumbering(probe, small, renumbered, [f"n_{name}" for name in inputs.codes])
        check_prior_counts(probe, small, large)
        check_initial_density(probe, small)
        coupled = probe.changed_terms(small, large, local=True)
        foreign = sites_of_other_groups(model, small, large) if model.derived else set()
        crossed = crossed_factors(model, small)
    own = tuple(site for site in model.derived if site.name not in foreign)
    kept = {*model.deterministics, *foreign, *(site.name for site in own if site.level != ROWS)}
    dropped = tuple(
        name
        for name, site in traced[0].items()
        if site.kind == "deterministic" and name not in kept
    )
    model = replace(model, derived=own, foreign=tuple(sorted(foreign)), dropped=dropped)
    model = replace(model, double=probe.double, coupled=tuple(sorted(coupled)))
    return named(replace(model, crossed=crossed))


# Tracing


def _trace_shapes(
    function: Callable[..., Any], inputs: ModelInputs, example: Example
) -> dict[str, _SiteShape]:
    """Trace the model once with abstract data; name, kind and shapes of every site."""
    shapes: dict[str, _SiteShape] = {}

    def trace(arguments: dict[str, jax.Array]) -> None:
        for name, site in _trace(function, inputs, example, arguments).items():
            shapes[name] = _site_shape(site)

    _abstractly(trace, function, inputs, example)
    return shapes


def _shapes_of(
    function: Callable[..., Any], inputs: ModelInputs
) -> Callable[[Mapping[str, int], Example], dict[str, tuple[int, ...]]]:
    """Make a function of constants and an example that gives the shapes of all sites."""

    def shapes(constants: Mapping[str, int], example: Example) -> dict[str, tuple[int, ...]]:
        traced = _trace_shapes(function, inputs._replace(constants=constants), example)
        return {name: site.value for name, site in traced.items()}

    return shapes


def _check_sites_repeat(
    function: Callable[..., Any], inputs: ModelInputs, example: Example
) -> None:
    """Refuse a model whose sites are not the same each time its code runs."""
    first, second = (_trace_shapes(function, inputs, example) for _ in range(2))
    differing = {name for name in first.keys() | second if first.get(name) != second.get(name)}
    if differing:
        raise not_the_same(differing)


def _pickled(function: Callable[..., Any]) -> bytes:
    try:
        return pickle_by_value(function)
    except Exception as error:
        raise ValueError(
            f"the model cannot be sent to workers, because {unpicklable(function)} cannot be "
            f"pickled ({type(error).__name__}: {error}). Make of it beforehand what the model "
            "needs, as numbers or arrays."
        ) from error


def _trace(
    function: Callable[..., Any],
    inputs: ModelInputs,
    example: Example,
    arguments: Mapping[str, Any],
) -> dict[str, Any]:
    sizes = {name: int(example.groups[level]) for name, level in inputs.counts.items()}
    seeded = numpyro.handlers.seed(function, jax.random.key(0))
    placed = numpyro.handlers.substitute(seeded, substitute_fn=init_to_uniform())
    return numpyro.handlers.trace(placed).get_trace(**arguments, **sizes, **inputs.constants)


def _abstractly(
    trace: Callable[..., None],
    function: Callable[..., Any],
    inputs: ModelInputs,
    example: Example,
) -> None:
    """Run `trace` with data that has shapes but no values, as in compiled code."""
    try:
        jax.eval_shape(trace, {k: jnp.asarray(v) for k, v in example.arguments.items()})
    except Exception as error:
        if "racer" not in f"{type(error).__name__} {error}":
            short = shortened(error)
            sizes = {name: int(example.groups[level]) for name, level in inputs.counts.items()}
            sizes |= inputs.constants
            told = "".join(f", {name}={size}" for name, size in sizes.items())
            short.add_note(
                "raised by the model while it was traced on a small sample of the frame: "
                f"{example.rows} rows{told}" + _unfed("; no column feeds", inputs)
            )
            raise short from short.__cause__
        coded = [*inputs.counts, *inputs.constants]
        coded = coded or [f"n_{name}" for name in inputs.codes] or ["n_<argument>"]
        raise ValueError(
            "the model needs the values of its data while it is traced (np.unique, len(set(...)), "
            "int(...), or an if on data), but one compiled model serves every shard, so data has "
            f"only shapes there. For a number of groups take the argument {', '.join(coded)}; for "
            f"the rest use jax.numpy. It happens at {line_of(error, function)} "
            f"({type(error).__name__}: {str(error).splitlines()[0]})"
        ) from None


def _unfed(begin: str, inputs: ModelInputs, end: str = "") -> str:
    """Name the arguments that keep their defaults, if there are any."""
    names = ", ".join(f"{name!r}{hint}" for name, hint in inputs.defaults.items())
    return f"{begin} {names}{end}" if names else ""


def _site_shape(site: dict[str, Any]) -> _SiteShape:
    name, kind = site["name"], site["type"]
    if kind == "param":
        raise ValueError(
            f"site {name!r} is a numpyro.param, which NUTS does not sample (a LocScaleReparam "
            "without `centered` makes one). Use numpyro.sample, or give `centered` a number."
        )
    if kind == "plate":
        size, subsample = site["args"]
        if subsample is not None and subsample != size:
            raise ValueError(
                f"plate {name!r} subsamples {subsample} of {size} rows. Shards are whole: remove "
                "subsample_size."
            )
    if kind != "sample":
        return _SiteShape(kind, jnp.shape(site["value"]), (), True, _dims_of_value(site))
    if not site["is_observed"] and site["fn"].support.is_discrete:
        raise ValueError(
            f"site {name!r} is a discrete latent site ({_prior_name(site['fn'])}), which NUTS "
            "cannot sample. Sum it out of the model (for a mixture: MixtureSameFamily)."
        )
    batch = jnp.shape(site["fn"].log_prob(site["value"]))
    kind = "factor" if site["infer"].get("is_auxiliary") else kind
    return _SiteShape(kind, jnp.shape(site["value"]), batch, site["is_observed"])


# Roles


def _follows(
    name: str, small: tuple[int, ...], large: tuple[int, ...], sizes: dict[tuple[int, int], int]
) -> tuple[int | None, int]:
    """Which level an array follows, and along which axis; (None, -1) if none."""
    if len(small) != len(large):
        raise ValueError(
            f"site {name!r} has {len(small)} axes on one sample of the frame and {len(large)} on "
            "another; its shape may follow the rows or the groups along one axis only."
        )
    grown = [axis for axis, pair in enumerate(zip(small, large, strict=True)) if pair[0] != pair[1]]
    if not grown:
        return None, -1
    pairs = [(small[axis], large[axis]) for axis in grown]
    if len(grown) > 1 or pairs[0] not in sizes:
        raise ValueError(
            f"site {name!r} has shape {small} on one sample of the frame and {large} on another; "
            "one axis may follow the rows, or the groups of one level, and no other."
        )
    return sizes[pairs[0]], grown[0]


def _latents(
    function: Callable[..., Any],
    inputs: ModelInputs,
    pair: tuple[Example, Example],
    traced: list[dict[str, _SiteShape]],
) -> tuple[Latent, ...]:
    """Tell shared from local latent sites; shared ones come first."""
    small, large = traced
    if set(small) != set(large):
        raise ValueError(
            f"sites {sorted(set(small) ^ set(large))} exist for some numbers of rows and groups "
            "only; every shard must have the same sites."
        )
    sizes = _axis_sizes(*pair)
    latents: list[Latent] = []

    def trace(arguments: dict[str, jax.Array]) -> None:
        for name, site in _trace(function, inputs, pair[0], arguments).items():
            if site["type"] != "sample" or site["is_observed"]:
                continue
            fn, shape = site["fn"], small[name]
            level, axis = _follows(name, shape.value, large[name].value, sizes)
            if level is not None and axis >= len(shape.log_prob):
                what = "rows" if level == ROWS else f"groups of {inputs.levels[level]!r}"
                raise ValueError(
                    f"local site {name!r}: the {what} are an event dimension of "
                    f"{_prior_name(fn)}, so its density cannot be split between groups. Put the "
                    "groups in a plate (independent given shared sites)."
                )
            latents.append(
                Latent(
                    name=name,
                    level=level,
                    axis=axis,
                    shape=shape.value,
                    unconstrained=tuple(biject_to(fn.support).inverse_shape(tuple(fn.shape()))),
                    support=_support_name(fn.support),
                    prior=_prior_name(fn),
                    dims=_dims(site),
                    note=_note(fn) if level is None else "",
                )
            )

    _abstractly(trace, function, inputs, pair[0])
    return tuple(sorted(latents, key=lambda site: site.level is not None))


def _axis_sizes(small: Example, large: Example) -> dict[tuple[int, int], int]:
    """Map the pair of lengths that an axis has in the two examples to its level."""
    levels = [ROWS, *range(len(small.groups))]
    return {(small.size_of(level), large.size_of(level)): level for level in levels}


def _terms(
    model: ShardModel,
    inputs: ModelInputs,
    pair: tuple[Example, Example],
    traced: list[dict[str, _SiteShape]],
) -> tuple[Term, ...]:
    """Find the level of every log density term, ``_<site>_log_det`` among them."""

    def shapes(example: Example) -> dict[str, tuple[int, ...]]:
        def run(values: Any, arguments: Any) -> dict[str, jax.Array]:
            return model.log_terms(values, arguments, example.groups)[0]

        terms = jax.eval_shape(run, draw_values(model, example, seed=0), example.arguments)
        return {name: term.shape for name, term in terms.items()}

    small, large = shapes(pair[0]), shapes(pair[1])
    sizes = _axis_sizes(*pair)
    terms = []
    for name, shape in small.items():
        level, axis = _follows(name, shape, large[name], sizes)
        observed = name in traced[0] and traced[0][name].observed
        if observed and level is None:
            value_level, _ = _follows(name, traced[0][name].value, traced[1][name].value, sizes)
            if value_level is not None:
                what = "rows" if value_level == ROWS else "groups"
                raise ValueError(
                    f"observed site {name!r}: its {what} are an event dimension (to_event, or a "
                    "multivariate distribution over them), so padding cannot be masked. Let them "
                    "be independent: a plate, without to_event."
                )
        terms.append(Term(name, level, axis, observed))
    if not any(term.observed and term.level is not None for term in terms):
        raise ValueError(
            "the model has no observed site that follows the rows or groups: pass the outcome's "
            "column to the argument given as obs= (left at its default None, the site is latent)."
            + _unfed(" No column feeds", inputs, ": name it in columns=.")
        )
    return tuple(terms)


# Deterministic sites


def _deterministics(
    model: ShardModel, inputs: ModelInputs, example: Example, traced: list[dict[str, _SiteShape]]
) -> dict[str, tuple[str, ...]]:
    """Find deterministic sites of shared sites alone; refuse priors that look at the data."""
    names = [name for name, shape in traced[0].items() if shape.kind == "deterministic"]
    priors = [term.name for term in model.terms if term.level is None]
    in_terms, in_sites = sources(model, example, priors, names)
    for name in priors:
        check_prior_term(name, in_terms[name], inputs.columns)
    return {
        name: traced[0][name].dims
        for name in names
        if not in_sites[name] and traced[0][name].value == traced[1][name].value
    }


def _derived(
    pair: tuple[Example, Example], traced: list[dict[str, _SiteShape]]
) -> tuple[Derived, ...]:
    """Find deterministic sites with one entry a group or a row."""
    sizes, derived = _axis_sizes(*pair), []
    for name, shape in traced[0].items():
        if shape.kind != "deterministic" or shape.value == traced[1][name].value:
            continue
        # One that follows rows and groups at once, say, is nobody's.
        with contextlib.suppress(ValueError):
            level, axis = _follows(name, shape.value, traced[1][name].value, sizes)
            assert level is not None
            derived.append(Derived(name, level, axis, shape.value, shape.dims))
    return tuple(derived)


# Names


def _base(fn: Any) -> Any:
    while hasattr(fn, "base_dist") and not isinstance(fn, dist.TransformedDistribution):
        fn = fn.base_dist
    return fn


def _prior_name(fn: Any) -> str:
    return type(_base(fn)).__name__


def _support_name(support: Any) -> str:
    base = getattr(support, "base_constraint", support)
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(base).__name__.lstrip("_")).lower()
    low, high = getattr(base, "lower_bound", None), getattr(base, "upper_bound", None)
    if words == "interval" and isinstance(low, int | float) and isinstance(high, int | float):
        return f"[{low:g}, {high:g}]"
    return words


def _dims(site: dict[str, Any]) -> tuple[str, ...]:
    """Name the axes of a site's value after its plates."""
    batch = len(site["fn"].batch_shape)
    names = [""] * jnp.ndim(site["value"])
    for frame in site["cond_indep_stack"]:
        names[batch + frame.dim] = frame.name
    return tuple(names)


def _dims_of_value(site: dict[str, Any]) -> tuple[str, ...]:
    """Name the axes of a deterministic value, whose number of event axes nothing tells.

    Plates are looked for at the end of its shape, then one axis before, and so on; they are found
    where their sizes fit in one place only.
    """
    shape, frames = jnp.shape(site["value"]), site.get("cond_indep_stack") or []
    fitting = []
    for event in range(len(shape)):
        names = [""] * len(shape)
        for frame in frames:
            axis = len(shape) - event + frame.dim
            if axis < 0 or shape[axis] != frame.size:
                break
            names[axis] = frame.name
        else:
            fitting.append(tuple(names))
    return fitting[0] if len(fitting) == 1 else ("",) * len(shape)


def _note(fn: Any) -> str:
    """Say what a power w of a prior, taken in unconstrained space, is no longer."""
    base = _base(fn)
    if isinstance(base, dist.ImproperUniform):
        return "flat: improper, proper only with the data of each shard"
    if isinstance(base, dist.Cauchy):
        return "heavy tails: improper once tempered by w <= 1/2"
    if isinstance(base, dist.StudentT):
        return "heavy tails: improper once tempered by w <= 1/(df + 1)"
    if isinstance(base, dist.MultivariateStudentT):
        return "heavy tails: improper once tempered by w <= d/(df + d)"
    return ""
