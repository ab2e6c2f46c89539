"""A server that answers after 20 ms, as one at the other end of a line does.

It speaks what downloading files needs and nothing else: login, status of a batch, the names of a
record's files, a file. ``python -m benchmarks.slow_server RECORDS FILE_BYTES`` prints its address.
"""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import msgspec
import uvicorn
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from airflow_mlbatch.protocol import routes
from airflow_mlbatch.protocol.documents import write_tokens
from airflow_mlbatch.protocol.results import BatchStatus, batch_document
from airflow_mlbatch.protocol.states import BatchState

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

__all__ = ["DELAY_SECONDS", "FILE_NAME"]

DELAY_SECONDS = 0.02
FILE_NAME = "answer.bin"
_PIECE = bytes(range(256)) * 1024


class SlowServer:
    """The ASGI application.

    :param records: how many records its one batch has
    :param file_bytes: the size of each record's one file
    """

    def __init__(self, records: int, file_bytes: int) -> None:
        self._records, self._file_bytes = records, file_bytes
        self._small = _content(file_bytes) if file_bytes <= len(_PIECE) else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        found = routes.match(request.method, request.url.path)
        answers = {
            routes.LOGIN.name: self._log_in,
            routes.BATCH.name: self._status,
            routes.FILES.name: self._names,
            routes.FILE.name: self._file,
        }
        answer = answers[found[0].name] if found else self._missing
        # Counted from the arrival of the request, whatever else the server is doing.
        await asyncio.sleep(DELAY_SECONDS)
        await (await answer())(scope, receive, send)

    async def _log_in(self) -> Response:
        return _json(write_tokens("access", "refresh", time.time(), 3600))

    async def _status(self) -> Response:
        status = BatchStatus(BatchState.COMPLETE, self._records, self._records)
        return _json(b"".join(batch_document(status, ())))

    async def _names(self) -> Response:
        return _json([FILE_NAME])

    async def _file(self) -> Response:
        if self._small is not None:
            return Response(self._small, media_type="application/octet-stream")
        return StreamingResponse(self._pieces(), media_type="application/octet-stream")

    async def _pieces(self) -> AsyncIterator[bytes]:
        left = self._file_bytes
        while left:
            piece = _PIECE[:left]
            left -= len(piece)
            yield piece

    async def _missing(self) -> Response:
        return Response(status_code=404)


def _json(document: object) -> Response:
    body = document if isinstance(document, bytes) else msgspec.json.encode(document)
    return Response(body, media_type="application/json")


def _content(size: int) -> bytes:
    return (_PIECE * (size // len(_PIECE) + 1))[:size]


def main() -> None:
    """Serve until the process is ended."""
    records, file_bytes = map(int, sys.argv[1:])
    with socket.socket() as line:
        line.bind(("127.0.0.1", 0))
        line.listen(512)
        print(f"http://127.0.0.1:{line.getsockname()[1]}", flush=True)
        config = uvicorn.Config(
            SlowServer(records, file_bytes), lifespan="off", log_level="warning", access_log=False
        )
        uvicorn.Server(config).run(sockets=[line])


if __name__ == "__main__":
    main()
