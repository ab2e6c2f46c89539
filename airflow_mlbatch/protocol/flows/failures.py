"""Conversations about the records of a batch that failed."""

from __future__ import annotations

from airflow_mlbatch.errors import (
    ContractError,
    LineError,
    MLBatchError,
    RecordsFailedError,
    UnavailableError,
)
from airflow_mlbatch.protocol import routes
from airflow_mlbatch.protocol.failures import FailureCount, FailureCountSink, FailureLimit
from airflow_mlbatch.protocol.flows.batches import BatchFlows
from airflow_mlbatch.protocol.flows.session import (
    NO_LIMIT,
    discreet,
    of_execution,
    partial_results,
)
from airflow_mlbatch.protocol.messages import Flow, Now, Report, Wait
from airflow_mlbatch.protocol.progress import Pace
from airflow_mlbatch.protocol.results import BatchStatus

__all__ = ["FailureFlows"]


class FailureFlows(BatchFlows):
    """What a session can do about records that failed."""

    @discreet
    def count_failures(
        self, service_name: str, service_version: str, execution_id: str
    ) -> Flow[FailureCount]:
        """Count the records that failed among the results that are there.

        Of a running batch these are the results so far. They do not tell which records they belong
        to: only in a complete batch is the place among the results that of the record.
        """
        reply = yield from self._call(
            routes.BATCH,
            of_execution(service_name, service_version, execution_id),
            query=partial_results(True),
            open_sink=FailureCountSink,
            max_body=NO_LIMIT,
            is_small=False,
        )
        sink: FailureCountSink = reply.sink
        found, found.status = sink.found, sink.status
        return found

    @discreet
    def watch_with_limit(
        self,
        service_name: str,
        service_version: str,
        execution_id: str,
        *,
        poll_interval: float,
        deadline: float | None = None,
        most_failed: int | None = None,
    ) -> Flow[BatchStatus]:
        """:meth:`watch_batch`; but once too many records have failed, the batch is cancelled.

        Partial results are read from time to time for that: seldom enough that all looks together
        read at most three times the results.

        :param most_failed: how many records may fail; ``None`` looks at no results
        :raises RecordsFailedError: more have failed; the batch was cancelled, unless the server
            could not be reached for that
        """
        named = (service_name, service_version, execution_id)
        limit = None if most_failed is None else FailureLimit(most_failed)
        pace = Pace()
        while True:
            status = yield from self.watch_batch(
                *named,
                poll_interval=poll_interval,
                deadline=deadline,
                is_over=lambda now: now.is_terminal or (limit is not None and limit.is_due(now)),
                pace=pace,
            )
            if limit is None or status.is_terminal:
                return status
            yield from self._look(named, limit, status)
            if limit.is_passed:
                raise (yield from self._stopped(named, limit, status))
            pace.failures = str(limit)
            now = yield Now()
            rest = poll_interval if deadline is None else min(poll_interval, deadline - now)
            yield Wait(max(rest, 0.0))

    def _look(
        self, named: tuple[str, str, str], limit: FailureLimit, status: BatchStatus
    ) -> Flow[None]:
        try:
            found = yield from self.count_failures(*named)
        except (LineError, UnavailableError, ContractError) as error:
            # The polls go on, and the end of the batch tells as much.
            yield Report(status, f"looking for failed records: {error}")
            found = limit.found or FailureCount()
        limit.take(found, status)

    def _stopped(
        self, named: tuple[str, str, str], limit: FailureLimit, status: BatchStatus
    ) -> Flow[RecordsFailedError]:
        """Cancel the batch; the error that says why."""
        found = limit.found or FailureCount()
        told = "the batch was cancelled"
        try:
            yield from self.cancel_batch(*named)
        except MLBatchError as problem:
            told = f"the batch could not be cancelled: {problem}"
        error = RecordsFailedError(
            f"execution {named[2]}: {found.explained:,} of {found.seen:,} results so far are failures, "
            f"and max_failed_records allows {limit.most_failed:,} of {status.total_item_count:,} "
            f"records; {told} (stop_early); the first errors are: "
            + "; ".join(" ".join(message.split()) for _, message in found.first),
            [{"index": None, "inputs": {}, "error": message} for _, message in found.first],
            failed=found.explained,
            completed=status.completed_item_count,
            total=status.total_item_count,
        )
        # Another attempt would find this batch gone, and another batch would fail in the same way.
        error.is_permanent = True
        return error
