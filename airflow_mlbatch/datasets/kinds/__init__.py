"""The formats that a table can have: one module for each kind, one row for each name."""

from airflow_mlbatch.datasets.kinds.json_lines import JsonLinesKind
from airflow_mlbatch.datasets.kinds.kind import Kind
from airflow_mlbatch.datasets.kinds.parquet import ParquetKind
from airflow_mlbatch.datasets.kinds.text import TextKind

__all__ = ["KINDS"]

# A name, what messages call it, and further suffixes of its files.
KINDS: tuple[Kind, ...] = (
    TextKind("csv", "CSV", delimiter=","),
    TextKind("tsv", "TSV", "tab", delimiter="\t"),
    ParquetKind("parquet", "Parquet", "pq"),
    JsonLinesKind("jsonl", "JSON Lines", "ndjson"),
)
