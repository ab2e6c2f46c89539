"""The routes of the pages.

Law: each route says who may call it, and a route about a task has the Dag's id in its path. Which
server, which connection and which execution is meant stands in the task's note, never in a request.
Routes that ask a server are plain ``def``: they block a thread, not the event loop.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Annotated, Any

import msgspec
from airflow.api_fastapi.app import get_auth_manager
from fastapi import FastAPI, HTTPException, Path, Query, Request
from fastapi.responses import HTMLResponse, Response
from starlette.exceptions import HTTPException as AnyHTTPException

from airflow_mlbatch.errors import ExecutionNotFoundError, MLBatchError, NotFoundError
from airflow_mlbatch.plugins import notes
from airflow_mlbatch.plugins.access import (
    CANCELS,
    LOGGED_IN,
    READS,
    User,
    may_cancel,
    readable_dags,
)
from airflow_mlbatch.plugins.artifacts import MAX_BYTES, file_headers
from airflow_mlbatch.plugins.board import INTERVAL_SECONDS, Board
from airflow_mlbatch.plugins.notes import Batch, BatchTask
from airflow_mlbatch.plugins.records import Beginnings
from airflow_mlbatch.plugins.servers import BusyError, Servers, sentence
from airflow_mlbatch.plugins.shell import CONTENT_SECURITY_POLICY, asset, message_page, page
from airflow_mlbatch.protocol.results import BatchStatus

__all__ = ["make_app"]

TASK = "/dags/{dag_id}/runs/{run_id}/tasks/{task_id}/{map_index}"
PAGE_SIZE = 25
# How long the first view of a batch waits for its first poll.
_FIRST_LOOK_SECONDS = 2.0

MapIndex = Annotated[int, Path(ge=-1)]


def make_app() -> FastAPI:
    """The application of the pages, with caches of its own."""
    servers = Servers()

    def poll(batch: Batch) -> BatchStatus:
        with servers.asked(batch.conn_id) as hook:
            return hook.get_batch_status(
                batch.service_name, batch.service_version, batch.execution_id
            )

    board, beginnings = Board(poll), Beginnings(servers)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        board.close()

    # Pages that describe the routes would be routes without a login.
    app = FastAPI(
        title="mlbatch", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan
    )
    app.middleware("http")(_guarded)
    app.exception_handler(AnyHTTPException)(_explained)
    _add_pages(app)
    _add_list(app, board)
    _add_batch(app, servers, board, beginnings)
    return app


# --- pages ---------------------------------------------------------------------------------------


def _add_pages(app: FastAPI) -> None:
    @app.get("/", dependencies=LOGGED_IN)
    def batches_page(request: Request) -> HTMLResponse:
        return HTMLResponse(page("Batches", "batches.js", _base(request)))

    @app.get("/static/{name}", dependencies=LOGGED_IN)
    def static(name: str) -> Response:
        found = asset(name)
        if found is None:
            raise HTTPException(404, "There is no such file.")
        content, media_type = found
        headers = {"Cache-Control": "private, no-cache"}
        return Response(content, media_type=media_type, headers=headers)

    @app.get(TASK, dependencies=READS)
    def batch_page(request: Request, dag_id: str, task_id: str) -> HTMLResponse:
        return HTMLResponse(page(f"{dag_id} {task_id}: batch", "batch.js", _base(request)))


def _base(request: Request) -> str:
    return str(request.scope.get("root_path", ""))


# --- the list ------------------------------------------------------------------------------------


def _add_list(app: FastAPI, board: Board) -> None:
    @app.get("/list")
    def batches(
        user: User,
        dag_id: str | None = None,
        service: str | None = None,
        state: str | None = None,
        offset: Annotated[int, Query(ge=0)] = 0,
    ) -> Response:
        readable = readable_dags(user, notes.dags_with_batches())
        wanted = readable & {dag_id} if dag_id else readable
        tasks, total = notes.list_tasks(
            wanted, service=service, state=state, offset=offset, limit=PAGE_SIZE
        )
        failed = notes.failed_counts(tasks)
        return _json(
            {
                "batches": [_row(task, board, failed) for task in tasks],
                "total": total,
                "page_size": PAGE_SIZE,
                "interval": INTERVAL_SECONDS,
                "dags": sorted(readable),
                "services": notes.services_of(readable),
            }
        )


def _row(task: BatchTask, board: Board, failed: dict[str, int]) -> dict[str, Any]:
    batch = task.batch
    if batch is None:
        return {"task": task.as_dict(), "batch": None, "progress": None, "failed": None}
    return {
        "task": task.as_dict(),
        "batch": _shown(task, batch),
        "progress": board.look(batch).as_dict(_submitted_at(task)),
        "failed": failed.get(batch.execution_id),
    }


# --- one batch -----------------------------------------------------------------------------------


def _add_batch(app: FastAPI, servers: Servers, board: Board, beginnings: Beginnings) -> None:
    @app.get(TASK + "/status", dependencies=READS)
    def status(
        request: Request, user: User, dag_id: str, run_id: str, task_id: str, map_index: MapIndex
    ) -> Response:
        task = _task(dag_id, run_id, task_id, map_index)
        told: dict[str, Any] = {
            "task": task.as_dict(),
            "batch": None,
            "progress": None,
            "can_cancel": False,
            "interval": INTERVAL_SECONDS,
        }
        if task.batch is not None:
            seen = board.look(task.batch, wait=_FIRST_LOOK_SECONDS)
            told["batch"] = _shown(task, task.batch)
            told["batch"]["server"] = servers.url(task.batch.conn_id)
            told["progress"] = seen.as_dict(_submitted_at(task))
            told["can_cancel"] = may_cancel(request, user)
        return _json(told)

    @app.get(TASK + "/records", dependencies=READS)
    def records(dag_id: str, run_id: str, task_id: str, map_index: MapIndex) -> Response:
        batch = _batch(dag_id, run_id, task_id, map_index)
        try:
            content = beginnings.read(batch)
        except MLBatchError as error:
            raise _problem(error, batch) from error
        return Response(content, media_type="application/json")

    @app.get(TASK + "/records/{index}/files/{file_name:path}", dependencies=READS)
    def artifact(
        dag_id: str,
        run_id: str,
        task_id: str,
        map_index: MapIndex,
        index: Annotated[int, Path(ge=0)],
        file_name: str,
    ) -> Response:
        batch = _batch(dag_id, run_id, task_id, map_index)
        try:
            with servers.asked(batch.conn_id) as hook:
                content = hook.get_artifact(
                    batch.service_name,
                    batch.service_version,
                    batch.execution_id,
                    index,
                    file_name,
                    max_bytes=MAX_BYTES,
                )
        except MLBatchError as error:
            raise _problem(error, batch) from error
        return Response(content, headers=file_headers(file_name, content))

    @app.post(TASK + "/cancel", dependencies=CANCELS)
    def cancel(user: User, dag_id: str, run_id: str, task_id: str, map_index: MapIndex) -> Response:
        batch = _batch(dag_id, run_id, task_id, map_index)
        notes.log_action("mlbatch_cancel", user, dag_id, run_id, task_id, map_index)
        try:
            with servers.asked(batch.conn_id) as hook:
                was_there = hook.cancel_batch(
                    batch.service_name, batch.service_version, batch.execution_id
                )
        except MLBatchError as error:
            raise _problem(error, batch) from error
        board.forget(batch)
        return _json({"was_there": was_there})


def _task(dag_id: str, run_id: str, task_id: str, map_index: int) -> BatchTask:
    task = notes.find_task(dag_id, run_id, task_id, map_index)
    if task is None:
        raise HTTPException(404, "Airflow has no such task instance; its run may be deleted.")
    return task


def _batch(dag_id: str, run_id: str, task_id: str, map_index: int) -> Batch:
    batch = _task(dag_id, run_id, task_id, map_index).batch
    if batch is None:
        raise HTTPException(404, "This task has not recorded a batch.")
    return batch


def _shown(task: BatchTask, batch: Batch) -> dict[str, Any]:
    count = task.note.get("count")
    return {
        "conn_id": batch.conn_id,
        "service_name": batch.service_name,
        "service_version": batch.service_version,
        "execution_id": batch.execution_id,
        "submitted_at": _submitted_at(task),
        "count": count if isinstance(count, int) else None,
    }


def _submitted_at(task: BatchTask) -> float | None:
    at = task.note.get("submitted_at")
    return float(at) if isinstance(at, int | float) else None


# --- answers -------------------------------------------------------------------------------------


def _json(value: Any) -> Response:
    return Response(msgspec.json.encode(value, enc_hook=str), media_type="application/json")


def _problem(error: MLBatchError, batch: Batch) -> HTTPException:
    """An error of a server as the answer to a request, in a sentence."""
    if isinstance(error, BusyError):
        return HTTPException(503, str(error), headers={"Retry-After": "1"})
    if isinstance(error, ExecutionNotFoundError):
        return HTTPException(410, sentence(error, batch.conn_id))
    status = 404 if isinstance(error, NotFoundError) else 502
    return HTTPException(status, sentence(error, batch.conn_id))


async def _guarded(
    request: Request, call_next: Callable[[Request], Awaitable[Response]]
) -> Response:
    """What every answer says to the browser, whatever it is."""
    response = await call_next(request)
    response.headers.setdefault("Content-Security-Policy", CONTENT_SECURITY_POLICY)
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Referrer-Policy"] = "same-origin"
    response.headers.setdefault("Cache-Control", "no-store")
    return response


async def _explained(request: Request, error: Exception) -> Response:
    """A refusal as a page for somebody who opened an address, as JSON for a script."""
    assert isinstance(error, AnyHTTPException)
    headers = dict(error.headers or {})
    if "text/html" not in request.headers.get("accept", ""):
        body = msgspec.json.encode({"detail": error.detail})
        return Response(body, error.status_code, headers, "application/json")
    link = None
    if error.status_code == 401:
        title, text = "You are not logged in", "This page shows batches to users of Airflow only."
        next_url = str(request.url.replace(query=None).path)
        link = ("Log in", get_auth_manager().get_url_login(next_url=next_url))
    elif error.status_code == 403:
        title, text = "No permission", "You may not read the results of this Dag's tasks."
    else:
        title, text = "Not found" if error.status_code == 404 else "Error", str(error.detail)
    html = message_page(title, text, _base(request), link)
    return HTMLResponse(html, error.status_code, headers)
