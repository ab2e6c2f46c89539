"""Task groups."""

from airflow_mlbatch.task_groups.batch_score import BatchScoreTaskGroup

__all__ = ["BatchScoreTaskGroup"]
