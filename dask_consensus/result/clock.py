"""Where the time of a fit went."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from ..cluster.progress import Progress
from ..combination.reports import Combined
from ..correction.state import Correction


class Clock:
    """Wall time of each phase of a fit, in seconds; whoever follows it is told of each."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self.seconds: dict[str, float] = {}
        self._began = time.perf_counter()

    @contextlib.contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Time a phase; one that comes again is added."""
        began = time.perf_counter()
        with self._progress.phase(phase):
            yield
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - began

    def total(self) -> float:
        """Seconds since the clock was made."""
        return time.perf_counter() - self._began


def seconds_compiling(combined: Combined, correction: Correction | None) -> float:
    """Seconds of the phases in which the slowest shard of a pass compiled, or waited for it."""
    passes = [max(report.compile_seconds for report in r.reports) for r in combined.rounds]
    return float(sum(passes)) + (correction.compile_seconds if correction is not None else 0.0)
