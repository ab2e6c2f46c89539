"""A place for the results of a batch, as one value: a table by itself, or a part of a dataset.

Law: what was published there before is taken back before the first byte of its successor is in place,
so that nobody reads an old manifest beside a new table.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from airflow_mlbatch.datasets.failures import FailureLog
from airflow_mlbatch.datasets.formats import table_format
from airflow_mlbatch.datasets.locations import StoragePath
from airflow_mlbatch.datasets.manifest import (
    Counts,
    Origin,
    manifest_path,
    table_manifest,
    write_manifest,
)
from airflow_mlbatch.datasets.parts import begin_dataset, part_name, part_object
from airflow_mlbatch.datasets.writers import WrittenTable

__all__ = ["DatasetPart", "Destination", "ScoredTable", "SingleTable"]


@dataclass(frozen=True)
class ScoredTable:
    """A scored table that is in place.

    :param failures: how many records failed, and the first of them
    :param execution_ids: every batch that its rows come from
    :param first_index: row of the input that the first row is
    """

    written: WrittenTable
    rejects: WrittenTable | None
    failures: FailureLog
    execution_ids: list[str]
    first_index: int = 0

    @property
    def counts(self) -> Counts:
        """Rows, and what became of them."""
        total, failed = self.failures.total, self.failures.failed
        return Counts(total, total - failed, failed)


@dataclass(frozen=True)
class Destination(ABC):
    """Where the results of one batch go.

    :param table: the file of the table
    :param format: of the table, where its name does not tell
    :param rejects: the file of the failed rows, in the format of its name; ``None`` for none
    """

    table: StoragePath
    format: str | None = None
    rejects: StoragePath | None = None

    @property
    @abstractmethod
    def manifest(self) -> StoragePath | None:
        """The manifest that is written with the table; ``None`` where that is another task's work."""

    @property
    def format_name(self) -> str:
        """The format of the table, as an author calls it.

        :raises DatasetError: neither the argument nor the name tells a known one
        """
        return table_format(self.table, self.format).name

    def check(self) -> None:
        """Whether the formats of both files are known.

        :raises DatasetError: one of them is not
        """
        table_format(self.table, self.format)
        if self.rejects is not None:
            table_format(self.rejects)

    @abstractmethod
    def begin(self) -> None:
        """What comes before the first row is written."""

    @abstractmethod
    def publish(self, table: ScoredTable, origin: Origin, attempt: str) -> dict[str, Any]:
        """Say what is in place.

        :param attempt: names this piece of work, the same in each of its tries
        :return: what later tasks get, JSON
        """


@dataclass(frozen=True)
class SingleTable(Destination):
    """A table with its manifest beside it.

    :param paths: the places as the author named them, for the manifest
    """

    paths: Mapping[str, str | None] = field(default_factory=dict)

    @property
    def manifest(self) -> StoragePath:
        """Beside the table."""
        return manifest_path(self.table)

    def begin(self) -> None:
        """Nothing: the manifest of an earlier table goes when the new one is ready."""

    def publish(self, table: ScoredTable, origin: Origin, attempt: str) -> dict[str, Any]:
        """Write the manifest, which is also what later tasks get."""
        manifest = table_manifest(
            table.written,
            table.counts,
            origin,
            execution_ids=table.execution_ids,
            first_index=table.first_index,
            rejects=table.rejects,
            extra=self.paths,
        )
        write_manifest(self.manifest, manifest, attempt)
        return manifest


@dataclass(frozen=True)
class DatasetPart(Destination):
    """The part of one shard, in the folder of a dataset.

    :param folder: of the dataset
    :param shard: ``shard``, ``start`` and ``stop``, from the plan
    """

    folder: StoragePath = field(kw_only=True)
    shard: Mapping[str, int] = field(kw_only=True)

    @classmethod
    def of_shard(
        cls,
        shard: Mapping[str, int],
        folder: StoragePath,
        format: str = "parquet",
        rejects_folder: StoragePath | None = None,
    ) -> DatasetPart:
        """The part and its rejects have the same name, each in its own folder.

        :raises DatasetError: there is no such format
        """
        name = part_name(shard["shard"], format)
        rejects = None if rejects_folder is None else rejects_folder / name
        return cls(folder / name, format, rejects, folder=folder, shard=shard)

    @property
    def manifest(self) -> None:
        """None: the dataset has one, written by the task that publishes it."""

    def begin(self) -> None:
        """A shard that is cleared by itself: its dataset is not complete until it is committed anew."""
        begin_dataset(self.folder)

    def publish(self, table: ScoredTable, origin: Origin, attempt: str) -> dict[str, Any]:
        """Nothing yet; returns what the task that publishes the dataset has to know."""
        return part_object(
            self.shard,
            table.written,
            table.counts,
            execution_ids=table.execution_ids,
            first_failures=table.failures.first,
        )
