"""Blocks of records, cut open."""

from __future__ import annotations

import pytest

from airflow_mlbatch.server.blocks import Block

BLOCK = Block(10, 4, b'"a","b","c","d"')


@pytest.mark.parametrize(
    ("positions", "left"),
    [
        ([], [BLOCK]),
        ([11], [Block(10, 1, b'"a"'), Block(12, 2, b'"c","d"')]),
        ([13, 10], [Block(11, 2, b'"b","c"')]),
        (range(10, 14), []),
        # Of other blocks: those before this one, and those behind it.
        ([3, 9], [BLOCK]),
        ([14], [BLOCK]),
        ([20, 30], [BLOCK]),
        ([9, 12, 15], [Block(10, 2, b'"a","b"'), Block(13, 1, b'"d"')]),
    ],
)
def test_what_is_left_without_some_positions(positions: list[int], left: list[Block]) -> None:
    assert list(BLOCK.without(positions)) == left
