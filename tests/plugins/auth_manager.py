"""Airflow's simple auth manager, with a Dag that only its owner may see."""

from __future__ import annotations

from typing import Any

from airflow.api_fastapi.auth.managers.simple.simple_auth_manager import SimpleAuthManager

__all__ = ["PRIVATE_DAG", "PerDagAuthManager"]

PRIVATE_DAG = "private"


class PerDagAuthManager(SimpleAuthManager):
    """Rights of single Dags, which the simple auth manager does not know."""

    def is_authorized_dag(
        self, *, method: Any, user: Any, access_entity: Any = None, details: Any = None
    ) -> bool:
        if details is not None and details.id == PRIVATE_DAG and user.username != "owner":
            return False
        return super().is_authorized_dag(
            method=method, user=user, access_entity=access_entity, details=details
        )
