"""Words for a lost line, the same from both drivers, whichever library reports it."""

from __future__ import annotations

import errno
import socket
import ssl
from collections.abc import Iterator

from airflow_mlbatch.protocol.messages import Lost

__all__ = ["as_lost"]

_WORDS_BY_ERRNO = {
    errno.ECONNREFUSED: "connection refused",
    errno.ECONNRESET: "connection reset",
    errno.EPIPE: "connection reset",
    errno.ECONNABORTED: "connection reset",
    errno.EHOSTUNREACH: "host unreachable",
    errno.ENETUNREACH: "network unreachable",
}
# What the libraries call it when the other side closes before the reply is whole.
_CUT = {
    "IncompleteRead",
    "ClientPayloadError",
    "ServerDisconnectedError",
    "RemoteDisconnected",
    "ProtocolError",
    "TransferEncodingError",
    "ContentLengthError",
    "InvalidChunkLength",
}


def as_lost(error: BaseException, was_sent: bool) -> Lost:
    """Judge an exception of a network library.

    :param was_sent: whether the server may have seen the request
    """
    causes = list(_causes(error))
    for cause in causes:
        if isinstance(cause, socket.gaierror):
            return Lost("the host name is not known", was_sent)
        if isinstance(cause, ssl.SSLError):
            reason = getattr(cause, "verify_message", "") or cause.reason or str(cause)
            return Lost(f"TLS failed ({reason})", was_sent)
        words = _WORDS_BY_ERRNO.get(getattr(cause, "errno", None) or 0)
        if words:
            return Lost(words, was_sent)
        if isinstance(cause, ConnectionResetError | BrokenPipeError):
            return Lost("connection reset", was_sent)
    if any(isinstance(cause, TimeoutError) or "Timeout" in type(cause).__name__ for cause in causes):
        return Lost("no connection in time" if not was_sent else "no answer in time", was_sent)
    if any(type(cause).__name__ in _CUT for cause in causes):
        return Lost("the server closed the connection before the reply was whole", was_sent)
    return Lost(f"{type(causes[-1]).__name__}: {causes[-1]}", was_sent)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The exception and all that it wraps, outermost first."""
    seen: list[BaseException] = []
    waiting: list[BaseException] = [error]
    while waiting:
        cause = waiting.pop(0)
        if any(cause is known for known in seen):
            continue
        seen.append(cause)
        yield cause
        inner = [getattr(cause, "reason", None), getattr(cause, "os_error", None), *cause.args]
        inner += [cause.__cause__, cause.__context__]
        waiting += [item for item in inner if isinstance(item, BaseException)]
