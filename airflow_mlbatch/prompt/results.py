"""``mlbatch results``."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import PurePath
from typing import TYPE_CHECKING

from airflow_mlbatch.datasets.failures import FailureLog, FailurePolicy
from airflow_mlbatch.datasets.formats import named_format, table_format
from airflow_mlbatch.datasets.manifest import manifest_path
from airflow_mlbatch.datasets.results import fill_table, write_results
from airflow_mlbatch.datasets.scored import ScoredRows
from airflow_mlbatch.datasets.tables import InputTable
from airflow_mlbatch.datasets.writers import TableWriter
from airflow_mlbatch.errors import InputError
from airflow_mlbatch.hooks.locations import location
from airflow_mlbatch.hooks.outcomes import completed
from airflow_mlbatch.prompt.batches import Named, find_batch
from airflow_mlbatch.prompt.connecting import open_hook
from airflow_mlbatch.prompt.exits import Exit

if TYPE_CHECKING:
    from airflow_mlbatch.hooks import MLBatchHook
    from airflow_mlbatch.prompt.screen import Screen
    from airflow_mlbatch.protocol.results import RecordBlock
    from airflow_mlbatch.protocol.services import Service

__all__ = ["show_results"]

# How much is read of a batch of which only the first records are shown.
_MIB = 1024 * 1024
_BEGINNING = 4 * _MIB
_EVERYTHING = 2**62


def show_results(options: argparse.Namespace, screen: Screen) -> int:
    """Print the results of an execution, or save them."""
    form = _format(options)
    _check(options, form)
    with closing(open_hook(options)) as hook:
        named = find_batch(hook, options)
        status = hook.get_batch_status(*named)
        if not status.is_terminal and not options.partial:
            screen.tell(
                f"execution {named[2]} still runs ({status}); wait for it with "
                "mlbatch status --wait, or take what there is with --partial"
            )
            return Exit.STILL_RUNS
        if status.is_terminal:
            completed(named[2], status)
        if form == "table":
            return _show_table(hook, named, options, screen)
        return _Saving(hook, named, options, screen).save(form)


def _format(options: argparse.Namespace) -> str:
    if options.json:
        if options.format not in (None, "jsonl"):
            raise InputError(
                f"--json: found it beside --format {options.format}, expected one of them"
            )
        return "jsonl"
    if options.format is not None:
        return str(options.format)
    return "table" if options.output is None else table_format(PurePath(options.output)).name


def _check(options: argparse.Namespace, format: str) -> None:
    if format == "parquet" and options.output is None:
        raise InputError("--output: found nothing, expected a file for parquet")
    if format == "table" and options.output is not None:
        raise InputError("--format: found table, expected a format that can be saved, for --output")
    if format != "table" and options.partial:
        raise InputError(
            f"--partial: found it with the format {format}, expected a table: before its end the places "
            "of a batch's results are not known"
        )
    if format == "table":
        for name in ("input", "max_failed_records"):
            if getattr(options, name) is not None:
                raise InputError(
                    f"--{name.replace('_', '-')}: found it with a table on the screen, expected --format "
                    "or --output beside it"
                )


def _show_table(
    hook: MLBatchHook, named: Named, options: argparse.Namespace, screen: Screen
) -> int:
    limit = options.limit or _EVERYTHING
    most = _BEGINNING if options.limit else _EVERYTHING
    service = hook.get_service(*named[:2])
    beginning = hook.read_first_results(*named, most)
    records = [record for block in beginning.blocks for record in block][:limit]
    outputs = [each.name for each in service.outputs]
    # Keys of our own, because an output may have any name.
    rows = [
        {
            **{f"output {name}": record.outputs.get(name) for name in outputs},
            "index": record.index,
            "success": record.success,
            "error": record.error,
        }
        for record in records
    ]
    titles = {
        "index": "index",
        **{f"output {name}": name for name in outputs},
        "success": "success",
        "error": "error",
    }
    if options.partial:
        del titles["index"]
    screen.show(rows, titles)
    total = hook.get_batch_status(*named).total_item_count
    if len(rows) < total:
        more = "" if options.partial else "; --limit 0 shows all, --output saves them"
        screen.tell(f"{len(rows):,} of {total:,} records{more}")
    return Exit.DONE


class _Saving:
    """The results of an execution as a table with the columns of ``BatchResultsOperator``."""

    def __init__(
        self, hook: MLBatchHook, named: Named, options: argparse.Namespace, screen: Screen
    ) -> None:
        self._hook, self._named, self._options, self._screen = hook, named, options, screen
        self._service: Service = hook.get_service(*named[:2])
        limit = options.max_failed_records
        # Any number of records may fail, unless somebody minds.
        self._policy = FailurePolicy(_EVERYTHING if limit is None else limit)
        self._log = FailureLog()

    def save(self, format: str) -> int:
        with self._scored(format) as scored:
            if self._options.output is None:
                self._print(scored, format)
            else:
                self._write(scored, format)
        if self._log.failed:
            self._screen.tell(f"{self._log.failed:,} of {self._log.total:,} records failed")
        return Exit.DONE

    def _print(self, scored: ScoredRows, format: str) -> None:
        table = TableWriter(PurePath("results"), named_format(format), self._screen.out.buffer)

        try:
            fill_table(table, self._read, scored, [self._log])
        except BaseException:
            table.abandon()
            raise
        table.finish()
        self._policy.judge(self._log.failed, self._log.total, self._log.first, what=self._what)

    def _write(self, scored: ScoredRows, format: str) -> None:
        output = location(self._options.output)
        with self._screen.progress("records") as update:
            total = self._hook.get_batch_status(*self._named).total_item_count

            def read(take: Callable[[RecordBlock], None]) -> None:
                def take_and_tell(block: RecordBlock) -> None:
                    take(block)
                    update(block.first_index + len(block), total)

                self._read(take_and_tell)

            written, _ = write_results(
                read,
                scored,
                output,
                self._log,
                self._policy,
                format=format,
                manifest=manifest_path(output),
                what=self._what,
            )
        self._screen.tell(f"{written.rows:,} records are in {self._options.output}")

    @property
    def _what(self) -> str:
        return f"execution {self._named[2]}"

    def _read(self, take: Callable[[RecordBlock], None]) -> None:
        self._hook.read_batch_results(*self._named, take)

    @contextlib.contextmanager
    def _scored(self, format: str) -> Iterator[ScoredRows]:
        """The results beside the rows of the table that was scored, where it is known."""
        outputs = self._service.outputs
        if self._options.input is None:
            yield ScoredRows(outputs, format=format)
            return
        table = InputTable(location(self._options.input))
        with table.open() as rows:
            kept = table.kept_columns(outputs, rows.schema.names)
            types = table.types_of(kept, self._service.inputs, format)
            yield ScoredRows(outputs, format=format, rows=rows, kept=kept, types=types)
