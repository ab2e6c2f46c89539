"""What Airflow's lineage collector hears: the tables and folders that this room reads and writes.

Law: the only module here that asks Airflow for something. It does so in a task only, for a path of
Airflow's own, and where a plugin reads what is collected: making the collector takes half a second.

``ObjectStoragePath.open`` would tell the collector by itself. But a table is opened several times, and
written to another place first. So it is told here, once for each table.
"""

from __future__ import annotations

import importlib
import logging
import sys
from typing import Any

from airflow_mlbatch.datasets.locations import StoragePath, asset_uri, is_local, resolve

__all__ = ["note_read", "note_written"]

log = logging.getLogger(__name__)


def note_read(path: StoragePath) -> None:
    """Say that a table is read."""
    _note("input", path)


def note_written(path: StoragePath) -> None:
    """Say that a table or a folder is in place."""
    _note("output", path)


def _note(role: str, path: StoragePath) -> None:
    if not type(path).__module__.startswith("airflow.") or not _is_read_in_a_task():
        return
    from airflow.providers.common.compat.lineage.hook import get_hook_lineage_collector

    try:
        collector, uri = get_hook_lineage_collector(), _uri_of(path)
        known = getattr(collector.collected_assets, f"{role}s")
        # The collector takes each path object for another asset.
        if uri not in {each.asset.uri for each in known}:
            getattr(collector, f"add_{role}_asset")(context=path, uri=uri)
    except Exception as error:
        # It belongs to other people's plugins, too, and lineage fails no task.
        log.warning("Airflow's lineage collector is not told of %s: %s", path, error)


def _is_read_in_a_task() -> bool:
    # As Airflow itself finds out whether a supervisor has started this process.
    runner = sys.modules.get("airflow.sdk.execution_time.task_runner")
    return hasattr(runner, "SUPERVISOR_COMMS") and _has_readers()


def _has_readers() -> bool:
    try:
        from airflow.sdk.plugins_manager import get_hook_lineage_readers_plugins
    except ImportError:  # Airflow 3.0 and 3.1
        manager: Any = importlib.import_module("airflow.plugins_manager")
        manager.initialize_hook_lineage_readers_plugins()
        return bool(manager.hook_lineage_reader_classes)
    return bool(get_hook_lineage_readers_plugins())


def _uri_of(path: StoragePath) -> str | None:
    filesystem, key = resolve(path)
    return asset_uri(key if is_local(filesystem) else str(path))
