"""Short ways through the sinks, for tests that are about bytes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from airflow_mlbatch.protocol.results import (
    BatchStatus,
    RecordBlock,
    RecordResult,
    ResultsSink,
    StatusSink,
    batch_document,
)
from airflow_mlbatch.protocol.scan import BLOCK
from airflow_mlbatch.protocol.services import Parameter
from airflow_mlbatch.protocol.states import BatchState


def read_status(body: bytes, *, is_whole: bool = True) -> BatchStatus:
    """The status in a document, which need not be whole."""
    sink = StatusSink()
    if not sink.feed(body) and is_whole:
        sink.close()
    return sink.status


def read_document(
    pieces: Iterable[bytes], outputs: Sequence[Parameter] | None, block: int = BLOCK
) -> tuple[BatchStatus, list[RecordResult]]:
    """Status and records of a document that arrives in pieces.

    :param block: bytes of results that are decoded at once
    """
    records: list[RecordResult] = []

    def take(block: RecordBlock) -> None:
        records.extend(block)

    sink = ResultsSink(outputs, take, block=block)
    for piece in pieces:
        sink.feed(piece)
    sink.close()
    return sink.status, records


def read_results(
    records: Sequence[bytes], outputs: Sequence[Parameter] | None
) -> list[RecordResult]:
    """Records through a whole document of a complete batch."""
    count = len(records)
    document = batch_document(BatchStatus(BatchState.COMPLETE, count, count), records)
    return read_document(document, outputs)[1]
