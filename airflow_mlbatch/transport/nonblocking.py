"""Drives a flow with aiohttp."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import aiohttp
from yarl import URL

from airflow_mlbatch.errors import MLBatchError
from airflow_mlbatch.protocol.messages import (
    Conceal,
    Exclusive,
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
from airflow_mlbatch.transport.endpoint import CHUNK, Endpoint
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
    """

    def __init__(
        self,
        endpoint: Endpoint,
        conceal: Callable[[str], Awaitable[None]] = _nothing,
        max_connections: int = 100,
    ) -> None:
        self._endpoint = endpoint
        self._conceal = conceal
        self._max_connections = max_connections
        self._lock = asyncio.Lock()
        self._opening = asyncio.Lock()
        self._session: aiohttp.ClientSession | None = None

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
        if self._session is not None:
            await self._session.close()

    async def _do(self, step: Message, on_report: Callable[[Report], None] | None) -> Any:
        if isinstance(step, Send):
            return await self._send(step)
        if isinstance(step, Now):
            return time.time()
        if isinstance(step, Wait):
            return await asyncio.sleep(step.seconds)
        if isinstance(step, Exclusive):
            async with self._lock:
                return await self.run(step.flow, on_report)
        if isinstance(step, Conceal):
            return await self._conceal(step.secret)
        return on_report(step) if on_report else None

    async def _send(self, send: Send) -> Reply | Lost:
        session = await self._opened()
        timeout = aiohttp.ClientTimeout(
            total=send.seconds,
            sock_connect=self._endpoint.connect_timeout,
            sock_read=self._endpoint.read_timeout,
        )
        try:
            async with session.request(
                send.route.method,
                URL(self._endpoint.absolute(send.target), encoded=True),
                headers={"Accept-Encoding": ACCEPT_ENCODING, **send.headers},
                data=send.body,
                allow_redirects=False,
                timeout=timeout,
            ) as response:
                headers = {name.lower(): value for name, value in response.headers.items()}
                receiver = Receiver(send, response.status, headers)
                async for raw in response.content.iter_chunked(CHUNK):
                    if receiver.feed(raw):
                        response.close()
                        return receiver.reply()
                return receiver.finish()
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            return as_lost(error, was_sent=False)
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
            return as_lost(error, was_sent=True)

    async def _opened(self) -> aiohttp.ClientSession:
        async with self._opening:
            if self._session is None:
                # Reading certificates takes tens of milliseconds of disk and CPU: not on the loop.
                context = await asyncio.to_thread(self._endpoint.ssl_context)
                self._session = aiohttp.ClientSession(
                    connector=aiohttp.TCPConnector(limit=self._max_connections, ssl=context),
                    auto_decompress=False,
                    trust_env=True,
                    cookie_jar=aiohttp.DummyCookieJar(),
                    read_bufsize=CHUNK,
                )
        return self._session
