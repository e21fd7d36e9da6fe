from __future__ import annotations

import re
from typing import Any

import dask
import dask.dataframe as dd
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
import pytest

from . import from_pandas, plan
from .models import ZOO, frame, normal_rows, planned

intercepts = ZOO["intercepts"].model


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return frame(((5, 4, 6), (5, 7), (3,)))


def of_zoo(name: str, table: pd.DataFrame, **options: Any):
    case = ZOO[name]
    return plan(from_pandas(table), case.model, by=list(case.by) or None, **options)


# What is printed

IN_FULL = """
fit
  method             consensus, full weights
  sharding           rows shuffled by group, groups kept whole
  tempering          priors, Jacobian included, to the power w = rows / all rows, 0.5
  sampling           300 warm-up + 500 draws, 2 chains a shard
  correction         none, because correct=False
  result             2 chains of 500 draws
  group effects      none, because local=None
  shared dimensions  3
  precision          float32

arguments of the model
  argument  column  receives
  region    region  group codes, local to a shard
  county    county  group codes, local to a shard
  y         y       values
  n_region          number of groups of region
  n_county          number of groups of county

sites
  site   role      shape     support   distribution  in each shard
  mu     shared    ()        real      Normal        to the power w
  tau    shared    (2)       positive  HalfNormal    to the power w
  upper  local     (region)  real      Normal        whole
  lower  local     (county)  real      Normal        whole
  noise  local     (rows)    real      Laplace       whole
  obs    observed  (rows)                            whole

shards
  shards                            2
  rows                             30
  rows a shard                     15
  groups of region                  3
  groups of region a shard     1 to 2
  padding rows              4 (13.3%)
  shapes to compile                 1

note: all 30 rows fit in one shard (rows_per_shard is 50,000), where the same is done without
  moving or combining anything: leave n_shards out

cost: plan.forecast() times the model, and says how long it takes and what it needs
"""


def test_the_plan_in_full(table):
    shown = repr(of_zoo("nested_in_priors", table, n_shards=2, num_chains=2))
    assert shown == IN_FULL.strip("\n")


def test_the_plan_in_a_notebook(table):
    shown = of_zoo("intercepts", table, n_shards=2)._repr_html_()
    for text in ("to the power w", "group codes, local to a shard", "HalfNormal", "(county)"):
        assert f">{text}</td>" in shown
    assert shown.count("<table ") == shown.count("</table>") == 4
    assert "<h4" not in shown
    # Names come from users: they are no markup.
    odd = frame().rename(columns={"county": "<b>"})
    by_odd_name = plan(from_pandas(odd), intercepts, by="<b>", columns={"county": "<b>"})
    assert "<b>" not in by_odd_name._repr_html_()
    assert "&lt;b&gt;" in by_odd_name._repr_html_()


@pytest.mark.parametrize("name", ZOO)
def test_every_plan_is_readable(name: str):
    found = planned(name)
    lines = repr(found).splitlines()
    assert max(map(len, lines)) < 100
    assert not any(line != line.rstrip() for line in lines)
    for site in (*found.model.latents, *found.model.deterministics):
        assert getattr(site, "name", site) in repr(found)
    assert f"shared dimensions  {found.model.dim}" in repr(found)


def test_one_shard_tempers_nothing():
    shown = repr(planned("heavy_tails"))
    assert "NUTS on all rows together, because one shard has no other" in shown
    assert re.search(r"tempering +none", shown)
    assert "power" not in shown
    assert "heavy tails" not in shown


def test_categories_constants_and_defaults(table):
    def model(y, smoking, n_smoking, county, width=2.0):
        normal_rows(numpyro.sample("mu", dist.Normal(0, width * n_smoking)), 1.0, y)

    shown = repr(plan(from_pandas(table), model, by="county"))
    assert re.search(r"smoking +smoking +codes of 3 categories", shown)
    assert re.search(r"n_smoking +3, the number of categories", shown)
    assert re.search(r"width +its default", shown)


def test_few_rows_need_no_shards(table):
    found = of_zoo("positive", table, n_shards=4)
    assert found.fits_one_shard
    (note,) = found.notes()
    assert note.startswith(
        "all 30 rows fit in one shard (rows_per_shard is 50,000), where the same is done"
    )
    assert not of_zoo("positive", table).fits_one_shard
    assert of_zoo("positive", table, rows_per_shard=10).notes() == []


def test_notes_name_flat_and_heavy_tailed_priors(table):
    # Of rows that one shard holds there is another note.
    notes = {
        name: of_zoo(name, table, rows_per_shard=7).notes()
        for name in ("flat_priors", "heavy_tails")
    }
    assert [note.split(",")[0] for note in notes["flat_priors"]] == [
        "mu: ImproperUniform prior",
        "sigma: ImproperUniform prior",
        "loc: ImproperUniform prior",
    ]
    assert all("proper only with the data of each shard" in note for note in notes["flat_priors"])
    assert [note.split(",")[0] for note in notes["heavy_tails"]] == [
        "mu: Cauchy prior",
        "beta: StudentT prior",
        "gamma: MultivariateStudentT prior",
    ]
    assert all("improper once tempered by w <= " in note for note in notes["heavy_tails"])
    # In one shard nothing is tempered.
    assert not any("prior" in note for note in of_zoo("heavy_tails", table, n_shards=1).notes())


def test_note_of_a_group_larger_than_a_shard():
    found = of_zoo("intercepts", frame(((40, 4, 6, 5, 5),)), rows_per_shard=20)
    assert found.assignment.rows.max() == 40
    (note,) = found.notes()
    assert "group 'county 0' of 'county' has 40 rows, more than the 20 rows of a balanced" in note
    assert "No more than 1 shard can be balanced." in note


def test_number_of_shards_follows_the_rows(table):
    assert of_zoo("intercepts", table).n_shards == 1
    assert of_zoo("positive", table, rows_per_shard=10).n_shards == 3
    # No more shards than groups, unless they are asked for.
    assert of_zoo("intercepts", table, rows_per_shard=1).n_shards == 3


def test_nothing_is_sampled(table, monkeypatch):
    def sample(*_: Any, **__: Any) -> None:
        raise AssertionError("sampled")

    monkeypatch.setattr("dask_consensus.shard.nuts.sample_shard", sample)
    monkeypatch.setattr("dask_consensus.combination.subposterior.sample_shards", sample)
    of_zoo("intercepts", table, n_shards=2)


# What is refused, before anything is sampled


def broken(table: pd.DataFrame, column: str, value: Any, rows: list[int]) -> dd.DataFrame:
    table = table.sort_values("county", kind="stable").reset_index(drop=True)
    table[column] = table[column].astype(type(value) if column == "count" else object)
    table.loc[rows, column] = value
    return from_pandas(table.assign(**{column: table[column].astype(type_of(column))}), 3)


def type_of(column: str) -> Any:
    text = pd.Series(["what pandas makes of strings"]).dtype
    return {"county": text, "count": "Int64", "smoking": "category"}.get(column, "float64")


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("x", np.nan, r"argument 'x' \(column 'x'\): missing values, null or NaN \(2, the first "
                      r"in partition 1\); drop those rows \(`ddf\.dropna\(subset=\['x'\]\)`\)"),
        ("x", np.inf, r"argument 'x' .* infinite, .* \(2, the first in partition 1\); .* clip"),
        ("x", 1e300, r"argument 'x' .* too large for a float of 32 bits \(2, the first"),
        ("county", None, r"key 'county': missing values, null or NaN \(2, the first in par"),
    ],
    ids=["nan", "inf", "overflow", "null key"],
)  # fmt: skip
def test_values_that_cannot_be_used(table, column, value, message):
    with pytest.raises(ValueError, match=message):
        plan(broken(table, column, value, [12, 25]), intercepts, by="county")


def test_columns_that_are_not_used_may_hold_anything(table):
    assert plan(broken(table, "z", np.nan, [1]), intercepts, by="county").survey.rows == 30


def test_all_complaints_at_once(table):
    table = table.assign(x=np.inf, y=np.nan)
    with pytest.raises(ValueError, match=r"(?s)'x'.* infinite.*\(30, .*'y'.* missing.*\(30, "):
        plan(from_pandas(table), intercepts, by="county")


def test_an_empty_frame(table):
    with pytest.raises(ValueError, match="the frame has no rows: check its filters"):
        plan(from_pandas(table.iloc[:0], 1), intercepts, by="county")


def test_the_first_partitions_may_be_empty(table):
    ddf = from_pandas(table, 3)
    late = dd.concat([ddf[ddf["y"] > 1e9], ddf], interleave_partitions=True)
    assert plan(late, intercepts, by="county").survey.rows == 30


def test_more_shards_than_groups(table):
    with pytest.raises(
        ValueError, match=r"n_shards=4 .* there are 3 groups of 'county'; ask for at most 3"
    ):
        plan(from_pandas(table), intercepts, by="county", n_shards=4)
    with pytest.raises(ValueError, match=r"n_shards=31 .* there are 30 rows"):
        of_zoo("positive", table, n_shards=31)


def wide(d):
    def model(y=None):
        beta = numpyro.sample("beta", dist.Normal(0, 1).expand([d]).to_event(1))
        normal_rows(beta.sum(), 1.0, y)

    return model


def test_many_parameters_of_few_rows_are_sampled_together(table):
    rows, free = from_pandas(table), {"method": "auto", "correct": "auto"}
    many, few = (plan(rows, wide(d), **free) for d in (20, 19))
    assert (many.method, few.method) == ("nuts", "laplace")
    because = "20 shared parameters are many for 30 rows"
    assert f"NUTS on all rows together, because {because}" in repr(many)
    assert re.search(r"if that fails +NUTS on all rows together, 300 warm-up", repr(few))
    for asked in ({"method": "laplace"}, {"correct": True}, {"correct": False}, {"n_shards": 1}):
        asked = plan(rows, wide(20), **free | asked)
        assert asked.method == ("nuts" if asked.options.n_shards else "laplace")
    several = plan(from_pandas(pd.concat([table] * 20)), wide(20), **free, n_shards=2)
    assert several.method == "laplace"


def test_nuts_samples_all_rows_however_many(table):
    found = plan(from_pandas(table), wide(2), method="nuts", rows_per_shard=10)
    assert (found.n_shards, found.method) == (1, "nuts")
    assert found.notes()[0].startswith("rows_per_shard has no effect: NUTS samples all rows")
    with pytest.raises(ValueError, match=r"method='nuts' samples all rows .* got n_shards=4"):
        plan(from_pandas(table), wide(2), method="nuts", n_shards=4)


def test_fewer_draws_than_dimensions(table):
    few = {"num_samples": 5, "by": "county"}
    with pytest.raises(ValueError, match=r"5 draws a shard .* 3 shared dimensions: more than 5 "):
        plan(from_pandas(table), intercepts, n_shards=2, **few)
    plan(from_pandas(table), intercepts, n_shards=2, num_chains=2, **few)
    plan(from_pandas(table), intercepts, n_shards=2, weights="diagonal", **few)
    # One shard combines nothing.
    plan(from_pandas(table), intercepts, **few)


@pytest.mark.parametrize(
    ("option", "error", "message"),
    [
        ({"method": "average"}, ValueError, r"method must be one of .*'consensus'.* got 'average'"),
        ({"weights": "flat"}, ValueError, r"weights must be one of 'full', 'diagonal', got 'flat'"),
        ({"n_shards": 0}, ValueError, r"n_shards must be at least 1, got 0"),
        ({"n_shards": 2.5}, TypeError, r"n_shards must be a whole number, got 2\.5"),
        ({"num_samples": 3}, ValueError, r"num_samples must be at least 4, got 3"),
        ({"num_chains": True}, TypeError, r"num_chains must be a whole number, got True"),
        ({"target_accept_prob": 1.0}, ValueError, r"between 0 and 1, got 1\.0"),
        ({"split_every": 1}, ValueError, r"split_every must be at least 2, got 1"),
        ({"seed": -1}, ValueError, r"seed must be at least 0, got -1"),
        ({"seed": 2**32}, ValueError, r"seed must be less than 2\*\*32"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)  # fmt: skip
def test_options(table, option, error, message):
    with pytest.raises(error, match=message):
        plan(from_pandas(table), intercepts, by="county", **option)


def test_defaults_come_from_dask_configuration(table):
    with dask.config.set({"consensus.num-chains": 3, "consensus.rows-per-shard": 10}):
        found = of_zoo("intercepts", table, num_chains=None)
    assert (found.options.num_chains, found.n_shards) == (3, 3)


def test_a_pandas_frame_has_the_same(table):
    here = table.consensus.plan(intercepts, by="county", n_shards=2)
    there = from_pandas(table, 3).consensus.plan(intercepts, by="county", n_shards=2)
    assert here.survey.rows == there.survey.rows == len(table)
    assert here.n_shards == there.n_shards
    assert repr(here) == repr(there)


def test_more_shards_than_rows_can_serve_are_refused(table):
    rows, least = len(table), max(planned("positive").model.dim, 2)
    most = rows // least
    assert of_zoo("positive", table, n_shards=most).n_shards == most
    with pytest.raises(ValueError, match=f"rows a shard, fewer than.* at most {most} shards"):
        of_zoo("positive", table, n_shards=most + 1)
