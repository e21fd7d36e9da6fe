"""A forecast counts what the fit does, says how sure it is, and costs nothing that is not kept."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import dask
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from dask_consensus import summary
from dask_consensus.cluster.client import current_work, followed, working
from dask_consensus.cluster.tasks import call, compute, persist_tasks
from dask_consensus.cluster.used import peak_memory, used
from dask_consensus.config import Options
from dask_consensus.fit import forecast_or_none
from dask_consensus.plan.forecast import Seconds, _nested_codes, estimated, made_up
from dask_consensus.shard import probe
from dask_consensus.shard.probe import Rates

from . import fit, from_pandas, plan
from .models import ZOO, frame
from .test_fit import MANY, Traced

RATES = Rates(
    1_000,
    gradient=0.01,
    value=0.002,
    compile_gradient=1.0,
    compile_value=1.5,
    transition=0.03,
    compile_nuts=2.0,
)
DEFAULT = {"method": "auto", "correct": "auto", "local": "summary"}


@pytest.fixture(scope="module")
def rows():
    return from_pandas(frame(MANY))


@pytest.fixture(scope="module")
def planned(rows):
    return plan(rows, ZOO["intercepts"].model, by="county", n_shards=6, **DEFAULT)


def with_options(made, **options):
    """The same plan with other options; nothing is read anew."""
    return replace(made, options=replace(made.options, **options))


def means(x, y=None):
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    with numpyro.plate("rows", len(x)):
        numpyro.sample("obs", dist.Normal(mu + x, 1.0), obs=y)


def test_phases_are_those_of_the_plan(rows, planned):
    told = estimated(planned, RATES, 1, 1)
    assert list(told.seconds) == ["shard", "check", "search", "correction", "local"]
    assert all(0 < s.least < s.likely < s.most for s in told.seconds.values())
    assert told.total == Seconds(*np.sum(list(told.seconds.values()), axis=0))
    changed = with_options(planned, method="consensus", correct=False, local=None)
    one_shot = estimated(changed, RATES, 1, 1)
    assert list(one_shot.seconds) == ["shard", "check", "rounds"]
    assert one_shot.points == (0, 0)
    alone = estimated(plan(rows, means, **DEFAULT), RATES, 1, 1)
    assert list(alone.seconds) == ["shard", "check", "search", "correction"]
    assert alone.moved == 0
    nuts = estimated(plan(rows, means, **DEFAULT | {"method": "nuts"}), RATES, 1, 1)
    assert list(nuts.seconds) == ["shard", "check", "rounds"]


def test_work_is_multiplied_by_what_it_takes(planned):
    still = RATES._replace(gradient=0.0, value=0.0, transition=0.0)
    compiling = estimated(planned, still, 1, 1).seconds
    once = estimated(planned, RATES, 1, 1).seconds
    twice = estimated(planned, RATES._replace(gradient=0.02, value=0.004), 1, 1).seconds
    for phase in ("search", "correction", "local"):
        assert twice[phase].likely - once[phase].likely == pytest.approx(
            once[phase].likely - compiling[phase].likely
        )
    # Shards side by side take less, and so does code that a probe on a real one has compiled.
    assert (
        estimated(planned, RATES, 1, 3).total.likely < estimated(planned, RATES, 1, 1).total.likely
    )
    there = estimated(planned, RATES, 1, 1, sharded=True)
    assert there.seconds["correction"].likely == pytest.approx(
        once["correction"].likely - RATES.compile_value
    )
    assert "check" not in there.seconds
    assert "shard" not in there.ahead


def test_nuts_takes_its_transitions(planned):
    """Those of the trial are the slowest: it may be four times as quick, or twice as slow."""
    nuts = {"num_warmup": 300, "num_samples": 500, "method": "consensus", "correct": False}
    changed = with_options(planned, **nuts, shard_chains=2)
    told = estimated(changed, RATES, 1, 1, sharded=True).seconds["rounds"]
    all_of_them = 2 * 800 * 6 * RATES.transition
    assert told == pytest.approx((all_of_them / 4, all_of_them / 1.5, all_of_them * 2))


def test_needs_grow_with_rows_and_shrink_with_workers(planned):
    few, many = (estimated(planned, RATES, workers, 4) for workers in (1, 4))
    # Two copies of rows of two columns, codes, and a mask; the rest is the process itself.
    assert few.moved == 0
    row = 1 + sum(v.dtype.itemsize for v in planned.example.arguments.values())
    assert many.moved == round(planned.survey.rows * row * 3 / 4)
    assert few.memory > many.memory > 600 * 2**20
    assert 6 * 3 < few.tasks < 1_000


def test_a_sample_of_many_shards_answers_for_all(planned):
    limits = replace(planned.options.correction, sampled_rows=1)
    assert estimated(with_options(planned, correction=limits), RATES, 1, 1).points == (256, 2304)
    limits = replace(limits, sampled_shards=2)
    assert estimated(with_options(planned, correction=limits), RATES, 1, 1).points == (64, 320)


def test_many_parameters_take_a_second_iteration(planned):
    """From seven on, a cubic has more terms than the first points can tell."""
    few, many = (
        estimated(
            replace(
                planned, model=replace(planned.model, latents=(*added, *planned.model.latents))
            ),
            RATES,
            1,
            1,
        ).seconds["correction"]
        for shared in (planned.model.shared[:1],)
        for added in ((), tuple(shared[0]._replace(name=f"extra_{i}") for i in range(5)))
    )
    assert planned.model.dim + 5 >= 7
    assert many.likely > 4 * few.likely


@pytest.mark.parametrize("name", ["nested_in_priors", "heavy_tails"])
def test_a_shard_that_is_made_up_is_one(name):
    case = ZOO[name]
    made = plan(from_pandas(frame()), case.model, by=list(case.by) or None, n_shards=2)
    data, codes = made_up(made), made.model.codes
    assert len(data.rows) >= made.assignment.rows.min()
    assert len(data.groups) == len(case.by)
    for argument, values in data.arguments.items():
        if argument in codes:
            assert values.dtype == np.int32
            assert values.min() == 0
            assert values.max() < len(data.groups[codes[argument]])
        else:
            assert set(values) <= set(made.example.arguments[argument])


def test_inner_groups_that_are_made_up_lie_in_one_outer_group():
    """Else a level looks coupled, and takes ten times as long as in truth."""
    regions, counties, classes = _nested_codes(400, (7, 21, 42))
    for outer, inner in ((regions, counties), (counties, classes)):
        assert len({*zip(outer, inner, strict=True)}) == len({*inner})
    assert [len({*codes}) for codes in (regions, counties, classes)] == [7, 21, 42]


@pytest.mark.slow
def test_a_fit_tells_forecast_and_truth_and_compiles_nothing_for_it(rows):
    """The model's code runs as often as it does without a forecast, which times what is kept."""
    runs = []
    for number, forecast in ((11, False), (12, True)):
        model = Traced(1 + number / 128)
        made = []
        with dask.config.set({"consensus.forecast": forecast, "scheduler": "synchronous"}):
            runs.append(
                model.runs_in(
                    lambda model=model, made=made: made.append(
                        fit(rows, model, by="county", n_shards=6, **DEFAULT)
                    )
                )
            )
    assert runs[0] == runs[1] > 0
    (tree,) = made
    told = json.loads(tree.attrs["forecast"])
    profile = json.loads(tree.attrs["profile"])
    assert set(told["seconds"]) == {"shard", "search", "correction", "local"}
    assert profile["forecast"] > 0
    used_ = json.loads(tree.attrs["used"])
    assert used_["tasks"] > 6 * 4
    assert used_["memory"] > 50 * 2**20
    read = summary(tree)
    (time,) = (table for table in read.tables() if table.title == "time")
    shown = {row[0]: row[1:] for row in time.rows}
    least, likely, most = told["seconds"]["search"]
    assert shown["search"] == [
        f"{number:.1f}" for number in (profile["search"], likely, least, most)
    ]
    assert shown["plan"][1:] == ["-"] * 3
    (needs,) = (table for table in read.tables() if table.title == "needs")
    assert needs.rows[-1][:2] == ["points", f"{tree['correction'].sizes['point']:,}"]


def test_a_plan_is_forecast_where_the_fit_would_run(rows):
    made = plan(rows, means, n_shards=2, **DEFAULT)
    with dask.config.set(scheduler="synchronous"):
        told = made.forecast()
    assert told.at_once == 1
    assert told.rows == len(made_up(made).rows)
    assert all(math.isfinite(s.most) for s in told.seconds.values())
    for shown in (repr(told), told._repr_html_()):
        for text in ("forecast, seconds", "memory a worker", f"{told.rows:,} rows, timed here"):
            assert text in shown
    json.dumps(told.as_dict())


def test_what_no_number_counts_is_said_in_words(rows, planned):
    """Chains that follow only where a correction fails, and how to have them forecast."""
    told = estimated(planned, RATES, 1, 1)
    assert "rounds of NUTS on the shards, which follow if the weights" in told.left_out
    assert " ".join(repr(told).split()).endswith(told.left_out)
    assert "method=&#x27;anchored&#x27;" in told._repr_html_()
    assert not estimated(with_options(planned, correct=False), RATES, 1, 1).left_out
    alone = estimated(plan(rows, means, **DEFAULT), RATES, 1, 1)
    assert "NUTS on all rows, which follows if the correction fails" in alone.left_out
    for method in ("nuts", "laplace"):
        asked = plan(rows, means, **DEFAULT | {"method": method})
        assert not estimated(asked, RATES, 1, 1).left_out


def test_what_will_be_sampled_is_tried_by_nuts(rows):
    made = plan(rows, means, n_shards=2, num_warmup=5, num_samples=20)
    with dask.config.set(scheduler="synchronous"):
        told = made.forecast()
    assert 0 < told.seconds["rounds"].likely < math.inf


def test_a_fit_goes_on_where_no_forecast_can_be_had(planned, monkeypatch, caplog):
    monkeypatch.setattr("dask_consensus.fit.forecast", lambda *_: 1 / 0)
    caplog.set_level("INFO", "dask_consensus")
    with working(0.0), followed(False) as progress, progress.phase("forecast"):
        assert forecast_or_none(planned, None) is None
    assert "forecast: none, since timing the model failed (ZeroDivisionError" in caplog.text


def test_tasks_are_counted_once():
    with working(0.0), dask.config.set(scheduler="synchronous"):
        kept = persist_tasks([call(abs, -k) for k in range(3)])
        assert current_work().tasks == 3
        compute([call(sum, kept)])
        assert used()["tasks"] == 4
    assert peak_memory() > 0


def test_a_machine_that_stops_for_a_while_is_no_slow_model(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(probe.time, "perf_counter", lambda: now[0])
    stops = iter([0.9, 0.0, 0.2, 0.0, 0.0, 0.5])

    def work(n):
        now[0] += 0.01 * n + next(stops)

    assert probe._timed(work)[0] == pytest.approx(0.01)
    stops = iter([0.9, 0.9])
    assert probe._timed(work)[0] == pytest.approx(0.91)


def test_only_yes_or_no():
    with (
        dask.config.set({"consensus.forecast": "maybe"}),
        pytest.raises(TypeError, match=r"consensus\.forecast must be true or false, got 'maybe'"),
    ):
        Options.frozen()
