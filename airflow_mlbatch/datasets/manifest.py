"""``manifest.json``: what a written table holds, so that a reader can check it without opening it.

Law: a manifest is written after what it describes is in place, and describes nothing else. The
clock belongs to the caller.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from airflow_mlbatch.datasets.locations import StoragePath
from airflow_mlbatch.datasets.staging import write_whole
from airflow_mlbatch.datasets.writers import WrittenTable
from airflow_mlbatch.errors import DatasetError

__all__ = [
    "MANIFEST_VERSION",
    "Counts",
    "Origin",
    "manifest_path",
    "table_manifest",
    "write_manifest",
]

MANIFEST_VERSION = 1


@dataclass(frozen=True)
class Counts:
    """Records in, and what became of them: ``rows == succeeded + failed``."""

    rows: int
    succeeded: int
    failed: int


@dataclass(frozen=True)
class Origin:
    """What scored the records, and when.

    :param server: base URL of the scoring server, without credentials
    :param created_at: ISO 8601, from the caller's clock
    """

    server: str
    service_name: str
    service_version: str
    created_at: str


def manifest_path(table: StoragePath) -> StoragePath:
    """Where the manifest of a single table is: beside it, ``{table}.manifest.json``."""
    return table.parent / f"{table.name}.manifest.json"


def table_manifest(
    written: WrittenTable,
    counts: Counts,
    origin: Origin,
    *,
    execution_ids: Sequence[str],
    first_index: int = 0,
    rejects: WrittenTable | None = None,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The manifest of one table, as a JSON object.

    :param first_index: row of the input that the first row is
    :raises DatasetError: the counts do not add up to the rows of the table
    """
    if counts.rows != written.rows or counts.rows != counts.succeeded + counts.failed:
        raise DatasetError(
            f"{written.name}: found {written.rows:,} rows for {counts.rows:,} records "
            f"({counts.succeeded:,} succeeded, {counts.failed:,} failed), expected one for each"
        )
    return {
        "manifest_version": MANIFEST_VERSION,
        **asdict(counts),
        "columns": columns_object(written.columns),
        "files": [file_object(written, first_index)],
        "rejects": None if rejects is None else file_object(rejects),
        "execution_ids": list(execution_ids),
        **asdict(origin),
        **(extra or {}),
    }


def columns_object(columns: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"name": name, "type": kind} for name, kind in columns]


def file_object(written: WrittenTable, first_index: int | None = None) -> dict[str, Any]:
    """A file as a manifest lists it."""
    found: dict[str, Any] = {
        "name": written.name,
        "rows": written.rows,
        "bytes": written.bytes,
        "sha256": written.sha256,
    }
    return found if first_index is None else {**found, "first_index": first_index}


def write_manifest(
    path: StoragePath, manifest: Mapping[str, Any], attempt: str | None = None
) -> None:
    """Write a manifest in one step."""
    import json

    text = json.dumps(manifest, indent=2, ensure_ascii=False)
    write_whole(path, text.encode() + b"\n", attempt)
