"""One live line, where there is somebody to look at it, and a log line a phase."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import time
from types import SimpleNamespace

import dask
import pandas as pd
import pytest
import tqdm

from dask_consensus.cluster import progress
from dask_consensus.cluster.client import followed, passing, say, working
from dask_consensus.cluster.progress import Progress
from dask_consensus.cluster.shuffle_logs import usual_shuffles_unlogged
from dask_consensus.cluster.tasks import call, compute
from dask_consensus.config import Options

from . import from_pandas
from .test_waiting import threads


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@contextlib.contextmanager
def a_terminal():
    with contextlib.redirect_stderr(Terminal()) as there:
        yield there


@pytest.fixture
def clock(monkeypatch):
    """Give the progress a clock that tests move."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])

    def pass_by(seconds: float) -> None:
        now[0] += seconds

    return pass_by


def states(written: io.StringIO) -> list[str]:
    """What a line has shown, one state after the other."""
    return [state.strip() for state in written.getvalue().split("\r") if state.strip()]


def a_fit(told: Progress) -> None:
    told.expect({"search": 30.0, "correction": 40.0})
    with told.phase("search"), told.passing("Newton step 1", 4, lambda r: f"{sum(r)} odd") as this:
        this.tell([1])
        told.say("moved 0.2 sds, error 0.1")
        this.tell([0, 2])
    with told.phase("correction"), told.passing("nodes", 2, unit="peak") as this:
        this.tell([None])


def test_the_line_says_phase_shards_what_was_found_and_when_it_may_end(clock):
    with a_terminal() as terminal, Progress() as told:
        a_fit(told)
        told.conclude("good")
        clock(65)
    shown = states(terminal)
    assert any(
        state.startswith("search: Newton step 1 |")
        and state.endswith("| 3/4 shards, moved 0.2 sds, error 0.1, 3 odd, 00:00, about 01:10 left")
        for state in shown
    )
    # What was expected of a phase that is over is not waited for.
    assert any(
        state.startswith("correction: nodes |")
        and state.endswith("1/2 peaks, 00:00, about 00:40 left")
        for state in shown
    )
    assert shown[-1] == "fit: good, 01:05"
    assert terminal.getvalue().count("\n") == 1  # one line, left when all is over


def test_a_phase_that_lasts_longer_than_expected_counts_for_nothing(clock):
    told = Progress(False)
    assert told.remaining() is None
    told.expect({"search": 10.0, "correction": 20.0})
    with told.phase("search"):
        clock(4)
        assert told.remaining() == 26
        clock(60)
        assert told.remaining() == 20
    assert told.remaining() == 20


def test_the_clock_moves_while_nothing_is_reported(monkeypatch):
    monkeypatch.setattr(progress, "_TICK", 0.01)
    with a_terminal() as terminal, Progress() as told, told.phase("plan"):
        before = len(states(terminal))
        deadline = time.monotonic() + 10
        while len(states(terminal)) < before + 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert len(states(terminal)) >= before + 3


@pytest.mark.parametrize("show", [None, False])
def test_nothing_is_shown_without_a_terminal(capfd, show):
    with Progress(show) as told:
        a_fit(told)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("show", [None, False])
def test_a_notebook_without_widgets_has_a_line_of_text(monkeypatch, capfd, show):
    shell = SimpleNamespace(config={"IPKernelApp": {}})
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setattr(progress, "tqdm", tqdm.tqdm)
    with Progress(show) as told:
        a_fit(told)
    written = capfd.readouterr().err
    assert ("correction: nodes" in written) == (show is None)


def test_false_is_quiet_in_a_terminal():
    with a_terminal() as terminal, Progress(False) as told:
        a_fit(told)
    assert terminal.getvalue() == ""


def test_one_log_line_a_phase(caplog, clock):
    caplog.set_level(logging.INFO, "dask_consensus")
    with Progress(False) as told:
        a_fit(told)
        told.conclude("good")
    assert [record.name for record in caplog.records] == ["dask_consensus"] * 3
    assert caplog.messages == [
        "search: moved 0.2 sds, error 0.1, 3 odd; 0.0 s, about 40 s left",
        "correction: done; 0.0 s",
        "fit: good; 0.0 s",
    ]
    caplog.clear()
    caplog.set_level(logging.DEBUG, "dask_consensus")
    with Progress(False) as told:
        a_fit(told)
    assert "search: Newton step 1, 4 shards, 0.0 s" in caplog.messages


def test_a_phase_of_minutes_is_heard_of_every_minute(caplog, clock):
    caplog.set_level(logging.INFO, "dask_consensus")
    with Progress(False) as told, told.phase("rounds"), told.passing("round 1", 100) as this:
        for _ in range(50):
            clock(3)
            this.tell([None])
    assert caplog.messages == [
        "rounds: round 1, 20 of 100 shards; 60.0 s",
        "rounds: round 1, 40 of 100 shards; 120.0 s",
        "rounds: done; 150.0 s",
    ]


def test_an_error_ends_a_phase(caplog):
    caplog.set_level(logging.INFO, "dask_consensus")
    with pytest.raises(KeyError), Progress(False) as told, told.phase("search"):
        raise KeyError
    assert caplog.messages[0].startswith("search: ended by KeyError; ")


def test_passes_of_a_fit_share_its_line_and_others_have_their_own():
    with a_terminal() as terminal:
        with working(0.0), followed(None), passing("round 1", 2, None) as this:
            this.tell([None])
            say("moved")
        assert terminal.getvalue().count("\n") == 1
        with working(0.0), followed(False), passing("round 1", 2, None):
            say("moved")
        assert terminal.getvalue().count("\n") == 1  # those of a fit that is to be quiet are, too
        with passing("groups left out", 2, None):
            say("to nobody")
        assert "groups left out" in states(terminal)[-2]
        assert terminal.getvalue().count("\n") == 2


def test_tasks_are_told_of_as_they_end():
    for scheduler in ("synchronous", "threads"):
        told: list[object] = []
        with dask.config.set(scheduler=scheduler):
            assert compute([call(abs, -k) for k in range(3)], told.extend) == [0, 1, 2]
        assert len(told) == 3


def test_the_line_of_a_notebook(monkeypatch):
    from tqdm import notebook

    shown: list[object] = []
    monkeypatch.setattr(notebook, "display", shown.append)
    monkeypatch.setattr(progress, "tqdm", notebook.tqdm)
    with Progress() as told, told.phase("search"):
        with told.passing("Newton step 1", 4) as this:
            this.tell([None])
        (container,) = shown
        before, bar, after = container.children
        assert (bar.max, bar.value) == (4, 1)
        assert before.value.split() == ["search:", "Newton", "step", "1"]
        assert "1/4" in after.value
    assert len(shown) == 1


@pytest.mark.distributed
def test_a_shuffle_is_no_warning(caplog):
    frame = from_pandas(pd.DataFrame({"g": range(20)}))
    source = "distributed.shuffle._scheduler_plugin"

    def logged() -> int:
        caplog.clear()
        frame.shuffle("g").compute()
        return sum(record.name == source for record in caplog.records)

    with threads(1), dask.config.set({"dataframe.shuffle.method": "p2p"}):
        assert logged()
        with usual_shuffles_unlogged():
            assert not logged()
            # What is unusual is still said.
            logging.getLogger(source).warning("Shuffle %s restarted due to stimulus '%s", 1, 2)
            assert "restarted" in caplog.text


def test_names_that_nobody_knows_remind_of_arguments():
    with pytest.raises(TypeError, match="'colums' is no option of a fit; did you mean 'columns'"):
        Options.frozen(colums={})  # type: ignore[call-arg]
