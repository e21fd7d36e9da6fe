"""Wall and processor seconds of a measurement, and those in which something was compiled."""

from __future__ import annotations

import time
from typing import Any

import jax.monitoring

_COMPILED: list[tuple[float, float]] = []


def _compiled(event: str, duration: float, **_: Any) -> None:
    if event.startswith("/jax/core/compile/"):
        now = time.perf_counter()
        _COMPILED.append((now - duration, now))


jax.monitoring.register_event_duration_secs_listener(_compiled)


class Clock:
    """Runs from when it is made."""

    def __init__(self) -> None:
        self._began, self._spent = time.perf_counter(), time.process_time()

    @property
    def seconds(self) -> float:
        """Wall seconds so far."""
        return time.perf_counter() - self._began

    def read(self) -> dict[str, float]:
        """All three; tracing counts as compiling, and what threads compile at once counts once."""
        seconds, cpu = self.seconds, time.process_time() - self._spent
        compiling, end = 0.0, self._began
        for start, stop in sorted(_COMPILED):
            compiling += max(0.0, stop - max(start, end))
            end = max(end, stop)
        return {"seconds": seconds, "cpu_seconds": cpu, "compile_seconds": compiling}
