"""Links that the task's page shows."""

from airflow_mlbatch.links.batch_execution import BatchExecutionLink, batch_url, is_id
from airflow_mlbatch.links.batch_task import BatchTask, is_out_of_time

__all__ = ["BatchExecutionLink", "BatchTask", "batch_url", "is_id", "is_out_of_time"]
