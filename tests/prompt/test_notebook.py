"""docs/tutorials/notebook.md in a real kernel, and batches as objects."""

from __future__ import annotations

import io
import re
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from nbclient import NotebookClient

from airflow_mlbatch.errors import BatchError, BatchTimeoutError, DatasetError
from airflow_mlbatch.hooks import Batch, MLBatchHook
from airflow_mlbatch.hooks.timing import Timing
from tests.faults.server import closed_port
from tests.patience import PATIENCE, wait_until
from tests.server_process import RunningServer

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "tutorials" / "notebook.md").read_text("utf-8")
CELLS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


def run_cells(cells: list[str], folder: Path) -> nbformat.NotebookNode:
    """Run cells in a kernel of their own."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(
        notebook, timeout=PATIENCE, startup_timeout=PATIENCE, resources=resources
    ).execute()
    return notebook


def shown(cell: nbformat.NotebookNode, kind: str) -> list[str]:
    return [
        output.data[kind] for output in cell.outputs if "data" in output and kind in output.data
    ]


def test_the_page_in_a_real_kernel(
    server: RunningServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (tmp_path / "cars.csv").write_text("car,hp,wt\n<b>Mazda</b>,110,2.62\nFiat,66,2.2\n")
    known = [
        cell.replace("http://localhost:12800", server.url).replace("the password", server.password)
        for cell in CELLS
    ]
    *first, again, cancel = known
    before = run_cells(first, tmp_path)
    start, waited, framed, _, told = before.cells
    assert "('mtService', 'v1.0.0')" in "".join(shown(start, "text/plain"))
    bar, batch = shown(waited, "text/html")
    assert 'value="2" max="2"' in bar
    assert "complete" in batch
    assert "<th>answer</th>" in batch
    assert "0.9699" in "".join(shown(framed, "text/plain"))
    assert len(list(tmp_path.glob("plots/*/*.png"))) == 2
    (execution_id,) = (output.text.strip() for output in told.outputs)
    after = run_cells([known[0], again.replace("the id", execution_id), cancel], tmp_path)
    (frame,) = shown(after.cells[1], "text/plain")
    assert "Fiat" in frame
    assert shown(after.cells[2], "text/plain") == ["True"]


def test_a_batch_displays_what_a_server_says_as_text(hook: MLBatchHook) -> None:
    given = {"a": True, "b": 1, "c": 1.0, "d": "<script>alert(1)</script>" + "x" * 999, "e": [1]}
    batch = hook.score("every-type", "1", [{**given, "f": [[1]], "g": {"h": [1]}}])
    batch.wait(0.05)
    html = batch._repr_html_()
    assert "&lt;script&gt;alert(1)&lt;/script&gt;x" in html
    assert "<script" not in html
    assert len(html) < 5000
    assert batch.execution_id in repr(batch)


def test_a_batch_that_is_gone_displays_that(hook: MLBatchHook) -> None:
    batch = hook.score("double", "1", {"x": [1.0]})
    assert batch.cancel()
    assert not batch.cancel()
    assert "problem" in batch._repr_html_()


def test_a_cell_does_not_wait_for_a_server_that_is_away() -> None:
    nowhere = MLBatchHook.at(f"http://127.0.0.1:{closed_port()}", "admin", "password")
    pauses: list[float] = []
    nowhere.timing = Timing(sleep=pauses.append)
    assert "connection refused" in nowhere.batch("double", "1", "x")._repr_html_()
    assert pauses == []


def test_a_running_batch(
    hook: MLBatchHook, markers: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gate = "gate-object"
    batch = hook.score("gated", "1", {"gate": [None, gate], "x": [1.0, 2.0]})
    wait_until(lambda: batch.status().completed_item_count == 1)
    assert "1 of 2 records, 50 %" in batch._repr_html_()
    with pytest.raises(BatchTimeoutError, match="1 of 2 records"):
        batch.wait(0.05, timeout=0.01)
    for ask in (batch.to_frame, batch.results, lambda: batch.download_artifacts("nowhere")):
        with pytest.raises(BatchError, match="is not complete"):
            ask()
    assert [record.outputs for record in batch.results(partial=True)] == [{"y": 1.0}]
    (markers / gate).touch()
    assert batch.wait(0.05) is batch
    assert "records: 2 of 2, 100 %" in capsys.readouterr().err
    assert list(batch.to_frame()["y"]) == [1.0, 2.0]


def test_a_frame_keeps_its_index_and_its_columns(hook: MLBatchHook) -> None:
    cars = pd.DataFrame({"x": [4.0, -1.0], "n": [1, 2]}, index=["a", "b"])
    batch = hook.score("picky", "1", cars).wait(0.05)
    frame = batch.to_frame()
    assert list(frame.columns)[:3] == ["x", "n", "y"]
    assert list(frame.index) == ["a", "b"]
    assert list(frame["mlbatch_success"]) == [True, False]
    assert frame["mlbatch_error"]["b"].startswith("ValueError: x is negative")
    again = hook.batch("picky", "1", batch.execution_id)
    assert again.to_frame().columns[0] == "y"
    with pytest.raises(DatasetError, match="results for 3 rows"):
        again.to_frame(inputs={"x": [1.0, 2.0, 3.0]})


@pytest.mark.parametrize("suffix", ["csv", "parquet", "jsonl"])
def test_a_path_is_a_table_of_any_kind(suffix: str, hook: MLBatchHook, tmp_path: Path) -> None:
    cars = pd.DataFrame({"x": [4.0, 9.0], "n": [1, 2]})
    path = tmp_path / f"cars.{suffix}"
    text = {"csv": cars.to_csv(index=False), "jsonl": cars.to_json(orient="records", lines=True)}
    if suffix == "parquet":
        buffer = io.BytesIO()
        cars.to_parquet(buffer)
        path.write_bytes(buffer.getvalue())
    else:
        path.write_text(text[suffix])
    batch: Batch = hook.score("double", "1", path).wait(0.05)
    frame = batch.to_frame()
    assert list(frame["y"]) == [8.0, 18.0]
    assert list(frame["n"]) == [1, 2]
    execution_id = hook.start_batch("double", "1", str(path))
    hook.watch_batch("double", "1", execution_id, poll_interval=0.05)
    assert len(hook.get_batch_results("double", "1", execution_id)) == 2
