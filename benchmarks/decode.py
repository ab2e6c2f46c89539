"""From the document of a finished batch to a Parquet file."""

from __future__ import annotations

import importlib
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airflow_mlbatch.protocol.services import Parameter
from benchmarks.lines import MB, Benchmark, Line, Say, at_most, mb, ratio, seconds
from benchmarks.pieces import Stopwatch, in_turns, run

OUTPUTS = (Parameter("answer", "numeric"),)
ROWS = 1_000_000
_PIECE = 64 * 1024
_LEAST = 8
_MOST_BYTES = 600 * MB


def make_document(path: str, rows: int) -> dict[str, Any]:
    """The reply of a server to a poll of a finished batch, in a file."""
    import random

    from airflow_mlbatch.protocol.results import BatchStatus, batch_document, write_record_result
    from airflow_mlbatch.protocol.states import BatchState

    source = random.Random(1)
    results = (
        write_record_result(success=True, outputs={"answer": source.random()}) for _ in range(rows)
    )
    status = BatchStatus(BatchState.COMPLETE, rows, rows)
    with open(path, "wb") as file:
        file.writelines(batch_document(status, results))
        return {"bytes": file.tell()}


def ours(path: str, target: str) -> dict[str, Any]:
    """The package's way: pieces as they come off a line, record batches out."""
    from airflow_mlbatch.datasets.scored import ScoredRows
    from airflow_mlbatch.datasets.writers import open_table
    from airflow_mlbatch.protocol.results import RecordBlock, ResultsSink

    _load_libraries()
    with Stopwatch() as watch:
        scored = ScoredRows(OUTPUTS, format="parquet")
        with open_table(Path(target)) as table:

            def take(block: RecordBlock) -> None:
                for batch, _ in scored.add(block):
                    table.write(batch)

            sink = ResultsSink(OUTPUTS, take)
            with open(path, "rb", buffering=0) as line:
                while piece := line.read(_PIECE):
                    sink.feed(piece)
            sink.close()
            for batch, _ in scored.finish():
                table.write(batch)
    return {"seconds": watch.seconds, **_checked(target)}


@dataclass
class RecordResponse:
    """What became of a record, as an object of its own."""

    success: bool
    error_message: str
    console_output: str
    changed_files: list[str]
    outputs: dict[str, Any]


_CASTS: dict[str, Callable[[Any], Any]] = {"numeric": float, "integer": int, "character": str}


def by_hand(path: str, target: str) -> dict[str, Any]:
    """``json.loads``, an object for each record, a DataFrame of them, ``to_parquet``."""
    import pandas as pd

    _load_libraries()
    with Stopwatch() as watch:
        with open(path, "rb") as line:
            document = json.loads(line.read())
        records = [
            RecordResponse(
                success=item["success"],
                error_message=item["errorMessage"],
                console_output=item["consoleOutput"],
                changed_files=item["changedFiles"],
                outputs={
                    parameter.name: _CASTS[parameter.type](item["outputParameters"][parameter.name])
                    for parameter in OUTPUTS
                },
            )
            for item in document["batchExecutionResults"]
        ]
        frame = pd.DataFrame(
            [
                {
                    **record.outputs,
                    "mlbatch_index": index,
                    "mlbatch_success": record.success,
                    "mlbatch_error": record.error_message or None,
                }
                for index, record in enumerate(records)
            ]
        )
        frame.to_parquet(target)
    return {"seconds": watch.seconds, **_checked(target)}


def _load_libraries() -> None:
    """What either side would load while the clock runs."""
    for name in ("pandas", "pyarrow.parquet", "fsspec.implementations.local"):
        importlib.import_module(name)


def _checked(target: str) -> dict[str, Any]:
    """What both sides must agree on."""
    import pyarrow.compute as pc
    import pyarrow.parquet as parquet

    table = parquet.read_table(target, columns=["answer", "mlbatch_index"])
    last = pc.max(table.column("mlbatch_index")).as_py()
    return {"rows": table.num_rows, "last": last, "sum": pc.sum(table.column("answer")).as_py()}


def _run(say: Say) -> list[Line]:
    with tempfile.TemporaryDirectory(prefix="mlbatch-bench-") as folder:
        path = str(Path(folder, "batch.json"))
        made = run(make_document, path=path, rows=ROWS)
        say(f"a document of {mb(made['bytes'])}")
        decoded, baseline = in_turns(
            3,
            (ours, {"path": path, "target": str(Path(folder, "ours.parquet"))}),
            (by_hand, {"path": path, "target": str(Path(folder, "by-hand.parquet"))}),
        )
        say(f"blocks to Parquet: {seconds(decoded['seconds'])}, {mb(decoded['peak_bytes'])}")
        say(f"json.loads: {seconds(baseline['seconds'])}, {mb(baseline['peak_bytes'])}")
    assert decoded["rows"] == baseline["rows"] == ROWS
    assert decoded["last"] == baseline["last"] == ROWS - 1
    assert abs(decoded["sum"] - baseline["sum"]) < 1e-6 * ROWS
    what = f"decode {ROWS:,} results ({mb(made['bytes'])}) to Parquet"
    return [
        ratio(
            what,
            ours=decoded["seconds"],
            theirs=baseline["seconds"],
            least=_LEAST,
            details="the document comes in pieces of 64 KiB from a file; against `json.loads` of the "
            "whole, a dataclass object for each record with its outputs cast by declared type, a "
            "`DataFrame` of a dict for each, and `to_parquet`",
        ),
        at_most(
            f"{what}: memory at the peak",
            decoded["peak_bytes"],
            _MOST_BYTES,
            mb,
            f"of the process; {mb(baseline['peak_bytes'])} with `json.loads`",
        ),
    ]


BENCHMARK = Benchmark("decode", 20, _run)
