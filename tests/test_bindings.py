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
         r"column 'Note' \(argument 'Note'\) has dtype .*astype\('category'\).*by="),
        (lambda X: 0, {"X": "w*"}, None, same, r"'X': no column of the frame matches 'w\*'; its"),
        (lambda X: 0, {"X": ["Weeks", "nope"]}, None, same, r"'X': the frame has no column 'nope'"),
        (lambda X: 0, {"X": []}, None, same, r"columns=\{'X': \[\]\} names no column"),
        (lambda X: 0, {"X": ["Weeks", "W*"]}, None, same, r"'X': column 'Weeks' is named twice"),
        (lambda X: 0, {"X": ["Weeks", "Smoking"]}, None, same,
         r"column 'Smoking' is a categorical, and argument 'X' receives a matrix of numbers"),
        (lambda X: 0, {"X": ["FVC", "Patient"]}, "Patient", same, r"'Patient' is a key in by=.*X"),
        (lambda X: 0, {"X": ["FVC", "Note"]}, None, same, r"'Note' \(argument 'X'\) has dtype str"),
        (lambda X, FVC: 0, {"X": ["Weeks", "FVC"]}, None, same,
         r"'FVC' feeds both argument 'FVC' and the matrix 'X'.*X\[:, 1\], too"),
        (lambda X, Z: 0, {"X": "?eeks", "Z": ["Weeks"]}, None, same,
         r"'Weeks' feeds both argument 'X' and the matrix 'Z'"),
        (lambda X, n_X: 0, {"X": ["FVC"]}, None, same, r"'X', which is a matrix.*X\.shape\[1\]"),
        (lambda Date: 0, None, None, same, r"'Date'.*datetime64.*\.dt\.total_seconds\(\)"),
        (lambda Since: 0, None, None, same, r"'Since'.*timedelta64.*\.dt\.total_seconds\(\)"),
        (lambda Wave: 0, None, None, same, r"'Wave'.*complex128"),
        (lambda patient, n_patient, FVC: 0, {"patient": "Weeks"}, None, same,
         r"'n_patient' .* number of groups of 'patient', but column 'Weeks' is neither in by=.* "
         r"If its values are the groups, pass by='Weeks'"),
        (lambda fvc: 0, {"FVC": "fvc"}, None, same,
         r"no argument of the model \(it says which .* argument: columns=\{'fvc': 'FVC'\}\)"),
        (lambda weeks, FVC: 0, {"week": "Weeks"}, None, same, r"\(did you mean 'weeks'\?\)"),
        (lambda Patient, FVC, num_patients: 0, None, "Patient", same,
         r"'num_patients' .* \(a number of groups, or of categories, is called n_Patient\)"),
        (lambda Note: 0, None, None, same, r"of two values a boolean .* ddf\['Note'\] == <one"),
    ],
)  # fmt: skip
def test_bad_arguments(visits, model, columns, by, change, message):
    with pytest.raises(ValueError, match=message), raise_if_dask_computes():
        bind(change(visits), model, by, columns)


@pytest.mark.parametrize("what", ["by", "columns"])
def test_a_column_itself_is_told_that_its_name_is_meant(visits, what):
    given = {"by": None, "columns": {}} | (
        {"by": visits["Patient"]} if what == "by" else {"columns": {"x": visits["FVC"]}}
    )
    message = r"expected the name of a column, got a Series; pass its name: '(Patient|FVC)'"
    with pytest.raises(TypeError, match=message), raise_if_dask_computes():
        bind(visits, lambda x=None: 0, **given)


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


def of(bindings, argument: str) -> list:
    return [(c.column, c.entry) for c in bindings.layout.columns if c.argument == argument]


@pytest.mark.parametrize(
    ("given", "columns"),
    [
        (["FVC", "Weeks"], ["FVC", "Weeks"]),
        (("FVC", 7), ["FVC", 7]),
        (["Male"], ["Male"]),
        ("*e?ks", ["Weeks"]),
        ("[MW][ae][el]*", ["Weeks", "Male"]),
        (["?VC", 7, "We*"], ["FVC", 7, "Weeks"]),
    ],
)
def test_several_columns_make_a_matrix(visits, given, columns):
    def model(patient, X, n_patient): ...

    with raise_if_dask_computes():
        bindings = bind(visits, model, "Patient", {"patient": "Patient", "X": given})
    assert of(bindings, "X") == [(column, entry) for entry, column in enumerate(columns)]


def test_a_column_wins_over_a_pattern():
    frame = dd.from_pandas(pd.DataFrame({"x*": [1.0], "x1": [2.0]}), npartitions=1)
    assert of(bind(frame, lambda X: 0, None, {"X": "x*"}), "X") == [("x*", -1)]
    assert of(bind(frame, lambda X: 0, None, {"X": ["x*"]}), "X") == [("x*", 0)]


def test_a_matrix_has_one_dtype(visits):
    """Booleans are integers beside such, and both are floats beside such."""
    for columns, dtype in [
        (["Male"], "bool"), (["Male", "Weeks"], "int32"), (["Male", "FVC"], "float32"),
    ]:  # fmt: skip
        layout = bind(visits, lambda X: 0, None, {"X": columns}).layout.typed(visits._meta)
        assert {column.dtype for column in layout.columns} == {dtype}


def test_a_model_may_take_whatever_columns_names(visits):
    def model(fvc=None, *, n_patient, spread=1.0, **columns): ...

    given = {"X": ["Weeks", "Male"], "patient": "Patient", "fvc": "FVC"}
    for bound in (model, functools.partial(model, spread=2.0), scope(prefix="outer")(model)):
        bindings = bind(visits, bound, "Patient", given)
        assert {c.argument for c in bindings.layout.columns} == {"X", "patient", "fvc"}
        assert bindings.counts == {"n_patient": 0}
    # A name that is bound already is none that is free.
    with pytest.raises(ValueError, match="columns names 'spread', which is no argument"):
        bind(visits, functools.partial(model, spread=2.0), "Patient", given | {"spread": "FVC"})


@pytest.mark.parametrize("known", [True, False])
def test_the_number_of_categories_is_found(visits, known):
    def model(smoking, n_smoking, FVC): ...

    frame = visits if known else visits.assign(Smoking=visits["Smoking"].cat.as_unknown())
    bindings = bind(frame, model, None, {"smoking": "Smoking"}).completed(frame, 8)
    assert bindings.constants == {"n_smoking": 2}
    assert bindings.layout.columns[0].categories == ("ex", "never")


def test_all_columns_that_are_no_numbers_are_named_at_once():
    def model(when, arm, y=None):
        raise NotImplementedError

    frame = pd.DataFrame({"when": pd.to_datetime(["2026-01-01"]), "arm": ["a"], "y": [1.0]})
    told = r"column 'when' .* datetime64.*\ncolumn 'arm' .* Make it a categorical"
    with pytest.raises(ValueError, match=told):
        bind(dd.from_pandas(frame, npartitions=1), model, None, None)
