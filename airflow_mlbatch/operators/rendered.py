"""Arguments as a template leaves them.

Law: a number, a list or a dict that went through a template is text (``"5"``, ``"[0, 3]"``), unless
the Dag renders native objects; both mean the same here. What is neither is refused with the
argument's name.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any

from airflow_mlbatch.datasets.rows import RowRange, row_range_of
from airflow_mlbatch.errors import InputError

__all__ = [
    "as_columns",
    "as_kept_columns",
    "as_list",
    "as_row_range",
    "as_seconds",
    "as_table",
    "as_whole_number",
    "check_choice",
    "is_none",
]


def as_whole_number(name: str, found: Any, *, least: int = 0) -> int:
    """A whole number, also as text.

    :raises InputError: it is something else, or less than ``least``
    """
    try:
        number = int(found)
        is_whole = isinstance(found, str) or number == found
    except (TypeError, ValueError, OverflowError):
        number, is_whole = 0, False
    if not is_whole or isinstance(found, bool) or number < least:
        raise InputError(f"{name}: found {found!r:.80}, expected a whole number from {least} on")
    return number


def check_choice(name: str, found: Any, choices: Sequence[str]) -> None:
    """Refuse what is none of a few words.

    :raises InputError: it is none of them
    """
    if found not in choices:
        raise InputError(f"{name}: found {found!r:.80}, expected one of {', '.join(choices)}")


def as_seconds(name: str, found: Any) -> float:
    """A time above 0 in seconds, also as text or as a ``timedelta``.

    :raises InputError: it is something else
    """
    if isinstance(found, timedelta):
        found = found.total_seconds()
    try:
        seconds = float("nan") if isinstance(found, bool) else float(found)
    except (TypeError, ValueError):
        seconds = float("nan")
    if not 0 < seconds < float("inf"):
        raise InputError(f"{name}: found {found!r:.80}, expected a number of seconds above 0")
    return seconds


def as_list(found: Any, *, of: type | tuple[type, ...] = object) -> list[Any]:
    """A list: as it is, from the text of one, or of the single value.

    :param of: what its items are; a text is taken for a list only if all of its items are that, so
        that a glob such as ``[0-9].png`` stays one
    """
    if isinstance(found, str):
        if found.strip()[:1] in ("[", "("):
            try:
                listed = ast.literal_eval(found.strip())
            except (ValueError, SyntaxError):
                return [found]
            if isinstance(listed, list | tuple) and all(isinstance(item, of) for item in listed):
                return list(listed)
        return [found]
    if isinstance(found, Mapping) or not isinstance(found, Iterable):
        return [found]
    return list(found)


def as_kept_columns(found: Any) -> Any:
    """``"all"``, ``None``, or a list of names."""
    if is_none(found):
        return None
    return found if found == "all" else as_list(found, of=str)


def as_columns(found: Any) -> Mapping[str, str] | None:
    """The table's column for an input, also from the text of a dict.

    :raises InputError: it is something else
    """
    columns = None if is_none(found) else as_table(found)
    if columns is not None and not isinstance(columns, Mapping):
        raise InputError(
            f"columns: found {columns!r:.80}, expected a dict of the service's inputs and the "
            "table's columns"
        )
    return columns


def as_table(found: Any) -> Any:
    """Records or columns: as they are, or from the text of a list or a dict.

    ``{{ params.rows }}`` leaves Python's words, ``{{ params.rows | tojson }}`` those of JSON.
    """
    if not isinstance(found, str):
        return found
    for read in (json.loads, ast.literal_eval):
        try:
            table = read(found.strip())
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            continue
        if isinstance(table, list | dict):
            return table
    return found


def as_row_range(found: Any) -> RowRange | None:
    """A range of rows, also from the text of a list; its end may be missing (``None``).

    :raises InputError: it is something else
    """
    if is_none(found):
        return None
    pair = as_list(found, of=(int, type(None)))
    return row_range_of([_as_bound(number) for number in pair] if len(pair) == 2 else found)


def _as_bound(found: Any) -> Any:
    """A bound that was a template of its own; a value that is not a number is refused with the range."""
    if is_none(found):
        return None
    try:
        return as_whole_number("row_range", found)
    except InputError:
        return found


def is_none(found: Any) -> bool:
    """Whether nothing was given; a template makes a text of ``None``, too."""
    return found is None or (isinstance(found, str) and found in ("", "None"))
