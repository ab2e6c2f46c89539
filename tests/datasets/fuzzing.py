"""Damaged tables of every format: each is read, or refused with an error of this package.

``make fuzz SEED=… SECONDS=…`` runs this for as long as one likes; the default suite runs a little of
it. A case is made from the seed and its number alone, so that it can be repeated.
"""

from __future__ import annotations

import argparse
import faulthandler
import gzip
import io
import json
import random
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet

from airflow_mlbatch.datasets import readers, writers
from airflow_mlbatch.errors import MLBatchError
from airflow_mlbatch.protocol.services import Parameter
from airflow_mlbatch.protocol.types import TYPES

ROWS = 40
# Bytes that mean something in one of the formats.
_SPECIAL = [b'"', b",", b"\t", b"\n", b"\r", b"\x00", b"\xff", b"\xc3", b"\\", b"[" * 3000]
_SPECIAL += [b'{"a":' * 3000, b'""', b"\xef\xbb\xbf", b"\x80" * 9, b"\xff\xff\xff\x7f", b"1e999"]


def sound_files() -> dict[str, bytes]:
    """A table in every format, by file name, Parquet in several encodings."""
    rows = [_row(number) for number in range(ROWS)]
    cells = [
        [json.dumps(value) if isinstance(value, list | dict) else value for value in row.values()]
        for row in rows
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    files = {"t.jsonl": lines, "t.jsonl.gz": gzip.compress(lines, mtime=0)}
    for name, delimiter in (("t.csv", ","), ("t.tsv", "\t")):
        header = delimiter.join(rows[0]) + "\n"
        text = header + "".join(delimiter.join(map(_cell, row)) + "\n" for row in cells)
        files[name] = text.encode()
    files["t.csv.gz"] = gzip.compress(files["t.csv"], mtime=0)
    options: dict[str, dict[str, Any]] = {
        "plain": {"compression": "none", "use_dictionary": False, "write_statistics": False},
        "snappy": {"compression": "snappy", "row_group_size": 13},
        "v2": {"compression": "zstd", "data_page_version": "2.0", "data_page_size": 64},
    }
    for name, chosen in options.items():
        file = io.BytesIO()
        parquet.write_table(_typed(rows), file, **chosen)
        files[f"{name}.parquet"] = file.getvalue()
    return files


def _row(number: int) -> dict[str, Any]:
    return {
        "whole": number * 1001,
        "number": number / 8 if number % 5 else None,
        "text": f"käse {number}" if number % 3 else 'a "b",\n',
        "flag": number % 2 == 0,
        "list": [1.5, None, number],
        "frame": {"a": [number], "b": ["x"]},
    }


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return '"' + str(value).replace('"', '""') + '"' if isinstance(value, str) else str(value)


def _typed(rows: list[dict[str, Any]]) -> pa.Table:
    """The rows and columns of more types than JSON has."""
    numbers = pa.array(range(len(rows)), pa.int64())
    more = {
        "moment": numbers.cast(pa.timestamp("us")),
        "zoned": numbers.cast(pa.timestamp("ms", "Europe/Berlin")),
        "day": numbers.cast(pa.int32()).cast(pa.date32()),
        "time": numbers.cast(pa.time64("us")),
        "amount": numbers.cast(pa.decimal128(38, 2)),
        "word": pa.array([f"w{row % 4}" for row in range(len(rows))]).dictionary_encode(),
        "days": pa.array([[row, None] for row in range(len(rows))], pa.list_(pa.date32())),
    }
    table = pa.Table.from_pylist(rows)
    for name, column in more.items():
        table = table.append_column(name, column)
    return table


def damaged(chance: random.Random, data: bytes) -> bytes:
    """The data with one to four things wrong."""
    for _ in range(chance.choice([1, 1, 2, 4])):
        # Parquet keeps what matters most at its end.
        is_late = chance.random() < 0.3
        place = chance.randrange(len(data) * 2 // 3 if is_late else 0, len(data) + 1)
        size = chance.choice([1, 1, 2, 8, 100])
        data = chance.choice(_DAMAGES)(chance, data, place, size) or b"\n"
    return data


def _flipped(chance: random.Random, data: bytes, place: int, size: int) -> bytes:
    changed = bytearray(data)
    for byte in range(place, min(place + size, len(data))):
        changed[byte] ^= 1 << chance.randrange(8)
    return bytes(changed)


def _replaced(chance: random.Random, data: bytes, place: int, size: int) -> bytes:
    return data[:place] + chance.randbytes(size) + data[place + size :]


def _inserted(chance: random.Random, data: bytes, place: int, size: int) -> bytes:
    return data[:place] + chance.choice(_SPECIAL) + data[place:]


def _overwritten(chance: random.Random, data: bytes, place: int, size: int) -> bytes:
    special = chance.choice(_SPECIAL)[:9]
    return data[:place] + special + data[place + len(special) :]


def _removed(chance: random.Random, data: bytes, place: int, size: int) -> bytes:
    return data[:place] + data[place + size :]


def _repeated(chance: random.Random, data: bytes, place: int, size: int) -> bytes:
    return data[: place + size] + data[place:]


def _truncated(chance: random.Random, data: bytes, place: int, size: int) -> bytes:
    return data[:place]


_DAMAGES: list[Callable[[random.Random, bytes, int, int], bytes]] = [
    _flipped,
    _flipped,
    _replaced,
    _inserted,
    _overwritten,
    _removed,
    _repeated,
    _truncated,
]


def check(path: Path) -> str:
    """Read a table in every way; what became of it in one word.

    :raises AssertionError: two ways of reading do not agree
    :raises Exception: anything but an error of this package
    """
    count = _refused(lambda: readers.count_rows(path))
    found = _refused(lambda: _rows_of(path))
    if isinstance(found, tuple):
        schema, batches = found
        rows = sum(batch.num_rows for batch in batches)
        assert count == rows, f"counted {count}, read {rows}"
        for suffix in ("csv", "jsonl", "parquet"):
            _refused(lambda: _write(path.parent / f"out.{suffix}", schema, batches))  # noqa: B023
        _read_as_inputs(path, schema)
    return "refused" if isinstance(found, MLBatchError) else "read"


def _refused(act: Callable[[], Any]) -> Any:
    """What it gives, or this package's error."""
    try:
        return act()
    except MLBatchError as error:
        return error


def _rows_of(path: Path) -> tuple[pa.Schema, list[pa.RecordBatch]]:
    rows = readers.open_rows(path)
    return rows.schema, list(rows)


def _write(path: Path, schema: pa.Schema, batches: list[pa.RecordBatch]) -> None:
    with writers.open_table(path, schema=schema) as table:
        for batch in batches:
            table.write(batch)
    assert b"out of range" not in path.read_bytes()
    readers.count_rows(path)


def _read_as_inputs(path: Path, schema: pa.Schema) -> None:
    for name in schema.names:
        for kind in TYPES:
            inputs = [Parameter(name, kind)]
            _refused(lambda: readers.encode_inputs(path, inputs))  # noqa: B023


def cases(seed: int, files: dict[str, bytes]) -> Iterator[tuple[int, str, bytes]]:
    """Number, file name and damaged bytes, without end."""
    names = sorted(files)
    number = 0
    while True:
        chance = random.Random(f"{seed}/{number}")
        name = names[number % len(names)]
        yield number, name, damaged(chance, files[name])
        number += 1


def main() -> int:
    """Run for some seconds; the first failure keeps its file and ends the run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--seconds", type=float, default=60.0)
    asked = parser.parse_args()
    faulthandler.enable()
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    print(f"seed {asked.seed}, {asked.seconds:g} seconds, files in {folder}", flush=True)
    ends_at, told_at = time.monotonic() + asked.seconds, time.monotonic()
    results: Counter[str] = Counter()
    for number, name, data in cases(asked.seed, sound_files()):
        if time.monotonic() >= ends_at:
            break
        path = folder / name
        # Also if the process dies of it, the file is there.
        path.write_bytes(data)
        try:
            results[check(path)] += 1
        except Exception:
            traceback.print_exc()
            print(f"case {number} of seed {asked.seed} failed: {path}", flush=True)
            return 1
        if time.monotonic() - told_at >= 10:
            told_at = time.monotonic()
            print(f"{number + 1} cases: {_summary(results)}", flush=True)
    print(f"{results.total()} cases: {_summary(results)}; no other error than ours")
    return 0


def _summary(results: Counter[str]) -> str:
    return ", ".join(f"{count} {word}" for word, count in sorted(results.items()))


if __name__ == "__main__":
    sys.exit(main())
