"""What the routes answer with: JSON, pages that say one thing, and sentences about failures.

Law: every failure is a sentence that somebody who looks at a page understands.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
from airflow.api_fastapi.app import get_auth_manager
from fastapi import HTTPException, Request
from fastapi.responses import HTMLResponse, Response
from starlette.exceptions import HTTPException as AnyHTTPException

from airflow_mlbatch.errors import ExecutionNotFoundError, MLBatchError, NotFoundError
from airflow_mlbatch.plugins import notes
from airflow_mlbatch.plugins.notes import Batch, BatchTask
from airflow_mlbatch.plugins.servers import BusyError, sentence
from airflow_mlbatch.plugins.shell import CONTENT_SECURITY_POLICY, message_page

__all__ = [
    "as_json",
    "asking_about",
    "base_of",
    "batch_of",
    "explained",
    "guarded",
    "reading_storage",
    "task_of",
]


def task_of(dag_id: str, run_id: str, task_id: str, map_index: int) -> BatchTask:
    """:raises HTTPException: there is no such task instance"""
    task = notes.find_task(dag_id, run_id, task_id, map_index)
    if task is None:
        raise HTTPException(404, "Airflow has no such task instance; its run may be deleted.")
    return task


def batch_of(dag_id: str, run_id: str, task_id: str, map_index: int) -> Batch:
    """:raises HTTPException: there is no such task instance, or it has recorded no batch"""
    batch = task_of(dag_id, run_id, task_id, map_index).batch
    if batch is None:
        raise HTTPException(404, "This task has not recorded a batch.")
    return batch


def base_of(request: Request) -> str:
    """The path that the pages are mounted on."""
    return str(request.scope.get("root_path", ""))


def as_json(value: Any) -> Response:
    """A value as the answer to a script."""
    return Response(msgspec.json.encode(value, enc_hook=str), media_type="application/json")


@contextmanager
def asking_about(batch: Batch) -> Iterator[None]:
    """Errors of a scoring server become the answer to the request, in a sentence.

    :raises HTTPException: for each :class:`MLBatchError`
    """
    try:
        yield
    except BusyError as error:
        raise _busy(error) from error
    except MLBatchError as error:
        gone = 410 if isinstance(error, ExecutionNotFoundError) else 404
        status = gone if isinstance(error, NotFoundError) else 502
        raise HTTPException(status, sentence(error, batch.conn_id)) from error


@contextmanager
def reading_storage() -> Iterator[None]:
    """The same for errors of a storage.

    :raises HTTPException: for each :class:`MLBatchError` and :class:`OSError`
    """
    try:
        yield
    except BusyError as error:
        raise _busy(error) from error
    except (MLBatchError, OSError) as error:
        raise HTTPException(502, f"The API server cannot read the table: {error}") from error


def _busy(error: BusyError) -> HTTPException:
    return HTTPException(503, str(error), headers={"Retry-After": "1"})


async def guarded(
    request: Request, call_next: Callable[[Request], Awaitable[Response]]
) -> Response:
    """What every answer says to the browser, whatever it is."""
    response = await call_next(request)
    response.headers.setdefault("Content-Security-Policy", CONTENT_SECURITY_POLICY)
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Referrer-Policy"] = "same-origin"
    response.headers.setdefault("Cache-Control", "no-store")
    return response


async def explained(request: Request, error: Exception) -> Response:
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
    html = message_page(title, text, base_of(request), link)
    return HTMLResponse(html, error.status_code, headers)
