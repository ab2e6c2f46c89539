"""Drives a flow with requests."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import requests
import urllib3

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

__all__ = ["BlockingDriver"]

T = TypeVar("T")


class BlockingDriver:
    """Runs flows in the calling thread; several threads may share one.

    :param endpoint: the server
    :param conceal: called with each token that arrives, for the log masker
    """

    def __init__(
        self, endpoint: Endpoint, conceal: Callable[[str], None] = lambda secret: None
    ) -> None:
        self._endpoint = endpoint
        self._conceal = conceal
        self._lock = threading.RLock()
        self._session = requests.Session()

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
        self._session.close()

    def _do(self, step: Message, on_report: Callable[[Report], None] | None) -> Any:
        if isinstance(step, Send):
            return self._send(step)
        if isinstance(step, Now):
            return time.time()
        if isinstance(step, Wait):
            return time.sleep(step.seconds)
        if isinstance(step, Exclusive):
            with self._lock:
                return self.run(step.flow, on_report)
        if isinstance(step, Conceal):
            return self._conceal(step.secret)
        return on_report(step) if on_report else None

    def _send(self, send: Send) -> Reply | Lost:
        end = None if send.seconds is None else time.monotonic() + send.seconds
        try:
            with self._open(send) as response:
                headers = {name.lower(): value for name, value in response.headers.items()}
                receiver = Receiver(send, response.status_code, headers)
                for raw in _raw_chunks(response):
                    if receiver.feed(raw):
                        return receiver.reply()
                    if end is not None and time.monotonic() > end:
                        return as_lost(TimeoutError(), was_sent=True)
                return receiver.finish()
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            return as_lost(error, was_sent=not _never_connected(error))

    def _open(self, send: Send) -> requests.Response:
        endpoint, url = self._endpoint, self._endpoint.absolute(send.target)
        prepared = requests.Request(
            send.route.method,
            url,
            headers={"Accept-Encoding": ACCEPT_ENCODING, **send.headers},
            data=send.body,
        ).prepare()
        prepared.url = url  # quoted already; requests would quote it once more in its own way
        cert = (endpoint.client_cert, endpoint.client_key) if endpoint.client_key else None
        settings = self._session.merge_environment_settings(
            url, {}, True, endpoint.verify, cert or endpoint.client_cert
        )
        timeout = (endpoint.connect_timeout, endpoint.read_timeout)
        return self._session.send(prepared, timeout=timeout, allow_redirects=False, **settings)


def _raw_chunks(response: requests.Response) -> Iterator[bytes]:
    """The body as it came off the line, still packed."""
    yield from response.raw.stream(CHUNK, decode_content=False)


def _never_connected(error: Exception) -> bool:
    """Whether the request cannot have reached the server."""
    if isinstance(error, requests.ConnectTimeout | requests.exceptions.SSLError):
        return True
    cause = getattr(error.args[0] if error.args else None, "reason", None)
    return isinstance(
        cause, urllib3.exceptions.NewConnectionError | urllib3.exceptions.ConnectTimeoutError
    )
