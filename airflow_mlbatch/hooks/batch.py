"""A batch as an object, for notebooks and scripts.

Law: it holds its ids and what was scored, and no state. How far the batch is and what came out is asked of
the server each time. So it can be made again from its ids when the kernel was restarted.
"""

from __future__ import annotations

import html
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_mlbatch.errors import MLBatchError
from airflow_mlbatch.hooks.locations import location
from airflow_mlbatch.hooks.outcomes import completed
from airflow_mlbatch.hooks.progress import shown_progress
from airflow_mlbatch.protocol.flows import Policy

if TYPE_CHECKING:
    import pandas as pd

    from airflow_mlbatch.datasets.scored import ScoredRows
    from airflow_mlbatch.hooks.mlbatch import MLBatchHook
    from airflow_mlbatch.protocol.messages import Report
    from airflow_mlbatch.protocol.results import BatchResults, BatchStatus
    from airflow_mlbatch.protocol.services import Service

__all__ = ["Batch", "is_path"]

_KIB = 1024
# Of a batch that displays itself.
_SHOWN_RECORDS = 10
_SHOWN_BYTES = 256 * _KIB
_SHOWN_LETTERS = 200
# A cell of a notebook that displays a batch must not hang because its server does.
_QUICK = Policy(repeat_seconds=0.0, small_seconds=5.0, whole_seconds=5.0)
_AT_ONCE = 8


def is_path(records: Any) -> bool:
    """Whether somebody names a table, in place of records."""
    return isinstance(records, str | os.PathLike)


class Batch:
    """An execution on the server, by its ids.

    :meth:`MLBatchHook.score` starts one, :meth:`MLBatchHook.batch` finds one again by its id.

    :param hook: asks the server
    :param service_name: a published service
    :param service_version: its version
    :param execution_id: what started it returned
    :param inputs: what was scored, for :meth:`to_frame`: the path of a table, or records
    """

    def __init__(
        self,
        hook: MLBatchHook,
        service_name: str,
        service_version: str,
        execution_id: str,
        *,
        inputs: Any = None,
    ) -> None:
        self.hook = hook
        self.service_name = service_name
        self.service_version = service_version
        self.execution_id = execution_id
        self._inputs = inputs

    def __repr__(self) -> str:
        return (
            f"Batch(service_name={self.service_name!r}, service_version={self.service_version!r}, "
            f"execution_id={self.execution_id!r})"
        )

    @property
    def _named(self) -> tuple[str, str, str]:
        return self.service_name, self.service_version, self.execution_id

    def status(self) -> BatchStatus:
        """State and counts, now."""
        return self.hook.get_batch_status(*self._named)

    def wait(self, poll_interval: float = 3.0, timeout: float | None = None) -> Batch:
        """Wait until it is complete, with a progress bar. An interrupted wait leaves the batch alone.

        :param poll_interval: seconds between two questions
        :param timeout: seconds; ``None`` waits for ever
        :return: itself
        :raises BatchFailedError: it failed
        :raises BatchTimeoutError: it still runs after ``timeout``
        """
        deadline = None if timeout is None else time.time() + timeout
        with shown_progress("records") as update:

            def report(news: Report) -> None:
                if news.warning is not None:
                    self.hook.log.warning("%s", news.warning)
                if news.status is not None:
                    update(news.status.completed_item_count, news.status.total_item_count)

            status = self.hook.watch_batch(
                *self._named, poll_interval=poll_interval, deadline=deadline, on_report=report
            )
        completed(self.execution_id, status)
        return self

    def results(self, partial: bool = False) -> BatchResults:
        """The result of each record, all in memory.

        :param partial: whether to take what there is while the batch still runs
        :raises BatchError: it still runs, or it failed
        """
        if not partial:
            completed(self.execution_id, self.status())
        return self.hook.get_batch_results(*self._named, partial=partial)

    def to_frame(self, inputs: Any = None) -> pd.DataFrame:
        """One row for each record, in order.

        Its columns are the inputs where they are known, the outputs, ``mlbatch_index``,
        ``mlbatch_success`` and ``mlbatch_error``.

        :param inputs: what was scored, for a batch that was found by its id: the path of a table, or
            records
        :raises BatchError: it still runs, or it failed
        :raises DatasetError: there are other inputs than results, or a column has the name of an output
        """
        import pyarrow as pa

        completed(self.execution_id, self.status())
        service = self.hook.get_service(self.service_name, self.service_version)
        given = self._inputs if inputs is None else inputs
        batches: list[pa.RecordBatch] = []
        with _scored(given, service) as scored:
            self.hook.read_batch_results(
                *self._named,
                lambda block: batches.extend(each.scored for each in scored.add(block)),
            )
            batches += [each.scored for each in scored.finish()]
        frame: pd.DataFrame = pa.Table.from_batches(batches, scored.schema).to_pandas()
        if hasattr(given, "index") and hasattr(given, "iloc"):
            frame.index = given.index
        return frame

    def download_artifacts(
        self,
        dest: str | Path,
        *,
        file_names: Sequence[str] | None = None,
        indexes: Sequence[int] | None = None,
    ) -> list[str]:
        """Download the files that its records left, each to ``{index}/{file_name}``; with a bar.

        :param dest: a folder on this machine; it is made where it is missing
        :param file_names: names or globs (``*.png``); all files unless given
        :param indexes: zero-based places of the records; all unless given
        :return: the paths, in the order of the records
        :raises BatchError: it still runs, or it failed
        """
        from airflow_mlbatch.datasets.artifacts import DEFAULT_TEMPLATE
        from airflow_mlbatch.datasets.downloads import ArtifactDownload, download_records

        total = completed(self.execution_id, self.status()).total_item_count
        wanted = range(total) if indexes is None else indexes
        folder = Path(dest)
        folder.mkdir(parents=True, exist_ok=True)
        download = ArtifactDownload(folder, DEFAULT_TEMPLATE, self.execution_id)
        records = download_records(
            download,
            wanted,
            file_names,
            lambda index: self.hook.list_artifacts(*self._named, index),
            lambda index, name, sink: self.hook.stream_artifact(*self._named, index, name, sink),
            _AT_ONCE,
        )
        files = []
        with shown_progress("records") as update:
            for done, found in enumerate(records, start=1):
                files += found
                update(done, len(wanted))
        download.finish(
            files,
            service_name=self.service_name,
            service_version=self.service_version,
            server=self.hook.url,
        )
        files.sort(key=lambda file: (file.index, file.file_name))
        return [str(folder / file.path) for file in files]

    def cancel(self) -> bool:
        """Cancel it and delete its results and artifacts.

        :return: false when it was gone already
        """
        return self.hook.cancel_batch(*self._named)

    # --- in a notebook ---------------------------------------------------------------------------

    def _repr_html_(self) -> str:
        """A table: which batch it is, how far it is, and its first records."""
        head = [
            ("service", f"{self.service_name} {self.service_version}"),
            ("execution id", self.execution_id),
        ]
        try:
            status, rows = self._looked_at()
        except MLBatchError as error:
            return _table([], [*head, ("problem", str(error))])
        head += [("state", status.state.value), ("records", str(status))]
        if not rows:
            return _table([], head)
        more = status.completed_item_count - len(rows)
        rest = f"<div>and {more:,} more: to_frame() has all</div>" if more > 0 else ""
        return (
            _table([], head) + _table(list(rows[0]), [tuple(row.values()) for row in rows]) + rest
        )

    def _looked_at(self) -> tuple[BatchStatus, list[dict[str, Any]]]:
        flows = self.hook.flows.beside(_QUICK)
        status = self.hook.run(flows.get_batch_status(*self._named))
        if not status.state.is_success:
            # Before its end the places of its results are not known.
            return status, []
        service = self.hook.run(flows.get_service(self.service_name, self.service_version))
        beginning = self.hook.run(
            flows.read_first_results(*self._named, service.outputs, _SHOWN_BYTES)
        )
        records = [record for block in beginning.blocks for record in block][:_SHOWN_RECORDS]
        names = [each.name for each in service.outputs]
        return status, [
            {
                "index": record.index,
                **{f"output {name}": record.outputs.get(name) for name in names},
                "success": record.success,
                "error": record.error or "",
            }
            for record in records
        ]


@contextmanager
def _scored(inputs: Any, service: Service) -> Iterator[ScoredRows]:
    """Results beside what was scored, where that is known."""
    from airflow_mlbatch.datasets.rows import TableRows
    from airflow_mlbatch.datasets.scored import ScoredRows, chosen_columns
    from airflow_mlbatch.datasets.tables import InputTable

    outputs = service.outputs
    if inputs is None:
        yield ScoredRows(outputs, format="parquet")
    elif is_path(inputs):
        # Numbers of CSV are numbers in a frame.
        table = InputTable(location(inputs), column_types="infer")
        with table.open() as rows:
            kept = table.kept_columns(outputs, rows.schema.names)
            types = table.types_of(kept, service.inputs, "parquet")
            yield ScoredRows(outputs, format="parquet", rows=rows, kept=kept, types=types)
    else:
        import pandas as pd
        import pyarrow as pa

        frame = pa.Table.from_pandas(pd.DataFrame(inputs), preserve_index=False)
        rows = TableRows(frame.schema, iter(frame.to_batches()))
        kept = chosen_columns(frame.schema.names, outputs)
        yield ScoredRows(outputs, format="parquet", rows=rows, kept=kept)


def _table(titles: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    head = "".join(f"<th>{_text(title.removeprefix('output '))}</th>" for title in titles)
    lines = "".join(
        f"<tr>{''.join(f'<td>{_text(value)}</td>' for value in row)}</tr>" for row in rows
    )
    return f"<table>{f'<tr>{head}</tr>' if head else ''}{lines}</table>"


def _text(value: Any) -> str:
    text = "" if value is None else str(value)
    return html.escape(text if len(text) <= _SHOWN_LETTERS else f"{text[:_SHOWN_LETTERS]}…")
