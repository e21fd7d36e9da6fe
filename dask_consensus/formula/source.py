"""How a formula reads as a NumPyro model.

What is written here is what runs: the source is compiled as it stands, and may be copied, edited
and passed to `fit` like any model. Nothing of a formula's text is put in but names, quoted, and
numbers.
"""

from __future__ import annotations

import json
import keyword
import linecache
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from .design import Fed
from .families import Family
from .groups import Grouping, name_of
from .priors import Prior, number

_WIDTH = 96
_RESERVED = {
    *("jax", "jnp", "dist", "numpyro", "model", "eta", "beta", "intercept", "means", "rows", "y"),
    *("X", "offset", "weight", "trials", "threshold", "raw", "sigma", "nu", "alpha", "kappa"),
}
_HEAD = """import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist


"""


class Grouped(NamedTuple):
    """A term with effects of groups.

    Attributes
    ----------
    name : str
        As formulae has it, ``x|store``.
    factor : tuple of str
    columns : tuple of str
        Of its expression; none for an intercept.
    """

    name: str
    factor: tuple[str, ...]
    columns: tuple[str, ...]


class Asked(NamedTuple):
    """What a model is written of.

    Attributes
    ----------
    text : str
        The formula.
    family : Family
    link : str
    intercept : bool
    common : dict
        Term -> names of its columns.
    means : dict
        Term -> means of its columns, where they are centred.
    grouped : tuple of Grouped
    grouping : Grouping
    priors : dict of Prior
    response : str
        What the observed site is called.
    levels : tuple
        Of an ordered response.
    offset, weight : bool
    trials : int, True or None
        A number, a column, or none.
    """

    text: str
    family: Family
    link: str
    intercept: bool
    common: Mapping[str, tuple[str, ...]]
    means: Mapping[str, tuple[float, ...]]
    grouped: tuple[Grouped, ...]
    grouping: Grouping
    priors: Mapping[str, Prior]
    response: str
    levels: tuple[Any, ...]
    offset: bool
    weight: bool
    trials: int | bool | None


class Written(NamedTuple):
    """A model, and how its arguments are fed.

    Attributes
    ----------
    source : str
    fed : tuple of Fed
    keys : dict
        Argument -> key column whose codes it receives.
    """

    source: str
    fed: tuple[Fed, ...]
    keys: dict[str, str]


def compiled(source: str) -> Callable[..., Any]:
    """Make the function ``model`` of the source of a model, which this module has written."""
    name = "<model of a formula>"
    linecache.cache[name] = (len(source), None, source.splitlines(True), name)
    names: dict[str, Any] = {"__name__": "formula_model"}
    exec(compile(source, name, "exec"), names)
    model: Callable[..., Any] = names["model"]
    return model


def written(asked: Asked) -> Written:
    """Write the model."""
    return _Writer(asked).written()


class _Writer:
    """Collects the arguments and the lines of a model as it goes through its parts."""

    def __init__(self, asked: Asked) -> None:
        self.asked = asked
        self.lines: list[str] = []
        self.fed: list[Fed] = []
        self.keys: dict[str, str] = {}
        self.counts: list[str] = []
        self.names: set[str] = set(_RESERVED)
        self.columns: set[str] = {*asked.grouping.by, asked.response}
        self.columns |= {name_of(factor) for factor in asked.grouping.crossed}
        self.parts: list[str] = []  # of the linear predictor

    def written(self) -> Written:
        asked = self.asked
        self._common()
        self._grouped()
        if asked.offset:
            self._feed(Fed("offset", "offset", (), (self._column("offset"),)))
            self.parts.append("offset")
        self._likelihood()
        arguments = [*dict.fromkeys([*(fed.argument for fed in self.fed), *self.keys])]
        rows = f"{arguments[0]}.shape[0]" if arguments else "y.shape[0]"
        arguments.append("y=None" if arguments else "y")
        counts = [f"*, {', '.join(self.counts)}"] if self.counts else []
        self._feed(
            Fed("y", "response", (), (asked.response,), levels=tuple(asked.levels)),
        )
        head = f"def model({', '.join([*arguments, *counts])}):"
        told = f"{asked.family.name}, {asked.link} link: {asked.text}"
        body = [f'"""{_safe(told)}."""', *self.lines]
        text = _HEAD + _wrapped(head) + "\n" + textwrap.indent("\n".join(body), "    ") + "\n"
        return Written(text.replace("@rows@", rows), tuple(self.fed), self.keys)

    # Effects of all rows

    def _common(self) -> None:
        asked = self.asked
        own = {name for name in asked.common if not _fits_together(asked.priors[name])}
        together = [name for name in asked.common if name not in own]
        means: list[tuple[str, list[float]]] = []
        if asked.intercept:
            name = "Intercept_centred" if asked.common else "Intercept"
            if asked.common:
                self._say("# Columns are centred over the whole frame: this is at their means.")
            self._sample("intercept", name, _density(asked.priors["Intercept"]))
            self.parts.append("intercept")
        if together:
            columns = [column for name in together for column in asked.common[name]]
            priors = [asked.priors[name] for name in together]
            loc, scale = (
                np.concatenate(
                    [
                        np.broadcast_to(prior.parameters[i], len(asked.common[name]))
                        for prior, name in zip(priors, together, strict=True)
                    ]
                ).tolist()
                for i in (0, 1)
            )
            at = number(loc[0]) if len(set(loc)) == 1 else _array(loc)
            density = f"dist.Normal({at}, {_array(scale)}).to_event(1)"
            self._matrix("X", "beta", "beta", together, columns, density, means)
        for name in own:
            prior, columns = asked.priors[name], list(asked.common[name])
            argument = self._name(f"X_{name}")
            density = f"{_density(prior, len(columns))}.to_event(1)"
            self._matrix(argument, self._name(f"b_{name}"), name, [name], columns, density, means)
        if asked.intercept and asked.common:
            off = " - ".join(f"jnp.dot({_array(at, force=True)}, {who})" for who, at in means)
            self._say(f'numpyro.deterministic("Intercept", intercept - {off})')

    def _matrix(
        self,
        argument: str,
        variable: str,
        site: str,
        terms: Sequence[str],
        columns: Sequence[str],
        density: str,
        means: list[tuple[str, list[float]]],
    ) -> None:
        center: list[float] = []
        if self.asked.means:
            center = [mean for name in terms for mean in self.asked.means[name]]
            means.append((variable, center))
        named = tuple(self._column(column) for column in columns)
        self._feed(Fed(argument, "common", tuple(terms), named, tuple(center)))
        self._sample(variable, site, density)
        self.parts.append(f"{argument} @ {variable}")

    # Effects of groups

    def _grouped(self) -> None:
        grouping = self.asked.grouping
        for factor, level in grouping.tiers:
            column = grouping.by[level]
            argument = self._name(column)
            self.keys[argument] = column
            # Outer keys of which the model has no effects are keys all the same.
            self._factor(factor, argument, crossed=False)
        for factor, levels in zip(grouping.crossed, grouping.levels, strict=True):
            argument = self._name(name_of(factor))
            named = (name_of(factor),)
            self._feed(Fed(argument, "category", factor, named, levels=tuple(levels)))
            self._factor(factor, argument, crossed=True)

    def _factor(self, factor: tuple[str, ...], argument: str, *, crossed: bool) -> None:
        self.counts.append(f"n_{argument}")
        terms = [term for term in self.asked.grouped if term.factor == factor]
        correlation = self.asked.priors.get(f"cor|{name_of(factor)}")
        sds = [self._sd(term) for term in terms]
        inputs = [self._inputs(term) for term in terms]
        if correlation is not None and sum(max(len(term.columns), 1) for term in terms) > 1:
            self._correlated(factor, argument, terms, sds, inputs, correlation, crossed=crossed)
            return
        names = [self._name(f"r_{term.name}") for term in terms]
        self._say(_plate(argument))
        for term, sd, effects in zip(terms, sds, names, strict=True):
            several = len(term.columns) if len(term.columns) > 1 else 0
            if crossed:
                site, density = f"{term.name}_offset", _standard(several)
            else:
                event = ".to_event(1)" if several else ""
                site, density = term.name, f"dist.Normal(0.0, {sd}){event}"
            self._inside(effects, site, density)
        for term, sd, effects, given in zip(terms, sds, names, inputs, strict=True):
            looked_up = f"{effects}[{argument}]"
            if crossed:
                self._say(f'numpyro.deterministic("{_quoted(term.name)}", {sd} * {effects})')
                looked_up = f"{sd} * {looked_up}"
            self.parts.append(_times(given, looked_up, len(term.columns)))

    def _correlated(
        self,
        factor: tuple[str, ...],
        argument: str,
        terms: Sequence[Grouped],
        sds: Sequence[str],
        inputs: Sequence[str | None],
        correlation: Prior,
        *,
        crossed: bool,
    ) -> None:
        sizes = [max(len(term.columns), 1) for term in terms]
        total = sum(sizes)
        name = name_of(factor)
        scale, chol = self._name(f"sd_{argument}"), self._name(f"chol_{argument}")
        self._say(f"{scale} = jnp.hstack([{', '.join(sds)}])")
        lkj = f"dist.LKJCholesky({total}, {number(correlation.parameters[0])})"
        self._sample(chol, f"cor|{name}", lkj)
        self._say(f"{chol} = {scale}[:, None] * {chol}")
        effects = self._name(f"r_{argument}")
        self._say(_plate(argument))
        if crossed:
            self._inside(effects, f"{name}_offset", _standard(total))
            every, looked_up = f"({effects} @ {chol}.T)", f"{effects}[{argument}] @ {chol}.T"
        else:
            density = f"dist.MultivariateNormal(jnp.zeros({total}), scale_tril={chol})"
            self._inside(effects, f"{name}_effects", density)
            every, looked_up = effects, f"{effects}[{argument}]"
        own = self._name(f"{effects}_rows")
        self._say(f"{own} = {looked_up}")
        begin = 0
        for term, size, given in zip(terms, sizes, inputs, strict=True):
            some = f"[:, {begin}]" if size == 1 else f"[:, {begin}:{begin + size}]"
            begin += size
            self._say(f'numpyro.deterministic("{_quoted(term.name)}", {every}{some})')
            self.parts.append(_times(given, f"{own}{some}", size))

    def _sd(self, term: Grouped) -> str:
        sd = self._name(f"sd_{term.name}")
        prior, columns = self.asked.priors[f"{term.name}_sigma"], len(term.columns)
        density = _density(prior, columns if columns > 1 else 0)
        self._sample(sd, f"{term.name}_sigma", density + (".to_event(1)" if columns > 1 else ""))
        return sd

    def _inputs(self, term: Grouped) -> str | None:
        """Feed the columns of a term's expression; None for an intercept."""
        if not term.columns:
            return None
        factor = name_of(term.factor)
        argument = self._name(f"Z_{term.name}")
        named = tuple(self._column(f"{column}|{factor}") for column in term.columns)
        self._feed(Fed(argument, "grouped", (term.name,), named))
        return argument

    # Rows

    def _likelihood(self) -> None:
        asked = self.asked
        for name in asked.family.parameters:
            self._sample(name, name, _density(asked.priors[name]))
        if asked.family.values == "ordered":
            self._threshold()
        if asked.trials is not None:
            if asked.trials is True:
                self._feed(Fed("trials", "trials", (), (self._column("trials"),)))
            else:
                self._say(f"trials = {int(asked.trials)}")
        if not self.parts:
            self.parts.append("jnp.zeros(@rows@)")
        self._say(
            "eta = (", *(f"    {'+ ' if i else ''}{p}" for i, p in enumerate(self.parts)), ")"
        )
        handlers = ['numpyro.plate("rows", @rows@)']
        if asked.weight:
            self._feed(Fed("weight", "weight", (), (self._column("weight"),)))
            handlers.append("numpyro.handlers.scale(scale=weight)")
        self._say(f"with {', '.join(handlers)}:")
        density = asked.family.distribution(asked.link)
        self._say(f'    numpyro.sample("{_quoted(asked.response)}", {density}, obs=y)')

    def _threshold(self) -> None:
        prior = self.asked.priors["threshold"]
        count = len(self.asked.levels) - 1
        loc = np.broadcast_to(prior.parameters[0], count).astype(float)
        scale = np.broadcast_to(prior.parameters[1], count).tolist()
        begin = [loc[0], *np.log(np.maximum(np.diff(np.sort(loc)), 0.1))]
        self._say(
            f"raw = dist.Normal({_array(begin, force=True)}, 1.0).to_event(1)",
            "raw = dist.TransformedDistribution(raw, dist.transforms.OrderedTransform())",
            'threshold = numpyro.sample("threshold", raw)',
            "# The prior: normal thresholds, given that they are in order.",
            f"normal = dist.Normal({_array(loc.tolist(), force=True)}, {_array(scale)})",
            "prior = normal.to_event(1).log_prob(threshold)",
            'numpyro.factor("threshold_prior", prior - raw.log_prob(threshold))',
        )

    # Pieces

    def _say(self, *lines: str) -> None:
        self.lines += [part for line in lines for part in _wrapped(line).split("\n")]

    def _sample(self, variable: str, site: str, density: str) -> None:
        self._say(f'{variable} = numpyro.sample("{_quoted(site)}", {density})')

    def _inside(self, variable: str, site: str, density: str) -> None:
        inner = _wrapped(f'{variable} = numpyro.sample("{_quoted(site)}", {density})')
        self.lines += textwrap.indent(inner, "    ").split("\n")

    def _feed(self, fed: Fed) -> None:
        self.fed.append(fed)

    def _name(self, text: str) -> str:
        """Make a name of Python of any text, one that is not yet taken."""
        name = re.sub(r"\W+", "_", text, flags=re.ASCII).strip("_") or "column"
        name = f"c_{name}" if name[0].isdigit() or keyword.iskeyword(name) else name
        return self._unique(name, self.names, "_")

    def _column(self, name: str) -> str:
        return self._unique(name, self.columns, "'")

    @staticmethod
    def _unique(name: str, taken: set[str], mark: str) -> str:
        while name in taken:
            name += mark
        taken.add(name)
        return name


def _fits_together(prior: Prior) -> bool:
    return prior.name == "Normal"


def _density(prior: Prior, columns: int = 0) -> str:
    """Write a prior as a distribution, of as many columns."""
    values = [
        _array(np.broadcast_to(value, columns).tolist()) if columns else _scalar(value)
        for value in prior.parameters
    ]
    if prior.name == "HalfStudentT":
        return f"dist.FoldedDistribution(dist.StudentT({values[0]}, 0.0, {values[1]}))"
    expand = f".expand([{columns}])" if columns and not any("[" in v for v in values) else ""
    return f"dist.{prior.name}({', '.join(values)}){expand}"


def _standard(columns: int) -> str:
    event = f".expand([{columns}]).to_event(1)" if columns else ""
    return f"dist.Normal(0.0, 1.0){event}"


def _plate(argument: str) -> str:
    return f'with numpyro.plate("{argument}", n_{argument}):'


def _times(given: str | None, effects: str, columns: int) -> str:
    """Multiply effects of rows by what is fed, and add up several a row."""
    if columns > 1:
        return f"({given} * {effects}).sum(-1)"
    return effects if given is None else f"{given} * {effects}"


def _scalar(value: Any) -> str:
    return number(np.ravel(value)[0])


def _array(values: Sequence[float], *, force: bool = False) -> str:
    """Write numbers as an array, or as one number where they are equal."""
    if len(set(values)) == 1 and len(values) > 1 and not force:
        return f"jnp.full({len(values)}, {number(values[0])})"
    return f"jnp.array([{', '.join(map(number, values))}])"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _safe(text: str) -> str:
    return _quoted(text).replace("\n", " ")


def _wrapped(line: str) -> str:
    """Break a long line at commas and spaces, never within a text."""
    if len(line) <= _WIDTH - 4 or ('"' in line and len(line) - line.rindex('"') < 20):
        return line
    pieces = re.split(r"(?<=,) (?=[^\"]*$)|(?<=\[)(?=[^\"]*$)", line)
    lines, current = [], pieces[0]
    for piece in pieces[1:]:
        joint = "" if current.endswith("[") else " "
        if len(current) + len(piece) + 1 > _WIDTH - 8:
            lines.append(current)
            current = "    " + piece
        else:
            current += joint + piece
    return "\n".join([*lines, current])
