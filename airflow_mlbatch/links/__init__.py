"""Links that the task's page shows."""

from airflow_mlbatch.links.batch_execution import BatchExecutionLink, batch_url, is_id
from airflow_mlbatch.links.batch_task import BatchTask

__all__ = ["BatchExecutionLink", "BatchTask", "batch_url", "is_id"]
