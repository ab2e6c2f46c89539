"""Replies that more than one handler gives, and refusals, which are replies that are raised."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.responses import Response

from airflow_mlbatch.protocol.documents import write_error

__all__ = [
    "EXECUTION_NOT_FOUND",
    "FILE_NOT_FOUND",
    "SERVICE_NOT_FOUND",
    "Refusal",
    "bad_request",
    "json_reply",
]

JSON = "application/json"


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
SERVICE_NOT_FOUND = "Web service not found"
EXECUTION_NOT_FOUND = "Execution not found"
FILE_NOT_FOUND = "File not found"


def bad_request(message: str) -> Refusal:
    """The request cannot be understood; the message names the part."""
    return Refusal(400, message)


def json_reply(content: Any, status: int = 200) -> Response:
    """A JSON document, or ``bytes`` that hold one."""
    body = content if isinstance(content, bytes) else msgspec.json.encode(content)
    return Response(body, status, media_type=JSON)
