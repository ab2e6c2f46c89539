"""Looks a connection up, and says whether it can ever be found.

Airflow says of a connection that it is not defined also where a secrets backend could not be asked: it
keeps the backend's error for its debug log. The first is permanent and the second may pass, so that the
backends are asked once more for what they fail with.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow.providers.common.compat.sdk import AirflowNotFoundException, BaseHook

from airflow_mlbatch.errors import ConnectionConfigError, MLBatchError

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Connection

__all__ = ["look_up", "why_not_found"]

# Airflow's own: the environment, its database, and the API server by way of the supervisor.
_OF_AIRFLOW = ("airflow.secrets.", "airflow.sdk.")


def look_up(conn_id: str) -> Connection:
    """A connection by its id.

    :raises ConnectionConfigError: there is none
    :raises MLBatchError: a secrets backend could not be asked
    """
    try:
        connection: Connection = BaseHook.get_connection(conn_id)
    except AirflowNotFoundException as error:
        raise why_not_found(conn_id) from error
    return connection


def why_not_found(conn_id: str) -> MLBatchError:
    """The error for a connection that Airflow has not found."""
    from airflow.sdk.execution_time.supervisor import ensure_secrets_backend_loaded

    for backend in ensure_secrets_backend_loaded():
        if type(backend).__module__.startswith(_OF_AIRFLOW):
            continue
        try:
            backend.get_connection(conn_id=conn_id)
        except Exception as error:
            # Not its text, which may hold the backend's own credentials.
            return MLBatchError(
                f"connection {conn_id!r}: the secrets backend {type(backend).__name__} failed with "
                f"{type(error).__name__}"
            )
    return ConnectionConfigError(
        f"connection {conn_id!r}: found none of this id, expected one of type 'mlbatch'; create it, "
        "or correct mlbatch_conn_id"
    )
