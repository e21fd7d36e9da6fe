"""What a fit makes of faults: workers that end, stand still or fill up, disks, files, odd input.

Each fault is put into a small fit, at a phase of it that is told by the fit itself; what comes out
is held, bit by bit, against the same fit undisturbed. Tasks done again are counted as the scheduler
sees them finish.

- ``kills``: workers of a cluster killed, exited, retired, out of memory, in each phase, one or all.
- ``straggler``: a worker that stands still for a while, or for good.
- ``time``: some of these beside an undisturbed fit on the same cluster, on a quiet machine.
- ``disk``: no room for compiled code, for draws, for the workers' own folders (needs a mount).
- ``files``: Parquet files that are cut short, gone, of another shape, or changed while a fit runs.
- ``soak``: 500 small shards, and a worker killed every 30 seconds until the fit is done.
- ``resumed``: the client killed, alone or with its cluster, or the scheduler, beside a store.
- ``damaged``: each file of a store, and of the folder of compiled code, cut short or flipped.
- ``frames``, ``models``: drawn at random; each must be right, or refused in words.

    python -m benchmarks.faults kills straggler
    python -m benchmarks.faults kills --kind SIGKILL --whom one --phase search --again
    python -m benchmarks.faults frames --count 3000
    python -m benchmarks.faults --table                         # print what there is
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import shutil
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import dask
import dask.dataframe as dd
import numpy as np

from .measure import disturbed, odd
from .measure.disturbed import KINDS, When, cluster_of, digest, small_fit, small_rows
from .measure.fits import on_purpose, quietly
from .measure.internals import phases_told
from .measure.machine import facts
from .measure.resumed import digest_in, in_child, killed_and_resumed
from .measure.script import Store, parse
from .measure.watch import Watched
from .tables.faults import tables

PHASES = ("plan", "shard", "check", "search", "correction", "local")
CRASHES = ("client", "client and cluster", "scheduler")
TOY = {
    "kind": ["SIGKILL"], "whom": ["one"], "phase": ["search"], "rows": 600, "shards": 3,
    "count": 10, "block": 10, "resumed": ["client"], "crashes": 1, "damages": 2, "soak_shards": 6,
    "every": 2.0, "part": ["kills", "frames", "models"],
}  # fmt: skip


def fit_of(args: argparse.Namespace, shards: int, ddf: Any = None, **options: Any) -> Any:
    """The fit that is disturbed."""
    return small_fit(args.rows, shards, args.seed, ddf, **options)


def run_kills(store: Store, args: argparse.Namespace) -> None:
    """Hurt one worker or all, in each phase, in each way."""
    faults = [
        {"kind": kind, "whom": whom, "phase": phase, "repeat": repeat}
        for kind, whom, phase, repeat in product(
            args.kind, args.whom, args.phase, range(args.repeats)
        )
    ]
    _hurt(store, args, "kills", [(fault, KINDS[fault["kind"]], {}) for fault in faults])


def run_straggler(store: Store, args: argparse.Namespace) -> None:
    """Have one of two workers stand still."""
    lively = {"distributed.scheduler.worker-ttl": "20s"}
    ways = [("stands still for 15 s", 15.0, {}), ("stands still for good", math.inf, lively)]
    _hurt(store, args, "straggler", [
        ({"kind": kind, "whom": "one", "phase": phase, "repeat": 0}, disturbed.stop_for(s), config)
        for (kind, s, config), phase in product(ways, ("shard", "search", "correction"))
    ])  # fmt: skip


def _hurt(store: Store, args: argparse.Namespace, part: str, faults: Sequence[Any]) -> None:
    """Run each fault that is not in the file, on a cluster as long as its kind leaves it whole."""
    wanted = [one for one in faults if store.get({"part": part, **one[0]}) is None]
    if not wanted:
        return
    for fault, injury, config in wanted:
        with cluster_of(_workers(fault), **config) as (cluster, client):
            lazy = fit_of(args, args.shards)
            plain = _undisturbed(store, args, lazy, cluster, client)
            when = When(fault["phase"], args.after)
            machine = facts()
            row = disturbed.disturbed(lazy, cluster, client, when, fault["whom"], injury)
            del lazy
        row |= {"identical": row.pop("digest", "") == plain["digest"]}
        row |= {"undisturbed": plain["seconds"], "machine": machine}
        print(part, *fault.values(), _said(store.put({"part": part, **fault}, row)), flush=True)


def _workers(fault: dict[str, Any]) -> int:
    """Start two, and two more where both retire: what they have must go to somebody."""
    return 4 if (fault["kind"], fault["whom"]) == ("retired", "all") else 2


def run_time(store: Store, args: argparse.Namespace) -> None:
    """The same fit twice on a cluster that has run it once: undisturbed, and disturbed."""
    ways = [*KINDS.items(), ("stands still for 15 s", disturbed.stop_for(15.0))]
    for (kind, injury), whom, phase in product(ways, args.whom, args.phase):
        key = {"part": "time", "kind": kind, "whom": whom, "phase": phase}
        wanted = kind in args.kind or (whom == "one" and kind not in KINDS)
        if not wanted or store.get(key) is not None:
            continue
        with cluster_of(_workers(key)) as (cluster, client):
            lazy, machine = fit_of(args, args.shards), facts()
            rows = [
                disturbed.disturbed(lazy, cluster, client, When(name, args.after), whom, injury)
                for name in ("never", "never", phase)
            ]
        undisturbed, row = rows[1:]
        row |= {"identical": row.pop("digest", "") == undisturbed["digest"]}
        row |= {"undisturbed": undisturbed["seconds"], "rows": args.rows, "machine": machine}
        said = f"{row['seconds']} s, undisturbed {row['undisturbed']} s"
        print("time", kind, whom, phase, _said(store.put(key, row)), said, flush=True)


def _undisturbed(
    store: Store, args: argparse.Namespace, lazy: Any, cluster: Any, client: Any
) -> dict[str, Any]:
    """The same fit on such a cluster, and nothing happens."""
    key = {"part": "undisturbed", "rows": args.rows, "shards": args.shards, "seed": args.seed}
    # Draws of another version may differ, and not by a fault.
    key |= {"version": facts()["commit"]}
    row = store.get(key)
    if row is None:
        never = When("never", 1)
        row = disturbed.disturbed(lazy, cluster, client, never, "one", lambda *_: None)
        if not row["finished"]:
            raise RuntimeError(f"undisturbed, the fit fails: {row['failed']}")
        row = store.put(key, {**row, "machine": facts()})
    return row


def run_soak(store: Store, args: argparse.Namespace) -> None:
    """Many small shards on two workers, one of which is killed every so many seconds."""
    key = {"part": "soak", "shards": args.soak_shards, "every": args.every}
    if store.get(key) is not None:
        return
    rows = args.soak_shards * 20
    ddf = dd.from_pandas(small_rows(rows), npartitions=20, sort=False)
    with dask.config.set(scheduler="threads"):
        plain = quietly(fit_of(args, args.soak_shards, ddf))
    machine = facts()
    with cluster_of(2) as (cluster, client):
        finished = disturbed.Finished()
        cluster.scheduler.add_plugin(finished)
        killer = disturbed.Killer(client, args.every)
        killer.start()
        began = time.perf_counter()
        try:
            row: dict[str, Any] = {
                "finished": True,
                "identical": digest(quietly(fit_of(args, args.soak_shards, ddf))) == digest(plain),
            }
        except Exception as error:
            row = {"finished": False, "failed": f"{type(error).__name__}: {error}"}
        row |= {"seconds": round(time.perf_counter() - began, 1), **finished.read()}
        killer.stop()
    row |= {"kills": killer.kills, "machine": machine}
    print("soak", _said(store.put(key, row)), flush=True)


def run_files(store: Store, args: argparse.Namespace) -> None:
    """Spoil one of six Parquet files, before a fit or while it runs."""
    for name, (spoil, phase) in FILES.items():
        key = {"part": "files", "kind": name}
        if store.get(key) is None:
            machine = facts()
            with (
                tempfile.TemporaryDirectory() as folder,
                dask.config.set(scheduler="threads", num_workers=2),
            ):
                row = _spoilt(args, Path(folder), spoil, phase)
            print("files", name, _said(store.put(key, {**row, "machine": machine})), flush=True)


def _spoilt(
    args: argparse.Namespace, folder: Path, spoil: Callable[[Path], None], phase: str
) -> dict[str, Any]:
    dd.from_pandas(small_rows(args.rows), npartitions=6, sort=False).to_parquet(folder)
    ddf = dd.read_parquet(folder)
    lazy = fit_of(args, args.shards, ddf, local=None)
    plain = digest(quietly(lazy)) if phase and spoil is touched else ""
    told = []

    def tell(name: str) -> None:
        if name == phase and not told:
            told.append(name)
            spoil(folder / "part.3.parquet")

    if not phase:
        spoil(folder / "part.3.parquet")
    return _outcome(lambda: lazy_in(tell, lazy), plain)


def lazy_in(tell: Callable[[str], None], lazy: Any) -> Any:
    """Run a fit whose phases are told."""
    with phases_told(tell):
        return quietly(lazy)


def _outcome(work: Callable[[], Any], plain: str) -> dict[str, Any]:
    """Say how work ended: its draws those of another run, or what the error says."""
    began = time.perf_counter()
    try:
        name = digest(work())
        row: dict[str, Any] = {"finished": True, "digest": name, "identical": name == plain}
    except Exception as error:
        said = "; ".join([f"{type(error).__name__}: {error}", *getattr(error, "__notes__", ())])
        named = any(name in said for name in ("part.3", "draws.zarr", "P2P")) or on_purpose(error)
        row = {"finished": False, "failed": said[:600], "named": named}
    return row | {"seconds": round(time.perf_counter() - began, 2)}


def _rewritten(change: Callable[[Any], Any]) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        import pandas as pd

        change(pd.read_parquet(path)).to_parquet(path)

    return spoil


def touched(path: Path) -> None:
    """Write the same rows once more."""
    path.write_bytes(path.read_bytes())


def _flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    for at in range(4, min(len(content) - 8, 400), 7):
        content[at] ^= 0x55
    path.write_bytes(bytes(content))


FILES: dict[str, tuple[Callable[[Path], None], str]] = {
    "cut short": (lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]), ""),
    "empty": (lambda path: path.write_bytes(b""), ""),
    "gone": (lambda path: path.unlink(), ""),
    "no Parquet": (lambda path: path.write_bytes(b"PAR1" + b"x" * 500 + b"PAR1"), ""),
    "bytes flipped": (_flipped, ""),
    "a column less": (_rewritten(lambda rows: rows.drop(columns="x")), ""),
    "a column of text": (_rewritten(lambda rows: rows.assign(x="a")), ""),
    "gone while it runs": (lambda path: path.unlink(), "shard"),
    "cut short while it runs": (
        lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]), "shard"
    ),
    "a row less while it runs": (_rewritten(lambda rows: rows.iloc[1:]), "shard"),
    "a value changed while it runs": (
        _rewritten(lambda rows: rows.assign(x=rows["x"].where(rows.index != rows.index[3], 0.5))),
        "shard",
    ),
    "rows of two groups exchanged while it runs": (
        _rewritten(lambda rows: rows.assign(group=rows["group"].to_numpy()[::-1])), "shard"
    ),
    "written anew with the same rows": (touched, "shard"),
}  # fmt: skip


def run_disk(store: Store, args: argparse.Namespace) -> None:
    """Leave no room where a fit writes."""
    for name, run in DISKS.items():
        key = {"part": "disk", "kind": name}
        if store.get(key) is None:
            store.measure(key, run, args)
            print("disk", name, _said(store.get(key) or {}), flush=True)


class _Full:
    """A folder with room for so many bytes and no more; needs the right to mount."""

    def __init__(self, room: int) -> None:
        self._room = room

    def __enter__(self) -> Path:
        self._folder = tempfile.mkdtemp()
        options = f"size={max(self._room, 4096)},mode=0700"
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", self._folder]
        subprocess.run(command, check=True, capture_output=True)
        return Path(self._folder)

    def __exit__(self, *_: Any) -> None:
        subprocess.run(["umount", "-l", self._folder], check=False)
        os.rmdir(self._folder)


def _full_cache(args: argparse.Namespace) -> dict[str, Any]:
    """In a process of its own, which has compiled nothing yet."""
    lazy = fit_of(args, args.shards)
    with (
        _Full(64 * 1024) as folder,
        dask.config.set({"scheduler": "threads", "consensus.cache": str(folder)}),
        warnings.catch_warnings(record=True) as caught,
    ):
        warnings.simplefilter("always")
        row = _outcome(fit_of(args, args.shards).compute, "")
    with dask.config.set({"scheduler": "threads", "consensus.cache": ""}):
        row["identical"] = row.pop("digest", "") == digest(quietly(lazy))
    said = [str(one.message) for one in caught if "cannot be kept" in str(one.message)]
    return row | {"warnings": len(said), "said": said[:1]}


def _full_store(args: argparse.Namespace) -> dict[str, Any]:
    with _Full(32 * 1024) as folder, dask.config.set(scheduler="threads"):
        store = str(folder / "draws.zarr")
        lazy = fit_of(args, args.shards, local="draws", store=store, local_draws=400)
        return _outcome(lambda: quietly(lazy), "")


def _full_scratch(args: argparse.Namespace) -> dict[str, Any]:
    with cluster_of(2):
        plain = digest(quietly(fit_of(args, args.shards)))
    patience = {"consensus.worker-timeout": 40}
    with (
        _Full(2**22) as folder,
        dask.config.set(patience),
        cluster_of(2, str(folder)) as (_, client),
    ):
        client.wait_for_workers(2)
        left = _filled(folder)
        row = _outcome(lambda: quietly(fit_of(args, args.shards)), plain)
    return {**row, "left": left}


def _filled(folder: Path) -> int:
    """Write until nothing more can be; say how many bytes are left."""
    with contextlib.suppress(OSError), (folder / "filled").open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)
    return shutil.disk_usage(folder).free


DISKS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "compiled code": _full_cache,
    "draws of effects": _full_store,
    "folders of the workers": _full_scratch,
}


def run_resumed(store: Store, args: argparse.Namespace) -> None:
    """Kill what drives a fit, again and again, and go on from its store."""
    settings = [args.rows, args.shards, args.seed]
    plain = ""
    for whom in args.resumed:
        key = {"part": "resumed", "whom": whom, "asked": args.crashes}
        if store.get(key) is not None:
            continue
        machine = facts()
        with tempfile.TemporaryDirectory() as cache:
            if not plain:
                plain = digest_in(in_child("threads", "", settings, cache))
            began = time.perf_counter()
            in_child("threads", "", settings, cache)
            undisturbed = round(time.perf_counter() - began, 1)
            row = killed_and_resumed(whom, args.crashes, args.step, settings, cache)
        row |= {"identical": row.pop("digest") == plain, "undisturbed": undisturbed}
        print("resumed", whom, _said(store.put(key, {**row, "machine": machine})), flush=True)


def run_damaged(store: Store, args: argparse.Namespace) -> None:
    """Cut short or flip what a fit has kept, and fit once more."""
    for name, run in {"store": _damaged_store, "compiled code": _damaged_code}.items():
        key = {"part": "damaged", "kind": name}
        if store.get(key) is None:
            machine = facts()
            row = run(args)
            print("damaged", name, row, flush=True)
            store.put(key, {**row, "machine": machine})


def _damaged_store(args: argparse.Namespace) -> dict[str, Any]:
    """Every file in turn, as many as are asked for."""
    with (
        tempfile.TemporaryDirectory() as folder,
        dask.config.set(scheduler="threads", num_workers=2),
    ):
        whole, path = Path(folder) / "whole", Path(folder) / "store"
        plain = digest(quietly(fit_of(args, args.shards, store=str(whole))))
        files = sorted(file.relative_to(whole) for file in whole.rglob("*") if file.is_file())
        tried = identical = named = 0
        for number in range(args.damages):
            shutil.copytree(whole, path)
            file = path / files[number % len(files)]
            _harm(file, number)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                identical += digest(fit_of(args, args.shards, store=str(path)).compute()) == plain
            named += any(file.name in str(one.message) for one in caught)
            tried += 1
            shutil.rmtree(path)
    return {"tried": tried, "files": len(files), "identical": identical, "named": named}


def _damaged_code(args: argparse.Namespace) -> dict[str, Any]:
    """All files at once: each is met by the next process that wants what it held."""
    settings = [args.rows, args.shards, args.seed]
    with tempfile.TemporaryDirectory() as cache:
        plain = digest_in(in_child("threads", "", settings, cache))
        files = [file for file in Path(cache).rglob("*") if file.is_file()]
        for number, file in enumerate(files):
            _harm(file, number)
        harmed = {file: file.read_bytes() for file in files}
        output = in_child("threads", "", settings, cache)
        anew = sum(not file.exists() or file.read_bytes() != harmed[file] for file in files)
    same = len(files) * (digest_in(output) == plain)
    return {"tried": len(files), "files": len(files), "identical": same, "named": anew}


def _harm(file: Path, number: int) -> None:
    """Cut a file short, flip a bit of it, or fill it with something else."""
    content, rng = bytearray(file.read_bytes()), np.random.default_rng(number)
    at = int(rng.integers(len(content)))
    if number % 3 == 0:
        content = content[:at]
    elif number % 3 == 1:
        content[at] ^= 1 << int(rng.integers(8))
    else:
        content = bytearray(rng.bytes(len(content)))
    file.write_bytes(content)


def run_odd(part: str, make: Callable[[], odd.Answer], store: Store, args: Any) -> None:
    """Try frames or models in blocks, each in a process that is ended where it hangs."""
    with Watched(make, (), args.timeout, args.toy) as answer:
        for first in range(args.first, args.first + args.count, args.block):
            key = {"part": part, "first": first, "count": args.block}
            if store.get(key) is None:
                machine = facts()
                row = answer(key)
                if "failed" in row:
                    row |= {"outcomes": {"hanging or ended": 1}, "wrong": [[first, row["failed"]]]}
                store.put(key, {**row, "machine": machine})
                print(part, first, row["outcomes"], *row["wrong"], flush=True)


def _said(row: dict[str, Any]) -> str:
    if not row.get("finished"):
        return row.get("failed", "failed")
    return "identical" if row.get("identical") else "finished, OTHER draws"


PARTS: dict[str, Callable[[Store, argparse.Namespace], None]] = {
    "kills": run_kills,
    "straggler": run_straggler,
    "time": run_time,
    "disk": run_disk,
    "files": run_files,
    "soak": run_soak,
    "resumed": run_resumed,
    "damaged": run_damaged,
    "frames": lambda store, args: run_odd("frames", odd.frames, store, args),
    "models": lambda store, args: run_odd("models", odd.models, store, args),
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("part", nargs="*", help=f"of {', '.join(PARTS)}; default all")
    add("--rows", type=int, default=2_400, help="of a fit that is disturbed")
    add("--shards", type=int, default=12, help="of it")
    add("--seed", type=int, default=0)
    add("--kind", nargs="*", choices=list(KINDS), default=list(KINDS), help="of kills")
    add("--whom", nargs="*", choices=("one", "all"), default=["one", "all"], help="of kills")
    add("--phase", nargs="*", choices=PHASES, default=list(PHASES), help="of kills")
    add("--repeats", type=int, default=1, help="of each kill")
    add("--after", type=int, default=2, help="tasks of a phase after which a fault comes")
    add("--resumed", nargs="*", choices=CRASHES, default=list(CRASHES), help="who is killed")
    add("--crashes", type=int, default=4, help="before the fit may end")
    add("--step", type=int, default=4, help="files of a store after which a crash comes")
    add("--damages", type=int, default=50, help="of the files of a store")
    add("--soak-shards", type=int, default=500)
    add("--every", type=float, default=30.0, help="seconds between kills of the soak")
    add("--count", type=int, default=200, help="frames, or models")
    add("--first", type=int, default=0, help="number of the first of them, which is its seed")
    add("--block", type=int, default=50, help="of them that are tried in a row")
    add("--timeout", type=float, default=900, help="seconds for a block")
    args = parse(parser, argv, TOY)
    if unknown := set(args.part) - set(PARTS):
        parser.error(f"no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    store = Store(args, "faults")
    for part in () if args.table else args.part or PARTS:
        PARTS[part](store, args)
    print(*tables(store.rows()), sep="\n")


if __name__ == "__main__":
    main()
