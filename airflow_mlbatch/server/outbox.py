"""Outcomes on their way from a worker to the server.

Law: an outcome is safe as soon as it is in the outbox, whatever becomes of its worker then.

To send each outcome by itself costs more than most records, so some are sent together. Until then they
lie in the journal, memory that the worker shares with the server: a worker that dies on its next record
has lost none of them, and how many there are tells which record it died on.
"""

from __future__ import annotations

import socket
import struct
import time
import zlib
from multiprocessing.context import BaseContext
from operator import itemgetter
from typing import Any

from airflow_mlbatch.server.blocks import Block
from airflow_mlbatch.server.wire import Again, Outcomes, frame

__all__ = ["Journal", "Outbox", "shared_memory"]

# First position, number of outcomes, bytes of their texts, and what proves that all of it is true.
_HEAD = struct.Struct("=QQQI")
_JOURNAL_BYTES = 128 * 1024
# What is quicker than this is sent together with what follows.
_WAIT_SECONDS = 0.005


def shared_memory(context: BaseContext) -> Any:
    """Memory for a journal, which can be handed to a process that is being started."""
    return context.RawArray("B", _JOURNAL_BYTES)


class Journal:
    """Outcomes that were not sent yet: the worker writes, the server reads.

    Two heads are written in turn, so that whenever a worker is killed one of them is whole. Both sides
    set ``serial`` to the number of their task: what is left of another one counts for nothing.
    """

    def __init__(self, memory: Any) -> None:
        whole = memoryview(memory).cast("B")
        self._heads = (whole[: _HEAD.size], whole[_HEAD.size : 2 * _HEAD.size])
        self._texts = whole[2 * _HEAD.size :]
        self.serial = self._first = self._turn = 0
        self.count = self._size = self._sum = 0

    def has_room(self, text: bytes) -> bool:
        """Whether an outcome fits in."""
        return self._size + len(text) < len(self._texts)

    def add(self, position: int, text: bytes, count: int = 1) -> None:
        """Note outcomes; they follow those that are there."""
        if self.count:
            text = b",%b" % text
        else:
            self._first = position
        end = self._size + len(text)
        self._texts[self._size : end] = text
        self._sum = zlib.crc32(text, self._sum)
        self._size = end
        self.count += count
        self._turn ^= 1
        proof = self._sum ^ self._salt(self._first, self.count)
        _HEAD.pack_into(self._heads[self._turn], 0, self._first, self.count, end, proof)

    def take(self) -> Block:
        """What is there. It stays until :meth:`clear`."""
        return Block(self._first, self.count, bytes(self._texts[: self._size]))

    def clear(self) -> None:
        """Forget all of them."""
        self.count = self._size = self._sum = 0
        for head in self._heads:
            _HEAD.pack_into(head, 0, 0, 0, 0, 0)

    def read(self) -> Block | None:
        """What is there, while the worker may be adding to it; ``None`` when nothing is."""
        heads = [_HEAD.unpack(head) for head in self._heads]
        for first, count, size, proof in sorted(heads, key=itemgetter(1), reverse=True):
            texts = bytes(self._texts[:size])
            if count and zlib.crc32(texts) ^ self._salt(first, count) == proof:
                return Block(first, count, texts)
        return None

    def _salt(self, first: int, count: int) -> int:
        # Neighbours in any of the numbers are far from each other here.
        return (first * 2246822519 ^ count * 2654435761 ^ self.serial * 3266489917) & 0xFFFFFFFF


class Outbox:
    """The worker's end of the line, for outcomes.

    :param memory: the journal's
    """

    def __init__(self, line: socket.socket, memory: Any) -> None:
        self._line, self._journal = line, Journal(memory)
        self._sent_at = 0.0

    def begin(self, serial: int) -> None:
        """What comes now belongs to this task."""
        self._journal.serial = serial

    def put(self, position: int, text: bytes, count: int = 1, *, is_last: bool = False) -> None:
        """Have outcomes sent, soon.

        :param position: of the first one
        :param text: JSON, with commas between them
        :param is_last: this worker leaves
        """
        journal = self._journal
        if not journal.has_room(text):
            self.flush()
            if not journal.has_room(text):
                self._send(Outcomes(position, count, text, is_last))
                return
        journal.add(position, text, count)
        if is_last or time.monotonic() - self._sent_at >= _WAIT_SECONDS:
            self.flush(is_last=is_last)

    def put_again(self, position: int, count: int = 1, *, is_last: bool = False) -> None:
        """Say that records have to be run again on a disk with space."""
        self.flush()
        self._send(Again(position, count, is_last))

    def flush(self, *, is_last: bool = False) -> None:
        """Send what waits."""
        if self._journal.count:
            self._send(Outcomes(*self._journal.take(), is_last))
            self._journal.clear()

    def _send(self, message: Outcomes | Again) -> None:
        self._line.sendall(frame(message))
        self._sent_at = time.monotonic()
