"""What a task's arguments name, each as one value: the table to read, the place for its results.

Law: they are built while a task runs, from arguments as templates have left them. What makes no sense is
refused here, with the argument's name, before a batch is started.
"""

from __future__ import annotations

from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from airflow_mlbatch.errors import InputError
from airflow_mlbatch.operators.locations import comparable, location, path_texts
from airflow_mlbatch.operators.rendered import (
    as_columns,
    as_kept_columns,
    as_list,
    as_row_range,
    as_table,
)

if TYPE_CHECKING:
    from airflow_mlbatch.datasets.destinations import DatasetPart, SingleTable
    from airflow_mlbatch.datasets.manifest import Origin
    from airflow_mlbatch.datasets.tables import InputTable

__all__ = ["check_output", "dataset_part", "input_table", "origin_of", "single_table"]


def input_table(task: Any) -> InputTable | None:
    """The table that a task reads; ``None`` without an ``input_path``.

    :param task: an operator with ``input_path``, ``input_conn_id``, ``input_format``,
        ``input_quoting`` and ``columns``. It may also have ``row_range``, ``keep_columns``,
        ``id_columns`` and ``column_types``
    :raises InputError: an argument is not what it has to be, or needs an ``input_path``
    :raises DatasetError: so are the types of columns, or the storage cannot be opened
    """
    from airflow_mlbatch.datasets.column_types import check_column_types
    from airflow_mlbatch.datasets.tables import InputTable

    ids = getattr(task, "id_columns", None)
    columns, rows = as_columns(task.columns), as_row_range(getattr(task, "row_range", None))
    kept = as_kept_columns(getattr(task, "keep_columns", "all"))
    id_columns = as_list(ids, of=str) if ids else []
    types = check_column_types(as_table(getattr(task, "column_types", "text")))
    if task.input_path is None:
        needing = {
            "columns": columns is not None,
            "row_range": rows is not None,
            "keep_columns": isinstance(kept, list),
            "id_columns": bool(id_columns),
            "column_types": types != "text",
        }
        for name, is_given in needing.items():
            if is_given:
                raise InputError(f"{name} needs input_path, the table that it is about")
        return None
    return InputTable(
        location(task.input_path, task.input_conn_id),
        task.input_format,
        task.input_quoting,
        columns,
        rows,
        kept,
        tuple(id_columns),
        types,
    )


def check_output(task: Any, source: InputTable | None) -> None:
    """Whether the results have a place of their own, or nothing asks for one.

    :param task: an operator with ``input_path``, ``output_path`` and ``rejects_path``
    :param source: from :func:`input_table`
    :raises InputError: two of the paths are the same, or an argument needs an ``output_path``
    """
    if task.output_path is None:
        needing = {
            "id_columns": source is not None and bool(source.id_columns),
            "keep_columns": source is not None and isinstance(source.keep_columns, list),
            "column_types": source is not None and source.column_types != "text",
            "rejects_path": task.rejects_path is not None,
        }
        for name, is_given in needing.items():
            if is_given:
                raise InputError(f"{name} needs output_path, the table to be written")
        return
    seen: dict[str, str] = {}
    for name in ("input_path", "output_path", "rejects_path"):
        path = getattr(task, name)
        if path is None:
            continue
        first = seen.setdefault(comparable(path), name)
        if first != name:
            raise InputError(
                f"{name}: found {str(path)!r:.200}, expected another path than {first}"
            )


def single_table(task: Any) -> SingleTable | None:
    """The table that a task writes; ``None`` without an ``output_path``.

    :param task: an operator with ``output_path``, ``output_conn_id``, ``format``, ``rejects_path`` and
        ``rejects_conn_id``
    :raises InputError, DatasetError: a storage cannot be opened
    """
    from airflow_mlbatch.datasets.destinations import SingleTable

    if task.output_path is None:
        return None
    return SingleTable(
        location(task.output_path, task.output_conn_id),
        task.format,
        _rejects(task),
        path_texts(output_path=task.output_path, rejects_path=task.rejects_path),
    )


def dataset_part(task: Any, shard: Any) -> DatasetPart:
    """The part of a shard that a task writes; the paths of the task are folders.

    :param task: as for :func:`single_table`
    :param shard: from the plan
    :raises InputError, DatasetError: a storage cannot be opened
    """
    from airflow_mlbatch.datasets.destinations import DatasetPart

    folder = location(task.output_path, task.output_conn_id)
    return DatasetPart.of_shard(shard, folder, task.format or "parquet", _rejects(task))


def origin_of(task: Any, server: str) -> Origin:
    """What scored the records, and that this is now.

    :param server: the address of the server
    """
    from airflow_mlbatch.datasets.manifest import Origin

    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return Origin(server, task.service_name, task.service_version, now)


def _rejects(task: Any) -> Any:
    if task.rejects_path is None:
        return None
    return location(task.rejects_path, task.rejects_conn_id)
