from __future__ import annotations

import functools

import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
from numpyro.handlers import reparam, scope

from dask_consensus.plan.bindings import bind

from . import raise_if_dask_computes


@pytest.fixture(scope="module")
def visits() -> dd.DataFrame:
    frame = pd.DataFrame(
        {
            "Region": ["north", "north", "south"],
            "Patient": ["a", "b", "a"],
            "Weeks": [1, 2, 3],
            "FVC": [1.0, 2.0, 3.0],
            "Male": [True, False, True],
            "Smoking": pd.Categorical(["ex", "never", "ex"]),
            "Note": ["x", "y", "z"],
            "Date": pd.to_datetime(["2020-01-01", "2020-01-02", "2020-01-03"]),
            "Wave": pd.Series([1 + 2j, 0j, 1j]),
            7: [0.0, 1.0, 2.0],
        }
    )
    frame["Since"] = frame["Date"] - frame["Date"].min()
    return dd.from_pandas(frame, npartitions=2)


NAMES = {"patient": "Patient", "weeks": "Weeks", "fvc": "FVC"}


def kinds(bindings) -> dict[str, tuple]:
    return {c.argument: (c.column, c.kind) for c in bindings.layout.columns}


def test_arguments_by_name(visits):
    def model(patient, weeks, fvc=None, *, n_patient, Male, spread=3.0, **options): ...

    bindings = bind(visits, model, "Patient", NAMES)
    assert kinds(bindings) == {
        "patient": ("Patient", "group"),
        "weeks": ("Weeks", "value"),
        "fvc": ("FVC", "value"),
        "Male": ("Male", "value"),
    }
    assert bindings.counts == {"n_patient": 0}
    assert bindings.constants == {}
    assert bindings.defaults == ("spread",)


def test_nested_keys_have_a_count_each(visits):
    def model(Region, Patient, n_Region, n_Patient, FVC): ...

    bindings = bind(visits, model, ["Region", "Patient"], None)
    assert bindings.counts == {"n_Region": 0, "n_Patient": 1}
    assert bindings.layout.by == ("Region", "Patient")
    assert [c.level for c in bindings.layout.columns] == [0, 1, -1]


@pytest.mark.parametrize("name", ["n_groups", "num_groups"])
def test_the_usual_name_of_a_count_is_known(visits, name):
    scope = {}
    exec(f"def one(patient, fvc, {name}): ...", scope)
    exec(f"def two(Region, Patient, FVC, {name}): ...", scope)
    exec(f"def none(FVC, {name}): ...", scope)
    some = {"patient": "Patient", "fvc": "FVC"}
    assert bind(visits, scope["one"], "Patient", some).counts == {name: 0}
    inner = bind(visits, scope["one"], ["Region", "Patient"], some)
    assert inner.counts == {name: 1}
    with pytest.raises(ValueError, match=f"{name}.*call it 'n_Region' or 'n_Patient'"):
        bind(visits, scope["two"], ["Region", "Patient"], None)
    with pytest.raises(ValueError, match=f"argument '{name}' of the model is no column"):
        bind(visits, scope["none"], "Patient", None)


def test_categories_are_coded_and_counted(visits):
    def model(smoking, n_smoking, FVC): ...

    bindings = bind(visits, model, None, {"smoking": "Smoking"})
    assert bindings.constants == {"n_smoking": 2}
    assert bindings.layout.columns[0].categories == ("ex", "never")


def test_a_column_wins_over_a_default_and_over_a_count(visits):
    def model(patient, n_patient, Weeks=None): ...

    frame = visits.assign(n_patient=1.0)
    bindings = bind(frame, model, "Patient", {"patient": "Patient", "n_patient": "n_patient"})
    assert kinds(bindings)["n_patient"] == ("n_patient", "value")
    assert kinds(bindings)["Weeks"] == ("Weeks", "value")
    # Unasked, a count is what its name says.
    assert bind(frame, model, "Patient", {"patient": "Patient"}).counts == {"n_patient": 0}


def test_the_index_is_a_column(visits):
    def model(Patient, FVC, n_Patient): ...

    indexed = visits.set_index("Patient")
    assert kinds(bind(indexed, model, "Patient", None))["Patient"] == ("Patient", "group")


def test_columns_need_not_have_names_of_text(visits):
    def model(x): ...

    assert kinds(bind(visits, model, None, {"x": 7})) == {"x": (7, "value")}


class Callable:
    def __call__(self, weeks, fvc): ...


def plain(weeks, fvc): ...


def weighted(weeks, fvc, weight): ...


@pytest.mark.parametrize(
    "model",
    [
        plain,
        Callable(),
        functools.partial(weighted, weight=2.0),
        reparam(plain, config={}),
        reparam(config={})(plain),
        functools.partial(scope(prefix="outer")(reparam(config={})(weighted)), weight=2.0),
    ],
    ids=["function", "object", "partial", "handler", "decorator", "all at once"],
)
def test_whatever_can_be_called(visits, model):
    # A column that bears the name of an argument already bound does not unbind it.
    found = kinds(bind(visits.assign(weight=1.0), model, None, {"weeks": "Weeks", "fvc": "FVC"}))
    assert found == {"weeks": ("Weeks", "value"), "fvc": ("FVC", "value")}


def test_nothing_is_computed(visits):
    with raise_if_dask_computes():
        bind(visits, plain, "Patient", {"weeks": "Weeks", "fvc": "FVC"})


def unknown_categories(frame: dd.DataFrame) -> dd.DataFrame:
    return frame.assign(Smoking=frame["Note"].astype("category").cat.as_unknown())


def same(frame: dd.DataFrame) -> dd.DataFrame:
    return frame


@pytest.mark.parametrize(
    ("model", "columns", "by", "change", "message"),
    [
        (lambda week: 0, None, None, same,
         r"argument 'week' .* \(did you mean 'Weeks'\?\) .* columns=\{'week': <column>\}"),
        (lambda x: 0, {"x": "weeks"}, None, same,
         r"argument 'x': the frame has no column 'weeks' \(did you mean 'Weeks'\?\)"),
        (lambda x: 0, {"z": "Weeks"}, None, same,
         r"columns names 'z', which is no argument of the model; its arguments are x"),
        (lambda FVC: 0, None, "patient", same,
         r"by: the frame has no column 'patient' \(did you mean 'Patient'\?\)"),
        (lambda FVC: 0, None, ["Region", "Region"], same, r"by=\['Region', 'Region'\] .* twice"),
        (lambda FVC: 0, None, [], same, r"by=\[\] names no key column; leave it out"),
        (lambda Note: 0, None, None, same,
         r"column 'Note' \(argument 'Note'\) has dtype .*astype\('category'\)\.cat\.as_known.*by="),
        (lambda Smoking: 0, None, None, unknown_categories,
         r"column 'Smoking' .* categories Dask does not know.*\.cat\.as_known\(\)"),
        (lambda Date: 0, None, None, same, r"'Date'.*datetime64.*\.dt\.total_seconds\(\)"),
        (lambda Since: 0, None, None, same, r"'Since'.*timedelta64.*\.dt\.total_seconds\(\)"),
        (lambda Wave: 0, None, None, same, r"'Wave'.*complex128"),
        (lambda patient, n_patient, FVC: 0, {"patient": "Weeks"}, None, same,
         r"'n_patient' .* number of groups of 'patient', but column 'Weeks' is neither in by="),
    ],
)  # fmt: skip
def test_bad_arguments(visits, model, columns, by, change, message):
    with pytest.raises(ValueError, match=message), raise_if_dask_computes():
        bind(change(visits), model, by, columns)


def test_columns_of_several_levels():
    """The name of a column is a tuple; one of them may be the key."""
    names = pd.MultiIndex.from_tuples([("who", "id"), ("lung", "fvc")])
    frame = dd.from_pandas(pd.DataFrame([[1, 2.0], [1, 3.0]], columns=names), npartitions=1)
    columns = {"patient": ("who", "id"), "fvc": ("lung", "fvc")}
    for by in (("who", "id"), [("who", "id")]):
        bindings = bind(frame, lambda patient, fvc, n_patient: 0, by, columns)
        assert bindings.layout.by == (("who", "id"),)
        assert kinds(bindings)["fvc"] == (("lung", "fvc"), "value")


def test_columns_that_bear_one_name(visits):
    """Those that are not used may."""
    frame = pd.DataFrame([[1.0, 2.0, 3.0]], columns=["x", "y", "y"])
    twice = dd.from_pandas(frame, npartitions=1)
    assert kinds(bind(twice, lambda x: 0, None, None)) == {"x": ("x", "value")}
    message = r"2 columns of the frame are named 'y'.*duplicated\(\)"
    for by, columns in ((None, None), ("y", None), (None, {"y": "y"})):
        with pytest.raises(ValueError, match=message):
            bind(twice, lambda y: 0, by, columns)
    # The index is no second column.
    indexed = visits.assign(Key=visits["Weeks"]).set_index("Key", drop=False)
    assert kinds(bind(indexed, lambda Key: 0, None, None)) == {"Key": ("Key", "value")}


@pytest.mark.parametrize(
    "dtype", [np.float16, np.int8, np.uint64, bool, "Float64", "Int32", "boolean"]
)
def test_any_number_is_a_value(visits, dtype):
    frame = visits.assign(x=visits["Weeks"].astype(dtype))
    assert kinds(bind(frame, lambda x: 0, None, None)) == {"x": ("x", "value")}
