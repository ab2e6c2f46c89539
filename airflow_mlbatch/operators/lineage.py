"""What tasks tell OpenLineage: tables in and out, their columns, and which come from which.

Law: OpenLineage's provider calls this after a task, and only where it is installed. Nothing of it is
imported before that. Lineage never fails a task: what cannot be found out is left out, with a warning.

The provider asks in a copy of the task's process, where object storage cannot be read any more. So a task
remembers what only it can find out (:meth:`Lineage._note_lineage`), and only where somebody will ask.

The results of a service on the scoring server are a dataset, too. They connect the task that scores with
the task that writes the scored table.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from airflow_mlbatch.errors import MLBatchError
from airflow_mlbatch.hooks import MLBatchHook
from airflow_mlbatch.operators.lineage_facets import Origin, Table, dataset_name
from airflow_mlbatch.operators.locations import location
from airflow_mlbatch.operators.places import input_table

if TYPE_CHECKING:
    from airflow.providers.common.compat.openlineage.facet import OutputDataset
    from airflow.providers.openlineage.extractors import OperatorLineage

    from airflow_mlbatch.protocol.services import Service

__all__ = ["CommitLineage", "DownloadLineage", "ResultsLineage", "ScoreLineage", "is_listening"]


def is_listening() -> bool:
    """Whether OpenLineage's provider will ask: it is installed, switched on, and was loaded before."""
    return "airflow.providers.openlineage.plugins.listener" in sys.modules


@dataclass(frozen=True)
class _Known:
    """What a task has found out.

    :param service: declares inputs and outputs
    :param source: the table that is scored; ``None`` where there is none
    """

    service: Service
    source: Table | None


class Lineage:
    """Mixed into the operators; below is a class for each kind of task."""

    service_name: str
    service_version: str
    mlbatch_conn_id: str
    log: Any
    _known: _Known | None = None
    # What is in place, once the task has put it there.
    _written: Mapping[str, Any] | None = None

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> OperatorLineage[Any, Any]:
        """Called by OpenLineage's provider after a success."""
        return self._lineage()

    def get_openlineage_facets_on_failure(self, task_instance: Any) -> OperatorLineage[Any, Any]:
        """Called after a failure: what was meant to be read and written. The provider adds the error."""
        self._written = None
        return self._lineage()

    def _lineage(self) -> OperatorLineage[Any, Any]:
        from airflow.providers.openlineage.extractors import OperatorLineage

        source, results = self._source_table(), self._batch_results()
        inputs = [each for each in self._inputs(source, results) if each is not None]
        return OperatorLineage(
            inputs=[each.as_input() for each in inputs], outputs=self._outputs(source, results)
        )

    def _inputs(self, source: Table | None, results: Table | None) -> list[Table | None]:
        return [source, results]

    def _outputs(self, source: Table | None, results: Table | None) -> list[OutputDataset]:
        raise NotImplementedError

    # --- what is known ---------------------------------------------------------------------------

    def _note_lineage(self, hook: MLBatchHook) -> None:
        """Remember the service and the columns of the table, while the task can ask for them."""
        if self._known is not None or not is_listening():
            return
        try:
            service = hook.get_service(self.service_name, self.service_version)
            has_table = getattr(self, "input_path", None) is not None
            table = input_table(self) if has_table else None
            kept_for = service.outputs if hasattr(self, "keep_columns") else None
            source = None if table is None else Table.of_input(table, kept_for)
            self._known = _Known(service, source)
        except MLBatchError as error:
            self.log.warning("OpenLineage is told no columns: %s", error)

    def _source_table(self) -> Table | None:
        """The table that is scored."""
        if self._known is not None and self._known.source is not None:
            return self._known.source
        path = getattr(self, "input_path", None)
        return None if path is None else self._table_at(path, getattr(self, "input_conn_id", None))

    def _batch_results(self) -> Table | None:
        """The results on the server."""
        try:
            hook = getattr(self, "hook", None) or MLBatchHook(self.mlbatch_conn_id)
            name = (hook.url, f"{self.service_name}/{self.service_version}")
        except MLBatchError as error:
            self.log.warning("OpenLineage is not told of the scoring server: %s", error)
            return None
        outputs = () if self._known is None else self._known.service.outputs
        return Table(*name, [(output.name, str(output.type)) for output in outputs])

    def _table_at(self, path: Any, conn_id: str | None) -> Table | None:
        try:
            return Table(*dataset_name(location(path, conn_id)))
        except MLBatchError as error:
            self.log.warning("OpenLineage is not told of %s: %s", path, error)
            return None

    def _origin(self, source: Table | None, results: Table | None) -> Origin:
        service = None if self._known is None else self._known.service
        return Origin(service, source, results, getattr(self, "console_column", None))

    def _scored(self, source: Table | None, results: Table | None) -> list[OutputDataset]:
        """The table of ``output_path``, as its manifest describes it."""
        task: Any = self
        table = self._table_at(task.output_path, task.output_conn_id)
        if table is None:
            return []
        if self._written is None:
            return [table.as_output()]
        columns = [(column["name"], column["type"]) for column in self._written["columns"]]
        files = self._written["files"]
        return [
            table.with_columns(columns).as_output(
                self._origin(source, results),
                row_count=self._written["rows"],
                size=sum(file["bytes"] for file in files),
                file_count=len(files),
            )
        ]


class ScoreLineage(Lineage):
    """A task that scores: a table in, results on the server out."""

    def _inputs(self, source: Table | None, results: Table | None) -> list[Table | None]:
        return [source]

    def _outputs(self, source: Table | None, results: Table | None) -> list[OutputDataset]:
        if results is None:
            return []
        origin = self._origin(source, None)
        return [results.as_output(origin, row_count=(self._written or {}).get("rows"))]


class ResultsLineage(Lineage):
    """A task that writes a scored table, and perhaps its rejects."""

    def _outputs(self, source: Table | None, results: Table | None) -> list[OutputDataset]:
        task: Any = self
        if task.output_path is None:
            return []
        return [*self._scored(source, results), *self._rejects(source)]

    def _rejects(self, source: Table | None) -> list[OutputDataset]:
        task: Any = self
        if task.rejects_path is None:
            return []
        table = self._table_at(task.rejects_path, task.rejects_conn_id)
        if table is None:
            return []
        if source is not None:
            table = table.with_columns(source.rejected_columns())
        found = (self._written or {}).get("rejects") or {}
        return [
            table.as_output(
                Origin(None, source, None), row_count=found.get("rows"), size=found.get("bytes")
            )
        ]


class CommitLineage(Lineage):
    """The task that publishes a dataset in parts."""

    def _outputs(self, source: Table | None, results: Table | None) -> list[OutputDataset]:
        return self._scored(source, results)


class DownloadLineage(Lineage):
    """A task that downloads files, to a folder or into XCom."""

    def _inputs(self, source: Table | None, results: Table | None) -> list[Table | None]:
        return [results]

    def _outputs(self, source: Table | None, results: Table | None) -> list[OutputDataset]:
        task: Any = self
        folder = None if task.dest is None else self._table_at(task.dest, task.dest_conn_id)
        if folder is None:
            return []
        written = self._written or {}
        return [
            folder.as_output(size=written.get("byte_count"), file_count=written.get("file_count"))
        ]
