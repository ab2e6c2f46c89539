"""Paths that Dag authors write, opened where they point.

``ObjectStoragePath`` looks its connection up when it is built: so it is built in ``execute`` and the
operator keeps the text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import ObjectStoragePath

__all__ = ["location"]


def location(path: str, conn_id: str | None = None) -> ObjectStoragePath:
    """A place in storage.

    :param path: a local path or a URL of any file system that Airflow's ``ObjectStoragePath`` opens
    :param conn_id: the connection of that file system
    """
    from airflow.providers.common.compat.sdk import ObjectStoragePath

    return ObjectStoragePath(path, conn_id=conn_id)
