"""The places that a task's arguments name, each as one value.

Law: they are built in ``execute``, once, from arguments as templates have left them. What makes no
sense is refused here, with the argument's name, before a server is asked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow_mlbatch.errors import InputError
from airflow_mlbatch.operators.locations import location
from airflow_mlbatch.operators.rendered import (
    as_columns,
    as_kept_columns,
    as_list,
    as_row_range,
    as_table,
)

if TYPE_CHECKING:
    from airflow_mlbatch.datasets.tables import InputTable

__all__ = ["input_table"]


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
