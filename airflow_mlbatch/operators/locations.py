"""Paths that Dag authors write, opened where they point, and compared."""

from __future__ import annotations

import os
import posixpath
from typing import Any

from airflow_mlbatch.hooks.locations import location

__all__ = ["comparable", "location", "path_texts"]


def comparable(path: Any) -> str:
    """A path as a text that is the same for each way to write it (``file://``, ``.``, ``..``)."""
    scheme, mark, key = str(path).removeprefix("file://").rpartition("://")
    return f"{scheme}{mark}{posixpath.normpath(key)}" if mark else os.path.abspath(key)


def path_texts(**paths: Any) -> dict[str, str | None]:
    """Paths as a manifest holds them: text, also where the author gave a path object."""
    return {name: None if path is None else str(path) for name, path in paths.items()}
