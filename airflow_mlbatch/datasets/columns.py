"""Names of columns: which of them are asked for, which are missing, which occur twice.

Law: the time grows with the number of columns and not with its square. A table may have 100,000.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from airflow_mlbatch.errors import DatasetError, RecordError

__all__ = [
    "ERROR_COLUMN",
    "INDEX_COLUMN",
    "OWN_COLUMNS",
    "SUCCESS_COLUMN",
    "chosen_names",
    "listed",
    "refuse_duplicates",
    "repeated",
]

# What this package adds to a scored table.
INDEX_COLUMN, SUCCESS_COLUMN, ERROR_COLUMN = "mlbatch_index", "mlbatch_success", "mlbatch_error"
OWN_COLUMNS = (INDEX_COLUMN, SUCCESS_COLUMN, ERROR_COLUMN)

_LISTED = 30


def repeated(names: Iterable[str]) -> list[str]:
    """Names that occur more than once, sorted."""
    return sorted(name for name, count in Counter(names).items() if count > 1)


def refuse_duplicates(names: Iterable[str], where: str) -> None:
    """:raises DatasetError: a name occurs more than once"""
    twice = repeated(names)
    if twice:
        raise DatasetError(
            f"{where}: found {listed(twice)} more than once, expected each column name once"
        )


def chosen_names(
    columns: Mapping[str, str] | None, present: Sequence[str], where: str
) -> list[str]:
    """The columns to read, each once.

    :param columns: ``{what it is wanted for: column}``, ``None`` for all
    :param present: the columns of the table
    :raises RecordError: one of them is not there
    """
    if columns is None:
        return list(present)
    known = set(present)
    for field, column in columns.items():
        if column not in known:
            found = f"no such column (there are: {listed(present)})"
            raise RecordError(where, field, found, f"a column {column!r}")
    return list(dict.fromkeys(columns.values()))


def listed(names: Iterable[str]) -> str:
    """Names for a message; after the first 30 only their number."""
    names = list(names)
    more = f", and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return (", ".join(map(repr, names[:_LISTED])) + more) or "none"
