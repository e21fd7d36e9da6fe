"""Fit an ordinary NumPyro model to a Dask DataFrame that is too big for one machine.

Importing the package registers ``ddf.consensus``; JAX and NumPyro are imported when they are used.
"""

from importlib.metadata import version as _version

from .accessor import ConsensusAccessor
from .local.frame import tree_to_frame

__version__ = _version("dask_consensus")
__all__ = ["ConsensusAccessor", "tree_to_frame"]
