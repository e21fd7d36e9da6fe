"""Compiled code on disk, for the next process: whole, ours alone, and no more than so much.

JAX can keep compiled code in a folder, but runs whatever it finds there, leaves half of a file
where a process ends while it writes, never makes a damaged one anew, warns of it in each process,
and bounds the folder only with another package's help. It is therefore given a cache of this kind.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import stat
import tempfile
import threading
import warnings
from functools import lru_cache
from pathlib import Path

import jax

_WORTH_KEEPING = 0.2  # seconds of compilation from which code is kept
_SUFFIX = "-code"
_DIGEST = 32  # bytes of the checksum that a file begins with
_ASKED: set[str] = set()  # folders that need not be looked at again
_WARNED: set[str] = set()
_LOCK = threading.Lock()


def keep_on_disk(folder: str, size: int) -> None:
    """Have JAX keep compiled code under `folder`, up to `size` MiB, unless it keeps it already.

    A folder that another user owns or can write in is not used, with a warning: whoever writes
    there could run code here. One that cannot be made is not used, in silence.
    """
    given = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined,unused-ignore]
    with _LOCK:
        if given is not None or not folder or folder in _ASKED:
            return
        _ASKED.add(folder)
        base = Path(folder).expanduser()
        path = base / _processor()
        try:
            for place in (base, path):
                place.mkdir(mode=0o700, parents=True, exist_ok=True)
                problem = _not_ours(place)
                if problem:
                    _warn_once(
                        f"{place} {problem}, and what is written there would run here: compiled "
                        f"code is not kept. Remove it, have consensus.cache name a folder of your "
                        f"own, or set it to '' to keep none"
                    )
                    return
            path.chmod(0o700)
        except OSError:
            return
        jax.config.update("jax_compilation_cache_dir", str(path))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", _WORTH_KEEPING)
        # Where JAX no longer has this it keeps code in the folder in its own way.
        with contextlib.suppress(ImportError, AttributeError):
            from jax._src import compilation_cache

            if compilation_cache._cache is None:
                compilation_cache._cache = CodeOnDisk(path, size * 2**20)  # type: ignore[assignment]


class CodeOnDisk:
    """A folder of compiled code, with the interface of JAX's caches.

    Files appear whole or not at all, one that is damaged is removed when it is met, and those that
    were not used for the longest time go where there are too many bytes.
    """

    def __init__(self, path: Path, most: int) -> None:
        self._path, self._most = path, most

    def get(self, key: str) -> bytes | None:
        """Return what is kept under a key, if anything."""
        file = self._path / f"{key}{_SUFFIX}"
        try:
            content = file.read_bytes()
        except OSError:
            return None
        digest, code = content[:_DIGEST], content[_DIGEST:]
        if hashlib.sha256(code).digest() != digest:
            with contextlib.suppress(OSError):
                file.unlink()
            _warn_once(
                f"compiled code in {self._path} was damaged: it was removed, and is made anew"
            )
            return None
        with contextlib.suppress(OSError):
            os.utime(file)
        return code

    def put(self, key: str, value: bytes) -> None:
        """Keep something under a key."""
        if len(value) > self._most:
            return
        try:
            self._make_room(len(value))
            handle, name = tempfile.mkstemp(dir=self._path)
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(hashlib.sha256(value).digest() + value)
                os.replace(name, self._path / f"{key}{_SUFFIX}")
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(name)
                raise
        except OSError as error:
            _warn_once(f"compiled code cannot be kept in {self._path}: {error}")

    def _make_room(self, size: int) -> None:
        """Remove the files that were not used for the longest time, where there are too many."""
        files = []
        with os.scandir(self._path) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    if entry.is_file(follow_symlinks=False):
                        status = entry.stat(follow_symlinks=False)
                        files.append((status.st_mtime_ns, status.st_size, entry.path))
        total = sum(bytes_ for _, bytes_, _ in files) + size
        for _, bytes_, path in sorted(files):
            if total <= self._most:
                return
            with contextlib.suppress(OSError):
                os.unlink(path)
            total -= bytes_


def _not_ours(folder: Path) -> str:
    """Say why a folder may hold what another user wrote; empty where it is this user's alone."""
    if not hasattr(os, "getuid"):
        return ""
    status = folder.stat()
    if not stat.S_ISDIR(status.st_mode):
        return "is no folder"
    if status.st_uid != os.getuid():
        return f"belongs to another user ({status.st_uid})"
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"can be written in by others (mode {stat.S_IMODE(status.st_mode):o})"
    return ""


def _warn_once(message: str) -> None:
    if message not in _WARNED:
        _WARNED.add(message)
        warnings.warn(message, UserWarning, stacklevel=2)


@lru_cache(maxsize=1)
def _processor() -> str:
    """Name this kind of processor: code compiled for another may not run here."""
    try:
        with open("/proc/cpuinfo") as lines:
            kind = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:
        kind = platform.processor()
    return f"{platform.machine()}-{hashlib.sha256(kind.encode()).hexdigest()[:12]}"
