"""Who may see and do what.

Law: Airflow does not protect the routes of a plugin, so each route names one of these itself. A route
about a task has the Dag's id in its path, where ``requires_access_dag`` looks for it.
"""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import urlsplit

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity, DagDetails
from airflow.api_fastapi.core_api.security import get_user, requires_access_dag
from airflow.configuration import conf
from fastapi import Depends, HTTPException, Request

__all__ = ["CANCELS", "LOGGED_IN", "READS", "User", "may_cancel", "readable_dags"]

User = Annotated[Any, Depends(get_user)]

_reads_xcom = requires_access_dag("GET", DagAccessEntity.XCOM)
_edits_runs = requires_access_dag("PUT", DagAccessEntity.RUN)


def _from_the_same_origin(request: Request) -> None:
    """Refuse what another site makes a browser send.

    Browsers name the origin of every POST. A request without it does not come from a page.
    """
    site = request.headers.get("sec-fetch-site")
    origin = request.headers.get("origin")
    if site is not None:
        is_ours = site == "same-origin"
    elif origin is not None:
        base_url = urlsplit(conf.get("api", "base_url", fallback="") or "")
        hosts = {request.headers.get("host"), base_url.netloc} - {None, ""}
        is_ours = urlsplit(origin).netloc in hosts
    else:
        is_ours = True
    if not is_ours:
        raise HTTPException(403, "This request comes from another site.")


LOGGED_IN = [Depends(get_user)]
# The note about the batch is an XCom, and so are a batch's results by their nature.
READS = [Depends(_reads_xcom)]
CANCELS = [Depends(_reads_xcom), Depends(_edits_runs), Depends(_from_the_same_origin)]


def may_cancel(request: Request, user: Any) -> bool:
    """Whether the page should offer to cancel; the route itself decides."""
    try:
        _edits_runs(request, user)
    except HTTPException:
        return False
    return True


def readable_dags(user: Any, dag_ids: set[str]) -> set[str]:
    """Those of some Dags whose batches a user may read."""
    manager = get_auth_manager()
    allowed = dag_ids & manager.get_authorized_dag_ids(user=user, method="GET")
    return {
        dag_id
        for dag_id in allowed
        if manager.is_authorized_dag(
            method="GET",
            access_entity=DagAccessEntity.XCOM,
            details=DagDetails(id=dag_id),
            user=user,
        )
    }
