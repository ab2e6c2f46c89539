"""Tables as a service's inputs: what is read, what is refused, and in which words."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from airflow_mlbatch.datasets import formats, locations, readers
from airflow_mlbatch.errors import DatasetError, RecordError
from airflow_mlbatch.protocol.services import Parameter
from tests.datasets.blocks import read

HP, WT = Parameter("hp", "numeric"), Parameter("wt", "numeric")
NAME, COUNT = Parameter("name", "character"), Parameter("count", "integer")


def csv(folder: Path, content: str | bytes, name: str = "cars.csv") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def parquet_file(folder: Path, **columns: Any) -> Path:
    path = folder / "cars.parquet"
    parquet.write_table(pa.table(columns), path)
    return path


# --- formats -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "named", "expected"),
    [
        ("a.csv", None, ("csv", False)),
        ("a.CSV.GZ", None, ("csv", True)),
        ("a.b.tsv", None, ("tsv", False)),
        ("a.ndjson.gz", None, ("jsonl", True)),
        ("a.pq", None, ("parquet", False)),
        ("a", "csv", ("csv", False)),
        ("a.dat.gz", "tsv", ("tsv", True)),
        ("a.dat", "csv.gz", ("csv", True)),
        ("a.csv", "parquet", ("parquet", False)),
    ],
)
def test_the_format_of_a_name(name: str, named: str | None, expected: tuple[str, bool]) -> None:
    found = formats.table_format(Path(name), named)
    assert (found.name, found.is_gzip) == expected


@pytest.mark.parametrize(
    ("name", "named", "words"),
    [
        ("a.xlsx", None, "found no known format in this name.*csv, tsv, tab, parquet"),
        ("csv", None, "found no known format"),
        ("a.csv", "excel", "format: found 'excel', expected one of csv"),
        ("a.parquet.gz", None, "Parquet file inside gzip"),
    ],
)
def test_an_unknown_format_lists_the_known(name: str, named: str | None, words: str) -> None:
    with pytest.raises(DatasetError, match=words):
        formats.table_format(Path(name), named)


def test_a_bare_text_is_no_path() -> None:
    with pytest.raises(DatasetError, match="expected an ObjectStoragePath, a UPath or a pathlib"):
        locations.resolve("x.csv")


# --- CSV -----------------------------------------------------------------------------------------


def test_names_map_inputs_to_columns(tmp_path: Path) -> None:
    path = csv(tmp_path, "id,Horses,wt\n1,110,2.6\n2,93,2.3\n")
    wire, count = readers.read_inputs(path, [HP, WT], columns={"hp": "Horses"})
    assert (wire, count) == ({"hp": [110.0, 93.0], "wt": [2.6, 2.3]}, 2)
    body, count = readers.encode_inputs(path, [HP, WT], columns={"hp": "Horses"})
    assert (body, count) == (b'[{"hp":110.0,"wt":2.6},{"hp":93.0,"wt":2.3}]', 2)


def test_two_inputs_may_come_from_one_column(tmp_path: Path) -> None:
    path = csv(tmp_path, "x\n1\n2\n")
    wire, _ = readers.read_inputs(path, [HP, WT], columns={"hp": "x", "wt": "x"})
    assert wire == {"hp": [1.0, 2.0], "wt": [1.0, 2.0]}


def test_quoted_and_bare_empty_cells_stay_apart(tmp_path: Path) -> None:
    path = csv(tmp_path, 'name,hp\n"",1\n,2\nNA,NA\n007,3\n" x ",4\n')
    wire, _ = readers.read_inputs(path, [NAME, HP])
    assert wire == {"name": ["", None, "NA", "007", " x "], "hp": [1.0, 2.0, None, 3.0, 4.0]}


def test_an_empty_cell_at_the_very_end_is_missing(tmp_path: Path) -> None:
    for end in ("", "\n", "\r\n"):
        path = csv(tmp_path, f'hp,name\n1,x\n"2",{end}')
        assert readers.read_inputs(path, [NAME])[0] == {"name": ["x", None]}
        path = csv(tmp_path, f'hp,name\n1,x\n2,""{end}')
        assert readers.read_inputs(path, [NAME])[0] == {"name": ["x", ""]}


def test_byte_order_mark_line_ends_and_quotes(tmp_path: Path) -> None:
    path = csv(tmp_path, b'\xef\xbb\xbfname,hp\r\n"a ""b"", c\r\nd",1\r\n\r\ne,2')
    wire, count = readers.read_inputs(path, [NAME, HP])
    assert count == readers.count_rows(path) == 2
    assert wire["name"] == ['a "b", c\r\nd', "e"]


def test_a_blank_line_is_a_row_of_a_table_of_one_column(tmp_path: Path) -> None:
    path = csv(tmp_path, '\ufeff\n\r\nhp\n1\n\n""\n2\n')
    assert readers.count_rows(path) == 4
    assert readers.read_inputs(path, [HP])[0] == {"hp": [1.0, None, None, 2.0]}


@pytest.mark.parametrize("content", ["hp,wt\n", "hp,wt", "\ufeffhp,wt\r\n"])
def test_a_table_without_rows(tmp_path: Path, content: str) -> None:
    path = csv(tmp_path, content)
    assert readers.count_rows(path) == 0
    assert readers.read_inputs(path, [HP, WT]) == ({"hp": [], "wt": []}, 0)
    assert readers.open_rows(path).schema.names == ["hp", "wt"]


def test_types_by_declaration(tmp_path: Path) -> None:
    path = csv(
        tmp_path,
        "flag\tcount\tname\tv\tm\tf\n"
        'TRUE\t5.0\t1e3\t"[1,""a"",null]"\t[[1,2],[3,4]]\t"{""a"":[1]}"\n'
        "0\t 7 \t\t\t\t\n",
        "t.tsv",
    )
    kinds = {"flag": "logical", "count": "integer", "name": "character"}
    kinds.update(v="vector", m="matrix", f="data.frame")
    inputs = [Parameter(name, kind) for name, kind in kinds.items()]  # type: ignore[arg-type]
    wire, _ = readers.read_inputs(path, inputs)
    assert wire == {
        "flag": [True, False],
        "count": [5, 7],
        "name": ["1e3", None],
        "v": [[1, "a", None], None],
        "m": [[[1, 2], [3, 4]], None],
        "f": [{"a": [1]}, None],
    }
    assert [type(value) for value in wire["count"]] == [int, int]


@pytest.mark.parametrize(
    ("inputs", "content", "words"),
    [
        (
            [HP],
            "hp\n1\nfast\n",
            r"cars\.csv, row 1 .line [0-9]+., field 'hp': found 'fast'.*a number",
        ),
        ([HP], "hp\ninf\n", "row 0 .line [0-9]+., field 'hp': found 'inf' .*JSON has no infinity"),
        ([HP], "hp\n1_000\n", "row 0.*found '1_000'"),
        ([HP], "hp\n9007199254740993\n", "row 0.*9007199254740993.*that a double can hold"),
        ([COUNT], "count\n1.5\n", r"row 0 .line [0-9]+., field 'count': found 1\.5 .*whole number"),
        (
            [COUNT],
            "count\n1.5e0\n",
            r"row 0 .line [0-9]+., field 'count': found 1\.5 .*whole number",
        ),
        (
            [COUNT],
            "count\n9007199254740991.5\n",
            "row 0 .line [0-9]+., field 'count': found '9007199254740991.5",
        ),
        (
            [COUNT],
            "count\n1.00000000000000000001\n",
            "row 0 .line [0-9]+., field 'count': found '1.0000",
        ),
        (
            [COUNT],
            "count\n1e-99999999999999999999\n",
            "row 0 .line [0-9]+., field 'count': found '1e-9999",
        ),
        ([COUNT], "count\n0x1F\n", "row 0 .line [0-9]+., field 'count': found '0x1F'"),
        ([COUNT], "count\n3\n9007199254740994\n", "row 1.*between -2.53 and 2.53"),
        (
            [Parameter("v", "vector")],
            "v\n[1\n",
            r"row 0 .line [0-9]+., field 'v': found '\[1'.*JSON text of a",
        ),
        (
            [Parameter("f", "logical")],
            "f\nyes\nmaybe\n",
            "row 1 .line [0-9]+., field 'f': found 'maybe'",
        ),
        ([HP, WT], "hp,weight\n1,2\n", r"field 'wt': found no such column \(there are: 'hp', 'we"),
    ],
)
def test_a_misfit_is_named(
    tmp_path: Path, inputs: list[Parameter], content: str, words: str
) -> None:
    with pytest.raises(RecordError, match=words):
        readers.read_inputs(csv(tmp_path, content), inputs)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "found an empty file, expected a line of column names"),
        (b"hp,wt,hp\n1,2,3\n", "header: found 'hp' more than once"),
        (b"hp,wt\n1,2\n\n3\n4,5\n", r"row 1 .line [0-9]+.: found 1 cells \('3'\), expected 2"),
        (b"hp,wt\n1,2,3\n", r"row 0 .line [0-9]+.: found 3 cells \('1,2,3'\), expected 2"),
        (b"hp,w\xff\n1,2\n", "header: found .*expected UTF-8"),
        (
            b"hp,wt\n" + b"1,2\n" * 5000 + b"3,\xff\n",
            r"row 5000 .line [0-9]+., column 'wt': found b'\\xff'",
        ),
    ],
)
def test_a_broken_table_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    path = csv(tmp_path, content)
    with pytest.raises(DatasetError, match=words):
        readers.read_inputs(path, [HP, WT])


def test_a_cell_larger_than_a_block(tmp_path: Path) -> None:
    long = "x" * (9 * 1024 * 1024)
    path = csv(tmp_path, f"name,hp\na,1\n{long},2\nb,3\n")
    wire, _ = readers.read_inputs(path, [NAME, HP])
    assert [len(name) for name in wire["name"]] == [1, len(long), 1]
    assert wire["hp"] == [1.0, 2.0, 3.0]


def test_a_row_far_down_is_counted_rightly(tmp_path: Path) -> None:
    rows = [f"{number},{number / 8}" for number in range(700_000)]
    rows[650_123] = "650123,slow"
    path = csv(tmp_path, "hp,wt\n" + "\n".join(rows) + "\n")
    assert path.stat().st_size > 8 * 1024 * 1024
    with pytest.raises(RecordError, match="row 650123 .line [0-9]+., field 'wt': found 'slow'"):
        readers.read_inputs(path, [HP, WT])
    with pytest.raises(RecordError, match="row 650123 .line [0-9]+., field 'wt', *|row 650123"):
        readers.read_inputs(path, [HP, WT], row_range=(650_000, 651_000))
    wire, count = readers.read_inputs(path, [HP, WT], row_range=(649_998, 650_001))
    assert (wire["hp"], count) == ([649_998.0, 649_999.0, 650_000.0], 3)


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_blank_lines_far_before_a_slice_are_no_rows(tmp_path: Path, line_end: str) -> None:
    lines = ["hp,name"]
    for number in range(60_000):
        lines += [""] * (number % 3)
        lines.append(f"{number},a name of some length {number}")
    path = csv(tmp_path, line_end.join(lines))
    assert path.stat().st_size > 1024 * 1024
    for start, stop in ((0, 3), (20_000, 20_002), (59_998, 60_000)):
        wire, _ = readers.read_inputs(path, [HP], row_range=(start, stop))
        assert wire["hp"] == [float(number) for number in range(start, stop)]


def test_blank_lines_before_a_cell_larger_than_a_block(tmp_path: Path) -> None:
    long = "x" * (9 * 1024 * 1024)
    rows = "\n\n".join(f"{number},a name of some length" for number in range(60_000))
    path = csv(tmp_path, f"hp,name\n{rows}\n60000,{long}\n60001,y\n")
    wire, _ = readers.read_inputs(path, [HP])
    assert wire["hp"] == [float(number) for number in range(60_002)]


def test_gzip(tmp_path: Path) -> None:
    packed = gzip.compress(b"hp,wt\n1,2\n") + gzip.compress(b"3,4\n")
    path = csv(tmp_path, packed, "cars.csv.gz")
    assert readers.read_inputs(path, [HP, WT])[0] == {"hp": [1.0, 3.0], "wt": [2.0, 4.0]}
    cut = csv(tmp_path, gzip.compress(b"hp,wt\n1,2\n")[:-6], "cut.csv.gz")
    with pytest.raises(DatasetError, match=r"cut\.csv\.gz: found a file that gzip cannot unpack"):
        readers.read_inputs(cut, [HP, WT])
    bare = csv(tmp_path, b"hp,wt\n1,2\n", "bare.csv.gz")
    with pytest.raises(DatasetError, match="gzip cannot unpack"):
        readers.count_rows(bare)


# --- slices --------------------------------------------------------------------------------------


@pytest.fixture(params=["csv", "csv.gz", "tsv", "parquet", "jsonl"])
def hundred(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A table of the numbers from 0 to 99, Parquet in row groups of 7."""
    path = tmp_path / f"hundred.{request.param}"
    if request.param == "parquet":
        table = pa.table({"hp": pa.array(range(100), pa.int32()), "wt": [0.5] * 100})
        parquet.write_table(table, path, row_group_size=7)
        return path
    if request.param == "jsonl":
        content = "".join(f'{{"hp": {number}, "wt": 0.5}}\n' for number in range(100))
    else:
        mark = "\t" if request.param == "tsv" else ","
        content = f"hp{mark}wt\n" + "".join(f"{number}{mark}0.5\n" for number in range(100))
    path.write_bytes(gzip.compress(content.encode()) if path.suffix == ".gz" else content.encode())
    return path


@pytest.mark.parametrize(
    "row_range", [(0, 100), (0, 0), (99, 100), (6, 8), [7, 14], (50, None), (100, 100), (3, 98)]
)
def test_a_slice(hundred: Path, row_range: Any) -> None:
    expected = list(range(100))[slice(*row_range)]
    wire, count = readers.read_inputs(hundred, [HP], row_range=row_range)
    assert (wire["hp"], count) == (expected, len(expected))
    assert [int(row["hp"]) for row in read(hundred, row_range=row_range)] == expected
    assert readers.count_rows(hundred) == 100


@pytest.mark.parametrize(
    "row_range", [(0, 101), (101, 102), (101, None), (101, 101), (90, 200), (400, 500)]
)
def test_a_slice_beyond_the_end(hundred: Path, row_range: Any) -> None:
    with pytest.raises(
        DatasetError, match=r"row_range: found \(\d+, \w+\), but hundred.* has only 100 r"
    ):
        readers.read_inputs(hundred, [HP], row_range=row_range)


@pytest.mark.parametrize(
    "row_range", [(1, 0), (-1, 2), (0, 1.5), (True, 2), "02", (1,), 3, (None, 2)]
)
def test_a_slice_that_is_none(tmp_path: Path, row_range: Any) -> None:
    with pytest.raises(DatasetError, match=r"row_range: found .*expected \(start, stop\)"):
        readers.read_inputs(tmp_path / "not-even-there.csv", [HP], row_range=row_range)


def test_some_rows_only(hundred: Path) -> None:
    wire, count = readers.read_inputs(hundred, [HP, WT], indexes=[3, 50, 99])
    assert (wire["hp"], count) == ([3, 50, 99], 3)
    wire, _ = readers.read_inputs(hundred, [HP], indexes=[12, 14], row_range=(10, 20))
    assert wire["hp"] == [12, 14]


def test_a_slice_of_parquet_reads_only_its_row_groups(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    parquet.write_table(pa.table({"hp": [float(n) for n in range(1000)]}), path, row_group_size=100)
    data = bytearray(path.read_bytes())
    group = parquet.ParquetFile(path).metadata.row_group(2).column(0)
    start = group.dictionary_page_offset or group.data_page_offset
    data[start : start + group.total_compressed_size] = b"\xff" * group.total_compressed_size
    path.write_bytes(data)
    assert readers.read_inputs(path, [HP], row_range=(500, 502))[0] == {"hp": [500.0, 501.0]}
    with pytest.raises((DatasetError, OSError)):
        readers.read_inputs(path, [HP], row_range=(200, 201))


def test_a_slice_of_text_stops_at_its_end(tmp_path: Path) -> None:
    good = "hp\n" + "1\n" * 5_000_000
    path = csv(tmp_path, good + "broken\n")
    assert readers.read_inputs(path, [HP], row_range=(0, 2))[1] == 2


# --- Parquet -------------------------------------------------------------------------------------


def test_only_the_wanted_columns_of_parquet(tmp_path: Path) -> None:
    path = parquet_file(
        tmp_path, **{"hp": [1, 2], "hp.x": [3, 4], "s": [{"x": 1}, {"x": 2}], "s.x": [5, 6]}
    )
    inputs = [HP, Parameter("s.x", "integer")]
    assert readers.read_inputs(path, inputs)[0] == {"hp": [1, 2], "s.x": [5, 6]}
    assert read(path, columns=["s.x", "hp"]) == [{"s.x": 5, "hp": 1}, {"s.x": 6, "hp": 2}]


@pytest.mark.parametrize(
    ("kind", "array", "expected"),
    [
        ("numeric", pa.array([1, None, -3], pa.int8()), [1, None, -3]),
        ("numeric", pa.array([0.1, None], pa.float32()), [0.10000000149011612, None]),
        ("numeric", pa.array([float("nan"), None, 1.5]), [None, None, 1.5]),
        ("numeric", pa.array(["1.50", None], pa.string()).cast(pa.decimal128(9, 2)), [1.5, None]),
        ("numeric", pa.array([True, None]), [1, None]),
        ("integer", pa.array([2**53, None, -(2**53)]), [2**53, None, -(2**53)]),
        ("integer", pa.array([3.0, None]), [3, None]),
        ("logical", pa.array([True, None, False]), [True, None, False]),
        ("character", pa.array(["007", None, ""]).dictionary_encode(), ["007", None, ""]),
        ("character", pa.array(["ä"], pa.large_string()), ["ä"]),
        ("character", pa.array([None, None], pa.timestamp("ns")), [None, None]),
        ("character", pa.nulls(2), [None, None]),
        ("vector", pa.array([[1.5, None], None, []]), [[1.5, None], None, []]),
        ("vector", pa.array([["a"], ["b"]], pa.list_(pa.string(), 1)), [["a"], ["b"]]),
        ("matrix", pa.array([[[1, 2]], None]), [[[1, 2]], None]),
        ("data.frame", pa.array([{"a": [1], "b": ["x"]}, None]), [{"a": [1], "b": ["x"]}, None]),
        ("data.frame", pa.array([[{"a": 1}, {"a": 2}], []]), [{"a": [1, 2]}, {"a": []}]),
        (
            "data.frame",
            pa.array([[("a", [1])]], pa.map_(pa.string(), pa.list_(pa.int64()))),
            [{"a": [1]}],
        ),
    ],
)
def test_parquet_types_that_fit(tmp_path: Path, kind: Any, array: Any, expected: list[Any]) -> None:
    path = parquet_file(tmp_path, x=array)
    assert readers.read_inputs(path, [Parameter("x", kind)])[0]["x"] == expected


@pytest.mark.parametrize(
    ("kind", "array", "words"),
    [
        ("numeric", pa.array([None, "5"]), "row 1, field 'x': found '5'"),
        ("numeric", pa.array([1.0, float("inf")]), "row 1.*finite"),
        ("numeric", pa.array([0, 2**53 + 1]), "row 1.*that a double can hold"),
        ("numeric", pa.array([0, 2**64 - 1], pa.uint64()), "row 1"),
        (
            "numeric",
            pa.array(["0.1234567890123456789"]).cast(pa.decimal128(30, 20)),
            "row 0.*that a double can hold",
        ),
        ("integer", pa.array([1, None, 2**53 + 1]), "row 2.*9007199254740993"),
        ("integer", pa.array([1.5]), "row 0.*whole number"),
        ("character", pa.array([None, 7]), "row 1.*text"),
        (
            "character",
            pa.array([None, 86_400_000_000_001], pa.timestamp("ns")),
            "row 1.*timestamp.*text",
        ),
        ("numeric", pa.array([3], pa.date32()), r"row 0.*date32.*a number"),
        ("character", pa.array([b"x"]), "row 0.*binary.*text"),
        ("vector", pa.array([[1], [2**53 + 1]]), "row 1.*double"),
        ("vector", pa.array([[1]], pa.list_(pa.timestamp("ns"))), "row 0, field 'x'"),
        ("matrix", pa.array([[[1, 2], [3]]]), "row 0.*one length"),
        ("data.frame", pa.array([{"a": [1], "b": [1, 2]}]), "row 0.*columns of one length"),
        ("logical", pa.array([True, None]).cast(pa.int64()).fill_null(2), "row 1.*true or false"),
    ],
)
def test_parquet_types_that_do_not(tmp_path: Path, kind: Any, array: Any, words: str) -> None:
    path = parquet_file(tmp_path, x=array)
    with pytest.raises(RecordError, match=words):
        readers.read_inputs(path, [Parameter("x", kind)])


def test_a_file_that_is_no_parquet(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"t\.parquet: found no Parquet file"):
        readers.count_rows(csv(tmp_path, "hp\n1\n", "t.parquet"))


# --- JSON Lines ----------------------------------------------------------------------------------


def test_json_lines(tmp_path: Path) -> None:
    content = '\ufeff{"hp": 1, "name": "2020-01-01", "v": [1, "a"]}\r\n\n  \n{"name": null, "hp": 2.5, "v": null}'
    path = csv(tmp_path, content, "t.jsonl")
    wire, count = readers.read_inputs(path, [HP, NAME, Parameter("v", "vector")])
    assert count == readers.count_rows(path) == 2
    assert wire == {"hp": [1, 2.5], "name": ["2020-01-01", None], "v": [[1, "a"], None]}


@pytest.mark.parametrize(
    ("content", "error", "words"),
    [
        ('{"hp": 1}\n\n{"hp": "2"}\n', RecordError, "row 1 .line [0-9]+., field 'hp': found '2'"),
        (
            '{"hp": 1}\n{"ph": 2}\n',
            RecordError,
            r"row 1 .line [0-9]+., field 'hp': found no such column \(there are: 'ph'",
        ),
        (
            '{"hp": 1}\n[2]\n',
            DatasetError,
            r"row 1 .line [0-9]+.: found b'\[2\]', expected a JSON object",
        ),
        ('{"hp": 1}\n{"hp": NaN}\n', DatasetError, "row 1 .line [0-9]+.: found"),
        ('{"hp": 1},\n{"hp": 2}\n', DatasetError, "row 0 .line [0-9]+.: found"),
        ('{"hp": 123456789012345678901}\n', RecordError, "row 0.*123456789012345678901"),
        ('{"hp": 1e999}\n', DatasetError, "row 0"),
        ('{"hp": {"a": 1}}\n', RecordError, "row 0 .line [0-9]+., field 'hp'.*a number"),
    ],
)
def test_json_lines_refused(tmp_path: Path, content: str, error: Any, words: str) -> None:
    with pytest.raises(error, match=words):
        readers.read_inputs(csv(tmp_path, content, "t.jsonl"), [HP])


def test_kept_columns_of_json_lines_have_one_type_each(tmp_path: Path) -> None:
    rows = [
        {"id": "007", "n": 1, "big": -(2**63), "f": {"a": [1]}, "mixed": 1, "late": None},
        {"id": "x", "n": 2.5, "big": 1, "f": {"b": [2]}, "mixed": "1", "extra": True},
        {"id": "y", "n": None, "big": None, "f": None, "mixed": [1], "late": "seen"},
    ]
    path = csv(tmp_path, "\n".join(map(json.dumps, rows)), "t.jsonl")
    schema = readers.open_rows(path).schema
    assert {field.name: str(field.type) for field in schema} == {
        "id": "string",
        "n": "double",
        "big": "int64",
        "f": "string",
        "mixed": "string",
        "late": "string",
        "extra": "bool",
    }
    found = read(path)
    assert [row["big"] for row in found] == [-(2**63), 1, None]
    assert [row["f"] for row in found] == ['{"a":[1]}', '{"b":[2]}', None]
    assert [row["mixed"] for row in found] == ["1", '"1"', "[1]"]
    assert [row["extra"] for row in found] == [None, True, None]


# --- all formats ---------------------------------------------------------------------------------


def test_columns_that_the_service_does_not_know(hundred: Path) -> None:
    with pytest.raises(
        DatasetError, match="columns: found 'power', which the service does not decl"
    ):
        readers.read_inputs(hundred, [HP], columns={"power": "hp"})
    with pytest.raises(
        RecordError, match="field 'hp': found no such column.*'wt'.*a column 'power'"
    ):
        readers.read_inputs(hundred, [HP], columns={"hp": "power"})


def test_a_service_without_inputs(hundred: Path) -> None:
    with pytest.raises(DatasetError, match="the service declares none"):
        readers.read_inputs(hundred, [])
