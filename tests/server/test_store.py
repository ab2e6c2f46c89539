"""The store of the server, where its blocks overlap."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from airflow_mlbatch.server.blocks import Block, blocks_of, merged
from airflow_mlbatch.server.store import Execution, Store, stored_text


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """An empty one."""
    opened = Store(tmp_path / "mlbatch.sqlite")
    yield opened
    opened.close()


def outcomes(first: int, *texts: bytes) -> Block:
    """A block."""
    return Block(first, len(texts), b",".join(texts))


def start(store: Store, records: int) -> Execution:
    """An execution of so many records."""
    blocks = blocks_of([b'{"n":%d}' % n for n in range(records)])
    execution, _ = asyncio.run(store.write(store.add_execution, "id", "s", "1", 1, blocks))
    return execution


def test_a_second_outcome_of_a_record_changes_nothing(store: Store) -> None:
    number = start(store, 6).number
    for block in (outcomes(2, b"2", b"3"), outcomes(0, b"0", b"1", b"[]", b"[]", b"4")):
        asyncio.run(store.write(store.add_results, [(number, block)]))
    assert [store.outcome(number, place) for place in range(6)] == [
        *(b"0", b"1", b"2", b"3", b"4"),
        None,
    ]
    found = store.execution("s", "1", "id")
    assert found is not None
    assert (found.completed, found.state) == (5, "pending")
    assert [list(one) for one in store.done_positions(number)] == [[0], [1], [2, 3], [4]]


def test_those_without_an_outcome_fail(store: Store) -> None:
    number = start(store, 5).number
    some = [(number, outcomes(1, b"1")), (number, outcomes(3, b"3"))]
    asyncio.run(store.write(store.add_results, some))
    asyncio.run(store.write(store.fail_execution, number, b"no"))
    found = b",".join(block.texts for block in store.outcomes(number, 0, 1_000))
    assert found == b"no,1,no,3,no"


def test_one_record_of_many(store: Store) -> None:
    number = start(store, 20_000).number
    assert len(store.records(number, 0, 10**9)) > 2
    for place in (0, 9_999, 19_999):
        assert stored_text(store.reader, "records", number, place) == b'{"n":%d}' % place
    assert stored_text(store.reader, "records", number, 20_000) is None


def test_blocks_join_where_there_is_no_gap_and_stay_small() -> None:
    large = b'"' + b"x" * 60_000 + b'"'
    blocks = [outcomes(3, b"3"), outcomes(0, b"0", b"1"), outcomes(2, b"2"), outcomes(5, b"5")]
    assert list(merged(blocks)) == [outcomes(0, b"0", b"1", b"2", b"3"), outcomes(5, b"5")]
    assert [one.length for one in merged([outcomes(0, large), outcomes(1, large)])] == [1, 1]


def test_the_space_of_what_is_deleted_goes_back_to_the_disk(store: Store, tmp_path: Path) -> None:
    """Also that of more pages than one step gives back."""
    number = start(store, 600).number
    for n in range(600):
        asyncio.run(
            store.write(store.add_results, [(number, outcomes(n, b'"%b"' % bytes(65_000)))])
        )
    with closing(sqlite3.connect(tmp_path / "mlbatch.sqlite")) as reader:
        (full,) = reader.execute("PRAGMA page_count").fetchone()
        asyncio.run(store.write(store.remove_execution, number))
        while asyncio.run(store.write(store.purge)):
            pass
        assert reader.execute("PRAGMA freelist_count").fetchone() == (0,)
        assert reader.execute("PRAGMA page_count").fetchone()[0] < full / 100
