"""Files that are not what they say, and values that have no words: one clear error each."""

from __future__ import annotations

import datetime
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from airflow_mlbatch.datasets import readers, scored, writers
from airflow_mlbatch.datasets.failures import FailureLog
from airflow_mlbatch.errors import DatasetError, InputError, RecordError
from airflow_mlbatch.protocol.services import Parameter
from tests.datasets.blocks import block, read, score

X, TEXT, VECTOR = (
    Parameter(*pair) for pair in (("x", "numeric"), ("t", "character"), ("v", "vector"))
)
ANSWER = [Parameter("answer", "numeric")]


# --- Parquet whose counts disagree ---------------------------------------------------------------


def varint(number: int) -> bytes:
    """A whole number as Thrift's compact protocol writes it."""
    number <<= 1
    groups = []
    while True:
        groups.append(number & 127 | (128 if number > 127 else 0))
        number >>= 7
        if not number:
            return bytes(groups)


def two_groups(folder: Path) -> Path:
    """3,000 rows and then 2,000, whose counts are easy to find in the footer."""
    path = folder / "t.parquet"
    table = pa.table({"x": pa.array(range(5000), pa.float64()), "y": ["a"] * 5000})
    parquet.write_table(table, path, row_group_size=3000)
    return path


def patched(path: Path, place: int, old: int, new: int) -> Path:
    """Another count in the footer: the first that states 5,000 is the file's, the last is a group's."""
    data = path.read_bytes()
    size = int.from_bytes(data[-8:-4], "little")
    body, footer = data[: -8 - size], data[-8 - size :]
    mark, other = b"\x16" + varint(old), b"\x16" + varint(new)
    assert len(mark) == len(other)
    places = [at for at in range(len(footer)) if footer.startswith(mark, at)]
    at = places[place]
    path.write_bytes(body + footer[:at] + other + footer[at + len(mark) :])
    return path


def ways_to_read(path: Path) -> list[Callable[[], Any]]:
    return [
        lambda: list(readers.open_rows(path)),
        lambda: readers.read_inputs(path, [X]),
    ]


@pytest.mark.parametrize("stated", [4999, 2000, 6000])
def test_a_footer_that_states_another_number_of_rows(tmp_path: Path, stated: int) -> None:
    path = patched(two_groups(tmp_path), 0, 5000, stated)
    words = rf"t\.parquet: found a footer that states {stated:,} rows and row groups that add up to 5,000"
    for act in [*ways_to_read(path), lambda: readers.count_rows(path)]:
        with pytest.raises(DatasetError, match=words):
            act()


def test_groups_that_state_what_they_do_not_hold(tmp_path: Path) -> None:
    """The sum is right: only the columns show it."""
    path = patched(patched(two_groups(tmp_path), -1, 2000, 2500), -1, 3000, 2500)
    words = "2,500 rows stated by row group 0 and 3,000 values in its column 'x'"
    for act in ways_to_read(path):
        with pytest.raises(DatasetError, match=words):
            act()


def test_a_file_of_rows_that_states_none(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    parquet.write_table(pa.table({"x": [0.5] * 6}), path)
    patched(patched(path, -1, 6, 0), 0, 6, 0)
    for act in [*ways_to_read(path), lambda: readers.count_rows(path)]:
        with pytest.raises(DatasetError, match="found 0 rows stated by row group 0 and 6 values"):
            act()


def test_columns_of_one_group_out_of_step(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    schema = pa.schema([pa.field(name, pa.float64(), nullable=False) for name in "xy"])
    table = pa.table({"x": [0.5] * 60, "y": [1.5] * 60}, schema=schema)
    parquet.write_table(table, path, compression="none", use_dictionary=False)
    data = path.read_bytes()
    # The header of the second column's page states fewer values than its group has rows.
    mark = b"\x2c\x15" + varint(60)
    at = data.rindex(mark)
    path.write_bytes(data[:at] + b"\x2c\x15" + varint(40) + data[at + len(mark) :])
    assert readers.read_inputs(path, [X])[1] == 60
    with pytest.raises(DatasetError, match=r"t\.parquet.*(row group 0|near row 0)"):
        list(readers.open_rows(path))


# --- damaged content -----------------------------------------------------------------------------


def test_a_page_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    parquet.write_table(pa.table({"x": [0.5, 1.5] * 3000}), path, compression="zstd")
    data = bytearray(path.read_bytes())
    data[60:90] = b"\xaa" * 30
    path.write_bytes(data)
    assert readers.count_rows(path) == 6000
    for act in ways_to_read(path):
        with pytest.raises(DatasetError, match=r"t\.parquet, near row 0: found a page that cannot"):
            act()


def test_an_error_of_the_storage_is_none_of_the_file(tmp_path: Path) -> None:
    """A bucket that is away for a moment must not look like a damaged file, which is never retried."""
    from fsspec.implementations.local import LocalFileSystem

    class Failing(LocalFileSystem):  # type: ignore[misc]
        def open(self, path: str, mode: str = "rb", **options: Any) -> Any:
            return Cut(super().open(path, mode, **options))

    class Place:
        def __init__(self, path: Path) -> None:
            self.fs, self.path, self.name = Failing(), str(path), path.name

    class Cut:
        def __init__(self, file: Any) -> None:
            self._file, self._left = file, 2

        def read(self, size: int = -1) -> bytes:
            self._left -= 1
            if self._left < 0:
                raise OSError("the line to the storage was lost")
            return bytes(self._file.read(size))

        def __getattr__(self, name: str) -> Any:
            return getattr(self._file, name)

        def __enter__(self) -> Cut:
            return self

        def __exit__(self, *_: object) -> None:
            self._file.close()

    packed = tmp_path / "t.jsonl.gz"
    packed.write_bytes(gzip.compress(b'{"x": 1}\n' * 300_000, compresslevel=0))
    for path in (two_groups(tmp_path), packed):
        with pytest.raises(OSError, match="the line to the storage was lost"):
            readers.read_inputs(Place(path), [X])


def test_text_in_parquet_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    texts = pa.array([b"good", None, b"bad \xff"], pa.binary()).cast(pa.binary())
    column = pa.Array.from_buffers(pa.string(), 3, texts.buffers(), 1)
    parquet.write_table(pa.table({"x": [1.0, 2.0, 3.0], "t": column}), path)
    for act in (
        lambda: readers.read_inputs(path, [TEXT]),
        lambda: list(readers.open_rows(path)),
    ):
        with pytest.raises(
            DatasetError, match=r"row 2, column 't': found b'bad \\xff', expected UTF-8"
        ):
            act()
    assert readers.read_inputs(path, [X])[1] == 3
    nested = pa.ListArray.from_arrays(pa.array([0, 1, 3, 3], pa.int32()), column)
    parquet.write_table(pa.table({"t": nested}), path)
    with pytest.raises(
        DatasetError, match="rows 0 to 2, column 't': found values that make no sense"
    ):
        list(readers.open_rows(path))


def test_a_gzip_file_of_no_bytes_is_no_empty_table(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl.gz"
    path.write_bytes(b"")
    for act in (lambda: readers.count_rows(path), lambda: readers.read_inputs(path, [X])):
        with pytest.raises(DatasetError, match=r"t\.jsonl\.gz: found an empty file, expected gzip"):
            act()
    path.write_bytes(gzip.compress(b""))
    assert readers.count_rows(path) == 0


@pytest.mark.parametrize("depth", [300, 900, 3000, 100_000])
@pytest.mark.parametrize("pair", ["[]", "{}"])
def test_json_that_is_nested_very_deeply(tmp_path: Path, depth: int, pair: str) -> None:
    path = tmp_path / "t.jsonl"
    left = "[" if pair == "[]" else '{"a":'
    deep = left * depth + "1" + pair[1] * depth
    path.write_text(f'{{"v": [1], "x": 1}}\n{{"v": {deep}, "x": 2}}\n')
    with pytest.raises(InputError, match=r"t\.jsonl, row 1"):
        readers.read_inputs(path, [VECTOR])
    outputs, results = ANSWER, [block(0, {"answer": [0.5, 1.5]})]
    for name in ("o.jsonl", "o.csv"):
        try:
            score(tmp_path / name, outputs, results, path)
        except DatasetError as error:
            assert "nested too deeply" in str(error)  # noqa: PT017
        else:
            # What can be read is written as it was.
            assert deep in (tmp_path / name).read_text().replace('""', '"')


def test_a_text_cell_that_is_nested_very_deeply(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("v\n[1]\n" + "[" * 5000 + "]" * 5000 + "\n")
    with pytest.raises(RecordError, match=r"t\.csv, row 1 \(line [0-9]+\), field 'v'"):
        readers.read_inputs(path, [VECTOR])


@pytest.mark.timeout(100)
@pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
def test_very_many_columns(tmp_path: Path, name: str) -> None:
    """Comparing each name with each would take minutes."""
    path, count = tmp_path / name, 100_000 if name == "t.csv" else 40_000
    names = [f"column {number}" for number in range(count)]
    if name == "t.csv":
        path.write_text(",".join(names) + "\n" + ",".join(["1"] * count) + "\n")
    else:
        parquet.write_table(pa.table({one: pa.array([], pa.int8()) for one in names}), path)
    schema = readers.open_rows(path).schema
    kept = scored.chosen_columns(schema.names, ANSWER, keep_columns=names, id_columns=names[-1:])
    assert kept == [names[-1], *names[:-1]]
    inputs = [Parameter(one, "numeric") for one in names[-3:]]
    assert list(readers.read_inputs(path, inputs)[0]) == names[-3:]


def test_columns_of_one_name_are_all_named(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("b,a,b,c,a\n1,2,3,4,5\n")
    with pytest.raises(DatasetError, match="header: found 'a', 'b' more than once"):
        readers.open_rows(path)


# --- values that have no words -------------------------------------------------------------------

DAY = 24 * 60 * 60
FIRST, LAST = datetime.date.min, datetime.date.max


def typed(values: list[int | None], kind: pa.DataType) -> pa.Array:
    width = pa.int32() if kind.bit_width == 32 else pa.int64()
    return pa.array(values, width).view(kind)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (pa.timestamp("us"), 2**62),
        (pa.timestamp("us"), -(2**62)),
        (pa.timestamp("s"), (LAST.toordinal() - 719_163 + 1) * DAY),
        (pa.timestamp("s"), (FIRST.toordinal() - 719_163) * DAY - 1),
        (pa.timestamp("us", "UTC"), 2**62),
        (pa.timestamp("s", "Asia/Tokyo"), (LAST.toordinal() - 719_163 + 1) * DAY - 60),
        (pa.date32(), 2**30),
        (pa.date32(), -(2**31)),
        (pa.date64(), 2**60),
        (pa.time32("s"), DAY),
        (pa.time64("us"), -1),
    ],
)
@pytest.mark.parametrize("name", ["o.csv", "o.tsv", "o.jsonl"])
@pytest.mark.parametrize("place", ["bare", "list", "struct", "struct in list"])
def test_a_date_that_no_text_format_can_say(
    tmp_path: Path, kind: pa.DataType, value: int, name: str, place: str
) -> None:
    column = typed([0, 3600, None, value], kind)
    if place == "struct":
        column = pa.StructArray.from_arrays([column], ["at"])
    elif place != "bare":
        items = column if place == "list" else pa.StructArray.from_arrays([column], ["at"])
        column = pa.ListArray.from_arrays(pa.array([0, 1, 1, 2, 4], pa.int32()), items)
    batch = pa.record_batch({"id": pa.array(range(4)), "when": column})
    with (
        pytest.raises(DatasetError, match=r"row 3, column 'when': found -?\d+ for a value of type"),
        writers.open_table(tmp_path / name) as table,
    ):
        table.write(batch)
    assert not (tmp_path / name).exists()
    with writers.open_table(tmp_path / "o.parquet") as table:
        table.write(batch)


@pytest.mark.parametrize("name", ["o.csv", "o.jsonl"])
def test_the_first_and_the_last_date_are_written(tmp_path: Path, name: str) -> None:
    days = [FIRST, LAST, None]
    first, last = (datetime.datetime.combine(day, datetime.time()) for day in (FIRST, LAST))
    moments = [first, last, None]
    table = pa.table(
        {
            "day": pa.array(days, pa.date32()),
            "moment": pa.array(moments, pa.timestamp("us")),
            "utc": pa.array(moments, pa.timestamp("us", "UTC")),
            "zoned": pa.array(
                [-62_135_510_400, 253_402_200_000, None], pa.timestamp("s", "America/New_York")
            ),
        }
    )
    parquet.write_table(table, tmp_path / "in.parquet")
    results = [block(0, {"answer": [1.0] * 3})]
    score(tmp_path / name, ANSWER, results, tmp_path / "in.parquet")
    found = read(tmp_path / name)
    for row, day, moment in zip(found, days, moments, strict=True):
        assert row["day"] == (None if day is None else day.isoformat())
        for column in ("moment", "utc"):
            text = row[column]
            told = text and datetime.datetime.fromisoformat(text.rstrip("Z"))
            assert told == moment


def test_a_time_zone_that_nobody_knows(tmp_path: Path) -> None:
    """It breaks reading as an input, writing as text, and the sentence about a failed record."""
    source = tmp_path / "in.parquet"
    column = pa.array([0, 1], pa.int64()).view(pa.timestamp("us", "Nowhere/Atall"))
    parquet.write_table(pa.table({"when": column}), source)
    for kind in ("numeric", "character", "vector"):
        with pytest.raises(RecordError, match="row 0, field 'when': found 0 .timestamp"):
            readers.read_inputs(source, [Parameter("when", kind)])
    results = [block(0, {"answer": [1.0, 2.0]}, failed={1: "no such place"})]
    for name in ("o.csv", "o.jsonl"):
        with pytest.raises(
            DatasetError, match="column 'when', from row 0 on: found values that can"
        ):
            score(tmp_path / name, ANSWER, results, source)
    _, log = score(tmp_path / "o.parquet", ANSWER, results, source)
    assert "record 1 (when='1 (timestamp[us, tz=Nowhere/Atall])'): no such place" in str(
        log.first[0]
    )


@pytest.mark.parametrize("kind", [pa.date32(), pa.timestamp("us")])
def test_a_bad_date_as_an_input_is_quoted(tmp_path: Path, kind: pa.DataType) -> None:
    number = 2**30 if kind.bit_width == 32 else 2**62
    with writers.open_table(tmp_path / "t.parquet") as table:
        table.write(pa.record_batch({"when": typed([None, number], kind)}))
    with pytest.raises(RecordError, match=rf"row 1, field 'when': found {number} "):
        readers.read_inputs(tmp_path / "t.parquet", [Parameter("when", "numeric")])


def test_a_time_that_is_none(tmp_path: Path) -> None:
    with writers.open_table(tmp_path / "t.parquet") as table:
        table.write(pa.record_batch({"when": typed([None, 2**62], pa.time64("us"))}))
    with pytest.raises(DatasetError, match="row 1, column 'when': found values that make no sense"):
        list(readers.open_rows(tmp_path / "t.parquet"))


@pytest.mark.parametrize("kind", [pa.date32(), pa.timestamp("us"), pa.time64("us"), pa.date64()])
def test_a_bad_date_of_a_failed_record_is_quoted(kind: pa.DataType) -> None:
    number = 2**30 if kind.bit_width == 32 else 2**62
    log = FailureLog()
    own = pa.record_batch(
        {"mlbatch_index": [0, 1], "mlbatch_success": [True, False], "mlbatch_error": [None, "no"]}
    )
    log.take(own, pa.record_batch({"when": typed([None, number], kind)}))
    assert str(number) in str(log.first[0])
    json.dumps(log.first[0].as_dict())
