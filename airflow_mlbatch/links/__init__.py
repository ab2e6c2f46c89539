"""Links that the task's page shows."""

from airflow_mlbatch.links.batch_execution import BatchExecutionLink, batch_page, checked_id, is_id
from airflow_mlbatch.links.batch_note import note_batch, note_table

__all__ = ["BatchExecutionLink", "batch_page", "checked_id", "is_id", "note_batch", "note_table"]
