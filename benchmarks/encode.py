"""From a DataFrame to the body that starts a batch."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from airflow_mlbatch.protocol.services import Parameter
from benchmarks.lines import Benchmark, Line, Say, mb, ratio, seconds
from benchmarks.pieces import Stopwatch, best

INPUTS = (Parameter("hp", "numeric"), Parameter("wt", "numeric"))
ROWS = 1_000_000
_LEAST = 10


def _frame(rows: int) -> Any:
    import numpy as np
    import pandas as pd

    random = np.random.default_rng(1)
    return pd.DataFrame(
        {"hp": random.uniform(50, 350, rows).round(3), "wt": random.uniform(1.5, 5.5, rows)}
    )


def ours(rows: int) -> dict[str, Any]:
    """The package's way."""
    from airflow_mlbatch.protocol.records import encode_records

    frame = _frame(rows)
    with Stopwatch() as watch:
        body, count = encode_records(INPUTS, frame)
    assert count == rows
    return {"seconds": watch.seconds, "bytes": len(body), "last": body[-100:].decode()}


def by_hand(rows: int) -> dict[str, Any]:
    """A dict for each row, each value cast by its declared type, then ``json.dumps``."""
    frame = _frame(rows)
    with Stopwatch() as watch:
        records = []
        for row in frame.itertuples(index=False):
            record = {}
            for parameter in INPUTS:
                record[parameter.name] = _cast(parameter.type, getattr(row, parameter.name))
            records.append(record)
        body = json.dumps(records).encode()
    return {"seconds": watch.seconds, "bytes": len(body), "last": body[-100:].decode()}


_CASTS: dict[str, Callable[[Any], Any]] = {
    "numeric": float,
    "integer": int,
    "logical": bool,
    "character": str,
    "vector": list,
    "matrix": lambda value: [list(row) for row in value],
    "data.frame": dict,
}


def _cast(kind: str, value: Any) -> Any:
    return None if value is None else _CASTS[kind](value)


def _run(say: Say) -> list[Line]:
    encoded = best(3, ours, rows=ROWS)
    say(f"encode_records: {seconds(encoded['seconds'])}")
    baseline = best(2, by_hand, rows=ROWS)
    say(f"row by row: {seconds(baseline['seconds'])}")
    # Both ways said the same thing.
    assert _last(encoded) == _last(baseline)
    return [
        ratio(
            f"encode {ROWS:,} rows of two numeric columns, DataFrame to request body",
            ours=encoded["seconds"],
            theirs=baseline["seconds"],
            least=_LEAST,
            details="against `DataFrame.itertuples`, a dict for each row with each value cast by its "
            f"declared type, and `json.dumps`; peak {mb(encoded['peak_bytes'])} against "
            f"{mb(baseline['peak_bytes'])}",
        )
    ]


def _last(encoded: dict[str, Any]) -> Any:
    return json.loads("{" + encoded["last"].rpartition("{")[2][:-1])


BENCHMARK = Benchmark("encode", 10, _run)
