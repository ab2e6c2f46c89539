"""Paths that people write, opened where they point.

``ObjectStoragePath`` looks its connection up when it is built: so an operator keeps the text and builds
it in ``execute``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from airflow_mlbatch.errors import DatasetError, InputError

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import ObjectStoragePath

__all__ = ["location"]


def location(path: Any, conn_id: str | None = None) -> ObjectStoragePath:
    """A place in storage.

    :param path: a local path or a URL of any file system that Airflow's ``ObjectStoragePath`` opens,
        or such a path object
    :param conn_id: the connection of that file system
    :raises InputError: the path names another connection
    :raises DatasetError: its file system cannot be opened: mostly, its provider is not installed
    """
    from airflow.providers.common.compat.sdk import ObjectStoragePath

    named = urlsplit(str(path)).netloc.rpartition("@")[0]
    if conn_id and named not in ("", conn_id):
        # Azure's own tools write container@account there.
        raise InputError(
            f"{path}: found {named!r} before the @, which Airflow takes for a connection's id, beside "
            f"the connection {conn_id!r}; expected one of them (abfs://container/path)"
        )
    try:
        place = ObjectStoragePath(path, conn_id=conn_id)
        _ = place.fs
    except (ValueError, ImportError) as error:
        raise DatasetError(
            f"{path}: its file system cannot be opened ({error}); s3:// needs airflow-mlbatch[s3], "
            "abfs:// needs airflow-mlbatch[azure], any other its own provider"
        ) from None
    return place
