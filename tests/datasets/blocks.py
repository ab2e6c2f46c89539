"""Results as the server would send them, for tests of what is made of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from airflow_mlbatch.datasets import failures, formats, readers, results, scored, writers
from airflow_mlbatch.protocol.results import RecordBlock
from airflow_mlbatch.protocol.services import Parameter


def block(
    first_index: int, outputs: Mapping[str, Sequence[Any]], failed: Mapping[int, str] | None = None
) -> RecordBlock:
    """Consecutive records; ``failed`` gives messages by place in the block."""
    failed = failed or {}
    count = len(next(iter(outputs.values())))
    return RecordBlock(
        first_index=first_index,
        success=[place not in failed for place in range(count)],
        errors=[failed.get(place) for place in range(count)],
        outputs={
            name: [None if place in failed else value for place, value in enumerate(column)]
            for name, column in outputs.items()
        },
        extra_outputs=[{}] * count,
        console_output=[""] * count,
        artifacts=[()] * count,
        files=[{}] * count,
    )


def score(
    target: Any,
    outputs: Sequence[Parameter],
    blocks: Sequence[RecordBlock],
    source: Any = None,
    **options: Any,
) -> tuple[writers.WrittenTable, failures.FailureLog]:
    """Write a scored table as an operator does, however many records failed."""
    rows = None if source is None else readers.open_rows(source)
    kept = [] if rows is None else scored.chosen_columns(rows.schema.names, outputs)
    kind = formats.table_format(target).name
    table_rows = scored.ScoredRows(outputs, format=kind, rows=rows, kept=kept, **options)
    log, policy = failures.FailureLog(), failures.FailurePolicy(10**9)

    def give(take: Callable[[RecordBlock], None]) -> None:
        for one in blocks:
            take(one)

    written, _ = results.write_results(give, table_rows, target, log, policy)
    return written, log


def read(path: Any, **options: Any) -> list[dict[str, Any]]:
    """A table as a list of dicts."""
    return [row for batch in readers.open_rows(path, **options) for row in batch.to_pylist()]
