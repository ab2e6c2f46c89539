"""The routes of the pages.

Law: each route says who may call it, and a route about a task has the Dag's id in its path. Which
server, which connection and which execution is meant stands in the task's note, never in a request.
Routes that ask a server are plain ``def``: they block a thread, not the event loop.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Path, Query, Request
from fastapi.responses import HTMLResponse, Response
from starlette.exceptions import HTTPException as AnyHTTPException

from airflow_mlbatch.plugins import groups, notes
from airflow_mlbatch.plugins.access import (
    CANCELS,
    LOGGED_IN,
    READS,
    User,
    may_cancel,
    readable_dags,
)
from airflow_mlbatch.plugins.answers import (
    as_json,
    asking_about,
    base_of,
    batch_of,
    explained,
    guarded,
    reading_storage,
    task_of,
)
from airflow_mlbatch.plugins.artifacts import MAX_BYTES, file_headers
from airflow_mlbatch.plugins.board import INTERVAL_SECONDS, Board
from airflow_mlbatch.plugins.notes import Batch, BatchTask
from airflow_mlbatch.plugins.records import Beginnings
from airflow_mlbatch.plugins.servers import Servers
from airflow_mlbatch.plugins.shell import asset, page
from airflow_mlbatch.plugins.tables import PAGE_ROWS, StoredTables, WrittenTable
from airflow_mlbatch.protocol.results import BatchStatus

__all__ = ["make_app"]

TASK = "/dags/{dag_id}/runs/{run_id}/tasks/{task_id}/{map_index}"
TABLE = "/dags/{dag_id}/runs/{run_id}/tables/{plan_task_id}"
PAGE_SIZE = 25
SHARDS_SIZE = 100
# How long the first view of a batch waits for its first poll.
_FIRST_LOOK_SECONDS = 2.0

MapIndex = Annotated[int, Path(ge=-1)]
Index = Annotated[int, Query(ge=0)]


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
    app.middleware("http")(guarded)
    app.exception_handler(AnyHTTPException)(explained)
    _add_pages(app)
    _add_list(app, board)
    _add_batch(app, servers, board, beginnings)
    _add_groups(app)
    _add_tables(app, servers, StoredTables())
    return app


# --- pages ---------------------------------------------------------------------------------------


def _add_pages(app: FastAPI) -> None:
    @app.get("/", dependencies=LOGGED_IN)
    def batches_page(request: Request) -> HTMLResponse:
        return HTMLResponse(page("Batches", "batches.js", base_of(request)))

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
        return HTMLResponse(page(f"{dag_id} {task_id}: batch", "batch.js", base_of(request)))


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
        return as_json(
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
    if task.is_table:
        return {"task": task.as_dict(), "table": groups.summary(task)}
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
        task = task_of(dag_id, run_id, task_id, map_index)
        shown: dict[str, Any] = {
            "task": task.as_dict(),
            "table": groups.table_of(task),
            "batch": None,
            "progress": None,
            "can_cancel": False,
            "interval": INTERVAL_SECONDS,
        }
        if task.batch is not None:
            seen = board.look(task.batch, wait=_FIRST_LOOK_SECONDS)
            shown["batch"] = _shown(task, task.batch)
            shown["batch"]["server"] = servers.url(task.batch.conn_id)
            shown["progress"] = seen.as_dict(_submitted_at(task))
            shown["can_cancel"] = may_cancel(request, user)
        return as_json(shown)

    @app.get(TASK + "/records", dependencies=READS)
    def records(dag_id: str, run_id: str, task_id: str, map_index: MapIndex) -> Response:
        batch = batch_of(dag_id, run_id, task_id, map_index)
        with asking_about(batch):
            content = beginnings.read(batch)
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
        batch = batch_of(dag_id, run_id, task_id, map_index)
        with asking_about(batch), servers.asked(batch.conn_id) as hook:
            content = hook.get_artifact(
                batch.service_name,
                batch.service_version,
                batch.execution_id,
                index,
                file_name,
                max_bytes=MAX_BYTES,
            )
        return Response(content, headers=file_headers(file_name, content))

    @app.post(TASK + "/cancel", dependencies=CANCELS)
    def cancel(user: User, dag_id: str, run_id: str, task_id: str, map_index: MapIndex) -> Response:
        batch = batch_of(dag_id, run_id, task_id, map_index)
        notes.log_action("mlbatch_cancel", user, dag_id, run_id, task_id, map_index)
        with asking_about(batch), servers.asked(batch.conn_id) as hook:
            was_there = hook.cancel_batch(
                batch.service_name, batch.service_version, batch.execution_id
            )
        board.forget(batch)
        return as_json({"was_there": was_there})


# --- a table in shards ---------------------------------------------------------------------------


def _add_groups(app: FastAPI) -> None:
    @app.get(TABLE, dependencies=READS)
    def table_page(request: Request, dag_id: str, plan_task_id: str) -> HTMLResponse:
        return HTMLResponse(page(f"{dag_id} {plan_task_id}: table", "table.js", base_of(request)))

    @app.get(TABLE + "/status", dependencies=READS)
    def table_status(
        dag_id: str,
        run_id: str,
        plan_task_id: str,
        offset: Annotated[int, Query(ge=0)] = 0,
    ) -> Response:
        plan = groups.find_table(dag_id, run_id, plan_task_id)
        if plan is None:
            raise HTTPException(404, "This task has not planned a table, or its run is deleted.")
        return as_json(
            {
                "task": plan.as_dict(),
                "table": groups.summary(plan),
                "shards": [
                    shard.as_dict() for shard in groups.shards_of(plan, offset, SHARDS_SIZE)
                ],
                "page_size": SHARDS_SIZE,
                "interval": INTERVAL_SECONDS,
            }
        )


# --- tables in storage ---------------------------------------------------------------------------


def _add_tables(app: FastAPI, servers: Servers, stored: StoredTables) -> None:
    def written(task: BatchTask) -> list[WrittenTable]:
        if task.batch is None:
            return []
        with reading_storage():
            return stored.written(notes.writers_of(task), task.batch.execution_id)

    @app.get(TASK + "/tables", dependencies=READS)
    def tables(dag_id: str, run_id: str, task_id: str, map_index: MapIndex) -> Response:
        found = written(task_of(dag_id, run_id, task_id, map_index))
        return as_json({"tables": [table.as_dict() for table in found]})

    @app.get(TASK + "/tables/{name}", dependencies=READS)
    def rows(
        dag_id: str,
        run_id: str,
        task_id: str,
        map_index: MapIndex,
        name: str,
        offset: Annotated[int, Query(ge=0)] = 0,
    ) -> Response:
        task = task_of(dag_id, run_id, task_id, map_index)
        table = next((each for each in written(task) if each.name == name), None)
        if table is None:
            raise HTTPException(404, "No table of this name holds the results of this batch now.")
        with reading_storage():
            content = stored.rows(table, offset)
        return Response(content, media_type="application/json")

    @app.get(TASK + "/inputs", dependencies=READS)
    def inputs(
        dag_id: str,
        run_id: str,
        task_id: str,
        map_index: MapIndex,
        index: Annotated[list[Index], Query(max_length=PAGE_ROWS)],
    ) -> Response:
        task = task_of(dag_id, run_id, task_id, map_index)
        starter = notes.starter_of(task)
        if starter is None or starter.batch is None:
            return as_json(None)
        batch = starter.batch
        with asking_about(batch), servers.asked(batch.conn_id) as hook:
            service = hook.get_service(batch.service_name, batch.service_version)
        with reading_storage():
            content = stored.inputs(notes.rendered_fields(starter), service, sorted(set(index)))
        return Response(content or b"null", media_type="application/json")


# --- what the scripts are told about a batch ------------------------------------------------------


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
