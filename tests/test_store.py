"""A store whose files are there whole or not at all."""

import os
import pickle
import shutil
import warnings
from pathlib import Path

import fsspec
import numpy as np
import pytest

from dask_consensus.cluster import store as module
from dask_consensus.cluster.records import encoded
from dask_consensus.cluster.store import Missing, Store
from dask_consensus.combination.reports import Anchor

VALUE = {"anchor": Anchor(np.arange(3.0), np.eye(3), 0.5), "names": ["a", "b"]}


@pytest.fixture(params=["folder", "file", "memory"])
def store(request, tmp_path):
    if request.param == "memory":
        yield Store("memory://a/store")
        fsspec.filesystem("memory").store.clear()
    else:
        yield Store(f"{'file://' if request.param == 'file' else ''}{tmp_path}/store")


def put(store, name, value):
    store.put(name, encoded(name, value))


def get(store, name):
    return store.get(name, store.files().get(name, ()))


def test_what_was_put_is_read_again(store):
    assert store.is_empty()
    assert get(store, "round-1") is Missing
    put(store, "round-1", VALUE)
    put(store, "round-1/17", [1, 2])
    found = get(store, "round-1")
    np.testing.assert_array_equal(found["anchor"].precision, np.eye(3))
    assert isinstance(found["anchor"], Anchor)
    assert get(store, "round-1/17") == [1, 2]
    assert get(store, "round-1/18") is Missing
    assert not store.is_empty()
    assert pickle.loads(pickle.dumps(store)) == store


def test_shares_go_and_passes_stay(store):
    put(store, "round-1", 1)
    put(store, "round-1/0", 2)
    store.remove_shares()
    assert set(store.files()) == {"round-1"}
    store.forget()
    assert store.files() == {}


def test_texts_beside_the_records(store):
    assert store.text("about.json") is None
    store.write_text("about.json", "{}")
    store.write_text("about.json", '{"a": 1}')
    assert store.text("about.json") == '{"a": 1}'


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A store with one record, and the path of its file."""
    store = Store(str(tmp_path_factory.mktemp("kept")))
    put(store, "round-1", VALUE)
    (path,) = Path(store.url).rglob("*.parquet")
    return store, path, path.read_bytes()


PLACES = np.linspace(0, 1, 15)


@pytest.mark.parametrize("place", PLACES.round(3).tolist())
@pytest.mark.parametrize("harm", ["bit", "cut", "grown", "zeros"])
def test_a_damaged_file_is_named_and_not_believed(file, place, harm):
    store, path, content = file
    at = min(int(place * len(content)), len(content) - 1)
    bit = bytes([content[at] ^ 1 << at % 8])
    harmed = {
        "bit": content[:at] + bit + content[at + 1 :],
        "cut": content[:at],
        "grown": content[:at] + b"\xff" + content[at:],
        "zeros": content[:at] + bytes(len(content) - at),  # a page that never reached the disk
    }[harm]
    path.write_bytes(harmed)
    assert harmed != content
    with pytest.warns(UserWarning, match=r"round-1\.[0-9a-f]{64}\.parquet of store .* is damaged"):
        assert get(store, "round-1") is Missing
    assert not path.exists()
    put(store, "round-1", VALUE)
    assert path.read_bytes() == content


def test_a_record_under_the_name_of_another_is_not_believed(file):
    """As a file that was renamed would be: its checksum is right."""
    store, path, content = file
    other = path.with_name(path.name.replace("round-1", "round-2"))
    other.write_bytes(content)
    with pytest.warns(UserWarning, match="it is the record of 'round-1'"):
        assert get(store, "round-2") is Missing
    assert get(store, "round-1") is not Missing


def test_of_two_files_the_whole_one_is_read(file):
    store, path, content = file
    name = path.name.split(".")
    (path.with_name(f"{name[0]}.{'0' * 64}.parquet")).write_bytes(content[:50])
    with pytest.warns(UserWarning, match="damaged"):
        assert get(store, "round-1")["names"] == ["a", "b"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert get(store, "round-1")["names"] == ["a", "b"]


@pytest.mark.parametrize(
    "name",
    [
        "", ".", "..", "../x", "/etc/x", "a/../../x", "a/b", "a//1", "a/1/2", "a\\b", "a b", "A",
        "ä", "a\n", "a\0", "~", "a.b", "-a", "s3://x", "a/", "/1", "a/1.x", "CON ", "a" * 200,
        "a/-1", "memory://x",
    ],
)  # fmt: skip
def test_no_name_is_a_path(store, name):
    for attempt in (lambda: store.put(name, b""), lambda: store.get(name, ["x"])):
        with pytest.raises(ValueError, match="names no record"):
            attempt()


@pytest.mark.parametrize(
    "file_name",
    ["../../secret", "/etc/passwd", "round-1.parquet", "round-2." + "0" * 64 + ".parquet", ""],
)
def test_no_file_is_read_but_of_the_name(tmp_path, file_name):
    (tmp_path / "secret").write_bytes(b"x")
    store = Store(str(tmp_path / "a" / "store"))
    put(store, "round-1", 1)
    with pytest.warns(UserWarning, match="its name is not that of the record"):
        assert store.get("round-1", [file_name]) is Missing
    assert (tmp_path / "secret").exists()


def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
    store = Store(str(tmp_path / "store"))
    put(store, "round-1", 1)
    before = sorted(tmp_path.rglob("*"))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        put(store, "round-2", VALUE)
    assert sorted(tmp_path.rglob("*")) == before


def test_what_an_interrupted_write_has_left_is_no_record(tmp_path):
    store = Store(str(tmp_path))
    (tmp_path / f"{module._TEMPORARY}0").write_bytes(b"half")
    assert store.is_empty()
    put(store, "round-1", 1)
    left = tmp_path / "steps" / f"{module._TEMPORARY}1"
    left.write_bytes(b"half")
    assert set(store.files()) == {"round-1"}
    assert not left.exists()


def test_what_is_not_of_the_store_is_left_alone(tmp_path):
    store = Store(str(tmp_path))
    put(store, "round-1", 1)
    for name in ("notes.txt", "steps/notes.txt", "steps/data.parquet"):
        (tmp_path / name).write_text("mine")
    store.forget()
    assert store.files() == {}
    for name in ("notes.txt", "steps/notes.txt", "steps/data.parquet"):
        assert (tmp_path / name).read_text() == "mine"


def test_a_place_that_cannot_be_written_to_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot be written to"):
        Store(str(tmp_path / "file" / "store")).check_writable()


def test_a_store_that_moved_is_the_same(store, tmp_path):
    if store.url.startswith(("memory", "file")):
        pytest.skip("a folder is moved")
    put(store, "round-1", VALUE)
    shutil.move(store.url, tmp_path / "elsewhere")
    assert get(Store(str(tmp_path / "elsewhere")), "round-1")["names"] == ["a", "b"]
