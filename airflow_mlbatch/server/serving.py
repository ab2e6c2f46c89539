"""Puts the server together, runs it until it is told to stop, and takes it apart."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sqlite3
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvicorn

from airflow_mlbatch.errors import InputError
from airflow_mlbatch.protocol.services import Service, write_creation_time
from airflow_mlbatch.server.app import App, Limits
from airflow_mlbatch.server.auth import Tokens, load_account
from airflow_mlbatch.server.catalogue import Catalogue
from airflow_mlbatch.server.desk import Desk
from airflow_mlbatch.server.folder import DataFolder
from airflow_mlbatch.server.lines import Line
from airflow_mlbatch.server.process_engine import ProcessEngine, ProcessEngineSettings
from airflow_mlbatch.server.publishing import Publishing
from airflow_mlbatch.server.r_program import describe_r
from airflow_mlbatch.server.registry import is_file_source
from airflow_mlbatch.server.retention import Retention, RetentionSettings
from airflow_mlbatch.server.runner import Runner
from airflow_mlbatch.server.store import StorageError, Store
from airflow_mlbatch.server.worker import WorkerSettings

if TYPE_CHECKING:
    from airflow_mlbatch.server.dask_engine import DaskSettings

__all__ = ["ServerSettings", "serve"]

_BACKLOG = 2048
_GOODBYE_SECONDS = 5


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """Everything that can be said about a server; the defaults are those of ``mlbatch serve``.

    :param sources: modules and files that publish services
    :param port: 0 for any that is free
    :param password: of the user; ``None`` keeps the stored one or makes one up
    :param record_timeout: seconds that a record may take; 0 for no limit
    :param token_lifetime: seconds that an access token lives
    :param max_records_per_worker: a worker is replaced after so many records; 0 for never
    :param max_worker_growth: a worker is replaced when its memory has grown by so many bytes
        since it had loaded the services; 0 for never
    :param has_keys: whether starts may carry idempotency keys
    :param allow_publish: whether services may be published over HTTP; those that were published
        before are served in any case
    :param max_object_bytes: most bytes of an object that a service is published with
    :param max_service_memory: most bytes of memory for a worker of a published service; 0 for no
        limit
    :param load_timeout: seconds that a published service may take to be loaded
    :param retention: how long finished executions are kept
    :param cluster: scores batches; ``None`` for the workers of this machine
    """

    sources: Sequence[str]
    data_dir: Path
    host: str
    port: int
    username: str
    password: str | None
    workers: int
    max_parallel: int
    max_body_bytes: int
    max_records: int
    record_timeout: float
    token_lifetime: int
    max_records_per_worker: int
    max_worker_growth: int
    has_keys: bool
    allow_publish: bool
    max_object_bytes: int
    max_service_memory: int
    load_timeout: float
    retention: RetentionSettings
    cluster: DaskSettings | None = None


def serve(settings: ServerSettings, say: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT.

    :param say: prints a line: a new password, and the address when everything is ready; raises
        :class:`OSError` where it cannot
    :raises InputError: something of the settings cannot be used
    """
    line = _listen(settings.host, settings.port)
    with line:
        folder = DataFolder(settings.data_dir.absolute())
        try:
            _run(_serve(settings, folder, line, say))
        except (StorageError, sqlite3.DatabaseError) as error:
            raise InputError(f"data folder: {folder.path} cannot be used: {error}") from None
        finally:
            folder.close()


def _run(main: Coroutine[Any, Any, None]) -> None:
    """``asyncio.run``, in the way of Python 3.11 also before.

    There, Ctrl-C cancels the first task only, and the others end when that one says so. Python 3.10
    cancels all of them at once, also the one that is about to start a process.
    """
    if hasattr(asyncio, "Runner"):
        asyncio.run(main)
        return

    async def interruptible() -> None:
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task is not None

        def cancel(*_: object) -> None:
            task.cancel()
            loop.call_soon_threadsafe(lambda: None)  # It may be asleep.

        signal.signal(signal.SIGINT, cancel)
        try:
            await main
        except asyncio.CancelledError:
            raise KeyboardInterrupt from None

    asyncio.run(interruptible())


async def _serve(
    settings: ServerSettings, folder: DataFolder, line: socket.socket, say: Callable[[str], None]
) -> None:
    def tell(password: str) -> None:
        try:
            say(f"mlbatch serve: password of {settings.username}: {password} (shown this once)")
        except OSError as error:
            raise InputError(
                f"stdout: the password that was made up cannot be shown ({error}): "
                "set MLBATCH_PASSWORD"
            ) from None

    store = Store(folder.database)
    runner = _runner(settings, folder, store)
    chores: list[asyncio.Task[None]] = []
    try:
        built_in = _published(await runner.start(), settings.username)
        catalogue = Catalogue(store, folder, built_in)
        # A password is made up and shown only where the server starts: it is shown once.
        account = load_account(folder.path, settings.username, settings.password, tell)
        tokens = Tokens(store, account, settings.token_lifetime)
        await tokens.start()
        folder.discard_unknown(store.known_ids())
        await runner.resume(catalogue)

        def note(event: str) -> None:
            _say_if_heard(say, f"mlbatch serve: {event}")

        retention = Retention(store, folder, runner, settings.retention, note)
        limits = Limits(settings.max_body_bytes, settings.max_records, settings.max_object_bytes)
        publishing = None
        if settings.allow_publish:
            publishing = Publishing(catalogue, runner, folder, settings.username)
        app = App(
            store,
            runner,
            tokens,
            folder,
            limits,
            catalogue,
            settings.has_keys,
            publishing,
            retention,
        )
        names = ", ".join(f"{one.name} {one.version}" for one in catalogue.services())
        ready = f"mlbatch serve: ready on {_url(line)} (services: {names or 'none yet'})"
        # uvicorn repeats the signal that has stopped it to whoever listened before.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        chores.append(asyncio.create_task(retention.run()))
        if publishing is not None or any(
            program.service.runtime_type == "R" for program in catalogue.programs()
        ):
            chores.append(asyncio.create_task(_tell_of_r(note)))
        folder.keep()
        await _HttpServer(app, lambda: _say_if_heard(say, ready)).serve(sockets=[line])
    finally:
        for chore in chores:
            chore.cancel()
        await asyncio.gather(*chores, return_exceptions=True)
        await runner.stop()
        store.close()


async def _tell_of_r(note: Callable[[str], None]) -> None:
    # In a thread, and beside everything else: R takes a second to start.
    note(await asyncio.to_thread(describe_r))


def _say_if_heard(say: Callable[[str], None], text: str) -> None:
    # Whoever started it may have gone away: that is no reason not to serve.
    with suppress(OSError):
        say(text)


def _runner(settings: ServerSettings, folder: DataFolder, store: Store) -> Runner:
    worker = WorkerSettings(
        sources=[_absolute(source) for source in settings.sources],
        scratch=folder.work,
        max_records=settings.max_records_per_worker,
        max_growth=settings.max_worker_growth,
        max_memory=settings.max_service_memory,
    )
    desk = Desk(store, folder)
    records = ProcessEngineSettings(
        settings.workers,
        settings.record_timeout,
        settings.load_timeout,
        has_batches=settings.cluster is None,
    )
    processes = ProcessEngine(desk, worker, records)
    cluster = None
    if settings.cluster is not None:
        from airflow_mlbatch.server.dask_engine import DaskEngine

        cluster = DaskEngine(desk, settings.cluster, worker, records, lambda: processes.services)
    return Runner(desk, processes, cluster, settings.max_parallel)


class _HttpServer(uvicorn.Server):
    """uvicorn, which says when it listens."""

    def __init__(self, app: App, when_ready: Callable[[], None]) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=Line,
                lifespan="off",
                ws="none",
                # Its own configuration wants a stdout; what it says goes to stderr without one.
                log_config=None,
                log_level="warning",
                access_log=False,
                server_header=False,
                # A proxy's word for the client's address would let a guesser be anybody.
                proxy_headers=False,
                backlog=_BACKLOG,
                timeout_keep_alive=30,
                timeout_graceful_shutdown=_GOODBYE_SECONDS,
            )
        )
        self._when_ready = when_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._when_ready()


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio turns Nagle's delay off where it sees that a socket is TCP; without that, each small
    # reply takes 40 ms.
    line = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        if os.name == "posix":
            line.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        line.bind((host, port))
        line.listen(_BACKLOG)
    except (OSError, OverflowError) as error:
        line.close()
        raise InputError(f"address {host}:{port} cannot be used: {error}") from None
    return line


def _url(line: socket.socket) -> str:
    host, port = line.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _absolute(source: str) -> str:
    return os.path.abspath(source) if is_file_source(source) else source


def _published(services: Sequence[Service], username: str) -> dict[tuple[str, str], Service]:
    now = write_creation_time(datetime.now(timezone.utc))
    return {
        (service.name, service.version): replace(
            service, published_by=username, created_at=now, my_permission="read/write"
        )
        for service in sorted(services, key=lambda service: (service.name, service.version))
    }
