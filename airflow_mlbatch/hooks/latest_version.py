"""Which version ``service_version="latest"`` means: one for each run of a Dag.

Law: a task asks the server only where no task of its run has told what it found. That is told through
XCom, and kept for the task's own next attempts (Airflow 3.3). So scores, results and files of one run
belong to one version, also when another one is published meanwhile. Tasks that begin at the same moment
know nothing of each other yet: each of them asks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from airflow_mlbatch.errors import InputError, ServiceNotFoundError

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_mlbatch.hooks.mlbatch import MLBatchHook

__all__ = ["LATEST", "VERSION_KEY", "check_own_name", "settle_version"]

LATEST = "latest"
# Of the XCom, and of the note in the task state store.
VERSION_KEY = "mlbatch_latest_version"


def check_own_name(service_version: str) -> None:
    """Refuse to publish a version under the word for the newest one.

    :raises InputError: it is that word
    """
    if service_version == LATEST:
        raise InputError(
            f"service_version: found {LATEST!r}, which stands for the version that was published last; "
            "expected a name of its own"
        )


def settle_version(task: Any, context: Context, hook: MLBatchHook) -> None:
    """Put the version that the run means in the place of ``latest`` in a task's ``service_version``.

    :param task: names connection, service and version
    :raises ServiceNotFoundError: the service has no version
    """
    if task.service_version != LATEST:
        return
    named = {"conn_id": task.mlbatch_conn_id, "service_name": str(task.service_name)}
    store: Any = context.get("task_state_store") if getattr(task, "durable", True) else None
    note = next(_notes(context, store, named), None)
    if note is None:
        note = {**named, **_newest(hook, named["service_name"])}
        what = (
            f"was published last, {note['created_at'] or 'at a time that the server does not say'}"
        )
    else:
        what = "was the latest one when this run first asked, and it keeps to that"
    if store is not None:
        store.set(VERSION_KEY, note)
    ti: Any = context["ti"]
    ti.xcom_push(key=VERSION_KEY, value=note)
    task.service_version = note["service_version"]
    task.log.info("service %s: version %s %s", task.service_name, task.service_version, what)


def _newest(hook: MLBatchHook, service_name: str) -> dict[str, str]:
    try:
        service = hook.get_latest_service(service_name)
    except ServiceNotFoundError as error:
        raise ServiceNotFoundError(
            f"service_version {LATEST!r}: service {service_name!r} has no version ({error})",
            error.status,
        ) from error
    return {"service_version": service.version, "created_at": service.created_at}


def _notes(context: Context, store: Any, named: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """What earlier attempts of this task and the other tasks of the run have found, one by one."""
    if store is not None:
        yield from _about(store.get(VERSION_KEY), named)
    ti: Any = context["ti"]
    dag: Any = context.get("dag")
    tasks = [ti.task_id] if dag is None else [each.task_id for each in dag.tasks if _asks(each)]
    for task_id in tasks:
        # One by one: the first tasks of a Dag know it, and there may be thousands of shards.
        yield from _about(ti.xcom_pull(task_ids=task_id, key=VERSION_KEY), named)


def _asks(task: Any) -> bool:
    return "service_version" in task.template_fields


def _about(found: Any, named: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """The notes about a service; those of a mapped task come as a list."""
    for note in [found] if isinstance(found, Mapping) else found or ():
        if isinstance(note, Mapping) and named.items() <= note.items():
            yield dict(note)
