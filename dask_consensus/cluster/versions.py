"""Whether workers have the packages that the client has, in the same versions.

Code is compiled on workers from what the client has pickled. With another JAX or NumPyro there it
fails in words that name neither, or computes something else.
"""

from __future__ import annotations

import importlib.metadata
import queue
import threading
from collections.abc import Mapping
from typing import Any

PACKAGES = ("dask_consensus", "numpyro", "jax", "jaxlib")
_NAMED = 3  # workers that are named
_PATIENCE = 10.0  # seconds; workers that do not answer are missed later on


def check_versions(client: Any) -> None:
    """Refuse workers of a client that lack a package, or have another version of it.

    Raises
    ------
    ValueError
        Naming the packages, the versions here and there, and the workers.
    """
    complaints = []
    for package in PACKAGES:
        here = importlib.metadata.version(package)
        there: dict[str, list[str]] = {}
        for worker, version in _versions(client, package).items():
            if version != here:
                there.setdefault(version, []).append(worker)
        complaints += [
            f"- {package} is {here} here, and {version} on {_named(workers)}"
            for version, workers in there.items()
        ]
    if complaints:
        wanted = " ".join(f"{name}=={importlib.metadata.version(name)}" for name in PACKAGES)
        raise ValueError(
            "workers have other packages than the client, and may compute something else:\n"
            + "\n".join(complaints)
            + f"\nInstall the same on workers and client ({wanted}), and start the workers anew"
        )


def _versions(client: Any, package: str) -> Mapping[str, str]:
    """Return the version of a package on each worker that answers."""
    answers: queue.Queue[Mapping[str, Any]] = queue.Queue()

    def ask() -> None:
        # A function of the standard library: workers may lack this package, too.
        answers.put(client.run(importlib.metadata.version, package, on_error="return"))

    threading.Thread(target=ask, name="consensus-versions", daemon=True).start()
    try:
        told = answers.get(timeout=_PATIENCE)
    except queue.Empty:
        return {}
    missing = importlib.metadata.PackageNotFoundError
    return {
        worker: "missing" if isinstance(version, missing) else version
        for worker, version in told.items()
        if isinstance(version, str | missing)  # else it is gone
    }


def _named(workers: list[str]) -> str:
    some = ", ".join(workers[:_NAMED])
    others = f" and {len(workers) - _NAMED} more" if len(workers) > _NAMED else ""
    return f"worker{'s' * (len(workers) > 1)} {some}{others}"
