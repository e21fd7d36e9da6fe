"""A formula says the same as formulae does on all rows at once, whatever a partition holds."""

from __future__ import annotations

import json

import numpy as np
import numpyro.distributions as dist
import pandas as pd
import pytest

import benchmarks.formulas as bambi
from dask_consensus.formula import terms
from dask_consensus.formula.design import design_of, terms_by_name
from dask_consensus.formula.formula import Formula, from_written, translate
from dask_consensus.formula.numbers import add, add_numbers, moments_of, numbers_of
from dask_consensus.formula.terms import FormulaError, factor_of, read

from . import from_pandas, raise_if_dask_computes

formulae = pytest.importorskip("formulae")


def table(n: int = 240) -> pd.DataFrame:
    """Rows sorted by `day`, so that no partition has all of its levels."""
    i = np.arange(n)
    rng = np.random.default_rng(0)
    made = pd.DataFrame(
        {
            "x": rng.normal(3, 2, n),
            "z": rng.gamma(2, 1, n),
            "day": np.sort(rng.integers(1, 6, n)),
            "g": rng.choice(["north", "east", "west"], n),
            "store": rng.integers(0, 30, n),
            "item": [f"i{k:02d}" for k in rng.integers(0, 20, n)],
            "hours": rng.integers(1, 9, n),
            "flag": rng.random(n) < 0.4,
            "size": pd.Categorical(
                np.array(["small", "large", "middle"])[np.sort(i % 3)],
                categories=["small", "middle", "large"],
                ordered=True,
            ),
            "grade": pd.Categorical(i % 4 + 1),
            "a b": rng.normal(0, 1, n),
        }
    )
    made["y"] = made.x + rng.normal(0, 1, n)
    made["won"] = rng.integers(0, 5, n)
    made["yes"] = np.where(rng.random(n) < 0.5, "yes", "no")
    made["bit"] = (made.y > 3).astype(int)
    return made


ROWS = table()
FRAME = from_pandas(ROWS, npartitions=4)


def made(text: str, frame=FRAME, **options) -> Formula:
    return translate(frame, text, **options)


def reference(text: str):
    """What formulae makes of all rows; it finds functions where it is called."""
    return formulae.design_matrices(text, ROWS, extra_namespace={"np": np, "log": np.log})


EVERY_KIND = [
    "y ~ x",
    "y ~ 0 + x",
    "y ~ C(day)",
    "y ~ 0 + C(day) + x",
    "y ~ g + x:g",
    "y ~ g * C(day)",
    "y ~ g:size",
    "y ~ x + size:g:x",
    "y ~ size + grade + flag",
    "y ~ C(g, Sum) + x:z",
    "y ~ C(g, Treatment('north')) + T(day, ref=3)",
    "y ~ np.log(z) + log(hours + 1) + I(x ** 2) + {x + z}",
    "y ~ scale(x) + center(z) + standardize(hours)",
    "y ~ scale(x) * g",
    "y ~ scale(x):center(z)",
    "y ~ bs(x, df=5) + bs(log(z), df=4, degree=2)",
    "y ~ cr(x, df=4) + cc(z, period=12, df=4)",
    "y ~ poly(x, degree=3) + poly(z, 2, raw=True)",
    "y ~ `a b` + (x + z) ** 2",
    "y ~ x / g",
]


@pytest.mark.parametrize("text", EVERY_KIND)
def test_columns_are_those_of_formulae_on_all_rows(text):
    formula = made(text)
    theirs = reference(text).common
    ours = formula.frame(FRAME).compute()
    for name, labels in formula.asked.common.items():
        expected = np.reshape(theirs[name], (len(ROWS), -1))
        means = np.array(formula.asked.means.get(name, 0.0))
        assert list(labels) == theirs.terms[name].labels
        np.testing.assert_allclose(ours[list(labels)] + means, expected, atol=1e-9)
        if "Intercept" in theirs.terms:
            np.testing.assert_allclose(means, expected.mean(axis=0), atol=1e-9)
    assert {*formula.asked.common, "Intercept"} == {*theirs.terms, "Intercept"}


@pytest.mark.parametrize(
    "text",
    [
        "y ~ x + (1 + x | store)",
        "y ~ (0 + g | store)",
        "y ~ (g | store)",
        "y ~ (scale(x) + C(day) | store)",
        "y ~ (1 | g/store) + (bs(x, df=4) | item)",
    ],
)
def test_columns_of_groups_are_those_of_formulae(text):
    formula = made(text)
    theirs = reference(text).group
    ours = formula.frame(FRAME).compute()
    for term in formula.asked.grouped:
        if term.columns:
            names = [f"{column}|{':'.join(term.factor)}" for column in term.columns]
            expected = np.reshape(theirs.terms[term.name].expr.data, (len(ROWS), -1))
            np.testing.assert_allclose(ours[names], expected, atol=1e-9)
    assert [term.name for term in formula.asked.grouped] == list(theirs.terms)


def test_sds_of_columns_are_those_of_all_rows():
    """Priors rest on them; those of interactions come from cells, of transforms from a second pass.

    2.5 sds of the response over those of the column.
    """
    text = "y ~ x*g + scale(x):z + bs(z, df=4) + np.log(z):C(day)"
    formula = made(text)
    theirs = reference(text).common
    sd = ROWS.y.std(ddof=0)
    for name in formula.asked.common:
        expected = 2.5 * sd / np.reshape(theirs[name], (len(ROWS), -1)).std(axis=0)
        np.testing.assert_allclose(formula.asked.priors[name].parameters[1], expected, rtol=1e-6)


def test_a_formula_without_transforms_takes_one_pass(monkeypatch):
    passes = []
    from dask_consensus.formula import statistics

    compute = statistics.compute
    monkeypatch.setattr(statistics, "compute", lambda tasks: passes.append(1) or compute(tasks))
    made("y ~ x * g + C(day) + scale(z) + bs(x, df=4) + (1 + x | store)")
    assert len(passes) == 1
    made("y ~ scale(x) * g")
    assert len(passes) == 3


def test_more_rows_than_are_kept_are_stood_for_by_quantiles():
    rng = np.random.default_rng(1)
    values = rng.gamma(2, 1, 60_000)
    parts = [numbers_of(part) for part in np.array_split(values, 13)]
    whole = add_numbers([add_numbers(parts[:5]), add_numbers(parts[5:])])
    assert (whole.low, whole.high) == (values.min(), values.max())
    np.testing.assert_allclose(whole.moments.mean, values.mean())
    np.testing.assert_allclose(whole.moments.sd, values.std())
    shares = np.linspace(0.01, 0.99, 50)
    # 8,192 points a part are off by 1/8,192 of the rows at most, 1,025 in the end by 1/2,048.
    found = np.searchsorted(np.sort(values), np.quantile(whole.sample(), shares)) / len(values)
    np.testing.assert_allclose(found, shares, atol=1e-3)


def test_moments_add_up():
    values = np.random.default_rng(2).normal(1e6, 1, (90, 2))
    whole = add([moments_of(part) for part in np.split(values, [0, 7, 40])])
    np.testing.assert_allclose(whole.mean, values.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(whole.sd, values.std(axis=0), rtol=1e-9)


# The model


def test_what_is_written_runs_and_is_written_down():
    """The source is the model; as JSON there is no code, and the same source comes of it."""
    text = "won ~ x + C(day) + offset(log(hours)) + (1 + x | store) + (1 | item)"
    formula = made(text, family="poisson", priors={"cor|store": "LKJ(2)", "x": "Laplace(0, 1)"})
    names: dict = {}
    exec(formula.source, names)
    assert names["model"].__code__.co_code == formula.model.__code__.co_code
    told = formula.written()
    assert "numpyro" not in told
    assert "def " not in told
    again = from_written(told)
    assert again.source == formula.source
    assert again.columns == formula.columns
    pd.testing.assert_frame_equal(
        again.frame(FRAME).compute(), formula.frame(FRAME).compute(), check_exact=True
    )


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        ({"text": "y ~ os.system('true')"}, "may call"),
        ({"priors": {"sigma": "__import__('os')"}}, "__import__ is none of"),
        ({"family": "none"}, "cannot be read"),
        ({"grouping": 3}, "cannot be read"),
    ],
)
def test_a_tree_of_another_hand_runs_nothing(damage, match):
    told = json.loads(made("y ~ x").written())
    told["asked"] |= damage
    told["frozen"] |= {key: value for key, value in damage.items() if key == "text"}
    with pytest.raises(FormulaError, match=match):
        from_written(json.dumps(told))


def test_names_that_are_no_python_cannot_become_code():
    """Columns are quoted, and arguments named by letters and digits."""
    name = 'a"); raise SystemExit("'
    frame = from_pandas(ROWS.rename(columns={"x": name, "store": "my store"}))
    formula = made(f"y ~ `{name}` + (1 | `my store`)", frame)
    assert formula.columns["my_store"] == "my store"
    compile(formula.source, "model", "exec")
    assert formula.model.__code__.co_varnames[:2] == ("X", "my_store")


@pytest.mark.parametrize(
    ("text", "by", "crossed"),
    [
        ("y ~ (1 | store)", ["store"], []),
        ("y ~ (1 | g/store)", ["g", "store"], []),
        ("y ~ (1 | g) + (1 | store)", ["store"], ["g"]),
        ("y ~ (1 | store) + (x | item)", ["store"], ["item"]),
        ("y ~ (1 | g:store)", ["g", "store"], []),
        ("y ~ (1 | item) + (1 | g/store)", ["g", "store"], ["item"]),
        ("y ~ (1 | store) + (1 | g:day)", ["store"], ["g:day"]),
        ("y ~ x", None, []),
    ],
)
def test_the_key_is_the_factor_with_the_most_groups(text, by, crossed):
    formula = made(text)
    assert formula.by == by
    assert [":".join(factor) for factor in formula.asked.grouping.crossed] == crossed
    categories = formula.frame(FRAME)
    for name in crossed:
        levels = list(categories[name].dtype.categories)
        expected = formulae.design_matrices(f"y ~ (1|{name})", ROWS).group.terms[f"1|{name}"].groups
        assert set(map(str, levels)) <= set(expected)


def test_crossed_factors_have_no_more_levels_than_effects_can_have():
    n = 5000
    rows = pd.DataFrame({"y": np.arange(n) % 7, "u": np.arange(n), "i": np.arange(n) % 2100})
    with pytest.raises(FormulaError, match=r"about 2,1\d\d groups that are crossed"):
        made("y ~ (1 | u) + (1 | i)", from_pandas(rows))


# Responses


def test_responses_become_what_the_family_takes():
    frame = FRAME
    assert set(made("yes['yes'] ~ x", family="bernoulli").frame(frame).compute()["yes"]) == {0, 1}
    ordered = made("size ~ x", family="ordered")
    assert ordered.asked.levels == ("small", "middle", "large")
    np.testing.assert_array_equal(ordered.frame(frame).compute()["size"], ROWS["size"].cat.codes)
    binomial = made("p(bit, hours) ~ x", family="binomial")
    np.testing.assert_array_equal(binomial.frame(frame).compute()["trials"], ROWS.hours)
    assert "trials = 3" in made("p(bit, 3) ~ x", family="binomial").source
    weighted = made("weighted(log(z), hours) ~ x")
    made_of = weighted.frame(frame).compute()
    np.testing.assert_allclose(made_of["log(z)"], np.log(ROWS.z))
    assert "handlers.scale(scale=weight)" in weighted.source


def test_missing_responses_stay_missing_and_tell_nothing():
    rows = ROWS.assign(bit=ROWS.bit.astype("Int64").where(ROWS.index % 10 > 0))
    formula = made("bit ~ x", from_pandas(rows), family="bernoulli")
    left = rows.bit.notna()
    assert formula.frame(from_pandas(rows)).compute()["bit"].isna().sum() == (~left).sum()
    np.testing.assert_allclose(formula.asked.means["x"], rows.x[left].mean())


def test_missing_values_are_told_by_the_columns_of_the_frame():
    """The design has others, `g[north]`, of which a user knows nothing."""
    holes = ROWS.assign(g=ROWS.g.where(ROWS.index % 9 > 0), x=ROWS.x.where(ROWS.index % 7 > 0))
    holes["y"] = holes["y"].where(holes.index % 2 > 0)
    counts = [int((holes[name].isna() & holes.y.notna()).sum()) for name in ("x", "g")]
    told = rf"'x' in {counts[0]} of them, 'g' in {counts[1]} of them\. Drop .*subset=\['x', 'g'\]"
    with pytest.raises(FormulaError, match=told):
        made("y ~ x + g", from_pandas(holes))
    # And in rows that are met later.
    with pytest.raises(FormulaError, match=r"'g' in \d+ of them\. Drop"):
        made("y ~ x + g").frame(from_pandas(holes.assign(x=0.0))).compute()
    allowed = holes[holes.y.isna() | (holes.x.notna() & holes.g.notna())]
    made("y ~ x + g", from_pandas(allowed))  # rows without a response are left out in any case


@pytest.mark.parametrize("dtype", ["Int64", "int32", "float64", "category", "int64[pyarrow]"])
def test_dtypes_of_files_are_accidents(dtype):
    rows = ROWS.assign(day=ROWS.day.astype(dtype))
    formula = made("y ~ C(day)", from_pandas(rows))
    levels = [float(label[7:-1]) for label in formula.asked.common["C(day)"]]
    assert levels == [2, 3, 4, 5]
    ours = formula.frame(from_pandas(rows)).compute()
    expected = formulae.design_matrices("y ~ C(day)", ROWS).common["C(day)"]
    np.testing.assert_allclose(ours.iloc[:, :4] + np.array(formula.asked.means["C(day)"]), expected)


# What is refused


@pytest.mark.parametrize(
    ("text", "options", "match"),
    [
        ("y ~ X", {}, r"no column 'X' \(a term\) \(did you mean 'x'\?\)"),
        ("Y ~ x", {}, r"no column 'Y' \(a response\) \(did you mean 'y'\?\)"),
        ("y ~ x + (1 | shop)", {}, "no column 'shop'"),
        (
            "y ~ day.dt.month",
            {},
            r"calls no methods\. Make a column .* = ddf\.day\.dt",
        ),
        ("~ x", {}, "cannot be read"),
        ("x", {}, "has no response"),
        ("", {}, "is empty"),
        ("y ~ x +", {}, "cannot be read"),
        ("y ~ `x", {}, "backquote"),
        ("y ~ os.system('x')", {}, r"calls os.system\(\), and a formula may call"),
        ("y ~ np.load(x)", {}, r"calls np.load\(\)"),
        ("y ~ hsgp(x, m=10)", {}, r"write bs\(x, df=5\)"),
        ("y ~ scale(log(scale(x)))", {}, "stands inside of another call"),
        ("y ~ bs(x, df=day)", {}, "the others are numbers"),
        ("y ~ bs(x, foo=3)", {}, "foo"),
        ("y ~ bs(x, df=2)", {}, "df=2 is too small"),
        ("y ~ C(g, levels=day)", {}, "levels"),
        ("y ~ (1 || store)", {}, "independent unless priors= correlates"),
        ("y ~ (1 | scale(store))", {}, "groups are the values of columns"),
        ("y ~ log(g)", {}, "makes no numbers"),
        ("y ~ x", {"family": "gausian"}, r"did you mean 'gaussian'\?"),
        ("y ~ x", {"family": "poisson", "link": "logit"}, "link='logit'.* has 'log'"),
        ("y ~ x", {"family": "bernoulli"}, "takes 0 and 1"),
        ("y ~ x", {"family": "poisson"}, "takes whole numbers"),
        ("y ~ x", {"family": "gamma"}, "takes numbers above 0"),
        ("y ~ x", {"family": "beta"}, "between 0 and 1"),
        ("won ~ x", {"family": "binomial"}, r"takes p\(y, n\)"),
        ("p(won, hours) ~ x", {"family": "poisson"}, "takes y on the left"),
        ("yes ~ x", {}, "holds no, yes, no numbers"),
        ("yes['ja'] ~ x", {"family": "bernoulli"}, "no row has the value 'ja'; it has no, yes"),
        ("yes['no'] ~ x", {"family": "poisson"}, "is family='bernoulli'"),
        ("yes ~ x", {"family": "ordered"}, "whose order nothing tells"),
        ("y ~ x", {"priors": {"xx": "Normal(0, 1)"}}, r"names 'xx'.*did you mean 'x'\?"),
        ("y ~ x", {"priors": {"x": "Nrmal(0, 1)"}}, r"did you mean Normal\?"),
        ("y ~ x", {"priors": {"x": "Normal(0)"}}, "also needs 'scale'"),
        ("y ~ x", {"priors": {"x": "Normal(0, -1)"}}, "scale must be a number above 0"),
        ("y ~ x", {"priors": {"x": "Normal(0, y)"}}, "is no distribution"),
        ("y ~ x", {"priors": {"sigma": "Normal(0, 1)"}}, "this parameter is positive"),
        ("y ~ x", {"priors": {"x": "LKJ(1)"}}, "needs no LKJ"),
        ("y ~ x", {"priors": {"x": dist.VonMises(0, 1)}}, "VonMises is none of"),
        ("y ~ (x | store)", {"priors": {"cor|store": "Normal(0, 1)"}}, r"needs 'LKJ\(1\)'"),
    ],
)
def test_what_cannot_be_said_is_refused(text, options, match):
    with pytest.raises(FormulaError, match=match):
        made(text, **options)


def test_a_constant_column_is_named():
    with pytest.raises(FormulaError, match="term 'x' has a column that is the same in every row"):
        made("y ~ x", from_pandas(ROWS.assign(x=1.0)))
    with pytest.raises(FormulaError, match=r"scale\(x\): its column is 1 in every row"):
        made("y ~ scale(x)", from_pandas(ROWS.assign(x=1.0)))


def test_columns_that_are_no_numbers_are_named():
    with pytest.raises(FormulaError, match=r"term 'log\(hours\)' has values that are not finite"):
        made("y ~ log(hours)", from_pandas(ROWS.assign(hours=ROWS.hours - 1)))
    with pytest.raises(FormulaError, match=r"column 'day' has dtype datetime64.*total_seconds"):
        made("y ~ day", from_pandas(ROWS.assign(day=pd.Timestamp("2026-01-01"))))


def test_a_level_that_was_not_fitted_is_named():
    formula = made("y ~ g")
    new = from_pandas(ROWS.assign(g=ROWS.g.where(ROWS.index != 3, "south")))
    with pytest.raises(FormulaError, match="g: south is a level that the formula has not been"):
        formula.frame(new).compute()


def test_without_the_parser_the_command_is_named(monkeypatch):
    def absent(name):
        raise ImportError(name)

    monkeypatch.setattr(terms.importlib, "import_module", absent)
    with pytest.raises(ImportError, match=r"pip install 'dask_consensus\[formulas\]'"):
        read("y ~ x")


def test_reading_computes_nothing():
    with raise_if_dask_computes():
        found = read("y ~ x + (1 | g/store)")
    assert [factor_of(term) for term in found.grouped] == [("g",), ("g", "store")]


def test_other_versions_of_the_parser_are_noticed():
    formula = made("y ~ g")
    other = formula.frozen._replace(labels={"g": ["g[east]"]})
    with pytest.raises(FormulaError, match=r"term 'g' had columns \['g\[east\]'\] in the fit"):
        design_of(other)
    assert list(terms_by_name(read("y ~ g"))) == ["g"]


# Bambi's own priors, as `python benchmarks/formulas.py bambi` stores them


@pytest.mark.parametrize("case", bambi.CASES)
def test_priors_are_those_of_bambi(case):
    """To the digits of floats: both are closed forms of the same rows."""
    told = json.loads(bambi.REFERENCE.read_text())
    rows = bambi.rows()
    assert np.isclose(told["sum"], rows.select_dtypes("number").sum().sum(), rtol=1e-12)
    text, family, _, link = bambi.CASES[case]
    ours = made(text, from_pandas(rows), family=family, link=link).asked.priors
    theirs = {}
    for name, prior in told[case]["priors"].items():
        if name.startswith("offset"):
            continue
        kind, parameters = prior
        if "|" in name:  # a normal prior of the effects, whose sd has one
            name, (kind, parameters) = f"{name}_sigma", parameters["sigma"]
        theirs[name] = kind, parameters
    assert set(ours) == set(theirs)
    for name, prior in ours.items():
        kind, parameters = theirs[name]
        assert prior.name == kind
        for mine, other in zip(prior.parameters, parameters.values(), strict=True):
            np.testing.assert_allclose(*np.broadcast_arrays(mine, other), rtol=1e-9)
