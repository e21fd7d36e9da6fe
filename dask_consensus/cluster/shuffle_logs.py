"""What Dask says of every shuffle, and nobody need read."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

_SOURCE = "distributed.shuffle._scheduler_plugin"
# These two are logged as warnings whenever rows travel, and nothing is wrong; restarts are kept.
_USUAL = ("initialized by task", "deactivated due to stimulus")


class _Unusual(logging.Filter):
    """Lets pass what is not said of every shuffle."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell whether a record is to be logged."""
        return not any(words in str(record.msg) for words in _USUAL)


@contextlib.contextmanager
def usual_shuffles_unlogged() -> Iterator[None]:
    """Leave out, of the log of a scheduler in this process, that shuffles begin and end."""
    unusual, source = _Unusual(), logging.getLogger(_SOURCE)
    source.addFilter(unusual)
    try:
        yield
    finally:
        source.removeFilter(unusual)
