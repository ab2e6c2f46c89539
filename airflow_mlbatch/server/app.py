"""The API over HTTP: one handler for each row of the table of routes.

Law: routes only. A handler reads the request, asks the store or the runner, and writes the reply;
what a reply says is spelled in :mod:`airflow_mlbatch.protocol`.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import FileResponse, Response, StreamingResponse

from airflow_mlbatch.errors import InputError
from airflow_mlbatch.protocol import routes
from airflow_mlbatch.protocol.documents import write_execution_id, write_tokens
from airflow_mlbatch.protocol.intake import read_login, read_renewal
from airflow_mlbatch.protocol.publications import read_publication, read_session_request
from airflow_mlbatch.protocol.results import BatchStatus, batch_document, read_record_result
from airflow_mlbatch.protocol.routes import Route
from airflow_mlbatch.protocol.services import write_service
from airflow_mlbatch.server.auth import Denied, NewTokens, Throttled, Tokens
from airflow_mlbatch.server.blocks import Block, blocks_of
from airflow_mlbatch.server.catalogue import Catalogue, Entry, SupersededError
from airflow_mlbatch.server.folder import DataFolder
from airflow_mlbatch.server.publishing import Publishing
from airflow_mlbatch.server.replies import (
    EXECUTION_NOT_FOUND,
    FILE_NOT_FOUND,
    Refusal,
    bad_request,
    json_reply,
    service_not_found,
)
from airflow_mlbatch.server.requests import (
    bearer_token,
    body_pieces,
    count_parameter,
    flag_parameter,
    has_parameter,
    idempotency_key,
    key_parameter,
    raw_path,
    read_body,
)
from airflow_mlbatch.server.retention import Retention
from airflow_mlbatch.server.runner import BusyError, Runner
from airflow_mlbatch.server.store import (
    Execution,
    OtherBodyError,
    StartKey,
    StorageError,
    Store,
)
from airflow_mlbatch.server.swagger import core_document, service_document

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

__all__ = ["App", "Limits"]

log = logging.getLogger(__name__)

Names = Mapping[str, str]
_MOST_LOGIN_BYTES = 64 * 1024
# The document's spelling, and that of the vendor's two clients.
_PARTIAL, _VENDORS_PARTIAL = "showPartialResults", "showPartialResult"
_MOST_PUBLICATION_BYTES = 16 * 1024 * 1024
_PIECE_BYTES = 256 * 1024
# A poll wants the head of the document and hangs up: little is read for it in vain.
_FIRST_PIECE_BYTES = 8 * 1024


@dataclass(frozen=True)
class Limits:
    """What the server takes.

    :param max_body_bytes: most bytes of a request's body
    :param max_records: most records of a batch
    :param max_object_bytes: most bytes of an object that a service is published with
    """

    max_body_bytes: int
    max_records: int
    max_object_bytes: int


class DeletedMeanwhile(Exception):
    """An execution was deleted while its results were being read."""


@dataclass
class App:
    """The ASGI application.

    :param catalogue: what is published
    :param has_keys: whether it takes idempotency keys; without them it is like the vendor's server
    :param publishing: brings services in; ``None`` where that is not allowed
    :param retention: deletes finished executions
    """

    store: Store
    runner: Runner
    tokens: Tokens
    folder: DataFolder
    limits: Limits
    catalogue: Catalogue
    has_keys: bool
    publishing: Publishing | None
    retention: Retention

    def __post_init__(self) -> None:
        self._handlers: dict[str, Callable[[Request, Names], Awaitable[Response]]] = {
            routes.LOGIN.name: self._log_in,
            routes.RENEW.name: self._renew,
            routes.REVOKE.name: self._revoke,
            routes.REVOKE_BY_PATH.name: self._revoke,
            routes.CORE_SWAGGER.name: self._core_swagger,
            routes.STATUS.name: self._status,
            routes.SERVICES.name: self._list_services,
            routes.SERVICE_VERSIONS.name: self._list_versions,
            routes.SERVICE.name: self._list_version,
            routes.SWAGGER.name: self._swagger,
            routes.CONSUME.name: self._consume,
            routes.START_BATCH.name: self._start_batch,
            routes.BATCHES.name: self._list_batches,
            routes.BATCH.name: self._batch,
            routes.CANCEL_BATCH.name: self._cancel_batch,
            routes.FILES.name: self._list_files,
            routes.FILE.name: self._file,
            routes.PUBLISH.name: self._publish,
            routes.PUBLISH_VERSION.name: self._publish,
            routes.UPDATE_VERSION.name: self._update,
            routes.DELETE_VERSION.name: self._delete,
            routes.CREATE_SESSION.name: self._create_session,
            routes.SET_OBJECT.name: self._set_object,
            routes.CREATE_SNAPSHOT.name: self._create_snapshot,
            routes.CLOSE_SESSION.name: self._close_session,
            routes.DELETE_SNAPSHOT.name: self._delete_snapshot,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        request = Request(scope, receive)
        found = routes.match(request.method, raw_path(request))
        response = await self._answer(request, found)
        if self.has_keys and found and found[0] in (routes.START_BATCH, routes.BATCHES):
            # On refusals, too: a client learns from any reply what it may rely on.
            response.headers[routes.ACCEPT_IDEMPOTENCY_KEY] = "true"
        try:
            await response(scope, receive, send)
        except (asyncio.CancelledError, DeletedMeanwhile):
            # The server stops, or there is nothing to go on with: uvicorn cuts the line, so that
            # nobody takes the reply for whole.
            return

    async def _answer(self, request: Request, found: tuple[Route, Names] | None) -> Response:
        try:
            return await self._dispatch(request, found)
        except Refusal as refusal:
            return refusal.reply()
        except InputError as error:
            return bad_request(str(error)).reply()
        except Denied as error:
            return Refusal(401, str(error), {"www-authenticate": "Bearer"}).reply()
        except Throttled as error:
            return Refusal(429, str(error), {"retry-after": str(error.seconds)}).reply()
        except StorageError as error:
            return Refusal(507 if error.is_full else 500, str(error)).reply()
        except asyncio.CancelledError:
            # It took longer than the server waits when it stops.
            return Refusal(503, "The server stops: try again later", {"retry-after": "5"}).reply()
        except BusyError:
            message = "Too many calls are waiting: try again later"
            return Refusal(503, message, {"retry-after": "1"}).reply()
        except Exception:
            log.exception("%s %s", request.method, request.url.path)
            return Refusal(500, "Internal server error").reply()

    async def _dispatch(self, request: Request, found: tuple[Route, Names] | None) -> Response:
        if found is None:
            path = raw_path(request)
            if operation := routes.name_not_offered(request.method, path):
                self._check_token(request)
                raise Refusal(501, f"This server does not offer {operation}")
            raise _no_route(path)
        route, names = found
        if not route.is_open:
            self._check_token(request)
        return await self._handlers[route.name](request, names)

    def _check_token(self, request: Request) -> None:
        token = bearer_token(request)
        if token is None:
            raise Denied("Missing access token")
        self.tokens.check(token)

    # --- login ---

    async def _log_in(self, request: Request, names: Names) -> Response:
        username, password = read_login(await read_body(request, _MOST_LOGIN_BYTES))
        client = request.client.host if request.client else ""
        return _tokens_reply(await self.tokens.log_in(username, password, client))

    async def _renew(self, request: Request, names: Names) -> Response:
        refresh_token = read_renewal(await read_body(request, _MOST_LOGIN_BYTES))
        return _tokens_reply(await self.tokens.renew(refresh_token))

    async def _revoke(self, request: Request, names: Names) -> Response:
        refresh_token = names.get("refreshToken") or request.query_params.get("refreshToken")
        if not refresh_token:
            raise bad_request("refreshToken: found nothing, expected the token to revoke")
        await self.tokens.revoke(refresh_token)
        return json_reply({})

    # --- server and services ---

    async def _status(self, request: Request, names: Names) -> Response:
        return json_reply(self._health())

    def _health(self) -> dict[str, Any]:
        runner = self.runner
        workers = "pass" if runner.ready_workers else "fail" if runner.worker_problem else "warn"
        database = "fail" if runner.storage_problem else "pass"
        cluster = runner.cluster_health
        words = (workers, database, cluster["statusCode"] if cluster else "pass")
        worst = next(word for word in ("fail", "warn", "pass") if word in words)
        return {
            "statusCode": worst,
            "components": {
                **({"dask": cluster} if cluster else {}),
                "workers": _component(
                    workers, ready=runner.ready_workers, problem=runner.worker_problem
                ),
                "database": _component(database, type="sqlite", problem=runner.storage_problem),
            },
            "details": {
                "activeExecutions": runner.active_executions,
                "publishedServices": len(self.catalogue),
                "retention": self.retention.details,
            },
        }

    async def _list_services(self, request: Request, names: Names) -> Response:
        return json_reply([write_service(service) for service in self.catalogue.services()])

    async def _list_versions(self, request: Request, names: Names) -> Response:
        found = self.catalogue.services(names["name"])
        if not found:
            raise service_not_found(self.catalogue.services(), names["name"])
        return json_reply([write_service(service) for service in found])

    async def _list_version(self, request: Request, names: Names) -> Response:
        return json_reply([write_service(self._entry(names).service)])

    async def _swagger(self, request: Request, names: Names) -> Response:
        return json_reply(service_document(self._entry(names).service))

    async def _core_swagger(self, request: Request, names: Names) -> Response:
        return json_reply(core_document())

    def _entry(self, names: Names) -> Entry:
        entry = self.catalogue.get(names["name"], names["version"])
        if entry is None:
            raise service_not_found(self.catalogue.services(), names["name"], names["version"])
        return entry

    # --- publishing ---

    def _publishing(self) -> Publishing:
        if self.publishing is None:
            raise Refusal(
                403, "Publishing is off on this server: start it with --allow-publish to turn it on"
            )
        return self.publishing

    async def _publish(self, request: Request, names: Names) -> Response:
        publishing = self._publishing()
        publication = read_publication(await read_body(request, _MOST_PUBLICATION_BYTES))
        version = names.get("version") or str(uuid.uuid4())
        await publishing.publish(names["name"], version, publication)
        return json_reply(version, routes.PUBLISH.success)

    async def _update(self, request: Request, names: Names) -> Response:
        publishing = self._publishing()
        publication = read_publication(await read_body(request, _MOST_PUBLICATION_BYTES))
        await publishing.update(names["name"], names["version"], publication)
        return json_reply(names["version"])

    async def _delete(self, request: Request, names: Names) -> Response:
        await self._publishing().delete(names["name"], names["version"])
        return json_reply(names["version"])

    async def _create_session(self, request: Request, names: Names) -> Response:
        sessions = self._publishing().sessions
        runtime = read_session_request(await read_body(request, _MOST_LOGIN_BYTES))
        session_id = await sessions.create(runtime)
        return json_reply({"sessionId": session_id}, routes.CREATE_SESSION.success)

    async def _set_object(self, request: Request, names: Names) -> Response:
        pieces = body_pieces(request, self.limits.max_object_bytes)
        await self._publishing().sessions.set_object(names["id"], names["objectName"], pieces)
        return json_reply({})

    async def _create_snapshot(self, request: Request, names: Names) -> Response:
        sessions = self._publishing().sessions
        # A name may come; a snapshot is spoken of by its id alone.
        await read_body(request, _MOST_LOGIN_BYTES)
        snapshot_id = await sessions.create_snapshot(names["id"])
        return json_reply({"snapshotId": snapshot_id}, routes.CREATE_SNAPSHOT.success)

    async def _close_session(self, request: Request, names: Names) -> Response:
        await self._publishing().sessions.close(names["id"])
        return json_reply(names["id"])

    async def _delete_snapshot(self, request: Request, names: Names) -> Response:
        await self._publishing().sessions.delete_snapshot(names["id"])
        return json_reply(names["id"])

    # --- scoring ---

    async def _consume(self, request: Request, names: Names) -> Response:
        self._entry(names)
        body = await read_body(request, self.limits.max_body_bytes)
        # Not the one from before the body: it may have been replaced while that arrived.
        entry = self._entry(names)
        entry.reader.values(body)
        return json_reply(await self.runner.call(entry, body))

    async def _start_batch(self, request: Request, names: Names) -> Response:
        parallel_count = count_parameter(request, "parallelCount", routes.PARALLEL_COUNT)
        key_text = idempotency_key(request) if self.has_keys else None
        if key_text is None:
            self._entry(names)
        body = await read_body(request, self.limits.max_body_bytes)
        key = None if key_text is None else await asyncio.to_thread(_start_key, key_text, body)
        try:
            execution, is_new = await self._started(names, parallel_count, body, key)
        except OtherBodyError as error:
            raise Refusal(
                422,
                f"{routes.IDEMPOTENCY_KEY}: the key {key_text!r} has started execution "
                f"{error.execution_id} with another body. Send the same body again, or a new key",
            ) from None
        reply = json_reply(
            write_execution_id(execution.id, execution.service, execution.version),
            routes.START_BATCH.success,
        )
        if not is_new:
            reply.headers[routes.IDEMPOTENCY_REPLAYED] = "true"
        return reply

    async def _started(
        self, names: Names, parallel_count: int, body: bytes, key: StartKey | None
    ) -> tuple[Execution, bool]:
        """Start a batch, or find the one that its key has started; whether it is new."""
        if key is not None:
            # First of all: neither a full disk nor a new limit concerns a batch that is there, nor
            # does it that the service was deleted meanwhile.
            known = self.store.started_with(names["name"], names["version"], key)
            if known is not None:
                return known, False
        self._check_room(len(body))
        while True:
            entry = self._entry(names)
            records = await self._split(entry, body)
            # What it begins with may be replaced just now: then it begins with the new one.
            with suppress(SupersededError):
                execution, is_new = await self.catalogue.start_batch(
                    entry, str(uuid.uuid4()), parallel_count, records, key
                )
                if is_new:
                    self.runner.add(execution, entry.program)
                return execution, is_new

    def _check_room(self, size: int) -> None:
        if problem := self.runner.storage_problem:
            # Outcomes do not get away: what comes now would only wait behind them.
            raise StorageError(problem)
        self.folder.check_room(size)

    async def _split(self, entry: Entry, body: bytes) -> list[Block]:
        """The records of a new batch."""
        # In a thread: a million records take a second.
        return await asyncio.to_thread(self._blocks, entry, body)

    def _blocks(self, entry: Entry, body: bytes) -> list[Block]:
        records = entry.reader.split(body)
        if len(records) > self.limits.max_records:
            raise Refusal(
                413,
                f"body: found {len(records):,} records, "
                f"expected at most {self.limits.max_records:,}, the limit of this server",
            )
        return blocks_of(records)

    # --- batches ---

    async def _list_batches(self, request: Request, names: Names) -> Response:
        asked = key_parameter(request) if self.has_keys else None
        if asked is None:
            ids = self.store.execution_ids(names["name"], names["version"])
        else:
            key, is_prefix = asked
            ids = self.store.ids_by_key(names["name"], names["version"], key, is_prefix=is_prefix)
        if not ids:
            self._entry(names)
        return json_reply(ids)

    async def _batch(self, request: Request, names: Names) -> Response:
        execution = self._execution(names)
        is_partial = flag_parameter(request, (_PARTIAL, _VENDORS_PARTIAL), True)
        # The vendor's own clients wait for "Complete", generated ones know "complete" alone.
        is_vendors = has_parameter(request, _VENDORS_PARTIAL) and not has_parameter(
            request, _PARTIAL
        )
        status = self.runner.status(execution)
        count = status.completed_item_count if is_partial or status.is_terminal else 0
        if not count:
            return json_reply(b"".join(batch_document(status, (), is_capitalized=is_vendors)))
        head = b"".join(batch_document(status, (b"",), is_capitalized=is_vendors))
        return StreamingResponse(
            self._results(execution.number, status, count, head), media_type="application/json"
        )

    async def _results(
        self, number: int, status: BatchStatus, count: int, empty: bytes
    ) -> AsyncIterator[bytes]:
        """The document in pieces; the results are those without a gap from the first record on.

        :param empty: the document without results
        """
        position = 0
        opening, _, closing = empty.rpartition(b"[")
        piece, separator, size = [opening, b"["], b"", _FIRST_PIECE_BYTES
        while position < count:
            blocks = await asyncio.to_thread(self._gapless, number, range(position, count), size)
            if not blocks:
                break
            position = blocks[-1].end
            texts = b",".join(block.texts for block in blocks)
            yield b"".join(piece) + separator + texts
            piece, separator, size = [], b",", _PIECE_BYTES
        if status.is_terminal and position < count:
            raise DeletedMeanwhile
        yield b"".join(piece) + closing

    def _gapless(self, number: int, wanted: range, max_bytes: int) -> list[Block]:
        """Outcomes from the first wanted position on, as far as there is no gap."""
        found: list[Block] = []
        position = wanted.start
        for block in self.store.outcomes(number, position, max_bytes):
            if block.first != position or position == wanted.stop:
                break
            found.append(block.part(position, min(block.end, wanted.stop)))
            position = found[-1].end
        return found

    async def _cancel_batch(self, request: Request, names: Names) -> Response:
        execution = self._execution(names)
        if not await self.runner.delete(execution):
            raise Refusal(404, EXECUTION_NOT_FOUND)
        return json_reply([execution.id])

    async def _list_files(self, request: Request, names: Names) -> Response:
        return json_reply(self._file_names(self._execution(names), names["index"]))

    async def _file(self, request: Request, names: Names) -> Response:
        execution, wanted = self._execution(names), names["fileName"]
        if wanted not in self._file_names(execution, names["index"]):
            raise Refusal(404, FILE_NOT_FOUND)
        # All of this path was written by the server itself: the id and the name were only compared.
        path = self.folder.artifacts(execution.id) / str(int(names["index"])) / wanted
        if not await asyncio.to_thread(path.is_file):
            raise Refusal(404, FILE_NOT_FOUND)
        headers = {"x-content-type-options": "nosniff"}
        return FileResponse(path, headers=headers, filename=wanted)

    def _execution(self, names: Names) -> Execution:
        execution = self.store.execution(names["name"], names["version"], names["executionId"])
        if execution is None:
            self._entry(names)
            raise Refusal(404, EXECUTION_NOT_FOUND)
        return execution

    def _file_names(self, execution: Execution, index: str) -> tuple[str, ...]:
        is_index = index.isascii() and index.isdigit() and len(index) < 19
        if not is_index or int(index) >= execution.total:
            raise bad_request(
                f"index: found {index!r:.80}, expected a whole number from 0, "
                f"below {execution.total}"
            )
        outcome = self.store.outcome(execution.number, int(index))
        return () if outcome is None else read_record_result(outcome).artifacts


def _tokens_reply(new: NewTokens) -> Response:
    reply = json_reply(write_tokens(new.access_token, new.refresh_token, new.now, new.lifetime))
    reply.headers["cache-control"] = "no-store"
    return reply


def _start_key(key: str, body: bytes) -> StartKey:
    return StartKey(key, hashlib.sha256(body).digest())


def _component(status_code: str, **details: Any) -> dict[str, Any]:
    return {"statusCode": status_code, "components": {}, "details": details}


def _no_route(path: str) -> Refusal:
    verbs = sorted(route.method for route in routes.ROUTES if route.match_path(path) is not None)
    if verbs:
        return Refusal(405, f"Expected one of {', '.join(verbs)}", {"allow": ", ".join(verbs)})
    return Refusal(404, "Not found: there is no such path")
