"""Triggers. Their class paths are stored in Airflow's database: once released they never move."""

from airflow_mlbatch.triggers.batch_completed import BatchCompletedTrigger
from airflow_mlbatch.triggers.batch_state import BatchStateTrigger

__all__ = ["BatchCompletedTrigger", "BatchStateTrigger"]
