"""From a DataFrame to the body that starts a batch."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from airflow_mlbatch.protocol.services import Parameter
from benchmarks.lines import Benchmark, Line, Say, mb, ratio, seconds
from benchmarks.pieces import Stopwatch, in_turns

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


def as_vendor(rows: int) -> dict[str, Any]:
    """What the vendor's Python client does: row by row, value by value, through a table of casts."""
    frame = _frame(rows)
    declared = [{"name": parameter.name, "type": parameter.type} for parameter in INPUTS]
    with Stopwatch() as watch:
        records = []
        for row in frame.itertuples(index=True):
            pairs = []
            for parameter in declared:
                value = _cast_anew(parameter["type"], getattr(row, parameter["name"]))
                pairs.append((parameter["name"], value))
            records.append(OrderedDict(pairs))
        body = json.dumps(records).encode()
    return {"seconds": watch.seconds, "bytes": len(body), "last": body[-100:].decode()}


def by_hand(rows: int) -> dict[str, Any]:
    """The same as lean as Python can be: plain dicts, and a table that is made once."""
    frame = _frame(rows)
    with Stopwatch() as watch:
        casts = [(parameter.name, _CASTS[parameter.type]) for parameter in INPUTS]
        records = [
            {name: cast(value) for (name, cast), value in zip(casts, row, strict=True)}
            for row in frame.itertuples(index=False, name=None)
        ]
        body = json.dumps(records).encode()
    return {"seconds": watch.seconds, "bytes": len(body), "last": body[-100:].decode()}


_CASTS: dict[str, Callable[[Any], Any]] = {"numeric": float, "integer": int, "character": str}


def _cast_anew(kind: str, value: Any) -> Any:
    # The vendor's client, too, makes its table for each value.
    if value is None:
        return None
    return {
        "integer": lambda one: int(one),
        "numeric": lambda one: float(one),
        "character": lambda one: one,
        "logical": lambda one: bool(one),
        "vector": lambda one: one.tolist(),
        "matrix": lambda one: one.tolist(),
        "data.frame": lambda one: OrderedDict((name, one[name].tolist()) for name in one.columns),
    }[kind](value)


def _run(say: Say) -> list[Line]:
    rows = {"rows": ROWS}
    encoded, vendor, lean = in_turns(3, (ours, rows), (as_vendor, rows), (by_hand, rows))
    say(f"encode_records: {seconds(encoded['seconds'])}, {mb(encoded['peak_bytes'])}")
    say(f"as the vendor's client: {seconds(vendor['seconds'])}, {mb(vendor['peak_bytes'])}")
    say(f"by hand: {seconds(lean['seconds'])}, {mb(lean['peak_bytes'])}")
    # All of them said the same thing.
    assert _last(encoded) == _last(vendor) == _last(lean)
    return [
        ratio(
            f"encode {ROWS:,} rows of two numeric columns, DataFrame to request body",
            ours=encoded["seconds"],
            theirs=vendor["seconds"],
            least=_LEAST,
            details="against what the vendor's Python client does: `DataFrame.itertuples`, each value "
            "cast by its declared type, an ordered dict for each row, `json.dumps`; the leanest loop of "
            f"this kind takes {seconds(lean['seconds'])}; peak {mb(encoded['peak_bytes'])} against "
            f"{mb(vendor['peak_bytes'])}",
        )
    ]


def _last(encoded: dict[str, Any]) -> Any:
    return json.loads("{" + encoded["last"].rpartition("{")[2][:-1])


BENCHMARK = Benchmark("encode", 10, _run)
