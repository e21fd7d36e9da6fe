"""Compiled code on disk: whole, of one user alone, bounded."""

import os
import stat
import threading
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src import compilation_cache

from dask_consensus.shard import code_on_disk, compiling
from dask_consensus.shard.code_on_disk import CodeOnDisk, keep_on_disk

from .test_marginal import intercepts, read


@pytest.fixture
def fresh(monkeypatch):
    """A process that has kept no code yet."""
    before = jax.config.jax_compilation_cache_dir
    monkeypatch.setattr(compilation_cache, "_cache", None)
    monkeypatch.setattr(code_on_disk, "_ASKED", set())
    monkeypatch.setattr(code_on_disk, "_WARNED", set())
    monkeypatch.setattr(code_on_disk, "_WORTH_KEEPING", 0.0)
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    jax.config.update("jax_compilation_cache_dir", before)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def used() -> str | None:
    return jax.config.jax_compilation_cache_dir


def test_the_folder_is_made_for_its_owner_alone(fresh, tmp_path):
    folder = tmp_path / "not yet" / "there"
    keep_on_disk(str(folder), 10)
    for place in (folder, *folder.iterdir()):
        assert stat.S_IMODE(place.stat().st_mode) == 0o700
    assert used() == str(next(folder.iterdir()))


def test_a_folder_of_ones_own_that_others_can_read_is_used(fresh, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir(mode=0o755)
    keep_on_disk(str(folder), 10)
    assert used() == str(next(folder.iterdir()))
    assert stat.S_IMODE(next(folder.iterdir()).stat().st_mode) == 0o700


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o1777])
@pytest.mark.parametrize("inner", [False, True])
def test_a_folder_that_others_can_write_in_is_not_used(fresh, tmp_path, mode, inner):
    folder = tmp_path / "shared"
    place = folder / code_on_disk._processor() if inner else folder
    place.mkdir(parents=True)
    folder.chmod(0o755)
    place.chmod(mode)
    message = rf"shared.* can be written in by others \(mode {mode:o}\).*consensus\.cache"
    with pytest.warns(UserWarning, match=message) as told:
        _ = [keep_on_disk(str(folder), 10) for _ in range(2)]
    assert len(told) == 1
    assert used() is None


def test_a_folder_of_another_user_is_not_used(fresh, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "getuid", lambda: tmp_path.stat().st_uid + 1)
    with pytest.warns(UserWarning, match=r"belongs to another user \(\d+\).*not kept"):
        keep_on_disk(str(tmp_path), 10)
    assert used() is None


def test_a_folder_that_cannot_be_made_is_done_without(fresh, tmp_path):
    (tmp_path / "file").write_text("")
    keep_on_disk(str(tmp_path / "file" / "below"), 10)
    keep_on_disk("", 10)
    assert used() is None


def test_what_is_damaged_is_removed_and_made_anew(fresh, tmp_path, monkeypatch):
    """Empty, cut short, or another: with one warning for all, and none the next time."""
    monkeypatch.setattr(compiling, "_COMPILED", {})
    model = read(intercepts, {"y": np.zeros(4, int)}, groups=["g"])
    object.__setattr__(model, "cache", str(tmp_path))

    def answers():
        compiling._COMPILED.clear()
        return [
            float(compiling.compiled(model, ("code", k), lambda k=k: build(k), jnp.ones(3))(ones))
            for k in range(3)
        ]

    def build(k):
        return lambda x: jnp.sum(jnp.sin(x) * k)

    ones = jnp.ones(3)
    expected = answers()
    files = sorted(tmp_path.glob("*/*"))
    assert len(files) == 3
    keys = [file.name.removesuffix("-code") for file in files]
    files[0].write_bytes(b"")
    files[1].write_bytes(files[1].read_bytes()[:-7])
    content = files[2].read_bytes()
    files[2].write_bytes(content[:40] + bytes([content[40] ^ 1]) + content[41:])
    with pytest.warns(UserWarning, match=r"was damaged: it was removed, and is made anew") as told:
        assert answers() == expected
    assert len(told) == 1
    assert all(CodeOnDisk(files[0].parent, 2**20).get(key) for key in keys)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert answers() == expected


def test_files_appear_whole(tmp_path):
    """Whoever reads while others write the same finds all of it, or nothing."""
    kept = CodeOnDisk(tmp_path, 2**30)
    value, seen = os.urandom(2**20), set()
    over = threading.Event()

    def write():
        while not over.is_set():
            kept.put("key", value)

    writers = [threading.Thread(target=write) for _ in range(2)]
    for writer in writers:
        writer.start()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(100):
            seen.add(kept.get("key"))
    over.set()
    for writer in writers:
        writer.join()
    assert seen <= {None, value}
    assert [file.name for file in tmp_path.iterdir()] == ["key-code"]


def test_a_write_that_fails_leaves_nothing_and_says_so_once(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(code_on_disk, "_WARNED", set())
    monkeypatch.setattr(os, "replace", full)
    kept = CodeOnDisk(tmp_path, 1000)
    with pytest.warns(UserWarning, match="cannot be kept in .*No space left") as told:
        _ = [kept.put(key, b"code") for key in "abcdefgh"]
    assert len(told) == 1
    assert not list(tmp_path.iterdir())


def test_what_was_not_used_for_the_longest_time_goes(tmp_path):
    kept = CodeOnDisk(tmp_path, 1000)
    for i, key in enumerate("abc"):
        kept.put(key, b"x" * 250)
        os.utime(tmp_path / f"{key}-code", (i, i))
    assert kept.get("a") == b"x" * 250  # which makes it the youngest
    kept.put("d", b"x" * 300)
    assert sorted(file.name[0] for file in tmp_path.iterdir()) == ["a", "c", "d"]
    kept.put("e", b"x" * 2000)  # larger than all there may be
    assert kept.get("e") is None
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= 1000


def test_how_much_is_kept_is_configured():
    import dask

    from . import from_pandas, plan
    from .models import frame
    from .test_fit import means

    with dask.config.set({"consensus.cache-size": 7}):
        assert plan(from_pandas(frame(((60,),))), means).model.cache_size == 7
    with (
        dask.config.set({"consensus.cache-size": 0}),
        pytest.raises(ValueError, match=r"consensus\.cache-size must be at least 1"),
    ):
        plan(from_pandas(frame(((60,),))), means)
