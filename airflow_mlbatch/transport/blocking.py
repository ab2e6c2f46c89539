"""Drives a flow with requests."""

from __future__ import annotations

import math
import ssl
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any, TypeVar

import requests
import urllib3

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
from airflow_mlbatch.transport.entra import fetch_token
from airflow_mlbatch.transport.line import LineAdapter, set_limits
from airflow_mlbatch.transport.lost import as_lost, causes

__all__ = ["BlockingDriver"]

T = TypeVar("T")


class BlockingDriver:
    """Runs flows in the calling thread; several threads may share one.

    :param endpoint: the server
    :param conceal: called with each token that arrives, for the log masker
    :param max_connections: how many lines are kept open for the next request
    :param clock: returns epoch seconds
    :param sleep: waits for so many seconds
    """

    def __init__(
        self,
        endpoint: Endpoint,
        conceal: Callable[[str], None] = lambda secret: None,
        max_connections: int = 10,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._endpoint = endpoint
        self._conceal = conceal
        self._clock, self._sleep = clock, sleep
        self._lock = threading.RLock()
        self._opening = threading.Lock()
        self._max_connections = max_connections
        self._plain = LineAdapter(pool_maxsize=max_connections)
        self._tls: _TlsAdapter | None = None

    def run(self, flow: Flow[T], on_report: Callable[[Report], None] | None = None) -> T:
        """Run a flow to its end and return its value, or raise what it raises."""
        try:
            step = next(flow)
            while True:
                try:
                    answer = self._do(step, on_report)
                except MLBatchError as error:
                    step = flow.throw(error)
                else:
                    step = flow.send(answer)
        except StopIteration as end:
            value: T = end.value
            return value
        finally:
            flow.close()

    def close(self) -> None:
        """Close the connections."""
        self._plain.close()
        if self._tls is not None:
            self._tls.close()

    def _do(self, step: Message, on_report: Callable[[Report], None] | None) -> Any:
        if isinstance(step, Send):
            return self._send(step)
        if isinstance(step, Now):
            return self._clock()
        if isinstance(step, Wait):
            return self._sleep(step.seconds)
        if isinstance(step, Exclusive):
            with self._lock:
                return self.run(step.flow, on_report)
        if isinstance(step, Conceal):
            return self._conceal(step.secret)
        if isinstance(step, FetchToken):
            return fetch_token(step.source, self._endpoint.verify)
        return on_report(step) if on_report else None

    def _send(self, send: Send) -> Reply | Lost:
        adapter = self._adapter(self._endpoint.absolute(send.target))
        if not send.is_alone:
            return self._sent(send, adapter)
        alone = adapter.another()
        try:
            return self._sent(send, alone)
        finally:
            alone.close()

    def _sent(self, send: Send, adapter: LineAdapter) -> Reply | Lost:
        try:
            response = self._open(send, adapter)
        except _LINE_ERRORS as error:
            return as_lost(error, was_sent=not _never_connected(error))
        with response:
            receiver = Receiver(send, response.status_code, _headers(response))
            while True:
                # Only the line is watched here: what a sink raises is not the network's doing.
                try:
                    raw = response.raw.read1(CHUNK, decode_content=False)
                except _LINE_ERRORS as error:
                    return as_lost(error, was_sent=True)
                if not raw:
                    return receiver.finish()
                if receiver.feed(raw):
                    return receiver.reply()

    def _open(self, send: Send, adapter: LineAdapter) -> requests.Response:
        endpoint, url = self._endpoint, self._endpoint.absolute(send.target)
        prepared = requests.Request(
            send.route.method,
            url,
            headers={"Accept-Encoding": ACCEPT_ENCODING, **send.headers},
            data=send.body,
        ).prepare()
        prepared.url = url  # quoted already; requests would quote it once more in its own way
        longest = math.inf if send.seconds is None else send.seconds
        proxy = proxy_for(url)
        set_limits(endpoint.read_timeout, send.seconds)
        # Not through a session: it reads the whole body of a redirect, also when told not to follow.
        return adapter.send(
            prepared,
            timeout=(min(endpoint.connect_timeout, longest), min(endpoint.read_timeout, longest)),
            stream=True,
            verify=endpoint.verify is not False,
            proxies={"http": proxy, "https": proxy} if proxy else {},
        )

    def _adapter(self, url: str) -> LineAdapter:
        if not url.startswith("https:"):
            return self._plain
        if self._tls is None:
            # Not before it is needed: certificates take tens of milliseconds to read.
            with self._opening:
                if self._tls is None:
                    self._tls = _TlsAdapter(self._endpoint.ssl_context(), self._max_connections)
        return self._tls


class _TlsAdapter(LineAdapter):
    """Trusts what the endpoint trusts, no more and no less, so that both drivers trust the same."""

    def __init__(self, context: ssl.SSLContext, max_connections: int) -> None:
        self._context = context
        super().__init__(pool_maxsize=max_connections)

    def another(self) -> _TlsAdapter:
        return _TlsAdapter(self._context, 1)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, ssl_context=self._context, **kwargs)

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:
        return super().proxy_manager_for(proxy, ssl_context=self._context, **kwargs)

    def cert_verify(self, conn: Any, url: str, verify: Any, cert: Any) -> None:
        """Nothing: it would add certificates to those of the context."""


# What a broken line looks like from here; both libraries let some of the other's errors through.
_LINE_ERRORS = (requests.RequestException, urllib3.exceptions.HTTPError, OSError)


def _headers(response: requests.Response) -> dict[str, str]:
    # http.client reads Latin-1, aiohttp UTF-8: a flow gets the same from both.
    return {
        name.lower(): value.encode("latin-1").decode("utf-8", "surrogateescape")
        for name, value in response.headers.items()
    }


def _never_connected(error: Exception) -> bool:
    """Whether the request cannot have reached the server."""
    if isinstance(error, requests.ConnectTimeout | requests.exceptions.ProxyError):
        return True
    if isinstance(error, requests.exceptions.SSLError):
        return _is_in_handshake(error)
    cause = getattr(error.args[0] if error.args else None, "reason", None)
    return isinstance(
        cause, urllib3.exceptions.NewConnectionError | urllib3.exceptions.ConnectTimeoutError
    )


def _is_in_handshake(error: BaseException) -> bool:
    # A line can also break its encryption later on. The exceptions look alike, only the place where
    # they were raised tells them apart.
    return any(
        frame.f_code.co_name == "do_handshake"
        for cause in causes(error)
        for frame, _ in traceback.walk_tb(cause.__traceback__)
    )
