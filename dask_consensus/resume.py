"""Which fit a store holds, whether it is this one, and how it is gone on with."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version

import fsspec
import xarray as xr

from .cluster.client import current_client, current_work
from .cluster.journal import Journal, NotKept
from .cluster.store import Missing, Store
from .config import Options
from .differences import FORMAT, Fit, differences, other_settings, other_versions
from .frame.contents import changed
from .model.portable import code_of
from .model.remembered import remember
from .plan.plan import Plan
from .result.plain import plain_tree, tree_of
from .shard_data import Summary
from .warned import warn

_FILE = "dask_consensus.json"
# Options that change where and how a fit runs, and nothing of its answer.
_FREE = {"given", "store", "resources", "shards_per_task", "retries", "worker_timeout"}
_FREE |= {"freed_memory", "cache", "cache_size", "forecast"}
_LIBRARIES = ("jax", "jaxlib", "numpyro", "numpy", "scipy")  # on which the last bits depend


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
        _refuse(store, list(other_settings(fit, _settings(options))))


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


def resumed(plan: Plan, run: Callable[[], xr.DataTree], begins: str = "") -> xr.DataTree:
    """Run a fit with what its store holds of it, and keep there what it finds.

    A fit within an update, whose store is open, is a part of that. `begins` names what an update
    begins from.

    Raises
    ------
    StoreMismatch
        If the store holds another fit, saying what differs.
    """
    work = current_work()
    if plan.options.store is None or work.journal is not None:
        return run()
    work.journal = journal = _opened(Store(plan.options.store), plan, begins)
    try:
        try:
            tree = run()
        except NotKept:
            # A file was damaged, or another machine rounds otherwise.
            journal.complete = False
            tree = run()
        if journal.get(_tree_of(journal.name)) is Missing:
            journal.put(_tree_of(journal.name), plain_tree(tree))
        journal.finish()
    finally:
        work.journal = None
    return tree


def finished_tree(url: str) -> xr.DataTree:
    """Read the result of the fit that a store holds; nothing is computed.

    Raises
    ------
    FileNotFoundError
        If nothing is there.
    ValueError
        If it is no store of a fit, or of one that has not finished, or what was kept of its result
        is damaged.
    """
    where = f"update={url!r}"
    store = Store(url)
    there = store.text(_FILE)
    if there is None:
        raise _no_store(store, where)
    fit = _read(there)
    if fit is None:
        raise ValueError(
            f"{where}: {_FILE} there is damaged, so that nothing tells which fit it is of. Call "
            "fit again with this store=, which computes it again, and update what it returns"
        )
    if fit.get("format") != FORMAT:
        raise ValueError(
            f"{where}: the store was written by dask_consensus {fit.get('dask_consensus')}, in "
            f"another form than that of {version('dask_consensus')}. Update the tree that the fit "
            "returned, as it was saved"
        )
    journal = Journal(store, str(fit["id"]))
    if not journal.complete:
        name = fit["model"]["name"]
        raise ValueError(
            f"{where}: the fit there (of the model {name!r} to {fit['data']['rows']:,} rows) has "
            "not finished. The call that began it goes on from there; update it then"
        )
    kept = journal.get(_tree_of(journal.name))
    if kept is Missing:
        raise ValueError(
            f"{where}: the fit there has finished, but its result is not kept with it, or is "
            "damaged. The call that fitted it reads the rest, returns the tree and keeps it anew"
        )
    return tree_of(kept, url)


def _no_store(store: Store, where: str) -> Exception:
    system, root = fsspec.core.url_to_fs(store.url)
    if not system.exists(root):
        return FileNotFoundError(
            f"{where}: nothing is there; give the store= of a fit that has finished, or what fit "
            "returned"
        )
    zarr = any(system.exists(f"{root}/{name}") for name in ("zarr.json", ".zgroup"))
    engine = ', engine="zarr"' if zarr else ""
    saved = f"xr.open_datatree({store.url!r}{engine})"
    return ValueError(
        f"{where} is no store of a fit, which holds {_FILE}; if a tree was saved there, open it: "
        f"update={saved}"
    )


def _tree_of(name: str) -> str:
    """Name the record of the result."""
    return f"tree-{name}"


def goes_on() -> bool:
    """Tell whether the fit that runs now had begun before, and goes on from its store."""
    journal = current_work().journal
    return journal is not None and journal.begun


def known_shards(whose: str = "") -> list[Summary] | None:
    """Return what shards hold where no rows need be sent to them: all answers are there."""
    journal = current_work().journal
    if journal is None or not journal.complete:
        return None
    shards = journal.shards(whose)
    if shards is Missing:
        journal.complete = False
        return None
    return list(shards)


def checked_by(
    check: Callable[[Sequence[Summary]], None], whose: str = ""
) -> Callable[[Sequence[Summary]], None]:
    """Have shards checked, and then against those that have answered: it raises `StoreMismatch`."""

    def checked(shards: Sequence[Summary]) -> None:
        check(shards)
        _check_shards(shards, whose)

    return checked


def _check_shards(shards: Sequence[Summary], whose: str) -> None:
    journal = current_work().journal
    if journal is None:
        return
    before = journal.shards(whose)
    if before is Missing:
        journal.put_shards(whose, shards)
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


def _opened(store: Store, plan: Plan, begins: str) -> Journal:
    """Open the store of this fit, or begin one."""
    fit, there = _described(plan, begins), store.text(_FILE)
    before = None if there is None else _read(there)
    if before is not None:
        _refuse(store, list(differences(before, fit)))
        _warn_of_versions(store, before, fit)
        name = str(before["id"])
    else:
        if there is not None:
            warn(
                f"{_FILE} of store {store.url!r} is damaged, so that nothing tells of which fit "
                "the rest is: all of it is computed again",
            )
            store.forget()
        name = uuid.uuid4().hex
        store.write_text(_FILE, _written({"id": name, **fit}))
    _check_seen(store, name)
    return Journal(store, name)


def _described(plan: Plan, begins: str) -> Fit:
    """Say what a fit is, in terms of JSON."""
    survey, layout, assignment = plan.survey, plan.bindings.layout, plan.assignment
    function = plan.model.function
    model = remember(plan.model)
    for place in ("cache", "cache_size"):
        del model[place]
    columns = [*map(str, layout.by), *(str(column.column) for column in layout.direct)]
    described = {
        "format": FORMAT,
        "dask_consensus": version("dask_consensus"),
        "versions": {name: version(name) for name in _LIBRARIES},
        "settings": _settings(plan.options),
        "update": begins,
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


def _refuse(store: Store, told: Sequence[str]) -> None:
    if told:
        raise StoreMismatch(
            f"store {store.url!r} holds another fit:\n- "
            + "\n- ".join(told)
            + "\nMake this fit the same, or give it a store of its own"
        )


def _warn_of_versions(store: Store, then: Fit, now: Fit) -> None:
    if then["versions"] != now["versions"]:
        warn(
            f"store {store.url!r} was begun with other packages ({other_versions(then, now)}): "
            "the last digits of the answer may be others than theirs",
        )


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
