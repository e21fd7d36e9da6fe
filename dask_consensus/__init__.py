"""Fit an ordinary NumPyro model to a Dask DataFrame that is too big for one machine.

Importing the package registers ``ddf.consensus``; JAX and NumPyro are imported when they are used.
"""

from importlib import import_module as _import_module
from importlib.metadata import version as _version
from types import ModuleType as _ModuleType

from .accessor import ConsensusAccessor
from .local.frame import tree_to_frame
from .result.summary import Summary, summary

__version__ = _version("dask_consensus")
__all__ = ["ConsensusAccessor", "Summary", "plots", "simulate", "summary", "tree_to_frame"]
_LATER = ("plots", "simulate")  # they import SciPy's statistics, which takes a while


def __getattr__(name: str) -> _ModuleType:
    """Import what is public, and not needed by a fit, when it is first used."""
    if name in _LATER:
        return _import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LATER])
