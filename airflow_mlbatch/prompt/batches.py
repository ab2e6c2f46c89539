"""``mlbatch batches``, ``mlbatch status`` and ``mlbatch cancel``."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import TYPE_CHECKING, Any, TypeAlias

from airflow_mlbatch.errors import ExecutionNotFoundError, InputError
from airflow_mlbatch.prompt.connecting import open_hook
from airflow_mlbatch.prompt.exits import Exit

if TYPE_CHECKING:
    from airflow_mlbatch.hooks import MLBatchHook
    from airflow_mlbatch.prompt.screen import Screen
    from airflow_mlbatch.protocol.messages import Report
    from airflow_mlbatch.protocol.results import BatchStatus

__all__ = ["Named", "cancel", "find_batch", "show_batches", "show_status"]

# Name and version of a service, and an execution id.
Named: TypeAlias = tuple[str, str, str]

_AT_ONCE = 8
_TITLES = {
    "service_name": "service",
    "service_version": "version",
    "execution_id": "execution id",
    "state": "state",
    "completed_item_count": "done",
    "total_item_count": "total",
}


def show_batches(options: argparse.Namespace, screen: Screen) -> int:
    """List executions, and how far each is."""
    with closing(open_hook(options, max_connections=_AT_ONCE)) as hook:
        batches = list(_executions(hook, options.service, options.service_version))
        if options.ids:
            rows = [_as_row(named, None) for named in batches]
            if not screen.is_json:
                for named in batches:
                    screen.write(named[2])
                return Exit.DONE
        else:
            with ThreadPoolExecutor(_AT_ONCE) as pool:
                found = pool.map(lambda named: _status(hook, named), batches)
                rows = [
                    _as_row(named, status)
                    for named, status in zip(batches, found, strict=True)
                    if status is not None
                ]
    screen.show(rows, _TITLES)
    return Exit.DONE


def show_status(options: argparse.Namespace, screen: Screen) -> int:
    """Say how far an execution is; with ``--wait`` when it has ended."""
    if options.timeout is not None and not options.wait:
        raise InputError("--timeout: found it without --wait, expected both")
    with closing(open_hook(options)) as hook:
        named = find_batch(hook, options)
        status = (
            _wait(hook, named, options, screen) if options.wait else hook.get_batch_status(*named)
        )
    row = {**_as_row(named, status), "message": status.message}
    titles = {**_TITLES, "message": "message"} if status.message else _TITLES
    if screen.is_json:
        screen.show_json(row)
    else:
        screen.show([row], titles)
    if status.state.is_failure:
        return Exit.BATCH_FAILED
    return Exit.DONE if status.is_terminal else Exit.STILL_RUNS


def cancel(options: argparse.Namespace, screen: Screen) -> int:
    """Cancel executions and delete what they left."""
    if not options.yes and not sys.stdin.isatty():
        raise InputError("--yes: found neither it nor anybody to ask, expected one of them")
    rows = []
    with closing(open_hook(options)) as hook:
        batches = [find_batch(hook, options, each) for each in options.execution_id]
        if not options.yes and not _agrees(batches, screen):
            screen.tell("nothing was cancelled")
            return Exit.DONE
        for name, version, execution_id in batches:
            is_cancelled = hook.cancel_batch(name, version, execution_id)
            rows.append({"execution_id": execution_id, "is_cancelled": is_cancelled})
    outcomes = {
        True: "cancelled and deleted",
        False: "was gone already",
    }
    rows = [{**row, "outcome": outcomes[bool(row["is_cancelled"])]} for row in rows]
    screen.show(rows, {"execution_id": "execution id", "outcome": "outcome"})
    return Exit.DONE if all(row["is_cancelled"] for row in rows) else Exit.NOT_FOUND


def find_batch(
    hook: MLBatchHook, options: argparse.Namespace, execution_id: str | None = None
) -> Named:
    """The service that an execution belongs to, and the execution.

    :param execution_id: where the options name several
    :raises ExecutionNotFoundError: no service of the server has it
    """
    execution_id = execution_id or options.execution_id
    if options.service is not None and options.service_version is not None:
        return options.service, options.service_version, str(execution_id)
    for named in _executions(hook, options.service, options.service_version):
        if named[2] == execution_id:
            return named
    raise ExecutionNotFoundError(
        f"execution {execution_id}: no service of {hook.url} has an execution of this id", 404
    )


def _executions(
    hook: MLBatchHook, service_name: str | None, service_version: str | None
) -> Iterator[Named]:
    if service_version is not None and service_name is None:
        raise InputError("--version: found it without --service, expected both")
    if service_name is not None and service_version is not None:
        services = [(service_name, service_version)]
    else:
        services = [(each.name, each.version) for each in hook.list_services(service_name)]
    for name, version in services:
        for execution_id in hook.list_batch_executions(name, version):
            yield name, version, execution_id


def _status(hook: MLBatchHook, named: Named) -> BatchStatus | None:
    """``None`` for one that was deleted since the list was read."""
    try:
        return hook.get_batch_status(*named)
    except ExecutionNotFoundError:
        return None


def _wait(
    hook: MLBatchHook, named: Named, options: argparse.Namespace, screen: Screen
) -> BatchStatus:
    deadline = None if options.timeout is None else time.time() + options.timeout
    with screen.progress("records") as update:

        def report(news: Report) -> None:
            if news.status is not None:
                update(news.status.completed_item_count, news.status.total_item_count)
            if news.warning is not None:
                screen.tell(news.warning)

        return hook.watch_batch(
            *named, poll_interval=options.poll_interval, deadline=deadline, on_report=report
        )


def _agrees(batches: Sequence[Named], screen: Screen) -> bool:
    for name, version, execution_id in batches:
        screen.tell(f"{execution_id} of {name} {version}")
    question = (
        "Cancel and delete it? [y/N] " if len(batches) == 1 else "Cancel and delete them? [y/N] "
    )
    print(question, end="", file=screen.err, flush=True)
    return sys.stdin.readline().strip().casefold() in ("y", "yes")


def _as_row(named: Named, status: BatchStatus | None) -> dict[str, Any]:
    row: dict[str, Any] = dict(
        zip(("service_name", "service_version", "execution_id"), named, strict=True)
    )
    if status is not None:
        row["state"] = status.state.value
        row["completed_item_count"] = status.completed_item_count
        row["total_item_count"] = status.total_item_count
    return row
