"""Where a table lives: any path object, seen as a filesystem of fsspec and a key in it.

Law: the rest of this room asks nothing of a path but what is here, so that a ``pathlib.Path``, a
``UPath`` and every version of Airflow's ``ObjectStoragePath`` behave alike. Airflow itself is never
imported: who has a connection makes the path object with it.
"""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import PurePath
from typing import Any, BinaryIO, TypeAlias, cast
from urllib.parse import quote

from airflow_mlbatch.errors import DatasetError

__all__ = [
    "StoragePath",
    "asset_uri",
    "exists",
    "file_names",
    "file_size",
    "is_local",
    "open_input",
    "read_bytes",
    "remove",
    "resolve",
]

# A pathlib path or anything with ``fs`` (fsspec), ``path`` (the key in it), ``name``, ``parent``, ``/``.
StoragePath: TypeAlias = Any


def resolve(path: StoragePath) -> tuple[Any, str]:
    """The fsspec filesystem of a path and the path's key in it, without protocol.

    :raises DatasetError: this is no path, or it is a bare text (which would lose its connection)
    """
    if isinstance(path, PurePath) and not hasattr(path, "fs"):
        from fsspec.implementations.local import LocalFileSystem

        return LocalFileSystem(), os.path.abspath(path)
    if not hasattr(path, "fs") or not hasattr(path, "path"):
        raise DatasetError(
            f"path: found {path!r:.120} ({type(path).__name__}), "
            "expected an ObjectStoragePath, a UPath or a pathlib.Path"
        )
    return path.fs, str(path.path)


def asset_uri(path: str) -> str | None:
    """The address of a table or folder as an asset has it; ``None`` for a relative path."""
    # Airflow takes nothing but ASCII, at least for some databases.
    path = re.sub(r"[^\x00-\x7f]+", lambda found: quote(found[0]), path.rstrip("/"))
    if path.startswith("/"):
        return f"file://{path}"
    # s3://my_connection@bucket/…: who reads the asset may have another connection.
    return re.sub(r"^([A-Za-z0-9+.-]+://)[^/@]*@", r"\1", path) if "://" in path else None


def parent_key(key: str) -> str:
    """The key of the folder that holds a key, empty at the top."""
    return key.rstrip("/").rpartition("/")[0]


def is_local(filesystem: Any) -> bool:
    """Whether a filesystem is this machine's own, with a rename that replaces in one step."""
    names = filesystem.protocol
    return "file" in ((names,) if isinstance(names, str) else tuple(names))


def open_input(path: StoragePath) -> BinaryIO:
    """Open a file for reading bytes; seekable.

    :raises DatasetError: there is no such file
    """
    filesystem, key = resolve(path)
    try:
        return cast("BinaryIO", filesystem.open(key, "rb"))
    except FileNotFoundError:
        raise DatasetError(f"{path}: found no such file") from None
    except IsADirectoryError:
        raise DatasetError(f"{path}: found a folder, expected a file") from None


def read_bytes(path: StoragePath) -> bytes:
    """A small file whole.

    :raises DatasetError: there is no such file
    """
    with open_input(path) as file:
        return file.read()


def exists(path: StoragePath) -> bool:
    """Whether there is a file now: a listing kept from earlier is not asked."""
    filesystem, key = resolve(path)
    _forget_listing(filesystem, key)
    return bool(filesystem.exists(key))


def file_size(path: StoragePath) -> int | None:
    """Bytes in a file, ``None`` when there is no such file."""
    filesystem, key = resolve(path)
    _forget_listing(filesystem, key)
    try:
        return int(filesystem.size(key))
    except FileNotFoundError:
        return None


def remove(path: StoragePath) -> None:
    """Delete a file if it is there."""
    filesystem, key = resolve(path)
    _forget_listing(filesystem, key)
    with contextlib.suppress(FileNotFoundError):
        try:
            filesystem.rm_file(key)
        except NotImplementedError:
            filesystem.rm(key)


def file_names(folder: StoragePath) -> list[str]:
    """Names of the files directly in a folder, sorted; none when there is no such folder."""
    filesystem, key = resolve(folder)
    return list_names(filesystem, key)


def list_names(filesystem: Any, key: str) -> list[str]:
    """As :func:`file_names`, for a folder given by its key."""
    filesystem.invalidate_cache(key)
    try:
        found = filesystem.ls(key, detail=True)
    except (FileNotFoundError, NotADirectoryError):
        return []
    names = [str(item["name"]).rstrip("/") for item in found if item.get("type") == "file"]
    return sorted(name.rsplit("/", 1)[-1] for name in names)


def make_parents(filesystem: Any, key: str) -> None:
    """Make the folder of a key where folders are real; an object store has none to make."""
    parent = parent_key(key)
    if parent and not is_object_store(filesystem):
        filesystem.makedirs(parent, exist_ok=True)


_OBJECT_STORES = frozenset(
    {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "wasb", "oci", "ocilake", "oss", "cos"}
)


def is_object_store(filesystem: Any) -> bool:
    """Whether an upload appears whole at its end and a rename would be a copy."""
    names = filesystem.protocol
    return not _OBJECT_STORES.isdisjoint((names,) if isinstance(names, str) else tuple(names))


def _forget_listing(filesystem: Any, key: str) -> None:
    filesystem.invalidate_cache(parent_key(key))
