"""Words for a lost line, the same from both drivers, whichever library reports it."""

from __future__ import annotations

import errno
import socket
import ssl
from collections.abc import Iterator
from http.client import RemoteDisconnected

from airflow_mlbatch.protocol.messages import Lost
from airflow_mlbatch.protocol.receive import CUT

__all__ = ["as_lost", "causes"]

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
    "TransferEncodingError",
    "ContentLengthError",
    "InvalidChunkLength",
}
# And what when its words cannot be understood.
_NOT_HTTP = {"BadStatusLine", "LineTooLong", "BadHttpMessage", "InvalidHeader", "HTTPException"}
_PROXY = {"ProxyError", "ClientHttpProxyError", "ClientProxyConnectionError"}


def as_lost(error: BaseException, was_sent: bool) -> Lost:
    """Judge an exception of a network library.

    :param was_sent: whether the server may have seen the request
    """
    chain = list(causes(error))
    is_lasting = any(isinstance(cause, ssl.SSLCertVerificationError) for cause in chain)
    return Lost(_words(chain, was_sent), was_sent, is_lasting)


def _words(chain: list[BaseException], was_sent: bool) -> str:
    for cause in chain:
        words = _words_of_the_system(cause)
        if words:
            return words
    names = {kind.__name__ for cause in chain for kind in type(cause).__mro__}
    if any("Timeout" in name for name in names):
        return "no answer in time" if was_sent else "no connection in time"
    if names & _PROXY:
        return "the proxy refused the connection"
    if names & _CUT:
        return CUT
    if names & _NOT_HTTP:
        return "the reply is not HTTP"
    return f"{type(chain[-1]).__name__}: {chain[-1]}"


def _words_of_the_system(cause: BaseException) -> str | None:
    if isinstance(cause, socket.gaierror):
        return "the host name is not known"
    if isinstance(cause, ssl.SSLError):
        # aiohttp's own errors count as this one, too, but only the one inside them has a reason.
        reason = getattr(cause, "verify_message", "") or getattr(cause, "reason", None)
        return f"TLS failed ({reason})" if isinstance(reason, str) else None
    # http.client's RemoteDisconnected counts as a reset, but nothing was reset.
    if isinstance(cause, ConnectionResetError) and not isinstance(cause, RemoteDisconnected):
        return "connection reset"
    return _WORDS_BY_ERRNO.get(getattr(cause, "errno", None) or 0)


def causes(error: BaseException) -> Iterator[BaseException]:
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
