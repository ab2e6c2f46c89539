"""One line to a client: HTTP/1.1 as uvicorn reads it, with an end to patience.

Law: whoever connects sends the head of a request, of a limited size, within a time, or is hung up
on; what cannot be read at all is refused in the contract's shape like everything else.

The parser is always h11, also where a faster one is installed: that one takes heads of any size, and
drops the body of a request that offers another protocol, as the HTTP clients of Java and .NET do.
"""

from __future__ import annotations

import asyncio

import h11
import msgspec
from uvicorn.protocols.http.h11_impl import H11Protocol

from airflow_mlbatch.protocol.documents import write_error

__all__ = ["Line"]

_HEAD_SECONDS = 10


class Line(H11Protocol):
    """A line to one client, from its connection to its loss."""

    _patience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first request."""
        super().connection_made(transport)
        self._watch_head()

    def data_received(self, data: bytes) -> None:
        """Read on."""
        super().data_received(data)
        self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing any more."""
        self._stop_waiting()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Refuse bytes that are not HTTP."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = msgspec.json.encode(write_error(msg, 400))
            headers = {
                "content-type": "application/json",
                "content-length": str(len(body)),
                "connection": "close",
            }
            head = h11.Response(
                status_code=400, headers=list(headers.items()), reason="Bad Request"
            )
            for event in (head, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _unsupported_upgrade_warning(self) -> None:
        """Say nothing: the request is answered as if it had offered no other protocol."""

    def _watch_head(self) -> None:
        # Between two requests, until the next one begins, uvicorn itself waits (keep-alive).
        if self.conn.their_state is not h11.IDLE:
            self._stop_waiting()
        elif self._patience is None:
            self._patience = self.loop.call_later(_HEAD_SECONDS, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
