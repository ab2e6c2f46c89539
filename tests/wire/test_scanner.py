"""A batch document cut anywhere: the same records, or an error, never wrong data."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_mlbatch.errors import ContractError, MLBatchError
from airflow_mlbatch.protocol import scan
from airflow_mlbatch.protocol.results import BatchStatus, StatusSink
from airflow_mlbatch.protocol.services import Parameter
from airflow_mlbatch.protocol.states import BatchState
from tests.wire.reading import read_document

ANSWER = (Parameter("answer", "numeric"), Parameter("note", "character"))
# Whatever looks like the end of a record, or hides it.
NASTY = [
    "",
    "},{",
    '"},{"',
    "\\",
    '\\"',
    "}]}",
    "[{",
    "{",
    '"',
    "\\\\",
    "β€\U0001f600",
    "\n\t",
    "]",
]


def record(place: int, note: str, console: str = "") -> dict[str, Any]:
    return {
        "success": True,
        "errorMessage": "",
        "consoleOutput": console,
        "changedFiles": [],
        "outputParameters": {"answer": float(place), "note": note},
    }


def batch(records: list[dict[str, Any]], state_first: bool = True) -> dict[str, Any]:
    head = {"state": "Complete", "completedItemCount": len(records), "totalItemCount": len(records)}
    tail = {"batchExecutionResults": records}
    return {**head, **tail} if state_first else {**tail, **head}


NOTES = [note * (1 + place % 3) for place, note in enumerate(NASTY * 3)]
RECORDS = [record(place, note, note) for place, note in enumerate(NOTES)]
SHAPES = {
    "compact": json.dumps(batch(RECORDS), separators=(",", ":")),
    "spaced": json.dumps(batch(RECORDS)),
    "pretty": json.dumps(batch(RECORDS), indent=4),
    "tabs and returns": json.dumps(batch(RECORDS), indent="\t").replace("\n", "\r\n"),
    "results first": json.dumps(batch(RECORDS, state_first=False)),
    "not in ASCII": json.dumps(batch(RECORDS), ensure_ascii=False),
    "a skipped value": json.dumps({"links": [{"a": NASTY}, [[]]], "x": {}, **batch(RECORDS)}),
    "a byte order mark": "\ufeff" + json.dumps(batch(RECORDS)),
    "keys in Pascal case": json.dumps(
        {key[0].upper() + key[1:]: value for key, value in batch(RECORDS).items()}
    ),
}
DOCUMENTS = {name: text.encode() for name, text in SHAPES.items()}


def check(pieces: Iterator[bytes] | list[bytes], block: int = 256) -> None:
    status, records = read_document(pieces, ANSWER, block)
    assert status == BatchStatus(BatchState.COMPLETE, len(NOTES), len(NOTES))
    assert [(found.index, found.outputs["answer"]) for found in records] == [
        (place, float(place)) for place in range(len(NOTES))
    ]
    assert [found.outputs["note"] for found in records] == NOTES
    assert [found.console_output for found in records] == NOTES


def in_pieces(document: bytes, sizes: Iterator[int]) -> Iterator[bytes]:
    start = 0
    while start < len(document):
        size = next(sizes)
        yield document[start : start + size]
        start += size


@pytest.mark.parametrize("name", DOCUMENTS)
@pytest.mark.parametrize("size", [1, 2, 7, 255, 256, 257, 10**6])
def test_any_size_of_piece(name: str, size: int) -> None:
    check(in_pieces(DOCUMENTS[name], iter(lambda: size, 0)))


@pytest.mark.parametrize("name", DOCUMENTS)
@pytest.mark.parametrize("seed", range(5))
def test_pieces_of_random_sizes(name: str, seed: int) -> None:
    chance = random.Random(seed)
    check(in_pieces(DOCUMENTS[name], iter(lambda: chance.choice([1, 3, 40, 300, 2000]), 0)))


@pytest.mark.parametrize("block", [1, 5, 64, 100_000])
def test_any_size_of_block(block: int) -> None:
    for document in DOCUMENTS.values():
        check(in_pieces(document, iter(lambda: 97, 0)), block)


def test_records_larger_than_a_block() -> None:
    records = [record(place, '},{"' * 1000) for place in range(3)]
    document = json.dumps(batch(records)).encode()
    found = read_document(in_pieces(document, iter(lambda: 50, 0)), ANSWER, 256)[1]
    assert [len(item.outputs["note"]) for item in found] == [4000] * 3


def test_a_record_that_never_ends() -> None:
    scanner = scan.BatchScanner(lambda items: None, block=256, max_record=10_000)
    scanner.feed(b'{"batchExecutionResults":[{"consoleOutput":"')
    with pytest.raises(ContractError, match="a record of more than 10,000 bytes"):
        for _ in range(10**6):
            scanner.feed(b"x" * 1000)


def test_fields_that_never_end() -> None:
    pieces = (b'"f%d":1,' % number for number in range(10**6))
    with pytest.raises(ContractError, match="more than 1000 fields"):
        read_document((piece if place else b"{" for place, piece in enumerate(pieces)), None)


def test_a_status_holds_nothing_of_what_it_skips() -> None:
    sink = StatusSink()
    assert not sink.feed(b'{"batchExecutionResults":[{"consoleOutput":"')
    for _ in range(1000):
        assert not sink.feed(rb"text \"quoted\" and {brackets} \\")
        assert len(sink._scanner._buffer) < 2
    tail = b'"}],"state":"complete","completedItemCount":1,"totalItemCount":1}'
    for place in range(len(tail)):
        sink.feed(tail[place : place + 1])
    sink.close()
    assert sink.status == BatchStatus(BatchState.COMPLETE, 1, 1)


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("state_first", [True, False])
def test_truncated_at_every_byte(indent: int | None, state_first: bool) -> None:
    few = [record(place, note) for place, note in enumerate(NASTY)]
    document = json.dumps(batch(few, state_first), indent=indent, ensure_ascii=False).encode()
    whole = [(place, float(place), note) for place, note in enumerate(NASTY)]
    for end in range(len(document)):
        taken: list[Any] = []
        with pytest.raises(ContractError):
            read_prefix(document[:end], taken)
        # What was handed on before the end is right, as far as it goes.
        assert taken == whole[: len(taken)]


def read_prefix(document: bytes, taken: list[Any]) -> None:
    from airflow_mlbatch.protocol.results import RecordBlock, ResultsSink

    def take(block: RecordBlock) -> None:
        taken.extend(
            (found.index, found.outputs["answer"], found.outputs["note"]) for found in block
        )

    sink = ResultsSink(ANSWER, take)
    for start in range(0, len(document), 300):
        sink.feed(document[start : start + 300])
    sink.close()


@pytest.mark.parametrize("name", ["compact", "results first"])
def test_a_status_of_a_truncated_document(name: str) -> None:
    document = DOCUMENTS[name]
    whole = BatchStatus(BatchState.COMPLETE, len(NOTES), len(NOTES))
    for end in range(0, len(document), 7):
        sink = StatusSink()
        if sink.feed(document[:end]):
            assert sink.status == whole
        else:
            with pytest.raises(ContractError):
                sink.close()


@pytest.mark.parametrize(
    "body",
    [
        b'{"batchExecutionResults":[{}{}]}',
        b'{"batchExecutionResults":[{},]}',
        b'{"batchExecutionResults":[,{}]}',
        b'{"batchExecutionResults":[{}}',
        b'{"batchExecutionResults":[{"a":1]}]}',
        b'{"batchExecutionResults":[{"a":"\xff"}]}',
        b'{"batchExecutionResults":[{"a":' + b"[" * 5000 + b"]" * 5000 + b"}]}",
        b'{"batchExecutionResults":[1,2]}',
        b'{"batchExecutionResults":[{}] "state":"complete"}',
        b'{"state":"complete",,"x":1}',
        b'{state:"complete"}',
        b'{"state":"complete"}}',
    ],
)
@pytest.mark.parametrize("size", [1, 1000])
def test_what_is_no_document(body: bytes, size: int) -> None:
    with pytest.raises(ContractError):
        read_document(in_pieces(body, iter(lambda: size, 0)), None)


# --- by chance -----------------------------------------------------------------------------------

texts = st.text(
    st.characters(exclude_categories=["Cs"]) | st.sampled_from('{}[]",\\:'), max_size=20
)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | texts
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
some_records = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "success": st.booleans(),
            "errorMessage": texts,
            "consoleOutput": texts,
            "changedFiles": st.lists(texts, max_size=2),
            "outputParameters": st.dictionaries(texts, values, max_size=3),
        },
    ),
    max_size=12,
)


@given(some_records, st.lists(st.integers(1, 200), min_size=1), st.booleans(), st.integers(1, 300))
@settings(max_examples=150, deadline=None)
def test_any_records_in_any_pieces(
    records: list[dict[str, Any]], sizes: list[int], state_first: bool, block: int
) -> None:
    document = json.dumps(batch(records, state_first), ensure_ascii=False).encode()
    turns = iter(sizes * (len(document) // len(sizes) + 1))
    status, found = read_document(in_pieces(document, turns), None, block)
    assert status.total_item_count == len(found) == len(records)
    assert [item.outputs for item in found] == [
        item.get("outputParameters", {}) for item in records
    ]
    assert [item.console_output for item in found] == [
        item.get("consoleOutput", "") for item in records
    ]


@given(some_records, st.data())
@settings(max_examples=150, deadline=None)
def test_any_damage_is_an_error_or_changes_nothing_else(
    records: list[dict[str, Any]], data: st.DataObject
) -> None:
    """One byte is lost or replaced: an error of this package, or a document that says so itself."""
    document = bytearray(json.dumps(batch(records)).encode())
    place = data.draw(st.integers(0, len(document) - 1))
    if data.draw(st.booleans()):
        del document[place]
    else:
        document[place] = data.draw(st.integers(0, 255))
    try:
        read_document([bytes(document)], None)
    except MLBatchError:
        return
    json.loads(bytes(document).decode())


@given(st.binary(max_size=300) | texts.map(str.encode))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_an_error_of_ours(body: bytes) -> None:
    with pytest.raises(ContractError):
        read_document([body], None)
