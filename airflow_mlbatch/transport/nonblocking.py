"""Drives a flow with aiohttp."""

from __future__ import annotations

import asyncio
import io
import socket
import ssl
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import aiohttp
from yarl import URL

from airflow_mlbatch.errors import MLBatchError
from airflow_mlbatch.protocol.messages import (
    Conceal,
    Exclusive,
    FetchToken,
    Flow,
    Lost,
    Message,
    Now,
    Reply,
    Report,
    Send,
    Wait,
)
from airflow_mlbatch.protocol.receive import ACCEPT_ENCODING, Receiver
from airflow_mlbatch.transport.endpoint import CHUNK, Endpoint, proxy_for
from airflow_mlbatch.transport.entra import fetch_token_async
from airflow_mlbatch.transport.lost import as_lost

__all__ = ["NonblockingDriver"]

T = TypeVar("T")


async def _nothing(secret: str) -> None:
    """The default for ``conceal``."""


class NonblockingDriver:
    """Runs flows on an event loop, any number at once. Use it on the loop that opened it.

    :param endpoint: the server
    :param conceal: called with each token that arrives, for the log masker
    :param max_connections: most connections to the server at once
    :param clock: returns epoch seconds
    :param sleep: waits for so many seconds
    """

    def __init__(
        self,
        endpoint: Endpoint,
        conceal: Callable[[str], Awaitable[None]] = _nothing,
        max_connections: int = 100,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._endpoint = endpoint
        self._conceal = conceal
        self._clock, self._sleep = clock, sleep
        self._max_connections = max_connections
        self._lock = asyncio.Lock()
        self._opening = asyncio.Lock()
        self._sessions: dict[bool, aiohttp.ClientSession] = {}
        self._tls: ssl.SSLContext | None = None

    async def run(self, flow: Flow[T], on_report: Callable[[Report], None] | None = None) -> T:
        """Run a flow to its end and return its value, or raise what it raises."""
        try:
            step = next(flow)
            while True:
                try:
                    answer = await self._do(step, on_report)
                except MLBatchError as error:
                    step = flow.throw(error)
                else:
                    step = flow.send(answer)
        except StopIteration as end:
            value: T = end.value
            return value
        finally:
            flow.close()

    async def close(self) -> None:
        """Close the connections."""
        for session in self._sessions.values():
            await session.close()

    async def _do(self, step: Message, on_report: Callable[[Report], None] | None) -> Any:
        if isinstance(step, Send):
            return await self._send(step)
        if isinstance(step, Now):
            return self._clock()
        if isinstance(step, Wait):
            return await self._sleep(step.seconds)
        if isinstance(step, Exclusive):
            async with self._lock:
                return await self.run(step.flow, on_report)
        if isinstance(step, Conceal):
            return await self._conceal(step.secret)
        if isinstance(step, FetchToken):
            return await fetch_token_async(step.source, self._endpoint.verify)
        return on_report(step) if on_report else None

    async def _send(self, send: Send) -> Reply | Lost:
        session = await self._opened(send.is_alone)
        try:
            response = await self._open(session, send)
        except _LINE_ERRORS as error:
            return as_lost(error, was_sent=not isinstance(error, _NEVER_CONNECTED))
        async with response:
            receiver = Receiver(send, response.status, _headers(response))
            while True:
                # Only the line is watched here: what a sink raises is not the network's doing.
                try:
                    raw = await response.content.read(CHUNK)
                except _LINE_ERRORS as error:
                    return as_lost(error, was_sent=True)
                if not raw:
                    return receiver.finish()
                for is_enough in receiver.steps(raw, _STEP):
                    if is_enough:
                        response.close()
                        return receiver.reply()
                    # Packed, a piece can hold a thousand times as much: others have their turn.
                    await asyncio.sleep(0)

    async def _open(self, session: aiohttp.ClientSession, send: Send) -> aiohttp.ClientResponse:
        url = self._endpoint.absolute(send.target)
        return await session.request(
            send.route.method,
            URL(url, encoded=True),
            headers={"Accept-Encoding": ACCEPT_ENCODING, **send.headers},
            # As a stream: a large body goes out in pieces, and others have their turn between them.
            data=None if send.body is None else io.BytesIO(send.body),
            allow_redirects=False,
            proxy=proxy_for(url),
            ssl=await self._trusted() if url.startswith("https:") else True,
            timeout=aiohttp.ClientTimeout(
                total=send.seconds,
                sock_connect=self._endpoint.connect_timeout,
                sock_read=self._endpoint.read_timeout,
            ),
        )

    async def _opened(self, is_alone: bool) -> aiohttp.ClientSession:
        async with self._opening:
            if is_alone not in self._sessions:
                # The first look at the proxies imports requests, a tenth of a second: not on the loop.
                await asyncio.to_thread(proxy_for, self._endpoint.url)
                self._sessions[is_alone] = self._new_session(keeps_lines=not is_alone)
            return self._sessions[is_alone]

    def _new_session(self, keeps_lines: bool) -> aiohttp.ClientSession:
        session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=self._max_connections,
                force_close=not keeps_lines,
                socket_factory=_open_socket,
            ),
            auto_decompress=False,
            # Proxies are read by our own rule; what else would be trusted is ~/.netrc.
            trust_env=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            read_bufsize=CHUNK,
            max_line_size=_HEAD,
            max_field_size=_HEAD,
        )
        # It would send some requests twice by itself: repeats are the flow's decision.
        session._retry_connection = False  # noqa: SLF001
        return session

    async def _trusted(self) -> ssl.SSLContext:
        async with self._opening:
            if self._tls is None:
                # Reading certificates takes tens of milliseconds of disk and CPU: not on the loop.
                self._tls = await asyncio.to_thread(self._endpoint.ssl_context)
        return self._tls


# What a broken line looks like from here.
_LINE_ERRORS = (aiohttp.ClientError, asyncio.TimeoutError, OSError)
# Those of them that come before the request can have left.
_NEVER_CONNECTED = (
    aiohttp.ClientConnectorError,
    aiohttp.ConnectionTimeoutError,
    aiohttp.ClientHttpProxyError,
)


# Bytes that are looked at in one go. A sink may take a microsecond for a byte, if it is all brackets.
_STEP = 16 * 1024
# As much of a head as http.client takes. aiohttp's own limit is passed by cookies and policies that
# proxies add.
_HEAD = 64 * 1024
# Linux makes room for twice as much.
_RECEIVE_BUFFER = CHUNK // 4


def _open_socket(address: aiohttp.AddrInfoType) -> socket.socket:
    """A socket that takes in no more than a poll may read.

    asyncio reads whatever has arrived, up to 256 KiB at once, and a finished batch of a million
    records begins to arrive at a poll that wants only its first hundred bytes.
    """
    line = socket.socket(*address[:3])
    line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
    return line


def _headers(response: aiohttp.ClientResponse) -> dict[str, str]:
    return {name.lower(): ", ".join(response.headers.getall(name)) for name in response.headers}
