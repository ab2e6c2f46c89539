"""The whole job of writing a batch's results, as an operator asks for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from airflow_mlbatch.datasets import readers, scored
from airflow_mlbatch.datasets.failures import FailureLog, FailurePolicy
from airflow_mlbatch.datasets.results import write_results
from airflow_mlbatch.errors import DatasetError, RecordsFailedError
from airflow_mlbatch.protocol.results import RecordBlock
from airflow_mlbatch.protocol.services import Parameter
from tests.datasets.blocks import block, read

OUTPUTS = [Parameter("y", "numeric")]


def source(folder: Path) -> Path:
    path = folder / "in.csv"
    path.write_text("id,x\na,1\nb,2\nc,3\nd,4\n")
    return path


def four(take: Callable[[RecordBlock], None]) -> None:
    """Two blocks of two records, of which the last fails."""
    take(block(0, {"y": [1.0, 2.0]}))
    take(block(2, {"y": [3.0, 4.0]}, failed={1: "too hot"}))


def joined(path: Path) -> scored.ScoredRows:
    return scored.ScoredRows(OUTPUTS, format="csv", rows=readers.open_rows(path), kept=["id"])


def test_table_and_rejects_are_in_place_and_the_old_manifest_is_gone(tmp_path: Path) -> None:
    output, rejects, manifest = (tmp_path / name for name in ("o.csv", "r.csv", "m.json"))
    manifest.write_text("{}")
    log = FailureLog()
    written, rejected = write_results(
        four,
        joined(source(tmp_path)),
        output,
        log,
        FailurePolicy(1),
        rejects=rejects,
        manifest=manifest,
    )
    assert (written.rows, log.failed, log.total) == (4, 1, 4)
    assert rejected is not None
    assert [row["id"] for row in read(rejects)] == ["d"]
    assert [row["y"] for row in read(output)] == ["1", "2", "3", None]
    assert not manifest.exists()


def test_rejects_are_kept_when_too_many_records_failed(tmp_path: Path) -> None:
    output, rejects, manifest = (tmp_path / name for name in ("o.csv", "r.csv", "m.json"))
    output.write_text("the table of yesterday")
    manifest.write_text("its manifest")
    with pytest.raises(RecordsFailedError, match=r"execution e: 1 of 4 records failed.*id='d'"):
        write_results(
            four,
            joined(source(tmp_path)),
            output,
            FailureLog(),
            FailurePolicy(0),
            rejects=rejects,
            manifest=manifest,
            what="execution e",
        )
    assert [row["mlbatch_error"] for row in read(rejects)] == ["too hot"]
    assert output.read_text() == "the table of yesterday"
    assert manifest.read_text() == "its manifest"


def test_results_that_do_not_match_the_rows_leave_nothing(tmp_path: Path) -> None:
    output, rejects = tmp_path / "o.csv", tmp_path / "r.csv"
    with pytest.raises(DatasetError, match="found 2 results for 4 rows of input"):
        write_results(
            lambda take: take(block(0, {"y": [1.0, 2.0]})),
            joined(source(tmp_path)),
            output,
            FailureLog(),
            FailurePolicy(0),
            rejects=rejects,
        )
    assert [path.name for path in tmp_path.iterdir()] == ["in.csv"]


@pytest.mark.parametrize("blocks", [[], [block(0, {"y": []})]])
def test_a_batch_without_records_has_the_columns_once(
    tmp_path: Path, blocks: list[RecordBlock]
) -> None:
    def give(take: Callable[[RecordBlock], None]) -> None:
        for one in blocks:
            take(one)

    table = scored.ScoredRows(OUTPUTS, format="csv")
    written, rejected = write_results(
        give, table, tmp_path / "o.csv", FailureLog(), FailurePolicy(0)
    )
    assert (written.rows, rejected) == (0, None)
    assert readers.count_rows(tmp_path / "o.csv") == 0
    names = ["y", "mlbatch_index", "mlbatch_success", "mlbatch_error"]
    assert readers.open_rows(tmp_path / "o.csv").schema.names == names
