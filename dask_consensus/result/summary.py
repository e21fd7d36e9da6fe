"""What a tree says at a glance, in a terminal and in a notebook, and its attributes as objects."""

from __future__ import annotations

import json
import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..plan.page import page, paragraph
from ..plan.tables import Table

if TYPE_CHECKING:
    import xarray as xr

_MOST = 40  # parameters that are listed
_QUANTILES = (0.05, 0.95)
_WIDTH = 96


@dataclass(frozen=True, repr=False)
class Summary:
    """What :func:`summary` says of a fit; prints as tables, and as a page in a notebook.

    Attributes
    ----------
    good : bool
        Whether the fit may be relied on as the full model's posterior.
    verdict : str
        Why, or why not.
    reasons : list of dict
        What speaks against it: code, value, threshold, where, problem, remedy.
    accuracy : dict of str to float
        Estimated error of the mean of each unconstrained parameter, in posterior sds; infinite
        where its size is unknown.
    profile : dict of str to float
        Seconds of each phase.
    forecast : dict
        What was expected before the long phases: seconds of each (least, likely, most), memory in
        bytes, tasks, points; empty where nothing was.
    used : dict
        What was used in truth: tasks, and the peak of a worker's memory in bytes, since its process
        began.
    facts : dict of str to str
        What was fitted, and how.
    parameters : list of tuple
        Name, mean, sd, 5% and 95% quantile, as printed.
    """

    good: bool
    verdict: str
    reasons: list[dict[str, Any]]
    accuracy: dict[str, float]
    profile: dict[str, float]
    forecast: dict[str, Any]
    used: dict[str, int]
    facts: dict[str, str]
    parameters: list[tuple[str, ...]]

    def tables(self) -> list[Table]:
        """Lay it out."""
        head = ("parameter", "mean", "sd", "5%", "95%", "error of the mean, sds")
        made = [
            Table("fit", (), [[name, text] for name, text in self.facts.items()]),
            Table("parameters", head, self.parameters),
            Table(
                "time",
                ("phase", "seconds", "forecast", "at least", "at most"),
                [[phase, f"{s:.1f}", *self._forecast(phase)] for phase, s in self.profile.items()],
            ),
        ]
        if self.forecast:
            made.append(Table("needs", ("", "used", "forecast"), self._needs()))
        if self.reasons:
            named = ("code", "where", "found", "limit", "what to do")
            rows = [
                [r["code"], r["where"], _number(r["value"]), _number(r["threshold"]), r["remedy"]]
                for r in self.reasons
            ]
            made.insert(0, Table("what speaks against it", named, rows))
        return [table for table in made if table.rows]

    def _needs(self) -> list[list[str]]:
        """Say what was needed beside time, and what was expected to be."""
        memory = [f"{one.get('memory', 0) / 2**20:,.0f} MiB" for one in (self.used, self.forecast)]
        tasks = [f"{one.get('tasks', 0):,}" for one in (self.used, self.forecast)]
        least, more = self.forecast["points"]
        points = [f"{self.used.get('points', 0):,}", f"{least:,}, or {more:,} and more"]
        return [
            ["memory a worker", *memory],
            ["tasks", *tasks],
            *([["points", *points]] if least else []),
        ]

    def _forecast(self, phase: str) -> list[str]:
        """Say what was expected of a phase: likely, at least, at most."""
        seconds = self.forecast.get("seconds", {}).get(phase)
        if seconds is None:
            return ["-"] * 3
        least, likely, most = (f"{s:.1f}" for s in seconds)
        return [likely, least, most]

    def __repr__(self) -> str:
        parts = [textwrap.fill(self.verdict, _WIDTH)]
        for table in self.tables():
            if table.title == "what speaks against it":
                parts += [
                    textwrap.fill(f"{row[0]}: {row[4]}", _WIDTH, subsequent_indent="  ")
                    for row in table.rows
                ]
            else:
                parts.append(table.text())
        return "\n\n".join(parts)

    def _repr_html_(self) -> str:
        title = "\u2713 good" if self.good else "\u2717 not to be relied on"
        unfolded = ("parameters", "what speaks against it")
        parts = [paragraph(self.verdict)]
        parts += [table.html(unfolded=table.title in unfolded) for table in self.tables()]
        return page(title, parts, "good" if self.good else "bad")


def summary(tree: xr.DataTree) -> Summary:
    """Say what a fit gave, at a glance.

    Parameters
    ----------
    tree : DataTree
        What ``ddf.consensus.fit`` returned, as it was, or read from netCDF or Zarr.

    Returns
    -------
    Summary
        Prints as tables; in a notebook it is a page, in light and dark. What the attributes of the
        tree hold as JSON it has as objects.

    Raises
    ------
    ValueError
        If the tree is no result of a fit.

    Examples
    --------
    `tree` is that of the example of ``DataFrame.consensus.fit``.

    >>> told = summary(tree)
    >>> told.good, sorted(told.accuracy)
    (True, ['mu', 'tau'])
    >>> sorted(told.profile)[:3]
    ['check', 'compile', 'correction']
    """
    attributes = tree.attrs
    if "verdict" not in attributes or "posterior" not in tree.children:
        raise ValueError(
            "the tree is no result of ddf.consensus.fit: it has no verdict, or no posterior"
        )
    accuracy = _decoded(attributes, "accuracy", {})
    accuracy = {name: np.inf if error is None else error for name, error in accuracy.items()}
    return Summary(
        good=bool(attributes["verdict_good"]),
        verdict=str(attributes["verdict"]),
        reasons=_decoded(attributes, "verdict_reasons", []),
        accuracy=accuracy,
        profile=_decoded(attributes, "profile", {}),
        forecast=_decoded(attributes, "forecast", {}),
        used=_used(tree),
        facts=_facts(tree),
        parameters=_parameters(tree["posterior"].to_dataset(), accuracy),
    )


def _decoded(attributes: Any, name: str, otherwise: Any) -> Any:
    """Read an attribute that is written as JSON."""
    return json.loads(attributes[name]) if name in attributes else otherwise


def _used(tree: xr.DataTree) -> dict[str, int]:
    used: dict[str, int] = _decoded(tree.attrs, "used", {})
    if "correction" in tree.children:
        used["points"] = tree["correction"].sizes["point"]
    return used


def _facts(tree: xr.DataTree) -> dict[str, str]:
    attributes, posterior = tree.attrs, tree["posterior"]
    by = _decoded(attributes, "by", [])
    sizes = posterior.sizes
    chains = f"{sizes['chain']} chain{'s' * (sizes['chain'] != 1)} of {sizes['draw']:,} draws"
    facts = {
        "rows": f"{int(attributes['n_rows']):,}" if "n_rows" in attributes else "",
        "groups of": ", ".join(map(str, by)),
        "shards": f"{int(attributes['n_shards']):,}",
        "method": str(attributes["method_used"]),
        "posterior": chains,
        "other groups": ", ".join(name for name in tree.children if name != "posterior"),
        "made": str(attributes["created_at"])[:19],
    }
    return {name: text for name, text in facts.items() if text}


def _parameters(posterior: xr.Dataset, accuracy: dict[str, float]) -> list[tuple[str, ...]]:
    """Describe the first parameters: what is printed of each."""
    rows: list[tuple[str, ...]] = []
    n = 0
    for name, variable in posterior.data_vars.items():
        dims = [dim for dim in variable.dims if dim not in ("chain", "draw")]
        values = variable.transpose("chain", "draw", *dims)
        labels = [np.asarray(values[dim].values) for dim in dims]
        shape = values.shape[2:]
        n += int(np.prod(shape, dtype=int))
        for index in np.ndindex(shape):
            if len(rows) == _MOST:
                break
            draws = values.values[(slice(None), slice(None), *index)].ravel()
            at = [str(label[i]) for label, i in zip(labels, index, strict=True)]
            label = str(name) + (f"[{', '.join(at)}]" if at else "")
            numbered = str(name) + (f"[{', '.join(map(str, index))}]" if index else "")
            error = accuracy.get(label, accuracy.get(numbered))
            low, high = np.quantile(draws, _QUANTILES)
            numbers = (draws.mean(), draws.std(ddof=1), low, high)
            rows.append(
                (
                    label,
                    *(f"{number:,.4g}" for number in numbers),
                    "" if error is None else f"{error:.2g}" if np.isfinite(error) else "unknown",
                )
            )
    if n > len(rows):
        rows.append((f"and {n - len(rows):,} more", "", "", "", "", ""))
    return rows


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
