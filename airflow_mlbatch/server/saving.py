"""Outcomes on their way to the disk, many in one transaction.

Law: an outcome that was taken is stored or kept; a full disk holds the work up and loses nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from airflow_mlbatch.server.blocks import Block, merged
from airflow_mlbatch.server.folder import DISK_FULL, DataFolder
from airflow_mlbatch.server.store import Result, StorageError, Store

__all__ = ["Saver"]

log = logging.getLogger(__name__)

_FLUSH_SECONDS = 0.05
_FLUSH_BYTES = 1024 * 1024
_MOST_KEPT_BYTES = 32 * 1024 * 1024
_RETRY_SECONDS = 1.0


class Saver:
    """Stores outcomes.

    :param folder: where there has to be room for them
    :param when_saved: called with the numbers of the executions whose outcomes were just stored;
        with none when there may be space again
    """

    def __init__(
        self, store: Store, folder: DataFolder, when_saved: Callable[[set[int]], None]
    ) -> None:
        self._store, self._folder, self._when_saved = store, folder, when_saved
        self._kept: list[Result] = []
        self._kept_bytes = 0
        self._has_work = asyncio.Event()
        self.problem = ""

    @property
    def is_blocked(self) -> bool:
        """Whether no more should be scored for now: the outcomes do not get away."""
        return bool(self.problem) or self._kept_bytes > _MOST_KEPT_BYTES

    def take(self, number: int, block: Block) -> None:
        """Have outcomes of an execution stored soon."""
        self._kept.append((number, block))
        self._kept_bytes += len(block.texts)
        self._has_work.set()

    def drop(self, number: int) -> None:
        """Forget the outcomes of an execution that is being deleted."""
        self._kept = [result for result in self._kept if result[0] != number]
        self._kept_bytes = sum(len(block.texts) for _, block in self._kept)

    def report_full_disk(self) -> None:
        """An artifact could not be stored: nothing more until there is space."""
        self.problem = DISK_FULL
        self._has_work.set()

    async def run(self) -> None:
        """Store what comes, for ever."""
        while True:
            await self._has_work.wait()
            if self._kept_bytes < _FLUSH_BYTES:
                await asyncio.sleep(_FLUSH_SECONDS)
            self._has_work.clear()
            try:
                if self._kept or self.problem == DISK_FULL:
                    self._folder.check_room(self._kept_bytes)
                saved = await self.save()
            except Exception as error:
                if not isinstance(error, StorageError):
                    log.exception("outcomes cannot be stored")
                self.problem = str(error) or type(error).__name__
                await asyncio.sleep(_RETRY_SECONDS)
                self._has_work.set()
                continue
            self.problem = ""
            self._when_saved(saved)

    async def save(self) -> set[int]:
        """Store what there is; returns the numbers of its executions.

        :raises StorageError: nothing was stored, all is kept
        """
        results, self._kept = self._neighbours_joined(), []
        self._kept_bytes = 0
        if not results:
            return set()
        try:
            await self._store.write(self._store.add_results, results)
        except BaseException:
            self._kept[:0] = results
            self._kept_bytes = sum(len(block.texts) for _, block in self._kept)
            raise
        return {result[0] for result in results} - {result[0] for result in self._kept}

    def _neighbours_joined(self) -> list[Result]:
        """What there is, in fewer blocks."""
        blocks: dict[int, list[Block]] = {}
        for number, block in self._kept:
            blocks.setdefault(number, []).append(block)
        return [(number, block) for number, some in blocks.items() for block in merged(some)]
