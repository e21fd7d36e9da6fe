"""In what two fits differ, each as a store describes it: settings, model, data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from typing import Any

from .frame.contents import changed
from .shard_data import Contents

FORMAT = 1
"""Of the description of a fit, and of the records beside it."""
_NAMED = 5  # of what differs, of each kind
Fit = dict[str, Any]


def differences(then: Fit, now: Fit) -> Iterator[str]:
    """Say in what two fits differ: settings, model, data."""
    yield from other_settings(then, now["settings"])
    before, here = then.get("update", ""), now["update"]
    if before and here and before != here:
        yield "update: it began from another earlier fit"
    elif before != here:
        kinds = [f"{'an' if one else 'no'} update of an earlier fit" for one in (before, here)]
        yield f"it holds {kinds[0]}, and this is {kinds[1]}"
    if then["by"] != now["by"]:
        yield f"by: {_or_none(then['by'])} in the store, {_or_none(now['by'])} now"
    yield from _other(
        "argument",
        then["arguments"],
        now["arguments"],
        lambda told: f"column {told[0]!r} ({told[2]})",
    )
    code = then["model"]["code"] != now["model"]["code"]
    if then["sites"] != now["sites"] or code:
        yield from _other_model(then, now)
    elif then["arguments"] == now["arguments"] and then["by"] == now["by"]:
        yield from _other_data(then, now)


def other_settings(then: Fit, settings: Fit) -> Iterator[str]:
    """Say which settings differ, and whether another version has written them."""
    if then.get("format") != FORMAT or then["dask_consensus"] != version("dask_consensus"):
        yield (
            f"it was written by dask_consensus {then['dask_consensus']}, this is "
            f"{version('dask_consensus')}"
        )
    yield from _other("", then["settings"], settings, repr)


def _other(what: str, then: Fit, now: Fit, told: Callable[[Any], str]) -> Iterator[str]:
    """Say which entries differ, and how."""
    for name in dict.fromkeys([*then, *now]):
        if then.get(name) != now.get(name):
            pair = [told(fit[name]) if name in fit else "absent" for fit in (then, now)]
            if pair[0] == pair[1]:
                pair = [repr(fit.get(name)) for fit in (then, now)]
            yield f"{what} {name}: {pair[0]} in the store, {pair[1]} now".strip()


def _other_model(then: Fit, now: Fit) -> Iterator[str]:
    names = then["model"]["name"], now["model"]["name"]
    called = f"{names[0]!r}" if names[0] == names[1] else f"{names[0]!r}, now {names[1]!r}"
    sites = [
        {site["name"]: site for site in (*fit["sites"]["latents"], *fit["sites"]["terms"])}
        for fit in (then, now)
    ]
    others = [
        name
        for name in dict.fromkeys([*sites[0], *sites[1]])
        if sites[0].get(name) != sites[1].get(name)
    ]
    if others:
        yield f"the model ({called}) has other sites: {_some(others)}"
    elif then["sites"] == now["sites"]:
        hint = ""
        if then["versions"] != now["versions"]:
            hint = f", perhaps through other packages ({other_versions(then, now)})"
        yield (f"the model ({called}) has other code, or other values of what it refers to{hint}")
    else:
        others = [name for name in then["sites"] if then["sites"][name] != now["sites"].get(name)]
        yield f"the model ({called}) is read otherwise: {_some(others)}"


def _other_data(then: Fit, now: Fit) -> Iterator[str]:
    before, here = then["data"], now["data"]
    for what in ("rows", "groups"):
        if before[what] != here[what]:
            yield f"data: {before[what]:,} {what} in the store, {here[what]:,} now"
    contents = [
        Contents(tuple(data["checksums"]), tuple(tuple(map(float, sums)) for sums in data["sums"]))
        for data in (before, here)
    ]
    other = [i for i, one in enumerate(changed(*contents)) if one]
    if other:
        # Floats are weighed by the other columns, and change with them.
        exact = [i for i in other if not any(contents[0].sums[i])]
        columns = _some([repr(here["columns"][i]) for i in exact or other])
        yield f"data: the rows hold other values in {columns}"
    elif then["shards"] != now["shards"] and before["rows"] == here["rows"]:
        yield "data: the same rows lie in other partitions, which shards are made of"


def other_versions(then: Fit, now: Fit) -> str:
    """Say which packages had other versions."""
    return "; ".join(_other("", then["versions"], now["versions"], str))


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(map(str, names[:_NAMED])) + more


def _or_none(keys: Sequence[str]) -> str:
    return ", ".join(map(repr, keys)) or "None"
