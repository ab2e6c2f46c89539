"""The hook: login and the REST calls, under the names of the vendor's R functions in snake case."""

from airflow_mlbatch.hooks.batch import Batch
from airflow_mlbatch.hooks.mlbatch import MLBatchHook

__all__ = ["Batch", "MLBatchHook"]
