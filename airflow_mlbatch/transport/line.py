"""The lines of the blocking driver: http.client's, where it would lose its place or its patience.

Law: nothing of HTTP is written anew here. What is added:

- Interim replies are stepped over (RFC 9110, 15.2: a client must be able to, whether it asked for
  one or not). http.client knows 100 only, takes any other for the reply itself, and answers the next
  request on the line with what belongs to this one.
- Time is counted by silence, and by the end of the exchange where it has one. A socket's own limit
  counts for all of a body that is sent, however well it flows, and starts anew with each byte of a
  head, however slowly it drips.
"""

from __future__ import annotations

import http.client
import io
import socket
import threading
import time
from typing import Any

from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

__all__ = ["LineAdapter", "set_limits"]

_PIECE = 64 * 1024


class _Limits(threading.local):
    """How long the exchange of this thread may take; urllib3 has no way to pass it on."""

    silence: float = 60.0
    end: float | None = None


_limits = _Limits()


def set_limits(silence: float, seconds: float | None) -> None:
    """For the next exchange of this thread.

    :param silence: most seconds without a byte
    :param seconds: most seconds in all; ``None`` for no limit
    """
    _limits.silence = silence
    _limits.end = None if seconds is None else time.monotonic() + seconds


def _await_no_longer(line: socket.socket, silence: float, end: float | None) -> None:
    rest = silence if end is None else min(silence, end - time.monotonic())
    if rest <= 0:
        raise TimeoutError("the exchange takes too long")
    line.settimeout(rest)


class _Watched(io.RawIOBase):
    """What arrives on a line, within the limits of the exchange that it belongs to."""

    def __init__(self, raw: Any, line: socket.socket) -> None:
        self._raw, self._line = raw, line
        self._silence, self._end = _limits.silence, _limits.end

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        _await_no_longer(self._line, self._silence, self._end)
        read: int | None = self._raw.readinto(buffer)
        return read

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Response(http.client.HTTPResponse):
    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self.fp = io.BufferedReader(_Watched(self.fp.detach(), sock))

    def begin(self) -> None:
        """Read the head of the reply, after those of any interim replies."""
        super().begin()
        # 101 is the last word: it answers a request for another protocol, which nobody makes here.
        while 100 <= self.status < 200 and self.status != http.client.SWITCHING_PROTOCOLS:
            # http.client reads a head only where it has none yet.
            self.headers = self.msg = None  # type: ignore[assignment]
            super().begin()


class _PatientLine:
    """Sends in pieces: each has the time that a silence may take."""

    sock: socket.socket | None

    def send(self, data: Any) -> None:
        with memoryview(data) as whole:
            for start in range(0, len(whole), _PIECE):
                if self.sock is not None:
                    _await_no_longer(self.sock, _limits.silence, _limits.end)
                super().send(whole[start : start + _PIECE])  # type: ignore[misc]


class _Line(_PatientLine, HTTPConnection):
    response_class = _Response


class _TlsLine(_PatientLine, HTTPSConnection):
    response_class = _Response


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Line


class _TlsPool(HTTPSConnectionPool):
    ConnectionCls = _TlsLine


_POOLS = {"http": _Pool, "https": _TlsPool}


class LineAdapter(HTTPAdapter):
    """The adapter of requests, with these lines."""

    def another(self) -> LineAdapter:
        """One of the same kind, for a single exchange."""
        return LineAdapter(pool_maxsize=1)

    def close(self) -> None:
        # urllib3 leaves this to the garbage collector, which an error's traceback can put off.
        for manager in (self.poolmanager, *self.proxy_manager.values()):
            pools = manager.pools
            for key in pools.keys():  # noqa: SIM118 - it has no iterator
                pools[key].close()
        super().close()

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = _POOLS

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(proxy, **kwargs)
        if proxy.startswith("http"):
            manager.pool_classes_by_scheme = _POOLS
        return manager
