"""The pages about batches inside Airflow.

Law: every process of Airflow imports this module, workers too, so it imports nothing of weight. The
application is made when an API server asks for it, and only then are FastAPI and the rest imported.

========== ======================================================================================
module     subject
========== ======================================================================================
app        the routes
answers    what they answer with
access     who may see and do what
notes      which batch a task has to do with, as the task recorded it
groups     a task group as one table that is being scored
tables     rows of tables in storage: inputs, and what was written
servers    one patient hook for each connection
board      how far each batch is: one poll for all viewers
records    the first records of a batch, without reading the rest
artifacts  files of records as untrusted bytes
shell      the HTML around the scripts
static/    scripts and styles, sent as they are
========== ======================================================================================
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

from airflow.providers.common.compat.sdk import AirflowPlugin

from airflow_mlbatch.links.batch_execution import PAGES_PREFIX, pages_are_on

__all__ = ["BatchPagesPlugin"]


class BatchPagesPlugin(AirflowPlugin):
    """Registers the pages; with ``[mlbatch] ui_enabled = False`` it registers nothing."""

    name = "mlbatch"

    @cached_property
    def fastapi_apps(self) -> list[Any]:  # type: ignore[override]
        """The application, made on first use: of all processes only the API server asks."""
        if not pages_are_on():
            return []
        from airflow_mlbatch.plugins.app import make_app

        return [{"name": "mlbatch", "app": make_app(), "url_prefix": f"/{PAGES_PREFIX}"}]

    @cached_property
    def external_views(self) -> list[Any]:  # type: ignore[override]
        """The list of batches in the navigation (Airflow 3.1 and later)."""
        if not pages_are_on():
            return []
        return [
            {
                "name": "Batches",
                # Relative, so that it is right behind a base_url with a path.
                "href": f"{PAGES_PREFIX}/",
                "destination": "nav",
                "category": "browse",
                "url_route": "mlbatch-batches",
            }
        ]
