"""Which format a table has: by the suffix of its name, or named."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from airflow_mlbatch.datasets.locations import StoragePath
from airflow_mlbatch.datasets.quoting import Quoting, check_quoting
from airflow_mlbatch.errors import DatasetError

__all__ = ["FORMATS", "FormatName", "TableFormat", "named_format", "table_format"]

FormatName: TypeAlias = Literal["csv", "tsv", "parquet", "jsonl"]
FORMATS: tuple[FormatName, ...] = get_args(FormatName)

_SUFFIXES: dict[str, FormatName] = {
    "csv": "csv",
    "tsv": "tsv",
    "tab": "tsv",
    "parquet": "parquet",
    "pq": "parquet",
    "jsonl": "jsonl",
    "ndjson": "jsonl",
}


@dataclass(frozen=True)
class TableFormat:
    """A format and whether the whole file is packed with gzip (text formats only).

    :param quoting: how quotes in CSV and TSV are read
    """

    name: FormatName
    is_gzip: bool = False
    quoting: Quoting = "double"

    @property
    def suffix(self) -> str:
        """The suffix of a file in this format, for example ``.csv.gz``."""
        return f".{self.name}.gz" if self.is_gzip else f".{self.name}"

    @property
    def delimiter(self) -> str:
        """What stands between two cells of a text table."""
        return "\t" if self.name == "tsv" else ","


def table_format(
    path: StoragePath, named: str | None = None, quoting: Quoting = "double"
) -> TableFormat:
    """The format of a file.

    :param path: anything with a ``name``; ``.gz`` at its end means gzip, whatever the format
    :param named: one of ``csv``, ``tsv``, ``parquet``, ``jsonl`` (or another known suffix, with or
        without ``.gz``); ``None`` goes by the name of the file
    :param quoting: ``double`` for quotes around cells, ``none`` where they are ordinary text
    :raises DatasetError: lists what is known
    """
    words = str(path.name).casefold().split(".")[1:]
    is_gzip = words[-1:] == ["gz"]
    name: FormatName | None
    if named is not None:
        asked = named_format(named)
        name, is_gzip = asked.name, is_gzip or asked.is_gzip
    else:
        suffix = (words[:-1] if is_gzip else words)[-1:]
        name = _SUFFIXES.get(suffix[0]) if suffix else None
        if name is None:
            raise DatasetError(
                f"{path}: found no known format in this name; expected a name that ends in one of "
                f"{_known()}, a text format also with .gz; or name the format"
            )
    if name == "parquet" and is_gzip:
        raise DatasetError(
            f"{path}: found a Parquet file inside gzip, expected plain Parquet (it packs itself)"
        )
    return TableFormat(name, is_gzip, check_quoting(quoting))


def named_format(named: str) -> TableFormat:
    """A format by its name alone, as :func:`table_format` takes it.

    :raises DatasetError: lists what is known
    """
    word, _, packed = str(named).casefold().lstrip(".").partition(".")
    name = _SUFFIXES.get(word) if packed in ("", "gz") else None
    if name is None:
        raise DatasetError(f"format: found {named!r}, expected one of {_known()}")
    if name == "parquet" and packed:
        raise DatasetError(f"format: found {named!r}, expected plain Parquet (it packs itself)")
    return TableFormat(name, is_gzip=packed == "gz")


def _known() -> str:
    return ", ".join(_SUFFIXES)
