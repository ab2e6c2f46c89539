"""The hook that synchronous code uses.

Law: thin. A method names the conversation it wants; what is said stands in the protocol room, how it
is carried in the transport room.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import uuid4

from airflow.providers.common.compat.sdk import BaseHook, Connection

from airflow_mlbatch.errors import LineError, MLBatchError
from airflow_mlbatch.hooks.batch import Batch, is_path
from airflow_mlbatch.hooks.locations import location
from airflow_mlbatch.hooks.lookup import look_up
from airflow_mlbatch.hooks.publishing import PublishingMethods
from airflow_mlbatch.hooks.settings import DEFAULT_PORT, Settings, read_settings
from airflow_mlbatch.hooks.timing import Timing
from airflow_mlbatch.protocol.flows import PARALLEL_COUNT, Flows, Policy

if TYPE_CHECKING:
    from airflow_mlbatch.protocol.documents import ServerStatus
    from airflow_mlbatch.protocol.failures import FailureCount
    from airflow_mlbatch.protocol.messages import Flow, Report, Sink
    from airflow_mlbatch.protocol.results import (
        BatchResults,
        BatchStatus,
        BeginningSink,
        RecordBlock,
        RecordResult,
    )
    from airflow_mlbatch.protocol.services import Service
    from airflow_mlbatch.transport.blocking import BlockingDriver

__all__ = ["MLBatchHook"]

T = TypeVar("T")

# An `on_kill` handler has five seconds to live, and two requests to send.
_AT_ONCE_TIMEOUT = 2.0
_AT_ONCE = Policy(repeat_seconds=0.0, small_seconds=_AT_ONCE_TIMEOUT)
# Threads that share a hook share what its first use makes. Not one for each hook: it could not be
# copied then, as Airflow copies operators and what they hold.
_opening = threading.RLock()


class MLBatchHook(PublishingMethods, BaseHook):
    """Talks to Machine Learning Server, or to anything that speaks its batch API.

    Several threads may share one. Every method raises a
    :class:`~airflow_mlbatch.errors.MLBatchError`; its ``is_permanent`` tells whether trying again
    later can help. Arguments that are the same in all methods:

    ``service_name``, ``service_version``
        a published service, any Unicode text
    ``execution_id``
        what :meth:`start_batch` returned
    ``index``
        the zero-based place of a record in its batch (the vendor's R client counts from one)

    :param mlbatch_conn_id: an Airflow connection of type ``mlbatch``; see
        :mod:`airflow_mlbatch.hooks.settings` for its fields
    :param max_connections: how many threads that share this hook keep a line open
    :param timing: how patient it is, its clock and its way to sleep
    """

    conn_name_attr = "mlbatch_conn_id"
    default_conn_name = "mlbatch_default"
    conn_type = "mlbatch"
    hook_name = "Machine Learning Server"

    def __init__(
        self,
        mlbatch_conn_id: str = default_conn_name,
        *,
        max_connections: int = 10,
        timing: Timing | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.mlbatch_conn_id = mlbatch_conn_id
        self.timing = timing or Timing()
        self._max_connections = max_connections
        self._settings: Settings | None = None
        self._flows: Flows | None = None
        self._driver: BlockingDriver | None = None
        self._services: dict[tuple[str, str], Service] = {}

    @classmethod
    def at(
        cls,
        url: str,
        username: str,
        password: str,
        *,
        extra: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> MLBatchHook:
        """A hook without an Airflow connection, for notebooks and scripts.

        :param url: the server's address, for example ``http://localhost:12800``
        :param username: for the login
        :param password: for the login
        :param extra: what the extra field of a connection would hold, for example
            ``{"verify": "/etc/ssl/company-ca.pem"}``
        :param kwargs: those of the class
        :raises ConnectionConfigError: one of them makes no sense
        """
        from airflow.sdk.log import mask_secret

        mask_secret(password)
        connection = Connection(
            conn_id=url, conn_type=cls.conn_type, host=url, login=username, password=password
        )
        hook = cls(url, **kwargs)
        hook._settings = read_settings(connection, extra or {})
        return hook

    @classmethod
    def get_ui_field_behaviour(cls) -> dict[str, Any]:
        """The form of the connection on Airflow 3.0 and 3.1; later ones read provider info."""
        return {
            "hidden_fields": [],
            "relabeling": {
                "schema": "Scheme (http or https)",
                "host": "Host or URL",
                "port": f"Port (type {DEFAULT_PORT})",
            },
            "placeholders": {
                "host": "mlserver.example.com",
                "port": f"type {DEFAULT_PORT}: the Test button fails while it is blank",
                "login": "admin",
                "extra": '{"verify": true, "read_timeout": 60}',
            },
        }

    # --- the server ------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """The server's address, without a closing slash."""
        return self._read_settings().endpoint.url

    def get_conn(self) -> BlockingDriver:
        """The driver that carries this hook's conversations; made on first use."""
        with _opening:
            if self._driver is None:
                self._driver = self._make_driver(self._read_settings())
            return self._driver

    def close(self) -> None:
        """Close the connections to the server."""
        if self._driver is not None:
            self._driver.close()
            self._driver = None

    def test_connection(self) -> tuple[bool, str]:
        """Log in and ask for the server's health: one attempt, ten seconds at most; never raises."""
        try:
            settings = self._read_settings()
            return self._tested_in_time(settings)
        except MLBatchError as error:
            return False, str(error)
        except Exception as error:
            # Airflow shows the text and nothing else, so there must be one.
            return False, f"{type(error).__name__}: {error}"

    def _tested_in_time(self, settings: Settings) -> tuple[bool, str]:
        """Test in a thread that is left behind when it is late: nothing else ends a slow name server."""
        outcome: Future[tuple[bool, str]] = Future()

        def test() -> None:
            try:
                outcome.set_result(self._tested(settings))
            except BaseException as error:
                outcome.set_exception(error)

        seconds = self.timing.policy.test_seconds
        # Airflow's masker, and its button, keep what they know in the context.
        run = contextvars.copy_context().run
        threading.Thread(target=run, args=(test,), daemon=True).start()
        try:
            return outcome.result(seconds)
        except FutureTimeout:
            return False, f"{settings.endpoint.url}: no answer within {seconds:g} seconds"

    def _tested(self, settings: Settings) -> tuple[bool, str]:
        policy = self.timing.policy
        # A little less than the whole time: what the driver finds says more than the clock.
        seconds = 0.9 * policy.test_seconds
        flows = Flows(
            settings.login,
            settings.endpoint.url,
            replace(policy, repeat_seconds=0.0, whole_seconds=seconds),
        )
        driver = self._make_driver(settings)
        try:
            status = driver.run(flows.get_server_status())
        except LineError as error:
            return False, f"{error}; {_advice(settings.endpoint.url)}"
        finally:
            driver.close()
        return status.is_healthy, f"{settings.endpoint.url} says {status.status_code!r}"

    def get_server_status(self) -> ServerStatus:
        """The health of the server and of its parts."""
        return self.run(self.flows.get_server_status())

    # --- services --------------------------------------------------------------------------------

    def list_services(self, service_name: str | None = None) -> list[Service]:
        """All published services, or all versions of one."""
        return self.run(self.flows.list_services(service_name))

    def get_service(self, service_name: str, service_version: str) -> Service:
        """What the server says about a service: inputs, outputs, artifacts.

        :raises ServiceNotFoundError: it is not published
        """
        key = (service_name, service_version)
        if key not in self._services:
            self._services[key] = self.run(self.flows.get_service(service_name, service_version))
        return self._services[key]

    def get_swagger(self, service_name: str, service_version: str) -> dict[str, Any]:
        """The Swagger 2.0 document of a service."""
        return self.run(self.flows.get_swagger(service_name, service_version))

    def consume(
        self, service_name: str, service_version: str, inputs: Mapping[str, Any]
    ) -> RecordResult:
        """Score one record and wait for its result (request/response consumption).

        :param inputs: a value for each declared input
        :raises RecordError: an input is missing or does not fit; nothing was sent
        """
        service = self.get_service(service_name, service_version)
        return self.run(self.flows.consume(service, inputs))

    # --- batches ---------------------------------------------------------------------------------

    def encode_records(
        self, service_name: str, service_version: str, records: Any
    ) -> tuple[bytes, int]:
        """Check and cast records, or a table by its path.

        :return: the body that starts a batch, and the number of records
        """
        inputs = self.get_service(service_name, service_version).inputs
        if is_path(records):
            from airflow_mlbatch.datasets.tables import InputTable

            return InputTable(location(records)).encode(inputs)
        from airflow_mlbatch.protocol.records import encode_records

        return encode_records(inputs, records)

    def start_batch(
        self,
        service_name: str,
        service_version: str,
        records: Any,
        parallel_count: int = PARALLEL_COUNT,
        *,
        idempotency_key: str | None = None,
        server_knows_keys: bool = False,
    ) -> str:
        """Start the scoring of records and return the execution id at once.

        The request is not sent again once the server may have it, unless the server knows its key.

        :param records: a list of dicts, a dict of equally long columns, a pandas DataFrame, or the path
            of a table (CSV, TSV, Parquet, JSON Lines, anywhere that ``ObjectStoragePath`` reaches);
            only declared inputs go out, cast to their declared types
        :param parallel_count: how many records the server may score at once
        :param idempotency_key: names this batch; a server that knows keys starts it only once
        :param server_knows_keys: whether :meth:`find_batch_executions` has said so; then a lost
            request is repeated like any other
        :raises RecordError: a value does not fit; nothing was sent
        :raises IdempotencyKeyReusedError: the key belongs to a batch of other records
        :raises SubmissionUnknownError: the line was lost on the way; the batch may run, or not
        """
        body, _ = self.encode_records(service_name, service_version, records)
        return self.start_encoded_batch(
            service_name,
            service_version,
            body,
            parallel_count,
            idempotency_key=idempotency_key,
            server_knows_keys=server_knows_keys,
        )

    def start_encoded_batch(
        self,
        service_name: str,
        service_version: str,
        body: bytes,
        parallel_count: int = PARALLEL_COUNT,
        *,
        idempotency_key: str | None = None,
        server_knows_keys: bool = False,
        before_send: Callable[[], None] | None = None,
    ) -> str:
        """:meth:`start_batch` with a body that :meth:`encode_records` made.

        :param before_send: called right before the request goes out, and before each repeat; what it
            raises ends the conversation
        """
        return self.run(
            self.flows.start_batch(
                service_name,
                service_version,
                body,
                parallel_count,
                idempotency_key=idempotency_key,
                server_knows_keys=server_knows_keys,
                before_send=before_send,
            )
        )

    def score(
        self,
        service_name: str,
        service_version: str,
        records: Any,
        parallel_count: int = PARALLEL_COUNT,
    ) -> Batch:
        """Start the scoring of records, and return the batch as an object, for notebooks.

        On a server that knows idempotency keys the batch is started once, also where a reply is lost.

        :param records: as :meth:`start_batch` takes them; ``to_frame()`` of the batch has their columns
        :param parallel_count: how many records the server may score at once
        :raises RecordError: a value does not fit; nothing was sent
        :raises SubmissionUnknownError: the line was lost on the way, and the server knows no keys
        """
        key = f"notebook-{uuid4().hex}"
        _, knows_keys = self.find_batch_executions(service_name, service_version, key)
        execution_id = self.start_batch(
            service_name,
            service_version,
            records,
            parallel_count,
            idempotency_key=key,
            server_knows_keys=knows_keys,
        )
        return Batch(self, service_name, service_version, execution_id, inputs=records)

    def batch(
        self, service_name: str, service_version: str, execution_id: str, *, inputs: Any = None
    ) -> Batch:
        """A batch by its id as an object, for example after the kernel of a notebook was restarted.

        :param inputs: what was scored, for the columns of ``to_frame()``: the path of a table, or records
        """
        return Batch(self, service_name, service_version, execution_id, inputs=inputs)

    def list_batch_executions(self, service_name: str, service_version: str) -> list[str]:
        """Ids of the executions that the server keeps for a service, running and finished."""
        return self.run(self.flows.list_batch_executions(service_name, service_version))

    def find_batch_executions(
        self, service_name: str, service_version: str, idempotency_key: str
    ) -> tuple[list[str], bool]:
        """Ask for the executions that were started with a key.

        :return: their ids, and whether the server knows keys. A server that does not ignores the
            question: then the ids are those of all executions.
        """
        return self.run(
            self.flows.find_batch_executions(service_name, service_version, idempotency_key)
        )

    def get_batch(self, service_name: str, service_version: str, execution_id: str) -> BatchResults:
        """An execution by its id, with the results that it has so far."""
        return self.get_batch_results(service_name, service_version, execution_id)

    def get_batch_status(
        self, service_name: str, service_version: str, execution_id: str
    ) -> BatchStatus:
        """State and counts; stops reading the reply once they are known.

        :raises ExecutionNotFoundError: it was cancelled, deleted, or never there
        """
        return self.run(self.flows.get_batch_status(service_name, service_version, execution_id))

    def get_batch_results(
        self, service_name: str, service_version: str, execution_id: str, partial: bool = True
    ) -> BatchResults:
        """State, counts and the result of each record, all in memory.

        :param partial: whether to show what is scored already while the batch still runs
        """
        from airflow_mlbatch.protocol.results import BatchResults

        records: list[RecordResult] = []
        status = self.read_batch_results(
            service_name,
            service_version,
            execution_id,
            lambda block: records.extend(block),
            partial=partial,
            restart=records.clear,
        )
        return BatchResults(status, tuple(records))

    def read_batch_results(
        self,
        service_name: str,
        service_version: str,
        execution_id: str,
        take: Callable[[RecordBlock], None],
        *,
        partial: bool = False,
        restart: Callable[[], None] | None = None,
    ) -> BatchStatus:
        """Results in blocks while they arrive, so that nobody holds a large batch whole.

        :param take: called with each block, in input order
        :param restart: called when reading starts over after a lost line, to forget what was taken
        """
        service = self.get_service(service_name, service_version)
        return self.run(
            self.flows.read_batch_results(
                service_name,
                service_version,
                execution_id,
                service.outputs,
                take,
                partial=partial,
                restart=restart,
            )
        )

    def read_first_results(
        self, service_name: str, service_version: str, execution_id: str, max_bytes: int
    ) -> BeginningSink:
        """The first records, and the rest of the reply left unread.

        :param max_bytes: how much of the results to read; a running batch shows what it has
        :return: what was read: ``blocks`` of records, their ``count``, ``bytes_read``, and whether
            that was the ``is_whole`` document
        """
        service = self.get_service(service_name, service_version)
        return self.run(
            self.flows.read_first_results(
                service_name, service_version, execution_id, service.outputs, max_bytes
            )
        )

    def watch_batch(
        self,
        service_name: str,
        service_version: str,
        execution_id: str,
        *,
        poll_interval: float = 3.0,
        deadline: float | None = None,
        most_failed: int | None = None,
        on_report: Callable[[Report], None] | None = None,
    ) -> BatchStatus:
        """Poll until the execution is complete or failed.

        A poll that fails for a passing reason is forgiven, several in a row are not.

        :param poll_interval: seconds between polls
        :param deadline: epoch seconds
        :param most_failed: how many records may fail; partial results are read for it now and then
        :param on_report: called after each poll and before each repeat of a request
        :raises BatchTimeoutError: the deadline passed
        :raises RecordsFailedError: more records have failed, so the batch was cancelled
        """
        flow = self.flows.watch_with_limit(
            service_name,
            service_version,
            execution_id,
            poll_interval=poll_interval,
            deadline=deadline,
            most_failed=most_failed,
        )
        return self.run(flow, on_report)

    def poll_batch(
        self,
        service_name: str,
        service_version: str,
        execution_id: str,
        *,
        poll_interval: float = 3.0,
        deadline: float | None = None,
        on_report: Callable[[Report], None] | None = None,
    ) -> BatchStatus:
        """State and counts, with the patience of :meth:`watch_batch`: it ends with the first answer.

        :param poll_interval: seconds until a poll that failed is tried again
        :raises BatchTimeoutError: the deadline passed and no poll was answered
        """
        flow = self.flows.watch_batch(
            service_name,
            service_version,
            execution_id,
            poll_interval=poll_interval,
            deadline=deadline,
            is_over=lambda status: True,
        )
        return self.run(flow, on_report)

    def count_failures(
        self, service_name: str, service_version: str, execution_id: str
    ) -> FailureCount:
        """How many records failed, and the first of them; reads all results and no outputs."""
        return self.run(self.flows.count_failures(service_name, service_version, execution_id))

    def cancel_batch(self, service_name: str, service_version: str, execution_id: str) -> bool:
        """Cancel an execution and delete its results and artifacts.

        :return: false when it was gone already
        """
        return self.run(self.flows.cancel_batch(service_name, service_version, execution_id))

    def cancel_batch_at_once(
        self,
        service_name: str,
        service_version: str,
        execution_id: str,
        *,
        keeps_results: bool = True,
    ) -> bool:
        """Cancel an execution with the token in hand, for a signal handler with seconds to live.

        A line of its own: the one of this hook may be in the middle of a request.

        :param keeps_results: whether an execution that is over is left alone
        :return: false when it is over or gone
        """
        settings = self._read_settings()
        endpoint = replace(
            settings.endpoint, connect_timeout=_AT_ONCE_TIMEOUT, read_timeout=_AT_ONCE_TIMEOUT
        )
        driver = self._make_driver(replace(settings, endpoint=endpoint))
        flows = self.flows.beside(_AT_ONCE)
        cancel = flows.cancel_running_batch if keeps_results else flows.cancel_batch
        try:
            return driver.run(cancel(service_name, service_version, execution_id), self._log_report)
        finally:
            driver.close()

    # --- artifacts -------------------------------------------------------------------------------

    def list_artifacts(
        self, service_name: str, service_version: str, execution_id: str, index: int
    ) -> list[str]:
        """Names of the files that a record left."""
        return self.run(
            self.flows.list_artifacts(service_name, service_version, execution_id, index)
        )

    def get_artifact(
        self,
        service_name: str,
        service_version: str,
        execution_id: str,
        index: int,
        file_name: str,
        *,
        max_bytes: int | None = None,
    ) -> bytes:
        """The content of a file, in memory.

        :param max_bytes: most bytes to accept
        :raises ArtifactNotFoundError: the record left no file of this name
        :raises ReplyTooLargeError: there are more
        """
        return self.run(
            self.flows.get_artifact(
                service_name,
                service_version,
                execution_id,
                index,
                file_name,
                max_body=max_bytes,
            )
        )

    def stream_artifact(
        self,
        service_name: str,
        service_version: str,
        execution_id: str,
        index: int,
        file_name: str,
        open_sink: Callable[[], Sink],
    ) -> None:
        """Hand the content of a file on in pieces.

        :param open_sink: called when the content begins, and again when a lost line starts it over
        """
        self.run(
            self.flows.get_artifact(
                service_name,
                service_version,
                execution_id,
                index,
                file_name,
                open_sink=open_sink,
            )
        )

    def download_artifacts(
        self,
        service_name: str,
        service_version: str,
        execution_id: str,
        index: int,
        file_names: Sequence[str] | None = None,
        dest: str | Path = ".",
    ) -> list[str]:
        """Download files of a record into a folder.

        :param file_names: all files of the record unless given
        :param dest: a folder on this machine; it must exist
        :return: the path of each file, in the order of the names
        :raises InputError: there is no such folder
        :raises UnsafeNameError: the server gave a name that would leave the folder
        """
        from airflow_mlbatch.datasets.downloads import download_files

        if file_names is None:
            file_names = self.list_artifacts(service_name, service_version, execution_id, index)
        return download_files(
            Path(dest),
            file_names,
            lambda name, open_sink: self.stream_artifact(
                service_name, service_version, execution_id, index, name, open_sink
            ),
        )

    # --- how -------------------------------------------------------------------------------------

    @property
    def flows(self) -> Flows:
        """The conversations of this hook's session."""
        with _opening:
            if self._flows is None:
                settings = self._read_settings()
                self._flows = Flows(settings.login, settings.endpoint.url, self.timing.policy)
            return self._flows

    def run(self, flow: Flow[T], on_report: Callable[[Report], None] | None = None) -> T:
        """Carry out one of :attr:`flows`.

        :param on_report: called after each poll and before each repeat of a request; without it
            the repeats are logged as warnings
        """
        return self.get_conn().run(flow, on_report or self._log_report)

    def _log_report(self, report: Report) -> None:
        if report.warning is not None:
            self.log.warning("%s", report.warning)

    def _read_settings(self) -> Settings:
        with _opening:
            if self._settings is None:
                connection = look_up(self.mlbatch_conn_id)
                self._settings = read_settings(connection, connection.extra_dejson)
            return self._settings

    def _make_driver(self, settings: Settings) -> BlockingDriver:
        from airflow.sdk.log import mask_secret

        from airflow_mlbatch.transport.blocking import BlockingDriver

        return BlockingDriver(
            settings.endpoint,
            mask_secret,
            self._max_connections,
            clock=self.timing.clock,
            sleep=self.timing.sleep,
        )


def _advice(url: str) -> str:
    """What to check where nobody answered, or not in HTTP."""
    scheme, other = ("https", "http") if url.startswith("https:") else ("http", "https")
    return (
        f"check host and port of {url}, and the scheme: it is {scheme}, "
        f"and a server that speaks {other} does not answer that"
    )
