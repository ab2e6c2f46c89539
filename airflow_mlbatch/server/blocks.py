"""Consecutive records, or their outcomes, as one piece of text.

Law: what comes in thousands is stored, sent and counted in blocks. A block is cut open only where its
records part.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import msgspec

__all__ = ["MOST_BLOCK_BYTES", "Block", "blocks_of", "joined", "merged", "parts_of"]

MOST_BLOCK_BYTES = 64 * 1024
# More parts find a record that ends its worker with fewer deaths, and cost more calls otherwise.
_PARTS = 8
_DECODER = msgspec.json.Decoder(list[msgspec.Raw])


class Block(NamedTuple):
    """Some records in a row.

    :param first: position of the first
    :param length: how many there are
    :param texts: the JSON text of each, with commas between them
    """

    first: int
    length: int
    texts: bytes

    @property
    def end(self) -> int:
        """The position behind the last one."""
        return self.first + self.length

    def split(self) -> list[msgspec.Raw]:
        """The JSON text of each."""
        return _DECODER.decode(b"[%b]" % self.texts)

    def singles(self) -> list[Block]:
        """Each record as a block of its own."""
        return [
            Block(position, 1, bytes(text))
            for position, text in enumerate(self.split(), self.first)
        ]

    def without(self, positions: Iterable[int]) -> Iterator[Block]:
        """What is left when the records at these positions are taken out."""
        begin = self.first
        for position in sorted(positions):
            if position >= self.end:
                break
            if begin < position:
                yield self.part(begin, position)
            begin = max(begin, position + 1)
        if begin < self.end:
            yield self.part(begin, self.end)

    def part(self, first: int, end: int) -> Block:
        """The records from one position to before another; both lie within the block."""
        if (first, end) == (self.first, self.end):
            return self
        pieces = self.split()[first - self.first : end - self.first]
        return Block(first, len(pieces), b",".join(pieces))


def blocks_of(texts: Sequence[bytes | msgspec.Raw], first: int = 0) -> list[Block]:
    """Make blocks of a limited size.

    :param texts: the JSON text of each record
    :param first: position of the first one
    """
    blocks: list[Block] = []
    begin = size = 0
    for place, text in enumerate(texts):
        size += len(memoryview(text)) + 1
        if size >= MOST_BLOCK_BYTES:
            blocks.append(_block(texts, first, begin, place + 1))
            begin, size = place + 1, 0
    if begin < len(texts):
        blocks.append(_block(texts, first, begin, len(texts)))
    return blocks


def _block(texts: Sequence[bytes | msgspec.Raw], first: int, begin: int, end: int) -> Block:
    return Block(first + begin, end - begin, b",".join(texts[begin:end]))


def parts_of(block: Block) -> list[Block]:
    """What a block of several records is tried in when it has failed as a whole, in order."""
    size = -(-block.length // _PARTS)
    return [
        block.part(first, min(first + size, block.end))
        for first in range(block.first, block.end, size)
    ]


def merged(blocks: Iterable[Block]) -> Iterator[Block]:
    """Join neighbours, in order of their positions, into blocks of a limited size."""
    run: list[Block] = []
    size = 0
    for block in sorted(blocks):
        if run and (run[-1].end != block.first or size + len(block.texts) > MOST_BLOCK_BYTES):
            yield joined(run)
            run, size = [], 0
        run.append(block)
        size += len(block.texts)
    if run:
        yield joined(run)


def joined(run: Sequence[Block]) -> Block:
    """Make one block of neighbours."""
    if len(run) == 1:
        return run[0]
    return Block(run[0].first, run[-1].end - run[0].first, b",".join(one.texts for one in run))
