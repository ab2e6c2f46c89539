"""The work of ``mlbatch orphans``."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import closing

from airflow_mlbatch.airflow_api import AirflowApi, ApiRecords
from airflow_mlbatch.errors import InputError
from airflow_mlbatch.prompt.connecting import open_hook
from airflow_mlbatch.protocol.orphans import Orphan, find_orphans

__all__ = ["sweep"]


def sweep(options: argparse.Namespace, on_progress: Callable[[int, int], None]) -> Iterator[str]:
    """List the executions that were left over, and delete them if that is wanted.

    :param options: those of the command
    :param on_progress: see :class:`airflow_mlbatch.airflow_api.ApiRecords`
    :return: a line for each of them, and one with their number
    :raises MLBatchError: an option makes no sense, or one of the servers cannot be asked
    """
    # Airflow logs to the standard output, where the list goes, each connection that it looks up.
    logging.getLogger("airflow").setLevel(logging.WARNING)
    with closing(open_hook(options)) as hook, closing(_airflow(options.airflow_url)) as airflow:
        records = ApiRecords(airflow, options.dag_id, options.task_id, on_progress)
        service = (options.service, options.service_version)
        orphans = hook.run(find_orphans(hook.flows, *service, options.dag_id, records))
        deleted = 0
        for orphan in orphans:
            line = _line(orphan)
            if options.delete:
                is_deleted = hook.cancel_batch(*service, orphan.execution_id)
                deleted += is_deleted
                line += ": deleted" if is_deleted else ": was gone already"
            yield line
    count = f"executions left over: {len(orphans):,}"
    yield f"{count}, deleted: {deleted:,}" if options.delete else count


def _line(orphan: Orphan) -> str:
    task = orphan.task
    mapped = f" map_index={task.map_index}" if task.map_index >= 0 else ""
    return (
        f"{orphan.execution_id} dag={task.dag_id} run={task.run_id} task={task.task_id}{mapped} "
        f"state={task.state} known_by={orphan.known_by}"
    )


def _airflow(url: str) -> AirflowApi:
    token = os.environ.get("AIRFLOW_API_TOKEN")
    if token:
        return AirflowApi(url, token)
    username = _variable("AIRFLOW_USERNAME", "a user of Airflow, or a token in AIRFLOW_API_TOKEN")
    password = _variable("AIRFLOW_PASSWORD", "the password of AIRFLOW_USERNAME")
    airflow = AirflowApi(url)
    airflow.log_in(username, password)
    return airflow


def _variable(name: str, expected: str) -> str:
    value = os.environ.get(name)
    if not value:
        raise InputError(f"{name}: found nothing in the environment, expected {expected}")
    return value
