"""How far a fit has come: one live line in a terminal or a notebook, and a log line a phase.

The line is told of shards as their reports come to the client, and asks nobody: on a cluster it
costs nothing. Between reports a thread of this process moves its clock.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import tqdm as plain

with warnings.catch_warnings():
    # Of a notebook without ipywidgets, which has a line of text instead.
    warnings.simplefilter("ignore", plain.TqdmWarning)
    from tqdm.auto import tqdm

LOG = logging.getLogger("dask_consensus")
_TICK = 1.0  # seconds after which the line's clock moves
_EVERY = 60.0  # seconds after which a phase that goes on is logged again
_COUNTED = "{desc} |{bar}| {n_fmt}/{total_fmt} {unit}s{postfix}"
_UNCOUNTED = "{desc}{postfix}"


class Progress:
    """One line for a whole fit: its phase, what is done of it, what was found, when it may end.

    Every phase is logged once, at level INFO, when it is over, and once a minute while it goes on;
    every pass over the shards at level DEBUG.

    Parameters
    ----------
    show : bool, optional
        Whether there is a live line; None: in a terminal or a notebook.
    leave : bool
        Whether its last state stays,
    last : str
        and what that is.
    """

    def __init__(self, show: bool | None = None, *, leave: bool = True, last: str = "done") -> None:
        self._began = time.monotonic()
        self._bar = tqdm(
            desc="fit",
            bar_format=_UNCOUNTED,
            dynamic_ncols=True,
            leave=leave,
            disable=not show if show is not None else (False if _text_in_notebook() else None),
        )
        self._phase, self._phase_began = "", self._began
        self._logged = self._began
        self._found = self._noted = ""
        self._last = last
        self._expected: dict[str, float] = {}
        self._over = threading.Event()
        self._clock: threading.Thread | None = None

    def __enter__(self) -> Progress:
        if not self._bar.disable:
            self._clock = threading.Thread(target=self._tick, name="consensus-clock", daemon=True)
            self._clock.start()
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        self._over.set()
        if self._clock is not None:
            self._clock.join()
        if error is None and not self._bar.disable:
            # What is left to read when all is over.
            self._expected, self._found, self._noted = {}, "", ""
            self._bar.bar_format = _UNCOUNTED
            self._show(self._last)
        self._bar.close()

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Tell of one phase of the fit, whose end is logged."""
        self._phase, self._phase_began = name, time.monotonic()
        self._found = self._noted = ""
        self._logged = self._phase_began
        self._bar.bar_format = _UNCOUNTED
        self._show(name)
        try:
            yield
        except BaseException as error:
            LOG.info("%s: ended by %s%s", name, type(error).__name__, self._how_long(over=True))
            raise
        LOG.info("%s: %s%s", name, self._facts() or "done", self._how_long(over=True))
        # What began in this phase is over; what was expected of it is no longer.
        self._expected.pop(name, None)
        self._phase, self._found, self._noted = "", "", ""

    @contextlib.contextmanager
    def passing(
        self,
        title: str,
        total: int,
        note: Callable[[list[Any]], str] = lambda _: "",
        unit: str = "shard",
    ) -> Iterator[Pass]:
        """Tell of one pass over shards, or over whatever `unit` is.

        `note` turns the reports so far into words.
        """
        began, start = time.monotonic(), getattr(self._bar, "start_t", None)
        self._noted = ""
        if not self._bar.disable:
            self._bar.reset(total)
            self._bar.start_t = start
            self._bar.unit, self._bar.bar_format = unit, _COUNTED
            self._show(": ".join(filter(None, (self._phase, title))))
        yield Pass(self, title, total, note, unit)
        self._show()  # lines are not written at every report
        seconds = time.monotonic() - began
        LOG.debug("%s: %s, %d %ss, %.1f s", self._phase or "fit", title, total, unit, seconds)

    def say(self, text: str) -> None:
        """Tell what the phase has found so far, until it finds more."""
        self._found = text
        self._show()

    def conclude(self, text: str) -> None:
        """Tell what came of it all; logged as well."""
        self._last = f"fit: {text}"
        LOG.info("%s; %.1f s", self._last, self._elapsed())

    def expect(self, seconds: Mapping[str, float]) -> None:
        """Take what the phases to come may last, in their order."""
        self._expected = dict(seconds)
        self._show()

    def told(self, title: str, done: int, total: int, unit: str, noted: str, more: int) -> None:
        """Count what is done of a pass."""
        self._noted = noted
        if not self._bar.disable:
            self._bar.set_postfix_str(self._rest(), refresh=False)
            self._bar.update(more)
        now = time.monotonic()
        if now - self._logged >= _EVERY:
            self._logged = now
            facts = ", ".join(filter(None, (f"{done} of {total} {unit}s", self._facts())))
            LOG.info("%s: %s, %s%s", self._phase or "fit", title, facts, self._how_long())

    def remaining(self) -> float | None:
        """Seconds until all phases are over, as far as is known; None if nothing is."""
        if not self._expected:
            return None
        left = dict(self._expected)
        if self._phase in left:
            left[self._phase] = max(left[self._phase] - (time.monotonic() - self._phase_began), 0)
        return sum(left.values())

    def _show(self, what: str | None = None) -> None:
        if not self._bar.disable:
            if what is not None:
                self._bar.set_description_str(what, refresh=False)
            self._bar.set_postfix_str(self._rest())

    def _tick(self) -> None:
        while not self._over.wait(_TICK):
            self._show()

    def _facts(self) -> str:
        return ", ".join(filter(None, (self._found, self._noted)))

    def _rest(self) -> str:
        """Everything behind the bar."""
        left = self.remaining()
        until = f"about {_clock(left)} left" if left else ""
        return ", ".join(filter(None, (self._facts(), _clock(self._elapsed()), until)))

    def _how_long(self, *, over: bool = False) -> str:
        left = self.remaining()
        if left is not None and over and self._phase in self._expected:
            left -= max(self._expected[self._phase] - (time.monotonic() - self._phase_began), 0)
        until = f", about {left:.0f} s left" if left is not None and left >= 1 else ""
        return f"; {time.monotonic() - self._phase_began:.1f} s{until}"

    def _elapsed(self) -> float:
        return time.monotonic() - self._began


def _text_in_notebook() -> bool:
    """Tell whether this is a notebook whose line is one of text, which tqdm takes for a file."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return tqdm is plain.tqdm and "IPKernelApp" in getattr(shell, "config", {})


class Pass:
    """A pass over shards, which is told of their reports."""

    def __init__(
        self,
        progress: Progress,
        title: str,
        total: int,
        note: Callable[[list[Any]], str],
        unit: str,
    ) -> None:
        self._progress, self._title, self._total = progress, title, total
        self._note, self._unit = note, unit
        self._reports: list[Any] = []

    def tell(self, reports: Sequence[Any]) -> None:
        """Count the shards of one more task."""
        self._reports += reports
        noted = self._note(self._reports)
        self._progress.told(
            self._title, len(self._reports), self._total, self._unit, noted, len(reports)
        )


def _clock(seconds: float) -> str:
    return str(tqdm.format_interval(seconds))
