"""Takes a reply's body in pieces: unpacks it, counts it, hands it on.

Law: both drivers read raw bytes and pass them here, so that packing, limits and cut replies are
judged in one place and in the same way. What arrives packed is unpacked in bounded steps: a small
reply that unpacks to gigabytes is refused when it passes the limit, before it fills the memory.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping

from airflow_mlbatch.errors import ContractError, ReplyTooLargeError
from airflow_mlbatch.protocol.messages import KIB, Reply, Send, Sink

__all__ = ["ACCEPT_ENCODING", "Receiver"]

ACCEPT_ENCODING = "gzip, deflate"
# An error page is shown cut to a few hundred characters: more of it is never needed.
MAX_ERROR_BODY = 256 * KIB
_STEP = 256 * KIB


class Receiver:
    """The receiving end of one request.

    :param send: what was asked
    :param status: HTTP status of the reply
    :param headers: its headers, names in lower case
    :raises ContractError: for a packing that was not offered
    """

    def __init__(self, send: Send, status: int, headers: Mapping[str, str]) -> None:
        self.status, self.headers = status, headers
        self._is_success = 200 <= status < 300
        self._limit = send.max_body if self._is_success else MAX_ERROR_BODY
        self._where = f"{send.route.method} {send.route.template}"
        self._inflater = _inflater(headers.get("content-encoding", ""), self._where)
        self._sink: Sink | None = None
        if self._is_success and send.open_sink is not None:
            self._sink = send.open_sink()
        self._pieces: list[bytes] = []
        self._count = 0

    def feed(self, raw: bytes) -> bool:
        """Take the next bytes off the line; true means that no more are needed.

        :raises ReplyTooLargeError: the body passes the limit
        :raises ContractError: the body does not unpack, or the sink cannot make sense of it
        """
        return any(self._take(piece) for piece in self._unpacked(raw))

    def finish(self) -> Reply:
        """The line has ended where it should.

        :raises ContractError: the packed body is cut short
        """
        if self._inflater is not None and self._count and not self._inflater.eof:
            raise ContractError(f"{self._where}: the packed reply ends too early")
        if self._sink is not None:
            self._sink.close()
        return self.reply()

    def reply(self) -> Reply:
        """What has arrived so far, as the answer to the flow."""
        return Reply(self.status, self.headers, b"".join(self._pieces), self._sink)

    def _take(self, piece: bytes) -> bool:
        self._count += len(piece)
        if self._count > self._limit:
            if not self._is_success:
                return True
            raise ReplyTooLargeError(
                f"{self._where}: the reply holds more than {self._limit:,} bytes, the limit"
            )
        if self._sink is not None:
            return self._sink.feed(piece)
        self._pieces.append(piece)
        return False

    def _unpacked(self, raw: bytes) -> Iterator[bytes]:
        if self._inflater is None:
            yield raw
            return
        try:
            piece = self._inflater.decompress(raw, _STEP)
            while piece or self._inflater.unconsumed_tail:
                yield piece
                piece = self._inflater.decompress(self._inflater.unconsumed_tail, _STEP)
        except zlib.error as error:
            raise ContractError(f"{self._where}: the packed reply cannot be unpacked: {error}") from None


def _inflater(encoding: str, where: str) -> zlib._Decompress | None:
    word = encoding.strip().casefold()
    if word in ("", "identity"):
        return None
    if word in ("gzip", "x-gzip", "deflate"):
        # 32 added to the window: zlib tells gzip and zlib headers apart by itself.
        return zlib.decompressobj(zlib.MAX_WBITS | 32)
    raise ContractError(f"{where}: found content-encoding {word!r:.80}, expected {ACCEPT_ENCODING}")
