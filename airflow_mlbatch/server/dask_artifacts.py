"""The artifacts of records that a Dask cluster has scored, on their way into the data folder."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

from airflow_mlbatch.server.chunks import Done, chunk_folder
from airflow_mlbatch.server.dask_places import Piece
from airflow_mlbatch.server.desk import Desk
from airflow_mlbatch.server.folder import is_disk_full
from airflow_mlbatch.server.scoring import error_text

__all__ = ["Keeper"]

log = logging.getLogger(__name__)


class Keeper:
    """Brings outcomes to the desk, their artifacts first.

    :param shared_folder: where the workers put artifacts; ``None`` when they come with the outcomes
    """

    def __init__(self, desk: Desk, shared_folder: Path | None) -> None:
        self._desk, self._shared_folder = desk, shared_folder

    async def keep(self, piece: Piece, done: Done) -> None:
        """Have outcomes stored, their artifacts first."""
        job, again = piece.job, list[int]()
        failed: dict[int, str] = {}
        for position, source in await self._found(piece, done):
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
                    failed[position] = f"artifacts cannot be stored: {error_text(error)}"
        for block in done.outcomes:
            for part in block.without([*again, *failed]):
                self._desk.take(job, part)
        for position, problem in failed.items():
            self._desk.fail(job, position, problem)

    async def _found(
        self, piece: Piece, done: Done
    ) -> Sequence[tuple[int, Mapping[str, bytes] | Path]]:
        """Positions that have artifacts: with the files, or the folder where they lie."""
        folder = self._shared(piece)
        if folder is None:
            return list(done.files.items())
        names = set(await asyncio.to_thread(_listed, folder))
        positions = (n for block in done.outcomes for n in range(block.first, block.end))
        return [(n, folder / str(n)) for n in positions if str(n) in names]

    def _shared(self, piece: Piece) -> Path | None:
        """Where the artifacts of a chunk are, when there is a shared folder."""
        return self._shared_folder and self._shared_folder / chunk_folder(piece.id)

    def forget(self, piece: Piece) -> None:
        """Remove what is left of a chunk."""
        if folder := self._shared(piece):
            asyncio.get_running_loop().run_in_executor(None, shutil.rmtree, folder, True)


def _listed(folder: Path) -> list[str]:
    """The names in a folder, which is there when there are artifacts."""
    return os.listdir(folder) if folder.is_dir() else []


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
