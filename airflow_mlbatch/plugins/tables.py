"""Tables in storage: the inputs of a batch, and what a results task has written of it.

Law: a page reads a few rows, never a table. The paths are those that a worker has rendered; a request
names rows only. A written table is shown if its manifest names the batch, so that a table which another
run has replaced is never taken for this one's.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import msgspec

from airflow_mlbatch.datasets.locations import exists, read_bytes
from airflow_mlbatch.datasets.manifest import manifest_path
from airflow_mlbatch.datasets.parts import MANIFEST_NAME
from airflow_mlbatch.datasets.readers import open_rows, read_inputs
from airflow_mlbatch.datasets.rows import RowRange
from airflow_mlbatch.errors import DatasetError, MLBatchError
from airflow_mlbatch.operators.locations import location
from airflow_mlbatch.operators.rendered import as_columns, as_row_range
from airflow_mlbatch.plugins.servers import BusyError
from airflow_mlbatch.protocol.services import Service

__all__ = ["PAGE_ROWS", "StoredTables", "WrittenTable"]

PAGE_ROWS = 50
# What one page shows of a table; the rest is in the file.
_MOST_COLUMNS = 100
_MOST_CHARACTERS = 2_000
# A browser's numbers are doubles.
_MOST_EXACT = 2**53
_MOST_READERS = 2
_QUEUE_SECONDS = 1.0


@dataclass(frozen=True)
class WrittenTable:
    """A table that holds the records of a batch, or those of them that failed.

    :param name: ``table`` or ``rejects``
    :param path: a path object
    :param format: of the file; ``None`` where its name tells it
    :param rows: how many of its rows are this batch's
    """

    name: str
    path: Any
    format: str | None
    rows: int

    def as_dict(self) -> dict[str, Any]:
        """For the page."""
        return {"name": self.name, "path": str(self.path), "rows": self.rows}


class StoredTables:
    """Reads a few rows for a page; few readers at a time, because each holds a block of a file."""

    def __init__(self) -> None:
        self._slots = threading.BoundedSemaphore(_MOST_READERS)

    def written(
        self, writers: Sequence[Mapping[str, Any]], execution_id: str
    ) -> list[WrittenTable]:
        """The tables in which a batch was written.

        :param writers: rendered arguments of the tasks that wrote it
        :raises BusyError: other tables are being read
        :raises MLBatchError: the storage does not give them
        """
        with self._reading():
            return [table for writer in writers for table in _written(writer, execution_id)]

    def rows(self, table: WrittenTable, offset: int) -> bytes:
        """A page of rows as JSON: ``columns``, ``rows`` (a list of values each), ``offset``.

        :param offset: the first row
        :raises BusyError: other tables are being read
        :raises MLBatchError: the table cannot be read
        """
        first = min(offset, table.rows)
        wanted = RowRange(first, min(first + PAGE_ROWS, table.rows))
        with self._reading():
            opened = open_rows(table.path, None, wanted, table.format)
            with closing(opened.batches):  # type: ignore[type-var]
                names = opened.schema.names
                shown = names[:_MOST_COLUMNS]
                rows = [
                    list(map(_shown, row))
                    for batch in opened.batches
                    for row in zip(*(batch[name].to_pylist() for name in shown), strict=True)
                ]
        page = {
            "columns": shown,
            "hidden_columns": len(names) - len(shown),
            "rows": rows,
            "offset": first,
            "page_size": PAGE_ROWS,
            "total": table.rows,
        }
        return msgspec.json.encode(page, enc_hook=str)

    def inputs(
        self, fields: Mapping[str, Any], service: Service, indexes: Sequence[int]
    ) -> bytes | None:
        """The inputs of some records of a batch as JSON, from the table as it is now.

        :param fields: rendered arguments of the task that started the batch
        :param indexes: of the records, ascending
        :return: ``{"columns": …, "rows": …}`` in the order of the indexes; ``None`` where the batch was
            not made from a table
        :raises BusyError: other tables are being read
        :raises MLBatchError: the table cannot be read, or is not what it was
        """
        path = fields.get("input_path")
        if not isinstance(path, str) or not path or not service.inputs or not indexes:
            return None
        rows = as_row_range(fields.get("row_range")) or RowRange()
        last = rows.start + indexes[-1] + 1
        if rows.stop is not None and last > rows.stop:
            raise DatasetError(f"{path}: the batch has a record {indexes[-1]}, its rows end before")
        with self._reading():
            columns, _ = read_inputs(
                location(path, fields.get("input_conn_id")),
                service.inputs,
                columns=as_columns(fields.get("columns")),
                row_range=RowRange(rows.start, last),
                format=fields.get("input_format"),
                quoting=fields.get("input_quoting") or "double",
                indexes=[rows.start + index for index in indexes],
            )
        found = zip(*columns.values(), strict=True)
        page = {"columns": list(columns), "rows": [[_shown(cell) for cell in row] for row in found]}
        return msgspec.json.encode(page, enc_hook=str)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        if not self._slots.acquire(timeout=_QUEUE_SECONDS):
            raise BusyError("Airflow is reading other tables; this page tries again.")
        try:
            yield
        except (MLBatchError, OSError):
            raise
        except Exception as error:
            # A file system has errors of its own, and Airflow its own for a connection.
            raise DatasetError(f"{type(error).__name__}: {error}") from error
        finally:
            self._slots.release()


def _written(writer: Mapping[str, Any], execution_id: str) -> Iterator[WrittenTable]:
    output = location(writer["output_path"], writer.get("output_conn_id"))
    is_part = "shard" in writer
    manifest = _manifest(output / MANIFEST_NAME if is_part else manifest_path(output))
    if execution_id not in manifest.get("execution_ids", ()):
        return
    rejects_path = writer.get("rejects_path")
    rejects = rejects_path and location(rejects_path, writer.get("rejects_conn_id"))
    if not is_part:
        yield WrittenTable("table", output, writer.get("format"), manifest["rows"])
        if rejects and manifest["rejects"]:
            yield WrittenTable("rejects", rejects, None, manifest["rejects"]["rows"])
        return
    # The parts of a dataset are listed with the batches that they come from. Their names tell the format.
    for part in manifest["files"]:
        if execution_id in part["execution_ids"]:
            yield WrittenTable("table", output / part["name"], None, part["rows"])
            if rejects and part["failed"]:
                yield WrittenTable("rejects", rejects / part["name"], None, part["failed"])


def _manifest(path: Any) -> Mapping[str, Any]:
    """What a manifest says; nothing where there is none, which is so until the table is whole."""
    if not exists(path):
        return {}
    found = json.loads(read_bytes(path))
    return found if isinstance(found, dict) else {}


def _shown(value: Any) -> Any:
    """A cell as JSON; long texts are cut, and what JSON does not know is text."""
    if isinstance(value, bytes):
        value = value.hex()
    if isinstance(value, int) and abs(value) > _MOST_EXACT:
        value = str(value)
    if isinstance(value, list | dict):
        value = json.dumps(value, default=str, ensure_ascii=False)
    if isinstance(value, str) and len(value) > _MOST_CHARACTERS:
        return f"{value[:_MOST_CHARACTERS]}… ({len(value):,} characters)"
    return value
