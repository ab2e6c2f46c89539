"""The embedded scoring server: the batch API served from plain Python functions.

Law of this room: a request never runs user code in the server's own process, no path of a request
reaches the file system, and what was answered is on disk before it is answered.

``from airflow_mlbatch.server import service`` is all that a services module needs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow_mlbatch.server.registry import service

__all__ = ["service"]


def __getattr__(name: str) -> Any:
    if name == "service":
        from airflow_mlbatch.server.registry import service

        return service
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
