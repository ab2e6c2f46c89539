"""Reads a batch document from pieces of bytes, without ever holding the whole of it.

Law: a list of a million results is cut into blocks of whole records, and each block is proved whole
by decoding it; a cut at a wrong place leaves a bracket or a quote open, which no decoder accepts.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import msgspec

from airflow_mlbatch.errors import ContractError
from airflow_mlbatch.protocol.documents import BYTE_ORDER_MARK, NOT_JSON, shown
from airflow_mlbatch.protocol.messages import KIB, MIB

__all__ = ["BLOCK", "BatchScanner"]

_ITEMS_KEY = "batchExecutionResults"
BLOCK = 1 * MIB
# A key or a scalar of the document's head that is longer than this is no batch document.
_MAX_TOKEN = 64 * KIB
# More than a head can sensibly have, so that an endless one does not fill the memory.
_MAX_FIELDS = 1000
# One record is held whole; a server that never ends it is stopped here.
_MAX_RECORD = 256 * MIB
_CUTS_TRIED = 4

_SPACE = re.compile(rb"[ \t\r\n]*")
_INSIDE_TEXT = rb'[^"\\]*(?:\\.[^"\\]*)*'
_TEXT = rb'"' + _INSIDE_TEXT + rb'"'
_KEY = re.compile(rb"[ \t\r\n]*(" + _TEXT + rb")[ \t\r\n]*:[ \t\r\n]*", re.DOTALL)
_SCALAR = re.compile(rb"(" + _TEXT + rb'|[^\s,{}\[\]"]+)[ \t\r\n]*(?=[,}])', re.DOTALL)
# Whole strings are stepped over, so that a bracket inside one does not count. A string that is not
# closed yet matches only its quote.
_BRACKET = re.compile(_TEXT + rb'|["{}\[\]]', re.DOTALL)
_REST_OF_TEXT = re.compile(_INSIDE_TEXT, re.DOTALL)
_AFTER_ITEM = re.compile(rb"[ \t\r\n]*,[ \t\r\n]*(?=\{)")


class BatchScanner:
    """A push parser for the object that answers ``GET …/batch/{id}``.

    ``fields`` holds the document's other top-level values as they become known, keys with their
    first letter in lower case.

    :param take_items: called with the text of a JSON list of whole records; it raises one of
        ``NOT_JSON`` when the text was cut wrongly. ``None`` skips the records.
    :param block: bytes of records that are gathered before they are handed on
    :param max_record: most bytes of one record
    """

    def __init__(
        self,
        take_items: Callable[[bytes], None] | None,
        *,
        block: int = BLOCK,
        max_record: int = _MAX_RECORD,
    ) -> None:
        self.fields: dict[str, Any] = {}
        self._take_items, self._max_record = take_items, max_record
        self._buffer = bytearray()
        self._step: Callable[[bool], bool] = self._open
        self._key = ""
        self._depth = 0
        self._is_in_text = False
        self._block = self._threshold = block
        self._is_first = True

    def feed(self, data: bytes) -> None:
        """Take the next piece.

        :raises ContractError: this is no batch document
        """
        self._buffer += data
        self._run(is_last=False)

    def close(self) -> None:
        """The document is complete.

        :raises ContractError: it is not
        """
        self._run(is_last=True)
        if self._step != self._end:
            raise self._bad("it ends too early")

    def _run(self, is_last: bool) -> None:
        while self._step(is_last):
            pass

    # Each step consumes what it can from the front of the buffer and sets the next step; it returns
    # false when it needs more bytes.

    def _open(self, is_last: bool) -> bool:
        mark = bytes(self._buffer[: len(BYTE_ORDER_MARK)])
        if mark == BYTE_ORDER_MARK:
            del self._buffer[: len(mark)]
        elif mark and BYTE_ORDER_MARK.startswith(mark):
            return False
        self._skip_space()
        if not self._buffer:
            return False
        if self._buffer[:1] != b"{":
            raise self._bad("expected an object")
        del self._buffer[:1]
        self._step = self._next_key
        return True

    def _next_key(self, is_last: bool) -> bool:
        self._skip_space()
        if self._buffer[:1] == b"}":
            del self._buffer[:1]
            self._step = self._end
            return True
        match = _KEY.match(self._buffer)
        if match is None:
            return self._need_more("expected a key")
        name = self._decoded(match.group(1))
        self._key = name[:1].lower() + name[1:]
        del self._buffer[: match.end()]
        self._step = self._value
        return True

    def _value(self, is_last: bool) -> bool:
        # A piece may end between the colon and the value.
        self._skip_space()
        first = bytes(self._buffer[:1])
        if not first:
            return False
        if first in (b"{", b"["):
            is_items = self._key == _ITEMS_KEY and first == b"["
            if is_items and self._take_items is not None:
                del self._buffer[:1]
                self._is_first = True
                self._step = self._items
            else:
                self._depth = 0
                self._step = self._skip
            return True
        match = _SCALAR.match(self._buffer)
        if match is None:
            return self._need_more(f"expected a value for {self._key!r}")
        self.fields[self._key] = self._decoded(match.group(1))
        if len(self.fields) > _MAX_FIELDS:
            raise self._bad(f"more than {_MAX_FIELDS} fields")
        del self._buffer[: match.end()]
        self._step = self._separator
        return True

    def _separator(self, is_last: bool) -> bool:
        self._skip_space()
        first = self._buffer[:1]
        if not first:
            return False
        if first == b",":
            del self._buffer[:1]
        elif first != b"}":
            raise self._bad(f"expected ',' or '}}' after {self._key!r}")
        self._step = self._next_key
        return True

    def _skip(self, is_last: bool) -> bool:
        """Step over a value that nobody wants, keeping nothing of it."""
        if self._is_in_text and not self._leave_text():
            return False
        position = len(self._buffer)
        for match in _BRACKET.finditer(self._buffer):
            token = match.group()
            if token == b'"':
                self._is_in_text = True
                position = match.end()
                break
            self._depth += (token in (b"{", b"[")) - (token in (b"}", b"]"))
            if self._depth == 0:
                position = match.end()
                self._step = self._separator
                break
        # Only now: while the loop runs, its iterator keeps the buffer from shrinking.
        del self._buffer[:position]
        return self._depth == 0 or self._is_in_text

    def _leave_text(self) -> bool:
        match = _REST_OF_TEXT.match(self._buffer)
        assert match is not None
        end = match.end()
        self._is_in_text = self._buffer[end : end + 1] != b'"'
        # Where the text goes on, all that stays is a backslash whose partner is still to come.
        del self._buffer[: end if self._is_in_text else end + 1]
        return not self._is_in_text

    def _items(self, is_last: bool) -> bool:
        if len(self._buffer) < self._threshold and not is_last:
            return False
        if self._cut_near_the_end() or self._cut_exactly():
            self._threshold = self._block
            return True
        if len(self._buffer) > self._max_record:
            raise self._bad(f"a record of more than {self._max_record:,} bytes")
        # One record larger than a block: look again when there is twice as much.
        self._threshold = 2 * len(self._buffer)
        return False

    def _cut_near_the_end(self) -> bool:
        end = len(self._buffer)
        for _ in range(_CUTS_TRIED):
            end = self._buffer.rfind(b"}", 0, end)
            while end >= 0 and not _AFTER_ITEM.match(self._buffer, end + 1):
                end = self._buffer.rfind(b"}", 0, end)
            if end < 0:
                return False
            try:
                self._hand_on(end + 1)
            except NOT_JSON:
                continue
            comma = _AFTER_ITEM.match(self._buffer)
            assert comma is not None
            del self._buffer[: comma.end()]
            return True
        return False

    def _cut_exactly(self) -> bool:
        """Walk bracket by bracket to the last whole record, and past the list's end if it is here."""
        depth, whole = 0, 0
        for match in _BRACKET.finditer(self._buffer):
            token = match.group()
            if token == b'"':
                break
            depth += (token in (b"{", b"[")) - (token in (b"}", b"]"))
            if depth < 0:
                whole = match.start()
                break
            if depth == 0:
                whole = match.end()
        if depth < 0:
            return self._close_items(whole)
        comma = _AFTER_ITEM.match(self._buffer, whole) if whole else None
        if comma is None:
            return False
        self._hand_on_exactly(whole)
        del self._buffer[: comma.end() - whole]
        return True

    def _close_items(self, end: int) -> bool:
        if self._buffer[:end].strip():
            self._hand_on_exactly(end)
        elif not self._is_first:
            raise self._bad("the list of results ends with a comma")
        else:
            del self._buffer[:end]
        del self._buffer[:1]
        self._step = self._separator
        return True

    def _hand_on(self, end: int) -> None:
        assert self._take_items is not None
        with memoryview(self._buffer) as view:
            items = b"".join((b"[", view[:end], b"]"))
        self._take_items(items)
        del self._buffer[:end]
        self._is_first = False

    def _hand_on_exactly(self, end: int) -> None:
        try:
            self._hand_on(end)
        except NOT_JSON as error:
            raise self._bad(f"the results are not JSON ({error})") from None

    def _end(self, is_last: bool) -> bool:
        self._skip_space()
        if self._buffer:
            raise self._bad("something follows the document")
        return False

    def _skip_space(self) -> None:
        match = _SPACE.match(self._buffer)
        if match is not None and match.end():
            del self._buffer[: match.end()]

    def _need_more(self, expectation: str) -> bool:
        if len(self._buffer) > _MAX_TOKEN:
            raise self._bad(expectation)
        return False

    def _decoded(self, token: bytes) -> Any:
        try:
            return msgspec.json.decode(token)
        except NOT_JSON as error:
            raise self._bad(str(error)) from None

    def _bad(self, reason: str) -> ContractError:
        return ContractError(f"batch document: {reason}, found {shown(bytes(self._buffer[:1024]))}")
