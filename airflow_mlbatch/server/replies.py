"""Replies that more than one handler gives, and refusals, which are replies that are raised."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from starlette.responses import Response

from airflow_mlbatch.protocol.documents import write_error
from airflow_mlbatch.protocol.services import Service

__all__ = [
    "EXECUTION_NOT_FOUND",
    "FILE_NOT_FOUND",
    "Refusal",
    "bad_request",
    "json_reply",
    "service_not_found",
]

JSON = "application/json"
_MOST_LISTED = 10


class Refusal(Exception):
    """A request that is answered with an error of the contract's shape."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.headers = status, message, dict(headers or {})

    def reply(self) -> Response:
        """The reply to send."""
        body = msgspec.json.encode(write_error(self.message, self.status))
        return Response(body, self.status, self.headers, JSON)


# A client tells these apart by the words alone.
_SERVICE_NOT_FOUND = "Web service not found"
EXECUTION_NOT_FOUND = "Execution not found"
FILE_NOT_FOUND = "File not found"


def bad_request(message: str) -> Refusal:
    """The request cannot be understood; the message names the part."""
    return Refusal(400, message)


def service_not_found(
    services: Sequence[Service], name: str, version: str | None = None
) -> Refusal:
    """There is no such service; the message says which ones there are.

    :param services: all that there are
    """
    versions = [repr(service.version) for service in services if service.name == name]
    if versions and version is not None:
        found, there = (
            f"{name!r:.80} has no version {version!r:.80}",
            _listed("its versions", versions),
        )
    else:
        names = sorted({repr(service.name) for service in services})
        found, there = f"there is no {name!r:.80}", _listed("there are", names)
    return Refusal(404, f"{_SERVICE_NOT_FOUND}: {found}, {there}")


def _listed(what: str, words: Sequence[str]) -> str:
    more = len(words) - _MOST_LISTED
    rest = f" and {more:,} more" if more > 0 else ""
    return f"{what}: {', '.join(words[:_MOST_LISTED]) or 'none'}{rest}"


def json_reply(content: Any, status: int = 200) -> Response:
    """A JSON document, or ``bytes`` that hold one."""
    body = content if isinstance(content, bytes) else msgspec.json.encode(content)
    return Response(body, status, media_type=JSON)
