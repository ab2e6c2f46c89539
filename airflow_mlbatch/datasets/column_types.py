"""The types of columns that a scored table keeps from CSV or TSV, where every cell is text.

Law: a column has one type in the whole table. What a few rows look like never decides: shards of one
table would differ, and so would the tables of two days.

A column that feeds an input of the service has the type that the service declares. Any other column is
text unless the author says more, because nothing else is sure to be right: ``007`` and ``1e5`` may
be codes, and a guess changes them for good. The author may name types, or ask for a look at the
whole table (``infer``). That look only takes what it can give back: ``007``, ``+5`` and numbers of
more than 15 digits stay text.

Where the scored table is CSV or TSV itself, each kept cell stays as it stands.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from airflow_mlbatch.datasets import casting
from airflow_mlbatch.datasets.formats import named_format, table_format
from airflow_mlbatch.datasets.locations import StoragePath
from airflow_mlbatch.datasets.quoting import Quoting
from airflow_mlbatch.datasets.readers import open_rows
from airflow_mlbatch.errors import DatasetError
from airflow_mlbatch.protocol.services import Parameter
from airflow_mlbatch.protocol.types import TYPES, TypeName

if TYPE_CHECKING:
    import pyarrow as pa

    from airflow_mlbatch.datasets.kinds.kind import Kind

__all__ = ["ColumnTypes", "check_column_types", "infer_types", "is_typed", "types_of_columns"]

ColumnTypes: TypeAlias = Literal["text", "infer"] | Mapping[str, TypeName]
_WORDS = ("text", "infer")
_SCALARS = tuple(name for name, row in TYPES.items() if not row.is_nested)


def check_column_types(found: Any) -> ColumnTypes:
    """Check the choice of an author.

    :param found: ``"text"``, ``"infer"``, or a type for each of some columns
    :raises DatasetError: it is something else; names the column and the types that there are
    """
    if isinstance(found, str) and found in _WORDS:
        return found  # type: ignore[return-value]
    if not isinstance(found, Mapping):
        raise DatasetError(
            f"column_types: found {found!r:.80}, expected 'text', 'infer', or a dict of columns and "
            "types"
        )
    for name, kind in found.items():
        if not isinstance(name, str) or kind not in _SCALARS:
            raise DatasetError(
                f"column_types, {name!r:.80}: found {kind!r:.80}, expected one of "
                f"{', '.join(_SCALARS)}"
            )
    return found


def is_typed(kind: Kind) -> bool:
    """Whether a format has other types than text."""
    return kind.has_column_types or kind.has_value_types


def types_of_columns(
    asked: ColumnTypes,
    path: StoragePath,
    kept: Sequence[str],
    inputs: Sequence[Parameter],
    *,
    columns: Mapping[str, str] | None = None,
    format: str | None = None,
    output_format: str = "parquet",
    quoting: Quoting = "double",
) -> dict[str, TypeName]:
    """The types of the kept columns; those that are left out are text.

    :param asked: the author's choice; ``infer`` reads the whole table
    :param path: the table
    :param kept: its columns that go into the scored table
    :param inputs: those of the service
    :param columns: the table's column for an input, where their names differ
    :param format: of the table, where its name does not tell
    :param output_format: of the scored table
    :raises DatasetError: the author names a column that is not kept, or gives types for a table that
        has its own
    """
    named = {} if isinstance(asked, str) else dict(asked)
    if is_typed(table_format(path, format).kind):
        if named:
            raise DatasetError(
                f"column_types: found types for {_listed(named)}, expected none, because {path.name} "
                "has types of its own; only CSV and TSV need them"
            )
        return {}
    strangers = [name for name in named if name not in kept]
    if strangers:
        raise DatasetError(
            f"column_types: found {_listed(strangers)}, expected columns that are kept "
            f"({_listed(kept) or 'none'})"
        )
    if not is_typed(named_format(output_format).kind):
        return {}
    types = {**_declared_types(inputs, columns or {}), **named}
    if asked == "infer":
        unknown = [name for name in kept if name not in types]
        types |= infer_types(path, unknown, format=format, quoting=quoting)
    return {name: types[name] for name in kept if name in types}


def _declared_types(inputs: Sequence[Parameter], columns: Mapping[str, str]) -> dict[str, TypeName]:
    """The type of each column that feeds an input; text where two inputs want different ones.

    Nested values stand in a cell as JSON, and stay that.
    """
    types: dict[str, TypeName] = {}
    for parameter in inputs:
        name = columns.get(parameter.name, parameter.name)
        wanted = parameter.type if parameter.type in _SCALARS else "character"
        types[name] = wanted if types.get(name, wanted) == wanted else "character"
    return types


def _listed(names: Any) -> str:
    return ", ".join(map(repr, list(names)[:30]))


# --- a look at the whole table -------------------------------------------------------------------

# Numbers as they are written back: no leading zeros, and no more digits than a double holds.
_WHOLE = r"^(0|-?[1-9][0-9]{0,14})$"
_NUMBER = r"^-?(0|[1-9][0-9]{0,14})(\.[0-9]{1,14})?([eE][+-]?[0-9]{1,2})?$"
_LONGEST_NUMBER = 16


def infer_types(
    path: StoragePath,
    names: Sequence[str],
    *,
    format: str | None = None,
    quoting: Quoting = "double",
) -> dict[str, TypeName]:
    """The types of columns of a text table, from all of its rows.

    ``logical`` where each cell is true or false, ``integer`` or ``numeric`` where each is a number
    that keeps all of its digits, otherwise ``character``. Missing values fit each type; a column of
    nothing else is ``character``.

    :param path: CSV or TSV
    :param names: the columns to look at
    :raises DatasetError: the table cannot be read
    """
    looks = {name: _Look() for name in names}
    if looks:
        for batch in open_rows(path, list(names), None, format, quoting):
            for name, look in looks.items():
                look.take(batch.column(name))
    return {name: look.type for name, look in looks.items()}


class _Look:
    """What a column can still be."""

    def __init__(self) -> None:
        self._possible: list[TypeName] = ["logical", "integer", "numeric"]
        self._is_seen = False

    @property
    def type(self) -> TypeName:
        return self._possible[0] if self._possible and self._is_seen else "character"

    def take(self, column: pa.Array) -> None:
        """Look at some more cells."""
        if not self._possible:
            return
        cells = casting.cells_of(column).drop_null()
        if len(cells):
            self._is_seen = True
            self._possible = [kind for kind in self._possible if _fits(kind, cells)]


def _fits(kind: TypeName, cells: pa.Array) -> bool:
    import pyarrow as pa
    import pyarrow.compute as pc

    if kind == "logical":
        fits = pc.is_in(pc.utf8_lower(cells), value_set=pa.array(["true", "false"]))
    elif kind == "integer":
        fits = pc.match_substring_regex(cells, _WHOLE)
    else:
        is_short = pc.less_equal(pc.utf8_length(cells), _LONGEST_NUMBER)
        fits = pc.and_(is_short, pc.match_substring_regex(cells, _NUMBER))
    return bool(pc.all(fits).as_py())
