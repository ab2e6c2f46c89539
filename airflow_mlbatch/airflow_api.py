"""What Airflow's public REST API tells about the score tasks of a Dag, for programs outside of tasks."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote, urlsplit

from airflow_mlbatch.errors import (
    AnswerError,
    AuthenticationError,
    ConnectionConfigError,
    ConnectionLostError,
    ContractError,
    ForbiddenError,
    NotFoundError,
)
from airflow_mlbatch.hooks.task_fate import is_ended
from airflow_mlbatch.operators.batch_score import EXECUTION_ID_KEY, BatchScoreOperator
from airflow_mlbatch.operators.decorated import MLBatchDecoratedOperator
from airflow_mlbatch.operators.siblings import BATCH_XCOM
from airflow_mlbatch.protocol.orphans import EndedTask

__all__ = ["AirflowApi", "ApiRecords"]

_TIMEOUTS = (10.0, 60.0)  # Seconds to connect, and to wait for bytes.
_PAGE = 100
_ERRORS = {401: AuthenticationError, 403: ForbiddenError, 404: NotFoundError}

# What Airflow's API calls the class of a task: of a decorated one, what it shows to people.
_SCORE_CLASSES = (
    BatchScoreOperator.__name__,
    MLBatchDecoratedOperator.__name__,
    MLBatchDecoratedOperator.custom_operator_name,
)


class AirflowApi:
    """Asks Airflow's API server.

    :param url: its address, for example ``http://localhost:8080``
    :param token: an access token; see :meth:`log_in`
    :raises ConnectionConfigError: the address or the token makes no sense
    """

    def __init__(self, url: str, token: str = "") -> None:
        import requests

        _check_url(url)
        if not token.isascii() or not token.isprintable():
            raise ConnectionConfigError("the token for Airflow holds characters that no token has")
        self._url, self._token = url.rstrip("/"), token
        self._session = requests.Session()

    def log_in(self, username: str, password: str) -> None:
        """Get an access token for a user.

        :raises AuthenticationError: Airflow does not accept the password
        """
        answer = self._ask("POST", "/auth/token", json={"username": username, "password": password})
        token = answer.get("access_token")
        if not isinstance(token, str):
            raise ContractError(f"Airflow at {self._url}: the answer to the login holds no token")
        self._token = token

    def task_instances(self, dag_id: str) -> Iterator[tuple[dict[str, Any], int]]:
        """The task instances of all runs of a Dag, each with the number of all of them."""
        offset = 0
        while True:
            page = self._ask(
                "GET",
                f"/api/v2/dags/{_quoted(dag_id)}/dagRuns/~/taskInstances",
                # Ids grow with time, so that a page does not shift while new runs begin.
                params={"limit": _PAGE, "offset": offset, "order_by": "id"},
            )
            found, total = page.get("task_instances"), page.get("total_entries")
            if not isinstance(found, list) or not isinstance(total, int):
                raise ContractError(f"Airflow at {self._url}: found no list of task instances")
            yield from ((each, total) for each in found)
            offset += len(found)
            if not found or offset >= total:
                return

    def xcom(self, task: EndedTask, key: str) -> Any:
        """A value that a task instance has left in XCom; ``None`` where there is none."""
        path = "/api/v2/dags/{}/dagRuns/{}/taskInstances/{}/xcomEntries/{}".format(
            *map(_quoted, (task.dag_id, task.run_id, task.task_id, key))
        )
        try:
            value = self._ask("GET", path, params={"map_index": task.map_index}).get("value")
        except NotFoundError:
            return None
        return _from_json(value) if isinstance(value, str) else value

    def close(self) -> None:
        """Close the connections."""
        self._session.close()

    def _ask(self, method: str, path: str, **arguments: Any) -> dict[str, Any]:
        import requests

        try:
            reply = self._session.request(
                method,
                self._url + path,
                timeout=_TIMEOUTS,
                allow_redirects=False,
                auth=self._authorized,
                **arguments,
            )
        except requests.RequestException as error:
            name = type(error).__name__
            raise ConnectionLostError(f"Airflow at {self._url} cannot be reached: {name}") from None
        if not reply.ok or reply.is_redirect:
            kind = _ERRORS.get(reply.status_code, AnswerError)
            raise kind(self._refusal(reply), reply.status_code)
        try:
            answer = reply.json()
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise ContractError(
                f"Airflow at {self._url}: found no JSON object behind {path}, expected the API of "
                "Airflow 3"
            )
        return answer

    def _authorized(self, request: Any) -> Any:
        # As `auth`, because requests would otherwise send a password of ~/.netrc in its place.
        if self._token:
            request.headers["Authorization"] = f"Bearer {self._token}"
        return request

    def _refusal(self, reply: Any) -> str:
        try:
            detail = reply.json()["detail"]
        except (ValueError, LookupError, TypeError):
            detail = reply.reason
        return f"Airflow at {self._url} answered {reply.status_code}: {detail!s:.200}"


class ApiRecords:
    """Asks Airflow's REST API; see :class:`airflow_mlbatch.protocol.orphans.AirflowRecords`.

    :param task_ids: the tasks to look at; without any, all tasks of the class ``BatchScoreOperator``, and
        those of ``@task.mlbatch``
    :param on_progress: called with how many task instances were looked at, and how many there are
    """

    def __init__(
        self,
        api: AirflowApi,
        dag_id: str,
        task_ids: Sequence[str] = (),
        on_progress: Callable[[int, int], None] = lambda looked_at, total: None,
    ) -> None:
        self._api, self._dag_id, self._task_ids = api, dag_id, set(task_ids)
        self._on_progress = on_progress

    def ended_tasks(self) -> Iterator[EndedTask]:
        """The instances that have ended, in all runs that Airflow still knows."""
        for number, (found, total) in enumerate(self._api.task_instances(self._dag_id), start=1):
            if self._is_looked_at(found) and is_ended(found["state"]):
                yield EndedTask(
                    found["dag_id"],
                    found["dag_run_id"],
                    found["task_id"],
                    found["map_index"],
                    found["state"],
                )
            if number % _PAGE == 0:
                self._on_progress(number, total)

    def batch_note(self, task: EndedTask) -> Mapping[str, Any] | None:
        """The note about its batch that a task instance has left in XCom."""
        note = self._api.xcom(task, BATCH_XCOM)
        return note if isinstance(note, Mapping) else None

    def result_id(self, task: EndedTask) -> str | None:
        """The execution that a successful task instance has returned."""
        found = self._api.xcom(task, EXECUTION_ID_KEY)
        return found if isinstance(found, str) else None

    def _is_looked_at(self, found: Mapping[str, Any]) -> bool:
        if self._task_ids:
            return found["task_id"] in self._task_ids
        # Airflow 3.0 knows no operator_name, which is the same unless an operator names itself.
        return found["operator"] in _SCORE_CLASSES


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
    except ValueError:
        parts = urlsplit("")
    if parts.username or parts.password:
        raise ConnectionConfigError("--airflow-url: found a user in it, expected none")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConnectionConfigError(
            f"--airflow-url: found {url!r:.80}, expected an address such as http://localhost:8080"
        )


def _quoted(part: str) -> str:
    return quote(part, safe="")


def _from_json(text: str) -> Any:
    """XCom's values are stored as JSON text, and the API gives them out as they are stored."""
    try:
        return json.loads(text)
    except ValueError:
        return text
