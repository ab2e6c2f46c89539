"""Stands between Airflow and the scoring server: counts what passes, and holds what it is told to.

Law: it changes nothing. A request or a reply that is held goes on unaltered, or the line is dropped.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

import psutil

__all__ = ["Held", "Passed", "ScoringProxy", "scoring_proxy"]

At = Literal["request", "reply", "after"]

# Those that concern one line only (RFC 9110, 7.6.1), and the length, which is set anew.
_OF_THE_LINE = {"connection", "keep-alive", "transfer-encoding", "content-length", "host"}
_HOLD_SECONDS = 300


@dataclass(frozen=True)
class Passed:
    """A request that the server has answered, or that it may have seen.

    :param at: epoch seconds when it was passed on
    :param arrived_at: epoch seconds when it came
    :param body: of the request
    :param status: 0 where the line to the server broke before it had answered
    :param key: its idempotency key; empty without one
    :param execution_id: the execution that a start was answered with
    """

    at: float
    arrived_at: float
    method: str
    path: str
    body: bytes
    status: int
    key: str = ""
    execution_id: str = ""


class Held:
    """A request that is stopped on its way, there or back."""

    def __init__(self, method: str, pattern: str, at: At) -> None:
        self.method, self.pattern, self.at = method, re.compile(pattern), at
        self.pid = 0
        self._is_here, self._goes_on = threading.Event(), threading.Event()
        self._is_dropped = False

    def wait(self, seconds: float) -> int:
        """Wait until it is here; returns the process that sent it."""
        assert self._is_here.wait(seconds), f"no {self.method} {self.pattern.pattern} came"
        return self.pid

    @property
    def has_come(self) -> bool:
        """Whether it is here, or was."""
        return self._is_here.is_set()

    def forward(self) -> None:
        """Let it go on."""
        self._goes_on.set()

    def drop(self) -> None:
        """Close the line instead."""
        self._is_dropped = True
        self._goes_on.set()

    def matches(self, method: str, path: str) -> bool:
        return method == self.method and self.pattern.search(path) is not None

    def stop(self, find_sender: Callable[[], int]) -> bool:
        """Called by the proxy: whether the line is to be dropped."""
        self.pid = find_sender()
        self._is_here.set()
        self._goes_on.wait(_HOLD_SECONDS)
        return self._is_dropped


class ScoringProxy:
    """A reverse proxy on a free port of this machine.

    :param upstream: address of the server
    """

    def __init__(self, upstream: str) -> None:
        self.upstream = urlsplit(upstream).netloc
        self._passed: list[Passed] = []
        self._unanswered: list[Passed] = []
        self._holds: list[Held] = []
        self._lock = threading.Lock()
        self._http = _Server(("127.0.0.1", 0), _Handler)
        self._http.proxy = self
        self.port = self._http.server_port
        threading.Thread(target=self._http.serve_forever, args=(0.1,), daemon=True).start()

    def close(self) -> None:
        """Stop listening; what is held goes on."""
        for held in self._holds:
            held.forward()
        self._http.shutdown()
        self._http.server_close()

    def hold(self, method: str, pattern: str, at: At) -> Held:
        """Stop the next request whose path the pattern is found in.

        :param at: ``request``, before the server sees it; ``reply``, when the server has answered;
            ``after``, when the reply has gone out to the client
        """
        held = Held(method, pattern, at)
        with self._lock:
            self._holds.append(held)
        return held

    def passed(self, method: str, pattern: str, status: int | None = None) -> list[Passed]:
        """What the server has seen of this method and path, oldest first."""
        with self._lock:
            return [
                one
                for one in self._passed
                if one.method == method
                and re.search(pattern, one.path)
                and status in (None, one.status)
            ]

    def unanswered(self) -> list[Passed]:
        """What was passed on, and the server went away before it had answered."""
        with self._lock:
            return list(self._unanswered)

    def claim(self, method: str, path: str, at: At) -> Held | None:
        with self._lock:
            for held in self._holds:
                if held.at == at and held.matches(method, path):
                    self._holds.remove(held)
                    return held
        return None

    def note(self, passed: Passed) -> None:
        with self._lock:
            (self._passed if passed.status else self._unanswered).append(passed)


class _Server(ThreadingHTTPServer):
    proxy: ScoringProxy
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed is no error here."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def _pass_on(self) -> None:
        proxy = self.server.proxy
        arrived_at = time.time()
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(self.path)
        if self._is_dropped(path, "request"):
            return
        at = time.time()
        key = self.headers.get("Idempotency-Key") or ""
        try:
            status, headers, content = self._ask(proxy.upstream, body)
        except (OSError, http.client.HTTPException):
            proxy.note(Passed(at, arrived_at, self.command, path, body, 0, key))
            raise
        started = _started(content) if (self.command, status) == ("POST", 202) else ""
        proxy.note(Passed(at, arrived_at, self.command, path, body, status, key, started))
        if self._is_dropped(path, "reply"):
            return
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in _OF_THE_LINE:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
        self.wfile.flush()
        self._is_dropped(path, "after")

    def do_GET(self) -> None:
        self._pass_on()

    def do_POST(self) -> None:
        self._pass_on()

    def do_DELETE(self) -> None:
        self._pass_on()

    def _ask(self, upstream: str, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection(upstream, timeout=120)
        headers = {
            name: value for name, value in self.headers.items() if name.lower() not in _OF_THE_LINE
        }
        try:
            connection.request(self.command, self.path, body or None, headers)
            reply = connection.getresponse()
            return reply.status, reply.getheaders(), reply.read()
        finally:
            connection.close()

    def _is_dropped(self, path: str, at: At) -> bool:
        held = self.server.proxy.claim(self.command, path, at)
        if held is None or not held.stop(self._client_pid):
            return False
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)
        return True

    def _client_pid(self) -> int:
        """The process at the other end of the line; 0 when it is gone."""
        ends = (self.client_address[1], self.server.proxy.port)
        for line in psutil.net_connections("tcp"):
            if line.raddr and (line.laddr.port, line.raddr.port) == ends and line.pid:
                return line.pid
        return 0

    def log_message(self, format: str, *args: Any) -> None:
        """What passes is kept by the proxy."""


def _started(reply: bytes) -> str:
    """The id in the reply to a start."""
    found = json.loads(reply)
    return str(found.get("batchExecutionId") or found["BatchExecutionId"])


@contextlib.contextmanager
def scoring_proxy(upstream: str) -> Iterator[ScoringProxy]:
    """Run a proxy in front of a server."""
    proxy = ScoringProxy(upstream)
    try:
        yield proxy
    finally:
        proxy.close()
