"""Conversations about batches: start, watch, read, cancel, and the files that records leave."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from airflow_mlbatch.errors import (
    AnswerError,
    BatchTimeoutError,
    ConnectionLostError,
    ContractError,
    ExecutionNotFoundError,
    InputError,
    LineError,
    MLBatchError,
    UnavailableError,
)
from airflow_mlbatch.protocol import routes
from airflow_mlbatch.protocol.documents import is_bearer, read_execution_id, read_names, shown
from airflow_mlbatch.protocol.flows.session import (
    NO_LIMIT,
    Session,
    discreet,
    of_execution,
    of_service,
    partial_results,
)
from airflow_mlbatch.protocol.messages import Flow, Now, Report, Sink, Wait
from airflow_mlbatch.protocol.progress import Pace
from airflow_mlbatch.protocol.results import (
    BatchStatus,
    BeginningSink,
    FailureSink,
    RecordBlock,
    ResultsSink,
    StatusSink,
)
from airflow_mlbatch.protocol.routes import (
    ACCEPT_IDEMPOTENCY_KEY,
    IDEMPOTENCY_KEY,
    IDEMPOTENCY_KEY_PREFIX_QUERY,
    IDEMPOTENCY_KEY_QUERY,
    PARALLEL_COUNT,
)
from airflow_mlbatch.protocol.services import Parameter

__all__ = ["PARALLEL_COUNT", "BatchFlows", "check_so_far", "checked_status"]

_LIST = "list of executions"


def _is_terminal(status: BatchStatus) -> bool:
    return status.is_terminal


class BatchFlows(Session):
    """What a session can do with batches."""

    @discreet
    def start_batch(
        self,
        service_name: str,
        service_version: str,
        body: bytes,
        parallel_count: int = PARALLEL_COUNT,
        *,
        idempotency_key: str | None = None,
        server_knows_keys: bool = False,
        before_send: Callable[[], None] | None = None,
    ) -> Flow[str]:
        """Start a batch; returns the execution id.

        The request is not sent again once the server may have it, unless the server knows its key.

        :param body: from :func:`airflow_mlbatch.protocol.records.encode_records`
        :param idempotency_key: names this batch; a server that knows keys starts it only once
        :param server_knows_keys: whether :meth:`find_batch_executions` has said so; then a lost
            request is repeated like any other
        :param before_send: called right before the request goes out, and before each repeat; what it
            raises ends the conversation
        :raises SubmissionUnknownError: the line was lost, and the server may have started the batch
        :raises IdempotencyKeyReusedError: the key belongs to a batch of other records
        """
        headers = {} if idempotency_key is None else {IDEMPOTENCY_KEY: _key(idempotency_key)}
        reply = yield from self._call(
            routes.START_BATCH,
            of_service(service_name, service_version),
            query={"parallelCount": _parallel(parallel_count)},
            headers=headers,
            body=body,
            open_sink=_ExecutionIdSink,
            is_small=False,
            is_repeatable=server_knows_keys and idempotency_key is not None,
            before_send=before_send,
        )
        execution_id: str = reply.sink.execution_id
        return execution_id

    @discreet
    def list_batch_executions(self, service_name: str, service_version: str) -> Flow[list[str]]:
        """Ids of the executions that the server knows, running and finished."""
        reply = yield from self._call(routes.BATCHES, of_service(service_name, service_version))
        return read_names(reply.body, _LIST)

    @discreet
    def find_batch_executions(
        self,
        service_name: str,
        service_version: str,
        idempotency_key: str,
        *,
        is_prefix: bool = False,
    ) -> Flow[tuple[list[str], bool]]:
        """Ask for the executions that were started with a key.

        :param is_prefix: whether to ask for all keys that begin with this one
        :return: their ids, and whether the server knows keys. A server that does not ignores the
            question: then the ids are those of all executions.
        """
        reply = yield from self._call(
            routes.BATCHES,
            of_service(service_name, service_version),
            query={
                IDEMPOTENCY_KEY_PREFIX_QUERY if is_prefix else IDEMPOTENCY_KEY_QUERY: _key(
                    idempotency_key
                )
            },
        )
        return read_names(reply.body, _LIST), ACCEPT_IDEMPOTENCY_KEY in reply.headers

    @discreet
    def get_batch_status(
        self, service_name: str, service_version: str, execution_id: str
    ) -> Flow[BatchStatus]:
        """State and counts, without reading on once they are known; of a failed batch also why."""
        named = of_execution(service_name, service_version, execution_id)
        status = yield from self._look_at(named)
        if status.state.is_failure:
            status = replace(status, message=(yield from self._why_failed(named)))
        return status

    def _look_at(self, named: Mapping[str, str]) -> Flow[BatchStatus]:
        reply = yield from self._call(
            routes.BATCH,
            named,
            query=partial_results(False),
            open_sink=StatusSink,
            max_body=NO_LIMIT,
        )
        status: BatchStatus = reply.sink.status
        return status

    def _why_failed(self, named: Mapping[str, str]) -> Flow[str]:
        """The server's words about a failed batch; its failure does not depend on them."""
        try:
            reply = yield from self._call(
                routes.BATCH,
                named,
                query=partial_results(True),
                open_sink=FailureSink,
                max_body=NO_LIMIT,
            )
        except (AnswerError, LineError, ContractError):
            return ""
        words = reply.sink.message
        return self._secrets.redacted(shown(words.encode("utf-8", "replace"))) if words else ""

    @discreet
    def read_batch_results(
        self,
        service_name: str,
        service_version: str,
        execution_id: str,
        outputs: Sequence[Parameter] | None,
        take: Callable[[RecordBlock], None],
        *,
        partial: bool = True,
        restart: Callable[[], None] | None = None,
    ) -> Flow[BatchStatus]:
        """Read the records of an execution, handed on in blocks while they arrive.

        :param take: called with each block
        :param restart: called when reading starts over after a lost line, to forget what was taken;
            without it a line that is lost once blocks were taken is an error
        :return: the status that came with the records
        :raises ContractError: a complete batch holds another number of results than it promises
        """
        has_taken = False

        def take_checked(sink: ResultsSink, block: RecordBlock) -> None:
            nonlocal has_taken
            check_so_far(execution_id, sink)
            has_taken = True
            take(block)

        def open_sink() -> Sink:
            nonlocal has_taken
            if has_taken and restart is None:
                raise ConnectionLostError(
                    f"execution {execution_id}: the line was lost in the middle of the results"
                )
            if has_taken and restart is not None:
                restart()
            has_taken = False
            sink = ResultsSink(outputs, lambda block: take_checked(sink, block))
            return sink

        reply = yield from self._call(
            routes.BATCH,
            of_execution(service_name, service_version, execution_id),
            query=partial_results(partial),
            open_sink=open_sink,
            max_body=NO_LIMIT,
            is_small=False,
        )
        return checked_status(execution_id, reply.sink)

    @discreet
    def read_first_results(
        self,
        service_name: str,
        service_version: str,
        execution_id: str,
        outputs: Sequence[Parameter] | None,
        max_bytes: int,
    ) -> Flow[BeginningSink]:
        """Read the first records of an execution, as far as some bytes of its results go.

        :param max_bytes: where reading stops, whatever the size of the batch
        """
        reply = yield from self._call(
            routes.BATCH,
            of_execution(service_name, service_version, execution_id),
            query=partial_results(True),
            open_sink=lambda: BeginningSink(outputs, max_bytes),
            max_body=NO_LIMIT,
        )
        beginning: BeginningSink = reply.sink
        return beginning

    @discreet
    def cancel_batch(
        self, service_name: str, service_version: str, execution_id: str
    ) -> Flow[bool]:
        """Cancel an execution and delete its results and artifacts.

        :return: false when it was gone already, which is what a repeat after a lost line finds
        """
        named = of_execution(service_name, service_version, execution_id)
        try:
            yield from self._call(routes.CANCEL_BATCH, named)
        except ExecutionNotFoundError:
            return False
        return True

    @discreet
    def cancel_running_batch(
        self, service_name: str, service_version: str, execution_id: str
    ) -> Flow[bool]:
        """Cancel an execution that still runs, and leave one that is over with its results.

        The server has one request for both, so the state is looked at right before it. What
        completes between the two is deleted.

        :return: false when it is over or gone
        :raises MLBatchError: the state cannot be found out; nothing is cancelled
        """
        try:
            status = yield from self._look_at(
                of_execution(service_name, service_version, execution_id)
            )
        except ExecutionNotFoundError:
            return False
        if status.is_terminal:
            return False
        return (yield from self.cancel_batch(service_name, service_version, execution_id))

    @discreet
    def list_artifacts(
        self, service_name: str, service_version: str, execution_id: str, index: int
    ) -> Flow[list[str]]:
        """Names of the files that one record left.

        :param index: zero-based place of the record
        """
        named = {
            **of_execution(service_name, service_version, execution_id),
            "index": _index(index),
        }
        reply = yield from self._call(routes.FILES, named)
        return read_names(reply.body, f"files of record {index}")

    @discreet
    def get_artifact(
        self,
        service_name: str,
        service_version: str,
        execution_id: str,
        index: int,
        file_name: str,
        *,
        open_sink: Callable[[], Sink] | None = None,
        max_body: int | None = None,
    ) -> Flow[bytes]:
        """The content of one file, or nothing where a sink took it.

        :param open_sink: called when the content begins, once more when a lost line starts it over
        :param max_body: most bytes to accept; ``None`` for no limit
        :raises ArtifactNotFoundError: the record left no such file
        """
        named = {
            **of_execution(service_name, service_version, execution_id),
            "index": _index(index),
            "fileName": file_name,
        }
        reply = yield from self._call(
            routes.FILE,
            named,
            open_sink=open_sink,
            max_body=NO_LIMIT if max_body is None else max_body,
            is_small=max_body is not None,
        )
        return reply.body

    @discreet
    def watch_batch(
        self,
        service_name: str,
        service_version: str,
        execution_id: str,
        *,
        poll_interval: float,
        deadline: float | None = None,
        is_over: Callable[[BatchStatus], bool] = _is_terminal,
        look: Callable[[BatchStatus], Flow[str]] | None = None,
    ) -> Flow[BatchStatus]:
        """Poll until the execution is complete or failed.

        A poll that fails for a passing reason is reported and forgiven, several in a row are not.
        At the deadline there is one last poll, so that a batch that has just finished is not lost.

        :param poll_interval: seconds between polls
        :param deadline: epoch seconds; ``None`` waits for ever
        :param is_over: another end of the watch than that of the batch
        :param look: called after each poll of a batch that goes on; returns words for the next reports,
            and what it raises ends the watch
        :raises BatchTimeoutError: the deadline passed; says how far the batch came
        :raises ExecutionNotFoundError: the execution is gone
        """
        problems, last, pace = 0, None, Pace()
        while True:
            now = yield Now()
            is_last = deadline is not None and now >= deadline
            error: MLBatchError | None = None
            try:
                status = yield from self.get_batch_status(
                    service_name, service_version, execution_id
                )
                problem = _step_back(execution_id, last, status)
            except (LineError, UnavailableError, ContractError) as caught:
                error, problem, problems = caught, str(caught), problems + 1
                if error.is_permanent or (problems >= self._policy.poll_problems and not is_last):
                    raise
            else:
                problems, last = 0, status
            now = yield Now()
            if error is None:
                pace.take(now, status)
            pause = _pause(poll_interval, deadline, now)
            repeat = pause if error is not None and not is_last else None
            yield Report(last, problem, problems, repeat, pace.line(last) if last else "")
            if error is None and is_over(status):
                return status
            if error is None and look is not None:
                pace.failures = yield from look(status)
                pause = _pause(poll_interval, deadline, (yield Now()))
            if is_last:
                how_far = str(last) if last else "no poll was answered"
                raise BatchTimeoutError(
                    f"execution {execution_id} is not complete at the deadline: {how_far}"
                )
            yield Wait(pause)


class _ExecutionIdSink:
    """Reads the reply to a start while it arrives, so that an unreadable one can be asked for again."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self.execution_id = ""

    def feed(self, data: bytes) -> bool:
        """Take a piece; the whole reply is wanted."""
        self._pieces.append(data)
        return False

    def close(self) -> None:
        """Read the id."""
        self.execution_id = read_execution_id(b"".join(self._pieces))


def _parallel(count: object) -> str:
    if isinstance(count, bool) or not isinstance(count, int):
        raise InputError(f"parallel_count: found {count!r}, expected a whole number")
    if count < 1:
        raise InputError(f"parallel_count: found {count}, expected at least 1")
    return str(count)


def _key(idempotency_key: object) -> str:
    is_text = isinstance(idempotency_key, str) and bool(idempotency_key)
    if not is_text or not is_bearer(str(idempotency_key)):
        raise InputError(
            f"idempotency_key: found {idempotency_key!a:.80}, expected ASCII letters without blanks"
        )
    return str(idempotency_key)


def _step_back(execution_id: str, last: BatchStatus | None, now: BatchStatus) -> str | None:
    """What is odd about a status after the one before; fewer completed records can be caught up on.

    :raises ContractError: the number of records of a batch never changes: this is not the same batch
    """
    if last is None:
        return None
    if now.total_item_count != last.total_item_count:
        raise ContractError(
            f"execution {execution_id}: found {now.total_item_count:,} records in the batch, "
            f"expected {last.total_item_count:,} as before"
        )
    if now.completed_item_count < last.completed_item_count:
        return (
            f"the server went back from {last.completed_item_count:,} completed records to "
            f"{now.completed_item_count:,}"
        )
    return None


def _pause(poll_interval: float, deadline: float | None, now: float) -> float:
    rest = poll_interval if deadline is None else min(poll_interval, deadline - now)
    return max(rest, 0.0)


def checked_status(execution_id: str, sink: ResultsSink) -> BatchStatus:
    """The status that came with results which were read to their end.

    :raises ContractError: a complete batch holds another number of results than it promises
    """
    status = sink.status
    if status.state.is_success and sink.count != status.total_item_count:
        raise _wrong_number(execution_id, sink.count, status.total_item_count)
    return status


def check_so_far(execution_id: str, sink: ResultsSink) -> None:
    """Called while results are read, because a list that never ends would be read for ever.

    :raises ContractError: there are more results than the batch promises
    """
    if sink.promised is not None and sink.count > sink.promised:
        raise _wrong_number(execution_id, sink.count, sink.promised)


def _wrong_number(execution_id: str, count: int, promised: int) -> ContractError:
    return ContractError(
        f"execution {execution_id}: complete with {count:,} results, expected {promised:,}"
    )


def _index(index: object) -> str:
    if isinstance(index, bool) or not isinstance(index, int) or index < 0:
        raise InputError(f"index: found {index!r}, expected a zero-based whole number")
    return str(index)
