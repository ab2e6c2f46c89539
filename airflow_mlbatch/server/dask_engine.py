"""Has records scored on a Dask cluster.

Law: Dask only carries chunks. Each goes to one worker that is chosen here, and Dask never runs it a
second time; what becomes of its records when the worker is lost is decided here.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import CancelledError
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from airflow_mlbatch import __version__
from airflow_mlbatch.errors import InputError
from airflow_mlbatch.protocol.services import Service
from airflow_mlbatch.server.blocks import Block
from airflow_mlbatch.server.chunks import Chunk, Done, Rules
from airflow_mlbatch.server.dask_artifacts import Keeper
from airflow_mlbatch.server.dask_places import ALONE_AFTER, Piece, Place, Places
from airflow_mlbatch.server.desk import RETRY_SECONDS, Desk
from airflow_mlbatch.server.jobs import Job, Pace
from airflow_mlbatch.server.parcels import Parcel, built_in_parcel, program_parcel
from airflow_mlbatch.server.process_engine import ProcessEngineSettings
from airflow_mlbatch.server.worker import WorkerSettings

__all__ = ["DaskEngine", "DaskSettings"]

log = logging.getLogger(__name__)

_CONNECT_SECONDS = 10
_LOOK_SECONDS = 0.5
_ANSWER_SECONDS = 10
_STOP_SECONDS = 2
_MOST_RECORDS = 20_000
_GROWTH = 4
# A chunk whose records turn out to be slow ends after so many times its seconds.
_LONGEST = 2
# Dask warns of more than 10 MB, and each of them passes through the scheduler.
_WINDOW_BYTES = 1024 * 1024
_PREFIX = "mlbatch-"
T = TypeVar("T")
_LOST_ALONE = "three Dask workers were lost while they scored it, the last of them while it scored nothing else"


@dataclass(frozen=True)
class DaskSettings:
    """Which cluster, and how it is used.

    :param scheduler: its address, ``tls://HOST:PORT`` or ``tcp://HOST:PORT``
    :param ca: the file with the certificates that it is trusted by; empty without TLS
    :param cert: the file with the certificate of this server
    :param key: the file with the key to that
    :param files: what the services need on the workers, beside their own files
    :param chunk_seconds: how long a chunk should take
    :param artifact_bytes: most bytes of the artifacts of one record that come back with the results
    :param shared_folder: where the workers put artifacts instead; ``None`` for nowhere
    """

    scheduler: str
    ca: str
    cert: str
    key: str
    files: Sequence[Path]
    chunk_seconds: float
    artifact_bytes: int
    shared_folder: Path | None


class _LostError(Exception):
    """The worker has gone in the middle of a chunk."""


class DaskEngine:
    """Gives the records of batches to the workers of a cluster.

    :param worker: how worker processes are started, on any machine
    :param records: how records are run, on any machine
    :param services: tells which ones the sources publish, once that is known
    :raises InputError: Dask is not installed
    """

    def __init__(
        self,
        desk: Desk,
        settings: DaskSettings,
        worker: WorkerSettings,
        records: ProcessEngineSettings,
        services: Callable[[], Sequence[Service]],
    ) -> None:
        try:
            from distributed import Client, Security
        except ModuleNotFoundError as error:
            raise InputError(
                f"--engine dask needs the package {error.name}, which is not installed: "
                "pip install 'airflow-mlbatch[dask]'"
            ) from None
        self._desk, self._settings = desk, settings
        self._sources, self._services = worker.sources, services
        self._rules = Rules(
            seconds=_LONGEST * settings.chunk_seconds,
            record_timeout=records.record_timeout,
            load_timeout=records.load_timeout,
            max_records=worker.max_records,
            max_growth=worker.max_growth,
            max_memory=worker.max_memory,
            artifact_bytes=settings.artifact_bytes,
            shared_folder=str(settings.shared_folder or ""),
        )
        self.pace = Pace(settings.chunk_seconds, _MOST_RECORDS, _GROWTH, _WINDOW_BYTES)
        # Dask carries few types.
        self._client_class: Any = Client
        make_security: Any = Security
        self._security = (
            make_security(
                require_encryption=True,
                tls_ca_file=settings.ca,
                tls_client_cert=settings.cert,
                tls_client_key=settings.key,
            )
            if settings.ca
            else None
        )
        self._client: Any = None
        self._places = Places(desk, self._begin)
        self._keeper = Keeper(desk, settings.shared_folder)
        self._life: asyncio.Task[None] | None = None
        self._stops: set[asyncio.Task[None]] = set()
        self._built_in: Parcel
        self._problem = f"the scheduler {settings.scheduler} has not answered yet"

    # --- life ---

    async def start(self) -> None:
        """Begin to look for the scheduler; batches wait until it is there.

        :raises InputError: a file that the services need cannot be used
        """
        folder = self._desk.folder.work / "dask-services"
        self._built_in = await asyncio.to_thread(
            built_in_parcel, self._sources, self._settings.files, self._services(), folder
        )
        self._life = asyncio.create_task(self._live())

    async def stop(self) -> None:
        """Give the cluster back."""
        if self._life is not None:
            self._life.cancel()
            # Dask's own tasks need not heed it.
            await asyncio.wait({self._life}, timeout=2 * _STOP_SECONDS)

    def end_work_on(self, job: Job) -> None:
        """Have the processes ended that are on a batch, on every machine."""
        for piece in self._places.pieces():
            if piece.job is job and not piece.is_stopping:
                piece.is_stopping = True
                task = asyncio.create_task(self._stop(piece))
                self._stops.add(task)
                task.add_done_callback(self._stops.discard)

    def health(self) -> dict[str, Any]:
        """The cluster as ``GET /status`` shows it."""
        places = sorted(self._places, key=lambda place: place.address)
        problem = self._problem
        if not problem and not any(place.threads for place in places):
            problem = "the cluster has no workers: batches wait for one"
        unfit = [place for place in places if place.problem]
        status = "fail" if self._problem else "warn" if problem or unfit else "pass"
        return {
            "statusCode": status,
            "components": {},
            "details": {
                "scheduler": self._settings.scheduler,
                "problem": problem,
                "workers": [place.shown() for place in places],
            },
        }

    async def _live(self) -> None:
        """Be connected to the scheduler, always."""
        while True:
            try:
                await self._work_connected()
            except (OSError, TimeoutError, asyncio.TimeoutError, CancelledError) as error:
                self._report(error)
            except Exception as error:
                log.exception("the work with the Dask cluster failed")
                self._report(error)
            await asyncio.sleep(RETRY_SECONDS)

    def _report(self, error: BaseException) -> None:
        reason = " ".join(str(error).split()) or type(error).__name__
        problem = f"the scheduler {self._settings.scheduler} cannot be reached, batches wait for it: {reason}"
        if problem != self._problem:
            log.error("%s", problem)
        self._problem = problem

    async def _work_connected(self) -> None:
        client = self._client_class(
            self._settings.scheduler,
            asynchronous=True,
            security=self._security,
            set_as_default=False,
            timeout=_CONNECT_SECONDS,
            name="mlbatch-server",
        )
        try:
            await client
            self._client = client
            while True:
                await self._look()
                if self._problem:
                    log.info("connected to the scheduler %s", self._settings.scheduler)
                    self._problem = ""
                self._places.hand_out()
                await self._something()
        finally:
            self._client = None
            await self._places.forget_all()
            with suppress(OSError, TimeoutError, asyncio.TimeoutError, CancelledError):
                await _within(_STOP_SECONDS, client.close(timeout=_STOP_SECONDS))

    async def _something(self) -> None:
        """Wait until there may be something to hand out, or it is time to look at the workers."""
        loop, wake = asyncio.get_running_loop(), self._desk.wake
        end = loop.time() + _LOOK_SECONDS
        while (left := end - loop.time()) > 0:
            wake.clear()
            waiting = asyncio.ensure_future(wake.wait())
            try:
                # Not wait_for: before Python 3.12 that may forget that it was cancelled.
                await asyncio.wait({waiting}, timeout=left)
            finally:
                waiting.cancel()
            self._places.hand_out()

    async def _look(self) -> None:
        """Take note of the workers that there are, and of those that have gone."""
        if self._client is None or self._client.status != "running":
            raise OSError("the connection was lost")
        identity = await _within(_ANSWER_SECONDS, self._client.scheduler.identity())
        self._places.note(identity["workers"])

    # --- chunks ---

    def _begin(self, job: Job, place: Place, records: list[Block], losses: int) -> None:
        parcel = self._built_in if job.program is None else program_parcel(job.program)
        piece = Piece(uuid.uuid4().hex, job, place, parcel, records, losses)
        job.busy += 1
        job.is_started = True
        place.chunks.append(piece)
        piece.task = asyncio.create_task(self._run(piece))

    async def _run(self, piece: Piece) -> None:
        """See a chunk through: each of its records gets an outcome or is handed out again."""
        job, place = piece.job, piece.place
        is_lost = False
        try:
            if piece.losses:
                # The worker may have gone since the last look: that is not a try.
                await self._look()
                if place.lost.done():
                    raise OSError(f"the Dask worker {place.address} has gone")
            done = await self._scored(piece)
            if count := sum(block.length for block in done.outcomes):
                place.learn(piece.parcel.id, done.seconds / count)
                job.learn(done.seconds / count)
                job.failed_loads = 0
            await self._keeper.keep(piece, done)
            if done.problem:
                await self._after_problem(piece, done)
        except _LostError:
            is_lost = True
        except (CancelledError, OSError, TimeoutError, asyncio.TimeoutError) as error:
            # The scheduler has gone, or somebody there has cancelled the task.
            log.warning("a chunk comes back: %s", error)
            await asyncio.sleep(RETRY_SECONDS)
        except Exception as error:
            place.leave_out(error)
        finally:
            self._give_back(piece, is_lost=is_lost)
            self._keeper.forget(piece)
            place.chunks.remove(piece)
            job.busy -= 1
            self._desk.wake.set()

    def _give_back(self, piece: Piece, *, is_lost: bool) -> None:
        """Have the records without an outcome tried again, or fail."""
        job = piece.job
        left = [part for block in piece.records for part in job.missing(block)]
        losses = piece.losses + is_lost
        if not losses:
            job.put_back(*left)
        elif losses <= ALONE_AFTER:
            job.put_back_suspects(left, losses)
        else:
            for block in left:
                self._desk.fail(job, block.first, _LOST_ALONE)

    async def _scored(self, piece: Piece) -> Done:
        """:raises _LostError: the worker has gone"""
        from airflow_mlbatch.server import dask_task

        place, execution = piece.place, piece.job.execution
        async with place.sending:
            if piece.parcel.id not in place.parcels:
                await self._send(place, piece.parcel)
        chunk = msgspec.msgpack.encode(
            Chunk(
                piece.id,
                piece.parcel.id,
                execution.service,
                execution.version,
                piece.records,
                self._rules,
            )
        )
        name = f"{_PREFIX}{execution.service}-{piece.id}"
        try:
            body = await self._ask(place, name, dask_task.run_chunk, piece.id, place.home, chunk)
        except dask_task.HostEndedError as error:
            log.warning("Dask worker %s: %s", place.address, error)
            raise _LostError from None
        return msgspec.msgpack.decode(body, type=Done)

    async def _send(self, place: Place, parcel: Parcel) -> None:
        """Bring a parcel to a worker that may not have it."""
        from airflow_mlbatch.server import dask_task

        def name() -> str:
            return f"{_PREFIX}parcel-{uuid.uuid4().hex}"

        in_use = [self._built_in.id, *self._desk.programs_in_use(), *self._desk.published_ids()]
        begin = dask_task.begin_parcel
        word = await self._ask(place, name(), begin, __version__, parcel.id, in_use)
        # It has thrown the others away.
        place.parcels.intersection_update(in_use)
        if word:
            pieces = parcel.pieces()
            while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
                await self._ask(place, name(), dask_task.add_piece, word, *piece)
            manifest = msgspec.msgpack.encode(parcel.manifest)
            await self._ask(place, name(), dask_task.finish_parcel, word, manifest)
        place.parcels.add(parcel.id)

    async def _ask(self, place: Place, name: str, function: Callable[..., Any], *args: Any) -> Any:
        """Run something on a worker.

        :param name: what Dask's pages show
        :raises _LostError: the worker has gone
        """
        from distributed import KilledWorker

        client = self._client
        if client is None:
            raise OSError("the connection was lost")
        future: Any = client.submit(
            function,
            *args,
            key=name,
            pure=False,
            retries=0,
            workers=[place.address],
            allow_other_workers=False,
        )
        answer = asyncio.ensure_future(future)
        try:
            await asyncio.wait({answer, place.lost}, return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                raise _LostError
            return answer.result()
        except KilledWorker:
            raise _LostError from None
        finally:
            answer.cancel()
            answer.add_done_callback(lambda one: one.cancelled() or one.exception())
            # Where it has not run yet, or the worker is gone: Dask must not run it later.
            future.release()

    async def _after_problem(self, piece: Piece, done: Done) -> None:
        """The worker could not go on with a chunk."""
        piece.place.leave_out(done.problem)
        if not done.is_unloadable or piece.job.program is None:
            return
        parcel_id = piece.parcel.id
        piece.place.unloadable.add(parcel_id)
        # Each worker had its say, and nothing of the batch can be scored.
        if all(parcel_id in one.unloadable for one in self._places):
            await self._desk.after_failed_load(piece.job, done.problem)

    # --- cancellation ---

    async def _stop(self, piece: Piece) -> None:
        """End the processes of a chunk; the chunk comes back then, or is given up."""
        from airflow_mlbatch.server import dask_task

        task, client = piece.task, self._client
        with suppress(Exception):
            if client is not None:
                run = client.run(
                    dask_task.stop_chunks,
                    [piece.id],
                    workers=[piece.place.address],
                    on_error="ignore",
                )
                await _within(_STOP_SECONDS, run)
        if task is not None:
            await asyncio.wait({task}, timeout=_STOP_SECONDS)
            task.cancel()


async def _within(seconds: float, work: Awaitable[T]) -> T:
    """Wait for something of Dask's, which may not heed that it is cancelled.

    :raises TimeoutError: it takes longer
    """
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait({task}, timeout=seconds)
        if not task.done():
            raise TimeoutError(f"no answer within {seconds:g} seconds")
        return task.result()
    finally:
        task.cancel()
        task.add_done_callback(lambda one: one.cancelled() or one.exception())
