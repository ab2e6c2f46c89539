"""Links that the task's page shows."""

from airflow_mlbatch.links.batch_execution import BatchExecutionLink, batch_url, is_id

__all__ = ["BatchExecutionLink", "batch_url", "is_id"]
