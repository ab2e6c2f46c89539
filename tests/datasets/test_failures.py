"""How many records may fail, what the error says, where the failed rows go."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

from airflow_mlbatch.datasets import failures, readers, scored
from airflow_mlbatch.datasets.failures import Failure, FailurePolicy
from airflow_mlbatch.errors import DatasetError, InputError, RecordsFailedError
from airflow_mlbatch.protocol.results import RecordResult
from airflow_mlbatch.protocol.services import Parameter
from tests.datasets.blocks import block, read

ANSWER = Parameter("answer", "numeric")


@pytest.mark.parametrize(
    ("limit", "failed", "total", "allowed"),
    [
        (0, 0, 10, True),
        (0, 1, 10, False),
        (3, 3, 10, True),
        (3, 4, 10, False),
        (0.1, 1, 10, True),
        (0.1, 2, 10, False),
        (0.1, 0, 0, True),
        (0.29, 29, 100, True),  # which is 28.999… in doubles
        ("0.57", 57, 100, True),
        (0.57, 58, 100, False),
        ("2", 2, 10, True),
        ("0.5", 6, 10, False),
        (0.0, 1, 10, False),
        (10**9, 5, 5, True),
    ],
)
def test_the_policy(limit: Any, failed: int, total: int, allowed: bool) -> None:
    assert FailurePolicy(limit).allows(failed, total) is allowed


@pytest.mark.parametrize("limit", [-1, 1.0, 1.5, -0.1, True, None, "many", float("nan"), [1]])
def test_a_policy_that_is_none(limit: Any) -> None:
    with pytest.raises(
        InputError, match=r"max_failed_records: found .*expected a count .*fraction"
    ):
        FailurePolicy(limit)


def test_the_error_names_the_first_failures() -> None:
    first = [Failure(n, f"boom\n{n} " + "x" * 1000, {"hp": n, "name": "y" * 200}) for n in range(9)]
    with pytest.raises(RecordsFailedError) as raised:
        FailurePolicy(0.001).judge(1234, 100_000, first, what="mtService v1.0.0")
    words = str(raised.value)
    assert words.startswith(
        "mtService v1.0.0: 1,234 of 100,000 records failed, max_failed_records=0.001 allows "
    )
    assert "the first 5 are: record 0 (hp=0, name='yyy" in words
    assert "boom 4" in words
    assert "boom 5" not in words
    assert "\n" not in words
    assert len(words) < 3000
    assert [failure["index"] for failure in raised.value.failures] == [0, 1, 2, 3, 4]
    assert str(pickle.loads(pickle.dumps(raised.value))) == words


def test_enough_succeeded() -> None:
    FailurePolicy(2).judge(2, 3, [Failure(0, "boom")])


@pytest.mark.parametrize("name", ["r.csv", "r.parquet", "r.jsonl.gz"])
def test_rejects_are_the_failed_rows_with_their_inputs(tmp_path: Path, name: str) -> None:
    source = tmp_path / "in.csv"
    source.write_text("id,hp\n" + "".join(f"00{n},{n}\n" for n in range(1000)))
    rows = readers.open_rows(source, row_range=(0, 1000))
    table = scored.ScoredRows([ANSWER], format="parquet", rows=rows, first_index=0)
    log = failures.FailureLog(["hp"])
    bad = {7: "seven", 500: 'five "hundred"', 999: ""}
    with failures.open_rejects(tmp_path / name, input_schema=rows.schema) as rejects:
        for first in range(0, 1000, 100):
            failed = {n - first: words for n, words in bad.items() if first <= n < first + 100}
            for part in table.add(block(first, {"answer": [1.0] * 100}, failed)):
                log.take(*part)
                rejects.take(*part)
    assert rejects.written is not None
    assert rejects.written.rows == 3
    assert [
        (row["id"], row["hp"], int(row["mlbatch_index"]), row["mlbatch_error"])
        for row in read(tmp_path / name)
    ] == [
        ("007", "7", 7, "seven"),
        ("00500", "500", 500, 'five "hundred"'),
        ("00999", "999", 999, ""),
    ]
    assert log.first[0] == Failure(7, "seven", {"hp": "7"})
    assert (log.failed, log.total) == (3, 1000)


@pytest.mark.parametrize("name", ["r.csv", "r.parquet", "r.jsonl"])
def test_rejects_hold_values_of_mixed_types(tmp_path: Path, name: str) -> None:
    """As JSON text in Parquet, which would refuse the column in a scored table."""
    source = tmp_path / "in.jsonl"
    source.write_text('{"x":1}\n{"x":"one"}\n')
    rows = readers.open_rows(source)
    table = scored.ScoredRows([ANSWER], format="parquet", rows=rows)
    with failures.open_rejects(tmp_path / name, input_schema=rows.schema) as rejects:
        for part in table.add(block(0, {"answer": [1.0, 1.0]}, {0: "a", 1: "b"})):
            rejects.take(*part)
    expected = ["1", '"one"']
    assert [row["x"] for row in read(tmp_path / name)] == expected


def test_rejects_without_rows_replace_those_of_an_earlier_run(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    path.write_text("stale\n1\n")
    with failures.open_rejects(path):
        pass
    assert path.read_text() == '"mlbatch_index","mlbatch_error"\n'


def test_rejects_whose_columns_clash(tmp_path: Path) -> None:
    source = tmp_path / "in.csv"
    source.write_text("mlbatch_error\nx\n")
    schema = readers.open_rows(source).schema
    with pytest.raises(DatasetError, match="rejects_path: found 'mlbatch_error' among the input"):
        failures.open_rejects(tmp_path / "r.csv", input_schema=schema)


def test_a_second_try_is_spliced_in() -> None:
    one = block(10, {"answer": [1.0, 2.0, 3.0]}, {0: "a", 2: "c"})
    spliced = failures.splice(
        one,
        {
            10: RecordResult(0, True, {"answer": 9.5, "more": 1}, artifacts=("x.png",)),
            12: RecordResult(1, False, {}, error="again"),
            99: RecordResult(2, True, {"answer": 0.0}),
        },
    )
    assert [(r.index, r.success, r.error) for r in spliced] == [
        (10, True, None),
        (11, True, None),
        (12, False, "again"),
    ]
    assert spliced.outputs == {"answer": [9.5, 2.0, None]}
    assert next(iter(spliced)).outputs == {"answer": 9.5, "more": 1}
    assert next(iter(spliced)).artifacts == ("x.png",)
    assert [result.success for result in one] == [False, True, False]
    assert failures.splice(one, {99: RecordResult(0, True)}) is one
