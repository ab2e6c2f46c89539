"""Datasets as OpenLineage describes them: name, columns, statistics, and where columns come from.

Datasets are named as the naming conventions of OpenLineage say and other providers do it, so that a table
which another task wrote is the same dataset here:

============================= ============================================== =======================
storage                       namespace                                      name
============================= ============================================== =======================
this machine                  ``file``                                       ``/data/cars.csv``
``s3``, ``s3a``               ``s3://bucket``                                ``folder/cars.csv``
``gs``, ``gcs``               ``gs://bucket``                                ``folder/cars.csv``
``abfs``, ``abfss``, ``adl``, ``abfss://container@account.dfs.core…``        ``folder/cars.csv``
``az``
any other                     scheme and host, ``sftp://host``               the path
============================= ============================================== =======================
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    import pyarrow as pa
    from airflow.providers.common.compat.openlineage.facet import (
        Dataset,
        InputField,
        OutputDataset,
    )

    from airflow_mlbatch.datasets.tables import InputTable
    from airflow_mlbatch.protocol.services import Parameter, Service

__all__ = ["Column", "Origin", "Table", "dataset_name"]

log = logging.getLogger(__name__)

# Name and type.
Column = tuple[str, str]

_SCHEMES = {"s3a": "s3", "gcs": "gs"}
_AZURE = ("abfs", "abfss", "adl", "az")
# A service with a thousand inputs and a hundred outputs would make an event of 30 MB.
_MOST_SOURCES = 20_000


def dataset_name(place: Any) -> tuple[str, str]:
    """Namespace and name of a table or a folder.

    :param place: from :func:`airflow_mlbatch.hooks.locations.location`
    """
    scheme, path = place.protocol or "file", str(place.path)
    if scheme in ("file", "local"):
        return "file", os.path.abspath(path)
    parts = urlsplit(str(place))
    host = parts.netloc.rpartition("@")[2]
    key = parts.path.strip("/") or "/"
    if scheme in _AZURE:
        # A connection string names no account of its own; the client has found it.
        account = place.fs.service_client.account_name
        return f"abfss://{host}@{account}.dfs.core.windows.net", key
    if scheme in ("s3", "s3a", "gs", "gcs"):
        return f"{_SCHEMES.get(scheme, scheme)}://{host}", key
    return f"{scheme}://{host}", parts.path


@dataclass(frozen=True)
class Table:
    """A dataset.

    :param columns: none where they are not known
    :param mapped: of a table that is scored: its column for an input, where their names differ
    :param schema: of such a table
    :param kept: its columns that the scored table holds, too; ``None`` where they are not known
    """

    namespace: str
    name: str
    columns: Sequence[Column] = ()
    mapped: Mapping[str, str] = field(default_factory=dict)
    schema: pa.Schema | None = None
    kept: frozenset[str] | None = None

    @classmethod
    def of_input(cls, table: InputTable, kept_for: Sequence[Parameter] | None) -> Table:
        """A table that is scored, with all of its columns where the file states them.

        JSON Lines states none: they would be what the rows of one reading have shown.

        :param kept_for: the outputs that its columns are kept beside, ``None`` where none are kept
        :raises DatasetError: the table cannot be read
        """
        from airflow_mlbatch.datasets.formats import table_format

        name, mapped = dataset_name(table.path), dict(table.columns or {})
        if table_format(table.path, table.format).kind.has_value_types:
            return cls(*name, mapped=mapped)
        with table.open() as rows:
            schema = rows.schema
        kept = None if kept_for is None else frozenset(table.kept_columns(kept_for, schema.names))
        return cls(*name, _columns_of(schema), mapped, schema, kept)

    def with_columns(self, columns: Sequence[Column]) -> Table:
        """The same dataset, with these columns."""
        return replace(self, columns=columns)

    def rejected_columns(self) -> list[Column]:
        """The columns of its rows that failed, none where its own are not known."""
        from airflow_mlbatch.datasets.failures import rejects_schema

        if self.schema is None:
            return []
        return _columns_of(rejects_schema(self.schema))

    def as_input(self) -> Dataset:
        """For the inputs of an event."""
        from airflow.providers.common.compat.openlineage.facet import Dataset

        return Dataset(namespace=self.namespace, name=self.name, facets=self._facets())

    def as_output(
        self,
        origin: Origin | None = None,
        *,
        row_count: int | None = None,
        size: int | None = None,
        file_count: int | None = None,
    ) -> OutputDataset:
        """For the outputs of an event.

        :param origin: where its columns come from
        :param size: bytes
        """
        from airflow.providers.common.compat.openlineage.facet import (
            OutputDataset,
            OutputStatisticsOutputDatasetFacet,
        )

        counts: dict[str, Any] = {"rowCount": row_count, "size": size, "fileCount": file_count}
        known = {key: count for key, count in counts.items() if count is not None}
        statistics = OutputStatisticsOutputDatasetFacet(**known) if known else None
        return OutputDataset(
            namespace=self.namespace,
            name=self.name,
            facets={**self._facets(), **({} if origin is None else origin.facets(self))},
            outputFacets={} if statistics is None else {"outputStatistics": statistics},
        )

    def _facets(self) -> dict[str, Any]:
        from airflow.providers.common.compat.openlineage.facet import (
            SchemaDatasetFacet,
            SchemaDatasetFacetFields,
        )

        if not self.columns:
            return {}
        fields = [SchemaDatasetFacetFields(name=name, type=kind) for name, kind in self.columns]
        return {"schema": SchemaDatasetFacet(fields=fields)}

    def column(self, name: str, subtype: str, description: str = "") -> InputField:
        """One of its columns, as a source of another one.

        :param subtype: ``IDENTITY`` for the same values, else ``TRANSFORMATION``
        """
        from airflow.providers.common.compat.openlineage.facet import InputField
        from openlineage.client.facet_v2 import column_lineage_dataset

        made = column_lineage_dataset.Transformation(
            type="DIRECT", subtype=subtype, description=description, masking=False
        )
        return InputField(
            namespace=self.namespace, name=self.name, field=name, transformations=[made]
        )


@dataclass(frozen=True)
class Origin:
    """Where the columns of a table come from: every output of a service from all of its inputs.

    :param service: what scored the records; ``None`` where it is not known, or has made none of the columns
    :param source: the table that was scored
    :param results: the results on the server that the table holds
    :param console_column: the column for console output, which is no output of the service
    """

    service: Service | None
    source: Table | None
    results: Table | None
    console_column: str | None = None

    def facets(self, table: Table) -> dict[str, Any]:
        """The facet of column lineage, for a table that has columns."""
        from airflow.providers.common.compat.openlineage.facet import (
            ColumnLineageDatasetFacet,
            Fields,
        )

        inputs = 0 if self.service is None else len(self.service.inputs)
        if inputs * len(table.columns) > _MOST_SOURCES:
            log.warning(
                "OpenLineage is told no column lineage of %s: %s columns may come from %s inputs each",
                *(table.name, f"{len(table.columns):,}", f"{inputs:,}"),
            )
            return {}
        found = {name: self._sources(name) for name, _ in table.columns}
        fields = {name: Fields(inputFields=sources) for name, sources in found.items() if sources}
        return {"columnLineage": ColumnLineageDatasetFacet(fields=fields)} if fields else {}

    def _sources(self, name: str) -> list[InputField]:
        from airflow_mlbatch.datasets.columns import OWN_COLUMNS

        if name in OWN_COLUMNS or name == self.console_column:
            return []
        output = self._output_of(name)
        if output is not None:
            return [*self._from_results(output, name), *self._from_inputs()]
        return [] if self.source is None else [self.source.column(name, "IDENTITY")]

    def _from_results(self, output: str, name: str) -> list[InputField]:
        if self.results is None:
            return []
        # A column of a data.frame is no output by itself.
        return [self.results.column(output, "IDENTITY" if output == name else "TRANSFORMATION")]

    def _from_inputs(self) -> list[InputField]:
        if self.source is None or self.service is None:
            return []
        description = f"scored by {self.service.name}, version {self.service.version}"
        columns = [self.source.mapped.get(each.name, each.name) for each in self.service.inputs]
        return [self.source.column(name, "TRANSFORMATION", description) for name in columns]

    def _output_of(self, name: str) -> str | None:
        """The output that a column holds; ``None`` for one that was kept."""
        outputs = () if self.service is None else self.service.outputs
        kept = () if self.source is None else self.source.kept or ()
        for output in outputs:
            # A data.frame of one row is spread over columns.
            is_spread = output.type == "data.frame" and name.startswith(f"{output.name}_")
            if name == output.name or (is_spread and name not in kept):
                return output.name
        return None


def _columns_of(schema: pa.Schema) -> list[Column]:
    return [(each.name, str(each.type)) for each in schema]
