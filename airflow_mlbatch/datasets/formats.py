"""Which format a table has: by the suffix of its name, or named."""

from __future__ import annotations

from dataclasses import dataclass

from airflow_mlbatch.datasets.kinds import KINDS
from airflow_mlbatch.datasets.kinds.kind import Kind
from airflow_mlbatch.datasets.locations import StoragePath
from airflow_mlbatch.datasets.quoting import Quoting, check_quoting
from airflow_mlbatch.errors import DatasetError

__all__ = ["TableFormat", "named_format", "table_format"]

_KINDS: dict[str, Kind] = {suffix: kind for kind in KINDS for suffix in kind.suffixes}


@dataclass(frozen=True)
class TableFormat:
    """A format and whether the whole file is packed with gzip.

    :param quoting: how quotes in CSV and TSV are read
    """

    kind: Kind
    is_gzip: bool = False
    quoting: Quoting = "double"

    @property
    def name(self) -> str:
        """What an author calls it."""
        return self.kind.name

    @property
    def suffix(self) -> str:
        """The suffix of a file in this format, for example ``.csv.gz``."""
        return f".{self.name}.gz" if self.is_gzip else f".{self.name}"


def table_format(
    path: StoragePath, named: str | None = None, quoting: Quoting = "double"
) -> TableFormat:
    """The format of a file.

    :param path: anything with a ``name``; ``.gz`` at its end means gzip, whatever the format
    :param named: ``csv``, ``tsv``, ``parquet``, ``jsonl`` (or another known suffix, with or without
        ``.gz``); ``None`` goes by the name of the file
    :param quoting: ``double`` for quotes around cells, ``none`` where they are ordinary text
    :raises DatasetError: lists what is known
    """
    words = str(path.name).casefold().split(".")[1:]
    is_gzip = words[-1:] == ["gz"]
    if named is not None:
        asked = named_format(named)
        kind, is_gzip = asked.kind, is_gzip or asked.is_gzip
    else:
        suffix = (words[:-1] if is_gzip else words)[-1:]
        found = _KINDS.get(suffix[0]) if suffix else None
        if found is None:
            raise DatasetError(
                f"{path}: found no known format in this name; expected a name that ends in one of "
                f"{_known()}, a text format also with .gz; or name the format"
            )
        kind = found
    if is_gzip and not kind.has_gzip:
        raise DatasetError(
            f"{path}: found a {kind.title} file inside gzip, expected plain {kind.title} "
            "(it packs itself)"
        )
    return TableFormat(kind, is_gzip, check_quoting(quoting))


def named_format(named: str) -> TableFormat:
    """A format by its name alone, as :func:`table_format` takes it.

    :raises DatasetError: lists what is known
    """
    word, _, packed = str(named).casefold().lstrip(".").partition(".")
    kind = _KINDS.get(word) if packed in ("", "gz") else None
    if kind is None:
        raise DatasetError(f"format: found {named!r}, expected one of {_known()}")
    if packed and not kind.has_gzip:
        raise DatasetError(
            f"format: found {named!r}, expected plain {kind.title} (it packs itself)"
        )
    return TableFormat(kind, is_gzip=packed == "gz")


def _known() -> str:
    return ", ".join(_KINDS)
