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
from airflow_mlbatch.protocol.flows.batches import BatchFlows, check_so_far, checked_status
from airflow_mlbatch.protocol.flows.session import (
    NO_LIMIT,
    discreet,
    of_execution,
    partial_results,
)
from airflow_mlbatch.protocol.messages import Flow, Report
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

        :raises ContractError: a complete batch holds another number of results than it promises
        """
        reply = yield from self._call(
            routes.BATCH,
            of_execution(service_name, service_version, execution_id),
            query=partial_results(True),
            open_sink=lambda: FailureCountSink(lambda sink: check_so_far(execution_id, sink)),
            max_body=NO_LIMIT,
            is_small=False,
        )
        sink: FailureCountSink = reply.sink
        found, found.status = sink.found, checked_status(execution_id, sink)
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
        return (
            yield from self.watch_batch(
                *named,
                poll_interval=poll_interval,
                deadline=deadline,
                look=None if limit is None else lambda status: self._look(named, limit, status),
            )
        )

    def _look(
        self, named: tuple[str, str, str], limit: FailureLimit, status: BatchStatus
    ) -> Flow[str]:
        if limit.is_due(status):
            try:
                found = yield from self.count_failures(*named)
            except (LineError, UnavailableError, ContractError) as error:
                # The polls go on, and the end of the batch tells as much.
                yield Report(status, f"looking for failed records: {error}")
                found = limit.found or FailureCount()
            limit.take(found, status)
            if limit.is_passed:
                raise (yield from self._stopped(named, limit, status))
        return str(limit)

    def _stopped(
        self, named: tuple[str, str, str], limit: FailureLimit, status: BatchStatus
    ) -> Flow[RecordsFailedError]:
        """Cancel the batch; the error that says why."""
        found = limit.found or FailureCount()
        outcome = "the batch was cancelled (stop_early)"
        try:
            yield from self.cancel_batch(*named)
        except MLBatchError as problem:
            outcome = f"stop_early: the batch could not be cancelled: {problem}"
        error = RecordsFailedError(
            f"execution {named[2]}: {found.explained:,} of {found.seen:,} results so far are failures "
            f"with a message, and max_failed_records allows {limit.most_failed:,} of "
            f"{status.total_item_count:,} records; {outcome}; the first messages are: "
            + "; ".join(" ".join(message.split()) for message in found.first_explained),
            [{"index": None, "inputs": {}, "error": each} for each in found.first_explained],
            failed=found.explained,
            completed=status.completed_item_count,
            total=status.total_item_count,
        )
        # Another attempt would find this batch gone, and another batch would fail in the same way.
        error.is_permanent = True
        return error
