"""Has records scored on a Dask cluster.

Law: Dask only carries chunks. Each goes to one worker that is chosen here, and Dask never runs it a
second time; what becomes of its records when the worker is lost is decided here. A record that was on
a worker when that was lost is a suspect: it is scored once more, in a chunk of its own, and never
beside another suspect. A worker may be lost for many reasons, so only one that scored nothing else is
evidence against a record. Such a worker it gets when a second one was lost with it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import uuid
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from airflow_mlbatch import __version__
from airflow_mlbatch.errors import InputError
from airflow_mlbatch.protocol.services import Service
from airflow_mlbatch.server.blocks import Block
from airflow_mlbatch.server.chunks import Chunk, Done, Rules, chunk_folder
from airflow_mlbatch.server.desk import RETRY_SECONDS, Desk
from airflow_mlbatch.server.folder import is_disk_full
from airflow_mlbatch.server.jobs import Job, Pace
from airflow_mlbatch.server.parcels import Parcel, built_in_parcel, program_parcel
from airflow_mlbatch.server.process_engine import ProcessEngineSettings
from airflow_mlbatch.server.scoring import told
from airflow_mlbatch.server.worker import WorkerSettings

__all__ = ["DaskEngine", "DaskSettings"]

log = logging.getLogger(__name__)

_CONNECT_SECONDS = 10
_LOOK_SECONDS = 0.5
_ANSWER_SECONDS = 10
_STOP_SECONDS = 2
_UNFIT_SECONDS = 10
_MOST_RECORDS = 20_000
_GROWTH = 4
# A chunk whose records turn out to be slow ends after so many times its seconds.
_LONGEST = 2
# Dask warns of more than 10 MB, and each of them passes through the scheduler.
_WINDOW_BYTES = 1024 * 1024
_PREFIX = "mlbatch-"
T = TypeVar("T")
# A record that so many workers were lost with is scored on one that does nothing else, and fails when
# that one is lost, too.
_ALONE_AFTER = 2
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


@dataclass(eq=False)
class _Place:
    """A Dask worker.

    :param home: the folder of its process: another process at the same address has another one
    :param lost: done when it has gone
    :param parcels: ids of those that it has
    :param unloadable: ids of those that it could not load
    :param chunks: what it is on
    :param is_willing: whether Dask would begin something on it
    :param unfit_until: no chunk before that time of the event loop; ``problem`` says why
    """

    address: str
    home: str
    name: str
    threads: int
    lost: asyncio.Future[None]
    parcels: set[str] = field(default_factory=set)
    unloadable: set[str] = field(default_factory=set)
    chunks: list[_Piece] = field(default_factory=list)
    sending: asyncio.Lock = field(default_factory=asyncio.Lock)
    seconds_per_record: float = 0.0
    is_willing: bool = True
    problem: str = ""
    unfit_until: float = 0.0

    def is_fit(self, now: float) -> bool:
        """Whether it can take a chunk, now or when another one has ended."""
        is_alone = any(piece.losses >= _ALONE_AFTER for piece in self.chunks)
        is_able = self.is_willing and now >= self.unfit_until
        return is_able and self.threads > 0 and not is_alone

    @property
    def is_full(self) -> bool:
        """Whether each of its threads has a chunk."""
        return len(self.chunks) >= self.threads

    @property
    def has_suspect(self) -> bool:
        """Whether it is on a record that another worker was lost with."""
        return any(piece.losses for piece in self.chunks)

    def learn(self, parcel_id: str, seconds_per_record: float) -> None:
        """Note that it can score with a parcel, and how fast."""
        self.unloadable.discard(parcel_id)
        self.seconds_per_record, self.problem = seconds_per_record, ""


@dataclass(eq=False)
class _Piece:
    """A chunk on its way.

    :param losses: how many workers were lost with its record; 0 for records that none was lost with
    """

    id: str
    job: Job
    place: _Place
    parcel: Parcel
    records: list[Block]
    losses: int
    is_stopping: bool = False
    task: asyncio.Task[None] | None = None


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
        self._places: dict[str, _Place] = {}
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
        for piece in self._pieces():
            if piece.job is job and not piece.is_stopping:
                piece.is_stopping = True
                task = asyncio.create_task(self._stop(piece))
                self._stops.add(task)
                task.add_done_callback(self._stops.discard)

    def health(self) -> dict[str, Any]:
        """The cluster as ``GET /status`` shows it."""
        places = sorted(self._places.values(), key=lambda place: place.address)
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
                "workers": [_shown(place) for place in places],
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
        told = " ".join(str(error).split()) or type(error).__name__
        problem = f"the scheduler {self._settings.scheduler} cannot be reached, batches wait for it: {told}"
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
                self._hand_out()
                await self._something()
        finally:
            self._client = None
            await self._forget_all()
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
            self._hand_out()

    async def _look(self) -> None:
        """Take note of the workers that there are, and of those that have gone."""
        if self._client is None or self._client.status != "running":
            raise OSError("the connection was lost")
        identity = await _within(_ANSWER_SECONDS, self._client.scheduler.identity())
        found = {
            address: worker
            for address, worker in identity["workers"].items()
            if worker["status"] in ("running", "paused", "closing_gracefully")
        }
        for address, place in list(self._places.items()):
            if address not in found or found[address]["local_directory"] != place.home:
                del self._places[address]
                place.lost.set_result(None)
                log.warning("the Dask worker %s has gone", address)
        for address, worker in found.items():
            if address not in self._places:
                home, name = worker["local_directory"], str(worker["name"])
                lost = asyncio.get_running_loop().create_future()
                self._places[address] = _Place(address, home, name, worker["nthreads"], lost)
            self._places[address].is_willing = worker["status"] == "running"

    async def _forget_all(self) -> None:
        """Without the scheduler nothing is known of the workers: what is out comes back."""
        tasks = [piece.task for piece in self._pieces() if piece.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for place in self._places.values():
            place.lost.cancel()
        self._places.clear()

    def _pieces(self) -> Iterator[_Piece]:
        for place in self._places.values():
            yield from list(place.chunks)

    # --- chunks ---

    def _hand_out(self) -> None:
        """Give each free thread of each worker a chunk, as long as there are records."""
        desk = self._desk
        fruitless = 0
        while fruitless <= len(desk.jobs):
            now = asyncio.get_running_loop().time()
            fit = [place for place in self._places.values() if place.is_fit(now)]
            free = [place for place in fit if not place.is_full]
            job = desk.next_job() if free else None
            if job is None:
                return
            free.sort(key=lambda place: len(place.chunks) / place.threads)
            reserved = self._reserved(fit)
            others = [place for place in free if place is not reserved]
            has_begun = (
                self._begin_alone(job, reserved)
                or self._begin_suspect(job, others)
                or self._begin_next(job, others)
            )
            fruitless += not has_begun

    def _reserved(self, fit: list[_Place]) -> _Place | None:
        """The worker that gets nothing more, because a record waits for one that is empty."""
        if any(map(_wants_alone, self._desk.jobs)):
            return min(fit, key=lambda place: len(place.chunks), default=None)
        return None

    def _begin_alone(self, job: Job, place: _Place | None) -> bool:
        if place is None or place.chunks or not _wants_alone(job):
            return False
        record, losses = job.suspects.popleft()
        self._begin(job, place, [record], losses)
        return True

    def _begin_suspect(self, job: Job, free: list[_Place]) -> bool:
        places = [place for place in free if not place.has_suspect]
        if not places or not job.suspects or _wants_alone(job):
            return False
        record, losses = job.suspects.popleft()
        self._begin(job, places[0], [record], losses)
        return True

    def _begin_next(self, job: Job, free: list[_Place]) -> bool:
        if not free or not job.window:
            return False
        threads = sum(place.threads for place in self._places.values())
        self._begin(job, free[0], job.hand_out_blocks(threads), 0)
        return True

    def _begin(self, job: Job, place: _Place, records: list[Block], losses: int) -> None:
        parcel = self._built_in if job.program is None else program_parcel(job.program)
        piece = _Piece(uuid.uuid4().hex, job, place, parcel, records, losses)
        job.busy += 1
        job.is_started = True
        place.chunks.append(piece)
        piece.task = asyncio.create_task(self._run(piece))

    async def _run(self, piece: _Piece) -> None:
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
            await self._keep(piece, done)
            if done.problem:
                await self._after_problem(piece, done)
        except _LostError:
            is_lost = True
        except (CancelledError, OSError, TimeoutError, asyncio.TimeoutError) as error:
            # The scheduler has gone, or somebody there has cancelled the task.
            log.warning("a chunk comes back: %s", error)
            await asyncio.sleep(RETRY_SECONDS)
        except Exception as error:
            self._is_unfit(place, error)
        finally:
            self._give_back(piece, is_lost=is_lost)
            self._forget_files(piece)
            place.chunks.remove(piece)
            job.busy -= 1
            self._desk.wake.set()

    def _give_back(self, piece: _Piece, *, is_lost: bool) -> None:
        """Have the records without an outcome tried again, or fail."""
        job = piece.job
        left = [part for block in piece.records for part in job.missing(block)]
        losses = piece.losses + is_lost
        if not losses:
            job.put_back(*left)
        elif losses <= _ALONE_AFTER:
            job.put_back_suspects(left, losses)
        else:
            for block in left:
                self._desk.fail(job, block.first, _LOST_ALONE)

    async def _scored(self, piece: _Piece) -> Done:
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

    async def _send(self, place: _Place, parcel: Parcel) -> None:
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

    async def _ask(self, place: _Place, name: str, function: Callable[..., Any], *args: Any) -> Any:
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

    def _is_unfit(self, place: _Place, error: Exception | str) -> None:
        """Give a worker nothing for a while."""
        told = str(error)
        if not isinstance(error, (str, InputError)):
            told = f"{type(error).__name__}: {told}"
        problem = " ".join(told.split())
        if problem != place.problem:
            log.error("Dask worker %s cannot score: %s", place.address, problem)
        place.problem = problem
        # Its files may be what is wrong: it is asked again whether it has them.
        place.parcels.clear()
        place.unfit_until = asyncio.get_running_loop().time() + _UNFIT_SECONDS

    async def _after_problem(self, piece: _Piece, done: Done) -> None:
        """The worker could not go on with a chunk."""
        self._is_unfit(piece.place, done.problem)
        if not done.is_unloadable or piece.job.program is None:
            return
        parcel_id = piece.parcel.id
        piece.place.unloadable.add(parcel_id)
        # Each worker had its say, and nothing of the batch can be scored.
        if all(parcel_id in one.unloadable for one in self._places.values()):
            await self._desk.after_failed_load(piece.job, done.problem)

    # --- artifacts ---

    async def _keep(self, piece: _Piece, done: Done) -> None:
        """Have outcomes stored, their artifacts first."""
        job, again = piece.job, list[int]()
        failed: dict[int, str] = {}
        for position, source in self._artifacts(piece, done):
            target = self._desk.folder.artifacts(job.execution.id) / str(position)
            staged = self._desk.folder.work / f"artifacts-{uuid.uuid4().hex}"
            try:
                await asyncio.to_thread(_place_files, source, staged, target)
            except OSError as error:
                log.warning("artifacts cannot be stored: %s", error)
                if is_disk_full(error):
                    again.append(position)
                    self._desk.wait_for_space()
                else:
                    failed[position] = f"artifacts cannot be stored: {told(error)}"
        for block in done.outcomes:
            for part in block.without([*again, *failed]):
                self._desk.take(job, part)
        for position, problem in failed.items():
            self._desk.fail(job, position, problem)

    def _artifacts(
        self, piece: _Piece, done: Done
    ) -> Iterator[tuple[int, Mapping[str, bytes] | Path]]:
        """Positions that have artifacts: with the files, or the folder where they lie."""
        yield from done.files.items()
        folder = self._shared(piece)
        if folder is None or not folder.is_dir():
            return
        for block in done.outcomes:
            for position in range(block.first, block.end):
                if (folder / str(position)).is_dir():
                    yield position, folder / str(position)

    def _shared(self, piece: _Piece) -> Path | None:
        """Where the artifacts of a chunk are, when there is a shared folder."""
        shared = self._rules.shared_folder
        return Path(shared, chunk_folder(piece.id)) if shared else None

    def _forget_files(self, piece: _Piece) -> None:
        if folder := self._shared(piece):
            asyncio.get_running_loop().run_in_executor(None, shutil.rmtree, folder, True)

    # --- cancellation ---

    async def _stop(self, piece: _Piece) -> None:
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


def _wants_alone(job: Job) -> bool:
    """Whether the record that is tried next may run on no worker that does anything else."""
    return bool(job.suspects) and job.suspects[0].losses >= _ALONE_AFTER


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


def _shown(place: _Place) -> dict[str, Any]:
    rate = place.threads / place.seconds_per_record if place.seconds_per_record else 0.0
    return {
        "address": place.address,
        "name": place.name,
        "threads": place.threads,
        "busy": len(place.chunks),
        "recordsPerSecond": round(rate, 1),
        "problem": place.problem,
    }


def _place_files(source: Mapping[str, bytes] | Path, staged: Path, target: Path) -> None:
    """Make the artifacts of a record appear, all at once."""
    try:
        staged.mkdir()
        if isinstance(source, Path):
            # Not copytree, whose errors do not tell a full disk.
            for path in source.iterdir():
                shutil.copyfile(path, staged / path.name)
        else:
            for name, content in source.items():
                (staged / name).write_bytes(content)
        target.parent.mkdir(parents=True, exist_ok=True)
        # Left from a run whose outcome was not stored before the server stopped.
        shutil.rmtree(target, ignore_errors=True)
        os.replace(staged, target)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
