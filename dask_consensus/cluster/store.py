"""What is kept on disk, or at a URL: where it lies, how it gets there whole, and whether it is.

A file of the store is there whole or not at all. Its name ends in the SHA-256 of its content, so
that no list of checksums has to be written after it, and a worker that dies, a disk that is full or
a bit that flips leaves nothing that could be taken for what it is not.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import uuid
from collections.abc import Iterable
from typing import Any, NamedTuple

import fsspec
from distributed import warn

from .records import UnreadableError, decoded

_STEPS = "steps"
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,99}(/[0-9]{1,9})?")
_FILE = re.compile(rf"({_NAME.pattern})\.([0-9a-f]{{64}})\.parquet")
_TEMPORARY = ".tmp-"


class Missing:
    """What is not in a store."""


class Store(NamedTuple):
    """A folder, or a URL that fsspec knows; small, and the same on every worker.

    Attributes
    ----------
    url : str
    """

    url: str

    def text(self, name: str) -> str | None:
        """Read a file beside the records; None if there is none."""
        system, root = self._place()
        try:
            return str(system.cat_file(f"{root}/{name}").decode("utf-8", errors="replace"))
        except (FileNotFoundError, NotADirectoryError):
            return None

    def write_text(self, name: str, text: str) -> None:
        """Write a file beside the records, in place of one that is there."""
        self._write(name, text.encode())

    def put(self, name: str, content: bytes) -> str:
        """Keep a record, as :func:`.records.encoded` makes it, under its name; return the file.

        Raises
        ------
        OSError
            If it cannot be written.
        """
        _checked(name)
        sha = hashlib.sha256(content).hexdigest()
        file = f"{name}.{sha}.parquet"
        self._write(f"{_STEPS}/{file}", content)
        return file

    def get(self, name: str, files: Iterable[str]) -> Any:
        """Read the value of a name, `Missing` if none of its files holds it.

        A file that is not what was written is named in a warning, and removed.
        """
        for file in files:
            try:
                return self._read(_checked(name), file)
            except FileNotFoundError:
                continue
            except (UnreadableError, OSError) as error:
                warn(
                    f"{file} of store {self.url!r} is damaged ({error}): what it held is computed "
                    "again",
                    UserWarning,
                )
                if isinstance(error, UnreadableError):
                    self._remove(f"{_STEPS}/{file}")
        return Missing

    def files(self) -> dict[str, list[str]]:
        """Return the files of each name, as :meth:`get` takes them; nothing is read."""
        system, root = self._place()
        system.invalidate_cache()
        steps = f"{root}/{_STEPS}"
        found: dict[str, list[str]] = {}
        try:
            paths = sorted(system.find(steps))
        except FileNotFoundError:
            return found
        for path in paths:
            file = path[len(steps) + 1 :]
            match = _FILE.fullmatch(file)
            if match:
                found.setdefault(match[1], []).append(file)
            elif os.path.basename(file).startswith(_TEMPORARY):
                self._remove(f"{_STEPS}/{file}")
        return found

    def forget(self) -> None:
        """Remove all records."""
        for files in self.files().values():
            for file in files:
                self._remove(f"{_STEPS}/{file}")

    def remove_shares(self) -> None:
        """Remove the records that are shares of others."""
        folders = set()
        for name, files in self.files().items():
            for file in files if "/" in name else ():
                self._remove(f"{_STEPS}/{file}")
                folders.add(name.partition("/")[0])
        system, root = self._place()
        for folder in folders:
            with contextlib.suppress(OSError):  # an object store has none
                system.rmdir(f"{root}/{_STEPS}/{folder}")

    def is_empty(self) -> bool:
        """Tell whether nothing is there, or nothing but what an interrupted write has left."""
        system, root = self._place()
        system.invalidate_cache()
        if not system.exists(root):
            return True
        if not system.isdir(root):
            return False
        names = [os.path.basename(path.rstrip("/")) for path in system.ls(root, detail=False)]
        return all(name.startswith(_TEMPORARY) for name in names)

    def check_writable(self) -> None:
        """Refuse a place that cannot be written to from here.

        Raises
        ------
        OSError
        """
        try:
            name = f"{_TEMPORARY}{uuid.uuid4().hex}"
            system, root = self._place()
            system.makedirs(root, exist_ok=True)
            system.pipe_file(f"{root}/{name}", b"")
            system.rm_file(f"{root}/{name}")
        except OSError as error:
            raise OSError(
                f"store {self.url!r} cannot be written to ({error}): give a folder or URL that "
                "this process and the workers can write to"
            ) from error

    def _place(self) -> tuple[Any, str]:
        system, root = fsspec.core.url_to_fs(self.url)
        return system, root.rstrip("/")

    def _read(self, name: str, file: str) -> Any:
        match = _FILE.fullmatch(file)
        if match is None or match[1] != name:
            raise UnreadableError("its name is not that of the record")
        system, root = self._place()
        content = system.cat_file(f"{root}/{_STEPS}/{file}")
        if hashlib.sha256(content).hexdigest() != match[3]:
            raise UnreadableError("its checksum is not that in its name")
        return decoded(name, content)

    def _write(self, file: str, content: bytes) -> None:
        system, root = self._place()
        path = f"{root}/{file}"
        folder = path.rpartition("/")[0]
        system.makedirs(folder, exist_ok=True)
        if not isinstance(system, fsspec.implementations.local.LocalFileSystem):
            # An object is there whole or not at all.
            system.pipe_file(path, content)
            return
        temporary = os.path.join(folder, f"{_TEMPORARY}{uuid.uuid4().hex}")
        try:
            with open(temporary, "wb") as opened:
                opened.write(content)
                opened.flush()
                os.fsync(opened.fileno())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.remove(temporary)
            raise

    def _remove(self, file: str) -> None:
        system, root = self._place()
        with contextlib.suppress(OSError):
            system.rm_file(f"{root}/{file}")


def _checked(name: str) -> str:
    """Refuse a name that could be read as a path; none is made of what data contain."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} names no record")
    return name
