"""Which fit a store holds, whether it is this one, and how it is gone on with."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import xarray as xr

from .cluster.client import current_client, current_work
from .cluster.journal import Journal, NotKept
from .cluster.store import Missing, Store
from .config import Options
from .frame.contents import changed
from .model.portable import code_of
from .model.remembered import remember
from .plan.plan import Plan
from .shard_data import Contents, Summary

_FILE = "dask_consensus.json"
_FORMAT = 1
# Options that change where and how a fit runs, and nothing of its answer.
_FREE = {"given", "store", "resources", "shards_per_task", "retries", "worker_timeout"}
_FREE |= {"freed_memory", "cache", "cache_size", "forecast"}
_LIBRARIES = ("jax", "jaxlib", "numpyro", "numpy", "scipy")  # on which the last bits depend
_NAMED = 5  # of what differs, of each kind
Fit = dict[str, Any]


class StoreMismatch(ValueError):
    """A store holds another fit than the one that is to be kept there."""


def check_store(options: Options) -> None:
    """Refuse a store before anything runs: one of another fit, or that nothing can be written to.

    Raises
    ------
    FileExistsError
        If something is there that is no store; nothing is overwritten.
    StoreMismatch
        If it holds a fit with other settings.
    OSError
        If it cannot be written to from here.
    ImportError
        If draws are to be written, without Zarr.
    """
    if options.store is None:
        return
    store = _usable(options)
    there = store.text(_FILE)
    if there is None and not store.is_empty():
        raise FileExistsError(
            f"store {store.url!r} exists already and is none of dask_consensus, and nothing is "
            "overwritten: remove it, or give another"
        )
    store.check_writable()
    fit = None if there is None else _read(there)
    if fit is not None:
        _refuse(store, list(_other_settings(fit, _settings(options))))


def check_draw_store(options: Options) -> None:
    """Refuse the store of an update, which keeps draws there alone, before anything runs.

    Raises
    ------
    ValueError
        If no draws are asked for.
    FileExistsError
        If anything is there; nothing is overwritten.
    OSError
        If it cannot be written to from here.
    ImportError
        Without Zarr.
    """
    if options.store is None:
        return
    if options.local != "draws":
        raise ValueError(
            f"update= with store={options.store!r}: an update keeps nothing in a store but draws "
            "of effects, and is not gone on with after a crash; leave store= out, or ask for "
            "local='draws'"
        )
    store = _usable(options)
    if not store.is_empty():
        raise FileExistsError(
            f"store {store.url!r} exists already, and an update does not go on from there: give "
            "it a store of its own"
        )
    store.check_writable()


def _usable(options: Options) -> Store:
    assert options.store is not None
    if options.local == "draws":
        try:
            import zarr  # noqa: F401
        except ImportError as error:
            raise ImportError(
                "store= writes draws to Zarr: install dask_consensus[store], or zarr"
            ) from error
    return Store(options.store)


def resumed(plan: Plan, run: Callable[[], xr.DataTree]) -> xr.DataTree:
    """Run a fit with what its store holds of it, and keep there what it finds.

    Raises
    ------
    StoreMismatch
        If the store holds another fit, saying what differs.
    """
    if plan.options.store is None:
        return run()
    work = current_work()
    work.journal = journal = _opened(Store(plan.options.store), plan)
    try:
        try:
            tree = run()
        except NotKept:
            # A file was damaged, or another machine rounds otherwise.
            journal.complete = False
            tree = run()
        journal.finish()
    finally:
        work.journal = None
    return tree


def goes_on() -> bool:
    """Tell whether the fit that runs now had begun before, and goes on from its store."""
    journal = current_work().journal
    return journal is not None and journal.begun


def known_shards() -> list[Summary] | None:
    """Return what shards hold where no rows need be sent to them: all answers are there."""
    journal = current_work().journal
    if journal is None or not journal.complete:
        return None
    shards = journal.shards()
    if shards is Missing:
        journal.complete = False
        return None
    return list(shards)


def checked_by(
    check: Callable[[Sequence[Summary]], None],
) -> Callable[[Sequence[Summary]], None]:
    """Have shards checked, and then against those that have answered: it raises `StoreMismatch`."""

    def checked(shards: Sequence[Summary]) -> None:
        check(shards)
        _check_shards(shards)

    return checked


def _check_shards(shards: Sequence[Summary]) -> None:
    journal = current_work().journal
    if journal is None:
        return
    before = journal.shards()
    if before is Missing:
        journal.put_shards(shards)
        return
    others = [
        k
        for k, (then, now) in enumerate(zip(before, shards, strict=True))
        if then.size != now.size or any(changed(then.contents, now.contents))
    ]
    if others:
        _refuse(
            journal.store,
            [
                f"{len(others)} of {len(shards)} shards (the first is shard {others[0]}) hold "
                "other rows: the same rows lie in other partitions, which shards are made of"
            ],
        )


# What a fit is


def _opened(store: Store, plan: Plan) -> Journal:
    """Open the store of this fit, or begin one."""
    fit, there = _described(plan), store.text(_FILE)
    before = None if there is None else _read(there)
    if before is not None:
        _refuse(store, list(_differences(before, fit)))
        _warn_of_versions(store, before, fit)
        name = str(before["id"])
    else:
        if there is not None:
            warnings.warn(
                f"{_FILE} of store {store.url!r} is damaged, so that nothing tells of which fit "
                "the rest is: all of it is computed again",
                UserWarning,
                stacklevel=5,
            )
            store.forget()
        name = uuid.uuid4().hex
        store.write_text(_FILE, _written({"id": name, **fit}))
    _check_seen(store, name)
    return Journal(store, name)


def _described(plan: Plan) -> Fit:
    """Say what a fit is, in terms of JSON."""
    survey, layout, assignment = plan.survey, plan.bindings.layout, plan.assignment
    function = plan.model.function
    model = remember(plan.model)
    for place in ("cache", "cache_size"):
        del model[place]
    columns = [*map(str, layout.by), *(str(column.column) for column in layout.direct)]
    described = {
        "format": _FORMAT,
        "dask_consensus": version("dask_consensus"),
        "versions": {name: version(name) for name in _LIBRARIES},
        "settings": _settings(plan.options),
        "by": [str(key) for key in layout.by],
        "arguments": {
            column.argument: [
                str(column.column),
                column.kind,
                str(plan.example.arguments[column.argument].dtype),
                [str(entry) for entry in column.categories],
            ]
            for column in layout.columns
        },
        "model": {"name": getattr(function, "__name__", "model"), "code": code_of(function)},
        "sites": model,
        "data": {
            "rows": survey.rows,
            "groups": survey.n_groups,
            "columns": columns,
            "checksums": list(survey.contents.checksums),
            # JSON knows no number that is none.
            "sums": [[str(number) for number in sums] for sums in survey.contents.sums],
        },
        "shards": {"kind": assignment.kind, "rows": assignment.rows.tolist()},
    }
    fit: Fit = json.loads(json.dumps(described))
    return fit


def _settings(options: Options) -> Fit:
    """Write down the options on which an answer depends; sections as the configuration has them."""
    settings: Fit = {}
    for name, value in dataclasses.asdict(options).items():
        if name in _FREE:
            continue
        if isinstance(value, Mapping):
            section = "local" if name == "local_limits" else name
            for key, number in value.items():
                settings[f"consensus.{section}.{key.replace('_', '-')}"] = number
        else:
            settings[name] = value
    plain: Fit = json.loads(json.dumps(settings, default=str))
    return plain


def _written(fit: Fit) -> str:
    return json.dumps({**fit, "sha256": _checksum(fit)}, indent=1)


def _read(text: str) -> Fit | None:
    """Read what a fit is; None if that is not what was written."""
    try:
        fit: Fit = json.loads(text)
        if fit.pop("sha256") == _checksum(fit):
            return fit
    except (ValueError, TypeError, AttributeError, KeyError):
        pass
    return None


def _checksum(fit: Fit) -> str:
    return hashlib.sha256(json.dumps(fit, sort_keys=True).encode()).hexdigest()


# What differs


def _refuse(store: Store, differences: Sequence[str]) -> None:
    if differences:
        raise StoreMismatch(
            f"store {store.url!r} holds another fit:\n- "
            + "\n- ".join(differences)
            + "\nMake this fit the same, or give it a store of its own"
        )


def _differences(then: Fit, now: Fit) -> Iterator[str]:
    """Say in what two fits differ: settings, model, data."""
    yield from _other_settings(then, now["settings"])
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


def _other_settings(then: Fit, settings: Fit) -> Iterator[str]:
    if then.get("format") != _FORMAT or then["dask_consensus"] != version("dask_consensus"):
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
            hint = f", perhaps through other packages ({_other_versions(then, now)})"
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


def _warn_of_versions(store: Store, then: Fit, now: Fit) -> None:
    if then["versions"] != now["versions"]:
        warnings.warn(
            f"store {store.url!r} was begun with other packages ({_other_versions(then, now)}): "
            "the last digits of the answer may be others than theirs",
            UserWarning,
            stacklevel=6,
        )


def _other_versions(then: Fit, now: Fit) -> str:
    return "; ".join(_other("", then["versions"], now["versions"], str))


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(map(str, names[:_NAMED])) + more


def _or_none(keys: Sequence[str]) -> str:
    return ", ".join(map(repr, keys)) or "None"


# Who sees it


def _check_seen(store: Store, name: str) -> None:
    """Refuse a store that some worker does not see: it has to write there."""
    client = current_client()
    if client is None:
        return
    answers = client.run(_blind, store, name, on_error="return")
    # A worker that does not answer is no matter of the store.
    blind = {worker: why for worker, why in answers.items() if isinstance(why, str) and why}
    if blind:
        worker, why = next(iter(blind.items()))
        raise OSError(
            f"store {store.url!r} is not seen by {len(blind)} of {len(answers)} workers, such as "
            f"{worker}: {why}. Workers write there: give a folder that all machines share, or a "
            "URL that all of them reach"
        )


def _blind(store: Store, name: str) -> str:
    """Say why a store is not there, or not the same; runs on a worker."""
    try:
        there = store.text(_FILE)
        if there is None or name not in there:
            return "there is nothing there, or another store"
        store.check_writable()
    except Exception as error:
        return str(error) or type(error).__name__
    return ""
