"""One set of rules for numbers and missing values, whichever way a value comes in.

Each cell of the table goes through every way: CSV, TSV, JSON Lines, Parquet, Python records, pandas,
and the two readers of the wire. Alone, and beside plain numbers that would take the quick way.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from airflow_mlbatch.datasets import readers
from airflow_mlbatch.errors import ContractError, DatasetError, InputError, RecordError
from airflow_mlbatch.protocol.intake import RecordReader
from airflow_mlbatch.protocol.records import encode_records
from airflow_mlbatch.protocol.results import read_record_result
from airflow_mlbatch.protocol.services import Parameter
from airflow_mlbatch.protocol.types import TypeName
from airflow_mlbatch.protocol.values import MISSING_WORDS

REFUSED = "refused"
Way = Callable[[Path, TypeName, list[str]], list[Any]]


def text_table(folder: Path, kind: TypeName, cells: list[str], name: str) -> list[Any]:
    path = folder / name
    mark = "\t" if name.endswith("tsv") else ","
    path.write_text(f"id{mark}x\n" + "".join(f"1{mark}{cell}\n" for cell in cells))
    return readers.read_inputs(path, [Parameter("x", kind)])[0]["x"]


def from_csv(folder: Path, kind: TypeName, cells: list[str]) -> list[Any]:
    return text_table(folder, kind, cells, "t.csv")


def from_tsv(folder: Path, kind: TypeName, cells: list[str]) -> list[Any]:
    return text_table(folder, kind, cells, "t.tsv")


def token(cell: str) -> str:
    """The cell as a JSON number, where it is one; as a JSON text otherwise."""
    try:
        number = json.loads(cell, parse_constant=str)
    except ValueError:
        return json.dumps(cell)
    return cell if type(number) in (int, float) else json.dumps(cell)


def from_json_lines(folder: Path, kind: TypeName, cells: list[str]) -> list[Any]:
    path = folder / "t.jsonl"
    path.write_text("".join(f'{{"x": {token(cell)}}}\n' for cell in cells))
    return readers.read_inputs(path, [Parameter("x", kind)])[0]["x"]


def python_values(cells: list[str]) -> list[Any]:
    return [json.loads(token(cell)) for cell in cells]


def sent(kind: TypeName, records: Any) -> list[Any]:
    body, _ = encode_records([Parameter("x", kind)], records)
    return [record["x"] for record in json.loads(body)]


def from_parquet(folder: Path, kind: TypeName, cells: list[str]) -> list[Any]:
    found = python_values(cells)
    # A column has one type, and Arrow's integers have an end.
    is_text = str in set(map(type, found)) or any(abs(value) >= 2**63 for value in found)
    path = folder / "t.parquet"
    parquet.write_table(pa.table({"x": list(map(str, found)) if is_text else found}), path)
    return readers.read_inputs(path, [Parameter("x", kind)])[0]["x"]


def from_records(folder: Path, kind: TypeName, cells: list[str]) -> list[Any]:
    return sent(kind, [{"x": value} for value in python_values(cells)])


def from_columns(folder: Path, kind: TypeName, cells: list[str]) -> list[Any]:
    return sent(kind, {"x": python_values(cells)})


def from_pandas(folder: Path, kind: TypeName, cells: list[str]) -> list[Any]:
    found = python_values(cells)
    # Older pandas cannot hold such a number in a column of numbers.
    is_huge = any(isinstance(value, int) and abs(value) > 1e308 for value in found)
    column = pd.Series(found, dtype=object if is_huge else None)
    return sent(kind, pd.DataFrame({"x": column}))


def by_the_server(folder: Path, kind: TypeName, cells: list[str]) -> list[Any]:
    body = "[" + ",".join(f'{{"x": {token(cell)}}}' for cell in cells) + "]"
    reader = RecordReader([Parameter("x", kind)])
    return [reader.values(record)["x"] for record in reader.split(body.encode())]


def from_the_server(folder: Path, kind: TypeName, cells: list[str]) -> list[Any]:
    outputs = [Parameter("x", kind)]
    replies = [f'{{"success": true, "outputParameters": {{"x": {token(cell)}}}}}' for cell in cells]
    return [read_record_result(reply.encode(), outputs).outputs["x"] for reply in replies]


TYPED: list[Way] = [from_json_lines, from_parquet, from_records, from_columns, from_pandas]
WIRE: list[Way] = [by_the_server, from_the_server]
TEXT: list[Way] = [from_csv, from_tsv]


CELLS: list[tuple[TypeName, str, Any]] = [
    ("integer", "5", 5),
    ("integer", "5.0", 5),
    ("integer", "5e0", 5),
    ("integer", "-0.0", 0),
    ("integer", "1.5", REFUSED),
    ("integer", "9007199254740992", 2**53),
    ("integer", "9007199254740993", REFUSED),
    ("integer", "9007199254740993.0", REFUSED),
    # The double of the line above is this one, and nobody can tell the two apart.
    ("integer", "9007199254740992.0", REFUSED),
    ("integer", "9007199254740991.0", 2**53 - 1),
    ("integer", "1e400", REFUSED),
    ("integer", "1" * 400, REFUSED),
    ("numeric", "0.1", 0.1),
    ("numeric", "9007199254740993.0", 2.0**53),
    ("numeric", "9007199254740994", 2**53 + 2),
    ("numeric", "1e400", REFUSED),
    *(
        (kind, cell, REFUSED)
        for kind in ("integer", "numeric")
        for cell in (
            *("nan(1)", "nAn", "NAN", "-nan", "+nan", "inf", "-Infinity", "iNf"),
            *("١٢", "\uff11\uff12", "1²", "१.५", "٣e٢", "\u22125"),
            *("1_000", "0x1F", "0b1", "1e", "e1", ".", "1..2", "--1", "1 2", "5d0", "true", "five"),
        )
    ),
]


def tried(way: Way, folder: Path, kind: TypeName, cells: list[str]) -> Any:
    try:
        return way(folder, kind, cells)
    except (DatasetError, InputError, ContractError):
        return REFUSED


@pytest.mark.parametrize("way", [*TEXT, *TYPED, *WIRE])
def test_a_cell_means_the_same_on_every_way(way: Way, tmp_path: Path) -> None:
    for kind, cell, expected in CELLS:
        if way is from_the_server and cell == "9007199254740994":
            continue  # a server's numbers are doubles, however they are written
        is_refused = expected == REFUSED
        for cells, values in (([cell], [expected]), (["1", cell, "2"], [1, expected, 2])):
            found = tried(way, tmp_path, kind, cells)
            assert found == (REFUSED if is_refused else values), (kind, cells)


@pytest.mark.parametrize("kind", ["logical", "integer", "numeric", "vector", "data.frame"])
@pytest.mark.parametrize("word", MISSING_WORDS)
def test_words_for_missing_values(kind: TypeName, word: str, tmp_path: Path) -> None:
    number = {"vector": '"[1]"', "data.frame": '"{""a"":[1]}"'}.get(kind, "1")
    for way in TEXT:
        assert tried(way, tmp_path, kind, [word, number, f" {word} "])[::2] == [None, None]
    # Where a format has a value of its own for it, a word is a text.
    for way in (*TYPED, *WIRE):
        if kind in ("logical", "integer", "numeric"):
            assert tried(way, tmp_path, kind, [word]) == REFUSED


@pytest.mark.parametrize("way", [from_csv, from_tsv, from_json_lines])
def test_other_words_are_not_missing(way: Way, tmp_path: Path) -> None:
    for word in ("na", "Null", "None", "-", "nil", "n/a", "#N/A", "<NA>"):
        assert tried(way, tmp_path, "numeric", [word]) == REFUSED
        assert tried(way, tmp_path, "numeric", ["1", word]) == REFUSED
        assert tried(way, tmp_path, "character", [word]) == [word]


def test_python_s_own_missing_values() -> None:
    for missing in (None, math.nan, pd.NA, pd.NaT):
        assert sent("numeric", {"x": [1.5, missing]}) == [1.5, None]
        assert sent("integer", {"x": [1, missing]}) == [1, None]


def test_a_fraction_that_a_double_has_no_place_for(tmp_path: Path) -> None:
    # Python itself reads it as the whole number, before anybody can look at its digits.
    for cell in ("4503599627370497.1", "1.00000000000000000001", "9007199254740991.5"):
        for way in (*TEXT, from_json_lines, *WIRE):
            assert tried(way, tmp_path, "integer", ["1", cell]) == REFUSED, (way, cell)
        assert tried(from_json_lines, tmp_path, "numeric", [cell]) == [float(cell)]


def test_a_number_is_shown_as_it_was_written(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"found 9007199254740993\.0 \(float\), expected a whole"):
        from_json_lines(tmp_path, "integer", ["9007199254740993.0"])
