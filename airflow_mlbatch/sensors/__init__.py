"""Sensors."""

from airflow_mlbatch.sensors.batch_state import BatchStateSensor

__all__ = ["BatchStateSensor"]
