"""Batch scoring on Machine Learning Server from Apache Airflow."""

__version__ = "0.1.0"
