"""Scores chunks on a machine of a Dask cluster, in a process beside the Dask worker.

Law: user code runs in worker processes as on the server itself, each record in one that can be thrown
away. What it does to its process concerns nobody else, the Dask worker least of all. Whoever ends
the Dask worker ends this process, and with it all that it has started.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
import socket
import sys
from collections import deque
from contextlib import suppress
from pathlib import Path

import msgspec

from airflow_mlbatch.errors import InputError
from airflow_mlbatch.server.blocks import Block
from airflow_mlbatch.server.chunks import Chunk, Done, Rules, Stop, chunk_folder
from airflow_mlbatch.server.folder import has_room
from airflow_mlbatch.server.guests import Guests
from airflow_mlbatch.server.parcels import Manifest, ParcelShelf, opened_program
from airflow_mlbatch.server.processes import Work, Worker, start_worker, watch_records
from airflow_mlbatch.server.scoring import error_text, failure
from airflow_mlbatch.server.wire import LENGTH, Described, frame
from airflow_mlbatch.server.worker import WorkerSettings

__all__ = ["main"]

log = logging.getLogger(__name__)

_READ_BYTES = 1024 * 1024
# Between two pieces a chunk looks whether it should go on.
_PIECE_SECONDS = 0.1
_MOST_RECORDS = 10_000
# A chunk that has gathered so much goes back before its time is up: it is in memory several times.
_MOST_BYTES = 16 * 1024 * 1024
_DISK_FULL = "the disk of the worker is full"


class _Loadable:
    """A parcel with the rules that its processes are started with."""

    def __init__(self, manifest: Manifest, folder: Path, rules: Rules) -> None:
        self.manifest, self.folder, self.rules = manifest, folder, rules
        # The server may have been started again with other rules; its processes are of no use then.
        self.id = f"{manifest.id} {rules.max_records} {rules.max_growth} {rules.max_memory}"


class _Scoring:
    """A chunk that is being scored.

    :param keep_in: where its artifacts are put
    """

    def __init__(self, chunk: Chunk, keep_in: Path) -> None:
        self.chunk, self.keep_in = chunk, keep_in
        self.left = deque(chunk.records)
        self.outcomes: list[Block] = []
        self.files: dict[int, dict[str, bytes]] = {}
        self.size = 0
        self.seconds = 0.0
        self.problem = ""
        self.is_unloadable = self.is_stopped = False

    @property
    def is_over(self) -> bool:
        """Whether no further record should begin."""
        return not self.left or self.is_stopped or bool(self.problem) or self.size > _MOST_BYTES

    def next(self, count: int) -> Block:
        """The next records, at most so many."""
        block = self.left.popleft()
        end = min(block.first + count, block.end)
        if end < block.end:
            self.left.appendleft(block.part(end, block.end))
        return block.part(block.first, end)

    def put_back(self, blocks: list[Block]) -> None:
        """Records that were not scored come next, no block together with another."""
        self.left.extendleft(block for block in reversed(blocks) if block.length)

    def take(self, outcomes: Block) -> None:
        """Records have outcomes."""
        failed: dict[int, str] = {}
        for position in self._with_files(outcomes):
            try:
                self.files[position] = files = self._files(position)
                self.size += sum(map(len, files.values()))
            except InputError as error:
                failed[position] = str(error)
            except OSError as error:
                failed[position] = f"artifacts cannot be read: {error_text(error)}"
        self.outcomes += outcomes.without(failed)
        self.size += len(outcomes.texts)
        for position, problem in failed.items():
            self.fail(position, problem)

    def wait_for_space(self, record: Block) -> None:
        """A record has to be run again on a disk with space."""
        self.problem = _DISK_FULL

    def fail(self, position: int, reason: str) -> None:
        """A record could not be scored."""
        self.outcomes.append(Block(position, 1, failure(reason)))

    def _with_files(self, outcomes: Block) -> list[int]:
        if self.chunk.rules.shared_folder or not self.keep_in.is_dir():
            return []
        positions = range(outcomes.first, outcomes.end)
        return [one for one in positions if (self.keep_in / str(one)).is_dir()]

    def _files(self, position: int) -> dict[str, bytes]:
        paths = sorted((self.keep_in / str(position)).iterdir())
        size, limit = sum(path.stat().st_size for path in paths), self.chunk.rules.artifact_bytes
        if size > limit:
            raise InputError(
                f"artifacts: found {size:,} bytes, expected at most {limit:,} "
                "(--dask-artifact-bytes): use --dask-shared-folder for larger ones"
            )
        return {path.name: path.read_bytes() for path in paths}


class _Host:
    """Has chunks scored, each in a place of its own.

    :param folder: where everything lies
    """

    def __init__(self, folder: Path, writer: asyncio.StreamWriter) -> None:
        self._scratch, self._shelf = folder / "scratch", ParcelShelf(folder / "parcels")
        self._scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._writer = writer
        self._free: list[Guests[_Loadable]] = []
        self._busy: list[Guests[_Loadable]] = []
        self._scorings: dict[str, _Scoring] = {}

    async def score(self, chunk: Chunk) -> None:
        """Score a chunk and say what became of it, whatever that is: the server waits for it."""
        keep_in = Path(chunk.rules.shared_folder or self._scratch, chunk_folder(chunk.id))
        scoring = self._scorings[chunk.id] = _Scoring(chunk, keep_in)
        guests = self._free.pop() if self._free else Guests(_start)
        self._busy.append(guests)
        try:
            manifest, folder = self._shelf.open(chunk.parcel)
            loadable = _Loadable(manifest, folder, chunk.rules)
            await self._score(scoring, guests, loadable)
        except InputError as error:
            scoring.problem = str(error)
        except Exception as error:
            log.exception("a chunk cannot be scored")
            scoring.problem = error_text(error)
        finally:
            del self._scorings[chunk.id]
            self._busy.remove(guests)
            self._free.append(guests)
            if not chunk.rules.shared_folder:
                await asyncio.to_thread(shutil.rmtree, keep_in, ignore_errors=True)
        done = Done(
            chunk.id,
            scoring.outcomes,
            scoring.files,
            scoring.seconds,
            scoring.problem,
            scoring.is_unloadable,
        )
        self._writer.write(frame(done))

    async def _score(
        self, scoring: _Scoring, guests: Guests[_Loadable], loadable: _Loadable
    ) -> None:
        loop, chunk = asyncio.get_running_loop(), scoring.chunk
        work = Work(scoring, chunk.name, chunk.version, str(scoring.keep_in))
        worker = await self._loaded(scoring, guests, loadable)
        end, size = loop.time() + chunk.rules.seconds, 1
        while not scoring.is_over:
            records = scoring.next(size)
            began = loop.time()
            is_alive = await worker.run(work, records, scoring.take, scoring.wait_for_space)
            took = loop.time() - began
            scoring.seconds += took
            if not is_alive:
                await guests.bury(worker)
                if not scoring.is_stopped:
                    position, left = worker.bequest()
                    if position is not None:
                        scoring.fail(position, worker.cause_of_death)
                    scoring.put_back(left)
            if loop.time() > end:
                return
            each = max(took / records.length, 1e-6)
            size = max(1, min(int(_PIECE_SECONDS / each), 2 * size, _MOST_RECORDS))
            if not scoring.is_over:
                worker = await self._loaded(scoring, guests, loadable)

    async def _loaded(
        self, scoring: _Scoring, guests: Guests[_Loadable], loadable: _Loadable
    ) -> Worker:
        """:raises InputError: the services cannot be loaded, or not on a disk that is full"""
        try:
            return await guests.get(loadable)
        except InputError:
            if not has_room(self._scratch):
                raise InputError(_DISK_FULL) from None
            scoring.is_unloadable = True
            raise

    def stop(self, ids: list[str]) -> None:
        """End chunks at once."""
        for chunk_id in ids:
            scoring = self._scorings.get(chunk_id)
            if scoring is not None:
                scoring.is_stopped = True
                for worker in self.workers():
                    if worker.purpose is scoring:
                        worker.kill("the execution was cancelled")

    def workers(self) -> list[Worker]:
        """All processes."""
        return [worker for guests in (*self._free, *self._busy) for worker in guests]

    def working(self) -> list[tuple[Worker, float]]:
        """Those that are on a record, and how long that may take."""
        return [
            (worker, worker.purpose.chunk.rules.record_timeout)
            for worker in self.workers()
            if isinstance(worker.purpose, _Scoring)
        ]

    def kill_all(self) -> None:
        """End everything."""
        for worker in self.workers():
            worker.kill("the Dask worker has ended")


async def _start(loadable: _Loadable) -> Worker:
    """:raises InputError: the services cannot be loaded, or are not those of the server"""
    manifest, folder, rules = loadable.manifest, loadable.folder, loadable.rules
    settings = WorkerSettings(
        sources=[str(folder / one) if one.endswith(".py") else one for one in manifest.sources],
        scratch=folder.parent.parent / "scratch",
        max_records=rules.max_records,
        max_growth=rules.max_growth,
        program=opened_program(manifest, folder),
        max_memory=rules.max_memory,
    )
    worker = await start_worker(settings, rules.load_timeout)
    found = {(one.name, one.version): Described.of(one) for one in worker.services}
    for expected in manifest.services:
        if found.get((expected.name, expected.version)) != expected:
            await worker.end()
            raise InputError(
                f"service {expected.name!r} version {expected.version!r} is another one here than on "
                "the server: install the same modules on the workers of the cluster"
            )
    return worker


async def _serve(folder: Path, line: socket.socket) -> None:
    line.setblocking(False)
    reader, writer = await asyncio.open_connection(sock=line, limit=_READ_BYTES)
    host, read = _Host(folder, writer), msgspec.msgpack.Decoder(Chunk | Stop)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, reader.feed_eof)
    tasks = {asyncio.create_task(watch_records(host.working))}
    try:
        while True:
            (length,) = LENGTH.unpack(await reader.readexactly(LENGTH.size))
            message = read.decode(await reader.readexactly(length))
            if isinstance(message, Chunk):
                task = asyncio.create_task(host.score(message))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            else:
                host.stop(message.ids)
    except (asyncio.IncompleteReadError, OSError):
        pass  # The Dask worker has ended.
    finally:
        host.kill_all()


def main() -> None:
    """The process: ``python -m airflow_mlbatch.server.dask_host FOLDER DESCRIPTOR``."""
    folder, descriptor = Path(sys.argv[1]), int(sys.argv[2])
    os.set_inheritable(descriptor, False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with suppress(KeyboardInterrupt):
        asyncio.run(_serve(folder, socket.socket(fileno=descriptor)))
    # What a service has written into its own folder, even when it left others behind.
    os._exit(0)


if __name__ == "__main__":
    main()
