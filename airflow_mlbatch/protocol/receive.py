"""Takes a reply's body in pieces: unpacks it, counts it, hands it on.

Law: both drivers read raw bytes and pass them here, so that packing, limits and cut replies are
judged in one place and in the same way. What arrives packed is unpacked in bounded steps: a small
reply that unpacks to gigabytes is refused when it passes the limit, before it fills the memory.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping

from airflow_mlbatch.errors import ContractError, ReplyTooLargeError
from airflow_mlbatch.protocol.messages import KIB, Lost, Reply, Send, Sink

__all__ = ["ACCEPT_ENCODING", "CUT", "Receiver"]

CUT = "the server closed the connection before the reply was whole"
ACCEPT_ENCODING = "gzip, deflate"
# An error page is shown cut to a few hundred characters: more of it is never needed.
MAX_ERROR_BODY = 256 * KIB
_STEP = 256 * KIB
# 32 added to the window: zlib tells gzip and zlib headers apart by itself.
_ANY_HEADER = zlib.MAX_WBITS | 32


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
        encoding = headers.get("content-encoding", "").strip().casefold()
        try:
            self._inflater = _inflater(encoding, self._where)
        except ContractError:
            if self._is_success:
                raise
            # An error page that cannot be unpacked is left out: its status says enough.
            self._inflater, self._limit = None, 0
        self._check_promised(headers.get("content-length", ""))
        self._sink: Sink | None = None
        if self._is_success and send.open_sink is not None:
            self._sink = send.open_sink()
        self._pieces: list[bytes] = []
        self._has_begun = False
        self._count = 0

    def feed(self, raw: bytes) -> bool:
        """Take the next bytes off the line; true means that no more are needed.

        :raises ReplyTooLargeError: the body passes the limit
        :raises ContractError: the body does not unpack, or the sink cannot make sense of it
        """
        return any(self.steps(raw))

    def steps(self, raw: bytes, size: int = _STEP) -> Iterator[bool]:
        """:meth:`feed` for who has other work to do in between: one value for each step.

        :param size: most bytes to hand on in a step
        """
        self._has_begun = self._has_begun or bool(raw)
        return (self._take(piece) for piece in self._unpacked(raw, size))

    def finish(self) -> Reply | Lost:
        """The line has ended where it should.

        :raises ContractError: the packed body is cut short
        """
        if self._is_success and not self._has_begun and not self._promises_end():
            return Lost(CUT)
        is_cut = self._inflater is not None and self._has_begun and not self._inflater.eof
        if is_cut and self._is_success:
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
            raise self._too_large()
        if self._sink is not None:
            return self._sink.feed(piece)
        self._pieces.append(piece)
        return False

    def _unpacked(self, raw: bytes, size: int) -> Iterator[bytes]:
        if self._inflater is None:
            yield from (raw[start : start + size] for start in range(0, len(raw), size))
            return
        try:
            while raw:
                if self._inflater.eof:
                    # gzip may consist of several members, one after another.
                    self._inflater = zlib.decompressobj(_ANY_HEADER)
                piece = self._inflater.decompress(raw, size)
                while piece or self._inflater.unconsumed_tail:
                    yield piece
                    piece = self._inflater.decompress(self._inflater.unconsumed_tail, size)
                raw = self._inflater.unused_data
        except zlib.error as error:
            if self._is_success:
                raise ContractError(
                    f"{self._where}: the packed reply cannot be unpacked: {error}"
                ) from None

    def _promises_end(self) -> bool:
        # A line that is cut in the head of a reply leaves a success without a body, for those
        # readers that take the end of the line for the end of the head.
        lengths = ("content-length", "transfer-encoding")
        return self.status == 204 or any(name in self.headers for name in lengths)

    def _check_promised(self, length: str) -> None:
        """Refuse at once what says itself that it is too large."""
        is_known = self._is_success and self._inflater is None and length.isdecimal()
        if is_known and int(length[:18]) > self._limit:
            raise self._too_large()

    def _too_large(self) -> ReplyTooLargeError:
        return ReplyTooLargeError(
            f"{self._where}: the reply holds more than {self._limit:,} bytes, the limit"
        )


def _inflater(encoding: str, where: str) -> zlib._Decompress | None:
    if encoding in ("", "identity"):
        return None
    if encoding in ("gzip", "x-gzip", "deflate"):
        return zlib.decompressobj(_ANY_HEADER)
    raise ContractError(
        f"{where}: found content-encoding {encoding!r:.80}, expected {ACCEPT_ENCODING}"
    )
