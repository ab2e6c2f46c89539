"""Operators."""

from airflow_mlbatch.operators.artifact_download import ArtifactDownloadOperator
from airflow_mlbatch.operators.batch_delete import BatchDeleteOperator
from airflow_mlbatch.operators.batch_results import BatchResultsOperator
from airflow_mlbatch.operators.batch_score import BatchScoreOperator
from airflow_mlbatch.operators.delete_service import DeleteServiceOperator
from airflow_mlbatch.operators.publish_service import PublishServiceOperator

__all__ = [
    "ArtifactDownloadOperator",
    "BatchDeleteOperator",
    "BatchResultsOperator",
    "BatchScoreOperator",
    "DeleteServiceOperator",
    "PublishServiceOperator",
]
