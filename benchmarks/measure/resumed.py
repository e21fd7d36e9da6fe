"""Fits that are killed with the process, or the scheduler, that runs them, and go on from a store.

The fit runs in a child of this process: ``python -m benchmarks.measure.resumed STORE WHERE ROWS
SHARDS SEED``, where WHERE is ``threads``, ``cluster`` (of its own), or a scheduler's address.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_LINE = "digest of all draws: "
_PATIENCE = 600  # seconds that anything may take
Process = subprocess.Popen[str]


def killed_and_resumed(
    whom: str, kills: int, step: int, settings: list[int], cache: str
) -> dict[str, Any]:
    """Kill a fit so many times, each time after `step` more files of its store; let it end then.

    Parameters
    ----------
    whom : str
        ``"client"``: a process whose threads do all. ``"client and cluster"``: with its workers.
        ``"scheduler"``: of a cluster to which the client has connected, which must say so and end.
    """
    began, done, said = time.perf_counter(), 0, []
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "store"
        for _ in range(kills):
            before = _files(store)
            with _running(whom, store, settings, cache) as (child, scheduler):
                while child.poll() is None and _files(store) < before + step:
                    time.sleep(0.02)
                if child.poll() is None:
                    done += 1
                    if scheduler is not None:
                        scheduler.kill()
                        said.append(_last_words(child))
        with _running(whom, store, settings, cache) as (child, _):
            output = child.communicate(timeout=_PATIENCE)[0]
        finished = child.returncode == 0
    digest = next((line[len(_LINE) :] for line in output.splitlines() if _LINE in line), "")
    row = {"finished": finished, "kills": done, "digest": digest, "said": said}
    if not finished:
        row["failed"] = output[-600:]
    return row | {"seconds": round(time.perf_counter() - began, 1)}


def in_child(where: str, store: str, settings: list[int], cache: str) -> str:
    """Run the fit in a process of its own, to the end, and return what it prints."""
    child = _child(where, store, settings, cache)
    output = child.communicate(timeout=_PATIENCE)[0]
    if child.returncode:
        raise RuntimeError(output[-2000:])
    return output


def digest_in(output: str) -> str:
    """Find the draws' digest in what a child has printed."""
    return output.rpartition(_LINE)[2].split()[0]


def _last_words(child: Process) -> str:
    try:
        output = child.communicate(timeout=_PATIENCE)[0]
    except subprocess.TimeoutExpired:
        return "hanging"
    return output.strip().splitlines()[-1][:300]


def _files(store: Path) -> int:
    return sum(file.suffix == ".parquet" for file in store.rglob("*"))


@contextlib.contextmanager
def _running(
    whom: str, store: Path, settings: list[int], cache: str
) -> Iterator[tuple[Process, Process | None]]:
    """Start the fit, and a cluster if it needs one that is not its own; end all of it after."""
    with contextlib.ExitStack() as started:
        scheduler, where = None, "threads" if whom == "client" else "cluster"
        if whom == "scheduler":
            scheduler, where = started.enter_context(_cluster())
        child = _child(where, str(store), settings, cache)
        started.callback(_end, child)
        yield child, scheduler


def _child(where: str, store: str, settings: list[int], cache: str) -> Process:
    module = [sys.executable, "-m", "benchmarks.measure.resumed"]
    environment = os.environ | {"DASK_CONSENSUS__CACHE": cache}
    return _started([*module, store, where, *map(str, settings)], environment)


def _started(command: list[str], environment: dict[str, str] | None = None) -> Process:
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip


def _end(process: Process) -> None:
    """End a process with all that it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@contextlib.contextmanager
def _cluster() -> Iterator[tuple[Process, str]]:
    """A scheduler and two workers, a process each, as the command line starts them."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as started:
        file = Path(folder) / "scheduler.json"
        command = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1"]
        command += ["--port", "0", "--no-dashboard", "--scheduler-file", str(file)]
        scheduler = _started(command)
        started.callback(_end, scheduler)
        for _ in range(2):
            command = [sys.executable, "-m", "distributed.cli.dask_worker", "--host", "127.0.0.1"]
            command += ["--scheduler-file", str(file), "--nthreads", "1", "--no-dashboard"]
            command += ["--local-directory", folder, "--death-timeout", "60"]
            started.callback(_end, _started(command))
        deadline = time.monotonic() + _PATIENCE
        while not file.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        yield scheduler, str(file)


def main() -> None:
    """Run the fit that the command line tells, and print the digest of its draws."""
    store, where, *numbers = sys.argv[1:]
    rows, shards, seed = map(int, numbers)
    import dask
    from distributed import Client

    from .disturbed import cluster_of, digest, small_fit
    from .fits import quietly

    with contextlib.ExitStack() as started:
        if where == "threads":
            started.enter_context(dask.config.set(scheduler="threads", num_workers=2))
        elif where == "cluster":
            started.enter_context(cluster_of(2))
        else:
            client = started.enter_context(Client(scheduler_file=where))
            client.wait_for_workers(2)
        options = {"store": store} if store else {}
        print(_LINE + digest(quietly(small_fit(rows, shards, seed, **options))), flush=True)


if __name__ == "__main__":
    main()
