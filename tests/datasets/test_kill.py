"""A writer that is killed in the middle, and the retry that follows; and what a writer holds in memory.

Real processes: only SIGKILL runs no clean-up at all.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from airflow_mlbatch.datasets import locations, readers, writers
from airflow_mlbatch.datasets.staging import StagedFile
from airflow_mlbatch.errors import DatasetError
from tests.datasets.blocks import read
from tests.patience import PATIENCE

WRITER = """
import sys
import pyarrow as pa
from pathlib import Path
from airflow_mlbatch.datasets import writers

path, attempt, batches = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
with writers.open_table(path, attempt=attempt) as table:
    for number in range(batches):
        values = [number * 1000 + place for place in range(1000)]
        table.write(pa.RecordBatch.from_pydict({"n": values, "text": ["x" * 50] * 1000}))
        if number == 200:
            print("half way", flush=True)
            sys.stdin.readline()
"""


def start_writer(path: Path, attempt: str, batches: int = 400) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), attempt, str(batches)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "half way\n"
    return process


def end(process: subprocess.Popen[str], *, kill: bool) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    if kill:
        os.kill(process.pid, signal.SIGKILL)
    else:
        process.stdin.write("\n")
        process.stdin.flush()
    process.wait(PATIENCE)
    process.stdin.close()
    process.stdout.close()


@pytest.mark.parametrize("name", ["t.parquet", "t.csv", "t.jsonl.gz"])
def test_killed_in_the_middle_and_tried_again(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    first = start_writer(path, "task")
    assert not path.exists()
    [staged] = tmp_path.iterdir()
    assert staged.name.startswith(f".{name}.")
    assert staged.name.endswith(".part")
    end(first, kill=True)
    assert [file.name for file in tmp_path.iterdir()] == [staged.name]

    retry = start_writer(path, "task")
    assert not path.exists()
    assert not staged.exists()
    end(retry, kill=False)
    assert [file.name for file in tmp_path.iterdir()] == [name]
    assert readers.count_rows(path) == 400_000


def test_the_table_before_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("old\n1\n")
    process = start_writer(path, "task")
    assert path.read_text() == "old\n1\n"
    end(process, kill=True)
    assert path.read_text() == "old\n1\n"


def test_a_retry_leaves_others_alone(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    other = start_writer(path, "another task")
    mine = start_writer(path, "task")
    end(mine, kill=True)
    retry = start_writer(path, "task")
    end(retry, kill=False)
    end(other, kill=False)
    assert other.returncode == retry.returncode == 0
    assert [file.name for file in tmp_path.iterdir()] == ["t.csv"]
    assert readers.count_rows(path) == 400_000


def test_a_try_that_was_given_up_but_still_runs_cannot_win(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    zombie = StagedFile(path, "task")
    with pytest.raises(DatasetError, match="another try of the same work has begun"), zombie:
        zombie.write(b"old")
        with StagedFile(path, "task") as retry:
            retry.write(b"new")
        assert path.read_bytes() == b"new"
    assert path.read_bytes() == b"new"
    assert [file.name for file in tmp_path.iterdir()] == ["t.txt"]


def test_a_try_that_lost_its_file_to_one_given_up_is_tried_again(tmp_path: Path) -> None:
    """The one that was given up was suspended, and woke up after its retry had begun."""
    path = tmp_path / "t.txt"
    retry = StagedFile(path, "task")
    with pytest.raises(DatasetError) as lost, retry:
        retry.write(b"new")
        with pytest.raises(KeyboardInterrupt), StagedFile(path, "task") as woken:
            woken.write(b"o")
            raise KeyboardInterrupt
    assert not lost.value.is_permanent
    with StagedFile(path, "task") as again:
        again.write(b"new")
    assert path.read_bytes() == b"new"
    assert [file.name for file in tmp_path.iterdir()] == ["t.txt"]


def test_killed_before_an_upload_is_complete(s3_folder: Any, tmp_path: Path) -> None:
    """On an object store the file is spooled here, and a retry here removes what was left."""
    script = """
import os, signal, sys
from upath import UPath
from airflow_mlbatch.datasets.staging import StagedFile
path = UPath(sys.argv[1], **eval(sys.argv[2]))
with StagedFile(path, "task") as file:
    file.write(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    path = s3_folder / "t.bin"
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", script, str(path), repr(dict(s3_folder.storage_options))],
        check=False,
        env={**os.environ, "TMPDIR": str(temporary)},
        capture_output=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert len(list(temporary.iterdir())) == 1
    assert not locations.exists(path)
    finish = script.replace("os.kill(os.getpid(), signal.SIGKILL)", "file.write(b' and half')")
    subprocess.run(
        [sys.executable, "-c", finish, str(path), repr(dict(s3_folder.storage_options))],
        check=True,
        env={**os.environ, "TMPDIR": str(temporary)},
        capture_output=True,
    )
    assert list(temporary.iterdir()) == []
    assert locations.read_bytes(path) == b"half and half"


def test_no_partial_file_at_any_moment(tmp_path: Path) -> None:
    """Readers that look all the time see the old table or the new one."""
    import pyarrow as pa

    path = tmp_path / "t.parquet"
    seen: set[int] = set()
    for rows in (1, 50_000, 2, 80_000):
        with writers.open_table(path) as table:
            for start in range(0, rows, 10_000):
                size = min(10_000, rows - start)
                table.write(pa.RecordBatch.from_pydict({"n": [rows] * size}))
                if path.exists():
                    found = {row["n"] for row in read(path)}
                    assert len(found) == 1
                    assert readers.count_rows(path) in found
                    seen |= found
    assert readers.count_rows(path) == 80_000
    assert seen == {1, 50_000, 2}


MEMORY = """
import resource, sys
from pathlib import Path
import pyarrow as pa
from airflow_mlbatch.datasets import readers, scored, writers
from airflow_mlbatch.protocol.services import Parameter
from tests.datasets.blocks import block

folder, name, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
batch = pa.RecordBatch.from_pydict({"id": ["x" * 100] * 10_000, "x": [0.5] * 10_000})
with writers.open_table(folder / f"in-{name}") as table:
    for _ in range(count):
        table.write(batch)
rows = readers.open_rows(folder / f"in-{name}")
outputs = [Parameter("answer", "numeric"), Parameter("v", "vector")]
made = scored.ScoredRows(outputs, format="parquet", rows=rows, kept=["id", "x"])
with writers.open_table(folder / "out.parquet") as table:
    for number in range(count):
        for part in made.add(block(0, {"answer": [1.0] * 10_000, "v": [[1.0, 2.0]] * 10_000})):
            table.write(part.scored)
    assert not made.finish()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.mark.parametrize("name", ["t.parquet", "t.csv.gz", "t.jsonl"])
def test_memory_does_not_grow_with_the_table(tmp_path: Path, name: str) -> None:
    """110 MB of rows more make no difference to the peak of a process, in MB."""

    def peak(count: int) -> int:
        done = subprocess.run(
            [sys.executable, "-c", MEMORY, str(tmp_path), name, str(count)],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).resolve().parents[2],
        )
        return int(done.stdout)

    small, large = peak(20), peak(120)
    assert large - small < 70, (small, large)
