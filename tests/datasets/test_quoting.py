"""Quotes in CSV and TSV: only around whole cells, unless they are read as ordinary text."""

from __future__ import annotations

import gzip
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_mlbatch.datasets import readers
from airflow_mlbatch.datasets.quoting import QuoteCheck, WrongQuote
from airflow_mlbatch.errors import DatasetError
from airflow_mlbatch.protocol.services import Parameter
from tests.datasets.blocks import read

SIZE = Parameter("size", "character")
MIB = 1024 * 1024


def table(folder: Path, content: str, name: str = "t.csv") -> Path:
    path = folder / name
    data = content.encode()
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


@pytest.mark.parametrize(
    ("content", "words"),
    [
        # Two inch marks: lenient readers see two rows instead of four.
        ('id,size\n1,5"\n2,"7\n3,9\n4,11\n', r"row 0 \(line 2\): found a quote inside a cell"),
        (
            'id,size\n1,"quoted" word\n',
            r"row 0 \(line 2\): found more text after the closing quote",
        ),
        ('id,size\n0,1\n"x"y,2\n', r"row 1 \(line 3\): found more text after the closing quote"),
        ('id,size\n1,"y"" z\n', r"row 0 \(line 2\): found a quoted cell that is never closed"),
        ('id,size\n1, "x"\n', r"row 0 \(line 2\): found a quote inside a cell"),
        # The mistake is in line 2, but only the next quote, in line 5, shows it.
        ('id,size\n1,"7\n\n2,8\n3,"b"\n', r"row 0 \(line 2\): found more text .* in line 5"),
        (
            'id,size\n\n\n1,2\n\n2,8"\n',
            r"row 1 \(line 6\): found a quote inside a cell \('2,8\"'\)",
        ),
        ('id,size\n1,"a\n\nb"\n2,8"', r"row 1 \(line 5\): found a quote inside a cell"),
        ('id,size\r1,2\r2,8"\r', r"row 1 \(line 3\): found a quote inside a cell"),
        ('id,size\n1,"2\n3,4\n', r"row 0 \(line 2\): found a quoted cell that is never closed"),
        ('id,"size"s\n1,2\n', r"header \(line 1\): found more text after the closing quote"),
        ('\n\nid,si"ze\n1,2\n', r"header \(line 3\): found a quote inside a cell"),
        ('id,"size\n1,2\n', r"header \(line 1\): found a quoted cell that is never closed"),
    ],
)
@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.csv.gz"])
def test_a_quote_in_the_wrong_place(tmp_path: Path, content: str, words: str, name: str) -> None:
    if ".tsv" in name:
        content, words = content.replace(",", "\t"), words.replace(",", r"\\t")
    path = table(tmp_path, content, name)
    calls: list[Any] = [
        lambda: readers.read_inputs(path, [SIZE]),
        lambda: readers.count_rows(path),
        lambda: read(path),
        lambda: readers.read_inputs(path, [SIZE], row_range=(0, 1)),
    ]
    for call in calls:
        with pytest.raises(DatasetError, match=words) as caught:
            call()
        assert str(caught.value).startswith(f"{name}, ")
        assert 'input_quoting="none" reads quotes as ordinary text' in str(caught.value)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('id,size\n1,"a ""b"", c\r\nd"\n', ['a "b", c\r\nd']),
        ('id,size\n1,""""\n2,""\n3,"""a"\n4,"a"""', ['"', "", '"a', 'a"']),
        ('\ufeff"id","size"\r\n"1","x"\r\n', ["x"]),
        ('"size"\n"x"\n\n"y"', ["x", None, "y"]),
    ],
)
def test_quotes_around_whole_cells(
    tmp_path: Path, content: str, expected: list[str | None]
) -> None:
    path = table(tmp_path, content)
    assert readers.read_inputs(path, [SIZE])[0] == {"size": expected}
    assert readers.count_rows(path) == len(expected)


def test_quotes_as_ordinary_text(tmp_path: Path) -> None:
    path = table(tmp_path, 'id,size\n1,5"\n2,"7\n3,9\n4,""\n5,\n6,"a"\n')
    expected = ['5"', '"7', "9", '""', None, '"a"']
    assert readers.read_inputs(path, [SIZE], quoting="none")[0] == {"size": expected}
    assert readers.count_rows(path, quoting="none") == 6
    assert [row["size"] for row in read(path, quoting="none")] == expected
    path = table(tmp_path, 'si"ze\n"a\n')
    assert read(path, quoting="none") == [{'si"ze': '"a'}]


def test_an_unknown_way_to_read_quotes(tmp_path: Path) -> None:
    path = table(tmp_path, "id\n1\n")
    with pytest.raises(
        DatasetError, match="input_quoting: found 'single', expected one of double, none"
    ):
        readers.count_rows(path, quoting="single")  # type: ignore[arg-type]


def test_a_wrong_quote_far_down_is_named_by_row_and_line(tmp_path: Path) -> None:
    rows = [f'{number},"a ""long"" cell of some\nlength {number}"\n' for number in range(60_000)]
    content = "id,size\n" + "".join(rows)
    path = table(tmp_path, content)
    assert path.stat().st_size > 2 * MIB
    assert readers.count_rows(path) == 60_000
    path = table(tmp_path, content + '60000,5"\n' + "".join(rows))
    with pytest.raises(DatasetError, match=r"row 60000 \(line 120002\): found a quote inside"):
        readers.count_rows(path)
    path = table(tmp_path, content + '60000,"5\n' + "1,2\n" * MIB)
    with pytest.raises(DatasetError, match=r"row 60000 \(line 120002\): found a quoted cell"):
        readers.count_rows(path)


# --- the check itself ----------------------------------------------------------------------------


def is_sound(text: str) -> bool:
    """RFC 4180, one character at a time."""
    state = "start"
    for character in text:
        is_end = character in ",\r\n"
        if state in ("start", "bare"):
            if character == '"' and state == "bare":
                return False
            state = "quoted" if character == '"' else "start" if is_end else "bare"
        elif state == "quoted":
            state = "after" if character == '"' else "quoted"
        elif character == '"':
            state = "quoted"
        elif is_end:
            state = "start"
        else:
            return False
    return state != "quoted"


def passes(pieces: list[bytes]) -> bool:
    check = QuoteCheck(",")
    try:
        for piece in pieces:
            check.take(piece)
        check.finish()
    except WrongQuote:
        return False
    return True


cells = st.sampled_from(["a", "", '""', '"a"', '"a"""', '"a,\n"', '"'])
rows = st.lists(st.tuples(cells, st.sampled_from([",", "\n", "\r\n"])), max_size=12).map(
    lambda pairs: "".join(cell + end for cell, end in pairs)
)


@given(text=rows | st.text('",\r\na', max_size=20), cuts=st.lists(st.integers(0, 30), max_size=6))
@settings(max_examples=400, deadline=None)
def test_any_pieces_of_a_file_are_judged_as_the_whole(text: str, cuts: list[int]) -> None:
    data, places = text.encode(), [0, *sorted(cuts), 1000]
    pieces = [data[start:stop] for start, stop in pairwise(places)]
    assert b"".join(pieces) == data
    assert passes(pieces) == is_sound(text)


@given(
    before=st.integers(-3, 130),
    padding=st.sampled_from(["a", ",", '"a",', '"",']),
    text=st.text('",\na', min_size=1, max_size=6),
    is_quoted=st.booleans(),
)
@settings(max_examples=100, deadline=None)
def test_quotes_around_the_edges_of_what_is_judged_together(
    before: int, padding: str, text: str, is_quoted: bool
) -> None:
    # The check judges 128 KiB at a time, in words of 64 bytes.
    length = 128 * 1024 - before
    head = (padding * length)[: length - 2] + "a,"
    if is_quoted:
        head = '"' + head.replace('"', "b")[1:]
    assert passes([(head + text).encode()]) == is_sound(head + text)
