"""Errors about a row of a text file name its line, too."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_mlbatch.datasets import readers
from airflow_mlbatch.errors import DatasetError, InputError, RecordError
from airflow_mlbatch.protocol.services import Parameter
from tests.datasets.blocks import read
from tests.datasets.test_round_trips import folder

X, NAME = Parameter("x", "numeric"), Parameter("name", "character")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("t.csv", "id,x\n" + "1,2\n" * 17 + "1,a\n", r"row 17 \(line 19\), field 'x': found 'a'"),
        ("t.csv", '\nid,x\n\n"1\n\n",2\n\n3,a\n', r"row 1 \(line 8\), field 'x': found 'a'"),
        ("t.csv.gz", "id,x\r\n1,2\r\n1,a\r\n", r"row 1 \(line 3\), field 'x'"),
        ("t.tsv", "x\n1\n\na\n", r"row 2 \(line 4\), field 'x': found 'a'"),
        ("t.csv", "id,x\n\n1,2\n3\n", r"row 1 \(line 4\): found 1 cells"),
        (
            "t.csv",
            "id,x\n\n" + "1,2\n" * 5000 + "1,\udcff\n",
            r"row 5000 \(line 5003\), column 'x': found b'\\xff'",
        ),
        ("t.jsonl", '{"x": 1}\n\n  \n{"x": "a"}\n', r"row 1 \(line 4\), field 'x': found 'a'"),
        ("t.jsonl", '\n{"x": 1}\n[]\n', r"row 1 \(line 3\): found b'\[\]'"),
        ("t.jsonl", '\n{"y": 1}\n', r"row 0 \(line 2\), field 'x': found no such column"),
    ],
)
def test_a_row_and_its_line(tmp_path: Path, name: str, content: str, words: str) -> None:
    data = content.encode("utf-8", "surrogateescape")
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    with pytest.raises((RecordError, DatasetError), match=words):
        readers.read_inputs(tmp_path / name, [X])


def test_the_column_stands_after_the_line(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("power\na\n")
    words = (
        r"^t\.csv, row 0 \(line 2\), column 'power', field 'x': found 'a' \(str\), expected a num"
    )
    with pytest.raises(RecordError, match=words):
        readers.read_inputs(tmp_path / "t.csv", [X], columns={"x": "power"})


def test_parquet_has_no_lines(tmp_path: Path) -> None:
    parquet.write_table(pa.table({"x": ["a"]}), tmp_path / "t.parquet")
    with pytest.raises(RecordError, match=r"row 0, field 'x'"):
        readers.read_inputs(tmp_path / "t.parquet", [X])


# --- any table of text ---------------------------------------------------------------------------

cells = st.text(st.sampled_from('a1.,"\t\n\r \u0661eEnN-+é'), max_size=5)


@st.composite
def tables(draw: Any) -> list[list[str]]:
    """A header of other names than each other, and rows of as many cells, written by anybody."""
    width = draw(st.integers(1, 3))
    header = [f"c{place}" for place in range(width)]
    return [header, *draw(st.lists(st.lists(cells, min_size=width, max_size=width), max_size=5))]


@given(table=tables(), is_quoted=st.booleans(), quoting=st.sampled_from(["double", "none"]))
@settings(max_examples=250, deadline=None)
def test_any_table_of_text_comes_back_or_is_refused(
    table: list[list[str]], is_quoted: bool, quoting: Any
) -> None:
    def written(cell: str) -> str:
        return '"' + cell.replace('"', '""') + '"' if is_quoted else cell

    names = table[0]
    lines = [",".join(names), *(",".join(map(written, row)) for row in table[1:])]
    text = "".join(line + "\n" for line in lines)
    with folder() as place:
        path = place / "t.csv"
        path.write_bytes(text.encode())
        try:
            found = [list(row.values()) for row in read(path, quoting=quoting)]
            count = readers.count_rows(path, quoting=quoting)
        except InputError:
            if is_quoted and quoting == "double":
                raise  # what is quoted well is always read
            return
        assert count == len(found)
        if is_quoted and quoting == "double":
            assert found == table[1:]
            wire, _ = readers.read_inputs(path, [Parameter(name, "character") for name in names])
            assert [list(row) for row in zip(*wire.values(), strict=True)] == found
        for kind in ("logical", "integer", "numeric", "vector"):
            try:
                readers.read_inputs(path, [Parameter(names[-1], kind)], quoting=quoting)
            except InputError as error:
                if "(line " not in str(error):
                    raise
